"""Symbols with a table index each go in, the bytes of a stream come out, and back.

A stream does not say how many symbols it holds, nor which tables they use: the reader knows both. The layout is
written down in `stream`. What does not decode to exactly the symbols asked for raises a FrameError; memory is bounded
by their number and the bytes given.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from zarr_emcodec.entropy import bitpack, fast, lanes
from zarr_emcodec.entropy.stream import MAX_STEPS, RansParts, fields_bytes, join_fields, join_rans, split, truncated
from zarr_emcodec.entropy.tables import COST_SHIFT, ESCAPE_BITS_MIN, SKIP, Tables
from zarr_emcodec.errors import FrameError, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

    from numpy.typing import NDArray

    from zarr_emcodec._types import Buffer, Symbols

Mode = Literal["entropy", "nominal"]
Backend = Literal["numpy", "numba"]

# The encoder's choice, no part of the format. Lanes are the parallelism of the NumPy coder; 4 bytes of state each may
# take 1/192 of the stream, about 0.4 % net of what the states carry.
_BYTES_PER_LANE = 4 * 192
_MAX_LANES = 1 << 11


class _Columns(NamedTuple):
    """The symbols that a stream holds, skipped ones left out; ``columns`` are those of the tables."""

    values: Symbols
    tables: NDArray[np.int64]
    columns: NDArray[np.int64]
    escaped: NDArray[np.bool_]


class _Stream(NamedTuple):
    """A rANS stream with the tables of its symbols, and where among all these lie."""

    parts: RansParts
    tables: NDArray[np.int64]
    places: NDArray[np.intp]


def encode(
    symbols: Symbols, index: NDArray[Any], tables: Tables, *, mode: Mode = "entropy", backend: Backend | None = None
) -> bytes:
    """Encode one list of symbols; see `encode_many`."""
    return encode_many([(symbols, index)], tables, mode=mode, backend=backend)[0]


def decode(data: Buffer, index: NDArray[Any], tables: Tables, *, backend: Backend | None = None) -> Symbols:
    """Decode one stream; see `decode_many`."""
    return decode_many([(data, index)], tables, backend=backend)[0]


def encode_many(
    items: Sequence[tuple[Symbols, NDArray[Any]]],
    tables: Tables,
    *,
    mode: Mode = "entropy",
    backend: Backend | None = None,
) -> list[bytes]:
    """Encode several lists of symbols at once, each into a stream of its own.

    Parameters
    ----------
    items : sequence of (symbols, index)
        ``symbols``, shape (n,), int32 or narrower. ``index``, shape (n,), uint8 or uint16: the table of each symbol;
        where it is 0 the symbol must be 0, and costs nothing.
    tables : Tables
    mode : {"entropy", "nominal"}
        "entropy": as short as the tables allow, and never longer than "nominal" where that can hold the symbols.
        "nominal": a field of ``tables.bits[index]`` bits for each symbol, 1 byte for the head.
    backend : {"numpy", "numba"}, optional
        Makes no difference to the bytes. Default: numba where it is installed.

    Returns
    -------
    list of bytes
        As each would be on its own.

    Raises
    ------
    SpecError
        If a list does not fit its index, an index has no table, a skipped symbol is not zero, or in mode "nominal" a
        symbol is outside its table's range.
    MissingExtraError
        If numba is asked for and not installed.

    Examples
    --------
    >>> from zarr_emcodec.entropy.tables import build_tables
    >>> tables = build_tables([1.0], [1.0])
    >>> symbols, index = np.array([0, 1, 0, -2], "i4"), np.array([1, 1, 0, 1], "u1")
    >>> data = encode(symbols, index, tables)
    >>> len(data), decode(data, index, tables, backend="numpy").tolist()
    (3, [0, 1, 0, -2])
    """
    if mode not in ("entropy", "nominal"):
        raise SpecError(f"mode must be 'entropy' or 'nominal' (found {mode!r}).", name="mode", value=mode)
    for symbols, index in items:
        _check_symbols(symbols, index, tables)
    if mode == "nominal":
        return [_pack_fields(_columns(*item, tables), tables) for item in items]
    encode = _encode_fast if is_fast(backend) else _encode_in_lanes
    return encode(items, tables)


def cost_bits(
    items: Sequence[tuple[Symbols, NDArray[Any]]], tables: Tables, *, backend: Backend | None = None
) -> float:
    """About what `encode_many` makes of some lists, in bits: the same number with any backend.

    Parameters
    ----------
    items, tables, backend
        As of `encode_many`.

    Returns
    -------
    float
        Code lengths by the tables, each escaped value counted with its shortest form; no heads, no lane states.
    """
    if is_fast(backend):
        found = [fast.cost(*item, tables) for item in items]
    else:
        coded = [_look_up(*item, tables) for item in items]
        found = [(c.cost_units, len(c.escaped)) for c in coded]
    units, n_escaped = sum(units for units, _ in found), sum(escaped for _, escaped in found)
    return float(units / (1 << COST_SHIFT) + ESCAPE_BITS_MIN * n_escaped)


def _encode_in_lanes(items: Sequence[tuple[Symbols, NDArray[Any]]], tables: Tables) -> list[bytes]:
    """Streams in lock-step, with NumPy."""
    coded = [_look_up(*item, tables) for item in items]
    jobs = {i: _encode_job(c) for i, c in enumerate(coded) if len(c.freqs)}
    streams = [b""] * len(items)
    if jobs:
        encoded = lanes.encode_streams(list(jobs.values()), tables.precision)
        for i, result in zip(jobs, encoded, strict=True):
            streams[i] = _pack(result, coded[i], items[i], tables)
    return streams


def _encode_fast(items: Sequence[tuple[Symbols, NDArray[Any]]], tables: Tables) -> list[bytes]:
    """Streams one after the other, with numba: what one needs lies in a cache, and is gone before the next."""
    streams = []
    for item in items:
        coded = fast.look_up(*item, tables)
        if len(coded.freqs):
            (result,) = fast.encode_streams([_encode_job(coded)], tables.precision)
            streams.append(_pack(result, coded, item, tables))
        else:
            streams.append(b"")
    return streams


def _pack(result: lanes.Encoded, coded: lanes.Coded, item: tuple[Symbols, NDArray[Any]], tables: Tables) -> bytes:
    """Lay out what was encoded, or fixed fields where these hold the symbols in fewer bytes."""
    if not len(coded.escaped):
        data = join_rans(result.states, result.words, b"")
        return data if len(data) <= fields_bytes(coded.field_bits) else _pack_fields(_columns(*item, tables), tables)
    numbers = _escape_numbers(coded.escaped, coded.escaped_tables, tables)
    return join_rans(result.states, result.words, bitpack.pack_numbers(numbers))


def decode_many(
    items: Sequence[tuple[Buffer, NDArray[Any]]], tables: Tables, *, backend: Backend | None = None
) -> list[Symbols]:
    """Decode several streams at once.

    Parameters
    ----------
    items : sequence of (data, index)
        ``data``, a whole stream. ``index``, shape (n,), uint8 or uint16: as it was given when encoding.
    tables : Tables
    backend : {"numpy", "numba"}, optional
        Makes no difference to the symbols. Default: numba where it is installed.

    Returns
    -------
    list of ndarray, shape (n,), int32

    Raises
    ------
    FrameError
        If the bytes are not a stream of that many symbols of those tables: `TruncatedFrameError` if they end early,
        `UnsupportedFrameError` if they use a reserved kind.
    SpecError
        If an index has no table.
    MissingExtraError
        If numba is asked for and not installed.
    """
    for _, index in items:
        _check_index(index, tables)
    decode = _decode_fast if is_fast(backend) else _decode_in_lanes
    return decode([(memoryview(data).cast("B"), index) for data, index in items], tables)


def _decode_in_lanes(items: Sequence[tuple[memoryview, NDArray[Any]]], tables: Tables) -> list[Symbols]:
    """Streams in lock-step, with NumPy."""
    results: list[Symbols] = []
    streams: dict[int, _Stream] = {}
    for i, (data, index) in enumerate(items):
        places = np.flatnonzero(index)
        table = index[places].astype(np.int64)
        results.append(np.zeros(len(index), np.int32))
        with _naming_stream(i):
            parts = split_stream(data, len(table))
            if isinstance(parts, RansParts):
                streams[i] = _Stream(parts, table, places)
            else:
                results[i][places] = field_values(parts, table, tables)
    if streams:
        counts = sum(np.bincount(stream.tables, minlength=tables.n_tables) for stream in streams.values())
        steps, columns = tables.decoding(np.flatnonzero(counts))
        jobs = [_decode_job(stream, tables) for stream in streams.values()]
        decoded = lanes.decode_streams(jobs, steps, tables.precision)
        for (i, stream), result in zip(streams.items(), decoded, strict=True):
            with _naming_stream(i):
                check_end(stream.parts, result.states, result.n_words)
                results[i][stream.places] = _values(stream, columns[result.slots], tables)
    return results


def _decode_fast(items: Sequence[tuple[memoryview, NDArray[Any]]], tables: Tables) -> list[Symbols]:
    """Streams one after the other, with numba."""
    results = []
    for i, (data, index) in enumerate(items):
        with _naming_stream(i):
            parts = split_stream(data, int(np.count_nonzero(index)))
            if isinstance(parts, RansParts):
                read = fast.decode_stream(index, parts, tables)
                check_end(parts, read.states, read.n_words)
                values = _read_escapes(parts, read.n_escaped, index[read.escaped].astype(np.int64), tables)
                read.symbols[read.escaped] = values
                results.append(read.symbols)
            else:
                places = np.flatnonzero(index)
                symbols = np.zeros(len(index), np.int32)
                symbols[places] = field_values(parts, index[places].astype(np.int64), tables)
                results.append(symbols)
    return results


def is_fast(backend: Backend | None) -> bool:
    """Tell whether a backend means numba here.

    Raises
    ------
    SpecError
        If there is no such backend.
    """
    return _kernels(backend) is fast


def _kernels(backend: Backend | None) -> ModuleType:
    """Return the module whose two functions do the work."""
    if backend not in (None, "numpy", "numba"):
        raise SpecError(f"backend must be 'numpy' or 'numba' (found {backend!r}).", name="backend", value=backend)
    if backend == "numba" or (backend is None and fast.is_available()):
        return fast
    return lanes


@contextmanager
def _naming_stream(i: int) -> Iterator[None]:
    """Note on a FrameError which stream of the batch it is about."""
    try:
        yield
    except FrameError as error:
        error.add_note(f"in stream {i} of the batch")
        raise


def _check_index(index: NDArray[Any], tables: Tables) -> None:
    if index.ndim != 1 or index.dtype.kind != "u" or index.dtype.itemsize > 2:
        found = f"{index.ndim}-D {index.dtype}"
        raise SpecError(f"index must be a 1-D array of uint8 or uint16 (found {found}).", name="index")
    if (largest := int(index.max(initial=0))) >= tables.n_tables:
        message = f"index names table {largest}, there are {tables.n_tables}."
        raise SpecError(message, name="index", value=largest)


def _check_symbols(symbols: Symbols, index: NDArray[Any], tables: Tables) -> None:
    _check_index(index, tables)
    if symbols.shape != index.shape or not np.can_cast(symbols.dtype, np.int32):
        found = f"{symbols.dtype} {symbols.shape} for an index {index.shape}"
        raise SpecError(f"symbols must be int32 or narrower, one for each index (found {found}).", name="symbols")


def _columns(symbols: Symbols, index: NDArray[Any], tables: Tables) -> _Columns:
    """Leave out what is skipped and look up the columns of the rest."""
    is_coded = index != SKIP
    if symbols[~is_coded].any():
        raise SpecError("symbols of table 0 must be zero: they are not stored.", name="symbols")
    values, table = symbols[is_coded].astype(np.int32), index[is_coded].astype(np.int64)
    columns = values - tables.lows[table].astype(np.int64)
    last = tables.sizes[table] - 1
    escaped = (columns < 0) | (columns >= last)
    return _Columns(values, table, np.where(escaped, last, columns), escaped)


def _look_up(symbols: Symbols, index: NDArray[Any], tables: Tables) -> lanes.Coded:
    """What a stream of these symbols holds."""
    values, table, columns, escaped = _columns(symbols, index, tables)
    entry = table * tables.width + columns
    return lanes.Coded(
        freqs=tables.freqs.ravel()[entry].astype(np.uint32),
        starts=tables.starts.ravel()[entry].astype(np.uint32),
        cost_units=int(tables.cost_units.ravel()[entry].sum()),
        field_bits=int(tables.bits[table].sum(dtype=np.int64)),
        escaped=values[escaped],
        escaped_tables=table[escaped],
    )


def _encode_job(coded: lanes.Coded) -> lanes.EncodeJob:
    """Decide on the number of lanes."""
    n_bytes = coded.cost_units >> (COST_SHIFT + 3)
    n_symbols = len(coded.freqs)
    at_least = -(-n_symbols // MAX_STEPS)
    wanted = min(n_bytes // _BYTES_PER_LANE, n_symbols, _MAX_LANES)
    n_lanes = 1 << max(wanted.bit_length() - 1, (at_least - 1).bit_length(), 0)
    return lanes.EncodeJob(coded.freqs, coded.starts, n_lanes)


def _pack_fields(coded: _Columns, tables: Tables) -> bytes:
    """Lay out a stream of fixed fields."""
    if coded.escaped.any():
        i = int(coded.escaped.argmax())
        message = f"symbol {coded.values[i]} is outside table {coded.tables[i]}. Clip it, or use mode='entropy'."
        raise SpecError(message, name="symbols", value=int(coded.values[i]))
    if not len(coded.values):
        return b""
    return join_fields(coded.columns.astype(np.uint32), tables.bits[coded.tables])


def _escape_numbers(values: Symbols, table: NDArray[np.int64], tables: Tables) -> NDArray[np.uint64]:
    low = tables.lows[table].astype(np.int64)
    above = values.astype(np.int64) - (low + tables.sizes[table] - 1)
    return np.where(above >= 0, 2 * above, 2 * (low - 1 - values) + 1).astype(np.uint64)


def escape_values(numbers: NDArray[np.uint64], table: NDArray[np.int64], tables: Tables) -> Symbols:
    """Escaped symbols, from the numbers that a stream stores for them."""
    low = tables.lows[table].astype(np.int64)
    distance = (numbers >> np.uint64(1)).astype(np.int64)
    values = np.where(numbers & np.uint64(1), low - 1 - distance, low + tables.sizes[table] - 1 + distance)
    limits = np.iinfo(np.int32)
    if ((values < limits.min) | (values > limits.max)).any():
        raise FrameError("entropy stream: an escaped symbol does not fit 32 bits.", field="escapes")
    return values.astype(np.int32)


def split_stream(data: memoryview, n_symbols: int) -> RansParts | memoryview:
    """Take a stream apart; one without symbols has no bytes."""
    if n_symbols:
        return split(data, n_symbols)
    if len(data):
        raise FrameError(f"entropy stream: {len(data)} bytes for no symbols.", offset=0, field="head")
    return data


def field_values(fields: memoryview, table: NDArray[np.int64], tables: Tables) -> Symbols:
    """Symbols of fixed fields."""
    columns = bitpack.unpack(fields, tables.bits[table]).astype(np.int64)
    if (columns >= tables.sizes[table] - 1).any():
        raise FrameError("entropy stream: a fixed field is beyond its table.", offset=1, field="fields")
    values: Symbols = (columns + tables.lows[table]).astype(np.int32)
    return values


def _decode_job(stream: _Stream, tables: Tables) -> lanes.DecodeJob:
    return lanes.DecodeJob(stream.tables << tables.precision, stream.parts.states, stream.parts.words)


def check_end(parts: RansParts, states: NDArray[np.uint32], taken: int) -> None:
    """Refuse a stream that did not end where its encoder began."""
    n_words = len(parts.words)
    if taken > n_words:
        raise truncated(parts.n_bytes + 2, parts.n_bytes, "words")
    if taken < n_words:
        raise FrameError(f"entropy stream: {n_words - taken} words are left over.", field="words")
    if (states != lanes.start_state(len(states))).any():
        raise FrameError("entropy stream: a lane does not end in its initial state.", field="states")


def _values(stream: _Stream, columns: NDArray[np.uint16], tables: Tables) -> Symbols:
    """Turn columns into symbols, reading the values of escaped ones."""
    values: Symbols = tables.lows[stream.tables].astype(np.int32) + columns
    escaped = np.flatnonzero(columns == tables.sizes[stream.tables] - 1)
    values[escaped] = _read_escapes(stream.parts, len(escaped), stream.tables[escaped], tables)
    return values


def _read_escapes(parts: RansParts, n_escaped: int, table: NDArray[np.int64], tables: Tables) -> Symbols:
    """Values of escaped symbols, which there must be as many of as were met."""
    if not n_escaped and not len(parts.escapes):
        return np.zeros(0, np.int32)
    numbers = bitpack.unpack_numbers(parts.escapes)
    if len(numbers) != n_escaped:
        message = f"entropy stream: {n_escaped} symbols are escaped, {len(numbers)} values are stored."
        raise FrameError(message, field="escapes")
    return escape_values(numbers, table, tables)
