"""Which array of a Zarr hierarchy is meant, and how large its voxels are.

A path or URL in, an array with a note and its voxel size out. Knows the OME-Zarr 0.4 and 0.5 multiscale metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zarr_emcodec.errors import EmCodecError, JobError, SpecError

if TYPE_CHECKING:
    import zarr

_NM = {
    "angstrom": 0.1, "å": 0.1,
    "nanometer": 1.0, "nm": 1.0, "micrometer": 1e3, "micron": 1e3, "um": 1e3, "µm": 1e3, "μm": 1e3,
    "\\u00b5m": 1e3, "millimeter": 1e6, "mm": 1e6, "picometer": 1e-3, "pm": 1e-3, "meter": 1e9, "m": 1e9,
}  # fmt: skip


def to_nm(value: float, unit: str | None) -> float | None:
    """A length in nm, or None where the unit is not one of length.

    Examples
    --------
    >>> to_nm(0.008, "micrometer")
    8.0
    """
    factor = _NM.get((unit or "").strip().lower())
    return None if factor is None or not value > 0 else value * factor


def pick_array(
    location: str, *, models: bool = True, trust_embedded: bool = False
) -> tuple[zarr.Array[Any], str, tuple[float, ...] | None]:
    """The array at a path; of a multiscale group its level 0.

    Parameters
    ----------
    location : path or URL
    models : bool
        Whether to take up a model that travels with the array; not needed where nothing is decoded.
    trust_embedded : bool
        As in `zarr_emcodec.open`.

    Returns
    -------
    array : zarr.Array
    note : str
        Says so where a level was chosen.
    voxel_nm : tuple of float or None
        (z, y, x), where the metadata state it.

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

    node = _open(location, models, trust_embedded)
    if isinstance(node, zarr.Array):
        return node, "", _stated(node.attrs)
    scales = multiscales(node.attrs)
    datasets = scales.get("datasets") or []
    if datasets:
        level = str(datasets[0].get("path", ""))
        array = _open(location, models, trust_embedded, path=level)
        if isinstance(array, zarr.Array):
            note = f"took level 0 ('{level}') of {len(datasets)} of the multiscale image"
            return array, note, _scale_nm(scales, datasets[0], array.ndim)
    names = sorted(name for name, _ in node.arrays())
    what = f"Name one of its arrays: {', '.join(names[:12])}." if names else "It holds no arrays of its own."
    raise SpecError(f"{location}: is a Zarr group, not an array. {what}", name="source", value=location)


def _open(location: str, models: bool, trust_embedded: bool, path: str | None = None) -> zarr.Array[Any] | zarr.Group:
    import zarr

    from zarr_emcodec.adapters import arrays

    try:
        if not models:
            return zarr.open(location, path=path, mode="r")
        return arrays.open(location, path=path, trust_embedded=trust_embedded)
    except EmCodecError:
        raise
    except Exception as error:  # stores raise whatever their transport does
        detail = str(error).split("\n", 1)[0] or type(error).__name__
        raise JobError(f"{location}: no Zarr array or group that can be opened: {detail}") from error


def multiscales(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first multiscale entry of OME-Zarr attributes, 0.4 or 0.5; empty where there is none."""
    ome = attributes.get("ome", attributes)
    entries = ome.get("multiscales") if isinstance(ome, Mapping) else None
    first = entries[0] if isinstance(entries, list) and entries else {}
    return first if isinstance(first, Mapping) else {}


def _stated(attributes: Mapping[str, Any]) -> tuple[float, ...] | None:
    own = attributes.get("emcodec")
    stated = own.get("voxel_nm") if isinstance(own, Mapping) else None
    try:
        return tuple(float(v) for v in stated) if stated else None
    except (TypeError, ValueError):
        return None  # foreign attributes may hold anything; a size that is no number is no size


def _scale_nm(scales: Mapping[str, Any], dataset: Mapping[str, Any], ndim: int) -> tuple[float, ...] | None:
    try:
        units = [axis.get("unit") for axis in scales["axes"]][-3:]
        steps = dataset["coordinateTransformations"]
        scale = next(step["scale"] for step in steps if step["type"] == "scale")[-3:]
        sizes = [to_nm(float(value), unit) for value, unit in zip(scale, units, strict=True)]
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration):
        return None
    known = tuple(size for size in sizes if size is not None)
    return known if len(known) == min(3, ndim) else None
