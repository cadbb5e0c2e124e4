"""How far one block of voxels is from its source, chunk by chunk, against what was promised of each chunk.

Two arrays and a `Guard` in, a `BlockMeasure` out: plain data that fits a line of a ledger, and adds up over blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from zarr_emcodec.jobs.grid import box_of, chunk_indices
from zarr_emcodec.jobs.report import Record
from zarr_emcodec.quality.measure import peak_of, ssim

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from zarr_emcodec._types import Chunk, Shape

GREY_PEAK = 255.0
SSIM_EVERY = 8
"""SSIM costs 30 times what the other figures do, so that a block's is taken of one section in so many."""
ERROR_EDGES = (0, 1, 2, 4, 8, 16, 32, 64, 128)
"""Upper ends of the bins of absolute differences, in 255ths of the peak; the last bin is what lies above."""
WORST_KEPT = 4
"""Chunks of a block that are remembered for a report's pictures."""
_SLACK_DB = 0.05  # another runtime's grey levels may differ by one in a few voxels
_SSIM_WINDOW = 11


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What was promised of every chunk when it was written.

    Parameters
    ----------
    chunks : tuple of int, voxels
        The unit that the promise holds for, at full size: what the codec saw.
    min_psnr : float or None, dB
    max_error : float or None, source units
    peak : float, optional
        That PSNR and SSIM refer to, in source units; the dtype's range when not given, the span of a block's own
        values for float32.
    """

    chunks: Shape
    min_psnr: float | None = None
    max_error: float | None = None
    peak: float | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any], chunks: Iterable[int], peak: float | None = None) -> Self:
        """From the codec's configuration in the array's metadata."""
        promise = {name: config.get(name) for name in ("min_psnr", "max_error")}
        return cls(chunks=tuple(chunks), peak=peak, **promise)

    def broken(self, squared: float, worst: float, scale: float) -> str:
        """Say how a chunk falls short, or nothing.

        Parameters
        ----------
        squared : float
            Sum of squared differences over the chunk. An edge chunk is coded at full size, and the promise was made
            for all of it: what its padding adds is not known here, so that this can only excuse, never accuse.
        worst : float
            Largest absolute difference.
        scale : float
            Source units per grey level, from the chunk's frame.
        """
        if self.max_error is not None:
            # across runtimes a pixel may move by one grey level, except in exact frames
            allowed = self.max_error + (scale if self.max_error else 0)
            if not worst <= allowed:
                return f"a voxel is off by {worst:g}, {self.max_error:g} was promised"
        if self.min_psnr is not None:
            reached = decibels(squared / math.prod(self.chunks), GREY_PEAK * scale)
            if not reached >= self.min_psnr - _SLACK_DB:
                return f"{reached:.2f} dB, {self.min_psnr:g} were promised"
        return ""


@dataclass(frozen=True, kw_only=True)
class BlockMeasure(Record):
    """How far a block is from its source. Everything but `peak` adds up, or is an extreme.

    Parameters
    ----------
    n_voxels : int
    squared : float
        Sum of squared differences.
    worst : float
        Largest absolute difference, in source units.
    peak : float
        That PSNR and SSIM refer to.
    ssim_sum, ssim_weight : float, int
        Sum of SSIM over the window's positions, and how many of them there were; both 0 where no section is large
        enough.
    worst_chunks : tuple of (chunk index, PSNR, largest difference)
        Up to `WORST_KEPT` of them, lowest PSNR first: over the array's own voxels, without the padding of edge chunks.
    chunk_db : mapping
        Whole decibels, as text, to the number of chunks that reach them and not one more; "inf" counts exact ones,
        "-inf" those where a finite value met none.
    errors : tuple of int
        Voxels by absolute difference; the bins end at `ERROR_EDGES` and at infinity.
    failures : tuple of (chunk index, reason)
        Chunks that break the guard.
    """

    n_voxels: int
    squared: float
    worst: float
    peak: float
    ssim_sum: float
    ssim_weight: int
    worst_chunks: tuple[tuple[Shape, float, float], ...]
    chunk_db: Mapping[str, int]
    errors: tuple[int, ...]
    failures: tuple[tuple[Shape, str], ...] = ()

    @property
    def psnr_db(self) -> float:
        """Over the whole block; infinite where nothing differs."""
        return decibels(self.squared / self.n_voxels, self.peak)

    @property
    def lowest_db(self) -> float:
        """PSNR of the worst chunk."""
        return self.worst_chunks[0][1]

    @property
    def lowest_chunk(self) -> Shape:
        """Index of the worst chunk."""
        return self.worst_chunks[0][0]

    @property
    def ssim(self) -> float:
        """Mean over the sections looked at; nan where there are none."""
        return self.ssim_sum / self.ssim_weight if self.ssim_weight else math.nan

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`, which has no infinite numbers.

        Examples
        --------
        >>> same = compare_block(np.zeros((2, 4, 4), "u1"), np.zeros((2, 4, 4), "u1"), Guard(chunks=(2, 4, 4)))
        >>> BlockMeasure.from_dict(same.to_dict()) == same
        True
        """
        words = dict(data)
        for name in ("squared", "worst"):
            words[name] = math.inf if words[name] is None else words[name]
        words["worst_chunks"] = tuple(
            (
                tuple(index),
                (-math.inf if worst is None else math.inf) if reached is None else reached,
                math.inf if worst is None else worst,
            )
            for index, reached, worst in words["worst_chunks"]
        )
        words["errors"] = tuple(words["errors"])
        words["failures"] = tuple((tuple(index), reason) for index, reason in words["failures"])
        return cls(**words)


