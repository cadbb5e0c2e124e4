"""An array against its source, box by box: PSNR, SSIM, worst error, and the guard's promise for each chunk.

A source, an array and boxes in; a `Comparison` out. Memory follows one box. A chunk that cannot be decoded is noted
and the rest goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from zarr_emcodec.errors import EmCodecError, VerifyError
from zarr_emcodec.jobs.grid import Box, box_of, chunk_indices, voxels
from zarr_emcodec.quality.measure import squared_error, ssim, worst_error

if TYPE_CHECKING:
    import zarr

    from zarr_emcodec._types import Chunk, Shape
    from zarr_emcodec.jobs.sources import Source

Progress: TypeAlias = Callable[[int, int], None]
"""Called with bytes of raw voxels done, and in all."""
_GREY_PEAK = 255.0
_SLACK_DB = 0.05  # another runtime's grey levels may differ by one in a few voxels
_SSIM_WINDOW = 11


@dataclass(frozen=True)
class Promise:
    """What was promised of every chunk when it was written.

    Parameters
    ----------
    min_psnr : float or None, dB
    max_error : float or None, source units
    """

    min_psnr: float | None = None
    max_error: float | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Promise:
        """From the codec's configuration in the array's metadata."""
        return cls(config.get("min_psnr"), config.get("max_error"))

    def broken(self, error: ChunkError, scale: float) -> str:
        """Say how a chunk falls short, or nothing.

        Parameters
        ----------
        error : ChunkError
        scale : float
            Source units per grey level, from the chunk's frame.
        """
        if self.max_error is not None:
            # across runtimes a pixel may move by one grey level, except in exact frames
            allowed = self.max_error + (scale if self.max_error else 0)
            if error.worst > allowed:
                return f"a voxel is off by {error.worst:g}, {self.max_error:g} was promised"
        if self.min_psnr is not None:
            reached = decibels(error.squared / error.coded_voxels, _GREY_PEAK * scale)
            if reached < self.min_psnr - _SLACK_DB:
                return f"{reached:.2f} dB, {self.min_psnr:g} were promised"
        return ""


@dataclass(frozen=True)
class ChunkError:
    """How far one chunk is from its source.

    Parameters
    ----------
    squared : float
        Sum of squared differences.
    worst : float
        Largest absolute difference.
    coded_voxels : int
        Voxels that the encoder saw: an edge chunk is coded at full size, and the guard was checked on all of it.
    """

    squared: float
    worst: float
    coded_voxels: int


@dataclass
class Comparison:
    """Sums over the boxes compared so far.

    Attributes
    ----------
    peak : float
        That PSNR and SSIM refer to, in source units.
    lowest_chunk_db : float
        PSNR of the worst chunk over the array's own voxels, without the padding of edge chunks.
    failures : list of (chunk index, reason)
    """

    peak: float
    squared: float = 0.0
    n_voxels: int = 0
    worst: float = 0.0
    lowest_chunk_db: float = math.inf
    failures: list[tuple[Shape, str]] = field(default_factory=list)
    _ssim_sum: float = 0.0
    _ssim_weight: int = 0

    @property
    def psnr_db(self) -> float:
        """Over all voxels compared; infinite where nothing differs, nan where nothing was compared."""
        return decibels(self.squared / self.n_voxels, self.peak) if self.n_voxels else math.nan

    @property
    def ssim(self) -> float:
        """Mean over all positions of the window; nan where no section is large enough."""
        return self._ssim_sum / self._ssim_weight if self._ssim_weight else math.nan

    def add(self, original: Chunk, decoded: Chunk, *, squared: float, worst: float) -> None:
        """Take in a box, whose errors are known already."""
        self.squared += squared
        self.n_voxels += original.size
        self.worst = max(self.worst, worst)
        if min(original.shape[-2:]) >= _SSIM_WINDOW:
            rows, columns = (n - _SSIM_WINDOW + 1 for n in original.shape[-2:])
            weight = math.prod(original.shape[:-2]) * rows * columns
            self._ssim_sum += ssim(original, decoded, peak=self.peak) * weight
            self._ssim_weight += weight


def decibels(mean_squared_error: float, peak: float) -> float:
    """PSNR of a mean squared error.

    Examples
    --------
    >>> round(decibels(1.0, 255), 2)
    48.13
    """
    return math.inf if mean_squared_error == 0 else 10 * math.log10(peak**2 / mean_squared_error)


def compare(
    source: Source,
    array: zarr.Array[Any],
    boxes: Iterable[Box],
    *,
    peak: float,
    promise: Promise | None = None,
    scales: Mapping[Shape, float] | None = None,
    tick: Callable[[int], None] | None = None,
) -> Comparison:
    """Decode boxes and measure them against the source.

    Parameters
    ----------
    source, array
        Of one shape.
    boxes : iterable of tuple of slice
        Made of whole chunks. SSIM is taken inside each box: give whole sections for the figure of whole sections.
    peak : float
        For PSNR and SSIM, in source units.
    promise : Promise, optional
        Checked for each chunk.
    scales : mapping, optional
        Chunk index to source units per grey level; 1 where absent.
    tick : callable, optional
        Called with the raw bytes of each box when it is done.

    Returns
    -------
    Comparison
    """
    found = Comparison(peak)
    for box in boxes:
        original = source.read(box)
        decoded = _decode(array, box, found)
        if decoded is not None:
            _measure(found, original, decoded, box, array.chunks, promise or Promise(), scales or {})
        if tick is not None:
            tick(voxels(box) * source.dtype.itemsize)
    return found


def peak_of(dtype: np.dtype[Any], window: Sequence[float] | None, extremes: tuple[float, float]) -> float:
    """What PSNR refers to: 255 for uint8, else the width of the stated window, else that of the values there are.

    Examples
    --------
    >>> peak_of(np.dtype("u2"), None, (7000.0, 11000.0))
    4000.0
    """
    if dtype == np.uint8:
        return _GREY_PEAK
    low, high = extremes if window is None else window
    return float(high) - float(low) or 1.0


def verify_error(where: str, failures: Sequence[tuple[Shape, str]]) -> VerifyError:
    """One error for all failing chunks; its message shows the first few."""
    shown = "; ".join(f"chunk {index}: {reason}" for index, reason in failures[:5])
    more = f"; and {len(failures) - 5} more" if len(failures) > 5 else ""
    return VerifyError(f"{where}: {len(failures)} chunks fail. {shown}{more}.", chunks=[index for index, _ in failures])


def chunks_in(box: Box, chunks: Shape) -> Iterable[Shape]:
    """Indices of the chunks that a chunk-aligned box covers."""
    first = tuple(part.start // chunk for part, chunk in zip(box, chunks, strict=True))
    extent = tuple(part.stop - part.start for part in box)
    return (tuple(f + i for f, i in zip(first, local, strict=True)) for local in chunk_indices(extent, chunks))


def read_box(array: zarr.Array[Any], box: Box) -> Chunk:
    """Voxels of an open array."""
    return np.asarray(array[box])


def _decode(array: zarr.Array[Any], box: Box, found: Comparison) -> Chunk | None:
    """The box, or None after noting which of its chunks cannot be decoded."""
    try:
        return read_box(array, box)
    except (EmCodecError, ValueError, OSError):
        pass  # found again below, chunk by chunk
    for index in chunks_in(box, array.chunks):
        try:
            read_box(array, box_of(index, array.chunks, array.shape))
        except (EmCodecError, ValueError, OSError) as error:
            found.failures.append((index, str(error)))
    return None


def _measure(
    found: Comparison,
    original: Chunk,
    decoded: Chunk,
    box: Box,
    chunks: Shape,
    promise: Promise,
    scales: Mapping[Shape, float],
) -> None:
    squared = worst = 0.0
    shape = tuple(part.stop for part in box)
    coded_voxels = math.prod(chunks)
    for index in chunks_in(box, chunks):
        place = tuple(
            slice(part.start - whole.start, part.stop - whole.start)
            for part, whole in zip(box_of(index, chunks, shape), box, strict=True)
        )
        a, b = original[place], decoded[place]
        error = ChunkError(squared_error(a, b), worst_error(a, b), coded_voxels)
        found.lowest_chunk_db = min(found.lowest_chunk_db, decibels(error.squared / a.size, found.peak))
        squared, worst = squared + error.squared, max(worst, error.worst)
        if reason := promise.broken(error, scales.get(index, 1.0)):
            found.failures.append((index, reason))
    found.add(original, decoded, squared=squared, worst=worst)
