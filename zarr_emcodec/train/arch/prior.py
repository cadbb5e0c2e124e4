"""The parallel token prior: known tokens in, for each token the index of a frequency table out, in whole numbers.

The tokens of a grid form as many groups as a lattice of period 2 has positions, and are coded group by group, each
token given all earlier groups: 4 network passes in 2-D and 8 in 3-D, whatever the grid's size. The network works on
cells: a cell of the image network with its one or more tokens, or a top token with its bottom tokens. A token sees a
window of cells once; what follows works on each token alone::

    tokens -embed-> int8 -window of cells, matrix-> ReLU -residual matrices-> ReLU -matrix-> score of each table

Each place in a cell has its own weights. Weights and activations are whole numbers times powers of two while training
already (straight-through gradients), so the exported network computes what was trained, exactly (`entropy.exact`).
The table of the highest score codes the token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from zarr_emcodec.entropy.exact import Layer
from zarr_emcodec.train.arch.whole import (
    ACTIVATION_MAX,
    UNIT_SHIFT,
    WEIGHT_MAX,
    WEIGHT_SHIFT,
    activation,
    int8,
    int32,
    whole,
    whole_bias,
    whole_weight,
)
from zarr_emcodec.train.tokens import CODES, REFINE

PERIOD = 2
"""Of the lattice of groups along each axis."""


@dataclass(frozen=True)
class PriorConfig:
    """Everything that fixes a parallel prior's shape.

    Attributes
    ----------
    lattice : tuple of int
        Tokens of a cell of the image network along each axis, 1 or 2. Each place has tables of its own.
    conditional : bool
        Whether the tokens are bottom tokens, predicted from the top's as well; then a cell is that of a top token.
    embedding : int
        Numbers that stand for a token.
    width : int
        Numbers that describe a token's context. The cost of a token and pass is about ``width * (tokens in the window
        * embedding + layers * width + tables)`` multiply-accumulates.
    layers : int
        Residual layers behind the window.
    tables : int
        Frequency tables that contexts share, for each place of the lattice.
    """

    lattice: tuple[int, ...] = (1, 1)
    conditional: bool = False
    embedding: int = 16
    width: int = 64
    layers: int = 1
    tables: int = 256

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return len(self.lattice)

    @property
    def cell(self) -> tuple[int, ...]:
        """Tokens of a cell along each axis."""
        return (REFINE,) * self.ndim if self.conditional else self.lattice

    @property
    def places(self) -> list[tuple[int, ...]]:
        """Positions in a cell, row-major."""
        return list(product(*(range(n) for n in self.cell)))

    @property
    def reach(self) -> int:
        """Cells to each side that a token sees: 1, and 2 where a plane of single tokens would show 8 others only."""
        return 2 if self.cell == (1, 1) else 1

    @property
    def n_features(self) -> int:
        """Numbers of a cell that the window sees."""
        return self.embedding * (len(self.places) + self.conditional)

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Position of each group in the lattice of period 2, in coding order.

        Those with an even sum come first: then all others know each direct neighbour.
        """
        positions = product(range(PERIOD), repeat=self.ndim)
        return tuple(sorted(positions, key=lambda p: (sum(p) % 2, -sum(p) if sum(p) % 2 else sum(p), p)))

    @property
    def halo(self) -> int:
        """Tokens around a tile that its result depends on, of a tile that begins at a multiple of the period."""
        return 2  # the reach in tokens, rounded up to the period

    def occupied(self, grid: Sequence[int]) -> list[int]:
        """Groups that have tokens in a grid of this shape."""
        return [g for g, position in enumerate(self.groups) if all(p < n for p, n in zip(position, grid, strict=True))]

    def place(self, group: int) -> int:
        """Index in `places` of a group's tokens."""
        position = self.groups[group]
        return self.places.index(tuple(p % n for p, n in zip(position, self.cell, strict=True)))

    def pool(self, group: int) -> int:
        """Index of the set of tables of a group's tokens."""
        return 0 if self.conditional else self.place(group)

    @property
    def n_pools(self) -> int:
        """Sets of tables: one for each codebook."""
        return math.prod(self.lattice)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint or a card."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PriorConfig:
        """Inverse of `to_dict`."""
        return cls(**{**data, "lattice": tuple(data["lattice"])})


