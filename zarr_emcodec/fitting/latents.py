"""Latents of one chunk moved to where its decoder and its entropy coder make most of them.

Latents in, better ones out. Rounding each latent on its own would be best for an orthonormal transform; of a network
the gradient says what each symbol should have been, given all others. So targets move, a share at a time, to what the
decoder of the rounded ones asks for, and are rounded again under the true frequency tables: a damped fixed-point
iteration (Jacobi), that needs no random numbers and little more than ten rounds.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zarr_emcodec import transform
from zarr_emcodec._types import Shape, Symbols
from zarr_emcodec.fitting.effort import Cost
from zarr_emcodec.fitting.watch import present
from zarr_emcodec.runtime.torch_backend import TorchNetwork, limited_threads

Choose = Callable[[NDArray[np.float32]], tuple[Symbols, float]]
"""Targets in steps, (n, C, \\*grid), to their symbols and the bits that these take."""

_SHARE = 0.5  # of the way to what the decoder asks for, in one round: neighbours would all correct the same error
_PASSES = 3  # forwards, and backwards about twice as much
_LONG_S = 60.0
_TILE_VOXELS = 1 << 20  # of one gradient: its memory is some 300 bytes for each

_log = logging.getLogger(__name__)
_announced: set[tuple[int, int]] = set()


@dataclass(frozen=True)
class Task:
    """What latents are fitted to.

    Attributes
    ----------
    decoder : bytes
        ONNX file: inputs ``symbols`` (1, C, \\*grid) and ``level`` (1,), output grey levels.
    grey : ndarray, shape (n, \\*padded extent), float32
        What the latents stand for, in grey levels.
    extent : tuple of int, voxels
        Of the part that counts; the rest is padding.
    stride, halo : tuple of int
        Voxels of a cell; cells around a cell that its voxels depend on.
    level : int
    gain : ndarray, shape (C,), float32
        Quantiser steps in grey levels.
    price : float
        Squared grey levels for a bit.
    macs : float
        Multiply-accumulates of a voxel's decoding.
    share : float
        Of all that the chunk's latents get, for who watches.
    """

    decoder: bytes
    grey: NDArray[np.float32]
    extent: Shape
    stride: Shape
    halo: Shape
    level: int
    gain: NDArray[np.float32]
    price: float
    macs: float
    share: float = 1.0


def fit_latents(
    task: Task, latents: NDArray[np.float32], choose: Choose, rounds: int, *, deadline: float | None, threads: int
) -> NDArray[np.float32]:
    """The best latents found in so many rounds, (n, C, \\*grid) in grey levels.

    Parameters
    ----------
    task : Task
    latents : ndarray, shape (n, C, \\*grid), float32
        Where to start, in grey levels.
    choose : callable
        Rounds targets under the entropy model.
    rounds : int
        1 or more.
    deadline : float, optional
        `time.perf_counter` by which to be done; no round is begun that would not end before.
    threads : int
        Of one operation.

    Returns
    -------
    ndarray
        Never worse than the start, by squared error plus the price of bits.
    """
    return _Descent(task, latents, choose, rounds, deadline, threads).run()


class _Descent:
    """Latents on their way."""

    def __init__(
        self,
        task: Task,
        latents: NDArray[np.float32],
        choose: Choose,
        rounds: int,
        deadline: float | None,
        threads: int,
    ) -> None:
        self.task, self.choose, self.rounds, self.deadline, self.threads = task, choose, rounds, deadline, threads
        one = (1, -1, *[1] * len(task.stride))
        self.gain = task.gain.reshape(one)
        self.target = latents / self.gain
        self.bend = 2 * self.gain**2  # of the squared error over a symbol, as if the transform were orthonormal
        self.network = TorchNetwork(task.decoder, "cpu", threads)
        self.n_voxels = len(latents) * math.prod(task.extent)
        self.watchers = present()

    def run(self) -> NDArray[np.float32]:
        best, least = self.target, math.inf
        began = now = time.perf_counter()
        with limited_threads(torch, self.threads):
            for done in range(self.rounds + 1):
                symbols, bits = self.choose(self.target)
                error, slope = self._slope(symbols)
                cost = error + self.task.price * bits
                if cost < least:
                    best, least = self.target, cost
                self._tell(1 / (self.rounds + 1))
                earlier, now = now, time.perf_counter()
                if done == 0:
                    self._announce((now - began) * (self.rounds + 1))
                if done == self.rounds or (self.deadline is not None and 2 * now - earlier > self.deadline):
                    self._tell((self.rounds - done) / (self.rounds + 1))
                    break
                asked = symbols - slope / self.bend
                self.target = (self.target + _SHARE * (asked - self.target)).astype(np.float32)
        return best * self.gain

    def _tell(self, share: float) -> None:
        for watcher in self.watchers:
            watcher(self.n_voxels * self.task.share * share)

    def _announce(self, seconds: float) -> None:
        if self.deadline is not None:
            seconds = min(seconds, self.deadline - time.perf_counter())
        if seconds >= _LONG_S and (kind := (self.rounds, self.n_voxels)) not in _announced:
            _announced.add(kind)  # an array's chunks are alike: once is enough
            macs = float(_PASSES) * self.task.macs * self.n_voxels * self.rounds
            # a warning, so that whoever waits is told without having set anything up
            _log.warning("%s", Cost(1, self.rounds, self.n_voxels, macs, seconds))

    def _slope(self, symbols: Symbols) -> tuple[float, NDArray[np.float32]]:
        """Squared error of what symbols decode to, and its derivative for each of them."""
        total = 0.0
        out = np.empty(symbols.shape, np.float32)
        for number in range(len(symbols)):
            for inner, outer, target in self._tiles(symbols.shape[2:]):
                place: Any = (slice(number, number + 1), slice(None), *outer)
                steps = torch.from_numpy(symbols[place].astype(np.float32)).requires_grad_()
                own, around = self._errors(steps, number, inner, outer)
                (slope,) = torch.autograd.grad(around, steps)
                there: Any = (number, slice(None), *inner)
                here: Any = (0, slice(None), *target)
                out[there] = slope.numpy()[here]
                total += own
        return total, out

    def _errors(
        self, steps: torch.Tensor, number: int, inner: tuple[slice, ...], outer: tuple[slice, ...]
    ) -> tuple[float, torch.Tensor]:
        """Squared error of a tile's own voxels; that of all voxels that its symbols change, as a tensor."""
        task = self.task
        decoded = self.network.differentiable({"symbols": steps, "level": torch.tensor([task.level])})[0, 0]
        reached, own = [], []
        for part, whole, halo, stride, extent in zip(inner, outer, task.halo, task.stride, task.extent, strict=True):
            low = max((part.start - halo) * stride, whole.start * stride)
            high = min((part.stop + halo) * stride, whole.stop * stride, extent)
            reached.append(slice(low, max(high, low)))
            own.append(slice(part.start * stride - low, max(min(part.stop * stride, extent) - low, 0)))
        within = tuple(slice(r.start - w.start * s, r.stop - w.start * s)
                       for r, w, s in zip(reached, outer, task.stride, strict=True))  # fmt: skip
        place: Any = (number, *reached)
        grey = torch.from_numpy(np.ascontiguousarray(task.grey[place]))
        squared = (decoded[within] - grey).square()
        return float(squared.detach()[tuple(own)].sum()), squared.sum()

    def _tiles(self, grid: Shape) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...], tuple[slice, ...]]]:
        """Tiles of cells, each with all that decides the voxels which its cells change; and where it lies in that."""
        task = self.task
        halo = tuple(2 * n for n in task.halo)
        edges = list(grid)
        while math.prod(edges) * math.prod(task.stride) > _TILE_VOXELS and max(edges) > 1:
            widest = max(range(len(grid)), key=lambda axis: edges[axis] * task.stride[axis])
            edges[widest] = -(-edges[widest] // 2)
        for tile in transform.tiles(grid, tuple(edges), halo):
            yield tile.target, tile.outer, tile.inner
