"""A learned optimiser for fits of fields: gradients and losses in, moves of weights out.

Two small networks (Metz et al. 2022, VeLO; Moudgil et al. 2025, Celo): an LSTM for each tensor, which sees time, losses
and the tensor's moments and says how long its steps are; and a perceptron for each weight, which sees that weight's
moments and bends its direction. Both add to Adam with a cosine schedule, so all zeros are Adam.
`train.optimiser_search` trains them; ``optimiser.npy`` holds what came of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zarr_emcodec.fitting.architecture import Architecture

_HORIZONS = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)  # VeLO's marks of time, shares of the fit
_DECAYS = (0.9, 0.99, 0.999)
_LOSS_DECAYS = (0.8, 0.95)
_BETA1, _BETA2 = 0.9, 0.99  # of the Adam inside, as the codec's
_KINDS = 5  # tensors by what they do: first matrix, inner matrices, biases, last matrix, frequency
_WEIGHT_FEATURES = 7
_TENSOR_FEATURES = len(_HORIZONS) + len(_LOSS_DECAYS) + 1 + 3 + _KINDS
_UNITS, _HIDDEN = 8, 4  # of the LSTM, of the perceptron's two hidden layers
_BEND, _LOG_STEP = 0.3, 1.0  # what an output of 1 means
_LAST_RATE = 0.01
_EPSILON = 1e-12
_STEPS = (50, 200)  # of fits where the codec gains by it; it was trained on up to 400
_WIDEST = 80  # units: as far as it was measured; it was trained on up to 24
_RATE, _TRAINED_WIDTH, _LEAST_RATE = 1e-2, 20, 5e-3  # of Adam inside; wider networks take less, as their best rate does

SHAPES: tuple[tuple[int, ...], ...] = (
    (_TENSOR_FEATURES + _UNITS, 4 * _UNITS), (1, 4 * _UNITS), (_UNITS, 1), (1, 1),
    (_WEIGHT_FEATURES, _HIDDEN), (1, _HIDDEN), (_HIDDEN, _HIDDEN), (1, _HIDDEN), (_HIDDEN, 2), (1, 2),
)  # fmt: skip
"""Of the networks' parameters in the order of a vector of them."""
N_PARAMETERS = sum(math.prod(shape) for shape in SHAPES)


def learned_rate(width: int) -> float:
    """Of the Adam inside, for a network of so many units."""
    return max(_LEAST_RATE, _RATE * min(1.0, _TRAINED_WIDTH / width))


def shipped_update(architecture: Architecture, steps: int, device: str) -> LearnedUpdate | None:
    """The trained optimiser, for fits like those that it was found better on; None for others."""
    if not _STEPS[0] <= steps <= _STEPS[1] or architecture.width > _WIDEST:
        return None
    parameters = np.load(Path(__file__).with_name("optimiser.npy"), allow_pickle=False)
    return LearnedUpdate(torch.from_numpy(parameters)[None].to(device), learned_rate(architecture.width))


def first_parameters(generator: torch.Generator) -> Tensor:
    """Parameters (N_PARAMETERS,) whose last layers are zero: Adam."""
    parts = []
    for i, shape in enumerate(SHAPES):
        bound = 0.0 if shape[0] == 1 or i in (2, 8) else math.sqrt(3 / shape[0])
        parts.append(((2 * torch.rand(shape, generator=generator) - 1) * bound).flatten())
    return torch.cat(parts)


