"""A 2-D autoencoder that starts as a block KLT and learns what a linear transform cannot do.

A section goes in, one latent vector per ``stride x stride`` block comes out, and back. Both ways hold a linear path
(space-to-depth and a 1 x 1 convolution, initialised with the block KLT of the training data) and a convolutional path
added to it (last layer initialised with zeros), so that training starts at the rate-distortion curve of the KLT.
There is no normalisation over space, so a block depends on a bounded neighbourhood only (``halo``) and a large section
may be coded piece by piece with the same result.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

PATCH = 8  # networks begin and end with space-to-depth by 8: nothing is spent at full resolution
GREY_OFFSET = 128.0  # middle of the uint8 range, in grey levels
GREY_SCALE = 32.0  # about the standard deviation of stained tissue; brings activations near 1


@dataclass(frozen=True)
class ArchConfig:
    """Everything that fixes the network's shape.

    Attributes
    ----------
    stride : int
        Voxels per latent cell and axis: 8 times a power of two.
    channels : int
        Latent channels per cell.
    step_min, step_max : float
        Ends of the quality ladder: quantiser steps in grey levels of an orthonormal transform.
    enc_widths, dec_widths : tuple of int
        Channels of the convolutional path at strides 8, 16, ... up to ``stride``.
    enc_blocks, dec_blocks : tuple of int
        Residual blocks at those strides.
    """

    stride: int = 16
    channels: int = 192
    step_min: float = 4.0
    step_max: float = 640.0
    enc_widths: tuple[int, ...] = (64, 128)
    enc_blocks: tuple[int, ...] = (1, 1)
    dec_widths: tuple[int, ...] = (72, 160)
    dec_blocks: tuple[int, ...] = (2, 2)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint or a card."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ArchConfig:
        """Inverse of `to_dict`, also from JSON, where tuples have become lists."""
        words: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**words)

    def steps(self, levels: int) -> NDArray[np.float64]:
        """Quantiser step of each of so many levels, shape (levels,): a geometric ladder."""
        return np.asarray(np.geomspace(self.step_min, self.step_max, levels))

    def halo(self) -> tuple[int, int]:
        """Latent cells around a cell that its encoder and its decoder see."""
        opening = (1,) + (0,) * (len(self.enc_blocks) - 1)  # the encoder's first stage opens with a 3 x 3 convolution
        encoder = tuple(a + b for a, b in zip(opening, self.enc_blocks, strict=True))
        return _reach(encoder, self.stride), _reach(self.dec_blocks, self.stride)


def _reach(convolutions: tuple[int, ...], stride: int) -> int:
    # each 3 x 3 convolution sees one more cell of its own scale
    voxels: int = sum(n * PATCH * 2**i for i, n in enumerate(convolutions))
    return math.ceil(voxels / stride)


def block_order(stride: int) -> NDArray[np.intp]:
    """Row-major voxel of a block that stands in each channel after unshuffling by 8 and then by ``stride / 8``.

    The linear and the convolutional path share the first unshuffle, so a block's voxels come as 8 x 8 position first,
    sub-block second.
    """
    many = stride // PATCH
    voxel = np.arange(stride * stride).reshape(many, PATCH, many, PATCH)
    return voxel.transpose(1, 3, 0, 2).reshape(-1)


class Residual(nn.Module):
    """``x + W1 * lrelu(W3 * x)``: a 3 x 3 and a 1 x 1 convolution beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(width, width, 3, padding=1)
        self.point = nn.Conv2d(width, width, 1)
        nn.init.normal_(self.point.weight, std=0.1 / width**0.5)
        _zero(self.point.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, width, h, w]`` to the same shape."""
        out: Tensor = x + self.point(F.leaky_relu(self.wide(x), 0.1))
        return out


def _stage(inputs: int, width: int, blocks: int, *, kernel: int = 1) -> nn.Sequential:
    opening = nn.Conv2d(inputs, width, kernel, padding=kernel // 2)
    return nn.Sequential(opening, nn.LeakyReLU(0.1), *(Residual(width) for _ in range(blocks)))


def _zero(*parameters: Tensor | None) -> None:
    for parameter in parameters:
        if parameter is not None:
            nn.init.zeros_(parameter)


def _full_precision(x: Tensor) -> torch.autocast:
    # bfloat16 would add half a step of noise to the large components of the linear path
    return torch.autocast(x.device.type, enabled=False)


class Analysis(nn.Module):
    """Encoder: grey levels ``[B, 1, H, W]`` to latents ``[B, C, H/s, W/s]`` in grey levels of the transform."""

    def __init__(self, config: ArchConfig) -> None:
        super().__init__()
        self.stride = config.stride
        self.linear = nn.Conv2d(config.stride**2, config.channels, 1, bias=False)
        inputs = PATCH**2
        stages: list[nn.Module] = []
        for width, blocks in zip(config.enc_widths, config.enc_blocks, strict=True):
            stages.append(_stage(inputs, width, blocks, kernel=1 if stages else 3))
            inputs = 4 * width
        self.stages = nn.ModuleList(stages)
        self.head = nn.Conv2d(config.enc_widths[-1], config.channels, 1)
        _zero(self.head.weight, self.head.bias)

    def forward(self, grey: Tensor) -> Tensor:
        """Grey levels ``[B, 1, H, W]`` to latents ``[B, C, H/s, W/s]``."""
        x = (grey - GREY_OFFSET) / GREY_SCALE
        h = F.pixel_unshuffle(x, PATCH)  # (B, 64, H/8, W/8)
        with _full_precision(x):
            linear = self.linear(F.pixel_unshuffle(h, self.stride // PATCH))
        for i, stage in enumerate(self.stages):
            h = stage(h if i == 0 else F.pixel_unshuffle(h, 2))
        latents: Tensor = (linear + self.head(h).float()) * GREY_SCALE
        return latents


class Synthesis(nn.Module):
    """Decoder: quantised latents ``[B, C, h, w]`` and their level ``[B]`` to grey levels ``[B, 1, h*s, w*s]``.

    ``gain[level]`` turns symbols into latents; ``squash[level]`` divides by the spread a latent has at that level, so
    that the convolutional path sees numbers near 1; ``film[level]`` tells it how coarse the quantiser was.
    """

    def __init__(self, config: ArchConfig) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Conv2d(config.channels, config.stride**2, 1, bias=False)
        widths, blocks = config.dec_widths[::-1], config.dec_blocks[::-1]
        inputs = config.channels
        stages = []
        for i, (width, n) in enumerate(zip(widths, blocks, strict=True)):
            last = i == len(widths) - 1
            stages.append(_stage(inputs + (PATCH**2 if last else 0), width, n))
            inputs = width // 4
        self.stages = nn.ModuleList(stages)
        self.film = nn.Linear(3, 2 * widths[0])
        self.head = nn.Conv2d(widths[-1], PATCH**2, 1)
        _zero(self.film.weight, self.film.bias, self.head.weight, self.head.bias)

    def forward(self, latents: Tensor, squash: Tensor, coarseness: Tensor) -> Tensor:
        """Latents ``[B, C, h, w]``, squash ``[B, C]``, log2 step scaled to about [-1, 1] ``[B]``."""
        return self.synthesise(latents, latents * squash[:, :, None, None], self.film_of(coarseness))

    def film_of(self, coarseness: Tensor) -> Tensor:
        """Scale and shift ``[B, 2 * width]`` of the first stage for a coarseness ``[B]``."""
        film: Tensor = self.film(self.powers(coarseness))
        return film

    def powers(self, coarseness: Tensor) -> Tensor:
        """What the level is told as: ``[B, 3]``."""
        return torch.stack([coarseness, coarseness**2, coarseness**3], 1)

    def synthesise(self, latents: Tensor, squashed: Tensor, film: Tensor) -> Tensor:
        """Latents and squashed latents ``[B, C, h, w]``, scale and shift ``[B, 2 * width]``."""
        with _full_precision(latents):
            blocks = self.linear(latents / GREY_SCALE)  # (B, s*s, h, w): a block's voxels as channels, see block_order
        patches = F.pixel_shuffle(blocks, self.config.stride // PATCH)  # (B, 64, H/8, W/8)
        width = self.config.dec_widths[-1]
        scale, shift = film[:, :width, None, None], film[:, width:, None, None]
        h = squashed
        for i, stage in enumerate(self.stages):
            assert isinstance(stage, nn.Sequential)
            if i == len(self.stages) - 1:
                h = torch.cat([F.pixel_shuffle(h, 2), patches], 1) if i else torch.cat([h, patches], 1)
            elif i:
                h = F.pixel_shuffle(h, 2)
            h = stage[1](stage[0](h))
            if i == 0:
                h = h * (1 + scale) + shift
            for block in list(stage)[2:]:
                h = block(h)
        return F.pixel_shuffle(patches + self.head(h).float(), PATCH) * GREY_SCALE + GREY_OFFSET


class VAE2d(nn.Module):
    """Analysis, synthesis, the step of each level and channel, and the prior that the rate is counted with.

    Attributes
    ----------
    log_step : Parameter, shape (C,)
        Natural log of a channel's step relative to its level's; 0 is the uniform quantiser of an orthonormal transform.
    log_scale : Parameter, shape (C,)
        Natural log of the Laplace scale of a channel's latents, in grey levels.
    """

    def __init__(self, config: ArchConfig) -> None:
        super().__init__()
        self.config = config
        self.analysis = Analysis(config)
        self.synthesis = Synthesis(config)
        self.log_step = nn.Parameter(torch.zeros(config.channels))
        self.log_scale = nn.Parameter(torch.zeros(config.channels))

    def start_from_klt(self, basis: NDArray[np.float64], deviations: NDArray[np.float64]) -> None:
        """Put the block KLT into the linear paths.

        Parameters
        ----------
        basis : ndarray, shape (C, stride * stride)
            Orthonormal rows over a block's voxels in row-major order.
        deviations : ndarray, shape (C,)
            Standard deviation of each component in grey levels.
        """
        weight = torch.as_tensor(basis[:, block_order(self.config.stride)], dtype=torch.float32)
        with torch.no_grad():
            self.analysis.linear.weight.copy_(weight[:, :, None, None])
            self.synthesis.linear.weight.copy_(weight.T[:, :, None, None])
            self.log_scale.copy_(torch.as_tensor(np.log(deviations / 2**0.5), dtype=torch.float32))

    def gains(self, steps: Tensor) -> Tensor:
        """Quantiser step of each sample and channel, ``[B, C]`` grey levels, for the samples' steps ``[B]``."""
        return steps[:, None] * torch.exp(self.log_step)[None]

    def squash(self, gains: Tensor) -> Tensor:
        """Reciprocal spread of the quantised latents, ``[B, C]``."""
        variance = 2 * torch.exp(2 * self.log_scale.detach())[None]
        return torch.rsqrt(variance + gains**2)

    def coarseness(self, steps: Tensor) -> Tensor:
        """Log of the step, mapped to [-1, 1] over the ladder."""
        low, high = math.log(self.config.step_min), math.log(self.config.step_max)
        return (torch.log(steps) - low) / (high - low) * 2 - 1

    def decode(self, latents: Tensor, steps: Tensor) -> Tensor:
        """Grey levels from dequantised latents (symbols times `gains`)."""
        grey: Tensor = self.synthesis(latents, self.squash(self.gains(steps)), self.coarseness(steps))
        return grey
