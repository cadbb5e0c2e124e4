"""The entropy model of a variable-rate VAE: what is known of a cell in, mean and scale of what comes next out.

Latents lie on a lattice of period 2, so a *cell* of the entropy model holds ``2 ** ndim`` places of C channels, and
beside them Z hyper-latents that are coded first, under fixed tables. Places are coded in groups, each given the
hyper-latents and all earlier groups in a window of three cells along each axis::

    hyper -> place 00 -> place 11 -> places 01 and 10                   (2-D: a quadtree, the last step a checkerboard)
    hyper -> place 000 -> 011 101 110 -> 001 010 100 111                (3-D)

so three network passes decode a grid of any size (Minnen et al. 2018, arXiv 1809.02736; He et al. 2021, arXiv
2103.15306, section 3.2; groups over a 2 x 2 lattice as in Li et al. 2023, arXiv 2302.14402, section 3.3). Weights and
activations are whole numbers times powers of two while training already, so the exported networks compute what was
trained, exactly, on any machine (`entropy.exact`).

Sections may refer to others of their chunk: one that lies between two that are known has their mean as a first guess,
and a network says of which channels it holds, and how much (hierarchical bidirectional prediction of video codecs,
Schwarz et al. 2006, doi 10.1109/ICME.2006.262877, on latents in place of voxels). How far the references lie is the
section's *reach*: 0 without any, else ``1 + log2`` of their distance.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zarr_emcodec.train.arch.whole import (
    ACTIVATION_MAX,
    UNIT_SHIFT,
    activation,
    whole,
    whole_bias,
    whole_weight,
)
from zarr_emcodec.train.losses import laplace_bits, thresholds

FRACTION_SHIFT = 4
"""Means are told in 16ths of a quantiser step."""
MEAN_SHIFT, MEAN_MAX = 6, 511
"""A mean is a whole number of 64ths of its channel's spread, at most 8 spreads."""
GATE_SHIFT, GATE_MAX = 6, 127
"""How much of its references' mean a latent is expected to have, in 64ths; 64 is all of it."""
GATE_START = 0.4
"""What a gate is before training: between what isotropic volumes want (0.8) and what sections 40 nm apart want (0)."""
REACHES = 5
"""Of a section with references 1, 2, 4 or at least 8 sections away, and 0 without."""
SCALE_SHIFT, SCALE_MAX = 3, 63
"""A network moves the index of a scale by whole numbers; 1.0 are eight of them."""
SPARSE = 0.35
"""Laplace scale in steps below which symbols are counted as they are; see `Context.bits`."""
THRESHOLD_WINDOW = 0.2
"""Steps to either side of a quantiser's threshold over which the price of passing it is spread."""
SILENT = 0.25
"""Share of samples without hyper-latents: encoders leave them out where they are worth less than their bits."""
INDEX_MIN = -4
"""Least index that is counted with; from 0 down a decoder takes the symbol for zero and reads nothing."""
SCALE_FIRST, SCALE_RATIO, N_SCALES = 0.08, (420.0 / 0.08) ** (1 / 59), 60
"""Standard deviations in steps that there are tables for: 15 % apart, a wrong neighbour costs under 0.3 %."""


