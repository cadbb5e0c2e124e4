"""How a new array is laid out: its chunks, and what its own metadata take of the byte budget.

Shapes and numbers in, shapes and numbers out; no store is touched.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TypeVar

from zarr_emcodec._types import Shape
from zarr_emcodec.codecs.base import Spec
from zarr_emcodec.errors import SpecError

S = TypeVar("S", bound=Spec)
DEFAULT_CHUNKS = (16, 512, 512)
"""What the shipped models' figures are measured with."""
_INDEX_BYTES, _INDEX_CHECK_BYTES = 16, 4  # per inner chunk and per shard of a Zarr v3 shard index
_LATER_BYTES = 400  # attributes that are added once an array is written: its measured quality, where it came from


def fit_chunks(shape: Shape, chunks: Sequence[int] | None = None) -> Shape:
    """A chunk shape for an array.

    Parameters
    ----------
    shape : tuple of int, voxels
        Of the array.
    chunks : sequence of int, voxels, optional
        Asked for, as many as there are axes: kept, but no longer than the array. Without it, 16 x 512 x 512 on the
        last axes and 1 on those before, stretched or shrunk on short axes so that no thin edge chunk remains: it
        would be padded to full size, coded and stored.

    Returns
    -------
    tuple of int, voxels

    Raises
    ------
    SpecError
        If `chunks` is of another length, or not positive.

    Examples
    --------
    >>> fit_chunks((25, 625, 20000))
    (13, 625, 512)
    >>> fit_chunks((25, 625, 20000), (16, 512, 512))
    (16, 512, 512)
    """
    if chunks is not None:
        if len(chunks) != len(shape) or any(chunk < 1 for chunk in chunks):
            raise SpecError(
                f"chunks {tuple(chunks)}: the array has {len(shape)} axes, and each needs a positive length.",
                name="chunks",
                value=tuple(chunks),
            )
        return tuple(max(1, min(chunk, extent)) for chunk, extent in zip(chunks, shape, strict=True))
    wanted = (1, 1, *DEFAULT_CHUNKS)[5 - len(shape) :] if len(shape) <= 5 else (1,) * len(shape)
    return tuple(_even(extent, chunk) for extent, chunk in zip(shape, wanted, strict=True))


def _even(extent: int, chunk: int) -> int:
    if extent >= 4 * chunk or chunk == 1:  # at most a quarter of such an axis can be padding
        return chunk
    count = max(1, round(extent / chunk))
    return max(1, math.ceil(extent / count))


def fit_token_chunks(shape: Shape) -> Shape:
    """A chunk shape for an array of tokens or fields: as `fit_chunks`, but wider where the array has few planes.

    At 1024x a default chunk is 4096 bytes, of which a frame's header and its entry in a shard's index take 1 %. Chunks
    of fewer voxels would spend more on them, and leave a field fewer weights.

    Examples
    --------
    >>> fit_token_chunks((2, 4096, 4096)), fit_token_chunks((600, 4096, 4096))
    ((2, 1024, 2048), (16, 512, 512))
    """
    chunks = list(fit_chunks(shape))
    least, growing = math.prod(DEFAULT_CHUNKS), [axis for axis in (-1, -2) if len(shape) >= 2]
    while growing and math.prod(chunks) < 0.9 * least:
        axis = min(growing, key=lambda axis: chunks[axis])
        grown = min(2 * chunks[axis], shape[axis])
        if grown == chunks[axis]:
            growing.remove(axis)
        chunks[axis] = grown
    return tuple(_even(extent, chunk) for extent, chunk in zip(shape, chunks, strict=True))


def with_overhead(spec: S, shape: Shape, itemsize: int, metadata_bytes: int, grid: tuple[Shape, Shape | None]) -> S:
    """The spec whose chunks leave room for everything else that an array stores, so that the ratio holds on disk.

    Parameters
    ----------
    spec : Spec
        With the ratio that the whole array is to reach, or none.
    shape : tuple of int, voxels
        Of the array.
    itemsize : int, bytes
        Of a voxel.
    metadata_bytes : int
        Size of the array's metadata documents.
    grid : (chunks, shards)
        Shapes in voxels; shards may be None.

    Returns
    -------
    Spec
        Of a slightly higher ratio. Where an array is so small that metadata would take more than the codec gives up for
        them (half of the budget, of tokens a twentieth), chunks give up so much, and the ratio cannot hold.

    Examples
    --------
    >>> from zarr_emcodec.codecs import VAESpec
    >>> spec = VAESpec(ratio=64)
    >>> round(with_overhead(spec, (64, 1024, 1024), 1, 1200, ((16, 512, 512), None)).ratio, 2)
    64.1
    """
    if spec.ratio is None or spec.mode == "nominal" or 0 in shape:
        return spec
    chunks, shards = grid
    overhead = metadata_bytes + _LATER_BYTES
    if shards is not None:
        n_shards = math.prod(-(-n // s) for n, s in zip(shape, shards, strict=True))
        overhead += n_shards * (
            _INDEX_CHECK_BYTES + _INDEX_BYTES * math.prod(s // c for s, c in zip(shards, chunks, strict=True))
        )
    raw = math.prod(shape) * itemsize
    budget = raw / spec.ratio
    return dataclasses.replace(spec, ratio=raw / (budget - min(overhead, budget * spec.OVERHEAD_SHARE)))
