"""Sinusoidal fields in torch, many at once: initial weights, the forward pass, what a rounding of each tensor does.

Weights are lists of tensors (B, in, out) and (B, 1, out), one network for each of B chunks of one shape. What is
stored, and called *effective* here, is a network's weight times its frequency: sin(w (W x + b)) = sin(A x + a).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zarr_emcodec.fitting.architecture import Architecture

FREQUENCY = 20.0
"""Where the learnable frequency starts: on EM better than the 30 of Sitzmann et al. 2020, or than 10."""


def initial(architecture: Architecture, generator: torch.Generator) -> list[Tensor]:
    """Weights of one network, shapes (in, out) and (1, out), before the frequency (Sitzmann et al. 2020, suppl. 1.5).

    First layer U(-1/d, 1/d), further ones U(-sqrt(6 / in) / w, sqrt(6 / in) / w), so that arguments of sines keep a
    unit variance through all layers. Phases spread over a period.
    """
    out = []
    for i, shape in enumerate(architecture.shapes):
        into, layer = shape[0], i // 2
        if i % 2:
            bound = 0.0 if layer == architecture.layers - 1 else math.pi / FREQUENCY
            shape = (1, *shape)
        elif layer == 0:
            bound = 1 / architecture.axes
        else:
            bound = math.sqrt(6 / into) / FREQUENCY
        out.append((2 * torch.rand(shape, generator=generator) - 1) * bound)
    return out


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

    Measured with little noise on all weights of one tensor at a time.
    """
    exact = forward(weights, coords)
    out = []
    for i, tensor in enumerate(weights):
        noise = torch.rand(tensor.shape[1:], generator=generator).to(tensor.device) - 0.5
        # a hundredth of the tensor's own spread: far below any step in use, far above rounding errors
        scale = 0.01 * tensor.square().mean((1, 2), keepdim=True).sqrt() + 1e-6
        moved = [*weights]
        moved[i] = tensor + noise * scale
        error = (forward(moved, coords) - exact).square().mean(1)
        out.append(error / (scale[:, 0, 0].square() / 12 * math.prod(tensor.shape[1:])))
    return torch.stack(out)
