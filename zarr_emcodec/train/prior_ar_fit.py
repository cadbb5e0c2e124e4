"""Fitting the autoregressive prior on windows of the finest level, each token given those before it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from zarr_emcodec.errors import SpecError
from zarr_emcodec.train.arch.prior_ar import TokenTransformer, TransformerConfig
from zarr_emcodec.train.prior_fit import Fit
from zarr_emcodec.train.tokens import Batch, TokenData, Windows, batches

WINDOW = {2: 16, 3: 6}
"""Tokens along each axis of a window, by the number of axes: some 250 steps of a sequence."""
_RATE, _DECAY, _WARM_UP, _CLIP = 2e-3, 0.05, 100, 1.0
_SEQUENCES = 8  # a step


def transformer_config(data: TokenData, **changes: int) -> TransformerConfig:
    """Shape of an autoregressive prior for these tokens.

    Raises
    ------
    SpecError
        Where places in a cell have codebooks of their own: tokens would not mean the same along a row.
    """
    if max(data.lattice) > 1:
        raise SpecError(f"autoregressive prior: lattice {data.lattice}, takes one codebook. Use kind 'parallel'.")
    conditional = data.levels[-1] == "bottom"
    return TransformerConfig(window=(WINDOW[data.ndim],) * data.ndim, conditional=conditional, **changes)


def split_batch(data: TokenData, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Tokens of the finest level of some windows, and those of the top where that is another."""
    tokens = torch.from_numpy(batch[data.levels[-1]])
    return tokens, torch.from_numpy(batch["top"]) if len(data.levels) > 1 else None


class TransformerFit(Fit[TokenTransformer]):
    """An autoregressive prior of the finest level.

    Parameters
    ----------
    data : TokenData
    arch : TransformerConfig
    seed : int
        Of windows.
    """

    def __init__(self, data: TokenData, arch: TransformerConfig, seed: int) -> None:
        self.data = data
        model = TokenTransformer(arch)
        top = data.codebooks["top"] if arch.conditional else None
        model.start_from_codebooks(data.codebooks[data.levels[-1]], top)
        optimiser = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.95), weight_decay=_DECAY)
        self.edge = arch.window[0] // data.per_cell(data.levels[-1])[0]
        super().__init__(model, optimiser, Windows(data, self.edge, seed))

    def train_step(self, share: float) -> float:
        """One step at a share of the time budget that is used up; the mean code length in bits."""
        rate = 0.5 * (1 + math.cos(math.pi * min(share, 1.0))) + 0.01
        for group in self.optimiser.param_groups:
            group["lr"] = _RATE * self.pace * rate * min(1.0, (self.step + 1) / _WARM_UP)
        self.model.train()
        tokens, top = split_batch(self.data, self.windows.batch(_SEQUENCES * self.edge**self.data.ndim))
        loss = F.cross_entropy(self.model(tokens, top).flatten(0, 1), tokens.flatten())
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
        self.optimiser.step()
        self.step += 1
        return float(loss.detach()) / math.log(2)

    @torch.inference_mode()
    def validate(self, n_windows: int = 64) -> float:
        """Mean code length on some held-out windows, in bits."""
        self.model.eval()
        nats, n, seen = 0.0, 0, 0
        for batch in batches(self.data, "held_out", edge=self.edge, n_cells=16 * self.edge**self.data.ndim):
            tokens, top = split_batch(self.data, batch)
            nats += float(F.cross_entropy(self.model(tokens, top).flatten(0, 1), tokens.flatten(), reduction="sum"))
            n, seen = n + tokens.numel(), seen + len(tokens)
            if seen >= n_windows:
                break
        return nats / n / math.log(2)
