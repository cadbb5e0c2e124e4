"""Blocks drawn from a plan, and parts of them coded on trial as the job would code them.

A plan and its open source in; block numbers and `Sample` records out. Nothing is written.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from zarr_emcodec.jobs.coding import codec_from, with_share_of
from zarr_emcodec.jobs.grid import Box, box_of, chunk_indices, grid_shape, grow
from zarr_emcodec.jobs.measure import Guard, compare_block
from zarr_emcodec.jobs.memory import read_amplification
from zarr_emcodec.jobs.report import Record

if TYPE_CHECKING:
    from zarr_emcodec._types import Chunk
    from zarr_emcodec.jobs.plan import Plan
    from zarr_emcodec.jobs.sources import Source

SAMPLE_BYTES = 1 << 22
"""Raw bytes of a block that are coded on trial, in whole chunks: blocks differ more than the chunks of one do."""
METADATA_BYTES = 1300
"""Of an array's own documents, about."""
EMPTY = -1
"""Kind of the blocks that hold no tissue; those of others are their codec's index."""
_SURVEYED = 20_000  # blocks that are asked for their kind; of more, shares are estimates


@dataclass(frozen=True, kw_only=True)
class Sample(Record):
    """A part of one block, coded on trial.

    Parameters
    ----------
    block : int
        Index in the plan.
    box : tuple of (start, stop), voxels
        The part: whole chunks.
    codec_index : int
        Which codec the block gets.
    raw_bytes, stored_bytes : int
        Stored: frames.
    squared, worst_error : float
        Sum of squared differences, largest difference, from what was to be coded (background cleared).
    low, high : float
        Of the values.
    read_s, encode_s, decode_s : float
        Reading as it is in whole blocks; decoding with the comparison.
    """

    block: int
    box: tuple[tuple[int, int], ...]
    codec_index: int
    raw_bytes: int
    stored_bytes: int
    squared: float
    worst_error: float
    low: float
    high: float
    read_s: float
    encode_s: float
    decode_s: float

    @property
    def slices(self) -> Box:
        """The box as slices."""
        return tuple(slice(*pair) for pair in self.box)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        return cls(**{**data, "box": tuple((int(start), int(stop)) for start, stop in data["box"])})


def survey(plan: Plan, drawing: random.Random) -> dict[int, Sequence[int]]:
    """Blocks by kind: all of them, or of a large plan some thousands drawn evenly."""
    blocks: Sequence[int] = range(plan.n_blocks)
    if not plan.regions and plan.tissue is None:
        return {0: blocks}
    if plan.n_blocks > _SURVEYED:
        blocks = drawing.sample(blocks, _SURVEYED)
    kinds: dict[int, list[int]] = {}
    for block in blocks:
        kinds.setdefault(plan.codec_index(block) if plan.may_hold_tissue(block) else EMPTY, []).append(block)
    return dict(sorted(kinds.items()))


def draw(kinds: Mapping[int, Sequence[int]], samples: int, drawing: random.Random) -> dict[int, int]:
    """Blocks to sample with the codec index of each: of every kind its share, and two at least."""
    total = sum(len(blocks) for kind, blocks in kinds.items() if kind != EMPTY)
    chosen: dict[int, int] = {}
    for kind, blocks in kinds.items():
        if kind != EMPTY:
            quota = min(len(blocks), max(2, round(samples * len(blocks) / total)))
            chosen |= dict.fromkeys(drawing.sample(blocks, quota), kind)
    return dict(sorted(chosen.items()))  # in the order in which they lie in the source


