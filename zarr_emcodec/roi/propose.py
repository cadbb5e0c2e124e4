"""What is worth restoring: blocks of an array by score, the best of them as boxes for `upgrade_roi`.

An array and a way to score it in, a `Proposal` out. The array is decoded once, at its cheapest tier, batch by batch;
what stays in memory is one number per block.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from zarr_emcodec.errors import SpecError
from zarr_emcodec.frame import Kind
from zarr_emcodec.jobs.grid import box_of, chunk_indices, grid_shape, voxels
from zarr_emcodec.jobs.report import Record, plain
from zarr_emcodec.roi.fetch import Frames
from zarr_emcodec.roi.scores import boundary, texture
from zarr_emcodec.roi.tiers import has_tier, tiers_of
from zarr_emcodec.runtime import find_model

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray

    from zarr_emcodec._types import Chunk, Shape
    from zarr_emcodec.frame import Header
    from zarr_emcodec.jobs.grid import Box
    from zarr_emcodec.runtime.options import TierName

Detector = Callable[[Any], Any]
"""(z, y, x) volume to scores of its shape, or to one number for all of it."""

_DETECTORS: dict[str, Detector] = {"texture": texture, "boundary": boundary}
WAYS = (*_DETECTORS, "uncertainty")
"""Names that `propose_roi` takes as `by`."""


@dataclass(frozen=True, kw_only=True)
class Proposal(Record):
    """Blocks worth restoring, the best first; `upgrade_roi` takes it as it is.

    Parameters
    ----------
    array, by, tier : str
        The array, how it was scored, and the tier at which it was decoded for that ("" if nothing was decoded).
    block : tuple of int, voxels
        Of the array.
    n_blocks : int
        Scored: those in chunks that decode differently at different tiers.
    fraction : float
        Of the array's voxels that the boxes hold.
    boxes : tuple of tuple of slices, voxels
    scores : tuple of float
        One for each box.
    seconds : float
    """

    array: str
    by: str
    tier: str
    block: tuple[int, ...]
    n_blocks: int
    fraction: float
    boxes: tuple[Box, ...]
    scores: tuple[float, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; a box is one [start, stop] for each axis."""
        boxes = [[[part.start, part.stop] for part in box] for box in self.boxes]
        rest = {name: plain(getattr(self, name)) for name in self.__dataclass_fields__ if name != "boxes"}
        return {**rest, "boxes": boxes}


