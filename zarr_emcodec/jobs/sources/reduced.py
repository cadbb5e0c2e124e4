"""A volume seen with coarser voxels, each the mean of a few: what the next level of a pyramid is made from.

As any source it is read box by box and has a location, ``mean-1x2x2://`` before that of the finer volume, so that
whatever works on sources, on any number of machines, makes pyramids.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.errors import SpecError
from zarr_emcodec.jobs import axes, grid
from zarr_emcodec.jobs.scales import spatial
from zarr_emcodec.jobs.sources.source import Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr_emcodec._types import Chunk, Shape
    from zarr_emcodec.jobs.grid import Box

_LOCATION = re.compile(r"mean-(\d+(?:x\d+)*)://(.+)", re.DOTALL)
_MOST_VOXELS = 1 << 12  # per mean: twice the sum of as many 16-bit values still fits 32 bits


def reduced_location(location: str, factors: Sequence[int]) -> str:
    """What `open_source` opens a coarser view by.

    Examples
    --------
    >>> reduced_location("s3://bucket/em/s0", (1, 2, 2))
    'mean-1x2x2://s3://bucket/em/s0'
    """
    return f"mean-{_by(factors)}://{location}"


def _by(factors: Sequence[int]) -> str:
    return "x".join(map(str, factors))


def split_location(location: str) -> tuple[tuple[int, ...], str] | None:
    """Factors and the finer volume's location; None where a location asks for no coarser view."""
    found = _LOCATION.fullmatch(location)
    return None if found is None else (tuple(int(n) for n in found[1].split("x")), found[2])


def reduce_source(finer: Source, factors: Sequence[int]) -> Source:
    """A volume as its means.

    Parameters
    ----------
    finer : Source
        Closed with the result.
    factors : sequence of int
        Voxels per mean along each axis. At the high end, means are of the voxels that are left.

    Raises
    ------
    SpecError
        If there is not one factor for each axis, or they are not positive.
    """
    factors = tuple(factors)
    if len(factors) != len(finer.shape) or min(factors) < 1 or math.prod(factors) > _MOST_VOXELS:
        raise SpecError(
            f"{finer.location}: means over {factors}; needed are {len(finer.shape)} positive factors, one for each "
            f"axis, and at most {_MOST_VOXELS} voxels in a mean.",
            name="factors",
            value=factors,
        )
    n = spatial(len(factors))
    unit = tuple(math.lcm(c, f) // f for c, f in zip(finer.chunks or (1,) * len(factors), factors, strict=True))
    shape = grid.grid_shape(finer.shape, factors)
    return Source(
        reduced_location(finer.location, factors),
        f"mean-{_by(factors)}",
        shape,
        finer.dtype,
        lambda box: _read(finer, factors, unit, box),
        chunks=tuple(min(u, s) for u, s in zip(unit, shape, strict=True)),
        voxel_nm=None
        if finer.voxel_nm is None
        else tuple(v * f for v, f in zip(finer.voxel_nm, factors[-n:], strict=True)),
        offset=axes.coarser(finer.offset, factors[-n:]),
        note=finer.note,
        attributes=finer.attributes,
        fill=finer.fill,
        held_bytes=finer.held_bytes + _working_bytes(finer, factors, unit),
        absent=None if finer.absent is None else _absent(finer, factors),
        marks=lambda: [finer.fingerprint(), str(factors)],
        close=finer.close,
    )


def _fine(box: Box, factors: Shape, shape: Shape) -> Box:
    return tuple(slice(p.start * f, min(p.stop * f, n)) for p, f, n in zip(box, factors, shape, strict=True))


def _absent(finer: Source, factors: Shape) -> Any:
    return lambda box: finer.absent(_fine(box, factors, finer.shape))  # type: ignore[misc]


def _step(finer: Source, factors: Shape, unit: Shape, extents: Shape) -> Shape:
    """Coarse voxels that are made at a time: of whole chunks, and few enough."""
    return grid.grow(unit, extents, finer.dtype.itemsize * math.prod(factors))


def _working_bytes(finer: Source, factors: Shape, unit: Shape) -> int:
    """Fine voxels of one step, and their sums."""
    step = _step(finer, factors, unit, grid.grid_shape(finer.shape, factors))
    fine = math.prod(step) * math.prod(factors)
    return fine * finer.dtype.itemsize + 8 * fine // max(f for f in (*factors, 1))


def _read(finer: Source, factors: Shape, unit: Shape, box: Box) -> Chunk:
    extents = tuple(part.stop - part.start for part in box)
    out = np.empty(extents, finer.dtype)
    for part in grid.boxes(extents, _step(finer, factors, unit, extents)):
        there = tuple(slice(b.start + p.start, b.start + p.stop) for b, p in zip(box, part, strict=True))
        out[part] = means(finer.read(_fine(there, factors, finer.shape)), factors)
    return out


def means(block: Chunk, factors: Sequence[int]) -> Chunk:
    """Means over windows of a block, whole numbers rounded to the nearest, halves up.

    Parameters
    ----------
    block : ndarray
        uint8, uint16, int16 or float32.
    factors : sequence of int
        Extent of a window along each axis; those at the high end may be cut.

    Returns
    -------
    ndarray, same dtype

    Examples
    --------
    >>> means(np.array([[1, 2, 9], [3, 4, 8]], "u1"), (2, 2))
    array([[3, 9]], dtype=uint8)
    """
    whole = block.dtype.kind in "iu"
    sums, counts = block, np.ones((), np.int32)
    for axis, factor in enumerate(factors):
        if factor > 1:
            sums = _sums_along(sums, axis, factor, np.int32 if whole else np.float64)
            n = block.shape[axis]
            taken = np.minimum(factor, n - factor * np.arange(sums.shape[axis], dtype=np.int32))
            counts = counts * taken.reshape([-1 if i == axis else 1 for i in range(block.ndim)])
    if sums is block:
        return block
    found = (2 * sums + counts) // (2 * counts) if whole else sums / counts
    return found.astype(block.dtype)


def _sums_along(values: Any, axis: int, factor: int, dtype: Any) -> Any:
    n = -(-values.shape[axis] // factor)
    out = np.zeros([n if i == axis else extent for i, extent in enumerate(values.shape)], dtype)
    for first in range(factor):
        part = values[(slice(None),) * axis + (slice(first, None, factor),)]
        out[(slice(None),) * axis + (slice(0, part.shape[axis]),)] += part
    return out
