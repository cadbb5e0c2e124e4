"""Zarr v2 and v3, sharded or not, with whatever codecs zarr can read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.jobs import axes, ome
from zarr_emcodec.jobs.scales import spatial
from zarr_emcodec.jobs.sources.objects import Objects, digest
from zarr_emcodec.jobs.sources.source import Source

if TYPE_CHECKING:
    import zarr

    from zarr_emcodec._types import Chunk
    from zarr_emcodec.jobs.grid import Box
    from zarr_emcodec.jobs.sources.place import Place

_DIMENSIONS = "_ARRAY_DIMENSIONS"  # where xarray keeps the names of axes in v2; they may be in another order here
DOCUMENTS = ("zarr.json", ".zarray", ".zgroup", ".zmetadata")
"""Any of these makes a folder Zarr."""


def open_zarr(place: Place, trust_embedded: bool) -> Source:
    """An array, or level 0 of a multiscale group.

    Its axes are in the order that the OME metadata state, else its dimension names; where neither does, they are taken
    to be (..., z, y, x).
    """
    found = ome.find_array(place, trust_embedded=trust_embedded)
    array = found.array
    stated = [axis.name for axis in found.scales.axes] if found.scales else _dimension_names(array)
    view = axes.view_of(stated, array.shape)
    scales = ome.seen_through(found.scales, view) if found.scales else None
    n = spatial(array.ndim)
    return Source(
        place.location,
        "zarr",
        view.pick(array.shape),
        np.dtype(array.dtype).newbyteorder("="),
        _reader(array, view),
        chunks=view.pick(array.chunks),
        voxel_nm=scales.voxel_nm(found.level) if scales else _of_length(found.voxel_nm, n),
        offset=scales.offset(found.level) if scales else _of_length(found.offset, n) or (),
        note=found.note,
        attributes={key: value for key, value in array.attrs.items() if key != _DIMENSIONS},
        scales=scales,
        level=found.level,
        fill=_fill(array),
        absent=_objects(place, array, view).absent,
        marks=lambda: [_digest(array), *_objects(place, array, view).marks()],
    )


def _reader(array: zarr.Array[Any], view: axes.View) -> Any:
    def read(box: Box) -> Chunk:
        return view.from_stored(np.asarray(array[view.to_stored(box)]))

    return read


def _objects(place: Place, array: zarr.Array[Any], view: axes.View) -> Objects:
    inside = type(place)(str(array.store_path), None, array.store_path)

    def key(index: tuple[int, ...]) -> str:
        return array.metadata.encode_chunk_key(view.spread(index, 0))

    return Objects(inside, view.pick(array.shape), view.pick(array.shards or array.chunks), key)


def _digest(array: zarr.Array[Any]) -> str:
    document = {key: value for key, value in array.metadata.to_dict().items() if key != "attributes"}
    return digest(document)


def _dimension_names(array: zarr.Array[Any]) -> list[str] | None:
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get(_DIMENSIONS)
    return [str(name) for name in names] if isinstance(names, list | tuple) else None


def _fill(array: zarr.Array[Any]) -> float:
    value = array.fill_value
    return float(value) if isinstance(value, int | float | np.integer | np.floating) else 0.0


def _of_length(stated: tuple[float, ...] | None, n: int) -> tuple[float, ...] | None:
    return stated if stated is not None and len(stated) == n else None
