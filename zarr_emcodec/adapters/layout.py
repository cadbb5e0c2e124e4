"""How a new array is laid out: its chunks, and what its own metadata take of the byte budget.

Shapes and numbers in, shapes and numbers out; no store is touched.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from zarr_emcodec._types import Shape
from zarr_emcodec.codecs.vae import VAESpec
from zarr_emcodec.errors import SpecError

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


def with_overhead(
    spec: VAESpec, shape: Shape, itemsize: int, metadata_bytes: int, grid: tuple[Shape, Shape | None]
) -> VAESpec:
    """The spec whose chunks leave room for everything else that an array stores, so that the ratio holds on disk.

    Parameters
    ----------
    spec : VAESpec
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
    VAESpec
        Of a slightly higher ratio. Where an array is so small that metadata would take more than half of its budget,
        chunks get that half, and the ratio cannot hold.

    Examples
    --------
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
    return dataclasses.replace(spec, ratio=raw / (budget - min(overhead, budget / 2)))
