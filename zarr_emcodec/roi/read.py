"""A box of voxels at a tier that the reader chooses: for stores that cannot be written, or should not be.

An array and a box in, voxels out; the store stays as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.jobs.grid import Box, box_of, voxels
from zarr_emcodec.roi.fetch import Frames
from zarr_emcodec.roi.region import Factor, cells_of, indices_of, normal_box, per_axis
from zarr_emcodec.roi.tiers import check_tier, parse_tier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import zarr

    from zarr_emcodec._types import Chunk, Shape
    from zarr_emcodec.runtime.options import TierName


def read_roi(
    array: zarr.Array[Any],
    box: Any,
    tier: TierName = "prior",
    *,
    halo: int | Sequence[int] | None = None,
    roi: Any = None,
    base: TierName = "top",
    radius: float | Sequence[float] | None = None,
    factor: Factor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Chunk:
    """The voxels of a box, decoded at a tier of the caller's choice whatever the frames state.

    Parameters
    ----------
    array : zarr.Array
        Written with a codec of this package; read-only will do.
    box : tuple of slices
        As in indexing.
    tier : {"top", "prior", "full"}
        How richly to decode.
    halo : int or one per axis, voxels, optional
        Added on every side of the box, as far as the array goes; the result is that much larger. None when not given.
    roi : box, boxes, mask or points, optional
        As for `upgrade_roi`: chunks that it touches are decoded at `tier`, all others at `base`. So a read-only store
        reads as if it had been upgraded. All of the box when not given.
    base : {"top", "prior", "full"}
        See `roi`.
    radius, factor
        Of `roi`, as for `upgrade_roi`.
    progress : callable, optional
        Called with raw bytes read, and in all.

    Returns
    -------
    ndarray
        Of the array's dtype.

    Raises
    ------
    SpecError
        If the box is outside the array, or a model lacks a tier.
    JobError
        If a chunk cannot be read or decoded; the message names it.
    """
    frames = Frames(array)
    parts = normal_box(box, array.shape)
    if halo is not None:
        margin = per_axis(halo, len(parts), "halo", 0)
        parts = tuple(
            slice(max(0, p.start - int(m)), min(n, p.stop + int(m)))
            for p, m, n in zip(parts, margin, array.shape, strict=True)
        )
    tiers = (base, tier) if roi is not None else (tier,)
    digest = frames.layout.config.get("digest")
    for name in tiers:
        wanted = parse_tier(name)
        if isinstance(digest, str) and digest:
            check_tier(digest, wanted)
    cells = cells_of(parts, array.shape, array.chunks)
    rich = cells if roi is None else cells & cells_of(roi, array.shape, array.chunks, radius=radius, factor=factor)
    out = np.empty([p.stop - p.start for p in parts], np.dtype(array.dtype))
    total, done = out.nbytes, 0
    for name, marked in ((tier, rich), (base, cells & ~rich)):
        for n_voxels in _fill(out, parts, frames, marked, name):
            done += n_voxels * out.itemsize
            if progress is not None:
                progress(done, total)
    return out


def read_chunks(frames: Frames, box: Box, tier: TierName | None) -> Chunk:
    """The voxels of a box inside the array, all at one tier; None: each chunk at the tier that its frame states."""
    out = np.empty([part.stop - part.start for part in box], np.dtype(frames.array.dtype))
    for _ in _fill(out, box, frames, cells_of(box, frames.layout.shape, frames.layout.chunks), tier):
        pass
    return out


def _fill(
    out: Chunk, box: Box, frames: Frames, marked: np.typing.NDArray[np.bool_], tier: TierName | None
) -> Iterator[int]:
    """Decode the marked chunks into `out`; how many voxels each batch has filled."""
    layout = frames.layout
    for batch in frames.batches(indices_of(marked)):
        wanted = [_overlap(box, index, layout.chunks, layout.shape) for index in batch]
        planes = [_planes(inside, layout.chunks) for _, inside in wanted]
        chunks = frames.decode(batch, tier, planes)
        for chunk, span, (target, inside) in zip(chunks, planes, wanted, strict=True):
            if chunk is None:
                out[target] = 0 if frames.array.fill_value is None else frames.array.fill_value
            elif span is None:
                out[target] = chunk[inside]
            else:
                out[target] = chunk[(slice(None), *inside[1:])]
        yield sum(voxels(target) for target, _ in wanted)


def _overlap(box: Box, index: Shape, chunks: Shape, shape: Shape) -> tuple[Box, Box]:
    """What a chunk has of a box: its place in the box, and in the chunk."""
    own = box_of(index, chunks, shape)
    shared = [(max(b.start, o.start), min(b.stop, o.stop)) for b, o in zip(box, own, strict=True)]
    target = tuple(slice(a - b.start, z - b.start) for (a, z), b in zip(shared, box, strict=True))
    inside = tuple(slice(a - o.start, z - o.start) for (a, z), o in zip(shared, own, strict=True))
    return target, inside


def _planes(inside: Box, chunks: Shape) -> tuple[int, int] | None:
    """The planes of a chunk's first axis that are wanted; None where that is all, or where there are no planes."""
    first = inside[0]
    return None if len(chunks) < 3 or (first.start, first.stop) == (0, chunks[0]) else (first.start, first.stop)
