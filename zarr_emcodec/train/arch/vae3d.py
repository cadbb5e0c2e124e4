"""A 3-D autoencoder for near-isotropic volumes that starts as a block KLT, as its 2-D sibling does.

A volume goes in, one latent vector per ``stride`` block (z, y, x) comes out, and back. A linear path (a strided
convolution that holds the block KLT of the training data, and its transpose) runs beside a convolutional one whose
last layer starts at zero. Strides are those of the stages multiplied up, so a block need not be a cube.
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

from zarr_emcodec.train.arch.vae2d import GREY_OFFSET, GREY_SCALE, _full_precision, _zero

Stride3 = tuple[int, int, int]


@dataclass(frozen=True)
class Arch3dConfig:
    """Everything that fixes the network's shape.

    Attributes
    ----------
    strides : tuple of (int, int, int)
        Factor of each stage along (z, y, x), finest first; the first is the patch that nothing finer is computed for.
    channels : int
        Latent channels per cell.
    step_min, step_max : float
        Ends of the quality ladder in grey levels of an orthonormal transform.
    enc_widths, dec_widths : tuple of int
        Channels of the convolutional path after each stage's stride.
    enc_blocks, dec_blocks : tuple of int
        Residual blocks there.
    """

    strides: tuple[Stride3, ...] = ((4, 4, 4), (2, 2, 2))
    channels: int = 128
    step_min: float = 4.0
    step_max: float = 1280.0
    enc_widths: tuple[int, ...] = (64, 160)
    enc_blocks: tuple[int, ...] = (1, 1)
    dec_widths: tuple[int, ...] = (64, 192)
    dec_blocks: tuple[int, ...] = (1, 2)

    @property
    def stride(self) -> Stride3:
        """Voxels per latent cell along (z, y, x)."""
        z, y, x = (math.prod(s[axis] for s in self.strides) for axis in range(3))
        return z, y, x

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint or a card."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Arch3dConfig:
        """Inverse of `to_dict`, also from JSON, where tuples have become lists."""
        words: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        words["strides"] = tuple(tuple(s) for s in words["strides"])
        return cls(**words)

    def halo(self) -> tuple[Stride3, Stride3]:
        """Latent cells around a cell that its encoder and its decoder see, along each axis."""
        return self._reach((1,) + (0,) * (len(self.strides) - 1), self.enc_blocks), self._reach((), self.dec_blocks)

    def _reach(self, opening: tuple[int, ...], blocks: tuple[int, ...]) -> Stride3:
        voxels = [0, 0, 0]
        scale = [1, 1, 1]
        convolutions = [n + (opening[i] if i < len(opening) else 0) for i, n in enumerate(blocks)]
        for stride, n in zip(self.strides, convolutions, strict=True):
            scale = [a * b for a, b in zip(scale, stride, strict=True)]
            voxels = [v + n * s for v, s in zip(voxels, scale, strict=True)]
        z, y, x = (math.ceil(v / s) for v, s in zip(voxels, self.stride, strict=True))
        return z, y, x


class Residual3d(nn.Module):
    """``x + W1 * lrelu(W3 * x)``: a 3 x 3 x 3 and a pointwise convolution beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Conv3d(width, width, 3, padding=1)
        self.point = nn.Conv3d(width, width, 1)
        nn.init.normal_(self.point.weight, std=0.1 / width**0.5)
        _zero(self.point.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, width, z, y, x]`` to the same shape."""
        out: Tensor = x + self.point(F.leaky_relu(self.wide(x), 0.1))
        return out


class Analysis3d(nn.Module):
    """Encoder: grey levels ``[B, 1, Z, Y, X]`` to latents ``[B, C, Z/sz, Y/sy, X/sx]`` in grey levels."""

    def __init__(self, config: Arch3dConfig) -> None:
        super().__init__()
        self.linear = nn.Conv3d(1, config.channels, config.stride, config.stride, bias=False)
        inputs = 1
        stages: list[nn.Module] = []
        for i, (stride, width, blocks) in enumerate(
            zip(config.strides, config.enc_widths, config.enc_blocks, strict=True)
        ):
            opening = [nn.Conv3d(inputs, width, stride, stride), nn.LeakyReLU(0.1)]
            if i == 0:  # the patch embedding sees one patch only; look around once before the first block
                opening += [nn.Conv3d(width, width, 3, padding=1), nn.LeakyReLU(0.1)]
            stages.append(nn.Sequential(*opening, *(Residual3d(width) for _ in range(blocks))))
            inputs = width
        self.stages = nn.ModuleList(stages)
        self.head = nn.Conv3d(inputs, config.channels, 1)
        _zero(self.head.weight, self.head.bias)

    def forward(self, grey: Tensor) -> Tensor:
        """Grey levels to latents."""
        h = x = (grey - GREY_OFFSET) / GREY_SCALE
        with _full_precision(x):
            linear = self.linear(x)
        for stage in self.stages:
            h = stage(h)
        latents: Tensor = (linear + self.head(h).float()) * GREY_SCALE
        return latents


class Synthesis3d(nn.Module):
    """Decoder: quantised latents ``[B, C, z, y, x]`` and their level to grey levels ``[B, 1, Z, Y, X]``."""

    def __init__(self, config: Arch3dConfig) -> None:
        super().__init__()
        self.config = config
        patch = config.strides[0]
        voxels = math.prod(patch)
        coarse = tuple(s // p for s, p in zip(config.stride, patch, strict=True))
        self.linear = nn.ConvTranspose3d(config.channels, voxels, coarse, coarse, bias=False)  # type: ignore[arg-type]
        self.fold = nn.ConvTranspose3d(voxels, 1, patch, patch, bias=False)
        with torch.no_grad():  # patches to voxels: a permutation, never trained
            self.fold.weight.copy_(torch.eye(voxels).reshape(voxels, 1, *patch))
        self.fold.weight.requires_grad_(False)
        widths, blocks = config.dec_widths[::-1], config.dec_blocks[::-1]
        ups = config.strides[::-1]
        stages, raises = [], []
        inputs = config.channels
        for i, (width, n) in enumerate(zip(widths, blocks, strict=True)):
            last = i == len(widths) - 1
            opening = nn.Conv3d(inputs + (voxels if last else 0), width, 1)
            stages.append(nn.Sequential(opening, nn.LeakyReLU(0.1), *(Residual3d(width) for _ in range(n))))
            if not last:
                inputs = widths[i + 1]
                raises.append(nn.ConvTranspose3d(width, inputs, ups[i], ups[i]))
        self.stages, self.raises = nn.ModuleList(stages), nn.ModuleList(raises)
        self.film = nn.Linear(3, 2 * widths[0])
        self.head = nn.Conv3d(widths[-1], voxels, 1)
        _zero(self.film.weight, self.film.bias, self.head.weight, self.head.bias)

    def forward(self, latents: Tensor, squash: Tensor, coarseness: Tensor) -> Tensor:
        """Latents ``[B, C, z, y, x]``, squash ``[B, C]``, log2 step scaled to about [-1, 1] ``[B]``."""
        film = self.film(self.powers(coarseness))
        return self.synthesise(latents, latents * squash[:, :, None, None, None], film)

    def powers(self, coarseness: Tensor) -> Tensor:
        """What the level is told as: ``[B, 3]``."""
        return torch.stack([coarseness, coarseness**2, coarseness**3], 1)

    def synthesise(self, latents: Tensor, squashed: Tensor, film: Tensor) -> Tensor:
        """Latents and squashed latents ``[B, C, z, y, x]``, scale and shift ``[B, 2 * width]``."""
        with _full_precision(latents):
            patches = self.linear(latents / GREY_SCALE)  # (B, patch voxels, Z/pz, Y/py, X/px)
        width = self.config.dec_widths[-1]
        scale, shift = film[:, :width, None, None, None], film[:, width:, None, None, None]
        h = squashed
        for i, stage in enumerate(self.stages):
            assert isinstance(stage, nn.Sequential)
            if i:
                h = self.raises[i - 1](h)
            if i == len(self.stages) - 1:
                h = torch.cat([h, patches], 1)
            h = stage[1](stage[0](h))
            if i == 0:
                h = h * (1 + scale) + shift
            for block in list(stage)[2:]:
                h = block(h)
        out = (patches + self.head(h)).float()
        with _full_precision(out):
            grey: Tensor = self.fold(out) * GREY_SCALE + GREY_OFFSET
        return grey


def start_from_klt(analysis: Analysis3d, synthesis: Synthesis3d, basis: NDArray[np.float64]) -> None:
    """Put a block KLT into the linear paths.

    Parameters
    ----------
    analysis, synthesis : Analysis3d, Synthesis3d
        Of one configuration.
    basis : ndarray, shape (C, z * y * x)
        Orthonormal rows over a block's voxels in row-major order.
    """
    config = synthesis.config
    weight = torch.as_tensor(basis, dtype=torch.float32).reshape(-1, 1, *config.stride)
    patch = config.strides[0]
    coarse = [s // p for s, p in zip(config.stride, patch, strict=True)]
    z, y, x = coarse
    split = weight.reshape(-1, z, patch[0], y, patch[1], x, patch[2]).permute(0, 2, 4, 6, 1, 3, 5)
    with torch.no_grad():
        analysis.linear.weight.copy_(weight)
        synthesis.linear.weight.copy_(split.reshape(len(weight), -1, z, y, x))
