"""Fields fitted to chunks: voxels in, weights and their quantiser steps out. The only file here that trains.

All chunks of a call have one shape and one architecture and are fitted on the same random voxels, each as if it were
alone: together on a GPU, one after the other on the CPU, where a batch gains nothing and its kernels round by place.
What a step size costs in bytes is the caller's to know: `choose` is asked for the steps.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zarr_emcodec.fitting import siren
from zarr_emcodec.fitting.adam import Adam
from zarr_emcodec.fitting.architecture import Architecture
from zarr_emcodec.fitting.effort import Cost, fit_macs, rows_per_step
from zarr_emcodec.fitting.learned import shipped_update
from zarr_emcodec.fitting.problem import Problem
from zarr_emcodec.fitting.watch import present
from zarr_emcodec.runtime.torch_backend import full_precision, limited_threads

Choose = Callable[[int, list[NDArray[np.float32]], NDArray[np.float64]], NDArray[np.float32]]
"""A chunk's number, its effective weights of each tensor and their sensitivities (tensors,), to quantiser steps."""

_RATE, _RATED_WIDTH = 5e-3, 80  # wider networks take smaller steps: 168 units ended 3 dB lower at this rate
_LAST_RATE = 0.01  # of the first, where the cosine ends
_ROUNDING_FROM = 0.7  # share of the fit from which weights are rounded
_STEP_CHOICES = 4  # the spread of weights goes on changing once they are rounded
_CALIBRATION = 4  # steps, the first of which is not timed
_LONG_S = 60.0
_SENSITIVITY_ROWS = 2048

_log = logging.getLogger(__name__)
_announced: set[tuple[Architecture, int, int]] = set()


@dataclass(frozen=True)
class FitSettings:
    """How to fit.

    Parameters
    ----------
    steps : int
        Of the optimiser, at most.
    seed : int
        Of initial weights and of the voxels of each step.
    time_limit : float, seconds, optional
        For each chunk. The schedule is compressed so that it ends in time; results then depend on the machine.
    threads : int
        Of one operation.
    provider : {"auto", "cpu", "cuda"}
        "auto" takes CUDA where torch finds a device.
    """

    steps: int
    seed: int = 0
    time_limit: float | None = None
    threads: int = 1
    provider: str = "auto"


@dataclass(frozen=True)
class Fitted:
    """Networks of a batch.

    Attributes
    ----------
    weights : list of ndarray, float32
        Effective weights of each tensor, (B, in, out) or (B, out).
    steps : ndarray, shape (B, tensors), float32
        Quantiser steps that they were fitted for.
    frequency : ndarray, shape (B,)
        Where the learnable frequency ended.
    n_steps : ndarray, shape (B,)
        Steps of the optimiser that were taken.
    """

    weights: list[NDArray[np.float32]]
    steps: NDArray[np.float32]
    frequency: NDArray[np.float32]
    n_steps: NDArray[np.intp]


def fit_fields(
    targets: NDArray[np.float32],
    coords: Sequence[NDArray[np.float32]],
    architecture: Architecture,
    settings: FitSettings,
    choose: Choose,
    start: Sequence[NDArray[np.float32]] | None = None,
) -> Fitted:
    """Fit one field to each chunk of a batch.

    Parameters
    ----------
    targets : ndarray, shape (B, \\*extents), float32
        Voxels of the chunks, standardised.
    coords : sequence of ndarray, float32
        Coordinates along each axis of `extents`.
    architecture : Architecture
        Of every network; as many axes as `coords`.
    settings : FitSettings
    choose : callable
        Gives a chunk's quantiser steps once the fit has settled; weights are rounded to them from then on. Where there
        is a start, weights are handed over, and rounded, as differences to it.
    start : sequence of ndarray, float32, optional
        Effective weights (in, out) and (out,) that every fit begins with, and those that differences are taken to;
        random ones, and none, when not given.

    Returns
    -------
    Fitted

    Notes
    -----
    SIREN (Sitzmann et al. 2020) with one learnable frequency for the whole network (Dai et al. 2024, INIF); Adam with a
    cosine schedule, bent by what was learnt from such fits where they are short and narrow (`learned`); rounding lets
    gradients pass straight through.
    """
    cuda = settings.provider != "cpu" and torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    groups = [range(len(targets))] if cuda else [range(i, i + 1) for i in range(len(targets))]
    with limited_threads(torch, settings.threads), full_precision(torch, device):
        done = [_Fit(targets, coords, architecture, settings, choose, device, group, start).run() for group in groups]
    return Fitted(
        weights=[np.concatenate(parts) for parts in zip(*(fitted.weights for fitted in done), strict=True)],
        steps=np.concatenate([fitted.steps for fitted in done]),
        frequency=np.concatenate([fitted.frequency for fitted in done]),
        n_steps=np.concatenate([fitted.n_steps for fitted in done]),
    )


