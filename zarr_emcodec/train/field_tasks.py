"""Fits of EM to learn from: crops of training volumes as problems of the size that a byte budget would give them.

Volumes in; problems, standardised as the codec standardises chunks, and the networks to fit to them out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zarr_emcodec.codecs.siren_field import unit_coordinates
from zarr_emcodec.codecs.tokens import Contrast
from zarr_emcodec.fitting import Architecture, siren
from zarr_emcodec.fitting.problem import Problem
from zarr_emcodec.train.data import Source, grey_window, read_volume

BITS = 6  # of a weight, as the codec's default
LAYERS = 4  # what the codec takes by itself for all but the smallest budgets
_RATIOS = (24.0, 160.0)  # that tasks are drawn for
_LEAST_EDGE = 16  # voxels
_ROWS_AT_ONCE = 1 << 14

Update = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor, float], None]
"""Moves tensors in place, given their gradients, the losses (B,) and the share of the fit that is behind."""


@dataclass(frozen=True)
class FieldTask:
    """Crops of one shape, and the network that the budget of each holds.

    Attributes
    ----------
    images : ndarray, shape (n, \\*extents), float32
        Standardised.
    architecture : Architecture
    scale : ndarray, shape (n,)
        Grey levels of a unit.
    """

    images: NDArray[np.float32]
    architecture: Architecture
    scale: NDArray[np.float64]

    @property
    def extents(self) -> tuple[int, ...]:
        """Voxels of a crop on each axis."""
        return self.images.shape[1:]

    @property
    def coords(self) -> list[NDArray[np.float32]]:
        """Coordinates along each axis."""
        return [unit_coordinates(np.arange(n), n) for n in self.extents]

    def repeated(self, times: int) -> FieldTask:
        """Each crop so many times in a row."""
        return FieldTask(np.repeat(self.images, times, 0), self.architecture, np.repeat(self.scale, times))

    def problem(self, rows: int, seed: int) -> Problem:
        """The crops as something to descend on."""
        return Problem(self.images, self.coords, min(rows, math.prod(self.extents)), seed)

    def decoded(self, weights: Sequence[Tensor]) -> NDArray[np.float32]:
        """What effective weights give for the whole crops, (n, \\*extents), standardised."""
        coords = self.coords
        grid = torch.from_numpy(np.stack(np.meshgrid(*coords, indexing="ij"), -1).reshape(-1, len(coords)))
        with torch.no_grad():
            values = torch.cat([siren.forward(weights, part) for part in torch.split(grid, _ROWS_AT_ONCE)], 1)
        return values.numpy().reshape(self.images.shape)

    def psnr(self, weights: Sequence[Tensor]) -> float:
        """Of effective weights on the whole crops, peak 255, the mean over crops."""
        error = np.square(self.decoded(weights) - self.images).reshape(len(self.images), -1).mean(1)
        return float((10 * np.log10(255**2 / (error * self.scale**2))).mean())


class FieldTasks:
    """Draws tasks; the same seed draws the same ones.

    Parameters
    ----------
    sources : sequence of Source
        Volumes that are isotropic give boxes as well as sections. Their last `held_out` sections are not drawn from,
        or are all that is with `held_out`.
    seed : int
    held_out : bool
    """

    def __init__(self, sources: Sequence[Source], seed: int, *, held_out: bool = False) -> None:
        self.random = np.random.default_rng(seed)
        self.volumes: list[NDArray[np.generic]] = []
        self.windows: list[tuple[float, float]] = []
        self.isotropic: list[int] = []
        for source in sources:
            volume = read_volume(source.path)
            self.windows.append(grey_window(volume))
            cut = len(volume) - source.held_out
            self.volumes.append(volume[cut:] if held_out else volume[:cut])
            if source.isotropic:
                self.isotropic.append(len(self.volumes) - 1)
        self.filled = [i for i, volume in enumerate(self.volumes) if len(volume)]

    def draw(self, axes: int, width: int, layers: int = LAYERS, n: int = 1) -> FieldTask:
        """Crops of 2 or 3 axes for a network of this width, at a random ratio."""
        rng = self.random
        architecture = Architecture(axes, width, layers)
        ratio = math.exp(rng.uniform(math.log(_RATIOS[0]), math.log(_RATIOS[1])))
        edge = (architecture.n_weights * BITS / 8 * ratio) ** (1 / axes)
        which = int(rng.choice([i for i in self.isotropic if i in self.filled] if axes == 3 else self.filled))
        if axes == 2:
            flat = math.exp(rng.uniform(-0.35, 0.35))
            shape = (1, edge * flat, edge / flat)
        else:
            flat = math.exp(rng.uniform(-0.7, 0.2))  # chunks are often thinner than wide
            shape = (edge * flat, edge / math.sqrt(flat), edge / math.sqrt(flat))
        least = (1 if axes == 2 else _LEAST_EDGE, _LEAST_EDGE, _LEAST_EDGE)
        extents = zip(shape, least, self.volumes[which].shape, strict=True)
        sizes = [min(max(round(size), low), high) for size, low, high in extents]
        grey = np.stack([self._crop(which, sizes) for _ in range(n)])
        return task_of(grey[:, 0] if axes == 2 else grey, architecture)

    def _crop(self, which: int, sizes: Sequence[int]) -> NDArray[np.float32]:
        """A random box of a volume, mirrored or not, in grey levels."""
        rng, volume = self.random, self.volumes[which]
        starts = [int(rng.integers(m - n + 1)) for n, m in zip(sizes, volume.shape, strict=True)]
        crop = volume[tuple(slice(a, a + n) for a, n in zip(starts, sizes, strict=True))]
        crop = crop[:, :: int(rng.choice([-1, 1])), :: int(rng.choice([-1, 1]))]
        offset, scale = self.windows[which]
        return ((crop.astype(np.float32) - offset) / scale).astype(np.float32)


def task_of(grey: NDArray[np.float32], architecture: Architecture) -> FieldTask:
    """Crops (n, \\*extents) in grey levels as a task."""
    contrasts = [Contrast.of_tissue(crop) for crop in grey]
    images = np.stack([contrast.to_image(crop) for contrast, crop in zip(contrasts, grey, strict=True)])
    return FieldTask(images, architecture, np.array([contrast.scale for contrast in contrasts]))


def fit_task(
    problem: Problem,
    first: Sequence[Tensor],
    steps: int,
    update: Update,
    extra: Callable[[Sequence[Tensor]], Tensor] | None = None,
    watch: Callable[[int, Sequence[Tensor]], None] | None = None,
) -> list[Tensor]:
    """Fit without rounding, from weights before the frequency (1 or B, in, out): effective weights.

    Parameters
    ----------
    problem : Problem
    first : sequence of Tensor
    steps : int
    update : callable
    extra : callable, optional
        A loss of effective weights that is added to the squared error.
    watch : callable, optional
        Called with the steps taken and the effective weights, after each.
    """
    weights = [w.expand(problem.batch, -1, -1).clone().requires_grad_() for w in first]
    frequency = torch.full((problem.batch, 1, 1), siren.FREQUENCY, requires_grad=True)
    free = [*weights, frequency]
    for step in range(steps):
        effective = siren.effective(weights, frequency)
        losses = problem.losses(effective)
        total = losses.sum() if extra is None else losses.sum() + extra(effective)
        update(free, torch.autograd.grad(total, free), losses.detach(), step / steps)
        if watch is not None:
            with torch.no_grad():
                watch(step + 1, siren.effective(weights, frequency))
    with torch.no_grad():
        return [w.detach() for w in siren.effective(weights, frequency)]