@dataclass(frozen=True)
class ContextConfig:
    """Everything that fixes an entropy model's shape.

    Attributes
    ----------
    ndim : int
        2 or 3.
    channels : int
        Latents of a place.
    hyper : int
        Hyper-latents of a cell.
    width : int
        Numbers that describe what is known around a cell.
    layers : int
        Residual layers behind the window.
    reaches : int
        How many reaches sections may have; 0 of models whose sections know nothing of each other.
    """

    ndim: int = 2
    channels: int = 192
    hyper: int = 24
    width: int = 128
    layers: int = 1
    reaches: int = 0

    @property
    def places(self) -> list[tuple[int, ...]]:
        """Positions in the lattice, row-major."""
        return list(product(range(2), repeat=self.ndim))

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Places (numbers in `places`) of each group, in coding order."""
        even = [i for i, place in enumerate(self.places) if sum(place) % 2 == 0]
        odd = [i for i, place in enumerate(self.places) if sum(place) % 2]
        return (even[0],), tuple(even[1:]), tuple(odd)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint or a card."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ContextConfig:
        """Inverse of `to_dict`."""
        return cls(**data)


class GroupNet(nn.Module):
    """Features of what is known, a window of cells, residual layers; mean, scale and gate of each place of a group."""

    def __init__(self, config: ContextConfig, known: int, places: int) -> None:
        super().__init__()
        c, w = config.channels, config.width
        window = 3**config.ndim
        self.places = places
        self.embed = nn.Parameter(torch.randn(w, known) * known**-0.5)
        self.embed_bias = nn.Parameter(torch.zeros(w))
        self.window = nn.Parameter(torch.randn(w, w, *[3] * config.ndim) * (w * window) ** -0.5)
        self.window_bias = nn.Parameter(torch.zeros(w))
        self.level = nn.Parameter(torch.zeros(w, 3))
        self.reach = nn.Parameter(torch.zeros(w, config.reaches))
        self.hidden = nn.ParameterList(torch.randn(w, w) * 0.5 * w**-0.5 for _ in range(config.layers))
        self.hidden_bias = nn.ParameterList(torch.zeros(w) for _ in range(config.layers))
        self.outputs = 3 if config.reaches else 2
        self.out = nn.Parameter(torch.zeros(places * self.outputs * c, w))
        bias = torch.zeros(places, self.outputs, c)
        bias[:, 2:] = GATE_START
        self.out_bias = nn.Parameter(bias.flatten())

    def level_bias(self, powers: Tensor) -> Tensor:
        """Bias of the window layer for the levels whose powers ``[B, 3]`` are given, ``[B, W]``."""
        return whole_bias(self.window_bias + powers @ self.level.T)

    def forward(self, known: Tensor, powers: Tensor, reach: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Known numbers ``[B, K, *grid]`` in spreads, levels, reaches ``[B]``; mean in spreads, shift of scale, gate.

        All of them ``[B, places, C, *grid]``; no gate where sections know nothing of each other.
        """
        ndim = known.ndim - 2
        convolve = F.conv2d if ndim == 2 else F.conv3d
        one = (1,) * ndim
        h = activation(convolve(known, _as_kernel(whole_weight(self.embed), one), whole_bias(self.embed_bias)))
        sums = convolve(h, whole_weight(self.window), padding=1)
        bias = self.level_bias(powers)
        if self.outputs > 2:
            bias = bias + whole_bias(self.reach.T)[reach]
        h = activation(sums + bias.reshape(*sums.shape[:2], *one))
        for weight, bias in zip(self.hidden, self.hidden_bias, strict=True):
            h = activation(h + convolve(h, _as_kernel(whole_weight(weight), one), whole_bias(bias)))
        sums = convolve(h, _as_kernel(whole_weight(self.out), one), whole_bias(self.out_bias))
        parts = sums.reshape(len(known), self.places, self.outputs, -1, *known.shape[2:])
        mean, scale = whole(parts[:, :, 0], MEAN_SHIFT, MEAN_MAX), whole(parts[:, :, 1], SCALE_SHIFT, SCALE_MAX)
        return mean, scale, whole(parts[:, :, 2], GATE_SHIFT, GATE_MAX) if self.outputs > 2 else None


class Coded(NamedTuple):
    """Latents as a decoder gets them, ``[B, P, C, *grid]`` in steps, and bits of each sample ``[B]``."""

    values: Tensor
    bits: Tensor


