"""``python -m zarr_emcodec.train.field_start --data FOLDER --checkpoint FILE``: learn what fits of fields start from.

Volumes in, a checkpoint out; `export_inr --starts` puts it into a model directory. One set of weights for each count of
axes and layers serves all widths: a narrow network has the first units of a wide one. What begins as random draws moves
towards where fits of EM end. On 900 fits that gained nothing over the draws, to which storing differences pays all the
same (`benchmarks/inr_starts.py`): so the shipped starts are those of ``--minutes 0``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zarr_emcodec.fitting import Architecture, Start, siren
from zarr_emcodec.fitting.adam import Adam
from zarr_emcodec.fitting.start import unit_scales
from zarr_emcodec.train.data import Source
from zarr_emcodec.train.field_tasks import FieldTask, FieldTasks, fit_task
from zarr_emcodec.train.recipes import standard_sources

_RATE, _RATED_WIDTH = 5e-3, 80.0  # of inner fits, as the codec's
_CHECKS = (16, 40)  # widths that are looked at on held-out crops


@dataclass(frozen=True)
class StartConfig:
    """How starts are learnt (Reptile: Nichol, Achiam and Schulman 2018)."""

    minutes: float = 25.0  # over all runs of a checkpoint
    kinds: tuple[tuple[int, int], ...] = ((3, 4), (2, 4), (3, 3), (2, 3))  # axes, layers: what budgets lead to
    width: int = 96  # of the widest network
    least: int = 12  # units; narrower networks have fewer layers
    steps: int = 50  # of an inner fit: the first steps are those that a start can save
    rows: int = 512  # voxels of an inner step; an outer step averages over fits anyway
    rate: float = 0.04  # of the way to a fit's end that the start moves, at first; 0.5 lost 10 dB in a minute
    last_rate: float = 0.004
    seed: int = 0


class StartTrainer:
    """Starts on their way: from random weights, by small moves towards where fits end.

    Parameters
    ----------
    config : StartConfig
    sources : sequence of Source
    checkpoint : Path
        Resumed from when it exists.
    """

    def __init__(self, config: StartConfig, sources: list[Source], checkpoint: Path) -> None:
        self.config, self.checkpoint = config, checkpoint
        self.n_fits, self.elapsed_s = 0, 0.0
        generator = torch.Generator().manual_seed(config.seed)
        self.tensors = {
            f"{axes}_{layers}": random_units(Architecture(axes, config.width, layers), generator)
            for axes, layers in config.kinds
        }
        if checkpoint.exists():
            saved = torch.load(checkpoint, weights_only=True)
            self.n_fits, self.elapsed_s = saved["n_fits"], saved["elapsed_s"]
            self.tensors = saved["tensors"]
        # a resumed run must not draw the crops of its first minutes again
        self.tasks = FieldTasks(sources, config.seed + self.n_fits)
        held_out = FieldTasks(sources, 0, held_out=True)
        self.checks = {kind: [held_out.draw(kind[0], width, kind[1]) for width in _CHECKS] for kind in config.kinds}

    def run(self, every_s: float = 60.0) -> None:
        """Learn until the budget is used up; tell, and save, every so often."""
        began, told = time.monotonic() - self.elapsed_s, -math.inf
        while self.elapsed_s < 60 * self.config.minutes:
            share = self.elapsed_s / (60 * self.config.minutes)
            if self.elapsed_s - told >= every_s:
                told = self.elapsed_s
                self.tell()
            self.advance(share)
            self.elapsed_s = time.monotonic() - began
        self.tell()

    def advance(self, share: float) -> None:
        """One inner fit, and the move that follows from it."""
        config = self.config
        kind = config.kinds[self.n_fits % len(config.kinds)]
        rng = self.tasks.random
        width = round(math.exp(rng.uniform(math.log(config.least), math.log(config.width))))
        task = self.tasks.draw(kind[0], width, kind[1])
        before = self.start(kind).weights(task.architecture, task.extents)
        after = self._fitted(task, config.steps, before, seed=config.seed + self.n_fits)
        rate = config.rate + (config.last_rate - config.rate) * share
        scales = unit_scales(task.architecture, task.extents)
        for tensor, old, new, scale in zip(self.tensors[_name(kind)], before, after, scales, strict=True):
            moved = (new[0].numpy().reshape(old.shape) - old) / scale
            part = tensor[tuple(map(slice, old.shape))]
            part += rate * torch.from_numpy(moved.astype(np.float32))
        self.n_fits += 1

    def start(self, kind: tuple[int, int]) -> Start:
        """What has been learnt so far."""
        tensors = tuple(tensor.numpy() for tensor in self.tensors[_name(kind)])
        return Start(Architecture(kind[0], self.config.width, kind[1]), tensors)

    def tell(self) -> None:
        """Save; print the PSNR of short fits of held-out crops, from the start and from random weights."""
        found: dict[str, list[float]] = {}
        for kind, tasks in self.checks.items():
            for task in tasks:
                mine = self._fitted(task, self.config.steps, self.start(kind).weights(task.architecture, task.extents))
                usual = self._fitted(task, self.config.steps, None)
                found[f"{_name(kind)}_{task.architecture.width}"] = [round(task.psnr(w), 2) for w in (mine, usual)]
        part = self.checkpoint.with_suffix(".part")
        config = json.dumps(asdict(self.config))
        torch.save(
            {"config": config, "tensors": self.tensors, "n_fits": self.n_fits, "elapsed_s": self.elapsed_s}, part
        )
        part.replace(self.checkpoint)
        print(json.dumps({"fits": self.n_fits, "minutes": round(self.elapsed_s / 60, 1), "psnr": found}), flush=True)

    def _fitted(
        self, task: FieldTask, steps: int, before: list[NDArray[np.float32]] | None, seed: int = 0
    ) -> list[Tensor]:
        problem = task.problem(self.config.rows, seed)
        if before is None:
            first = siren.initial(task.architecture, task.extents, problem.random)
        else:
            first = siren.before_frequency(before)
        return fit_task(problem, first, steps, AdamCosine(_RATE * min(1.0, _RATED_WIDTH / task.architecture.width)))


class AdamCosine:
    """The codec's optimiser as an update of `fit_task`."""

    def __init__(self, rate: float, last: float = 0.01) -> None:
        self.rate, self.last = rate, last
        self._adam: Adam | None = None

    def __call__(self, free: Sequence[Tensor], gradients: Sequence[Tensor], losses: Tensor, share: float) -> None:
        """Move tensors in place."""
        self._adam = self._adam or Adam(free)
        self._adam.step(gradients, self.rate * (self.last + (1 - self.last) * (1 + math.cos(math.pi * share)) / 2))


