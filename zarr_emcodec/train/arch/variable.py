"""One autoencoder for all ratios: the transforms of `vae2d` or `vae3d` with a ladder of steps and a learned prior.

A level of the ladder fixes a step for each channel. Of the latents in steps the `Context` predicts mean and scale from
what is already known; what remains is rounded. Analysis does not know the level, so an encoder runs it once and then
looks for the level; synthesis and entropy model are told.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from zarr_emcodec.train.arch.context import SCALE_RATIO, Context, ContextConfig
from zarr_emcodec.train.arch.vae2d import Analysis, ArchConfig, Synthesis, block_order
from zarr_emcodec.train.arch.vae3d import Analysis3d, Arch3dConfig, Synthesis3d, start_from_klt

LEVELS = 256  # all that a frame's byte can name
SPREAD_SHIFT_MIN = -1  # of a channel whose latents are smaller than a step


@dataclass(frozen=True)
class VariableConfig:
    """Everything that fixes the network's shape.

    Attributes
    ----------
    arch : ArchConfig or Arch3dConfig
        Of the transforms; its ladder of steps is the model's.
    hyper, hyper_width : int
        Hyper-latents of a cell, and the width of the network that finds them.
    context_width, context_layers : int
        Of the entropy model.
    reaches : int
        See `ContextConfig`; 0 where sections know nothing of each other, as volumes do.
    """

    arch: ArchConfig | Arch3dConfig
    hyper: int = 24
    hyper_width: int = 96
    context_width: int = 128
    context_layers: int = 1
    reaches: int = 0

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return 3 if isinstance(self.arch, Arch3dConfig) else 2

    @property
    def stride(self) -> tuple[int, ...]:
        """Voxels of a place along each axis."""
        return self.arch.stride if isinstance(self.arch, Arch3dConfig) else (self.arch.stride,) * 2

    @property
    def cell(self) -> tuple[int, ...]:
        """Voxels of a cell of the entropy model along each axis."""
        return tuple(2 * n for n in self.stride)

    @property
    def context(self) -> ContextConfig:
        """Of the entropy model."""
        width, layers = self.context_width, self.context_layers
        return ContextConfig(self.ndim, self.arch.channels, self.hyper, width, layers, self.reaches)

    def steps(self) -> NDArray[np.float64]:
        """Quantiser step of each level in grey levels, shape (LEVELS,)."""
        return np.asarray(np.geomspace(self.arch.step_min, self.arch.step_max, LEVELS))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint or a card."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> VariableConfig:
        """Inverse of `to_dict`, also from JSON."""
        kind = Arch3dConfig if "strides" in data["arch"] else ArchConfig
        return cls(**{**data, "arch": kind.from_dict(data["arch"])})


class HyperAnalysis(nn.Module):
    """Hyper-latents of a cell from its latents in spreads: what the entropy model is told before anything else.

    Of a section with references it also sees what they leave over, through the same first layer.
    """

    def __init__(self, config: VariableConfig) -> None:
        super().__init__()
        conv: Any = nn.Conv2d if config.ndim == 2 else nn.Conv3d
        width = config.hyper_width
        self.net = nn.Sequential(
            conv(2**config.ndim * config.arch.channels, width, 1),
            nn.LeakyReLU(0.1),
            conv(width, width, 3 if config.ndim == 2 else (1, 3, 3), padding=1 if config.ndim == 2 else (0, 1, 1)),
            nn.LeakyReLU(0.1),
            conv(width, config.hyper, 1),
        )
        self.left = conv(width, width, 1) if config.reaches else None

    def forward(self, places: Tensor, left: Tensor | None = None) -> Tensor:
        """``[B, P * C, *grid]``, and what references leave over of it (0 without any), to ``[B, Z, *grid]``, unit 1."""
        if self.left is None:
            return cast(Tensor, self.net(places))
        first = self.net[:2]
        assert left is not None
        return cast(Tensor, self.net[2:](first(places) + self.left(first(left))))


class VariableVAE(nn.Module):
    """Analysis, hyper-analysis, entropy model, synthesis, and the steps of each level and channel.

    Attributes
    ----------
    log_step : Parameter, shape (3, C)
        Natural log of a channel's step relative to its level's, as a polynomial of the level's coarseness.
    log_hyper : Parameter, shape (4, Z)
        Natural log of what a hyper-latent is multiplied with before it is rounded, likewise.
    log_reach : Parameter, shape (reaches, Z)
        What a section's reach adds to it.
    variance : buffer, shape (C,)
        Of a channel's latents in grey levels, a running mean.
    """

    variance: Tensor

    def __init__(self, config: VariableConfig) -> None:
        super().__init__()
        self.config = config
        arch = config.arch
        self.analysis = Analysis3d(arch) if isinstance(arch, Arch3dConfig) else Analysis(arch)
        self.synthesis = Synthesis3d(arch) if isinstance(arch, Arch3dConfig) else Synthesis(arch)
        self.hyper = HyperAnalysis(config)
        self.context = Context(config.context)
        self.log_step = nn.Parameter(torch.zeros(3, arch.channels))
        self.log_hyper = nn.Parameter(torch.zeros(4, config.hyper))
        self.log_reach = nn.Parameter(torch.zeros(config.reaches, config.hyper))
        self.register_buffer("variance", torch.ones(arch.channels))

    @torch.no_grad()
    def start_from_klt(self, basis: NDArray[np.float64], deviations: NDArray[np.float64]) -> None:
        """Put the block KLT into the linear paths, and its spectrum into the ladder."""
        if isinstance(self.analysis, Analysis3d):
            assert isinstance(self.synthesis, Synthesis3d)
            start_from_klt(self.analysis, self.synthesis, basis)
        else:
            weight = torch.as_tensor(basis[:, block_order(self.analysis.stride)], dtype=torch.float32)
            self.analysis.linear.weight.copy_(weight[:, :, None, None])
            self.synthesis.linear.weight.copy_(weight.T[:, :, None, None])
        self.variance.copy_(torch.as_tensor(deviations**2, dtype=torch.float32))
        self.start_scales()

    @torch.no_grad()
    def start_scales(self) -> None:
        """Scales as they follow from the variances, fitted by the polynomials of `Context.base`."""
        levels = torch.arange(LEVELS)
        powers = self.powers(levels)
        full = torch.cat([torch.ones(LEVELS, 1), powers], 1)
        spread = self.variance.sqrt()[None] / self.gains(levels)
        index = 1 + torch.log(spread.clamp(min=1e-3) / 0.08) / math.log(SCALE_RATIO)
        self.context.base.copy_(torch.linalg.lstsq(full, index).solution)

    @torch.no_grad()
    def start_hyper(self, deviations: Tensor) -> None:
        """Gains and scales of hyper-latents whose deviations ``[Z]`` before the gain are given.

        At the finest level they begin with a deviation of two steps, at the coarsest with none that is coded: what
        they are worth there is less than their bits until the networks have learnt to use them.
        """
        levels = torch.arange(LEVELS)
        self.log_hyper.zero_()
        self.log_hyper[0] = math.log(0.2) - torch.log(deviations.clamp(min=1e-6))
        self.log_hyper[1] = -math.log(10.0)
        powers = self.powers(levels)
        full = torch.cat([torch.ones(LEVELS, 1), powers], 1)
        index = 1 + torch.log(deviations[None] * self.hyper_gains(levels) / 0.08) / math.log(SCALE_RATIO)
        self.context.hyper_base.copy_(torch.linalg.lstsq(full, index).solution)

    def coarseness(self, levels: Tensor) -> Tensor:
        """Number of a level, mapped to [-1, 1] over the ladder."""
        return levels.float() / (LEVELS - 1) * 2 - 1

    def powers(self, levels: Tensor) -> Tensor:
        """What networks are told a level as: ``[B, 3]``."""
        coarse = self.coarseness(levels)
        return torch.stack([coarse, coarse**2, coarse**3], 1)

    def steps(self, levels: Tensor) -> Tensor:
        """Quantiser step of each level, ``[B]`` grey levels."""
        low, high = math.log(self.config.arch.step_min), math.log(self.config.arch.step_max)
        return torch.exp(low + (high - low) * levels.float() / (LEVELS - 1))

    def gains(self, levels: Tensor) -> Tensor:
        """Quantiser step of each channel, ``[B, C]`` grey levels, for levels ``[B]``."""
        coarse = self.coarseness(levels)[:, None]
        log = self.log_step[0] + coarse * self.log_step[1] + coarse**2 * self.log_step[2]
        return self.steps(levels)[:, None] * torch.exp(log)

    def shifts(self, gains: Tensor) -> Tensor:
        """Whole numbers ``[B, C]``: a channel's spread is about ``2 ** (shift + 1)`` steps."""
        spread = torch.sqrt(self.variance[None] / gains.detach() ** 2 + 1)
        return torch.round(torch.log2(spread) - 1).clamp(min=SPREAD_SHIFT_MIN)

    def hyper_latents(
        self, places: Tensor, levels: Tensor, reach: Tensor | None = None, expected: Tensor | None = None
    ) -> Tensor:
        """Before rounding, ``[B, Z, *grid]``, from latents ``[B, P, C, *grid]`` in grey levels and those expected."""
        raw = self.raw_hyper(places, reach, expected)
        return raw * self.hyper_gains(levels, reach).reshape(*raw.shape[:2], *[1] * self.config.ndim)

    def raw_hyper(self, places: Tensor, reach: Tensor | None = None, expected: Tensor | None = None) -> Tensor:
        """Before a level's gain, ``[B, Z, *grid]``."""
        spread = torch.rsqrt(self.variance + 1)[None, None].reshape(1, 1, -1, *[1] * self.config.ndim)
        left = None
        if self.config.reaches:
            left = torch.zeros_like(places).flatten(1, 2)
            if reach is not None and expected is not None:
                known = (reach > 0).reshape(-1, *[1] * (places.ndim - 1))
                left = ((places - expected) * known * spread).flatten(1, 2)
        raw: Tensor = self.hyper((places * spread).flatten(1, 2), left).float()
        return raw

    def hyper_gains(self, levels: Tensor, reach: Tensor | None = None) -> Tensor:
        """What hyper-latents are multiplied with, ``[B, Z]``."""
        powers = self.powers(levels)
        full = torch.cat([torch.ones_like(powers[:, :1]), powers], 1)
        log = full @ self.log_hyper
        return torch.exp(log if reach is None or not self.config.reaches else log + self.log_reach[reach])

    def decode(self, latents: Tensor, levels: Tensor, gains: Tensor) -> Tensor:
        """Grey levels from dequantised latents ``[B, C, *grid]``."""
        squash = torch.rsqrt(self.variance[None] + gains**2)
        grey: Tensor = self.synthesis(latents, squash, self.coarseness(levels))
        return grey

    def split(self, latents: Tensor) -> Tensor:
        """Latents ``[B, C, *grid]`` by place, ``[B, P, C, *grid / 2]``."""
        batch, channels, *grid = latents.shape
        if len(grid) == 2:
            parts = F.pixel_unshuffle(latents, 2).reshape(batch, channels, 4, grid[0] // 2, grid[1] // 2)
            return parts.transpose(1, 2)
        z, y, x = (n // 2 for n in grid)
        parts = latents.reshape(batch, channels, z, 2, y, 2, x, 2).permute(0, 3, 5, 7, 1, 2, 4, 6)
        return parts.reshape(batch, 8, channels, z, y, x)

    def join(self, places: Tensor) -> Tensor:
        """Inverse of `split`."""
        batch, _, channels, *grid = places.shape
        if len(grid) == 2:
            return F.pixel_shuffle(places.transpose(1, 2).flatten(1, 2), 2)
        z, y, x = grid
        parts = places.reshape(batch, 2, 2, 2, channels, z, y, x).permute(0, 4, 5, 1, 6, 2, 7, 3)
        return parts.reshape(batch, channels, 2 * z, 2 * y, 2 * x)
