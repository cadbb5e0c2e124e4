"""N5 data sets, plain ones through TensorStore and those of this package's frames through `zarr_emcodec.n5`.

N5 counts axes from x on. Voxel sizes and places come in several dialects; read are those of Paintera and TensorStore
(`resolution`, `units`, `offset`), n5-viewer (`pixelResolution`, `downsamplingFactors`) and COSEM (`transform`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.errors import JobError, SpecError
from zarr_emcodec.jobs import axes
from zarr_emcodec.jobs.scales import factors_between, in_nm, nm_per, spatial
from zarr_emcodec.jobs.sources import tensors
from zarr_emcodec.jobs.sources.objects import Objects, digest
from zarr_emcodec.jobs.sources.source import Missing, Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr_emcodec._types import Chunk, Shape
    from zarr_emcodec.jobs.grid import Box
    from zarr_emcodec.jobs.scales import Multiscale
    from zarr_emcodec.jobs.sources.place import Place

DOCUMENT = "attributes.json"
_ARRAY_KEYS = ("dimensions", "blockSize", "dataType", "compression", "compressionType")
_PLACE_KEYS = ("axes", "resolution", "units", "offset", "pixelResolution", "downsamplingFactors", "transform", "n5",
               "scales", "multiscales", "multiScale")  # fmt: skip
_AT_ONCE = 8  # levels asked for together; few volumes have more


def open_n5(place: Place, missing: Missing) -> Source:
    """A data set, or the finest level (s0) of a multiscale group.

    Raises
    ------
    JobError
        If its metadata are damaged.
    SpecError
        If it is a group without levels, or of a kind that cannot be read.
    """
    attributes = place.document(DOCUMENT) or {}
    note = ""
    if "dimensions" not in attributes:
        place, note = place.child("s0"), "took level 0 ('s0') of the multiscale group"
        attributes = place.document(DOCUMENT) or {}
        if "dimensions" not in attributes:
            where = place.location.removesuffix("/s0")
            raise SpecError(
                f"{where}: is an N5 group without levels s0, s1, ... Name a data set in it.",
                name="source",
                value=where,
            )
    stored = _dimensions(place, attributes, "dimensions")
    unit = _dimensions(place, attributes, "blockSize")
    view = _view(attributes, stored)
    group, level_name = place.parent()
    size, stated_as = _voxel_nm(attributes, view)
    scales, level = _levels(group, level_name, place, attributes, view)
    shape = view.pick(stored)
    objects = Objects(place, shape, view.pick(unit), lambda index: "/".join(map(str, view.spread(index, 0))))
    read, dtype, held = _reader(place, attributes, view, missing)
    return Source(
        place.location,
        "n5",
        shape,
        dtype,
        read,
        chunks=view.pick(unit),
        voxel_nm=size,
        offset=scales.offset(level),
        note="; ".join(filter(None, [note, stated_as])),
        attributes={k: v for k, v in attributes.items() if k not in (*_ARRAY_KEYS, *_PLACE_KEYS)},
        scales=scales,
        level=level,
        held_bytes=held,
        absent=objects.absent,
        marks=lambda: [digest({k: attributes[k] for k in _ARRAY_KEYS if k in attributes}), *objects.marks()],
    )


def _dimensions(place: Place, attributes: Mapping[str, Any], name: str) -> Shape:
    value = attributes.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(n, int) and n >= 0 for n in value):
        raise JobError(f"{place.location}/{DOCUMENT}: {name} is {value!r}, not a list of whole numbers. Restore it.")
    return tuple(value)


def _view(attributes: Mapping[str, Any], stored: Shape) -> axes.View:
    stated = attributes.get("axes")
    named = isinstance(stated, list) and all(isinstance(name, str) for name in stated) and {"x", "y"} <= set(stated)
    return axes.view_of(stated if named else axes.x_first(len(stored)), stored)


def _reader(
    place: Place, attributes: Mapping[str, Any], view: axes.View, missing: Missing
) -> tuple[Callable[[Box], Chunk], np.dtype[Any], int]:
    kind = (attributes.get("compression") or {}).get("type", "")
    if not str(kind).startswith("emcodec"):
        store = tensors.open_tensors(place, "N5 data set", {"driver": "n5"}, strict=missing == "error")
        return tensors.reader(store, view), store.dtype.numpy_dtype, tensors.held_bytes(store)
    from zarr_emcodec.adapters import n5

    # axes reversed, as everywhere in N5 adapters: ours may still differ where the data set names its axes
    array = n5.open(place.store_path.store, path=place.store_path.path)
    last = len(view.origin) - 1
    turned = axes.View(view.names, tuple(last - axis for axis in view.axes), view.origin)
    dtype = np.dtype(array.dtype).newbyteorder("=")
    return lambda box: turned.from_stored(np.asarray(array[turned.to_stored(box)])), dtype, 0


def _voxel_nm(attributes: Mapping[str, Any], view: axes.View) -> tuple[tuple[float, ...] | None, str]:
    """Voxel size along our axes of space, and a word where its unit was guessed."""
    n = spatial(len(view.axes))
    transform = _transform(attributes, view.names[-n:])
    if transform is not None:
        return transform[0], ""
    pixel = attributes.get("pixelResolution")
    if isinstance(pixel, Mapping):
        stated: Any = pixel.get("dimensions")
        units: Any = [pixel.get("unit")] * len(view.origin)
        # n5-viewer states the size of the finest level beside the factors of this one
        factors = _ours(attributes.get("downsamplingFactors"), view) or (1.0,) * n
    else:
        stated, units = attributes.get("resolution", pixel), attributes.get("units")
        factors = (1.0,) * n
    sizes = _ours(stated, view)
    if sizes is None:
        return None, ""
    named = isinstance(units, list) and len(units) == len(view.origin) and any(units)
    steps = [nm_per(unit) for unit in view.pick(units)[-n:]] if named else [1.0] * n
    if any(step is None for step in steps):
        return None, ""
    guessed = "" if named else "the voxel size has no unit and is taken to be in nm"
    return tuple(s * (u or 1.0) * f for s, u, f in zip(sizes, steps, factors, strict=True)), guessed


def _ours(stated: Any, view: axes.View) -> tuple[float, ...] | None:
    """Positive numbers, one per stored axis (or per axis of space, x first), along our axes of space."""
    n = spatial(len(view.axes))
    try:
        values = [float(v) for v in stated]
    except (TypeError, ValueError):
        return None  # foreign attributes may hold anything
    if len(values) == len(view.origin):
        ours = view.pick(values)[-n:]
    elif len(values) == n:
        ours = tuple(reversed(values))
    else:
        return None
    return ours if all(v > 0 and math.isfinite(v) for v in ours) else None


def _transform(
    attributes: Mapping[str, Any], names: Sequence[str]
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """COSEM's voxel size and place of the first voxel in nm; its axes are named, and need not be in N5's order."""
    stated = attributes.get("transform")
    if not isinstance(stated, Mapping):
        return None
    try:
        where = [stated["axes"].index(name) for name in names]
        steps = [step for i in where if (step := nm_per(stated["units"][i])) is not None]
        scale = tuple(float(stated["scale"][i]) * s for i, s in zip(where, steps, strict=True))
        shift = tuple(float(stated["translate"][i]) * s for i, s in zip(where, steps, strict=True))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return None
    return (scale, shift) if all(v > 0 for v in scale) else None


def _levels(
    group: Place | None, name: str, place: Place, attributes: Mapping[str, Any], view: axes.View
) -> tuple[Multiscale, int]:
    """The levels beside a data set named s0, s1, ...; itself alone where it has another name."""
    n = spatial(len(view.axes))
    of_group: dict[str, Any] = {}
    found: list[tuple[str, str, Mapping[str, Any]]] = [(name, place.location, attributes)]
    if group is not None and name.startswith("s") and name[1:].isdigit():
        document = group.get(DOCUMENT)[0]
        of_group = group.parsed(DOCUMENT, document) if document else {}
        siblings = _siblings(group)
        if any(sibling[0] == name for sibling in siblings):
            found = siblings
    finest = found[0][2]
    size, _ = _voxel_nm(finest, view)
    rows = []
    for i, (label, where, stated) in enumerate(found):
        factors = _factors(i, stated, finest, of_group, view) if i else (1.0,) * n
        rows.append((label, where, factors, _offset(stated, size, factors, view)))
    rest = {key: value for key, value in of_group.items() if key not in _PLACE_KEYS}
    return in_nm(view.names, size, rows, rest), [row[0] for row in rows].index(name)


def _siblings(group: Place) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Name, location and attributes of s0, s1, ... as far as they go."""
    found: list[tuple[str, str, Mapping[str, Any]]] = []
    while True:
        names = [f"s{len(found) + i}" for i in range(_AT_ONCE)]
        texts = group.get(*(f"{name}/{DOCUMENT}" for name in names))
        for name, text in zip(names, texts, strict=True):
            attributes = {} if text is None else group.parsed(f"{name}/{DOCUMENT}", text)
            if "dimensions" not in attributes:
                return found
            found.append((name, group.child(name).location, attributes))