class LearnedUpdate:
    """The optimiser at work on one batch of networks; an update of `field_tasks.fit_task`.

    Parameters
    ----------
    parameters : Tensor, shape (B or 1, N_PARAMETERS)
        Each network of the batch may have an optimiser of its own.
    rate : float
        Of Adam at the start.
    """

    def __init__(self, parameters: Tensor, rate: float) -> None:
        self.rate = rate
        self.steps = 0
        self.take(parameters)

    def take(self, parameters: Tensor) -> None:
        """Go on with other parameters."""
        parts = torch.split(parameters, [math.prod(shape) for shape in SHAPES], 1)
        self._parts = [part.reshape(-1, *shape) for part, shape in zip(parts, SHAPES, strict=True)]

    @torch.no_grad()
    def __call__(self, free: Sequence[Tensor], gradients: Sequence[Tensor], losses: Tensor, share: float) -> None:
        """Move tensors in place."""
        if not self.steps:
            self._begin(free, losses)
        self.steps += 1
        gradient = torch.cat([g.flatten(1) for g in gradients], 1)  # (B, P)
        square = gradient.square()
        for mean, decay in zip(self._means, _DECAYS, strict=True):
            mean.lerp_(gradient, 1 - decay)
        self._square.lerp_(square, 1 - _BETA2)
        root = (self._square / (1 - _BETA2**self.steps)).sqrt() + _EPSILON
        means = [mean / (1 - decay**self.steps) for mean, decay in zip(self._means, _DECAYS, strict=True)]
        adam = means[0] / root
        length = self._length(gradient, means, adam, losses, share)
        bend, log_scale = self._direction(gradient, means, root)
        cosine = _LAST_RATE + (1 - _LAST_RATE) * (1 + math.cos(math.pi * share)) / 2
        move = (adam + _BEND * bend) * torch.exp(_BEND * log_scale) * (self.rate * cosine) * length
        for tensor, part in zip(free, torch.split(move, self._counts, 1), strict=True):
            tensor.sub_(part.reshape(tensor.shape))

    def _begin(self, free: Sequence[Tensor], losses: Tensor) -> None:
        device = losses.device
        self._counts = [tensor[0].numel() for tensor in free]
        last = len(free) - 3  # matrices and biases in turn, the frequency at the end
        kinds = [0 if i == 0 else 4 if i == len(free) - 1 else 3 if i == last else 2 if i % 2 else 1
                 for i in range(len(free))]  # fmt: skip
        self._kinds = torch.eye(_KINDS, device=device)[kinds]  # (tensors, kinds)
        owner = torch.repeat_interleave(torch.arange(len(free)), torch.tensor(self._counts)).to(device)
        self._owner = owner
        self._share_of = torch.zeros(len(owner), len(free), device=device).scatter_(1, owner[:, None], 1.0)
        self._share_of /= self._share_of.sum(0)
        shape = (len(losses), len(owner))
        self._means = [torch.zeros(shape, device=device) for _ in _DECAYS]
        self._square = torch.zeros(shape, device=device)
        self._first = losses.clone()
        self._losses = [losses.clone() for _ in _LOSS_DECAYS]
        self._state = torch.zeros(len(losses), len(free), _UNITS, device=device)
        self._cell = torch.zeros(len(losses), len(free), _UNITS, device=device)

    def _mean(self, values: Tensor) -> Tensor:
        """Of each tensor, (B, tensors)."""
        return values @ self._share_of

    def _length(self, gradient: Tensor, means: Sequence[Tensor], adam: Tensor, losses: Tensor, share: float) -> Tensor:
        """The LSTM: by what each weight's steps are longer than Adam's, (B, P)."""
        for mean, decay in zip(self._losses, _LOSS_DECAYS, strict=True):
            mean.lerp_(losses, 1 - decay)
        batch, tensors = len(losses), len(self._counts)
        time = torch.tanh(10 * (share - torch.tensor(_HORIZONS, device=losses.device)))
        logs = torch.stack([torch.log(losses / mean) for mean in (*self._losses, self._first)], 1)  # (B, 3)
        # how steady the gradient is, on three scales
        power = self._mean(self._square / (1 - _BETA2**self.steps)) + _EPSILON
        steady = [self._mean(mean.square()) / power for mean in (means[0], means[1])]
        moments = torch.stack([*steady, self._mean(adam.abs())], 2)
        features = torch.cat(
            [
                time.expand(batch, tensors, -1),
                logs.clamp(-3, 3)[:, None].expand(-1, tensors, -1),
                moments.clamp(0, 3),
                self._kinds.expand(batch, -1, -1),
            ],
            2,
        )
        w, b, w_out, b_out = self._parts[:4]
        gates = torch.cat([features, self._state], 2) @ w + b
        take, keep, show, value = gates.chunk(4, 2)
        self._cell = torch.sigmoid(keep + 1) * self._cell + torch.sigmoid(take) * torch.tanh(value)
        self._state = torch.sigmoid(show) * torch.tanh(self._cell)
        log_length = _LOG_STEP * (self._state @ w_out + b_out)[..., 0]  # (B, tensors)
        return torch.exp(log_length.clamp(-4, 4))[:, self._owner]

    def _direction(self, gradient: Tensor, means: Sequence[Tensor], root: Tensor) -> tuple[Tensor, Tensor]:
        """The perceptron: what is added to a weight's direction, and its log scale, (B, P) each."""
        unit = (self._mean(gradient.square()) + _EPSILON).rsqrt()[:, self._owner]
        spread = (self._mean(root.square()) + _EPSILON).rsqrt()[:, self._owner]
        features = torch.stack(
            [gradient / root, *(mean / root for mean in means), gradient * unit, means[0] * unit, root * spread], 2
        )
        signal = features.clamp(-4, 4)
        w1, b1, w2, b2, w3, b3 = self._parts[4:]
        signal = torch.relu(signal @ w1 + b1)
        signal = torch.relu(signal @ w2 + b2)
        out = (signal @ w3 + b3).clamp(-6, 6)
        return out[..., 0], out[..., 1]
