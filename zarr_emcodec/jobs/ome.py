"""Which array of a Zarr hierarchy is meant, and what its multiscale metadata say; the same metadata written.

A path or URL in, a `Found` array out. Knows OME-Zarr up to 0.4 (attributes of a Zarr v2 group) and 0.5 (under "ome",
Zarr v3); older versions without scales are read as far as they go.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from zarr_emcodec.errors import EmCodecError, JobError, SpecError
from zarr_emcodec.jobs import axes
from zarr_emcodec.jobs.scales import Axis, Level, Multiscale, to_nm

if TYPE_CHECKING:
    import zarr

    from zarr_emcodec.jobs.sources.place import Place

__all__ = ["Found", "find_array", "multiscales", "pick_array", "read_multiscale", "to_nm", "write_multiscale"]

_ARRAY = "emcodec"  # attribute in which this package states a voxel size where there is no OME group


@dataclass(frozen=True)
class Found:
    """An array and what is known of its surroundings.

    Parameters
    ----------
    array : zarr.Array
    note : str
        Says so where a level was chosen.
    scales : Multiscale or None
        Axes as stored.
    level : int
        Which of its levels the array is.
    voxel_nm, offset : tuple of float or None
        Along the last axes as stored.
    """

    array: zarr.Array[Any]
    note: str = ""
    scales: Multiscale | None = None
    level: int = 0
    voxel_nm: tuple[float, ...] | None = None
    offset: tuple[float, ...] | None = None


def pick_array(
    location: str, *, models: bool = True, trust_embedded: bool = False
) -> tuple[zarr.Array[Any], str, tuple[float, ...] | None]:
    """The array at a path; of a multiscale group its level 0.

    Parameters
    ----------
    location, models, trust_embedded
        As in `find_array`.

    Returns
    -------
    array : zarr.Array
    note : str
        Says so where a level was chosen.
    voxel_nm : tuple of float or None
        Along the last axes, where the metadata state it.

    Raises
    ------
    JobError, SpecError, ModelError
        As in `find_array`.
    """
    from zarr_emcodec.jobs.sources.place import Place

    found = find_array(Place(location), models=models, trust_embedded=trust_embedded)
    return found.array, found.note, found.voxel_nm


def find_array(place: Place, *, models: bool = True, trust_embedded: bool = False) -> Found:
    """The array at a place; of a multiscale group its level 0, of a level what its group says about it.

    Parameters
    ----------
    place : Place
    models : bool
        Whether to take up a model that travels with the array; not needed where nothing is decoded.
    trust_embedded : bool
        As in `zarr_emcodec.open`.

    Returns
    -------
    Found

    Raises
    ------
    JobError
        If there is no Zarr there, or it cannot be opened.
    SpecError
        If it is a group and does not say which of its arrays is meant; they are named.
    ModelError
        If a model travels with the array that is neither known here nor trusted.
    """
    import zarr

    node = _open(place, models, trust_embedded)
    if isinstance(node, zarr.Array):
        return _in_its_group(place, node)
    scales = read_multiscale(node.attrs.asdict(), place.location)
    names = _level_names(node.attrs) if scales is None else [level.name for level in scales.levels]
    if names:
        array = _open(place, models, trust_embedded, path=names[0])
        if isinstance(array, zarr.Array):
            note = f"took level 0 ('{names[0]}') of {len(names)} of the multiscale image"
            return _described(array, note, scales, 0)
    names = sorted(name for name, _ in node.arrays())
    what = f"Name one of its arrays: {', '.join(names[:12])}." if names else "It holds no arrays of its own."
    raise SpecError(f"{place.location}: is a Zarr group, not an array. {what}", name="source", value=place.location)


def _open(place: Place, models: bool, trust_embedded: bool, path: str | None = None) -> zarr.Array[Any] | zarr.Group:
    import zarr

    from zarr_emcodec.adapters import arrays

    try:
        if not models:
            return zarr.open(place.store_path, path=path, mode="r")
        return arrays.open(place.store_path, path=path, trust_embedded=trust_embedded)
    except EmCodecError:
        raise
    except Exception as error:  # stores raise whatever their transport does
        detail = str(error).split("\n", 1)[0] or type(error).__name__
        raise JobError(f"{place.location}: no Zarr array or group that can be opened: {detail}") from error


def _in_its_group(place: Place, array: zarr.Array[Any]) -> Found:
    """What the group that an array lies in says about it, where it is one of its levels."""
    parent, name = place.parent()
    attributes = {} if parent is None else parent.zarr_attributes()
    scales = None if parent is None else read_multiscale(attributes, parent.location)
    names = [level.name for level in scales.levels] if scales else []
    if name in names:
        return _described(array, "", scales, names.index(name))
    return _described(array, "", None, 0)


def _described(array: zarr.Array[Any], note: str, scales: Multiscale | None, level: int) -> Found:
    if scales is not None and len(scales.axes) == array.ndim:
        size = scales.voxel_nm(level)
        return Found(array, note, scales, level, size, scales.offset(level))
    own = array.attrs.get(_ARRAY)
    stated = own if isinstance(own, Mapping) else {}
    size, offset = _floats(stated.get("voxel_nm")), _floats(stated.get("offset"))
    return Found(array, note, None, 0, size, offset)


def multiscales(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first multiscale entry of OME-Zarr attributes, 0.4 or 0.5; empty where there is none."""
    ome = attributes.get("ome", attributes)
    entries = ome.get("multiscales") if isinstance(ome, Mapping) else None
    first = entries[0] if isinstance(entries, list) and entries else {}
    return first if isinstance(first, Mapping) else {}