def decibels(mean_squared_error: float, peak: float) -> float:
    """PSNR of a mean squared error.

    Examples
    --------
    >>> round(decibels(1.0, 255), 2)
    48.13
    """
    if mean_squared_error == 0:
        return math.inf
    return -math.inf if math.isinf(mean_squared_error) else 10 * math.log10(peak**2 / mean_squared_error)


def compare_block(
    source_voxels: Chunk,
    decoded_voxels: Chunk,
    guard: Guard,
    *,
    first_chunk: Shape | None = None,
    scales: Mapping[Shape, float] | None = None,
    ssim_every: int = SSIM_EVERY,
) -> BlockMeasure:
    """Measure a block of whole chunks against its source.

    Parameters
    ----------
    source_voxels, decoded_voxels : ndarray, one shape and dtype
        What was to be stored, and what was read back. Cut at the array's edge like everything read from an array.
    guard : Guard
    first_chunk : tuple of int, optional
        Index of the block's first chunk, for the indices reported; zeros when not given.
    scales : mapping, optional
        Chunk index to source units per grey level, from the frames' windows; 1 where absent.
    ssim_every : int
        One section in so many is looked at for SSIM; 1 is all of them.

    Returns
    -------
    BlockMeasure

    Raises
    ------
    ValueError
        If the shapes differ or the block is empty.
    """
    if source_voxels.shape != decoded_voxels.shape or source_voxels.size == 0:
        raise ValueError(f"blocks of shape {source_voxels.shape} and {decoded_voxels.shape} cannot be compared")
    peak = peak_of(source_voxels) if guard.peak is None else guard.peak
    first = first_chunk or (0,) * source_voxels.ndim
    errors = np.zeros(len(ERROR_EDGES) + 1, np.int64)
    squared = worst = 0.0
    reached_by: list[tuple[Shape, float, float]] = []
    chunk_db: dict[str, int] = {}
    failures = []
    for local in chunk_indices(source_voxels.shape, guard.chunks):
        place = box_of(local, guard.chunks, source_voxels.shape)
        chunk_squared, chunk_worst, counts = _differences(source_voxels[place], decoded_voxels[place], peak)
        index = tuple(f + i for f, i in zip(first, local, strict=True))
        reached = decibels(chunk_squared / source_voxels[place].size, peak)
        key = str(math.floor(reached)) if math.isfinite(reached) else str(reached)
        chunk_db[key] = chunk_db.get(key, 0) + 1
        reached_by.append((index, reached, chunk_worst))
        if reason := guard.broken(chunk_squared, chunk_worst, (scales or {}).get(index, 1.0)):
            failures.append((index, reason))
        squared, worst, errors = squared + chunk_squared, max(worst, chunk_worst), errors + counts
    score, weight = _ssim(source_voxels, decoded_voxels, peak, ssim_every)
    return BlockMeasure(
        n_voxels=source_voxels.size,
        squared=squared,
        worst=worst,
        peak=peak,
        ssim_sum=score * weight,
        ssim_weight=weight,
        worst_chunks=tuple(sorted(reached_by, key=lambda chunk: chunk[1])[:WORST_KEPT]),
        chunk_db=chunk_db,
        errors=tuple(int(count) for count in errors),
        failures=tuple(failures),
    )


def _differences(a: Chunk, b: Chunk, peak: float) -> tuple[float, float, NDArray[np.int64]]:
    """Sum of squares, largest, and counts by bin of absolute differences, from one pass over integers."""
    edges = np.array(ERROR_EDGES) * (peak / GREY_PEAK)
    if a.dtype.kind in "iu":
        wide = a.dtype if a.dtype.kind == "u" else np.dtype(np.int32)
        off = np.subtract(np.maximum(a, b), np.minimum(a, b), dtype=wide)
        counts = np.bincount(off.reshape(-1))
        values = np.arange(len(counts), dtype=np.float64)
        bins = np.searchsorted(edges, values)
        found = np.bincount(bins, counts, len(ERROR_EDGES) + 1).astype(np.int64)
        return float(np.dot(counts, values * values)), float(len(counts) - 1), found
    with np.errstate(invalid="ignore"):  # infinity less itself, which counts as equal below
        off = np.abs(a.astype(np.float64) - b)
    off[(a == b) | (np.isnan(a) & np.isnan(b))] = 0
    off[np.isnan(off)] = np.inf  # a value where there was none is as far off as can be
    flat = off.reshape(-1)
    found = np.bincount(np.searchsorted(edges, flat), minlength=len(ERROR_EDGES) + 1).astype(np.int64)
    return float(np.dot(flat, flat)), float(flat.max()), found


def _ssim(a: Chunk, b: Chunk, peak: float, every: int) -> tuple[float, int]:
    """Mean SSIM of some sections, and the weight of all that they stand for: positions of the window."""
    if a.ndim < 2 or min(a.shape[-2:]) < _SSIM_WINDOW:
        return 0.0, 0
    sections = a.reshape(-1, *a.shape[-2:])
    chosen = slice(min(every // 2, (len(sections) - 1) // 2), None, every)
    score = ssim(sections[chosen], b.reshape(-1, *b.shape[-2:])[chosen], peak=peak)
    rows, columns = (n - _SSIM_WINDOW + 1 for n in a.shape[-2:])
    return score, len(sections) * rows * columns
