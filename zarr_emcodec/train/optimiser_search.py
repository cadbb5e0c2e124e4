"""``python -m zarr_emcodec.train.optimiser_search --data FOLDER --checkpoint FILE``: train the learned optimiser.

Volumes in, a checkpoint out. Parameters are moved by persistent evolution strategies (Vicol, Metz and Sohl-Dickstein
2021): pairs of optimisers, one a little this way and one that way, each fit a field of their own in step; what their
losses differ by over a part of the fit, times all that has moved them since its beginning, is the gradient of the
fit's end, without the bias of short horizons and without derivatives of fits.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from zarr_emcodec.fitting import siren
from zarr_emcodec.fitting.learned import N_PARAMETERS, LearnedUpdate, first_parameters
from zarr_emcodec.train.data import Source
from zarr_emcodec.train.field_start import AdamCosine
from zarr_emcodec.train.field_tasks import FieldTask, FieldTasks, fit_task
from zarr_emcodec.train.recipes import standard_sources

_JUDGED = 1024  # voxels
_CHECK_WIDTH, _CHECK_STEPS, _CHECK_CROPS = 20, 200, 4


@dataclass(frozen=True)
class SearchConfig:
    """How the optimiser is trained."""

    minutes: float = 25.0  # over all runs of a checkpoint
    pairs: int = 8  # optimisers at once, two of each
    widths: tuple[int, int] = (12, 24)  # of the fields: what a budget of a kilobyte holds, so that steps cost nothing
    steps: tuple[int, int] = (50, 400)  # of a fit, log-uniform
    window: int = 25  # steps between two moves of the parameters
    rows: int = 256  # voxels of a step
    spread: float = 0.03  # of a perturbation
    rate: float = 3e-3  # of Adam over the parameters, falling to a tenth
    field_rate: float = 1e-2  # of Adam inside: what tuning finds best for such fits
    seed: int = 0


class Search:
    """The optimiser on its way.

    Parameters
    ----------
    config : SearchConfig
    sources : sequence of Source
    checkpoint : Path
        Resumed from when it exists.
    """

    def __init__(self, config: SearchConfig, sources: list[Source], checkpoint: Path) -> None:
        self.config, self.checkpoint = config, checkpoint
        self.n_fits, self.elapsed_s = 0, 0.0
        generator = torch.Generator().manual_seed(config.seed)
        self.parameters = first_parameters(generator)
        self.mean, self.square, self.moves = torch.zeros(N_PARAMETERS), torch.zeros(N_PARAMETERS), 0
        if checkpoint.exists():
            saved = torch.load(checkpoint, weights_only=True)
            for name in ("parameters", "mean", "square", "moves", "n_fits", "elapsed_s"):
                setattr(self, name, saved[name])
        # a resumed run must not draw the crops of its first minutes again
        self.random = torch.Generator().manual_seed(config.seed + 1 + self.n_fits)
        self.tasks = FieldTasks(sources, config.seed + self.n_fits)
        self.check = FieldTasks(sources, 0, held_out=True).draw(3, _CHECK_WIDTH, n=_CHECK_CROPS)

    def run(self, every_s: float = 60.0) -> None:
        """Train until the budget is used up; tell, and save, every so often."""
        began, told = time.monotonic() - self.elapsed_s, -math.inf
        while (share := self.elapsed_s / (60 * self.config.minutes)) < 1:
            if self.elapsed_s - told >= every_s:
                told = self.elapsed_s
                self.tell()
            self.advance(share)
            self.elapsed_s = time.monotonic() - began
        self.tell()

    def advance(self, share: float) -> None:
        """Fits of one shape from beginning to end, and the moves that follow from each window."""
        config, rng = self.config, self.tasks.random
        low, high = map(math.log, config.steps)
        windows = max(1, round(math.exp(rng.uniform(low, high)) / config.window))
        width = int(rng.integers(config.widths[0], config.widths[1] + 1))
        task = self.tasks.draw(int(rng.integers(2, 4)), width, n=config.pairs)
        state = _Fits(task.repeated(2), config, self.n_fits)  # a pair fits the same crop
        before = state.judged()
        for window in range(windows):
            noise = torch.randn(config.pairs, N_PARAMETERS, generator=self.random) * config.spread
            noise = torch.stack([noise, -noise], 1).flatten(0, 1)  # (2 pairs, N)
            state.go(self.parameters + noise, noise, window * config.window, windows * config.window)
            after = state.judged()
            gained = (after - before).nan_to_num(3.0, 3.0, -3.0).clamp(-3, 3)
            self.move((gained[:, None] * state.drift).mean(0) / config.spread**2, share)
            before = after
        self.n_fits += 1

    def move(self, gradient: Tensor, share: float) -> None:
        """One step of Adam over the parameters."""
        self.moves += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.lerp_(gradient.square(), 0.01)
        rate = self.config.rate * (0.1 + 0.9 * (1 + math.cos(math.pi * min(share, 1.0))) / 2)
        size = rate / (1 - 0.9**self.moves)
        self.parameters = self.parameters - size * self.mean / ((self.square / (1 - 0.99**self.moves)).sqrt() + 1e-9)

    def tell(self) -> None:
        """Save; print the PSNR of fits of held-out crops, by this optimiser and by Adam."""
        found = []
        for update in (
            LearnedUpdate(self.parameters[None], self.config.field_rate),
            AdamCosine(self.config.field_rate),
        ):
            problem = self.check.problem(1024, 0)
            first = siren.initial(self.check.architecture, self.check.extents, problem.random)
            found.append(round(self.check.psnr(fit_task(problem, first, _CHECK_STEPS, update)), 2))
        names = ("parameters", "mean", "square", "moves", "n_fits", "elapsed_s")
        part = self.checkpoint.with_suffix(".part")
        torch.save({"config": json.dumps(asdict(self.config)), **{name: getattr(self, name) for name in names}}, part)
        part.replace(self.checkpoint)
        line = {"fits": self.n_fits, "moves": self.moves, "minutes": round(self.elapsed_s / 60, 1), "psnr": found}
        print(json.dumps(line), flush=True)


class _Fits:
    """The fits of one task on their way, and what has moved their optimisers so far."""

    def __init__(self, task: FieldTask, config: SearchConfig, seed: int) -> None:
        self.config = config
        self.problem = problem = task.problem(config.rows, seed)
        first = siren.initial(task.architecture, task.extents, problem.random)
        self.weights = [w.expand(problem.batch, -1, -1).clone().requires_grad_() for w in first]
        self.frequency = torch.full((problem.batch, 1, 1), siren.FREQUENCY, requires_grad=True)
        self.drift = torch.zeros(problem.batch, N_PARAMETERS)
        self._update: LearnedUpdate | None = None
        self._coords, self._values = problem.sample(_JUDGED)

    def go(self, parameters: Tensor, noise: Tensor, done: int, steps: int) -> None:
        """One window, each fit with its own parameters, which noise has moved."""
        self.drift += noise
        if self._update is None:
            self._update = LearnedUpdate(parameters, self.config.field_rate)
        else:
            self._update.take(parameters)
        free = [*self.weights, self.frequency]
        for step in range(done, done + self.config.window):
            losses = self.problem.losses(siren.effective(self.weights, self.frequency))
            self._update(free, torch.autograd.grad(losses.sum(), free), losses.detach(), step / steps)

    @torch.no_grad()
    def judged(self) -> Tensor:
        """Log errors (B,) on voxels that stay the same."""
        values = siren.forward(siren.effective(self.weights, self.frequency), self._coords)
        return (values - self._values).square().mean(1).log()


def load_optimiser(checkpoint: Path) -> Tensor:
    """The parameters (1, N_PARAMETERS) that a checkpoint holds."""
    parameters: Tensor = torch.load(checkpoint, weights_only=True)["parameters"]
    return parameters[None]


def main() -> None:
    """Parse and train; a line of JSON every minute."""
    parser = argparse.ArgumentParser(prog="python -m zarr_emcodec.train.optimiser_search", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the volumes of the shipped models")
    parser.add_argument("--checkpoint", type=Path, required=True, help="resumed from when present")
    parser.add_argument("--minutes", type=float, default=SearchConfig.minutes, help="over all runs of this checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = SearchConfig(minutes=args.minutes, seed=args.seed)
    Search(config, standard_sources(args.data), args.checkpoint).run()


if __name__ == "__main__":
    main()
