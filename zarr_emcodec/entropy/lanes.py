"""Shares of symbols in, lane states and words out, and back: interleaved rANS in NumPy, the reference.

All lanes of all streams of a batch advance together, one symbol each per step, so that small streams cost Python's
overhead once and not once each. Knows states, words and slots; how they are laid out in bytes is `coder`'s affair.
`fast` does the same with numba, symbol by symbol, and yields the same states and words.

The coder is the range variant of asymmetric numeral systems (Duda 2013, arXiv 1311.2540, section 2.3) with 32-bit
states and 16-bit words; lanes share one run of words as in Giesen 2014 (arXiv 1402.3392, section 4).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from zarr_emcodec._types import Symbols

START = 1 << 16
"""State of every lane before its first symbol was encoded, which is after its last was decoded. A state between two
symbols is at least this and below 2**32. In a stream of one lane the start is 0 instead: see `coder`."""


def start_state(n_lanes: int) -> int:
    """Return the state that each lane of a stream begins encoding with and must end decoding with."""
    return START if n_lanes > 1 else 0


class Coded(NamedTuple):
    """What a stream holds of one list of symbols, skipped ones left out.

    ``freqs`` and ``starts``, shape (n,), uint32: share and first slot of each. ``cost_units``: their cost in units of
    ``2**-16`` bit. ``field_bits``: what fixed fields would take. ``escaped`` and ``escaped_tables``: values and tables
    of those that are outside their tables.
    """

    freqs: NDArray[np.uint32]
    starts: NDArray[np.uint32]
    cost_units: int
    field_bits: int
    escaped: Symbols
    escaped_tables: NDArray[np.int64]


class EncodeJob(NamedTuple):
    """One stream's symbols: share and first slot of each, shape (n,), uint32; the lanes to deal them to in turn."""

    freqs: NDArray[np.uint32]
    starts: NDArray[np.uint32]
    n_lanes: int


class DecodeJob(NamedTuple):
    """One stream: first look-up row of each symbol's table, shape (n,), int64; lane states, uint32; words, uint16."""

    rows: NDArray[np.int64]
    states: NDArray[np.uint32]
    words: NDArray[np.uint16]


class Encoded(NamedTuple):
    """States of the lanes, uint32, and the words, uint16, in the order in which a decoder reads them."""

    states: NDArray[np.uint32]
    words: NDArray[np.uint16]


class Decoded(NamedTuple):
    """Look-up row of each symbol's slot, shape (n,); the states afterwards; how many words were asked for."""

    slots: NDArray[np.int64]
    states: NDArray[np.uint32]
    n_words: int


