"""The same states and words as `lanes`, symbol by symbol in numba; part of the extra ``fast``.

Symbols and tables in, and out again: what `coder` does with NumPy around the lanes is part of these loops. Compiled on
first use and kept on disk where Python may write. The loops hold no lock, so threads decode in parallel.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zarr_emcodec.entropy.lanes import START, Coded, Encoded, start_state
from zarr_emcodec.entropy.tables import SEARCH_BITS
from zarr_emcodec.errors import MissingExtraError, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from zarr_emcodec._types import Symbols
    from zarr_emcodec.entropy.lanes import EncodeJob
    from zarr_emcodec.entropy.stream import RansParts
    from zarr_emcodec.entropy.tables import Tables


class Read(NamedTuple):
    """Symbols of one stream, int32, escaped ones still to be filled in; their places; the end of its lanes."""

    symbols: Symbols
    escaped: NDArray[np.int64]
    n_escaped: int
    states: NDArray[np.uint32]
    n_words: int


@cache
def is_available() -> bool:
    """Tell whether numba can be imported."""
    try:
        _kernels()
    except MissingExtraError:
        return False
    return True


def look_up(symbols: Symbols, index: NDArray[Any], tables: Tables) -> Coded:
    """What a stream of these symbols holds; the caller has checked the index.

    Raises
    ------
    SpecError
        If a symbol of table 0 is not zero.
    """
    n = len(symbols)
    freqs, starts, escaped = (np.empty(n, np.uint32) for _ in range(3))
    shares = tables.freqs, tables.starts, tables.cost_units
    sizes = tables.lows, tables.sizes, tables.bits, tables.modes
    given = np.require(symbols, np.int32, ["C", "A"]), np.require(index, None, ["C", "A"])
    n_coded, n_escaped, units, bits = _kernels().look_up(*given, *shares, *sizes, freqs, starts, escaped)
    if n_coded < 0:
        raise _skipped_symbol()
    places = escaped[:n_escaped]
    return Coded(freqs[:n_coded], starts[:n_coded], units, bits, given[0][places], index[places].astype(np.int64))


def cost(symbols: Symbols, index: NDArray[Any], tables: Tables) -> tuple[int, int]:
    """Length of a stream of these symbols in the units of ``cost_units``, and how many of them are escaped.

    Raises
    ------
    SpecError
        If a symbol of table 0 is not zero.
    """
    given = np.require(symbols, np.int32, ["C", "A"]), np.require(index, None, ["C", "A"])
    units, n_escaped = _kernels().cost(*given, tables.cost_units, tables.lows, tables.sizes, tables.modes)
    if units < 0:
        raise _skipped_symbol()
    return units, n_escaped


def _skipped_symbol() -> SpecError:
    return SpecError("symbols of table 0 must be zero: they are not stored.", name="symbols")


def encode_streams(jobs: Sequence[EncodeJob], precision: int) -> list[Encoded]:
    """Encode streams one after the other; see `lanes.encode_streams`."""
    kernel = _kernels().encode
    results = []
    for job in jobs:
        states = np.full(job.n_lanes, start_state(job.n_lanes), np.uint32)
        words = np.empty(len(job.freqs), np.uint16)
        first = kernel(job.freqs, job.starts, states, words, precision)
        results.append(Encoded(states, words[first:]))
    return results


def decode_stream(index: NDArray[Any], parts: RansParts, tables: Tables) -> Read:
    """Decode one stream; whatever the bytes are, no more than the symbols asked for.

    Parameters
    ----------
    index : ndarray, shape (n,), uint8 or uint16
        Table of each symbol, 0 included.
    parts : RansParts
    tables : Tables
    """
    symbols = np.empty(len(index), np.int32)
    # An escaped symbol has a byte at least; should there be more, their number alone matters.
    escaped = np.empty(len(parts.escapes), np.int64)
    states = parts.states.copy()
    given = np.require(index, None, ["C", "A"]), np.append(parts.words, np.uint16(0)), states
    shares = (*tables.search, tables.lows, tables.sizes, tables.modes, tables.precision)
    n_words, n_escaped = _kernels().decode(*given, *shares, symbols, escaped)
    return Read(symbols, escaped[:n_escaped], n_escaped, states, n_words)


def _look_up(
    symbols: NDArray[np.int32],
    index: NDArray[Any],
    freqs: NDArray[np.uint16],
    starts: NDArray[np.uint16],
    costs: NDArray[np.int64],
    lows: NDArray[np.int16],
    sizes: NDArray[np.int16],
    field_bits: NDArray[np.uint8],
    modes: NDArray[np.int64],
    freqs_out: NDArray[np.uint32],
    starts_out: NDArray[np.uint32],
    escaped: NDArray[np.uint32],
) -> tuple[int, int, int, int]:
    """Fill the outputs; how many are coded and escaped, what they cost, how wide fixed fields would be."""
    place = n_escaped = units = bits = 0
    for i in range(len(symbols)):
        t = index[i]
        symbol = np.int64(symbols[i])
        if t == 0:
            if symbol != 0:
                return -1, 0, 0, 0
            continue
        if symbol == modes[t, 0]:
            freqs_out[place] = modes[t, 1]
            starts_out[place] = modes[t, 2]
            units += modes[t, 3]
        else:
            column = symbol - lows[t]
            if column < 0 or column >= sizes[t] - 1:
                column = np.int64(sizes[t] - 1)
                escaped[n_escaped] = i
                n_escaped += 1
            freqs_out[place] = freqs[t, column]
            starts_out[place] = starts[t, column]
            units += costs[t, column]
        bits += field_bits[t]
        place += 1
    return place, n_escaped, units, bits


def _cost(
    symbols: NDArray[np.int32],
    index: NDArray[Any],
    costs: NDArray[np.int64],
    lows: NDArray[np.int16],
    sizes: NDArray[np.int16],
    modes: NDArray[np.int64],
) -> tuple[int, int]:
    """What symbols cost, and how many are escaped; -1 where one without a table is not zero."""
    n_escaped = units = 0
    for i in range(len(symbols)):
        t = index[i]
        symbol = np.int64(symbols[i])
        if t == 0:
            if symbol != 0:
                return -1, 0
        elif symbol == modes[t, 0]:
            units += modes[t, 3]
        else:
            column = symbol - lows[t]
            if column < 0 or column >= sizes[t] - 1:
                column = np.int64(sizes[t] - 1)
                n_escaped += 1
            units += costs[t, column]
    return units, n_escaped


def _encode(
    freqs: NDArray[np.uint32],
    starts: NDArray[np.uint32],
    states: NDArray[np.uint32],
    words: NDArray[np.uint16],
    precision: int,
) -> int:
    """Fill `words` from its end; return where they begin."""
    n_lanes = len(states)
    place = len(words)
    lane = (len(freqs) - 1) % n_lanes
    for i in range(len(freqs) - 1, -1, -1):
        x = np.uint64(states[lane])
        freq = np.uint64(freqs[i])
        if x >= freq << np.uint64(32 - precision):
            place -= 1
            words[place] = x & np.uint64(0xFFFF)
            x >>= np.uint64(16)
        # 32-bit division: several times faster than the 64-bit one
        quotient = np.uint64(np.uint32(x) // freqs[i])
        states[lane] = x + quotient * ((np.uint64(1) << np.uint64(precision)) - freq) + np.uint64(starts[i])
        lane = lane - 1 if lane else n_lanes - 1
    return place


def _decode(
    index: NDArray[Any],
    words: NDArray[np.uint16],
    states: NDArray[np.uint32],
    bounds: NDArray[np.uint16],
    columns: NDArray[np.uint16],
    lows: NDArray[np.int16],
    sizes: NDArray[np.int16],
    modes: NDArray[np.int64],
    precision: int,
    symbols: NDArray[np.int32],
    escaped: NDArray[np.int64],
) -> tuple[int, int]:
    """Fill `symbols` and `escaped`; return how many words were asked for, past their end too, and escapes found."""
    n_lanes = len(states)
    n_words = len(words) - 1  # the last is no word: it is read in place of those beyond the end
    mask = (1 << precision) - 1
    place = n_escaped = lane = 0
    for i in range(len(index)):
        t = index[i]
        if t == 0:
            symbols[i] = 0
            continue
        x = np.int64(states[lane])
        slot = x & mask
        freq = modes[t, 1]
        within = slot - modes[t, 2]
        if 0 <= within < freq:
            symbols[i] = modes[t, 0]
        else:
            column = np.int64(columns[t, slot >> (precision - SEARCH_BITS)])
            while bounds[t, column + 1] <= slot:
                column += 1
            start = np.int64(bounds[t, column])
            freq = np.int64(bounds[t, column + 1]) - start
            within = slot - start
            symbols[i] = lows[t] + column
            if column == sizes[t] - 1:
                if n_escaped < len(escaped):
                    escaped[n_escaped] = i
                n_escaped += 1
        x = (x >> precision) * freq + within
        if x < START and (n_lanes > 1 or place < n_words):
            x = x << 16 | np.int64(words[min(place, n_words)])
            place += 1
        states[lane] = x
        lane += 1
        if lane == n_lanes:
            lane = 0
    return place, n_escaped


class _Kernels(NamedTuple):
    look_up: Callable[..., tuple[int, int, int, int]]
    cost: Callable[..., tuple[int, int]]
    encode: Callable[..., int]
    decode: Callable[..., tuple[int, int]]


@cache
def _kernels() -> _Kernels:
    """Return the loops, compiled."""
    numba = import_numba()
    u16, u32, i64 = numba.uint16, numba.uint32, numba.int64

    def given(dtype: Any, ndim: int = 1) -> Any:
        return numba.types.Array(dtype, ndim, "C", readonly=True)

    sizes = (given(numba.int16), given(numba.int16))
    modes = given(i64, 2)
    out = u32[::1]
    shares = (given(u16, 2), given(u16, 2), given(i64, 2))
    look_up = [
        numba.types.UniTuple(i64, 4)(
            given(numba.int32), given(kind), *shares, *sizes, given(numba.uint8), modes, out, out, out
        )
        for kind in (numba.uint8, u16)
    ]
    cost = [
        numba.types.UniTuple(i64, 2)(given(numba.int32), given(kind), given(i64, 2), *sizes, modes)
        for kind in (numba.uint8, u16)
    ]
    encode = i64(u32[::1], u32[::1], u32[::1], u16[::1], i64)
    decode = [
        numba.types.UniTuple(i64, 2)(
            given(kind), u16[::1], out, given(u16, 2), given(u16, 2), *sizes, modes, i64, numba.int32[::1], i64[::1]
        )
        for kind in (numba.uint8, u16)
    ]
    return _Kernels(
        compiled(_look_up, look_up), compiled(_cost, cost), compiled(_encode, encode), compiled(_decode, decode)
    )


def import_numba() -> Any:
    """The ``numba`` module; MissingExtraError where it is absent."""
    try:
        import numba
    except ImportError as error:
        raise MissingExtraError("backend='numba'", extra="fast") from error
    return numba


def compiled(function: Callable[..., Any], signatures: Any) -> Callable[..., Any]:
    """A loop in machine code, kept on disk where Python may write."""
    numba = import_numba()
    try:
        made = numba.njit(signatures, cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # nowhere to keep it: a read-only installation without a home directory
        made = numba.njit(signatures, cache=False, nogil=True, error_model="numpy")(function)
    return made  # type: ignore[no-any-return]