class IntegerPrior(NamedTuple):
    """A parallel prior's weights as the whole numbers that they are.

    A token's numbers are ``requantise(sums, shift, 0, 127)`` of the sums of each layer, ``shift`` being
    `WEIGHT_SHIFT`; a residual layer adds ``activation << shift`` to its sums; ``choice`` is not requantised. P is the
    number of places in a cell.

    Attributes
    ----------
    embedding : ndarray, shape (P, K + 1, E), int8
        Row K stands for a token not known yet. Cells outside of the grid are zeros.
    top : ndarray, shape (K, E), int8, or None
        Embedding of top tokens; its numbers come after those of the places.
    window, window_bias : ndarray, shape (P, C, F, [k,] k, k), int8, and (P, C), int32
    hidden : tuple of (weight, bias)
        Shapes (P, C, C), int8, and (P, C), int32.
    choice, choice_bias : ndarray, shape (P, M, C), int8, and (P, M), int32
    """

    embedding: NDArray[np.int8]
    top: NDArray[np.int8] | None
    window: NDArray[np.int8]
    window_bias: NDArray[np.int32]
    hidden: tuple[tuple[NDArray[np.int8], NDArray[np.int32]], ...]
    choice: NDArray[np.int8]
    choice_bias: NDArray[np.int32]

    def layers(self) -> list[Layer]:
        """What `check_exact` wants to know."""
        out = []
        path = np.eye(self.window.shape[1], dtype=np.int64) << WEIGHT_SHIFT
        for p, (window, bias) in enumerate(zip(self.window, self.window_bias, strict=True)):
            out.append(Layer(f"window {p}", window, bias, WEIGHT_MAX, WEIGHT_SHIFT))
            for i, (weight, offset) in enumerate(self.hidden):
                both = np.concatenate([weight[p].astype(np.int64), path], 1)
                out.append(Layer(f"hidden {i} {p}", both, offset[p], ACTIVATION_MAX, WEIGHT_SHIFT))
            out.append(Layer(f"choice {p}", self.choice[p], self.choice_bias[p], ACTIVATION_MAX))
        return out


