"""Tokens to the bytes of a section and back: group by group, each with the tables that the groups before it choose.

Token grids with a mask of which are stored in, sections out; or sections in, grids out. Also how tokens that are not
stored are made up from the same tables. FORMAT.md, "Frames of token models", is the layout.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec._types import Buffer, Shape, Symbols
from zarr_emcodec.codecs.tokens import Candidates, TokenModel, Tokens
from zarr_emcodec.entropy import bitpack, coder
from zarr_emcodec.errors import FrameError
from zarr_emcodec.frame.wire import Cursor, varint
from zarr_emcodec.runtime import Options
from zarr_emcodec.runtime.token_card import LATTICE

Mask = NDArray[np.bool_]
Decide = Callable[[Mask, NDArray[np.uint16]], NDArray[np.integer]]
"""Places and their tables to the tokens there."""
S = TypeVar("S", bound=np.generic)
_GOLDEN, _MIX1, _MIX2 = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def group_numbers(model: TokenModel, level: str, grid: Shape) -> NDArray[np.uint8]:
    """When each token of a grid has its turn, shape `grid`; one group where there is no prior."""
    prior = model.card.priors.get(level)
    if prior is None:
        return np.zeros(grid, np.uint8)
    cell = np.zeros((LATTICE,) * len(grid), np.uint8)
    for number, places in enumerate(prior.groups):
        for place in places:
            cell[place] = number
    return np.tile(cell, [-(-n // LATTICE) for n in grid])[tuple(slice(n) for n in grid)]


def walk(
    model: TokenModel,
    level: str,
    tokens: Tokens,
    todo: Mask,
    top: Tokens | None,
    decide: Decide,
    options: Options,
) -> None:
    """Fill in tokens group by group.

    Parameters
    ----------
    model, level
        Whose tables and groups.
    tokens : ndarray, shape (n, \\*grid), int64
        Written to where `todo` says. A group sees the tokens of the groups before it and no others, so later ones may
        be filled already.
    todo : ndarray of bool, same shape
    top : ndarray, shape (n, \\*top grid), int64, optional
        For the bottom level.
    decide : callable
        The places of a group in `tokens` and the coder's table of each, in row-major order, to their tokens.
    options : Options
    """
    numbers = group_numbers(model, level, tokens.shape[1:])
    for number in range(int(numbers.max()) + 1):
        here = todo & (numbers == number)
        if here.any():
            seen = np.where(numbers < number, tokens, model.unknown)
            tokens[here] = decide(here, model.table_index(level, seen, top, options)[here])


@dataclass
class LevelCoder:
    """Chooses and codes the tokens of one level for several frames at once.

    Parameters
    ----------
    model, level
        Whose tables and groups.
    near : Candidates
        Codes to choose from.
    prices : sequence of float
        For each frame, the squared standard deviations that a bit is worth.
    counts : sequence of int
        How many sections or volumes of the batch each frame holds.
    stored : ndarray of bool, shape (n, \\*grid)
        Which tokens are stored.
    """

    model: TokenModel
    level: str
    near: Candidates
    prices: Sequence[float]
    counts: Sequence[int]
    stored: Mask
    tokens: Tokens = field(init=False)
    _items: list[list[tuple[Symbols, NDArray[np.uint16]]]] = field(init=False)

    def __post_init__(self) -> None:
        nearest = self.near.code[:, 0]
        self.tokens = np.where(self.stored, nearest, self.model.unknown)
        self._items = [[] for _ in self.counts]

    def choose(self, top: Tokens | None, options: Options) -> None:
        """Walk the groups: settle each token with the price of its bits, and note its table."""
        cost = self.model.tables[self.level].cost_bits
        prices = np.repeat(np.array(self.prices, np.float32), self.counts)
        price = np.broadcast_to(prices.reshape(-1, *[1] * (self.tokens.ndim - 1)), self.tokens.shape)

        def decide(here: Mask, index: NDArray[np.uint16]) -> NDArray[np.integer]:
            chosen = self.tokens[here]
            if prices.any():
                code = np.moveaxis(self.near.code, 1, -1)[here]
                bits = cost[index[:, None], code]
                best = (np.moveaxis(self.near.excess, 1, -1)[here] + price[here][:, None] * bits).argmin(-1)
                chosen = code[np.arange(len(code)), best]
            for items, part, table in zip(self._items, self.split(here, chosen), self.split(here, index), strict=True):
                items.append((part.astype(np.int32), table))
            return chosen

        walk(self.model, self.level, self.tokens, self.stored, top, decide, options)

    def split(self, here: Mask, values: NDArray[S]) -> list[NDArray[S]]:
        """Values at places of the batch, frame by frame."""
        return split_by_frame(self.counts, here, values)

    def sections(self, options: Options, *, coded: bool) -> list[tuple[bytes, bool]]:
        """For each frame its section, and whether that is entropy-coded: the shorter of both forms."""
        parts = self.split(self.stored, self.tokens[self.stored])
        fields = [pack_fields(part, self.model.card.bits) for part in parts]
        if not coded:
            return [(section, False) for section in fields]
        tables = self.model.tables[self.level]
        flat = [item for items in self._items for item in items]
        data = iter(coder.encode_many(flat, tables, backend=options.entropy_backend))
        out = []
        for items, plain in zip(self._items, fields, strict=True):
            streams = [next(data) for _ in items]
            streams = [stream for (symbols, _), stream in zip(items, streams, strict=True) if len(symbols)]
            section = b"".join([varint(len(stream)) for stream in streams[:-1]] + streams)
            out.append((section, True) if len(section) < len(plain) else (plain, False))
        return out


def split_by_frame(counts: Sequence[int], here: Mask, values: NDArray[S]) -> list[NDArray[S]]:
    """Values at the places `here`, in row-major order, as one array for each frame of the batch."""
    ends = np.cumsum(counts)[:-1]
    per_piece = here.reshape(len(here), -1).sum(1)
    return np.split(values, np.cumsum(per_piece)[ends - 1] if len(ends) else [])


def pack_fields(tokens: NDArray[np.generic], bits: int) -> bytes:
    """Tokens in fields of fixed width."""
    return bitpack.pack(tokens.astype(np.uint32), np.full(len(tokens), bits, np.uint8))


def unpack_fields(data: Buffer, count: int, model: TokenModel) -> NDArray[np.int64]:
    """Inverse of `pack_fields`.

    Raises
    ------
    FrameError
        If the bytes are not exactly that many tokens of the model.
    """
    if len(data) != -(-count * model.card.bits // 8):  # before memory is taken for them
        raise FrameError(f"section holds {len(data)} bytes for {count} tokens in fixed fields.", field="payload")
    return _checked(bitpack.unpack(data, np.full(count, model.card.bits, np.uint8)), model)


def _checked(tokens: NDArray[np.integer], model: TokenModel) -> NDArray[np.int64]:
    out = tokens.astype(np.int64)
    if len(out) and not (int(out.min()) >= 0 and int(out.max()) < model.card.codes):
        raise FrameError(f"section holds a token that is none of the model's {model.card.codes}.", field="payload")
    return out


@dataclass(frozen=True)
class StoredLevel:
    """The section of one level of one frame.

    Attributes
    ----------
    data : buffer
    coded : bool
        Entropy-coded, or in fixed fields.
    stored : ndarray of bool, shape (n, \\*grid)
    """

    data: Buffer
    coded: bool
    stored: Mask


def read_levels(
    model: TokenModel, level: str, items: Sequence[StoredLevel], tops: Sequence[Tokens] | None, options: Options
) -> list[Tokens]:
    """Tokens (n, \\*grid) of one level of several frames of one grid; where none is stored, "not known".

    Raises
    ------
    FrameError
        If a section does not hold exactly the tokens that are stored.
    """
    out = [np.full(item.stored.shape, model.unknown, np.int64) for item in items]
    for item, tokens in zip(items, out, strict=True):
        if not item.coded:
            tokens[item.stored] = unpack_fields(item.data, int(item.stored.sum()), model)
    coded = [i for i, item in enumerate(items) if item.coded]
    if not coded:
        return out
    if level not in model.tables:
        raise FrameError(
            f"frame says that its {level} tokens are entropy-coded, model '{model.model.card.id}' has no tables.",
            field="setting",
        )
    stored = np.concatenate([items[i].stored for i in coded])
    counts = [len(items[i].stored) for i in coded]
    numbers = group_numbers(model, level, stored.shape[1:])
    streams = [iter(_streams(items[i], numbers)) for i in coded]
    tokens = np.full(stored.shape, model.unknown, np.int64)

    def decide(here: Mask, index: NDArray[np.uint16]) -> NDArray[np.integer]:
        parts = split_by_frame(counts, here, index)
        work = [(next(mine), part) for mine, part in zip(streams, parts, strict=True) if len(part)]
        decoded = coder.decode_many(work, model.tables[level], backend=options.entropy_backend)
        return _checked(np.concatenate(decoded), model)

    top = np.concatenate([tops[i] for i in coded]) if tops is not None else None
    walk(model, level, tokens, stored, top, decide, options)
    for i, part in zip(coded, np.split(tokens, np.cumsum(counts)[:-1]), strict=True):
        out[i] = part
    return out


def _streams(item: StoredLevel, numbers: NDArray[np.uint8]) -> list[Buffer]:
    """The streams of the groups that have tokens, in order."""
    present = np.bincount(np.broadcast_to(numbers, item.stored.shape)[item.stored])
    cursor = Cursor(memoryview(item.data))
    lengths = [cursor.take_varint("payload") for _ in range(int(np.count_nonzero(present)) - 1)]
    streams: list[Buffer] = [cursor.take(length, "payload") for length in lengths]
    return [*streams, cursor.view[cursor.offset :]]


def make_up(
    model: TokenModel,
    bottom: Tokens,
    todo: Mask,
    top: Tokens,
    keys: NDArray[np.uint64],
    options: Options,
) -> None:
    """Fill in bottom tokens that are not stored, as the prior's card says: likeliest, mean, or drawn by hashes.

    Parameters
    ----------
    model : TokenModel
        Without tables every such token is 0.
    bottom, todo, top
        As in `walk`.
    keys : ndarray, shape of `bottom`, uint64
        As `draw_keys` gives them.
    options : Options
    """
    tables = model.tables.get("bottom")
    if tables is None:
        bottom[todo] = 0
        return
    last = model.card.codes - 1
    prior = model.card.priors.get("bottom")
    policy = "mode" if prior is None else prior.policy
    fixed = model.means if policy == "mean" else tables.freqs[:, : last + 1].argmax(1)

    def decide(here: Mask, index: NDArray[np.uint16]) -> NDArray[np.integer]:
        if policy != "draw":
            return np.asarray(fixed[index])
        _, columns = tables.decoding(np.unique(index).astype(np.intp))
        slot = (keys[here] >> np.uint64(64 - tables.precision)).astype(np.int64)
        # the escape's share is the last, and counts for the last code
        return np.asarray(np.minimum(columns[(index.astype(np.int64) << tables.precision) + slot], last))

    walk(model, "bottom", bottom, todo, top, decide, options)


def draw_keys(digest: bytes, top: Tokens, shape: Shape) -> NDArray[np.uint64]:
    """Numbers that look random and depend on the model, the chunk's top tokens and the place alone.

    Parameters
    ----------
    digest : bytes
        Of the model, at least 8.
    top : ndarray, int64
        All top tokens of the chunk.
    shape : tuple of int
        Of the chunk's bottom tokens, (n, \\*grid).

    Returns
    -------
    ndarray, shape `shape`, uint64

    Notes
    -----
    The generator is SplitMix64 (Steele, Lea and Flood 2014) with the place as counter.
    """
    seed = int.from_bytes(digest[:8], "little") ^ zlib.crc32(top.astype("<u2").tobytes())
    z = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * _GOLDEN + np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return (z ^ (z >> np.uint64(31))).reshape(shape)
