"""What a recompression hands back: figures of the whole job, and the blocks that could not be done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zarr_emcodec.jobs.report import Record

if TYPE_CHECKING:
    from zarr_emcodec._types import Shape


@dataclass(frozen=True, kw_only=True)
class Failure(Record):
    """A block that could not be done.

    Parameters
    ----------
    block : int
        Its number in the plan.
    coords : tuple of int
        Its place in the grid of stored objects.
    box : tuple of (start, stop), voxels
    tries : int
    reason : str
    """

    block: int
    coords: Shape
    box: tuple[tuple[int, int], ...]
    tries: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class RecompressReport(Record):
    """What `recompress` did.

    Parameters
    ----------
    ok : bool
        Whether every block of the plan is done.
    stopped : bool
        Whether it was asked to stop before the end.
    source, destination, digest : str
        Of the plan.
    n_blocks, n_done, n_before, n_empty : int
        In all; done by now; done by earlier runs; done and not stored, being nothing but fill value.
    n_failed : int
    failed : tuple of Failure
        The first thousand.
    raw_bytes, stored_bytes : int
        Of the done blocks: voxels x itemsize; stored objects.
    other_bytes : int
        Metadata and embedded models.
    ratio : float or None
        Raw bytes over all that is stored but the ledger; None where nothing is.
    frames : mapping
        Kind to count.
    psnr_db, ssim, worst_error, lowest_chunk_db, peak : float or None
        Of what was read back, against what was to be stored. PSNR is infinite (None in JSON) where nothing differs;
        SSIM is of one section in eight; the worst chunk's PSNR refers to its block's own peak.
    seconds, mb_s : float
        Of this run; 10^6 raw bytes a second.
    work_s : mapping
        Seconds of all workers and runs: "read", "write" (encoding included), "check" (decoding and comparing).
    engine : str
    threads : int
        Of all workers, when the run began.
    """

    ok: bool
    stopped: bool
    source: str
    destination: str
    digest: str
    n_blocks: int
    n_done: int
    n_before: int
    n_empty: int
    n_failed: int
    failed: tuple[Failure, ...]
    raw_bytes: int
    stored_bytes: int
    other_bytes: int
    ratio: float | None
    frames: Mapping[str, int]
    psnr_db: float | None
    ssim: float | None
    worst_error: float | None
    lowest_chunk_db: float | None
    peak: float
    seconds: float
    mb_s: float
    work_s: Mapping[str, float]
    engine: str
    threads: int
