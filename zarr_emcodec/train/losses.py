"""Rate and distortion of one training batch, as the encoder will really spend them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

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
        ``-log2 P(value - 1/2 < x < value + 1/2)``.
    """
    size = values.abs()
    near = size.clamp(max=0.5)  # beyond, the exponential of what is not used would overflow into the gradient
    inner = 1 - 0.5 * torch.exp((near - 0.5) / scale) - 0.5 * torch.exp(-(near + 0.5) / scale)  # cell holds zero
    outer = (size - 0.5).clamp(min=0) / scale - torch.log(-0.5 * torch.expm1(-1 / scale))
    return torch.where(size < 0.5, -torch.log(inner), outer) / math.log(2)


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


def ssim_loss(a: Tensor, b: Tensor, *, window: int = 7) -> Tensor:
    """``1 - SSIM`` with a box window over the last two axes, for images of unit contrast (Wang et al. 2004).

    Parameters
    ----------
    a, b : Tensor, shape (B, 1, ..., y, x)
        In standard deviations, so that the constants stand for a peak of 8.

    Returns
    -------
    Tensor, scalar
    """
    a, b = (v.reshape(-1, 1, *v.shape[-2:]) for v in (a, b))
    a, b = a - b.mean((2, 3), keepdim=True), b - b.mean((2, 3), keepdim=True)
    mean_a, mean_b = F.avg_pool2d(a, window, 1), F.avg_pool2d(b, window, 1)
    var_a = F.avg_pool2d(a * a, window, 1) - mean_a**2
    var_b = F.avg_pool2d(b * b, window, 1) - mean_b**2
    both = F.avg_pool2d(a * b, window, 1) - mean_a * mean_b
    c1, c2 = (0.01 * 8) ** 2, (0.03 * 8) ** 2
    quotient = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return 1 - quotient.mean()


def ridge_response(image: Tensor, sigma: float) -> Tensor:
    """How much a dark line of about `sigma` voxels half width passes: the largest eigenvalue of the Hessian.

    Parameters
    ----------
    image : Tensor, shape (N, 1, y, x)
    sigma : float
        Of the Gaussian, in voxels.

    Returns
    -------
    Tensor, shape (N, 1, y, x)
        Positive on dark ridges, normalised over scales by ``sigma**2`` (Lindeberg 1998, eq. 6).
    """
    reach = math.ceil(3 * sigma)
    t = torch.arange(-reach, reach + 1, dtype=image.dtype, device=image.device)
    g0 = torch.exp(-(t**2) / (2 * sigma**2))
    g0 = g0 / g0.sum()
    g1, g2 = -t / sigma**2 * g0, (t**2 / sigma**4 - 1 / sigma**2) * g0
    padded = F.pad(image, (reach,) * 4, mode="replicate")

    def filtered(along_y: Tensor, along_x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(padded, along_y.view(1, 1, -1, 1)), along_x.view(1, 1, 1, -1))

    yy, xx, xy = filtered(g2, g0), filtered(g0, g2), filtered(g1, g1)
    half = 0.5 * (yy + xx)
    spread = torch.sqrt((0.5 * (yy - xx)) ** 2 + xy**2 + 1e-8)
    return sigma**2 * (half + spread)


def ridge_distance(a: Tensor, b: Tensor, *, sigmas: tuple[float, ...] = (1.5, 3.0)) -> Tensor:
    """Mean squared difference of the ridge responses of two images: what a reconstruction loses of its membranes.

    Parameters
    ----------
    a, b : Tensor, shape (B, 1, ..., y, x)
        In standard deviations; volumes are looked at section by section.
    sigmas : tuple of float
        Scales in voxels.

    Returns
    -------
    Tensor, scalar
    """
    a, b = (v.reshape(-1, 1, *v.shape[-2:]) for v in (a, b))
    terms = [(ridge_response(a, s) - ridge_response(b, s)).square().mean() for s in sigmas]
    return torch.stack(terms).mean()