class _Fit:
    """Chunks that are fitted together, on their way."""

    def __init__(
        self,
        targets: NDArray[np.float32],
        coords: Sequence[NDArray[np.float32]],
        architecture: Architecture,
        settings: FitSettings,
        choose: Choose,
        device: str,
        group: range,
        start: Sequence[NDArray[np.float32]] | None,
    ) -> None:
        targets = targets[group.start : group.stop]
        self.group = group
        self.settings, self.choose, self.architecture = settings, choose, architecture
        self.watchers = present()
        self.n_voxels = targets.size
        self.batch = len(targets)
        self.rows = rows_per_step(targets[0].size)
        self.problem = Problem(targets, coords, self.rows, settings.seed, device)
        self.rate = _RATE * min(1.0, _RATED_WIDTH / architecture.width)
        if start is None:
            first = siren.initial(architecture, [len(axis) for axis in coords], self.problem.random)
            self.origin = None
        else:
            first = siren.before_frequency(start)
            self.origin = [torch.from_numpy(w.reshape(-1, w.shape[-1])).to(device) for w in start]
        weights = [w.to(device).expand(self.batch, -1, -1).clone() for w in first]
        self.frequency = torch.full((self.batch, 1, 1), siren.FREQUENCY, device=device)
        self.weights = weights
        self.free = [*weights, self.frequency]
        for tensor in self.free:
            tensor.requires_grad_(True)
        self.learned = shipped_update(architecture, settings.steps, device)
        self.grid: list[Tensor] | None = None
        self.steps = np.zeros((self.batch, len(weights)), np.float32)

    def run(self) -> Fitted:
        adam = Adam(self.free)
        began = now = time.perf_counter()
        done, choices, share = 0, 0, 0.0
        while share < 1:
            if share >= _ROUNDING_FROM + choices * (1 - _ROUNDING_FROM) / _STEP_CHOICES:
                self._choose_steps()
                choices += 1
            losses, gradients = self._gradients()
            if self.learned is not None:
                self.learned(self.free, gradients, losses, share)
            else:
                rate = _LAST_RATE + (1 - _LAST_RATE) * (1 + math.cos(math.pi * share)) / 2
                adam.step(gradients, self.rate * rate)
            done += 1
            earlier, now = now, self._clock(done)
            before, share = share, self._share(done, now - began, now - earlier)
            for watcher in self.watchers:
                watcher(self.n_voxels * (min(share, 1.0) - before))
            if done == 1:
                warm = now
            elif done == _CALIBRATION:
                self._announce((now - warm) / (_CALIBRATION - 1))
        if not choices:
            self._choose_steps()
        with torch.no_grad():
            weights = [w.cpu().numpy() for w in self._moved(siren.effective(self.weights, self.frequency))]
            frequency = self.frequency.reshape(-1).cpu().numpy()
        weights = [w[:, 0] if i % 2 else w for i, w in enumerate(weights)]
        return Fitted(weights, self.steps, frequency, np.full(self.batch, done))

    def _clock(self, done: int) -> float:
        """The time, once the steps so far are truly done where it matters: a GPU is handed them ahead."""
        if self.problem.targets.is_cuda and (self.settings.time_limit is not None or done <= _CALIBRATION):
            torch.cuda.synchronize()
        return time.perf_counter()

    def _share(self, done: int, elapsed: float, step_s: float) -> float:
        """How much of the fit is behind, by steps or by time, whichever is further on; all where no step has time."""
        share = done / self.settings.steps
        if self.settings.time_limit is None:
            return share
        limit = self.settings.time_limit * self.batch
        return 1.0 if elapsed + step_s > limit else max(share, elapsed / limit)

    def _announce(self, step_s: float) -> None:
        steps = self.settings.steps
        seconds = steps * step_s
        if self.settings.time_limit is not None:
            seconds = min(seconds, self.settings.time_limit * self.batch)
        if seconds >= _LONG_S and (kind := (self.architecture, steps, self.rows)) not in _announced:
            _announced.add(kind)  # an array's chunks are alike: once is enough
            macs = fit_macs(self.architecture, self.batch, steps, self.rows)
            # a warning, so that whoever waits is told without having set anything up
            _log.warning("%s", Cost(self.batch, steps, self.rows, macs, seconds))

    def _moved(self, weights: list[Tensor]) -> list[Tensor]:
        """Effective weights as they are to be stored: less the start, where there is one."""
        return weights if self.origin is None else [w - o for w, o in zip(weights, self.origin, strict=True)]

    def _gradients(self) -> tuple[Tensor, Sequence[Tensor]]:
        """Losses (B,) of the voxels of one step, and the gradients of their sum."""
        weights = siren.effective(self.weights, self.frequency)
        if self.grid is not None:
            moved = self._moved(weights)
            weights = [w + _to_grid(m, step) for w, m, step in zip(weights, moved, self.grid, strict=True)]
        losses = self.problem.losses(weights)
        return losses.detach(), torch.autograd.grad(losses.sum(), self.free)

    @torch.no_grad()
    def _choose_steps(self) -> None:
        weights = siren.effective(self.weights, self.frequency)
        coords, _ = self.problem.sample(min(_SENSITIVITY_ROWS, self.problem.n_voxels))
        felt = siren.sensitivity(weights, coords, self.problem.random).T.cpu().numpy().astype(np.float64)
        arrays = [w.cpu().numpy() for w in self._moved(weights)]
        self.steps = np.stack([self.choose(n, [w[i] for w in arrays], felt[i]) for i, n in enumerate(self.group)])
        steps = torch.from_numpy(self.steps).to(self.problem.targets.device)
        self.grid = [steps[:, i, None, None] for i in range(len(weights))]


def _to_grid(weights: Tensor, step: Tensor) -> Tensor:
    """How far weights are from the grid of a step; what it is added to gets gradients as if it were not rounded."""
    weights = weights.detach()
    return torch.round(weights / step) * step - weights
