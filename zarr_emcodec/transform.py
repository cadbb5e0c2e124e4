"""Chunk to sections to the blocks that a model sees, and back.

Arrays in, arrays out: grey-level windows, padding to the model's stride, tiling with a halo. No bytes, no models. Each
step is undone by its twin from the chunk's shape and the window alone, both of which stand in the frame.
"""

from __future__ import annotations

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


def sections_of(chunk: Chunk) -> Chunk:
    """View a chunk of at least two axes as independent sections, shape (n, y, x); leading axes are folded into n."""
    return chunk.reshape(-1, *chunk.shape[-2:])


def n_sections(shape: Shape) -> int:
    """How many sections `sections_of` makes of a chunk of this shape."""
    return math.prod(shape[:-2])


def section_shape(shape: Shape) -> tuple[int, int]:
    """Extent (y, x) of the sections of a chunk of this shape."""
    return shape[-2], shape[-1]


def cells(extent: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int]:
    """Latent cells (h, w) that cover a section."""
    return -(-extent[0] // stride[0]), -(-extent[1] // stride[1])


def padded_voxels(shape: Shape, stride: tuple[int, int]) -> int:
    """Voxels of a chunk when all its sections are padded to whole strides."""
    return n_sections(shape) * math.prod(cells(section_shape(shape), stride)) * math.prod(stride)


def pad_to_stride(sections: NDArray[np.float32], stride: tuple[int, int]) -> NDArray[np.float32]:
    """Grow sections to whole strides at the high end of each axis, by reflection about the last voxel's outer edge.

    Reflection keeps the texture's statistics, so that the padding costs few bits; sections smaller than the stride are
    reflected as often as it takes. Undoing it needs the original extent only.
    """
    grow = [(-n) % s for n, s in zip(sections.shape[-2:], stride, strict=True)]
    if not any(grow):
        return sections
    return np.pad(sections, [(0, 0), (0, grow[0]), (0, grow[1])], mode="symmetric")


@dataclass(frozen=True)
class Tile:
    """One piece of a section in units of latent cells: what is computed, what is kept of it, where that goes."""

    outer: tuple[slice, slice]
    inner: tuple[slice, slice]
    target: tuple[slice, slice]


def tiles(grid: tuple[int, int], edge: int, halo: int) -> Iterator[Tile]:
    """Cut a latent grid into tiles of at most `edge` cells with `halo` cells of overlap.

    Every kept cell has the same neighbourhood within `halo` as in the whole grid, so the result does not depend on
    `edge`.
    """
    for y in range(0, grid[0], edge):
        for x in range(0, grid[1], edge):
            spans = [_span(start, edge, halo, n) for start, n in zip((y, x), grid, strict=True)]
            yield Tile(
                outer=(spans[0][0], spans[1][0]), inner=(spans[0][1], spans[1][1]), target=(spans[0][2], spans[1][2])
            )


def _span(start: int, edge: int, halo: int, n: int) -> tuple[slice, slice, slice]:
    stop = min(start + edge, n)
    low, high = max(start - halo, 0), min(stop + halo, n)
    return slice(low, high), slice(start - low, stop - low), slice(start, stop)


def scaled(window: tuple[slice, slice], stride: tuple[int, int]) -> tuple[slice, slice]:
    """Slices over cells as slices over voxels."""
    y, x = (slice(s.start * n, s.stop * n) for s, n in zip(window, stride, strict=True))
    return y, x


def as_blocks(sections: NDArray[np.float32]) -> Blocks:
    """Add the channel axis that models expect: (n, y, x) to (n, 1, y, x)."""
    return sections[:, None]