class ParallelPrior(nn.Module):
    """A prior of one level, as it is trained: to predict tokens; which table fits a prediction is derived from it.

    Attributes
    ----------
    choice, choice_bias : Tensor, shape (P, M, C) and (P, M)
        Scores of the tables, set by `choose_among`.
    choice_shift : Tensor, int64 scalar
        Fractional bits of the weights of the choice.
    """

    choice: Tensor
    choice_bias: Tensor
    choice_shift: Tensor

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        places, c, m = len(config.places), config.width, config.tables
        kernel = [2 * config.reach + 1] * config.ndim
        fan_in = config.n_features * math.prod(kernel)
        self.embedding = nn.Parameter(torch.randn(places, CODES + 1, config.embedding))
        if config.conditional:
            self.top = nn.Parameter(torch.randn(CODES, config.embedding))
        self.window = nn.Parameter(torch.randn(places, c, config.n_features, *kernel) * fan_in**-0.5)
        self.window_bias = nn.Parameter(torch.zeros(places, c))
        self.hidden = nn.ParameterList(torch.randn(places, c, c) * 0.5 * c**-0.5 for _ in range(config.layers))
        self.hidden_bias = nn.ParameterList(torch.zeros(places, c) for _ in range(config.layers))
        self.soft = nn.Parameter(torch.randn(places, CODES, c) * c**-0.5)
        self.soft_bias = nn.Parameter(torch.zeros(places, CODES))
        self.register_buffer("choice", torch.zeros(places, m, c))
        self.register_buffer("choice_bias", torch.zeros(places, m))
        self.register_buffer("choice_shift", torch.tensor(0))

    @torch.no_grad()
    def start_from_codebooks(self, codebook: NDArray[np.float32], top: NDArray[np.float32] | None) -> None:
        """Embed tokens by the leading principal components of their code vectors, so that like tokens start alike.

        Parameters
        ----------
        codebook : ndarray, shape (K, D) or (\\*lattice, K, D)
        top : ndarray, shape (K, D), or None
        """
        books = codebook.reshape(-1, *codebook.shape[-2:])
        for p in range(len(self.embedding)):
            self.embedding[p, :CODES] = components(books[p % len(books)], self.config.embedding)
        self.embedding[:, CODES] *= 0.3
        if top is not None:
            self.top.copy_(components(top, self.config.embedding))

    @torch.no_grad()
    def choose_among(self, pool: int, means: Tensor) -> None:
        """Score tables by how well they fit the prediction.

        Parameters
        ----------
        pool : int
            Whose tables they are.
        means : Tensor, shape (M, K)
            Probabilities, each positive.

        Notes
        -----
        With logits ``W h + b`` of a context ``h``, the divergence of its prediction ``p`` from a table ``q``,
        ``sum(q * log(q / p))``, is ``-(q W h + q b + entropy(q))`` but for a term that all tables share: linear in
        ``h``. Coding costs the divergence the other way round; where it is small, the two agree.
        """
        entropy = -(means * means.log()).sum(1)
        for group in range(len(self.config.groups)):
            if self.config.pool(group) == pool:
                place = self.config.place(group)
                weight = means @ self.soft[place]
                self.choice[place] = weight - weight.mean(0)  # what all scores share decides nothing
                self.choice_bias[place] = means @ self.soft_bias[place] + entropy
        largest = max(float(self.choice.abs().max()), 2.0**-8)
        self.choice_shift.fill_(math.floor(math.log2(WEIGHT_MAX / largest)))

    def hide(self, tokens: Tensor, group: int) -> Tensor:
        """Tokens with those of `group` and of later groups replaced by K, "not known yet"."""
        out = tokens.clone()
        for position in self.config.groups[group:]:
            out[_every(position, (PERIOD,) * self.config.ndim)] = CODES
        return out

    def at(self, tokens: Tensor, group: int) -> Tensor:
        """Those tokens ``(B, ...)`` that `group` holds."""
        return tokens[_every(self.config.groups[group], (PERIOD,) * self.config.ndim)]

    def context(self, tokens: Tensor, group: int, top: Tensor | None = None) -> Tensor:
        """Numbers that describe what is known around each token of a group.

        Parameters
        ----------
        tokens : Tensor, shape (B, [z,] y, x), int64
            As `hide` returns them.
        group : int
        top : Tensor, shape (B, y / 2, x / 2), int64, optional
            The top's tokens, of a conditional prior.

        Returns
        -------
        Tensor, shape (n, C)
            One row for each token that `at` gives, in its order; multiples of 1/32 from 0 to 127/32.
        """
        config, place = self.config, self.config.place(group)
        numbers = whole(self.embedding, UNIT_SHIFT, WEIGHT_MAX)
        parts = [F.embedding(tokens[_every(p, config.cell)], numbers[i]) for i, p in enumerate(config.places)]
        if top is not None:
            parts.append(F.embedding(top, whole(self.top, UNIT_SHIFT, WEIGHT_MAX)))
        x = F.pad(torch.cat(parts, -1).movedim(-1, 1), [config.reach] * 2 * config.ndim)  # (B, F, cells)
        # a place of a cell is a group of its own along the axes that have several; along others every second cell is
        start = [p // n for p, n in zip(config.groups[group], config.cell, strict=True)]
        convolve = F.conv2d if config.ndim == 2 else F.conv3d
        sums = convolve(
            x[(slice(None), slice(None), *(slice(s, None) for s in start))],
            whole_weight(self.window[place]),
            whole_bias(self.window_bias[place]),
            stride=tuple(PERIOD // n for n in config.cell),
        )
        h = activation(sums.movedim(1, -1).flatten(0, -2))
        for weight, bias in zip(self.hidden, self.hidden_bias, strict=True):
            h = activation(h + F.linear(h, whole_weight(weight[place]), whole_bias(bias[place])))
        return h

    def predict(self, context: Tensor, group: int) -> Tensor:
        """Logits of the tokens ``(n, K)`` for contexts ``(n, C)`` of a group."""
        place = self.config.place(group)
        return F.linear(context, self.soft[place], self.soft_bias[place])

    def scores(self, context: Tensor, group: int) -> Tensor:
        """Score of each of its tables ``(n, M)`` for contexts ``(n, C)`` of a group."""
        shift, place = int(self.choice_shift), self.config.place(group)
        weight = whole(self.choice[place], shift, WEIGHT_MAX)
        return F.linear(context, weight, whole(self.choice_bias[place], shift + UNIT_SHIFT, None))

    def integers(self) -> IntegerPrior:
        """The weights that `context` and `scores` compute with, as whole numbers."""
        unit, shift = WEIGHT_SHIFT + UNIT_SHIFT, int(self.choice_shift)
        hidden = zip(self.hidden, self.hidden_bias, strict=True)
        return IntegerPrior(
            embedding=int8(self.embedding, UNIT_SHIFT),
            top=int8(self.top, UNIT_SHIFT) if self.config.conditional else None,
            window=int8(self.window, WEIGHT_SHIFT),
            window_bias=int32(self.window_bias, unit),
            hidden=tuple((int8(weight, WEIGHT_SHIFT), int32(bias, unit)) for weight, bias in hidden),
            choice=int8(self.choice, shift),
            choice_bias=int32(self.choice_bias, shift + UNIT_SHIFT),
        )


def components(codebook: NDArray[np.float32], n: int) -> Tensor:
    """Principal components of code vectors ``(K, n)``, unit variance on the whole, half-way whitened."""
    vectors = torch.as_tensor(codebook, dtype=torch.float32)
    u, s, _ = torch.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    parts = (u * s.sqrt())[:, :n]
    out = torch.zeros(len(vectors), n)
    out[:, : parts.shape[1]] = parts / parts.std()
    return out


def _every(start: Sequence[int], step: Sequence[int]) -> tuple[slice, ...]:
    """Indices of the tokens at `start` of every `step` in ``(B, [z,] y, x)``."""
    return (slice(None), *(slice(s, None, n) for s, n in zip(start, step, strict=True)))
