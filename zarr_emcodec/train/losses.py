"""Rate and distortion of one training batch, as the encoder will really spend them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LAMBDA = 0.115  # ln 2 / 6: slope dD/dR, in squared steps per bit, of a uniform quantiser at high rate


def laplace_bits(values: Tensor, scale: Tensor) -> Tensor:
    """Bits of an integer-width cell around each value under a zero-mean Laplace density.

    Parameters
    ----------
    values : Tensor
        Latents in quantiser steps.
    scale : Tensor, broadcastable
        Laplace scale in quantiser steps.

    Returns
    -------
    Tensor, same shape
        ``-log2 P(value - 1/2 < x < value + 1/2)``, never above about 40.
    """
    size = values.abs()
    inner = 1 - 0.5 * torch.exp((size - 0.5) / scale) - 0.5 * torch.exp(-(size + 0.5) / scale)  # cell holds zero
    outer = torch.exp(-(size - 0.5).clamp(min=0) / scale) * 0.5 * (-torch.expm1(-1 / scale))
    probability = torch.where(size < 0.5, inner, outer)
    return -torch.log2(probability.clamp(min=1e-12))


def thresholds(scale: Tensor, weight: float = LAMBDA) -> tuple[Tensor, Tensor]:
    """Where a rate-distortion optimal quantiser rounds up, per scale.

    With distortion ``(v - n)^2`` and a price of `weight` squared steps per bit, ``n`` beats ``n - 1`` when
    ``v > n - 1/2 + weight / 2 * (bits(n) - bits(n - 1))``.

    Parameters
    ----------
    scale : Tensor
        Laplace scale in quantiser steps.
    weight : float
        Price of a bit in squared steps.

    Returns
    -------
    first, next : Tensor
        Fraction of a step above which 0 becomes 1, and above which ``n - 1`` becomes ``n >= 2``.
    """
    zero, one, two = (laplace_bits(torch.full_like(scale, n), scale) for n in (0.0, 1.0, 2.0))
    first = 0.5 + weight / 2 * (one - zero)
    further = 0.5 + weight / 2 * (two - one)
    return first.clamp(0.5, 0.95), further.clamp(0.5, 0.80)


def quantise(values: Tensor, scale: Tensor) -> Tensor:
    """Rate-distortion optimal integers with a straight-through gradient."""
    first, further = thresholds(scale.detach())
    size = values.detach().abs()
    symbols = torch.sign(values.detach()) * torch.where(size < first, 0.0, torch.floor(size + 1 - further).clamp(min=1))
    return values + (symbols - values).detach()


def rate_distortion(rate_bits: Tensor, squared_error: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean log of the Lagrangian, so that coarse and fine levels pull equally.

    Parameters
    ----------
    rate_bits, squared_error : Tensor, shape (B,)
        Bits and squared error per voxel.
    steps : Tensor, shape (B,)
        Quantiser steps, which set the price of a bit: ``LAMBDA * step**2``.

    Returns
    -------
    loss, cost : Tensor
        Scalar to minimise; the Lagrangian in bits per voxel, shape (B,).
    """
    cost = rate_bits + squared_error / (LAMBDA * steps**2)
    return torch.log(cost + 1e-6).mean() / math.log(2), cost
