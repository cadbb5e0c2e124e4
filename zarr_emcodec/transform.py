"""Chunk to sections to the blocks that a model sees, and back.

Arrays in, arrays out: grey-level windows, padding to the model's stride, tiling with a halo. No bytes, no models. Each
step is undone by its twin from the chunk's shape and the window alone, both of which stand in the frame.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec._types import Blocks, Chunk, Shape

GREY_PEAK = 255.0
"""Width of the grey-level scale that models work in; uint8 is used as it is."""
_PER_CHUNK_LOW, _PER_CHUNK_WIDTH = 16.0, 224.0  # where the 0.1 and 99.9 percentiles go; the rest is headroom
_REACH = 4.0  # widths of the grey scale beyond either end that a value may lie
_FLOAT_MAX = float(np.finfo(np.float32).max)
_SAMPLE = 1 << 18  # voxels that percentiles are taken from


@dataclass(frozen=True)
class Window:
    """``stored = offset + scale * grey``; both float32, as they stand in the frame."""

    offset: float
    scale: float

    @classmethod
    def stated(cls, low: float, high: float) -> Window:
        """The window that a user states: `low` becomes grey 0, `high` grey 255."""
        return cls(_float32(low), _float32((high - low) / GREY_PEAK))

    @classmethod
    def of_chunk(cls, chunk: Chunk) -> Window:
        """A window from the chunk's own 0.1 and 99.9 percentiles."""
        flat = chunk.reshape(-1)
        low, high = np.percentile(flat[:: max(1, flat.size // _SAMPLE)].astype(np.float64), (0.1, 99.9))
        if not high > low:  # nearly constant: any spread will do, the values themselves give the size
            low, high = float(flat.min()), float(flat.max())
        scale = _float32(max((high - low) / _PER_CHUNK_WIDTH, np.finfo(np.float32).tiny * 1024))
        return cls(_float32(low - _PER_CHUNK_LOW * scale), scale)


def to_grey(chunk: Chunk, window: Window | None) -> NDArray[np.float32]:
    """Stored values as grey levels, float32, same shape; without a window the values themselves.

    Values far outside the window (hot voxels, markers) are drawn in to four widths of the grey scale beyond its ends:
    no budget could hold them, and they would spoil their neighbours.
    """
    if window is None:
        return chunk.astype(np.float32)
    grey = (chunk.astype(np.float64) - window.offset) / window.scale
    return np.clip(grey, -_REACH * GREY_PEAK, (1 + _REACH) * GREY_PEAK).astype(np.float32)


def _float32(value: float) -> float:
    return float(np.float32(min(max(value, -_FLOAT_MAX), _FLOAT_MAX)))


def from_grey(grey: NDArray[np.float32], window: Window | None, dtype: np.dtype[np.generic]) -> Chunk:
    """Grey levels as stored values: rounded half to even and clipped to the dtype's range for integers.

    Parameters
    ----------
    grey : ndarray, float32
        Any shape; may be overwritten.
    window : Window or None
        As given to `to_grey`.
    dtype : dtype
        uint8, uint16, int16 or float32, native byte order.

    Returns
    -------
    ndarray of `dtype`, same shape
    """
    if window is not None:
        with np.errstate(over="ignore"):  # a window may reach the ends of float32; the infinities are clipped below
            grey *= np.float32(window.scale)
            grey += np.float32(window.offset)
    if dtype.kind == "f":
        return np.clip(grey, -_FLOAT_MAX, _FLOAT_MAX, out=grey).astype(dtype, copy=False)
    info = np.iinfo(dtype)  # type: ignore[type-var]
    np.rint(grey, out=grey)
    np.clip(grey, info.min, info.max, out=grey)
    return grey.astype(dtype)


def sections_of(chunk: Chunk, ndim: int = 2) -> Chunk:
    """View a chunk of at least two axes as independent sections, shape (n, y, x); leading axes are folded into n.

    With ``ndim=3`` as volumes, shape (n, z, y, x); a chunk of two axes is one of a single plane.
    """
    return chunk.reshape(-1, *section_shape(chunk.shape, ndim))


def n_sections(shape: Shape, ndim: int = 2) -> int:
    """How many sections or volumes `sections_of` makes of a chunk of this shape."""
    return math.prod(shape[:-ndim])


def section_shape(shape: Shape, ndim: int = 2) -> Shape:
    """Extent (y, x) of the sections, or (z, y, x) of the volumes, of a chunk of this shape."""
    return (1,) * (ndim - len(shape)) + shape[-ndim:]


def cells(extent: Shape, stride: Shape) -> Shape:
    """Latent cells along each axis that cover a section or volume."""
    return tuple(-(-n // s) for n, s in zip(extent, stride, strict=True))


def padded_voxels(shape: Shape, stride: Shape) -> int:
    """Voxels of a chunk when all its sections or volumes are padded to whole strides."""
    ndim = len(stride)
    return n_sections(shape, ndim) * math.prod(cells(section_shape(shape, ndim), stride)) * math.prod(stride)


def pad_to_stride(sections: NDArray[np.float32], stride: Shape) -> NDArray[np.float32]:
    """Grow sections to whole strides at the high end of each axis, by reflection about the last voxel's outer edge.

    Reflection keeps the texture's statistics, so that the padding costs few bits; sections smaller than the stride are
    reflected as often as it takes. Undoing it needs the original extent only.
    """
    grow = [(-n) % s for n, s in zip(sections.shape[-len(stride) :], stride, strict=True)]
    if not any(grow):
        return sections
    ahead = sections.ndim - len(stride)
    return np.pad(sections, [(0, 0)] * ahead + [(0, n) for n in grow], mode="symmetric")


@dataclass(frozen=True)
class Tile:
    """One piece of a section or volume in units of latent cells: what is computed, what is kept, where that goes."""

    outer: tuple[slice, ...]
    inner: tuple[slice, ...]
    target: tuple[slice, ...]


def tiles(grid: Shape, edge: int | Shape, halo: int | Shape) -> Iterator[Tile]:
    """Cut a latent grid into tiles of at most `edge` cells with `halo` cells of overlap, along all axes or each.

    Every kept cell has the same neighbourhood within `halo` as in the whole grid, so the result does not depend on
    `edge`.
    """
    edges, halos = ((n,) * len(grid) if isinstance(n, int) else n for n in (edge, halo))
    axes = [
        [_span(start, edge, halo, n) for start in range(0, n, edge)]
        for n, edge, halo in zip(grid, edges, halos, strict=True)
    ]
    for spans in itertools.product(*axes):
        outer, inner, target = zip(*spans, strict=True)
        yield Tile(outer=outer, inner=inner, target=target)


def _span(start: int, edge: int, halo: int, n: int) -> tuple[slice, slice, slice]:
    stop = min(start + edge, n)
    low, high = max(start - halo, 0), min(stop + halo, n)
    return slice(low, high), slice(start - low, stop - low), slice(start, stop)


def scaled(window: tuple[slice, ...], stride: Shape) -> tuple[slice, ...]:
    """Slices over cells as slices over voxels."""
    return tuple(slice(s.start * n, s.stop * n) for s, n in zip(window, stride, strict=True))


def as_blocks(sections: NDArray[np.float32]) -> Blocks:
    """Add the channel axis that models expect: (n, y, x) to (n, 1, y, x), (n, z, y, x) to (n, 1, z, y, x)."""
    return sections[:, None]