class _Layout:
    """Where each symbol of a batch lies when the batch is ordered by step.

    Streams with more steps come first, so that the lanes at work in a step are always the first ones, and the symbols
    of a step lie side by side. A stream whose last step is not full is filled up with symbols that change no state.
    """

    def __init__(self, n_symbols: Sequence[int], n_lanes: Sequence[int]) -> None:
        n_steps = [-(-n // lanes) for n, lanes in zip(n_symbols, n_lanes, strict=True)]
        self.order = sorted(range(len(n_steps)), key=lambda s: -n_steps[s])
        ordered = np.array([n_lanes[s] for s in self.order], np.int64)
        starts = np.cumsum(ordered) - ordered
        self.stream_of_lane = np.repeat(np.arange(len(ordered)), ordered)
        self.first_lane = dict(zip(self.order, starts.tolist(), strict=True))
        ending = np.zeros(max(n_steps) + 1, np.int64)  # lanes whose stream has that many steps
        np.add.at(ending, n_steps, np.asarray(n_lanes))
        self._step_starts = np.concatenate([[0], np.cumsum(ending.sum() - np.cumsum(ending[:-1]))])
        self.bounds: list[int] = self._step_starts.tolist()
        self.n_places = self.bounds[-1]
        self.n_lanes = int(ordered.sum())

    def places(self, stream: int, n_symbols: int, n_lanes: int) -> NDArray[np.int64]:
        """Place of each symbol of one stream, shape (n_symbols,)."""
        n_steps = -(-n_symbols // n_lanes)
        lanes = self.first_lane[stream] + np.arange(n_lanes)
        places: NDArray[np.int64] = (self._step_starts[:n_steps, None] + lanes).ravel()[:n_symbols]
        return places

    def lanes(self, stream: int, n_lanes: int) -> slice:
        """Give the lanes of one stream among all."""
        return slice(self.first_lane[stream], self.first_lane[stream] + n_lanes)


def encode_streams(jobs: Sequence[EncodeJob], precision: int) -> list[Encoded]:
    """Encode a batch of streams in lock-step.

    Parameters
    ----------
    jobs : sequence of EncodeJob
        Each with at least one symbol and at most as many lanes as symbols.
    precision : int
        The shares of a table add up to ``2**precision``.

    Returns
    -------
    list of Encoded
    """
    layout = _Layout([len(job.freqs) for job in jobs], [job.n_lanes for job in jobs])
    freqs = np.full(layout.n_places, 1 << precision, np.uint32)  # the symbol that changes nothing
    starts = np.zeros(layout.n_places, np.uint32)
    states = np.empty(layout.n_lanes, np.uint32)
    places = [layout.places(s, len(job.freqs), job.n_lanes) for s, job in enumerate(jobs)]
    for s, job in enumerate(jobs):
        freqs[places[s]], starts[places[s]] = job.freqs, job.starts
        states[layout.lanes(s, job.n_lanes)] = start_state(job.n_lanes)
    words, is_word = _encode_steps(layout.bounds, states, freqs, starts, precision)
    return [
        Encoded(states[layout.lanes(s, job.n_lanes)], words[place][is_word[place]])
        for s, (job, place) in enumerate(zip(jobs, places, strict=True))
    ]


def _encode_steps(
    bounds: list[int],
    states: NDArray[np.uint32],
    freqs: NDArray[np.uint32],
    starts: NDArray[np.uint32],
    precision: int,
) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """Push every symbol, last step first; per symbol the word that had to leave before it, and whether one had to."""
    # A state up to this takes the symbol without passing 2**32. For a certain symbol 2**32 wraps to 0, and 0 - 1 to
    # the largest state, as it should.
    largest = (freqs << np.uint32(32 - precision)) - np.uint32(1)
    gaps = np.uint32(1 << precision) - freqs
    words = np.empty(len(freqs), np.uint16)
    is_word = np.empty(len(freqs), bool)
    for low, high in zip(bounds[-2::-1], bounds[:0:-1], strict=True):
        x = states[: high - low]
        full = is_word[low:high]
        np.greater(x, largest[low:high], out=full)
        words[low:high] = x.astype(np.uint16)  # the low half
        np.right_shift(x, np.uint32(16), out=x, where=full)
        # (x // f << precision) + x % f + start, written with one division
        quotient = x // freqs[low:high]
        quotient *= gaps[low:high]
        x += quotient
        x += starts[low:high]
    return words, is_word


def decode_streams(jobs: Sequence[DecodeJob], steps: NDArray[np.uint32], precision: int) -> list[Decoded]:
    """Decode a batch of streams in lock-step; whatever the bytes are, no more than the symbols asked for.

    Parameters
    ----------
    jobs : sequence of DecodeJob
        Each with at least one symbol and at most as many lanes as symbols.
    steps : ndarray, uint32
        The look-up of `Tables.decoding`.
    precision : int
        As when encoding.

    Returns
    -------
    list of Decoded
        The caller compares states and number of words with what they must be.
    """
    n_lanes = [len(job.states) for job in jobs]
    layout = _Layout([len(job.rows) for job in jobs], n_lanes)
    slots = np.zeros(layout.n_places, np.int64)  # rows of the skip table change nothing
    states = np.empty(layout.n_lanes, np.uint32)
    places = [layout.places(s, len(job.rows), len(job.states)) for s, job in enumerate(jobs)]
    for s, job in enumerate(jobs):
        slots[places[s]] = job.rows
        states[layout.lanes(s, n_lanes[s])] = job.states
    supply = _Words([jobs[s].words for s in layout.order], [n_lanes[s] for s in layout.order], layout.stream_of_lane)
    _decode_steps(layout.bounds, states, slots, steps, supply, precision)
    n_words = dict(zip(layout.order, supply.n_taken().tolist(), strict=True))
    return [Decoded(slots[place], states[layout.lanes(s, n_lanes[s])], n_words[s]) for s, place in enumerate(places)]


class _Words:
    """Words of all streams end to end, each stream read at its own position.

    Reading past the end of a stream yields some word or other; the position tells afterwards.
    """

    def __init__(
        self, words: Sequence[NDArray[np.uint16]], n_lanes: Sequence[int], stream_of_lane: NDArray[np.int64]
    ) -> None:
        lengths = np.array([len(w) for w in words], np.int64)
        self._all = np.concatenate([*words, np.zeros(1, np.uint16)]).astype(np.uint32)
        self._firsts = np.cumsum(lengths) - lengths
        self._next = self._firsts.copy()
        self._stream_of_lane = stream_of_lane
        self._counting = np.arange(len(stream_of_lane))
        # A stream of one lane stops refilling when its words are used up; one of several never does.
        drains = np.asarray(n_lanes) == 1
        self._drains = bool(drains.any())
        self._ends = np.where(drains, self._firsts + lengths, np.iinfo(np.int64).max)
        self.refill_below = np.full(len(stream_of_lane), START, np.uint32)
        self._drain()

    def take(self, lanes: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Give the next word of its stream to each lane; lanes ascend, so those of a stream are served in order."""
        if len(self._next) == 1:
            places = self._next[0] + self._counting[: len(lanes)]
            self._next += len(lanes)
        else:
            stream = self._stream_of_lane[lanes]
            n_taken = np.bincount(stream, minlength=len(self._next))
            offsets = self._next - (np.cumsum(n_taken) - n_taken)
            places = offsets[stream] + self._counting[: len(lanes)]
            self._next += n_taken
        if self._drains:
            self._drain()
        words: NDArray[np.uint32] = self._all.take(places, mode="clip")
        return words

    def _drain(self) -> None:
        self.refill_below[(self._next >= self._ends)[self._stream_of_lane]] = 0

    def n_taken(self) -> NDArray[np.int64]:
        """Words taken from each stream."""
        return self._next - self._firsts


def _decode_steps(
    bounds: list[int],
    states: NDArray[np.uint32],
    slots: NDArray[np.int64],
    steps: NDArray[np.uint32],
    supply: _Words,
    precision: int,
) -> None:
    """Pop every symbol, first step first: `slots` turns from table rows to slots, `states` move on."""
    mask, shift, half = np.uint32((1 << precision) - 1), np.uint32(precision), np.uint32(16)
    low_half = np.uint32(0xFFFF)
    for low, high in pairwise(bounds):
        x = states[: high - low]
        slot = slots[low:high]
        slot += x & mask
        step = steps.take(slot)
        x >>= shift
        x *= step >> half
        x += step & low_half
        hungry = np.flatnonzero(x < supply.refill_below[: len(x)])
        if len(hungry):
            x[hungry] = x[hungry] << half | supply.take(hungry)