def _level_names(attributes: Mapping[str, Any]) -> list[str]:
    """Of an image whose scales cannot be understood."""
    datasets = multiscales(attributes).get("datasets")
    return [str(item.get("path", "")) for item in datasets or () if isinstance(item, Mapping)]


def read_multiscale(attributes: Mapping[str, Any], location: str) -> Multiscale | None:
    """The image that a group's attributes describe, or None where they describe none that can be understood.

    Parameters
    ----------
    attributes : mapping
        Of the group, in either version.
    location : str
        Of the group.
    """
    entry = multiscales(attributes)
    try:
        found = tuple(_axis(axis) for axis in entry["axes"])
        outer = entry.get("coordinateTransformations")
        levels = tuple(_level(item, outer, location, len(found)) for item in entry["datasets"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None  # foreign attributes may hold anything
    if not levels or not all(value > 0 for level in levels for value in level.scale):
        return None
    rest = {key: value for key, value in attributes.items() if key not in ("multiscales", "ome", _ARRAY)}
    ome = attributes.get("ome")
    if isinstance(ome, Mapping):
        rest.update({key: value for key, value in ome.items() if key not in ("multiscales", "version")})
    image = {key: value for key, value in entry.items() if key not in (*_PLACES, "version")}
    return Multiscale(found, levels, copy.deepcopy(rest), copy.deepcopy(image))


_PLACES = ("axes", "datasets", "coordinateTransformations")


def _axis(stated: Any) -> Axis:
    if isinstance(stated, str):  # 0.3
        return Axis(stated, {"t": "time", "c": "channel"}.get(stated, "space"))
    return Axis(str(stated["name"]), str(stated.get("type", "space")), stated.get("unit"))


def _level(item: Mapping[str, Any], outer: Any, location: str, n: int) -> Level:
    scale, shift = [1.0] * n, [0.0] * n
    # applied in order, those of the image after those of the level
    for step in [*(item.get("coordinateTransformations") or ()), *(outer or ())]:
        if step["type"] == "scale":
            scale = [s * float(v) for s, v in zip(scale, step["scale"], strict=True)]
            shift = [t * float(v) for t, v in zip(shift, step["scale"], strict=True)]
        elif step["type"] == "translation":
            shift = [t + float(v) for t, v in zip(shift, step["translation"], strict=True)]
    name = str(item["path"])
    return Level(name, f"{location.rstrip('/')}/{name}", tuple(scale), tuple(shift))


def write_multiscale(scales: Multiscale, zarr_format: int) -> dict[str, Any]:
    """Attributes of the group that holds an image.

    Parameters
    ----------
    scales : Multiscale
    zarr_format : {2, 3}
        2 gives OME-Zarr 0.4, 3 gives 0.5.

    Examples
    --------
    >>> from zarr_emcodec.jobs.scales import in_nm
    >>> levels = [("s0", "", (1, 1), (0, 0)), ("s1", "", (2, 2), (0.25, 0.25))]
    >>> image = write_multiscale(in_nm("yx", (4, 4), levels), 3)["ome"]["multiscales"][0]
    >>> image["datasets"][1]["coordinateTransformations"][1]
    {'type': 'translation', 'translation': [2.0, 2.0]}
    """
    stated = [{"name": a.name, "type": a.kind, **({"unit": a.unit} if a.unit else {})} for a in scales.axes]
    datasets = [{"path": level.name, "coordinateTransformations": _steps(level)} for level in scales.levels]
    entry = {**copy.deepcopy(dict(scales.image)), "axes": stated, "datasets": datasets}
    rest = copy.deepcopy(dict(scales.attributes))
    if zarr_format == 2:
        return {**rest, "multiscales": [{"version": "0.4", **entry}]}
    under_ome = {key: rest.pop(key) for key in _OME_KEYS if key in rest}
    return {**rest, "ome": {"version": "0.5", **under_ome, "multiscales": [entry]}}


_OME_KEYS = ("omero", "labels", "plate", "well", "bioformats2raw.layout", "image-label")


def _steps(level: Level) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [{"type": "scale", "scale": list(level.scale)}]
    if any(level.translation):
        steps.append({"type": "translation", "translation": list(level.translation)})
    return steps


def seen_through(scales: Multiscale, view: axes.View) -> Multiscale:
    """The same image with our order of axes."""
    levels = tuple(
        replace(level, scale=view.pick(level.scale), translation=view.pick(level.translation))
        for level in scales.levels
    )
    return replace(scales, axes=view.pick(scales.axes), levels=levels)


def _floats(stated: Any) -> tuple[float, ...] | None:
    try:
        return tuple(float(v) for v in stated) if isinstance(stated, Sequence) and stated else None
    except (TypeError, ValueError):
        return None  # foreign attributes may hold anything; a size that is no number is no size