def part_of(plan: Plan, block: int, drawing: random.Random) -> Box:
    """A box of whole chunks somewhere in a block, of about `SAMPLE_BYTES`."""
    whole = plan.box(block)
    extent = tuple(part.stop - part.start for part in whole)
    step = grow(plan.chunks, extent, np.dtype(plan.dtype).itemsize, limit=SAMPLE_BYTES)
    starts = [
        drawing.randrange(count - -(-length // chunk) + 1) * chunk
        for count, length, chunk in zip(grid_shape(extent, plan.chunks), step, plan.chunks, strict=True)
    ]
    return tuple(
        slice(part.start + start, min(part.start + start + length, part.stop))
        for part, start, length in zip(whole, starts, step, strict=True)
    )


class Trial:
    """A job's codecs, warm, at work on parts of its blocks.

    Parameters
    ----------
    plan : Plan
    volume : Source
        The plan's, open.
    """

    def __init__(self, plan: Plan, volume: Source) -> None:
        self.plan, self.volume = plan, volume
        itemsize = np.dtype(plan.dtype).itemsize
        own = with_share_of(
            plan.codec,
            shape=plan.shape,
            itemsize=itemsize,
            chunks=plan.chunks,
            shards=plan.shards,
            metadata_bytes=METADATA_BYTES,
        )
        self.configs = (own, *plan.configs[1:])
        self._codecs: dict[int, Any] = {}

    def run(self, block: int, box: Box, codec_index: int) -> Sample:
        """Read, encode, decode and compare a part of a block.

        Raises
        ------
        JobError
            If the source cannot be read there.
        """
        codec = self._codec(codec_index)
        config = self.configs[codec_index]
        started = time.perf_counter()
        read = self.volume.read(box)
        read_s = (time.perf_counter() - started) * self._shared_reading(box)
        started = time.perf_counter()
        original = self.plan.prepare(box, read, config)
        frames = self.encode(original, codec)
        encode_s = time.perf_counter() - started
        started = time.perf_counter()
        decoded = self.decode(frames, original, codec)
        peak = 255.0 if original.dtype == np.uint8 else None
        measured = compare_block(original, decoded, Guard(chunks=self.plan.chunks, peak=peak))
        return Sample(
            block=block,
            box=tuple((part.start, part.stop) for part in box),
            codec_index=codec_index,
            raw_bytes=original.nbytes,
            stored_bytes=sum(len(frame) for frame in frames if frame is not None),
            squared=measured.squared,
            worst_error=measured.worst,
            low=float(original.min()),
            high=float(original.max()),
            read_s=read_s,
            encode_s=encode_s,
            decode_s=time.perf_counter() - started,
        )

    def pair(self, sample: Sample) -> tuple[Chunk, Chunk]:
        """What was to be coded in a sample's box, and what a reader gets of it."""
        codec = self._codec(sample.codec_index)
        read = self.volume.read(sample.slices)
        original = self.plan.prepare(sample.slices, read, self.configs[sample.codec_index])
        return original, self.decode(self.encode(original, codec), original, codec)

    def encode(self, original: Chunk, codec: Any) -> list[bytes | None]:
        """Frames of a box's chunks; None where Zarr stores nothing."""
        chunks = [self._padded(original[place]) for place in self._places(original)]
        coded = iter(codec.encode_many([chunk for chunk in chunks if chunk is not None]))
        return [None if chunk is None else next(coded) for chunk in chunks]

    def decode(self, frames: Sequence[bytes | None], original: Chunk, codec: Any) -> Chunk:
        """The box again."""
        out = np.full_like(original, self.plan.fill_value)
        decoded = iter(codec.decode_many([frame for frame in frames if frame is not None]))
        for place, frame in zip(self._places(original), frames, strict=True):
            if frame is not None:
                out[place] = next(decoded)[tuple(slice(0, part.stop - part.start) for part in place)]
        return out

    def _codec(self, index: int) -> Any:
        if index not in self._codecs:
            codec = self._codecs[index] = codec_from(self.configs[index])
            # networks are opened and machine code is made before the clock runs
            ramp = (np.arange(64 * 64) % 251).astype(self.plan.dtype)
            codec.decode(codec.encode(ramp.reshape((1,) * (len(self.plan.shape) - 2) + (64, 64))))
        return self._codecs[index]

    def _places(self, original: Chunk) -> list[Box]:
        cells = chunk_indices(original.shape, self.plan.chunks)
        return [box_of(index, self.plan.chunks, original.shape) for index in cells]

    def _padded(self, chunk: Chunk) -> Chunk | None:
        """A chunk as Zarr hands it to the codec: at full size. None for one that is all fill value."""
        if (chunk == self.plan.fill_value).all():
            return None
        if chunk.shape == self.plan.chunks:
            return chunk
        whole = np.full(self.plan.chunks, self.plan.fill_value, chunk.dtype)
        whole[tuple(slice(0, n) for n in chunk.shape)] = chunk
        return whole

    def _shared_reading(self, box: Box) -> float:
        """Part of a read's time that is this box's, where in a whole block neighbours use the same source chunks."""
        units = self.volume.chunks
        if units is None:
            return 1.0
        here = 1.0
        for part, unit, n in zip(box, units, self.plan.shape, strict=True):
            touched = min(-(-part.stop // unit) * unit, n) - part.start // unit * unit
            here *= touched / (part.stop - part.start)
        return read_amplification(self.plan.block, units, self.plan.shape) / here
