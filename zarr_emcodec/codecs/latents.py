"""Latents of one chunk to the sections of its frame, and back: streams, their grouping, their tables.

A float array of latents or an integer array of symbols in, byte strings out. How many sections of the chunk share a
stream is told by the number of streams alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec._types import Buffer, Shape, Symbols
from zarr_emcodec.codecs.base import Mode
from zarr_emcodec.codecs.quantise import Ladder
from zarr_emcodec.errors import FrameError

_STREAM_BYTES = 4096  # below it the index entry and the coder's states cost more than 0.3 %
_SAMPLE = 1 << 10  # latent cells that a rate search looks at
_CODER_BYTES = 12  # per stream: head, lane states, index entry


@dataclass(frozen=True)
class Stream:
    """Symbols of some sections and channels, flat, with the table of each."""

    symbols: Symbols
    index: NDArray[np.uint8]


class ChunkLatents:
    """The encoder's view of one chunk: its latents, and what they cost at each level.

    Parameters
    ----------
    latents : ndarray, shape (n, channels, h, w), float32
        One row of latents for each of the chunk's n sections.
    ladder : Ladder
        Of the model that made them.
    """

    def __init__(self, latents: NDArray[np.float32], ladder: Ladder) -> None:
        self.n, channels, *grid = latents.shape
        self.cells = grid[0] * grid[1]
        # (channels, n, h, w): a stream holds one channel after the other, so tables change rarely
        self.flat = np.ascontiguousarray(latents.transpose(1, 0, 2, 3)).reshape(channels, -1)
        self.ladder = ladder
        self._sampled_bits: dict[int, float] = {}
        self._discount = 1.0

    @cached_property
    def _sample(self) -> NDArray[np.float32]:
        return np.ascontiguousarray(self.flat[:, :: max(1, self.flat.shape[1] // _SAMPLE)])

    def estimated_bytes(self, level: int, mode: Mode) -> float:
        """Size of side information and streams at a level, from a sample of the cells."""
        if mode == "nominal":
            widths = self.ladder.tables.bits[self.ladder.index[level]].astype(np.int64)
            return float(-(-int(widths.sum()) * self.flat.shape[1] // 8) + 1)
        if level not in self._sampled_bits:
            self._sampled_bits[level] = self.ladder.default_bits(self.ladder.quantise(self._sample, level), level)
        size = self._sampled_bits[level] * self._discount * self.flat.shape[1] / self._sample.shape[1] / 8
        return float(size) + _CODER_BYTES * self._n_streams(size)

    def refine_estimate(self, level: int) -> None:
        """Take into account, from a level near the right one, how much tables of the chunk's own will save."""
        symbols = self.ladder.quantise(self._sample, level)
        own = self.ladder.default_bits(symbols, level)
        index, bits = self.ladder.fit_tables(symbols, level)
        if own:
            if (index != self.ladder.index[level]).any():  # thresholds follow the tables, as they will in `streams`
                _, bits = self.ladder.fit_tables(self.ladder.quantise(self._sample, level, index), level)
            self._discount = bits / own

    def calibrate(self, level: int, size_bytes: float, mode: Mode) -> None:
        """Make the estimate agree with a real size of side information and streams."""
        if mode == "entropy":
            self._discount *= max(size_bytes, 1.0) / max(self.estimated_bytes(level, mode), 1.0)

    def estimated_squared_error(self, level: int) -> float:
        """Mean squared quantisation error per latent cell, grey levels squared (the transform is near orthonormal)."""
        error = self._sample - self.ladder.quantise(self._sample, level) * self.ladder.gain[level][:, None]
        return float(np.square(error, out=error).sum() / self._sample.shape[1])

    def _n_streams(self, size_bytes: float) -> int:
        per_section = max(size_bytes / self.n, 1e-6)
        return len(group_starts(self.n, -(-self.n // max(1, round(_STREAM_BYTES / per_section)))))

    def streams(self, level: int, mode: Mode) -> tuple[bytes, list[Stream]]:
        """Side information and streams at a level."""
        ladder = self.ladder
        symbols = ladder.quantise(self.flat, level)
        if mode == "nominal":
            index = ladder.index[level]
            low = ladder.tables.lows[index].astype(np.int32)
            high = low + np.maximum(ladder.tables.sizes[index].astype(np.int32) - 2, 0)
            np.clip(symbols, np.where(index == 0, 0, low)[:, None], np.where(index == 0, 0, high)[:, None], out=symbols)
            return b"", self._cut(symbols, index, 1)
        index, bits = ladder.fit_tables(symbols, level)
        side = ladder.pack_side(index, level)
        if side:
            own = ladder.default_bits(symbols, level)
            if ladder.can_code(symbols, level) and own <= bits + 8 * len(side):
                index, side = ladder.index[level], b""
            else:  # thresholds follow the tables
                symbols = ladder.quantise(self.flat, level, index)
        return side, self._cut(symbols, index, self._n_streams(bits / 8))

    def _cut(self, symbols: Symbols, index: NDArray[np.uint8], n_streams: int) -> list[Stream]:
        active = np.flatnonzero(index)
        coded = symbols.reshape(len(index), self.n, self.cells)[active]
        starts = group_starts(self.n, n_streams)
        out = []
        for start, stop in zip(starts, [*starts[1:], self.n], strict=True):
            part = np.ascontiguousarray(coded[:, start:stop])
            out.append(Stream(part.reshape(-1), np.repeat(index[active], part[0].size if len(active) else 0)))
        return out


def group_starts(n: int, n_streams: int) -> list[int]:
    """First section of each stream: all but the last hold ``ceil(n / n_streams)`` sections.

    Examples
    --------
    >>> group_starts(16, 5)
    [0, 4, 8, 12]
    """
    return list(range(0, n, -(-n // n_streams)))


@dataclass(frozen=True)
class StreamPlan:
    """What a decoder needs to read some sections of a latent frame.

    Attributes
    ----------
    index : ndarray, shape (channels,), uint8
        Table of each channel.
    parts : list of (data, start, stop)
        Streams to decode, in order, and the sections of the chunk that each holds.
    start, stop : int
        The sections that are wanted.
    """

    index: NDArray[np.uint8]
    parts: list[tuple[Buffer, int, int]]
    start: int
    stop: int

    def stream_index(self, n_sections: int, cells: int) -> NDArray[np.uint8]:
        """Table of each symbol of a stream of so many sections."""
        return np.repeat(self.index[self.index > 0], n_sections * cells)


def plan_streams(ladder: Ladder, level: int, sections: Sequence[Buffer], n: int, start: int, stop: int) -> StreamPlan:
    """Choose the streams that hold sections `start` to `stop` of `n`.

    Parameters
    ----------
    ladder : Ladder
        Of the frame's model.
    level : int
        The frame's setting.
    sections : sequence of buffer
        Side information, then the streams.
    n, start, stop : int
        Sections of the chunk in all; those wanted.

    Raises
    ------
    FrameError
        If the frame holds a number of streams that no encoder writes for `n` sections.
    """
    index = ladder.table_index(sections[0], level)
    n_streams = len(sections) - 1
    starts = group_starts(n, n_streams) if n_streams <= n else []
    if len(starts) != n_streams:
        raise FrameError(f"frame holds {n_streams} streams for {n} sections.", field="table")
    ends = [*starts[1:], n]
    spans = zip(sections[1:], starts, ends, strict=True)
    parts = [(data, first, last) for data, first, last in spans if first < stop and last > start]
    return StreamPlan(index, parts, start, stop)


def join_streams(
    plan: StreamPlan, decoded: Sequence[Symbols], grid: Shape, start: int, stop: int
) -> NDArray[np.float32]:
    """Symbols of sections `start` to `stop` of the chunk as a synthesis network takes them.

    Returns
    -------
    ndarray, shape (stop - start, channels, h, w), float32
    """
    active = np.flatnonzero(plan.index)
    out = np.zeros((stop - start, len(plan.index), *grid), np.float32)
    for symbols, (_, first, last) in zip(decoded, plan.parts, strict=True):
        low, high = max(first, start), min(last, stop)
        if low < high and len(active):
            here = symbols.reshape(len(active), last - first, *grid)[:, low - first : high - first]
            out[low - start : high - start, active] = here.transpose(1, 0, 2, 3)
    return out
