"""Tables of fitted latents: which scale each channel has at each level, and what activity around it makes of it.

Symbols of training crops in, members of ``tables.npz`` out. All of it is counting: which table would have coded the
symbols in the fewest bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec._types import Symbols
from zarr_emcodec.codecs.latents_context import OWN_MAX, PERIOD, Step, Walk
from zarr_emcodec.codecs.quantise import HALF_WIDTH, SymbolCosts
from zarr_emcodec.runtime.grid_card import GridCard

CLASSES = 16
_MOVE = 14  # by so much a scale's index moves at most
_NEVER = 1e-5  # share of symbols that are not zero under which a channel is left out at a level
_PRIOR = 40.0  # bits: what a move away from that of its class costs; few symbols prove little
_RATIO = 15  # of weights: whole numbers from 0 to this

Counts = NDArray[np.float64]


class TableFit:
    """The tables of one grid that follow from symbols at one level.

    Parameters
    ----------
    card : GridCard
    costs : SymbolCosts
        Of the tables to choose from, shape by shape, `card.scales` each.
    """

    def __init__(self, card: GridCard, costs: SymbolCosts) -> None:
        self.card, self.costs = card, costs
        self.shapes = (len(costs.bits) - 1) // card.scales

    def base(self, symbols: Sequence[Symbols]) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
        """Index of the best scale and shape of each channel, (C,), of symbols (n, C, \\*grid)."""
        flat = np.concatenate([np.moveaxis(s, 1, 0).reshape(self.card.channels, -1) for s in symbols], axis=1)
        reach = min(int(np.abs(flat).max(initial=1)), HALF_WIDTH)
        bits = self.costs.bits[1:, HALF_WIDTH - reach : HALF_WIDTH + reach + 1]
        index, shape = np.zeros(len(flat), np.int16), np.zeros(len(flat), np.uint8)
        for channel, values in enumerate(flat):
            if np.count_nonzero(values) <= _NEVER * len(values):
                continue
            counts = np.bincount(np.clip(values, -reach, reach) + reach, minlength=2 * reach + 1)
            best = int((bits @ counts).argmin())
            shape[channel], index[channel] = divmod(best, self.card.scales)
            index[channel] += 1
        return index, shape

    def weights(self, symbols: Sequence[Symbols]) -> NDArray[np.int16]:
        """Whole weights (places, bands, 2, bands) that predict a band's activity from what is known."""
        bands = len(self.card.bands)
        kinds = PERIOD**self.card.ndim
        gram = np.zeros((kinds, bands, 2 * bands, 2 * bands))
        hits = np.zeros((kinds, bands, 2 * bands))
        for mine in symbols:
            walk = Walk(self.card, len(mine), mine.shape[2:])
            for step in walk.steps():
                ring, inside = walk.totals(step)
                known = np.concatenate([ring, inside], 1).astype(np.float64)
                known = np.moveaxis(known, 1, 0).reshape(2 * bands, -1)
                own = _of(mine, step)
                walk.learn(step, own)
                total = np.minimum(np.abs(own), 7).sum(1).reshape(-1).astype(np.float64)
                gram[step.place, step.band] += known @ known.T
                hits[step.place, step.band] += known @ total
        out = np.zeros((kinds, bands, 2, bands), np.int16)
        for place in range(kinds):
            for band in range(bands):
                found = _non_negative(gram[place, band], hits[place, band])
                if found.max() > 0:
                    out[place, band] = np.rint(found / found.max() * _RATIO).reshape(2, bands)
        return out

    def edges_and_moves(
        self,
        symbols: Sequence[Symbols],
        base: NDArray[np.int16],
        shape: NDArray[np.uint8],
        weights: NDArray[np.int16],
    ) -> tuple[NDArray[np.int32], NDArray[np.int8]]:
        """Edges between classes of activity, and the move of each class and own-channel count, for one level."""
        card = self.card
        kinds, bands = weights.shape[:2]
        found: dict[tuple[int, int], list[tuple[NDArray[np.int64], NDArray[np.uint8], Symbols]]] = {}
        for mine in symbols:
            walk = Walk(card, len(mine), mine.shape[2:])
            for step in walk.steps():
                around = walk.around(step, weights[step.place, step.band])
                values = _of(mine, step)
                walk.learn(step, values)
                found.setdefault((step.place, step.band), []).append((around.activity, around.own, values))
        edges = np.zeros((kinds, bands, CLASSES - 1), np.int32)
        moves = np.zeros((kinds, bands, CLASSES, OWN_MAX + 1), np.int8)
        bounds = (0, *card.bands)
        for (place, band), parts in found.items():
            activity = np.concatenate([a.reshape(-1) for a, _, _ in parts])
            edges[place, band] = _edges(activity)
            channels = slice(bounds[band], bounds[band + 1])
            cost = np.zeros((CLASSES, OWN_MAX + 1, 2 * _MOVE + 1))
            for of_band, own, values in parts:
                kind = np.searchsorted(edges[place, band], of_band, side="right")
                self._count(cost, kind, own, values, base[channels], shape[channels])
            moves[place, band] = _best_moves(cost)
        return edges, moves

    def _count(
        self,
        cost: Counts,
        kind: NDArray[np.intp],
        own: NDArray[np.uint8],
        values: Symbols,
        base: NDArray[np.int16],
        shape: NDArray[np.uint8],
    ) -> None:
        """Add bits under each move to (classes, own, moves)."""
        scales = self.card.scales
        group = kind[:, None] * (OWN_MAX + 1) + own
        column = np.clip(values, -HALF_WIDTH, HALF_WIDTH) + HALF_WIDTH
        for channel in np.flatnonzero(base > 0):
            where, what = group[:, channel].reshape(-1), column[:, channel].reshape(-1)
            seen, times = np.unique(where.astype(np.int64) * (2 * HALF_WIDTH + 1) + what, return_counts=True)
            place, symbol = np.divmod(seen, 2 * HALF_WIDTH + 1)
            index = np.clip(base[channel] + np.arange(-_MOVE, _MOVE + 1), 1, scales) + scales * int(shape[channel])
            np.add.at(cost.reshape(-1, 2 * _MOVE + 1), place, self.costs.bits[index][:, symbol].T * times[:, None])


def _of(symbols: Symbols, step: Step) -> Symbols:
    part: Symbols = symbols[(slice(None), step.channels, *step.cells)]
    return part


def _edges(activity: NDArray[np.int64]) -> NDArray[np.int32]:
    """Edges between classes that are about equally full, more of them where activity is high."""
    shares = 1 - np.geomspace(0.97, 0.01, CLASSES - 1)
    return np.quantile(activity, shares, method="higher").astype(np.int32)


def _best_moves(cost: Counts) -> NDArray[np.int8]:
    """The cheapest move of each class and own count, near that of the class as a whole."""
    whole = cost.sum(1)
    distance = np.abs(np.arange(whole.shape[1])[:, None] - whole.argmin(1)[None]).T  # (classes, moves)
    best = (cost + _PRIOR * distance[:, None] / _MOVE).argmin(2) - _MOVE
    return np.asarray(best, np.int8)


def _non_negative(gram: Counts, hits: Counts, rounds: int = 300) -> Counts:
    """Non-negative least squares by coordinate descent."""
    found = np.zeros(len(hits))
    for _ in range(rounds):
        for i in range(len(hits)):
            if gram[i, i] > 0:
                found[i] = max(0.0, found[i] + (hits[i] - gram[i] @ found) / gram[i, i])
    return found
