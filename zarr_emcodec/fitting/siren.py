"""Sinusoidal fields in torch, many at once: initial weights, the forward pass, what a rounding of each tensor does.

Weights are lists of tensors (B, in, out) and (B, 1, out), one network for each of B chunks of one shape. What is
stored, and called *effective* here, is a network's weight times its frequency: sin(w (W x + b)) = sin(A x + a).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zarr_emcodec.fitting.architecture import Architecture, highest_frequency

FREQUENCY = 20.0
"""Where the learnable frequency starts: on EM better than the 30 of Sitzmann et al. 2020, or than 10."""
_DRAWS = 8


def initial(architecture: Architecture, extents: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """Weights of one network, shapes (in, out) and (1, out), before the frequency (Sitzmann et al. 2020, suppl. 1.5).

    First layer: frequencies up to what so many weights can resolve on each axis, P^(1/d), and no axis can have more;
    larger along longer axes, since texture is as coarse in voxels along each. Further layers: U(-b, b) with
    b = sqrt(6 / in) / w, so that arguments of sines keep a unit variance. Phases spread over a period.
    """
    mean = math.prod(extents) ** (1 / len(extents))
    highest = highest_frequency(architecture, mean)
    out = []
    for i, shape in enumerate(architecture.shapes):
        into, layer = shape[0], i // 2
        if i % 2:
            bound = 0.0 if layer == architecture.layers - 1 else math.pi / FREQUENCY
            shape = (1, *shape)
        elif layer == 0:
            bound = highest / FREQUENCY
        else:
            bound = math.sqrt(6 / into) / FREQUENCY
        out.append((2 * torch.rand(shape, generator=generator) - 1) * bound)
    out[0] *= torch.tensor([[extent / mean] for extent in extents])
    return out


def before_frequency(weights: Sequence[NDArray[np.float32]]) -> list[Tensor]:
    """Weights of one network, shapes as `initial` gives them, from effective ones: inverse of `effective`."""
    tensors = [torch.from_numpy(w.reshape(-1, w.shape[-1])) for w in weights]
    return [w / FREQUENCY for w in tensors[:-2]] + tensors[-2:]


def effective(weights: Sequence[Tensor], frequency: Tensor) -> list[Tensor]:
    """Weights as they are stored: those of sine layers times the frequency, shape (B, 1, 1); the last layer's own."""
    # on the weights and not on the signals: fewer numbers, and the frequency's gradient is a short sum
    return [w * frequency for w in weights[:-2]] + list(weights[-2:])


def forward(weights: Sequence[Tensor], coords: Tensor) -> Tensor:
    """Values (B, rows) of effective weights at coordinates (rows, axes) that all networks share."""
    signal = coords.expand(weights[0].shape[0], -1, -1)  # (B, rows, axes)
    for matrix, bias in zip(weights[0:-2:2], weights[1:-2:2], strict=True):
        signal = torch.sin(torch.baddbmm(bias, signal, matrix))  # (B, rows, W)
    return torch.baddbmm(weights[-1], signal, weights[-2])[..., 0]


def sensitivity(weights: Sequence[Tensor], coords: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error for each unit of noise variance on one weight of a tensor, shape (tensors, B).

    That is the mean over voxels and weights of the squared derivative, estimated through sums of derivatives with
    random signs (Hutchinson 1990).
    """
    total = torch.zeros(len(weights), weights[0].shape[0], device=coords.device)
    with torch.enable_grad():
        free = [w.detach().requires_grad_(True) for w in weights]
        values = forward(free, coords)
        for draw in range(_DRAWS):
            signs = torch.randint(2, (len(coords),), generator=generator).to(coords) * 2 - 1
            gradients = torch.autograd.grad((values * signs).sum(), free, retain_graph=draw < _DRAWS - 1)
            total += torch.stack([g.square().mean((1, 2)) for g in gradients])
    total /= _DRAWS * len(coords)
    total[-1] = 1  # of the last bias, exactly
    return total
