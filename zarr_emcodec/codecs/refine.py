"""Symbols that a decoder does more with: a chunk's latents are changed where rate and distortion gain by it.

An encoder network gives latents that are right on the average over tissue, each rounded on its own; for a chunk in hand
the decoder's gradient says which symbols to move. Moves are tried a share at a time, since neighbours would all correct
the same error, and what does not lower the Lagrangian is taken back. Decoders and the bytes' format do not change.
Needs torch, which runs the decoder's ONNX graph.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec.codecs.context import FRACTION, ContextModel, References, Sections
from zarr_emcodec.codecs.context_coding import ContextLatents, hyper_symbols, quantise_in_context
from zarr_emcodec.codecs.context_order import Turn, part_counts
from zarr_emcodec.codecs.context_walk import Walk
from zarr_emcodec.codecs.quantise import HALF_WIDTH, PRICE
from zarr_emcodec.errors import MissingExtraError
from zarr_emcodec.runtime import Options

STEPS = (0, 4, 8, 12, 16, 24, 32, 48, 64, 96)
"""Rounds of each effort; each costs about three decodings."""
_SHARE = 0.5  # of the moves that look worth it, tried at once in the first round
_CURVATURE = 1.0  # of the squared error, in squares of a channel's step: that of an orthonormal transform


class _State(NamedTuple):
    """Means in steps, tables and symbols of all places, (1, P, C, \\*grid)."""

    mean: NDArray[np.float32]
    table: NDArray[np.uint8]
    symbols: NDArray[np.int32]


def refine(item: ContextLatents, grey: NDArray[np.float32], level: int, effort: int, options: Options) -> None:
    """Replace a chunk's latents by better ones for a level.

    Parameters
    ----------
    item : ContextLatents
        Its `latents` are changed, never for the worse by the estimate of rate plus distortion.
    grey : ndarray, shape (n, \\*padded extent), float32
        What the latents stand for, in grey levels.
    level : int
    effort : int
        1 to 9.
    options : Options
        ``threads`` are used.

    Raises
    ------
    MissingExtraError
        If torch is not installed.
    """
    try:
        import torch

        from zarr_emcodec.runtime.torch_backend import TorchNetwork, limited_threads
    except ImportError as error:
        raise MissingExtraError("effort= above 0", extra="torch") from error
    model = item.model
    network = TorchNetwork(model.model.file("decoder.onnx"), "cpu", options.threads)
    latents = item.latents.copy()
    grid, n = latents.shape[2:], len(latents)

    def code(turn: Turn, sections: Sections, references: References) -> NDArray[np.float32]:
        found = np.empty((len(turn.sections), len(model.card.places) * model.card.channels, *grid), np.float32)
        for row, i in enumerate(turn.sections):
            one = slice(i, i + 1)
            known = References(references.reach[row : row + 1], references.total[row : row + 1])
            descent = _Descent(torch, network, item, latents[one], known, grey[one], level, options)
            latents[one], found[row] = descent.run(STEPS[effort])
        return found

    change = np.broadcast_to(item.change, (n, len(item.change)))
    walk = Walk(model, np.full(n, level, np.int64), change, part_counts(n), grid, item.extent, options)
    with limited_threads(torch, options.threads):
        walk.run(code)
    item.latents = latents


class _Descent:
    """Moves of the symbols of one section or volume."""

    def __init__(
        self,
        torch: Any,
        network: Any,
        item: ContextLatents,
        latents: NDArray[np.float32],
        references: References,
        grey: NDArray[np.float32],
        level: int,
        options: Options,
    ) -> None:
        self.torch, self.network, self.options = torch, network, options
        self.model: ContextModel = item.model
        self.level, self.extent, self.references = level, item.extent, references
        self.change = item.change[None]
        self.quiet = np.isin(references.reach, list(item.silent))
        model, card = item.model, item.model.card
        self.grid = latents.shape[2:]
        self.gain = model.gain[level].reshape(1, 1, -1, *[1] * len(self.grid))
        self.hyper = latents[:, : model.first_latent]
        shape = (1, len(card.places), card.channels, *self.grid)
        self.values = latents[:, model.first_latent :].reshape(shape) / self.gain
        self.inside: Any = (slice(None), *(slice(n) for n in item.extent))
        self.grey = torch.from_numpy(np.ascontiguousarray(grey[self.inside]))
        self.price = PRICE * float(np.median(model.gain[level])) ** 2  # squared grey levels for a bit
        self.random = np.random.default_rng(0)

    def run(self, rounds: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The best latents found, shaped as given, and what decoders get for them, (P * C, \\*grid) in steps."""
        state = self._predict(self.values)
        cost, slope = self._cost(state)
        share = _SHARE
        for _ in range(rounds):
            moved = self._moved(state, slope, share)
            if moved is None:
                break
            tried = self._predict(moved)
            new_cost, new_slope = self._cost(tried)
            if new_cost < cost:
                self.values, state, cost, slope = moved, tried, new_cost, new_slope
            else:
                share *= 0.5
        values = (self.values * self.gain).reshape(1, -1, *self.grid)
        decoded = (state.mean + state.symbols).astype(np.float32)
        return np.concatenate([self.hyper, values], 1), decoded.reshape(-1, *self.grid)

    def _moved(self, state: _State, slope: NDArray[np.float32], share: float) -> NDArray[np.float32] | None:
        """Values with a share of the moves that look worth it; None where there is none."""
        bits = self.model.costs.bits
        column = np.clip(state.symbols, 1 - HALF_WIDTH, HALF_WIDTH - 1) + HALF_WIDTH
        own = bits[state.table, column]
        bend = _CURVATURE * self.gain**2
        best = np.zeros(state.symbols.shape, np.float32)
        gain = np.zeros(state.symbols.shape, np.float32)
        for move in (-1, 1):
            change = move * slope + bend + self.price * (bits[state.table, column + move] - own)
            better = change < gain
            gain[better], best[better] = change[better], move
        best[state.table == 0] = 0
        chosen = (best != 0) & (self.random.random(best.shape) < share)
        if not chosen.any():
            return None
        return np.where(chosen, state.mean + state.symbols + best, self.values).astype(np.float32)

    def _predict(self, values: NDArray[np.float32]) -> _State:
        """What coding makes of values in steps."""
        model = self.model
        card = model.card
        levels = np.array([self.level], np.int64)
        known = self.references if card.reaches else None
        sections = Sections(model, levels, self.change, self.grid, self.extent, self.options, known)
        bounds = np.cumsum([0, *map(len, card.groups)])
        found = []
        in_steps = np.ones((1, card.channels), np.float32)

        def decide(number: int, mean: NDArray[np.float32], table: NDArray[np.uint8]) -> NDArray[np.int32]:
            symbols = quantise_in_context(values, bounds[number], in_steps, mean, table, sections)
            found.append((mean * np.float32(1 / FRACTION), table, symbols))
            return symbols

        places = values * self.gain
        gain = model.gain[self.level][None]
        hyper = hyper_symbols(sections, places, self.hyper, self.references, gain, self.quiet, self.options)
        sections.walk(hyper, decide)
        return _State(*(np.concatenate(parts, 1) for parts in zip(*found, strict=True)))

    def _cost(self, state: _State) -> tuple[float, NDArray[np.float32]]:
        """Lagrangian in squared grey levels, and the slope of its distortion for each latent in steps."""
        torch = self.torch
        steps = torch.from_numpy((state.mean + state.symbols).astype(np.float32)).requires_grad_()
        inputs = {"symbols": steps.reshape(1, -1, *self.grid), "level": torch.tensor([self.level])}
        error = (self.network.differentiable(inputs)[:, 0][self.inside] - self.grey).square().sum()
        (slope,) = torch.autograd.grad(error, steps)
        column = np.clip(state.symbols, -HALF_WIDTH, HALF_WIDTH) + HALF_WIDTH
        bits = float(self.model.costs.bits[state.table, column].sum())
        return float(error.detach()) + self.price * bits, slope.numpy()