def propose_roi(
    array: zarr.Array[Any],
    *,
    by: str | Detector = "texture",
    fraction: float = 0.05,
    block: Shape | None = None,
    level: zarr.Array[Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Proposal:
    """Find the blocks that are most worth decoding richly.

    Parameters
    ----------
    array : zarr.Array
        Written with a codec of this package; read-only will do.
    by : {"texture", "boundary", "uncertainty"} or callable
        "texture": variance of grey values in small windows. "boundary": response of a ridge filter for dark lines.
        "uncertainty": bits that the model needed per voxel, from the frames' sizes alone. A callable gets decoded
        volumes of shape (z, y, x), one for each chunk, and gives scores of that shape, or one number. A block's score
        is the mean of its voxels'.
    fraction : float
        Of the array's voxels to propose, above 0 and up to 1; at least one block.
    block : tuple of int, voxels, optional
        What is scored and proposed as one: a divisor of the chunk on every axis. The chunk when not given, as tiers are
        of whole chunks.
    level : zarr.Array, optional
        A coarser version of the array, as in a multiscale group, that is scored in its stead; boxes are of `array`. Its
        chunks may cover any number of the array's. `block` is in its voxels.
    progress : callable, optional
        Called with raw bytes scored, and in all.

    Returns
    -------
    Proposal

    Raises
    ------
    SpecError
        If a word is out of range, a detector gives something else than scores, the level is no coarser version, or
        frames of fixed width are to tell what was uncertain.
    JobError
        If a chunk cannot be read or decoded.
    """
    started = time.perf_counter()
    if not 0 < fraction <= 1:
        raise SpecError(f"fraction {fraction:g}: needs a number above 0 and up to 1.", name="fraction", value=fraction)
    if not callable(by) and by not in WAYS:
        raise SpecError(f"by={by!r}: needs {', '.join(map(repr, WAYS))} or a callable.", name="by", value=by)
    frames = Frames(array if level is None else level)
    factor = _factor_of(array, frames.layout.shape)
    unit = _check_block(block, frames.layout.chunks)
    tier: TierName | Literal[""] = ""
    if callable(by) or by in _DETECTORS:
        tier = cheapest = _cheapest(frames)
        scores = _scan(frames, by if callable(by) else _DETECTORS[by], unit, cheapest, progress)
    else:
        scores = _coded_bits(frames, unit, progress)
    order = np.argsort(-scores, axis=None, kind="stable")[: int(np.isfinite(scores).sum())]
    boxes: list[Box] = []
    best: list[float] = []
    held, total = 0, int(np.prod(array.shape, dtype=np.int64))
    for flat in order:
        place = np.unravel_index(flat, scores.shape)
        index = tuple(int(i) for i in place)
        box = box_of(index, tuple(u * f for u, f in zip(unit, factor, strict=True)), array.shape)
        if boxes and held + voxels(box) > fraction * total * (1 + 1e-9):
            break
        boxes.append(box)
        best.append(float(scores[place]))
        held += voxels(box)
    return Proposal(
        array=str(array.store_path),
        by=by if isinstance(by, str) else getattr(by, "__name__", type(by).__name__),
        tier=tier,
        block=tuple(u * f for u, f in zip(unit, factor, strict=True)),
        n_blocks=int(np.isfinite(scores).sum()),
        fraction=held / total,
        boxes=tuple(boxes),
        scores=tuple(best),
        seconds=time.perf_counter() - started,
    )


def _factor_of(array: zarr.Array[Any], shape: Shape) -> Shape:
    """Voxels of the array per voxel of what is scored."""
    factor = tuple(max(1, round(n / m)) for n, m in zip(array.shape, shape, strict=False))
    floors = tuple(n // f for n, f in zip(array.shape, factor, strict=True)) if len(factor) == array.ndim else ()
    ceilings = grid_shape(array.shape, factor) if floors else ()
    if len(shape) != array.ndim or not all(
        m in (low, high) for m, low, high in zip(shape, floors, ceilings, strict=True)
    ):
        raise SpecError(
            f"level has shape {shape}, the array {array.shape}: it is no version of it coarser by whole numbers.",
            name="level",
            value=shape,
        )
    return factor


def _check_block(block: Shape | None, chunks: Shape) -> Shape:
    if block is None:
        return chunks
    unit = tuple(block)
    if len(unit) != len(chunks) or any(b < 1 or c % b for b, c in zip(unit, chunks, strict=True)):
        raise SpecError(f"block {unit}: needs divisors of the chunk, {chunks}.", name="block", value=unit)
    return unit


def _cheapest(frames: Frames) -> TierName:
    """The cheapest tier that the array's model has."""
    digest = frames.layout.config.get("digest")
    return tiers_of(digest)[0] if isinstance(digest, str) and digest else "full"


def _scan(
    frames: Frames,
    detector: Detector,
    unit: Shape,
    tier: TierName,
    progress: Callable[[int, int], None] | None,
) -> NDArray[np.float64]:
    """Scores of all blocks; minus infinity where a tier changes nothing."""
    layout = frames.layout
    scores = np.full(grid_shape(layout.shape, unit), -np.inf)
    itemsize = np.dtype(frames.array.dtype).itemsize
    done, total = 0, itemsize * int(np.prod(layout.shape, dtype=np.int64))
    for batch in frames.batches(chunk_indices(layout.shape, layout.chunks)):
        tiered = [i for i, header in zip(batch, frames.headers(batch), strict=True) if _can_be_restored(header)]
        for index, chunk in zip(tiered, frames.decode(tiered, tier) if tiered else [], strict=True):
            box = box_of(index, layout.chunks, layout.shape)
            tissue = chunk[tuple(slice(0, part.stop - part.start) for part in box)]  # padding is nothing to look at
            place = tuple(slice(part.start // u, -(-part.stop // u)) for part, u in zip(box, unit, strict=True))
            scores[place] = _block_means(_scores_of(tissue, detector), unit)
        done += itemsize * sum(voxels(box_of(index, layout.chunks, layout.shape)) for index in batch)
        if progress is not None:
            progress(done, total)
    return scores


def _can_be_restored(header: Header | None) -> bool:
    return header is not None and has_tier(header)


def _scores_of(tissue: Chunk, detector: Detector) -> NDArray[np.float64]:
    """The detector's scores for a chunk of any number of axes; leading ones hold volumes of their own."""
    volumes = tissue.reshape((-1, *tissue.shape[-3:]) if tissue.ndim >= 3 else (1, 1, *tissue.shape))
    out = np.empty(volumes.shape, np.float64)
    for i, volume in enumerate(volumes):
        try:
            found = np.asarray(detector(volume), np.float64)
        except (TypeError, ValueError) as error:
            raise SpecError(f"detector: failed on a volume of shape {volume.shape}: {error}", name="by") from error
        if found.shape not in ((), volume.shape) or np.isnan(found).any():
            raise SpecError(
                f"detector: gave {found.shape}{' with NaN' if np.isnan(found).any() else ''} for a volume of "
                f"{volume.shape}. It is to give one finite score, or one for each voxel.",
                name="by",
                value=found.shape,
            )
        out[i] = found
    return out.reshape(tissue.shape)


def _block_means(values: NDArray[np.float64], unit: Shape) -> NDArray[np.float64]:
    """Means over blocks; those at the high end may be smaller."""
    sums, counts = values, np.ones((1,) * values.ndim)
    for axis, edge in enumerate(unit):
        starts = np.arange(0, values.shape[axis], edge)
        lengths = np.diff(np.append(starts, values.shape[axis]))
        sums = np.add.reduceat(sums, starts, axis=axis)
        counts = counts * lengths.reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    return np.asarray(sums / counts)


def _coded_bits(frames: Frames, unit: Shape, progress: Callable[[int, int], None] | None) -> NDArray[np.float64]:
    """Bits per voxel of each chunk's latents, of top tokens where there are two levels: their mean code length."""
    layout = frames.layout
    if unit != layout.chunks:
        raise SpecError(
            f"block {unit}: 'uncertainty' is known of whole chunks, {layout.chunks}. Leave block out.",
            name="block",
            value=unit,
        )
    if layout.config.get("mode") == "nominal":
        raise SpecError(
            "by='uncertainty': the frames are stored at a fixed width (mode='nominal'), which tells nothing. "
            "Use 'texture' or 'boundary'.",
            name="by",
            value="uncertainty",
        )
    scores = np.full(grid_shape(layout.shape, unit), -np.inf)
    todo, done = int(np.prod(layout.shape, dtype=np.int64)), 0
    for batch in frames.batches(chunk_indices(layout.shape, layout.chunks)):
        headers = frames.headers(batch)
        unsaid = [i for i, header in zip(batch, headers, strict=True) if header and None in header.lengths]
        sizes = {i: len(data) for i, data in zip(unsaid, frames.fetch(unsaid), strict=True) if data is not None}
        for index, header in zip(batch, headers, strict=True):
            if header is not None and has_tier(header):
                scores[index] = 8 * _coded_bytes(header, sizes.get(index, 0)) / int(np.prod(layout.chunks))
        done += sum(voxels(box_of(index, layout.chunks, layout.shape)) for index in batch)
        if progress is not None:
            progress(done, todo)
    return scores


def _coded_bytes(header: Header, frame_bytes: int) -> int:
    """Size of the sections that the cheapest tier decodes, side information left out."""
    assert header.model is not None  # the header's reader has checked it
    first = 2 if header.kind is Kind.MASKED else 1
    last = first + 1 if find_model(header.model).card.codec == "vqvae" else header.n_sections
    spans = [header.section_span(i) for i in range(first, last)]
    return sum(frame_bytes - start if length is None else length for start, length in spans)
