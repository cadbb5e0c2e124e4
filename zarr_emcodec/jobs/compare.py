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

from zarr_emcodec.errors import ModelError, VerifyError
from zarr_emcodec.jobs.grid import Box, box_of, chunks_in, voxels
from zarr_emcodec.jobs.measure import GREY_PEAK, SSIM_EVERY, BlockMeasure, Guard, compare_block, decibels

if TYPE_CHECKING:
    import zarr

    from zarr_emcodec._types import Chunk, Shape
    from zarr_emcodec.jobs.sources import Source

Progress: TypeAlias = Callable[[int, int], None]
"""Called with bytes of raw voxels done, and in all."""


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

    def add(self, block: BlockMeasure) -> None:
        """Take in a block."""
        self.squared += block.squared
        self.n_voxels += block.n_voxels
        self.worst = max(self.worst, block.worst)
        self.lowest_chunk_db = min(self.lowest_chunk_db, block.lowest_db)
        self.failures += block.failures
        self._ssim_sum += block.ssim_sum
        self._ssim_weight += block.ssim_weight


def compare(
    source: Source,
    array: zarr.Array[Any],
    boxes: Iterable[Box],
    *,
    guard: Guard,
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
    guard : Guard
        Checked for each chunk; its peak must be stated.
    scales : mapping, optional
        Chunk index to source units per grey level; 1 where absent.
    tick : callable, optional
        Called with the raw bytes of each box when it is done.

    Returns
    -------
    Comparison
    """
    assert guard.peak is not None  # one for all boxes, or they would not add up
    found = Comparison(guard.peak)
    for box in boxes:
        blocks, unread = compare_box(source.read(box), array, box, guard, scales=scales, ssim_every=1)
        found.failures += unread
        for block in blocks:
            found.add(block)
        if tick is not None:
            tick(voxels(box) * source.dtype.itemsize)
    return found


def compare_box(
    original: Chunk,
    array: zarr.Array[Any],
    box: Box,
    guard: Guard,
    *,
    scales: Mapping[Shape, float] | None = None,
    ssim_every: int = SSIM_EVERY,
) -> tuple[list[BlockMeasure], list[tuple[Shape, str]]]:
    """Decode a box and measure it; where that fails, each of its chunks on its own.

    Parameters
    ----------
    original : ndarray
        The source's voxels of the box.
    array, box
        What to decode: whole chunks.
    guard, scales, ssim_every
        As in `compare_block`.

    Returns
    -------
    blocks : list of BlockMeasure
        The box, or those of its chunks that can be decoded.
    unread : list of (chunk index, reason)
        The others.

    Raises
    ------
    ModelError
        If a model is not here: the chunks may be well.
    """

    def measured(part: Box, decoded: Chunk) -> BlockMeasure:
        inside = tuple(slice(p.start - b.start, p.stop - b.start) for p, b in zip(part, box, strict=True))
        first = tuple(p.start // chunk for p, chunk in zip(part, array.chunks, strict=True))
        return compare_block(
            original[inside], decoded, guard, first_chunk=first, scales=scales, ssim_every=ssim_every
        )  # fmt: skip

    decoded = _decoded(array, box)
    if not isinstance(decoded, str):
        return [measured(box, decoded)], []
    blocks, unread = [], []
    for index in chunks_in(box, array.chunks):
        part = box_of(index, array.chunks, array.shape)
        decoded = _decoded(array, part)
        if isinstance(decoded, str):
            unread.append((index, decoded))
        else:
            blocks.append(measured(part, decoded))
    return blocks, unread


def peak_of(dtype: np.dtype[Any], window: Sequence[float] | None, extremes: tuple[float, float]) -> float:
    """What PSNR refers to: 255 for uint8, else the width of the stated window, else that of the values there are.

    Examples
    --------
    >>> peak_of(np.dtype("u2"), None, (7000.0, 11000.0))
    4000.0
    """
    if dtype == np.uint8:
        return GREY_PEAK
    low, high = extremes if window is None else window
    return float(high) - float(low) or 1.0


def verify_error(where: str, failures: Sequence[tuple[Shape, str]]) -> VerifyError:
    """One error for all failing chunks; its message shows the first few."""
    shown = "; ".join(f"chunk {index}: {reason}" for index, reason in failures[:5])
    more = f"; and {len(failures) - 5} more" if len(failures) > 5 else ""
    return VerifyError(f"{where}: {len(failures)} chunks fail. {shown}{more}.", chunks=[index for index, _ in failures])


def read_box(array: zarr.Array[Any], box: Box) -> Chunk:
    """Voxels of an open array."""
    return np.asarray(array[box])


def _decoded(array: zarr.Array[Any], box: Box) -> Chunk | str:
    """The voxels of a box, or why they cannot be had."""
    try:
        return read_box(array, box)
    except ModelError:
        raise
    except Exception as error:  # stores raise whatever their transport does, codecs whatever their library does
        return str(error) or type(error).__name__
