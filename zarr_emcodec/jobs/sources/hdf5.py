"""HDF5 data sets: ``file.h5::path/of/dataset``, or ``file.h5`` where it holds a single one of 2 or more axes.

Voxel sizes are read as ilastik writes them (`element_size_um`) and as CREMI does (`resolution`, `offset`, in nm).
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.errors import MissingExtraError, SpecError
from zarr_emcodec.jobs import axes
from zarr_emcodec.jobs.report import plain
from zarr_emcodec.jobs.scales import spatial
from zarr_emcodec.jobs.sources.source import Source

if TYPE_CHECKING:
    from zarr_emcodec.jobs.grid import Box
    from zarr_emcodec.jobs.sources.opened import Opened

SUFFIXES = (".h5", ".hdf5", ".hdf", ".he5")
BETWEEN = "::"
"""Stands between file and data set."""


def open_hdf5(location: str, file: Opened, name: str) -> Source:
    """A data set of a file.

    Parameters
    ----------
    location : str
        As the user gave it.
    file : Opened
    name : str
        Path of the data set in the file; empty: the only one that could be meant.

    Raises
    ------
    SpecError
        If the file is no HDF5, or does not hold that data set; those that it holds are named.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("reading HDF5", extra="sources") from error
    handle = file.for_library()
    try:
        root = h5py.File(handle, "r")
    except PermissionError:
        raise
    except OSError as error:
        file.close()
        raise SpecError(
            f"{location}: not an HDF5 file that can be read: {error}", name="source", value=location
        ) from error
    data = _pick(location, root, name)
    n = spatial(len(data.shape))
    size = _voxel_nm(data, n)

    def close() -> None:
        root.close()
        file.close()

    return Source(
        location,
        "hdf5",
        tuple(int(v) for v in data.shape),
        data.dtype.newbyteorder("="),
        lambda box: data[box],
        chunks=data.chunks,
        voxel_nm=size,
        offset=_offset(data, size, n),
        note="" if name else f"took data set '{data.name.strip('/')}'",
        attributes=_attributes(data),
        fill=float(data.fillvalue) if data.dtype.kind in "iuf" else 0.0,
        held_bytes=data.id.get_access_plist().get_chunk_cache()[1],
        absent=(lambda box: _absent(data, box)) if data.chunks else None,
        marks=lambda: [file.mark(), data.name],
        close=close,
    )


def _pick(location: str, root: Any, name: str) -> Any:
    import h5py

    names: list[str] = []
    root.visititems(lambda path, node: names.append(path) if isinstance(node, h5py.Dataset) and node.ndim > 1 else None)
    wanted = name.strip("/") or (names[0] if len(names) == 1 else "")
    if wanted in names:
        return root[wanted]
    root.close()
    listed = ", ".join(names[:12]) or "none"
    asked = f"holds no data set '{wanted}' of 2 or more axes" if wanted else "does not say which data set is meant"
    raise SpecError(
        f"{location}: {asked}; there are: {listed}. Name one as FILE{BETWEEN}DATASET.", name="source", value=location
    )


def _absent(data: Any, box: Box) -> tuple[int, int]:
    """How many chunks of a box were never written, and how many it touches."""
    cells = [range(part.start // c * c, part.stop, c) for part, c in zip(box, data.chunks, strict=True)]
    found = [data.id.get_chunk_info_by_coord(corner).byte_offset is None for corner in itertools.product(*cells)]
    return sum(found), len(found)


def _voxel_nm(data: Any, n: int) -> tuple[float, ...] | None:
    for name, unit in (("element_size_um", 1e3), ("resolution", 1.0)):
        sizes = _numbers(data, name, n)
        if sizes is not None and min(sizes) > 0:
            return tuple(size * unit for size in sizes)
    return None


def _offset(data: Any, size: tuple[float, ...] | None, n: int) -> tuple[float, ...]:
    place = _numbers(data, "offset", n)
    return axes.to_voxels(place, size) if place is not None and size is not None else ()


def _numbers(data: Any, name: str, n: int) -> tuple[float, ...] | None:
    with suppress(TypeError, ValueError):  # foreign attributes may hold anything
        values = np.asarray(data.attrs.get(name), float).ravel()
        if len(values) >= n:
            return tuple(float(v) for v in values[-n:])
    return None


def _attributes(data: Any) -> dict[str, Any]:
    """Attributes that JSON can hold; references and structures stay behind."""
    found: dict[str, Any] = {}
    for name in data.attrs:
        with suppress(TypeError, OSError):
            value = data.attrs[name]
            value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
            if isinstance(value, str | int | float | bool | list) and "object" not in str(type(value)):
                found[name] = plain(value)
    return found
