"""Fitting one parallel prior: a soft prediction of each token first, then the tables that stand for predictions.

Token windows go in; a `ParallelPrior` and its integer tables come out. The network learns to predict tokens. In the
end its predictions are clustered (Lloyd's algorithm with the Kullback-Leibler divergence, which is the price of coding
with the wrong table): the clusters' means become the tables, and the network's own logits say which one fits best.
Training the choice further, on expected code lengths, gained nothing: what is lost is that there are few tables.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from zarr_emcodec.entropy.tables import Tables
from zarr_emcodec.train.arch.prior import ParallelPrior, PriorConfig
from zarr_emcodec.train.tokens import CODES, Batch, TokenData, Windows, batches


@dataclass(frozen=True)
class FitConfig:
    """How a parallel prior is fitted; every field has its reason beside it."""

    window: int = 16  # cells; a chunk of 512 voxels has that many at a stride of 32
    tokens: int = 4096  # a step
    rate: float = 6e-3  # Adam; a third of it learns half as fast
    decay: float = 0.3  # of weights, decoupled; a volume has few tokens, and large priors learn them by heart
    drop: float = 0.1  # of context numbers
    warm_up: int = 100  # steps until the full learning rate
    seeds: int = 65536  # contexts that are clustered for each pool of tables
    strength: float = 3000.0  # tokens that a table's mean prediction is worth beside those counted
    precision: int = 14  # shares of a table add up to 2**14; 2**15 saves 0.0003 bits a token and doubles look-ups


class Cells(NamedTuple):
    """The tokens ``(n,)`` of a group and their contexts ``(n, C)``."""

    group: int
    context: Tensor
    tokens: Tensor

    def prediction(self, model: ParallelPrior) -> Tensor:
        """Probability of each token, ``(n, K)``."""
        return F.softmax(model.predict(self.context, self.group), 1)

    def table(self, model: ParallelPrior) -> Tensor:
        """Index of the table of the highest score, among the tables of all pools, ``(n,)``."""
        first = model.config.pool(self.group) * model.config.tables
        return first + model.scores(self.context, self.group).argmax(1)


def contexts(model: ParallelPrior, level: str, parts: Iterable[Batch]) -> Iterator[Cells]:
    """Every token of some windows, group by group."""
    for batch in parts:
        tokens = torch.from_numpy(batch[level])
        top = torch.from_numpy(batch["top"]) if level == "bottom" else None
        for group in model.config.occupied(tokens.shape[1:]):
            context = model.context(model.hide(tokens, group), group, top)
            yield Cells(group, context, model.at(tokens, group).flatten())


_NUMBERS = ("step", "pace", "bits", "best_bits")
Network = TypeVar("Network", bound=nn.Module)


CHECK_STEPS = 50
"""Steps between checks on held-out tokens."""
_SLOWER = 0.4  # the learning rate after a check that found no better network, times this
_SLOWEST = 0.02  # of the first learning rate: where there is nothing more to be had


class Fit(Generic[Network]):
    """A network on its way, what it learns from, and the best state so far; all that matters is in `state`.

    A volume has so few tokens that networks learn them by heart. Where a check finds the network no better, it goes
    back to the best one and on more slowly, until it is `done`.
    """

    def __init__(self, model: Network, optimiser: torch.optim.Optimizer, windows: Windows) -> None:
        self.model, self.optimiser, self.windows = model, optimiser, windows
        self.step = 0
        self.pace = 1.0
        self.bits = math.inf
        self.best_bits = math.inf
        self.best: dict[str, Tensor] = {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "best": self.best,
            "numbers": {name: getattr(self, name) for name in _NUMBERS},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`, with windows that were not drawn before."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.best = state["best"]
        for name in _NUMBERS:
            setattr(self, name, state["numbers"][name])
        self.windows.random = np.random.default_rng([self.step, int(self.windows.random.integers(1 << 32))])

    def train_step(self, share: float) -> float:
        """One step at a share of the time budget that is used up; the mean code length of the tokens, in bits."""
        raise NotImplementedError

    def validate(self) -> float:
        """Mean code length of held-out tokens, in bits."""
        raise NotImplementedError

    @property
    def done(self) -> bool:
        """Whether going on would gain nothing."""
        return self.pace < _SLOWEST

    def advance(self, share: float) -> float:
        """`train_step`, and a check where it is due."""
        bits = self.train_step(share)
        if self.step % CHECK_STEPS == 0:
            self.check()
        return bits

    def check(self) -> None:
        """Validate: remember the network if it is the best so far, else go back to that and on more slowly."""
        self.bits = self.validate()
        if self.bits < self.best_bits:
            self.best_bits, self.best = self.bits, copy.deepcopy(self.model.state_dict())
        else:
            self.pace *= _SLOWER
            self.take_best()

    def progress(self) -> dict[str, float]:
        """Steps taken, and the code length at the last check and at the best, in bits."""
        return {"step": self.step, "soft_bits": round(self.bits, 4), "best_bits": round(self.best_bits, 4)}

    def take_best(self) -> None:
        """Go back to the best network that a check saw."""
        if self.best:
            self.model.load_state_dict(self.best)


class ParallelFit(Fit[ParallelPrior]):
    """One level's parallel prior.

    Parameters
    ----------
    data : TokenData
    level : {"top", "bottom"}
    arch : PriorConfig
    config : FitConfig
    seed : int
        Of windows and clusters.
    """

    def __init__(self, data: TokenData, level: str, arch: PriorConfig, config: FitConfig, seed: int) -> None:
        self.data, self.level, self.config = data, level, config
        model = ParallelPrior(arch)
        model.start_from_codebooks(data.codebooks[level], data.codebooks["top"] if arch.conditional else None)
        for place, histogram in enumerate(_histograms(data, level, arch)):
            with torch.no_grad():  # starts at the order-0 entropy
                model.soft[place] *= 0.1
                model.soft_bias[place] = torch.from_numpy(np.log((histogram + 1) / (histogram.sum() + CODES)))
        plain = [p for name, p in model.named_parameters() if "bias" in name or name in ("embedding", "top")]
        chosen = {id(p) for p in plain}
        decayed = [p for p in model.parameters() if id(p) not in chosen]
        groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": config.decay}]
        optimiser = torch.optim.AdamW(groups, lr=config.rate, betas=(0.9, 0.98))
        super().__init__(model, optimiser, Windows(data, config.window, seed))
        self.n_cells = max(1, config.tokens // math.prod(data.per_cell(level)))

    def train_step(self, share: float) -> float:
        """One step at a share of the time budget that is used up; the mean code length of the tokens, in bits."""
        rate = 0.5 * (1 + math.cos(math.pi * min(share, 1.0))) + 0.01
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.rate * self.pace * rate * min(1.0, (self.step + 1) / self.config.warm_up)
        loss, n = torch.zeros(()), 0
        for cells in contexts(self.model, self.level, [self.windows.batch(self.n_cells)]):
            logits = self.model.predict(F.dropout(cells.context, self.config.drop), cells.group)
            loss = loss + F.cross_entropy(logits, cells.tokens, reduction="sum")
            n += len(cells.tokens)
        loss = loss / n
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.step += 1
        return float(loss.detach()) / math.log(2)

    @torch.inference_mode()
    def validate(self) -> float:
        """Mean code length of the soft prediction of held-out tokens, in bits."""
        nats, n = 0.0, 0
        for cells in contexts(self.model, self.level, batches(self.data, "held_out")):
            logits = self.model.predict(cells.context, cells.group)
            nats += float(F.cross_entropy(logits, cells.tokens, reduction="sum"))
            n += len(cells.tokens)
        return nats / n / math.log(2)

    @torch.no_grad()
    def finish(self) -> Tables:
        """Take the best network, make tables of its predictions and fill in how often tokens came up.

        Returns
        -------
        Tables
            Those of all pools, one pool after the other, behind the skip table.
        """
        self.take_best()
        model = self.model
        pools = range(model.config.n_pools)
        drawn: dict[int, list[Tensor]] = {pool: [] for pool in pools}
        while sum(map(len, drawn[0])) < self.config.seeds:
            for cells in contexts(model, self.level, [self.windows.batch(self.n_cells)]):
                drawn[model.config.pool(cells.group)].append(cells.prediction(model))
        for pool, parts in drawn.items():
            model.choose_among(pool, cluster(torch.cat(parts), model.config.tables, self.windows.random))
        counts, shares = torch.zeros(2, len(pools) * model.config.tables, CODES, dtype=torch.float64)
        for cells in contexts(model, self.level, batches(self.data, "train")):
            table = cells.table(model)
            counts.view(-1).index_add_(0, table * CODES + cells.tokens, torch.ones(len(table), dtype=torch.float64))
            shares.index_add_(0, table, cells.prediction(model).double())
        shares += 1e-9  # tables that nobody chose become uniform
        shares *= self.config.strength / shares.sum(1, keepdim=True)
        return freeze((counts + shares).numpy(), self.config.precision)


def _histograms(data: TokenData, level: str, arch: PriorConfig) -> Iterator[NDArray[np.float64]]:
    """How often each token comes up in the training grids, ``(K,)`` for each place of a cell."""
    for place in arch.places:
        every = tuple(slice(p, None, n) for p, n in zip(place, arch.cell, strict=True))
        grids = data.grids["train"][level]
        yield np.bincount(np.concatenate([grid[every].ravel() for grid in grids]), minlength=CODES).astype(np.float64)


def cluster(share: Tensor, n: int, random: np.random.Generator, *, rounds: int = 15) -> Tensor:
    """Means ``(n, K)`` of `n` clusters of distributions ``(N, K)`` under the Kullback-Leibler divergence."""
    mean = share[torch.from_numpy(random.choice(len(share), n, replace=len(share) < n))].clone()
    for _ in range(rounds):
        member = (share @ mean.log().T).argmax(1)
        count = torch.bincount(member, minlength=n)
        mean = torch.zeros_like(mean).index_add_(0, member, share) / count.clamp(min=1)[:, None]
        empty = torch.nonzero(count == 0).flatten()
        mean[empty] = share[torch.from_numpy(random.choice(len(share), len(empty)))]
    return mean.clamp(min=1e-8)


def freeze(weights: NDArray[np.float64], precision: int) -> Tables:
    """Integer tables of positive weights ``(n, K)``, behind the skip table; an escape of share 1 ends each.

    Each share is at least 1; what rounding leaves over goes to the largest remainders, ties to the smaller token.
    """
    n_tables, codes = weights.shape
    free = (1 << precision) - 1 - codes  # beside the escape and 1 for each token
    exact = weights / weights.sum(1, keepdims=True) * free
    freqs = np.floor(exact).astype(np.int64)
    rank = np.argsort(np.argsort(freqs - exact, axis=1, kind="stable"), axis=1)
    freqs += 1 + (rank < free - freqs.sum(1, keepdims=True))
    rows = np.zeros((1 + n_tables, codes + 1), np.uint16)
    rows[1:, :codes], rows[1:, codes] = freqs, 1
    sizes = np.full(1 + n_tables, codes + 1, np.int16)
    sizes[0] = 0
    return Tables(rows, np.zeros(1 + n_tables, np.int16), sizes, precision)
