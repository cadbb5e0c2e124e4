"""One stream read piece by piece: the tables of later symbols may follow from the symbols before.

A stream as `coder.encode` lays it out and pieces of index arrays in, the symbols of each piece out. The pieces one
after the other are the index that the stream was encoded with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.entropy import bitpack, coder, fast, lanes
from zarr_emcodec.entropy.stream import RansParts
from zarr_emcodec.errors import FrameError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from zarr_emcodec._types import Buffer, Symbols
    from zarr_emcodec.entropy.coder import Backend
    from zarr_emcodec.entropy.tables import Tables


class Feed:
    """A stream on its way.

    Parameters
    ----------
    data : buffer
        The whole stream.
    n_coded : int
        Symbols of all pieces whose table is not 0.
    tables : Tables
    backend : {"numpy", "numba"}, optional
        Makes no difference to the symbols. Default: numba where it is installed.

    Raises
    ------
    FrameError
        If the bytes break a rule of the layout that needs no decoding to see.

    Examples
    --------
    >>> from zarr_emcodec.entropy.tables import build_tables
    >>> tables = build_tables([1.0], [1.0])
    >>> data = coder.encode(np.array([0, 1, 0, -2], "i4"), np.array([1, 1, 0, 1], "u1"), tables)
    >>> feed = Feed(data, 3, tables)
    >>> feed.take(np.array([1], "u1")).tolist(), feed.take(np.array([1, 0, 1], "u1")).tolist(), feed.finish()
    ([0], [1, 0, -2], None)
    """

    def __init__(self, data: Buffer, n_coded: int, tables: Tables, *, backend: Backend | None = None) -> None:
        self._tables = tables
        self._fast = coder.is_fast(backend)
        self._left = n_coded
        self._parts = coder.split_stream(memoryview(data).cast("B"), n_coded)
        self._lane = self._word = self._escape = self._bit = 0
        if isinstance(self._parts, RansParts):
            self._states = self._parts.states.copy()
            self._escapes = bitpack.unpack_numbers(self._parts.escapes)
        else:
            self._bits = np.unpackbits(np.frombuffer(self._parts, np.uint8), bitorder="little")

    def take(self, index: NDArray[Any]) -> Symbols:
        """Symbols of the next piece.

        Parameters
        ----------
        index : ndarray, shape (n,), uint8 or uint16
            Table of each symbol; where it is 0 the symbol is 0.

        Returns
        -------
        ndarray, shape (n,), int32

        Raises
        ------
        FrameError
            If the stream does not hold such symbols.
        """
        n_coded = int(np.count_nonzero(index))
        self._left -= n_coded
        if self._left < 0:
            raise FrameError("entropy stream: holds fewer symbols than its tables mean.", field="payload")
        if not n_coded:
            return np.zeros(len(index), np.int32)
        if not isinstance(self._parts, RansParts):
            return self._take_fields(index)
        # the lane that is next stands first: both kernels begin with it
        states = np.roll(self._states, -self._lane)
        words = self._parts.words[min(self._word, len(self._parts.words)) :]
        parts = RansParts(states, words, self._parts.escapes, self._parts.n_bytes)
        symbols, escaped, states, n_words = (self._read_fast if self._fast else self._read)(index, parts)
        self._states = np.roll(states, self._lane)
        self._lane = (self._lane + n_coded) % len(states)
        self._word += n_words
        if len(escaped):
            numbers = self._escapes[self._escape : self._escape + len(escaped)]
            if len(numbers) < len(escaped):
                raise FrameError("entropy stream: more symbols are escaped than values are stored.", field="escapes")
            self._escape += len(escaped)
            symbols[escaped] = coder.escape_values(numbers, index[escaped].astype(np.int64), self._tables)
        return symbols

    def finish(self) -> None:
        """Refuse a stream that does not end where its encoder began.

        Raises
        ------
        FrameError
            If anything is left over, or more was read than there is.
        """
        if self._left:
            raise FrameError("entropy stream: holds more symbols than its tables mean.", field="payload")
        if isinstance(self._parts, RansParts):
            coder.check_end(self._parts, self._states, self._word)
            if self._escape < len(self._escapes):
                raise FrameError("entropy stream: values of escaped symbols are left over.", field="escapes")
        elif len(self._bits) - self._bit >= 8 or self._bits[self._bit :].any():
            raise FrameError("entropy stream: fixed fields are left over.", field="fields")

    def _read_fast(
        self, index: NDArray[Any], parts: RansParts
    ) -> tuple[Symbols, NDArray[np.int64], NDArray[np.uint32], int]:
        read = fast.decode_stream(index, parts, self._tables)
        if read.n_escaped > len(read.escaped):
            raise FrameError("entropy stream: more symbols are escaped than values are stored.", field="escapes")
        return read.symbols, read.escaped, read.states, read.n_words

    def _read(
        self, index: NDArray[Any], parts: RansParts
    ) -> tuple[Symbols, NDArray[np.int64], NDArray[np.uint32], int]:
        tables = self._tables
        places = np.flatnonzero(index)
        table = index[places].astype(np.int64)
        steps, columns = tables.decoding(np.unique(table))
        job = lanes.DecodeJob(table << tables.precision, parts.states, parts.words)
        (read,) = lanes.decode_streams([job], steps, tables.precision)
        column = columns[read.slots]
        symbols = np.zeros(len(index), np.int32)
        symbols[places] = tables.lows[table].astype(np.int32) + column
        return symbols, places[column == tables.sizes[table] - 1], read.states, read.n_words

    def _take_fields(self, index: NDArray[Any]) -> Symbols:
        places = np.flatnonzero(index)
        table = index[places].astype(np.int64)
        stop = self._bit + int(self._tables.bits[table].sum(dtype=np.int64))
        if stop > len(self._bits):
            raise FrameError("entropy stream: ended in its fields.", field="fields")
        piece = np.packbits(self._bits[self._bit : stop], bitorder="little")
        self._bit = stop
        symbols = np.zeros(len(index), np.int32)
        symbols[places] = coder.field_values(memoryview(piece.tobytes()), table, self._tables)
        return symbols
