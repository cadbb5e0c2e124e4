"""A patch discriminator for models that are to paint plausible texture (Isola et al. 2017, section 3.2.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Discriminator(nn.Module):
    """Three strided convolutions and a map of verdicts; positive means "real"."""

    def __init__(self, ndim: int = 2, width: int = 32) -> None:
        super().__init__()
        convolution = nn.Conv3d if ndim == 3 else nn.Conv2d
        layers: list[nn.Module] = []
        inputs = 1
        for i in range(3):
            layers += [convolution(inputs, width << i, 4, 2, 1), nn.LeakyReLU(0.2)]
            inputs = width << i
        self.layers = nn.Sequential(*layers, convolution(inputs, 1, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        """Standardised grey levels ``[B, 1, ...]`` to verdicts on patches."""
        out: Tensor = self.layers(image)
        return out


def hinge(discriminator: Discriminator, real: Tensor, painted: Tensor) -> Tensor:
    """Hinge loss of the discriminator (Lim and Ye 2017)."""
    return torch.stack([F.relu(1 - discriminator(real)).mean(), F.relu(1 + discriminator(painted)).mean()]).sum()