def random_units(architecture: Architecture, generator: torch.Generator) -> list[Tensor]:
    """What `siren.initial` draws, in units of a start: shapes (in, out) and (out,)."""
    out = []
    for i, shape in enumerate(architecture.shapes):
        bound = 1.0
        if i % 2:  # phases spread over a period; no bias at the end
            bound = 0.0 if i == 2 * architecture.layers - 1 else math.pi
        elif i == 2 * architecture.layers - 2:
            bound = 1 / siren.FREQUENCY
        out.append((2 * torch.rand(shape, generator=generator) - 1) * bound)
    return out


def _name(kind: tuple[int, int]) -> str:
    return f"{kind[0]}_{kind[1]}"


def load_starts(checkpoint: Path) -> list[Start]:
    """What a checkpoint holds."""
    saved = torch.load(checkpoint, weights_only=True)
    width = json.loads(saved["config"])["width"]
    starts = []
    for name, tensors in sorted(saved["tensors"].items()):
        axes, layers = map(int, name.split("_"))
        starts.append(Start(Architecture(axes, width, layers), tuple(tensor.numpy() for tensor in tensors)))
    return starts


def describe_starts(checkpoint: Path) -> str:
    """What a card says of them."""
    saved = torch.load(checkpoint, weights_only=True)
    n_fits, seed = saved["n_fits"], json.loads(saved["config"])["seed"]
    return f"starts from {n_fits} fits of the training volumes" if n_fits else f"starts are random draws, seed {seed}"


def main() -> None:
    """Parse and learn; a line of JSON every minute."""
    parser = argparse.ArgumentParser(prog="python -m zarr_emcodec.train.field_start", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the volumes of the shipped models")
    parser.add_argument("--checkpoint", type=Path, required=True, help="resumed from when present")
    parser.add_argument("--minutes", type=float, default=StartConfig.minutes, help="over all runs; 0: random draws")
    parser.add_argument("--width", type=int, default=StartConfig.width)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = StartConfig(minutes=args.minutes, width=args.width, seed=args.seed)
    StartTrainer(config, standard_sources(args.data), args.checkpoint).run()


if __name__ == "__main__":
    main()
