"""The bytes of a part: symbols of some sections under a learned entropy model, in the order in which they are coded.

Pieces of symbols with their tables in, byte strings out, and back. Where sections know nothing of each other a piece is
all there is of a group, and has a stream of its own, so that parts decode side by side; where they do there are many
small pieces, which share one stream and are read from it one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec._types import Buffer, Shape, Symbols
from zarr_emcodec.codecs.context import ContextModel
from zarr_emcodec.entropy import coder
from zarr_emcodec.entropy.feed import Feed
from zarr_emcodec.errors import FrameError
from zarr_emcodec.frame.wire import Cursor, varint
from zarr_emcodec.runtime import Options
from zarr_emcodec.runtime.context_card import ContextCard

Piece = tuple[Symbols, NDArray[np.uint8]]
"""Symbols and their tables, flat."""


class Reader(Protocol):
    """Parts on their way, piece by piece."""

    def take(self, table: NDArray[np.uint8], rows: Sequence[slice]) -> Symbols:
        """Symbols of the next piece of all parts.

        Parameters
        ----------
        table : ndarray, shape (n, ...), uint8
            Tables of n sections.
        rows : sequence of slice
            Which of the n each part has.

        Returns
        -------
        ndarray, shape of `table`, int32

        Raises
        ------
        FrameError
            If a part does not hold such symbols.
        """

    def finish(self) -> None:
        """Refuse parts that hold more; FrameError."""


def streams_of(card: ContextCard) -> int:
    """Streams of a part."""
    return 1 if card.reaches else len(card.groups) + 1


def write_parts(parts: Sequence[Sequence[Piece]], model: ContextModel, options: Options) -> list[bytes]:
    """Bytes of each part from its pieces in coding order."""
    backend = options.entropy_backend
    if model.card.reaches:
        whole = [tuple(np.concatenate(arrays) for arrays in zip(*pieces, strict=True)) for pieces in parts]
        streams = coder.encode_many(whole, model.tables, backend=backend)  # type: ignore[arg-type]
        counts = [int(np.count_nonzero(table)) for _, table in whole]
        return [varint(count) + stream for count, stream in zip(counts, streams, strict=True)]
    each = iter(coder.encode_many([piece for pieces in parts for piece in pieces], model.tables, backend=backend))
    return [join_part([next(each) for _ in pieces]) for pieces in parts]


def open_parts(
    parts: Sequence[Buffer], counts: Sequence[int], model: ContextModel, grid: Shape, options: Options
) -> Reader:
    """Parts of so many sections of a grid of cells, ready to be read.

    Raises
    ------
    FrameError
        If the bytes of a part break a rule that needs no decoding to see.
    """
    return (_OneStream if model.card.reaches else _ManyStreams)(parts, counts, model, grid, options)


class _ManyStreams:
    """A stream for the hyper-latents and for each group."""

    def __init__(
        self, parts: Sequence[Buffer], counts: Sequence[int], model: ContextModel, grid: Shape, options: Options
    ) -> None:
        self._streams = iter(zip(*(split_part(data, streams_of(model.card)) for data in parts), strict=True))
        self._tables = model.tables
        self._backend = options.entropy_backend

    def take(self, table: NDArray[np.uint8], rows: Sequence[slice]) -> Symbols:
        work = [(stream, table[run].reshape(-1)) for stream, run in zip(next(self._streams), rows, strict=True)]
        decoded = coder.decode_many(work, self._tables, backend=self._backend)
        return (decoded[0] if len(decoded) == 1 else np.concatenate(decoded)).reshape(table.shape)

    def finish(self) -> None:
        pass  # the coder has refused streams that hold more


class _OneStream:
    """How many symbols have a table, and a stream of them all."""

    def __init__(
        self, parts: Sequence[Buffer], counts: Sequence[int], model: ContextModel, grid: Shape, options: Options
    ) -> None:
        card = model.card
        of_section = (card.hyper + len(card.places) * card.channels) * math.prod(grid)
        self._feeds = []
        for data, count in zip(parts, counts, strict=True):
            cursor = Cursor(memoryview(data))
            stated = cursor.take_varint("payload")
            if stated > count * of_section:
                raise FrameError(f"part states {stated} symbols, {count} sections have no more.", field="payload")
            rest = cursor.view[cursor.offset :]
            self._feeds.append(Feed(rest, stated, model.tables, backend=options.entropy_backend))

    def take(self, table: NDArray[np.uint8], rows: Sequence[slice]) -> Symbols:
        if len(self._feeds) == 1:
            return self._feeds[0].take(np.ascontiguousarray(table).reshape(-1)).reshape(table.shape)
        symbols = np.empty(table.shape, np.int32)
        for feed, run in zip(self._feeds, rows, strict=True):
            if run.stop > run.start:
                symbols[run] = feed.take(np.ascontiguousarray(table[run]).reshape(-1)).reshape(table[run].shape)
        return symbols

    def finish(self) -> None:
        for feed in self._feeds:
            feed.finish()


def join_part(streams: Sequence[bytes]) -> bytes:
    """The streams of hyper-latents and groups of some sections: lengths of all but the last, then the streams."""
    return b"".join([*(varint(len(stream)) for stream in streams[:-1]), *streams])


def split_part(data: Buffer, n_streams: int) -> list[Buffer]:
    """Inverse of `join_part`.

    Raises
    ------
    FrameError
        If the bytes end before the streams do.
    """
    cursor = Cursor(memoryview(data))
    lengths = [cursor.take_varint("payload") for _ in range(n_streams - 1)]
    streams: list[Buffer] = [cursor.take(length, "payload") for length in lengths]
    return [*streams, cursor.view[cursor.offset :]]