class Context(nn.Module):
    """All groups of an entropy model, and the fixed scales that they start from.

    Attributes
    ----------
    base : Parameter, shape (4, C)
        Index of a channel's scale as a polynomial of the level's coarseness.
    hyper_base : Parameter, shape (4, Z)
        Likewise of a hyper-latent's.
    reach, hyper_reach : Parameter, shapes (reaches, C) and (reaches, Z)
        What a section's reach adds to both.
    """

    first: Tensor
    further: Tensor
    jump: Tensor

    def __init__(self, config: ContextConfig) -> None:
        super().__init__()
        self.config = config
        known = config.hyper
        nets = []
        for group in config.groups:
            nets.append(GroupNet(config, known, len(group)))
            known += len(group) * config.channels
        self.nets = nn.ModuleList(nets)
        self.base = nn.Parameter(torch.zeros(4, config.channels))
        self.hyper_base = nn.Parameter(torch.zeros(4, config.hyper))
        self.reach = nn.Parameter(torch.zeros(config.reaches, config.channels))
        self.hyper_reach = nn.Parameter(torch.zeros(config.reaches, config.hyper))
        scales = torch.arange(INDEX_MIN, N_SCALES + 1, dtype=torch.float64)
        first, further = thresholds(laplace_scale(scales))
        self.register_buffer("first", first.float(), persistent=False)
        self.register_buffer("further", further.float(), persistent=False)
        scale = laplace_scale(scales)
        jump = laplace_bits(torch.ones_like(scale), scale) - laplace_bits(torch.zeros_like(scale), scale)
        self.register_buffer("jump", jump.float(), persistent=False)

    def quantise(self, residual: Tensor, index: Tensor) -> Tensor:
        """Rate-distortion optimal integers for indices of scales; no gradient."""
        place = (index.detach() - INDEX_MIN).long()
        size = residual.detach().abs()
        coarse = torch.floor(size + 1 - self.further[place]).clamp_(min=1)
        return torch.sign(residual.detach()) * torch.where(size < self.first[place], 0.0, coarse)

    def bits(self, residual: Tensor, symbols: Tensor, index: Tensor, *, hard: bool) -> Tensor:
        """Bits of symbols under the Laplace density of each one's scale.

        Noise stands in for rounding where a channel is busy; where nearly all symbols are zero it would count bits
        that are never spent, and the symbols themselves are counted.
        """
        scale = laplace_scale(index)
        certain = laplace_bits(symbols, scale)
        if hard:
            return certain
        noisy = laplace_bits(residual + (torch.rand_like(residual) - 0.5), scale)
        slope = self._slope(residual.detach().abs(), symbols, index.detach(), scale.detach())
        pull = slope * (residual.abs() - residual.detach().abs())
        return torch.where(scale.detach() > SPARSE, noisy, certain + pull)

    def _slope(self, size: Tensor, symbols: Tensor, index: Tensor, scale: Tensor) -> Tensor:
        """Bits that a symbol of a narrow density costs more for each step that its latent grows, on the average.

        Below one step all of it is spent at the threshold of the quantiser, and is spread over a window around it.
        """
        place = (index - INDEX_MIN).long()
        near = (size - self.first[place]).abs() < THRESHOLD_WINDOW
        beyond = (symbols.abs() >= 1) & ~near & (size > 1)
        steep = self.jump[place] / (2 * THRESHOLD_WINDOW)
        return torch.where(near, steep, torch.where(beyond, 1 / (scale.clamp(min=0.1) * math.log(2)), 0.0))

    def through(self, values: Tensor, mean: Tensor, symbols: Tensor, index: Tensor) -> Tensor:
        """What a decoder gets, ``mean + symbols``, with the gradients of what decides it, on the average.

        Where a symbol is not zero, rounding undoes whatever the mean does, and the gradient is the latent's. Where it
        is zero the mean stands alone and gets the gradient as well. In a narrow density a latent below the threshold
        changes nothing: it gets its gradient where it passes it, as `_slope` has it.
        """
        size, index = (values - mean).detach().abs(), index.detach()
        beside = size - self.first[(index - INDEX_MIN).long()]
        narrow = torch.where(beside.abs() < THRESHOLD_WINDOW, 0.5 / THRESHOLD_WINDOW, (beside > 0).to(size.dtype))
        share = torch.where(laplace_scale(index) > SPARSE, 1.0, narrow)
        moved = torch.where(symbols == 0, mean - mean.detach(), 0.0)
        return (mean + symbols).detach() + share * (values - values.detach()) + moved

    def forward(
        self,
        values: Tensor,
        hyper: Tensor,
        shift: Tensor,
        powers: Tensor,
        reach: Tensor | None = None,
        expected: Tensor | None = None,
        *,
        hard: bool,
    ) -> Coded:
        """Quantise and count.

        Parameters
        ----------
        values : Tensor, shape (B, P, C, *grid)
            Latents in steps.
        hyper : Tensor, shape (B, Z, *grid)
            Hyper-latents before rounding.
        shift : Tensor, shape (B, C)
            Whole numbers: a channel's spread is about ``2 ** (shift + 1)`` steps.
        powers : Tensor, shape (B, 3)
            Coarseness of the level, its square and its cube.
        reach : Tensor, shape (B,), int64, optional
            0 when not given.
        expected : Tensor, shape of `values`, optional
            Mean of the references' latents in steps, for sections that have some.
        hard : bool
            Whether bits are those of the symbols.
        """
        grid = (1,) * self.config.ndim
        full = torch.cat([torch.ones_like(powers[:, :1]), powers], 1)
        hyper_base, base = full @ self.hyper_base, full @ self.base
        reach = torch.zeros(len(values), dtype=torch.int64, device=values.device) if reach is None else reach
        if self.config.reaches:
            hyper_base, base = hyper_base + self.hyper_reach[reach], base + self.reach[reach]
        index = _index(hyper_base).reshape(*hyper.shape[:2], *grid).expand_as(hyper)
        if not hard:
            hyper = hyper * (torch.rand(len(hyper), device=hyper.device) > SILENT).reshape(-1, 1, *grid)
        symbols = self.quantise(hyper, index)
        total = self.bits(hyper, symbols, index, hard=hard).flatten(1).sum(1)
        # as of latents: a hyper-latent far below its threshold changes nothing, and must not grow for what it would say
        through = self.through(hyper, torch.zeros_like(hyper), symbols, index)
        known = [(through * 2.0**-3).clamp(-ACTIVATION_MAX / 32, ACTIVATION_MAX / 32)]
        base = base.reshape(len(values), 1, -1, *grid)
        unit = torch.exp2(shift + 1).reshape(len(values), 1, -1, *grid)
        out: list[Tensor] = [values] * len(self.config.places)
        for group, net in zip(self.config.groups, self.nets, strict=True):
            mean, offset, gate = net(torch.cat(known, 1), powers, reach)
            mean = whole(mean * unit, FRACTION_SHIFT, None)
            if expected is not None and gate is not None:
                mean = mean + whole(gate * expected[:, list(group)], FRACTION_SHIFT, None)
            index = _index(base + offset * 2.0**SCALE_SHIFT)
            residual = values[:, list(group)] - mean
            symbols = self.quantise(residual, index)
            total = total + self.bits(residual, symbols, index, hard=hard).flatten(1).sum(1)
            through = self.through(values[:, list(group)], mean, symbols, index)
            for i, place in enumerate(group):
                out[place] = through[:, i]
            known.append(whole(through / unit, UNIT_SHIFT, ACTIVATION_MAX).flatten(1, 2))
        return Coded(torch.stack(out, 1), total)


def laplace_scale(index: Tensor) -> Tensor:
    """Scale of the Laplace density in steps, of an index: 1 is the first that has a table."""
    return SCALE_FIRST / 2**0.5 * torch.exp((index - 1) * math.log(SCALE_RATIO))


def _index(value: Tensor) -> Tensor:
    """Rounded and within bounds; the gradient is the identity's, so that nothing is lost beyond them."""
    return torch.floor(value.detach() + 0.5).clamp(INDEX_MIN, N_SCALES) + (value - value.detach())


def _as_kernel(weight: Tensor, one: tuple[int, ...]) -> Tensor:
    return weight.reshape(*weight.shape, *one)
