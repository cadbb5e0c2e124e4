"""How a volume is cut for streaming: boxes made of whole chunks (or shards), each small enough for memory.

Shapes in, tuples of slices out. Pure arithmetic; no array and no store is touched.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, TypeAlias

from zarr_emcodec.adapters.layout import fit_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zarr_emcodec._types import Shape

__all__ = [
    "BLOCK_BYTES",
    "Box",
    "box_of",
    "boxes",
    "chunk_indices",
    "chunks_in",
    "fit_chunks",
    "grid_shape",
    "grow",
    "voxels",
]

Box: TypeAlias = tuple[slice, ...]

BLOCK_BYTES = 1 << 26
"""Raw bytes a job holds of the source at once, unless one chunk alone is larger."""


def grid_shape(shape: Shape, chunks: Shape) -> Shape:
    """Chunks per axis."""
    return tuple(-(-extent // chunk) for extent, chunk in zip(shape, chunks, strict=True))


def chunk_indices(shape: Shape, chunks: Shape) -> Iterator[Shape]:
    """Every chunk index in C order."""
    return itertools.product(*(range(count) for count in grid_shape(shape, chunks)))


def box_of(index: Shape, chunks: Shape, shape: Shape) -> Box:
    """The voxels of one chunk, cut at the array's edge.

    Examples
    --------
    >>> box_of((1, 0), (8, 8), (10, 5))
    (slice(8, 10, None), slice(0, 5, None))
    """
    return tuple(slice(i * c, min((i + 1) * c, n)) for i, c, n in zip(index, chunks, shape, strict=True))


def chunks_in(box: Box, chunks: Shape) -> Iterator[Shape]:
    """Indices of the chunks that a chunk-aligned box covers, C order.

    Examples
    --------
    >>> list(chunks_in((slice(8, 10), slice(0, 9)), (8, 8)))
    [(1, 0), (1, 1)]
    """
    first = tuple(part.start // chunk for part, chunk in zip(box, chunks, strict=True))
    extent = tuple(part.stop - part.start for part in box)
    return (tuple(f + i for f, i in zip(first, local, strict=True)) for local in chunk_indices(extent, chunks))


def grow(unit: Shape, shape: Shape, itemsize: int, *, limit: int | None = None) -> Shape:
    """The largest box made of whole units that stays under `limit` bytes, last axes first.

    Whole sections are read at once where memory allows it: that is how stacks of images lie on disk.

    Parameters
    ----------
    unit, shape : tuple of int, voxels
        What is written as one object; the array.
    itemsize : int, bytes
    limit : int, bytes, optional
        `BLOCK_BYTES` when not given.

    Examples
    --------
    >>> grow((16, 512, 512), (100, 1000, 1000), 1)
    (64, 1000, 1000)
    """
    limit = BLOCK_BYTES if limit is None else limit
    box = [min(u, n) for u, n in zip(unit, shape, strict=True)]
    for axis in reversed(range(len(shape))):
        others = itemsize * math.prod(box[:axis] + box[axis + 1 :])
        units = max(1, limit // max(1, others * unit[axis]))
        box[axis] = min(units * unit[axis], shape[axis])
        if box[axis] < shape[axis]:
            break
    return tuple(max(1, extent) for extent in box)


def boxes(shape: Shape, step: Shape) -> Iterator[Box]:
    """Cut an array of `shape` into boxes of `step`, C order."""
    return (box_of(index, step, shape) for index in chunk_indices(shape, step))


def voxels(box: Box) -> int:
    """Number of voxels in a box."""
    return math.prod(part.stop - part.start for part in box)
