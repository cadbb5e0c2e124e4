"""Neuroglancer precomputed volumes: raw, jpeg and png, sharded or not, through TensorStore.

The info document says where chunks lie; voxel sizes are in nm. The path of a volume is its finest scale; the path of a
scale's own folder is that scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zarr_emcodec.errors import JobError, SpecError
from zarr_emcodec.jobs import axes
from zarr_emcodec.jobs.scales import in_nm
from zarr_emcodec.jobs.sources import tensors
from zarr_emcodec.jobs.sources.objects import Objects, digest
from zarr_emcodec.jobs.sources.source import Missing, Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr_emcodec._types import Shape
    from zarr_emcodec.jobs.scales import Multiscale
    from zarr_emcodec.jobs.sources.place import Place

DOCUMENT = "info"
_STORED = ("x", "y", "z", "channel")
_READ = ("raw", "jpeg", "png")


def open_precomputed(place: Place, missing: Missing) -> Source:
    """The finest scale of a volume, or the scale whose folder is named.

    Raises
    ------
    JobError
        If its metadata are damaged.
    SpecError
        If it holds labels, or an encoding that is not read.
    """
    root, info, number, note = _find(place)
    try:
        scale, levels = info["scales"][number], _levels(root, info)
        shape: Shape = (*(int(n) for n in scale["size"]), int(info["num_channels"]))
        origin: Shape = (*(int(n) for n in scale.get("voxel_offset", (0, 0, 0))), 0)
        unit: Shape = (*(int(n) for n in scale["chunk_sizes"][0]), shape[3])
        key = str(scale["key"])
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise JobError(
            f"{root.location}/info: {error!r} is missing or is not what it should be. Restore it."
        ) from error
    _check(place, info, scale)
    strict = missing == "error"
    settings = {"driver": "neuroglancer_precomputed", "scale_index": number}
    store = tensors.open_tensors(root, "precomputed volume", settings, strict=strict)
    view = axes.view_of(_STORED, shape, origin=origin, drop=("c",))
    sharded = bool(scale.get("sharding"))
    objects = Objects(root, view.pick(shape), view.pick(unit), _namer(key, view, shape, unit))
    return Source(
        place.location,
        "precomputed",
        view.pick(shape),
        store.dtype.numpy_dtype,
        tensors.reader(store, view),
        chunks=view.pick(unit),
        voxel_nm=levels.voxel_nm(number),
        offset=levels.offset(number),
        note=note,
        scales=levels,
        level=number,
        held_bytes=tensors.held_bytes(store),
        # a shard's name follows from hashes of its chunks; with missing="error" TensorStore itself refuses
        absent=None if sharded else objects.absent,
        marks=lambda: [digest(scale), *([] if sharded else objects.marks())],
    )


def _find(place: Place) -> tuple[Place, dict[str, Any], int, str]:
    """The volume's root, its info, which scale is meant, and what was chosen."""
    info = place.document(DOCUMENT)
    if info is not None:
        n = len(info.get("scales") or ())
        return place, info, 0, f"took scale 0 of {n} of the precomputed volume" if n > 1 else ""
    parent, name = place.parent()
    info = None if parent is None else parent.document(DOCUMENT)
    keys = [str(scale.get("key")) for scale in (info or {}).get("scales", ())]
    if parent is None or info is None or name not in keys:
        raise JobError(f"{place.location}: no precomputed volume, nor a scale of one.")
    return parent, info, keys.index(name), ""


def is_scale(place: Place) -> bool:
    """Whether a place is the folder of a scale of the volume above it."""
    try:
        _find(place)
    except JobError:
        return False
    return True


def _check(place: Place, info: dict[str, Any], scale: dict[str, Any]) -> None:
    if info.get("type") == "segmentation":
        raise SpecError(
            f"{place.location}: is a segmentation. Its {info.get('data_type')} labels would be destroyed by a lossy "
            "codec; use compressed_segmentation, crackle or zstd for them.",
            name="dtype",
            value=info.get("data_type"),
        )
    if scale.get("encoding") not in _READ:
        raise SpecError(
            f"{place.location}: its chunks are encoded as {scale.get('encoding')!r}; {', '.join(_READ)} are read. "
            "Rewrite it in one of them first (igneous, cloud-volume).",
            name="encoding",
            value=scale.get("encoding"),
        )


def _levels(root: Place, info: dict[str, Any]) -> Multiscale:
    names = axes.view_of(_STORED, (2, 2, 2, int(info["num_channels"])), drop=("c",)).names
    finest = _reversed(info["scales"][0]["resolution"])
    rows = []
    for scale in info["scales"]:
        factors = tuple(r / f for r, f in zip(_reversed(scale["resolution"]), finest, strict=True))
        corner = _reversed(scale.get("voxel_offset", (0, 0, 0)))
        key = str(scale["key"])
        rows.append((key, root.child(key).location, factors, axes.from_corner(corner, factors)))
    return in_nm(names, finest, rows)


def _reversed(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(v) for v in reversed(values))


def _namer(key: str, view: axes.View, shape: Shape, unit: Shape) -> Any:
    """Grid index to the name of an unsharded chunk: its voxels along x, y and z."""

    def name(index: Shape) -> str:
        cells = view.spread(index, 0)[:3]
        lows = [o + i * u for o, i, u in zip(view.origin, cells, unit, strict=False)]
        highs = [min(low + u, o + n) for low, u, o, n in zip(lows, unit, view.origin, shape, strict=False)]
        return f"{key}/" + "_".join(f"{low}-{high}" for low, high in zip(lows, highs, strict=True))

    return name
