"""The tier of stored frames, changed where a region touches them: two bits and a checksum of each, nothing else.

An array and a region in, the array's objects replaced and a `RoiReport` out. No voxel is decoded and no latent is
touched, so sizes, ratio and every other tier stay as they are; the change can be taken back at any time.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.frame import Limits, Tier
from zarr_emcodec.jobs.frames import Layout, layout_of
from zarr_emcodec.jobs.grid import box_of, grid_shape, voxels
from zarr_emcodec.jobs.report import Record
from zarr_emcodec.roi.objects import Objects, open_objects
from zarr_emcodec.roi.region import Factor, cells_of, indices_of
from zarr_emcodec.roi.retier import Flag, Outcome, Retier
from zarr_emcodec.roi.tiers import check_layout, check_tier, parse_tier
from zarr_emcodec.runtime import current

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    import zarr

    from zarr_emcodec._types import Shape
    from zarr_emcodec.runtime.options import TierName

    Progress = Callable[[int, int], None]

_AT_ONCE = 8  # objects in flight: bounds memory, and how long others wait for their turn


@dataclass(frozen=True, kw_only=True)
class RoiReport(Record):
    """What `upgrade_roi` or `downgrade_roi` did.

    Parameters
    ----------
    array, tier : str
    n_chunks : int
        Cells of the array's chunk grid.
    touched : int
        Of these, how many the region touches.
    changed, already, plain, absent : int
        What became of the touched: decode at another tier now; did so before (or more richly, for an upgrade; more
        cheaply, for a downgrade); are constant or lossless and have no tier; are not stored.
    rho : float
        ``touched / n_chunks``.
    objects_replaced : int
        Chunks or shards written anew.
    bytes_before, bytes_after : int
        Of these objects.
    seconds : float
    """

    array: str
    tier: str
    n_chunks: int
    touched: int
    changed: int
    already: int
    plain: int
    absent: int
    rho: float
    objects_replaced: int
    bytes_before: int
    bytes_after: int
    seconds: float


def upgrade_roi(
    array: zarr.Array[Any],
    roi: Any,
    tier: TierName = "prior",
    *,
    radius: float | Sequence[float] | None = None,
    factor: Factor | None = None,
    progress: Progress | None = None,
) -> RoiReport:
    """Let every chunk that a region touches decode at a richer tier from now on.

    Parameters
    ----------
    array : zarr.Array
        Written with a codec of this package, open for writing; Zarr v2 or v3, sharded or not.
    roi : box, boxes, mask or points
        A box is a tuple of slices as in indexing; boxes are a list of such, or what `propose_roi` gives. A mask is a
        boolean array (NumPy's or Zarr's) of the array's shape, or coarser by `factor`. Points are numbers of shape
        (n, ndim), voxels.
    tier : {"top", "prior", "full"}
        Chunks that are at this tier or a richer one stay as they are.
    radius : float or one per axis, voxels, optional
        Around points; 0 when not given.
    factor : int or one per axis, optional
        Voxels of the array per voxel of the mask; 1 when not given.
    progress : callable, optional
        Called with raw bytes of the chunks done, and of all.

    Returns
    -------
    RoiReport

    Raises
    ------
    SpecError
        If the region is outside the array or a mask of another shape, the model lacks the tier, the array is read-only
        or of another codec.
    FrameError
        If a stored frame is damaged: its object is left as it is.
    JobError
        If the store fails, or somebody else keeps writing. Chunks done by then stay done; run it again.

    Notes
    -----
    Each object is replaced whole and at once, so an interruption leaves every chunk readable, and running the same call
    again finishes the rest. In a shard the other chunks, and the index, keep their bytes. Several upgrades may run at
    once; nobody's change is lost.

    At "prior" texture is made up where no token says what was there. The array's attributes say so from then on:
    ``emcodec:synthesised`` is true. That is the one thing besides tiers that is written, once, and it stays.
    """
    return _retier(array, cells_of(roi, array.shape, array.chunks, radius=radius, factor=factor), tier, 1, progress)


def downgrade_roi(
    array: zarr.Array[Any],
    roi: Any,
    tier: TierName = "top",
    *,
    radius: float | Sequence[float] | None = None,
    factor: Factor | None = None,
    progress: Progress | None = None,
) -> RoiReport:
    """Let every chunk that a region touches decode at a cheaper tier from now on; the inverse of `upgrade_roi`.

    Parameters
    ----------
    array, roi, radius, factor, progress
        As for `upgrade_roi`.
    tier : {"top", "prior", "full"}
        Chunks that are at this tier or a cheaper one stay as they are.

    Returns
    -------
    RoiReport

    Raises
    ------
    SpecError, FrameError, JobError
        As `upgrade_roi`.
    """
    return _retier(array, cells_of(roi, array.shape, array.chunks, radius=radius, factor=factor), tier, -1, progress)


def _retier(
    array: zarr.Array[Any],
    cells: np.typing.NDArray[np.bool_],
    tier: TierName,
    direction: int,
    progress: Progress | None,
) -> RoiReport:
    from zarr.core.sync import sync

    started = time.perf_counter()
    layout = layout_of(array)
    check_layout(layout, array.store_path)
    wanted = parse_tier(tier)
    digest = layout.config.get("digest")
    if isinstance(digest, str) and digest:
        check_tier(digest, wanted)  # before anything is written; frames of other models are looked at one by one
    objects = open_objects(array)
    limits = Limits(max_chunk_bytes=current().max_chunk_bytes)
    change = Retier(wanted, direction, limits)
    flag = Flag(array, objects).set if wanted is Tier.PRIOR else None
    counts: Counter[str] = Counter()
    replaced: list[int] = []
    itemsize = np.dtype(array.dtype).itemsize
    touched = int(cells.sum())
    total = done = 0
    if progress is not None:
        total = itemsize * sum(voxels(box_of(i, layout.chunks, layout.shape)) for i in indices_of(cells))
    for batch in _batched(_by_object(cells, layout)):
        # zarr's own loop: remote stores hold connections that belong to it
        for (_, indices), (outcome, n_bytes) in zip(
            batch, sync(_retier_objects(array, layout, objects, batch, change, flag)), strict=True
        ):
            counts += outcome
            replaced += [n_bytes] if n_bytes else []
            if progress is not None:
                done += itemsize * sum(voxels(box_of(i, layout.chunks, layout.shape)) for i in indices)
                progress(done, total)
    return RoiReport(
        array=str(array.store_path),
        tier=tier,
        n_chunks=layout.n_chunks,
        touched=touched,
        **{name: counts[name] for name in ("changed", "already", "plain", "absent")},
        rho=touched / layout.n_chunks,
        objects_replaced=len(replaced),
        bytes_before=sum(replaced),
        bytes_after=sum(replaced),
        seconds=time.perf_counter() - started,
    )


Work = tuple["Shape", "list[Shape]"]
"""Index of a chunk or shard in its own grid, and the marked chunks in it."""


def _by_object(cells: np.typing.NDArray[np.bool_], layout: Layout) -> Iterator[Work]:
    """The marked chunks, object by object."""
    if layout.shards is None:
        for index in indices_of(cells):
            yield index, [index]
        return
    per_shard = grid_shape(layout.shards, layout.chunks)
    marked = np.argwhere(cells)
    if not len(marked):
        return
    shards = marked // per_shard
    order = np.lexsort(shards.T[::-1])  # stable: chunks of a shard stay in C order
    marked, shards = marked[order], shards[order]
    starts = np.flatnonzero(np.r_[True, (shards[1:] != shards[:-1]).any(axis=1)])
    for start, stop in zip(starts, [*starts[1:], len(marked)], strict=True):
        yield tuple(shards[start].tolist()), [tuple(index) for index in marked[start:stop].tolist()]


def _batched(work: Iterator[Work]) -> Iterator[list[Work]]:
    batch: list[Work] = []
    for item in work:
        batch.append(item)
        if len(batch) == _AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


async def _retier_objects(
    array: zarr.Array[Any],
    layout: Layout,
    objects: Objects,
    batch: list[Work],
    change: Retier,
    flag: Callable[[], Awaitable[None]] | None,
) -> list[Outcome]:
    """Replace a handful of objects, all within one turn."""

    def update(index: Shape, chunks: list[Shape]) -> Any:
        key = (array.store_path / array.metadata.encode_chunk_key(index)).path
        if layout.shards is None:
            return objects.update(key, partial(change.chunk, index), flag)
        return objects.update(key, partial(change.shard, chunks, layout), flag)

    async with objects.turn():
        done = await asyncio.gather(*(update(*item) for item in batch), return_exceptions=True)
    for outcome in done:  # all have come to an end before the first error is told
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in done if not isinstance(outcome, BaseException)]
