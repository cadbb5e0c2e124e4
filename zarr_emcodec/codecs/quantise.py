"""Latents to integers at a level of a quality ladder, and what those integers will cost.

A ladder comes from a model's tables: per level and channel a quantiser step and the frequency table that fits. The
encoder may choose other tables for a chunk whose statistics differ from the training data's; that choice travels as
side information. Everything here but `Ladder.table_index` serves the encoder only: decoders need no float of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec._types import Buffer, Symbols
from zarr_emcodec.entropy.tables import Tables
from zarr_emcodec.errors import FrameError, ModelError

PRICE = 0.115
"""Squared steps per bit: ln 2 / 6, the slope of distortion over rate of a uniform quantiser at high rate."""
HALF_WIDTH = 1023  # symbols beyond cost as much as this one in estimates
_REVIVED_BITS = 16.0  # about what a symbol of a skipped channel costs once the channel has a table again
_WORTH_BITS = 8.0  # a channel's table is changed only for more than the change itself costs


class SymbolCosts:
    """What symbols cost under each of a model's frequency tables, and where rounding up is worth it.

    Parameters
    ----------
    tables : Tables
        Frozen; table 0 is that of symbols that are not stored.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables

    @cached_property
    def bits(self) -> NDArray[np.float32]:
        """Bits of symbol ``s`` under table ``t`` at ``[t, s + HALF_WIDTH]``, escapes included."""
        tables = self.tables
        symbol = np.arange(-HALF_WIDTH, HALF_WIDTH + 1)
        rows = []
        for bits, low, size in zip(tables.cost_bits, tables.lows, tables.sizes, strict=True):
            regular = int(size) - 1
            if regular < 1:  # the skip table: only zero has a cost, and that is none
                rows.append(np.where(symbol == 0, 0.0, _REVIVED_BITS))
                continue
            column = symbol - int(low)
            inside = (column >= 0) & (column < regular)
            beyond = np.maximum(np.where(column < 0, -column, column - regular + 1), 1)
            escape = bits[regular] + 8 * (beyond > 64)  # a second byte; estimates need no third
            rows.append(np.where(inside, bits[np.clip(column, 0, regular - 1)], escape))
        return np.asarray(rows, np.float32)

    @cached_property
    def thresholds(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Per table: above which fraction of a step 0 becomes 1, and n - 1 becomes n >= 2.

        ``n`` beats ``n - 1`` in ``(v - n)**2 + PRICE * bits`` where
        ``v > n - 1/2 + PRICE / 2 * (bits(n) - bits(n - 1))``.
        """
        zero, one, two = (self.bits[:, HALF_WIDTH + n] for n in range(3))
        first = np.clip(0.5 + PRICE / 2 * (one - zero), 0.5, 1.2)
        further = np.clip(0.5 + PRICE / 2 * (two - one), 0.5, 0.8)
        first[0], further[0] = first[1:].max(), further[1:].max()  # a skipped channel may come back, if it is strong
        return first.astype(np.float32), further.astype(np.float32)


class Ladder:
    """The quality ladder of one model.

    Parameters
    ----------
    arrays : mapping
        Members of ``tables.npz``: those of `Tables`, and ``index`` (levels, channels) uint8, the table of each channel
        at each level; ``step`` (levels,) and ``gain`` (channels,) float32, whose product is its quantiser step, or
        ``gain`` (levels, channels) alone.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.tables = Tables.from_arrays(arrays)
        self.costs = SymbolCosts(self.tables)
        try:
            self.index = np.asarray(arrays["index"])
            gain = np.asarray(arrays["gain"], np.float32)
            self.gain = gain if gain.ndim == 2 else np.asarray(arrays["step"], np.float32)[:, None] * gain
        except KeyError as error:
            raise ModelError(f"tables.npz: member {error} is missing. Reinstall the model.") from error
        if self.index.dtype != np.uint8 or self.index.ndim != 2 or self.index.shape != self.gain.shape:
            raise ModelError(f"tables.npz: index {self.index.shape} does not fit steps of shape {self.gain.shape}.")
        if int(self.index.max()) >= self.tables.n_tables or not np.all(self.gain > 0):
            raise ModelError("tables.npz: the ladder names tables that are not there, or steps that are not positive.")

    @property
    def n_levels(self) -> int:
        """Levels, fine to coarse."""
        return len(self.index)

    def quantise(self, latents: NDArray[np.float32], level: int, index: NDArray[np.uint8] | None = None) -> Symbols:
        """Rate-distortion optimal symbols.

        Parameters
        ----------
        latents : ndarray, shape (channels, m), float32
            Encoder output.
        level : int
            0 is the finest.
        index : ndarray, shape (channels,), uint8, optional
            Tables in use; the ladder's own when not given.

        Returns
        -------
        ndarray, shape (channels, m), int32
        """
        tables = self.index[level] if index is None else index
        first, further = (t[tables][:, None] for t in self.costs.thresholds)
        scaled = latents * (1 / self.gain[level])[:, None]
        size = np.abs(scaled)
        coarse = np.floor(size + (1 - further))
        np.maximum(coarse, 1, out=coarse)
        coarse[size < first] = 0
        np.copysign(coarse, scaled, out=coarse)
        return np.asarray(coarse, np.int32)

    def fit_tables(self, symbols: Symbols, level: int) -> tuple[NDArray[np.uint8], float]:
        """The tables that code these symbols in the fewest bits, side information counted.

        Parameters
        ----------
        symbols : ndarray, shape (channels, m), int32
            As `quantise` gives them.
        level : int
            Whose own tables are the default.

        Returns
        -------
        index : ndarray, shape (channels,), uint8
            The level's own tables where changing them does not pay.
        bits : float
            Estimated size of the symbols under `index`.
        """
        default = self.index[level]
        bits = self._bits_by_table(symbols)
        rows = np.arange(len(default))
        own = bits[rows, default]
        best = bits.argmin(1)
        change = own - bits[rows, best] > _WORTH_BITS
        index = np.where(change, best, default).astype(np.uint8)
        return index, float(bits[rows, index].sum())

    def best_tables(self, symbols: Symbols) -> NDArray[np.uint8]:
        """The table that codes each channel in the fewest bits, whatever the change costs; for making a ladder."""
        return np.asarray(self._bits_by_table(symbols).argmin(1), np.uint8)

    def _bits_by_table(self, symbols: Symbols) -> NDArray[np.float32]:
        """Estimated bits of each channel under each table, shape (channels, tables)."""
        reach = min(int(np.abs(symbols).max(initial=0)), HALF_WIDTH)
        counts = _histograms(symbols, reach)
        # einsum, not a matrix product: BLAS would start threads of its own, which spin on for longer than this takes
        cost = self.costs.bits[:, HALF_WIDTH - reach : HALF_WIDTH + reach + 1]
        bits = np.einsum("cs,ts->ct", counts, cost)
        # the skip table is right exactly where all symbols are zero
        bits[:, 0] = np.where(counts[:, reach] == symbols.shape[1], 0.0, np.inf)
        return np.asarray(bits)

    def default_bits(self, symbols: Symbols, level: int) -> float:
        """Estimated size of symbols under the level's own tables."""
        reach = min(int(np.abs(symbols).max(initial=0)), HALF_WIDTH)
        cost = self.costs.bits[self.index[level], HALF_WIDTH - reach : HALF_WIDTH + reach + 1]
        return float((_histograms(symbols, reach) * cost).sum())

    def can_code(self, symbols: Symbols, level: int) -> bool:
        """Whether all channels that the level skips are zero."""
        return not symbols[self.index[level] == 0].any()

    def pack_side(self, index: NDArray[np.uint8], level: int) -> bytes:
        """Side information: nothing for the level's own tables, else the changes as raw deflate data."""
        change = index - self.index[level]  # modulo 256
        if not change.any():
            return b""
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
        return squeeze.compress(change.tobytes()) + squeeze.flush()

    def table_index(self, side: Buffer, level: int) -> NDArray[np.uint8]:
        """Inverse of `pack_side`: the table of each channel, shape (channels,), uint8.

        Raises
        ------
        FrameError
            If the level or a table does not exist, or the side information is not one change per channel.
        """
        if level >= self.n_levels:
            raise FrameError(f"frame names level {level}, the model has 0 to {self.n_levels - 1}.", field="setting")
        default: NDArray[np.uint8] = self.index[level]
        if not len(side):
            return default
        engine = zlib.decompressobj(-15)
        try:
            raw = engine.decompress(side, len(default) + 1)
        except zlib.error as error:
            raise FrameError(f"side information is not deflate data: {error}.", field="side") from error
        if len(raw) != len(default) or not engine.eof or engine.unused_data:
            raise FrameError(f"side information does not hold {len(default)} channels.", field="side")
        index: NDArray[np.uint8] = default + np.frombuffer(raw, np.uint8)  # modulo 256
        if int(index.max()) >= self.tables.n_tables:
            raise FrameError(f"side information names table {index.max()}.", field="side")
        return index


def _histograms(symbols: Symbols, reach: int) -> NDArray[np.float32]:
    """Counts of -reach..reach per channel, shape (channels, 2 * reach + 1); larger symbols count as the largest."""
    channels, width = len(symbols), 2 * reach + 1
    place = np.clip(symbols, -reach, reach) + reach
    place += (np.arange(channels, dtype=np.int32) * width)[:, None]
    counts = np.bincount(place.reshape(-1), minlength=channels * width)
    return counts.reshape(channels, width).astype(np.float32)
