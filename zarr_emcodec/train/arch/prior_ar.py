"""The autoregressive prior of arXiv 2511.00231, scaled down: one token after the other, row by row, given the top.

A causal Transformer over the tokens of a window: the token before (a start mark for the first), the row and column of
the token to come, and the top token above it are added up; layers attend to earlier tokens and to all top tokens. It
is the yardstick for the parallel prior, not part of a model directory: it needs as many passes as there are tokens,
and its floats choose differently from machine to machine.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from zarr_emcodec.train.arch.prior import components
from zarr_emcodec.train.tokens import CODES, REFINE


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that fixes an autoregressive prior's shape.

    Attributes
    ----------
    window : tuple of int
        Largest grid along each axis, in tokens of the level that is predicted.
    conditional : bool
        Whether the tokens are bottom tokens, predicted from the top's as well.
    """

    window: tuple[int, ...] = (16, 16)
    conditional: bool = True
    width: int = 128
    layers: int = 3
    heads: int = 4
    drop: float = 0.1

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TransformerConfig:
        """Inverse of `to_dict`."""
        return cls(**{**data, "window": tuple(data["window"])})


class TokenTransformer(nn.Module):
    """Predicts each token of a window from those before it in row-major order."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.token = nn.Embedding(CODES + 1, width)  # the last is the start mark
        self.places = nn.ModuleList(nn.Embedding(n, width) for n in config.window)
        if config.conditional:
            self.top = nn.Embedding(CODES, width)
            self.above = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CODES)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @torch.no_grad()
    def start_from_codebooks(self, codebook: NDArray[np.float32], top: NDArray[np.float32] | None) -> None:
        """Add the principal components of code vectors to the embeddings, so that like tokens start alike."""
        self.token.weight[:CODES] += 0.1 * components(codebook, self.config.width)
        if top is not None:
            self.top.weight += 0.1 * components(top, self.config.width)

    def forward(self, tokens: Tensor, top: Tensor | None = None) -> Tensor:
        """Logits of every token given those before it.

        Parameters
        ----------
        tokens : Tensor, shape (B, [z,] y, x), int64
        top : Tensor, shape (B, y / 2, x / 2), int64, optional
            For a conditional prior.

        Returns
        -------
        Tensor, shape (B, n, K)
            In row-major order of the tokens.
        """
        flat = tokens.flatten(1)
        before = torch.cat([torch.full_like(flat[:, :1], CODES), flat[:, :-1]], 1)
        x = self.token(before) + self._place(tokens.shape[1:], 1)
        memory: Tensor | None = None
        if top is not None:
            features = self.top(top)  # (B, y, x, C)
            memory = features.flatten(1, -2) + self._place(top.shape[1:], REFINE)
            for axis in range(1, top.ndim):
                features = features.repeat_interleave(REFINE, axis)
            x = x + self.above(features.flatten(1, -2))
        x = F.dropout(x, self.config.drop, self.training)
        for block in self.blocks:
            x = block(x, memory)
        logits: Tensor = self.head(self.norm(x))
        return logits

    @torch.inference_mode()
    def sample(self, grid: tuple[int, ...], seed: int, top: Tensor | None = None) -> Tensor:
        """Draw tokens one after the other.

        Parameters
        ----------
        grid : tuple of int
            Tokens along each axis, at most the window.
        seed : int
            The same seed draws the same tokens, on one machine.
        top : Tensor, shape (B, y / 2, x / 2), int64, optional
            For a conditional prior.

        Returns
        -------
        Tensor, shape (B, \\*grid), int64
            B is 1 without `top`.
        """
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.zeros(1 if top is None else len(top), math.prod(grid), dtype=torch.int64)
        for i in range(tokens.shape[1]):
            logits = self(tokens.reshape(-1, *grid), top)[:, i]
            tokens[:, i] = torch.multinomial(F.softmax(logits, 1), 1, generator=generator)[:, 0]
        return tokens.reshape(-1, *grid)

    def _place(self, grid: tuple[int, ...], step: int) -> Tensor:
        """Embedding of every `step`-th position, ``(n, C)``."""
        out: Tensor = torch.zeros(())
        for axis, (n, embedding) in enumerate(zip(grid, self.places, strict=True)):
            shape = [1] * len(grid) + [-1]
            shape[axis] = n
            out = out + embedding(torch.arange(0, step * n, step)).reshape(shape)
        return out.flatten(0, -2)


class Block(nn.Module):
    """Attention to earlier tokens, to the top, and a two-layer network; each behind a norm, each added."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, self.heads, self.drop = config.width, config.heads, config.drop
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.own = nn.Linear(width, 3 * width)
        self.own_out = nn.Linear(width, width)
        if config.conditional:
            self.ask, self.offer = nn.Linear(width, width), nn.Linear(width, 2 * width)
            self.cross_out = nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, memory: Tensor | None) -> Tensor:
        """Tokens ``(B, n, C)`` and the top's ``(B, m, C)`` to tokens."""
        x = x + self._drop(self.own_out(self._attend(*self.own(self.norms[0](x)).chunk(3, -1), causal=True)))
        if memory is not None:
            query = self.ask(self.norms[1](x))
            x = x + self._drop(self.cross_out(self._attend(query, *self.offer(memory).chunk(2, -1), causal=False)))
        return x + self._drop(self.narrow(F.gelu(self.wide(self.norms[2](x)))))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
        q, k, v = (t.reshape(*t.shape[:2], self.heads, -1).transpose(1, 2) for t in (query, key, value))
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.drop, self.training)
