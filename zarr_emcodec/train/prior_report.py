"""What priors save: code lengths of held-out tokens beside their order-0 entropy, as plain data for JSON.

Lengths are in bits a token. The two kinds of prior are compared on the same windows.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from zarr_emcodec.entropy.coder import encode_many
from zarr_emcodec.entropy.tables import Tables
from zarr_emcodec.train.arch.prior import ParallelPrior
from zarr_emcodec.train.arch.prior_ar import TokenTransformer
from zarr_emcodec.train.prior_ar_fit import split_batch
from zarr_emcodec.train.prior_fit import contexts
from zarr_emcodec.train.tokens import CODES, Batch, TokenData, batches

_TOP = 5


class _Sums:
    """Running sums of one group of tokens."""

    def __init__(self) -> None:
        self.n = 0
        self.nats = self.right = self.among = self.entropy = 0.0

    def add(self, logits: Tensor, tokens: Tensor) -> None:
        """Predictions ``(n, K)`` and the tokens ``(n,)`` that came."""
        log_share = F.log_softmax(logits, 1)
        best = logits.topk(_TOP, 1).indices == tokens[:, None]
        self.n += len(tokens)
        self.nats -= float(log_share.gather(1, tokens[:, None]).sum())
        self.right += float(best[:, 0].sum())
        self.among += float(best.sum())
        self.entropy -= float((log_share.exp() * log_share).sum())

    def figures(self) -> dict[str, float]:
        """Means over the tokens."""
        bits = self.n * math.log(2)
        return {
            "soft_bits": self.nats / bits,
            "entropy_bits": self.entropy / bits,  # what the prediction expects; near soft_bits where it knows itself
            "accuracy": self.right / self.n,
            f"top{_TOP}": self.among / self.n,
        }


def order0(data: TokenData, level: str) -> dict[str, float]:
    """Entropy of the held-out tokens' own histogram, and their code length under that of the training tokens.

    Where places in a cell have codebooks of their own, they have histograms of their own.
    """
    lattice = data.per_cell(level) if level == "top" else (1,) * data.ndim
    own = coded = n = 0.0
    for place in np.ndindex(*lattice):
        every = tuple(slice(p, None, m) for p, m in zip(place, lattice, strict=True))
        train, held_out = (
            np.bincount(np.concatenate([grid[every].ravel() for grid in data.grids[split][level]]), minlength=CODES)
            for split in ("train", "held_out")
        )
        share, size = held_out / held_out.sum(), held_out.sum()
        own -= float(size * (share[share > 0] * np.log2(share[share > 0])).sum())
        coded -= float((held_out * np.log2((train + 1) / (train.sum() + CODES))).sum())
        n += float(size)
    return _rounded({"order0_own_bits": own / n, "order0_train_bits": coded / n})


@torch.inference_mode()
def parallel_figures(data: TokenData, level: str, model: ParallelPrior, tables: Tables) -> dict[str, Any]:
    """A finished parallel prior on the held-out grids.

    Returns
    -------
    dict
        ``order0_*`` of `order0`; ``soft_bits`` of the prediction; ``chosen_bits`` of the tables chosen, ``coded_bits``
        as the entropy coder writes them (one stream for each group of all grids); ``accuracy`` and ``top5`` of the
        prediction, ``chosen_accuracy`` of the tables' likeliest tokens; the same by group under ``groups``.
    """
    sums: dict[int, _Sums] = defaultdict(_Sums)
    symbols: dict[int, list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = defaultdict(list)
    for cells in contexts(model, level, batches(data, "held_out")):
        sums[cells.group].add(model.predict(cells.context, cells.group), cells.tokens)
        symbols[cells.group].append((cells.tokens.numpy(), 1 + cells.table(model).numpy()))
    likeliest = tables.freqs[:, :CODES].argmax(1)
    groups: list[dict[str, Any]] = []
    whole: dict[str, float] = defaultdict(float)
    for group in sorted(sums):
        tokens, index = (np.concatenate(parts) for parts in zip(*symbols[group], strict=True))
        stream = encode_many([(tokens.astype(np.int32), index.astype(np.uint16))], tables)[0]
        figures = {
            **sums[group].figures(),
            "chosen_bits": float(tables.cost_bits[index, tokens].mean(dtype=np.float64)),
            "coded_bits": 8 * len(stream) / len(tokens),
            "chosen_accuracy": float((likeliest[index] == tokens).mean()),
        }
        for key, value in figures.items():
            whole[key] += value * len(tokens)
        groups.append({"position": list(model.config.groups[group]), "n": len(tokens), **_rounded(figures)})
    n = sum(s.n for s in sums.values())
    return {"n": n, **order0(data, level), **_rounded({k: v / n for k, v in whole.items()}), "groups": groups}


@torch.inference_mode()
def transformer_figures(data: TokenData, model: TokenTransformer) -> dict[str, Any]:
    """An autoregressive prior on the held-out grids, cut into its windows."""
    model.eval()
    sums = _Sums()
    for batch in _windows(data, model):
        tokens, top = split_batch(data, batch)
        sums.add(model(tokens, top).flatten(0, 1), tokens.flatten())
    return {"n": sums.n, **order0(data, data.levels[-1]), **_rounded(sums.figures())}


@torch.inference_mode()
def compare(data: TokenData, parallel: ParallelPrior, transformer: TokenTransformer) -> dict[str, Any]:
    """Both priors of the finest level on the same windows; ``gap_bits`` is what the parallel one's prediction loses."""
    sums = _Sums()
    for cells in contexts(parallel, data.levels[-1], _windows(data, transformer)):
        sums.add(parallel.predict(cells.context, cells.group), cells.tokens)
    one, other = _rounded(sums.figures()), transformer_figures(data, transformer)
    gap = one["soft_bits"] - other["soft_bits"]
    return {"parallel": one, "autoregressive": other, "gap_bits": round(gap, 4)}


def _windows(data: TokenData, model: TokenTransformer) -> Iterable[Batch]:
    edge = model.config.window[0] // data.per_cell(data.levels[-1])[0]
    return batches(data, "held_out", edge=edge, n_cells=16 * edge**data.ndim)


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {key: round(value, 4) for key, value in figures.items()}
