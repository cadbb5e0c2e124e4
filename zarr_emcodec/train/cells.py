"""The transforms of a variable-rate VAE as they are exported: latents in cells, steps looked up by level.

`variable.VariableVAE` holds latents on a lattice and computes steps from polynomials; a model directory's networks have
the places of a cell as channels, in coding order, and tables of 256 levels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zarr_emcodec.train.arch.variable import LEVELS, VariableConfig, VariableVAE
from zarr_emcodec.train.variable import VariableTrainConfig, known_levels


def gains_of_levels(model: VariableVAE) -> Tensor:
    """Steps of all levels and channels, of a precision that the decoder's float16 keeps: both sides use the same."""
    return model.gains(torch.arange(LEVELS)).half().float()


class CellPlaces(nn.Module):
    """Latents ``[B, C, *grid]`` to places ``[B, P * C, *grid / 2]`` in coding order, and back."""

    order: Tensor
    back: Tensor

    def __init__(self, config: VariableConfig) -> None:
        super().__init__()
        self.ndim = config.ndim
        context, channels = config.context, config.arch.channels
        coding = [place for group in context.groups for place in group]
        places = len(context.places)
        # both interleavings put the places of one channel side by side
        order = torch.tensor([c * places + place for place in coding for c in range(channels)])
        self.register_buffer("order", order.int())
        self.register_buffer("back", torch.argsort(order).int())
        if self.ndim == 3:
            eye = torch.eye(places).reshape(places, 1, 2, 2, 2).repeat(channels, 1, 1, 1, 1)
            self.register_buffer("eye", eye)
            self.channels = channels

    def split(self, latents: Tensor) -> Tensor:
        """To places."""
        if self.ndim == 2:
            parts = F.pixel_unshuffle(latents, 2)
        else:
            parts = F.conv3d(latents, self.eye, stride=2, groups=self.channels)  # type: ignore[arg-type]
        return torch.index_select(parts, 1, self.order)

    def join(self, places: Tensor) -> Tensor:
        """From places."""
        parts = torch.index_select(places, 1, self.back)
        if self.ndim == 2:
            return F.pixel_shuffle(parts, 2)
        return F.conv_transpose3d(parts, self.eye, stride=2, groups=self.channels)  # type: ignore[arg-type]


class CellHyper(nn.Module):
    """Latents of each cell in coding order to hyper-latents before their gain."""

    spread: Tensor
    row_major: Tensor

    def __init__(self, model: VariableVAE) -> None:
        super().__init__()
        config = model.config
        self.hyper = model.hyper
        coding = [place for group in config.context.groups for place in group]
        channels = config.arch.channels
        at = {place: i for i, place in enumerate(coding)}
        row_major = [at[p] * channels + c for p in range(len(coding)) for c in range(channels)]
        self.register_buffer("row_major", torch.tensor(row_major, dtype=torch.int32))
        spread = torch.rsqrt(model.variance + 1).repeat(len(coding))
        self.register_buffer("spread", spread.reshape(1, -1, *[1] * config.ndim))

    def forward(self, latents: Tensor, left: Tensor | None = None) -> Tensor:
        """Latents, and what references leave over of them, ``[B, P * C, *grid]``, to ``[B, Z, *grid]``."""
        hyper: Tensor = self.hyper(self._scaled(latents), None if left is None else self._scaled(left))
        return hyper

    def _scaled(self, latents: Tensor) -> Tensor:
        return torch.index_select(latents, 1, self.row_major) * self.spread


class CellEncoder(nn.Module):
    """Grey levels to latents of each cell, behind their hyper-latents where those depend on nothing else."""

    def __init__(self, model: VariableVAE) -> None:
        super().__init__()
        self.analysis = model.analysis
        self.places = CellPlaces(model.config)
        self.tell = None if model.config.reaches else CellHyper(model)

    def forward(self, grey: Tensor) -> Tensor:
        """Sections or volumes ``[B, 1, *edges]`` to ``[B, Z + P * C, *grid]``, or ``[B, P * C, *grid]``."""
        places = self.places.split(self.analysis(grey))
        return places if self.tell is None else torch.cat([self.tell(places), places], 1)


class CellDecoder(nn.Module):
    """Latents in steps to grey levels, with the steps and the coarseness of each level looked up in tables."""

    gain: Tensor
    variance: Tensor
    coarseness: Tensor

    def __init__(self, model: VariableVAE, config: VariableTrainConfig) -> None:
        super().__init__()
        self.synthesis = model.synthesis
        self.places = CellPlaces(model.config)
        self.register_buffer("gain", gains_of_levels(model))
        self.register_buffer("variance", model.variance[None])
        coarse = model.coarseness(known_levels(config))
        self.register_buffer("coarseness", model.synthesis.powers(coarse))

    def forward(self, symbols: Tensor, level: Tensor) -> Tensor:
        """Latents in steps ``[B, P * C, *grid]`` at levels ``[B]`` to grey levels ``[B, 1, *edges]``."""
        gain = torch.index_select(self.gain, 0, level)
        film = self.synthesis.film(torch.index_select(self.coarseness, 0, level))
        one = [1] * (symbols.ndim - 2)
        latents = self.places.join(symbols) * gain.reshape(-1, self.gain.shape[1], *one)
        spread = torch.sqrt(self.variance + gain * gain)
        squashed = latents / spread.reshape(-1, self.gain.shape[1], *one)
        grey: Tensor = self.synthesis.synthesise(latents, squashed, film)
        return grey