def _factors(
    i: int, stated: Mapping[str, Any], finest: Mapping[str, Any], of_group: Mapping[str, Any], view: axes.View
) -> tuple[float, ...]:
    listed = of_group.get("downsamplingFactors", of_group.get("scales"))
    of_list = listed[i] if isinstance(listed, list) and len(listed) > i else None
    n = spatial(len(view.axes))
    for candidate in (stated.get("downsamplingFactors"), of_list):
        factors = _ours(candidate, view)
        if factors is not None:
            return factors
    fine, coarse = view.pick(finest["dimensions"]), view.pick(stated["dimensions"])
    return factors_between(fine, coarse)[-n:]


def _offset(
    stated: Mapping[str, Any], finest_nm: Sequence[float] | None, factors: Sequence[float], view: axes.View
) -> tuple[float, ...]:
    """Centre of a level's first voxel, in voxels of the level."""
    n = spatial(len(view.axes))
    size = [s * f for s, f in zip(finest_nm or (1.0,) * n, factors, strict=True)]
    transform = _transform(stated, view.names[-n:])
    if transform is not None:
        return axes.to_voxels(transform[1], size)
    try:
        values = [float(v) for v in stated["offset"]]
        ours = view.pick(values)[-n:] if len(values) == len(view.origin) else tuple(reversed(values))
        return axes.to_voxels(ours, size)  # Paintera's offset is in the unit of its resolution
    except (KeyError, TypeError, ValueError, IndexError):
        return axes.coarser((0.0,) * n, factors)
