"""Training of variable-rate VAEs: every crop of a batch at a level of its own, all ratios at once."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zarr_emcodec.codecs.context_order import Turn, reach_of, turns
from zarr_emcodec.train.arch.context import Coded
from zarr_emcodec.train.arch.vae2d import ArchConfig, VAE2d
from zarr_emcodec.train.arch.variable import LEVELS, VariableConfig, VariableVAE
from zarr_emcodec.train.arch.vqvae import VQVAE
from zarr_emcodec.train.data import CropSampler, Source, StackSampler, VolumeSampler, another_crop
from zarr_emcodec.train.klt import fit_block_klt, fit_klt
from zarr_emcodec.train.loop import Budgeted
from zarr_emcodec.train.losses import LAMBDA, rate_distortion
from zarr_emcodec.train.muon import Muon, convolutions
from zarr_emcodec.train.widen import take_over

ALONE = 0.3
"""Share of stacks whose outer sections are both coded alone, as the first sections of chunks and single images are."""


@dataclass(frozen=True)
class VariableTrainConfig:
    """How a variable-rate network is fitted; every field has its reason beside it.

    Attributes
    ----------
    model : VariableConfig
        The network.
    step_low, step_high : float
        Quantiser steps drawn during training: the band of ratios that the model is for.
    """

    model: VariableConfig = field(default_factory=lambda: VariableConfig(ArchConfig()))
    step_low: float = 3.0
    step_high: float = 800.0
    crop: tuple[int, ...] = (192, 192)  # whole cells, several times the receptive field
    batch: int = 8  # each crop at its own level, so that one step sees the whole band
    more_crops: tuple[tuple[int, ...], ...] = ()  # in turn with the first, as many voxels a batch: other borders
    minutes: float = 90.0  # the budget that the learning rate follows
    rate: float = 1e-3  # Adam, entropy model and steps
    rate_transforms: float = 1e-3  # convolutional paths; gentler where they start trained, they are slow to settle
    rate_linear: float = 1e-4  # KLT weights are small and already good: move them gently
    orthogonal: float = 0.0  # times their rates, of orthogonal steps of convolutions (`train.muon`); 0: Adam for all
    rate_scales: float = 2e-2  # scales count in table indices, tens of units wide where weights are fractions of one
    warm_up: int = 200  # steps until the full learning rate; the first gradients of a zero head are erratic
    clip: float = 1.0  # gradient norm
    seed: int = 0
    threads: int = 1
    bfloat16: bool = False  # autocast of the transforms; pays where the processor has it

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as it stands in checkpoints and cards."""
        return {**{k: getattr(self, k) for k in self.__dataclass_fields__}, "model": self.model.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> VariableTrainConfig:
        """Inverse of `to_dict`, also from JSON."""
        shapes = {
            "crop": tuple(data["crop"]),
            "more_crops": tuple(tuple(crop) for crop in data.get("more_crops", ())),
        }
        return cls(**{**data, "model": VariableConfig.from_dict(data["model"]), **shapes})


def known_levels(config: VariableTrainConfig) -> Tensor:
    """For each level the nearest that the networks were trained at: beyond, they are told what they know."""
    steps = config.model.steps()
    inside = np.flatnonzero((steps >= config.step_low) & (steps <= config.step_high))
    return torch.arange(LEVELS).clamp(int(inside[0]), int(inside[-1]))


class VariableTrainer(Budgeted):
    """One variable-rate network on its way.

    Parameters
    ----------
    config : VariableTrainConfig
        Shape of network and training.
    sources : sequence of Source
        Volumes to learn from; for 3-D networks the isotropic ones are used.
    checkpoint : Path
        Written about once a minute and at the end; resumed from when it exists.
    device : str
        "cpu" or "cuda".
    start : VariableVAE, VAE2d or VQVAE, optional
        A trained network of the configured shape, or one whose transforms to go on from: it may have fewer latents and
        residual blocks. The block KLT of the volumes when not given.
    """

    def __init__(
        self,
        config: VariableTrainConfig,
        sources: Sequence[Source],
        checkpoint: Path,
        device: str = "cpu",
        start: VariableVAE | VAE2d | VQVAE | None = None,
    ) -> None:
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.config = config
        self.checkpoint = checkpoint
        self.device = torch.device(device)
        self.rates = (config.rate_linear, config.rate_transforms, config.rate, config.rate_scales)
        self.model: VariableVAE = VariableVAE(config.model).to(self.device)
        linear: list[Tensor] = [self.model.analysis.linear.weight, self.model.synthesis.linear.weight]
        context = self.model.context
        scales = [context.base, context.hyper_base, context.reach, context.hyper_reach]
        chosen = {id(p) for p in linear + scales}
        transforms = [*self.model.analysis.parameters(), *self.model.synthesis.parameters()]
        paths = [p for p in transforms if id(p) not in chosen and p.requires_grad]
        chosen |= {id(p) for p in transforms}
        others = [p for p in self.model.parameters() if id(p) not in chosen and p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": each} for each in (linear, paths, others, scales)]
        parts = self.model.analysis, self.model.synthesis, self.model.hyper
        self.optimiser = (
            Muon(groups, convolutions(*parts, without=linear), config.orthogonal)
            if config.orthogonal
            else torch.optim.Adam(groups, lr=config.rate, betas=(0.9, 0.98))
        )
        saved = torch.load(checkpoint, map_location=self.device, weights_only=True) if checkpoint.exists() else None
        # a resumed run must not draw the crops of its first minutes again
        seed = config.seed + (saved["step"] if saved else 0)
        crops = (config.crop, *config.more_crops)
        self.sampler = self._sampler(sources, config.crop, seed)
        more = (another_crop(self.sampler, crop, seed + i) for i, crop in enumerate(config.more_crops, 1))
        self.samplers = [self.sampler, *more]
        self.batches = [max(1, round(config.batch * math.prod(config.crop) / math.prod(crop))) for crop in crops]
        if saved:
            self.model.load_state_dict(saved["model"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.step, self.elapsed_s = saved["step"], saved["elapsed_s"]
        elif isinstance(start, VariableVAE) and start.config == config.model:
            self.model.load_state_dict(start.state_dict())
        elif start is None:
            self.model.start_from_klt(*self._klt(config.model.arch.channels))
            self._measure_hyper()
        else:
            old = start.config if isinstance(start, VAE2d) else start.config.arch
            klt = self._klt(math.prod(config.model.stride)) if old.channels < config.model.arch.channels else None
            take_over(self.model, start.state_dict(), old, klt)
            self._measure_latents()
            self._measure_hyper()
        self.random = np.random.default_rng(seed)
        steps = config.model.steps()
        self.levels = np.flatnonzero((steps >= config.step_low) & (steps <= config.step_high))

    def _sampler(self, sources: Sequence[Source], crop: tuple[int, ...], seed: int) -> CropSampler | VolumeSampler:
        if len(crop) == 3:
            return VolumeSampler(sources, crop, seed)
        return (StackSampler if self.config.model.reaches else CropSampler)(sources, crop[0], seed)

    @torch.no_grad()
    def _measure_hyper(self) -> None:
        """Scales of the hyper-latents, which are random features yet and must not cost much at coarse levels."""
        model = self.model
        squares = []
        for _ in range(8):
            places = model.split(model.analysis(self.sampler.batch(2).to(self.device)))
            squares.append(model.raw_hyper(places).square().transpose(0, 1).flatten(1).mean(1))
        model.start_hyper(torch.stack(squares).mean(0).sqrt())

    @torch.no_grad()
    def _measure_latents(self) -> None:
        """Variances of the latents, and the scales that follow from them."""
        total = sum(
            self.model.analysis(self.sampler.batch(2).to(self.device)).square().flatten(2).mean((0, 2))
            for _ in range(40)
        )
        self.model.variance.copy_(total / 40)
        self.model.start_scales()

    def _klt(self, components: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Principal axes of blocks of the volumes, and their standard deviations."""
        arch = self.config.model.arch
        if isinstance(arch, ArchConfig):
            draws = (self.sampler.raw_crop(512) for _ in range(300))  # type: ignore[arg-type]
            return fit_klt(draws, arch.stride, components)
        edges = tuple(6 * n for n in arch.stride)
        draws = (self.sampler.raw_crop(edges) for _ in range(400))  # type: ignore[arg-type]
        return fit_block_klt(draws, arch.stride, components)

    def _advance(self, share: float) -> dict[str, float]:
        config = self.config
        turn = self.step % len(self.samplers)
        sampler, size = self.samplers[turn], self.batches[turn]
        if isinstance(sampler, StackSampler):
            grey, order = self._draw_stacks(sampler, size // 3)
        else:
            grey, order = sampler.batch(size), None
        levels = torch.from_numpy(self.random.choice(self.levels, len(grey) if order is None else len(grey) // 3))
        if order is not None:
            levels = levels.repeat_interleave(3)
        levels = levels.to(self.device)
        bits, error = self.forward(grey.to(self.device), levels, order)
        loss, _ = rate_distortion(bits, error, self.model.steps(levels))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        if torch.isfinite(norm):  # some processors' bfloat16 convolutions lose a gradient now and then
            self.optimiser.step()
        self.step += 1
        return {"loss": float(loss.detach())}

    def _draw_stacks(self, sampler: StackSampler, size: int) -> tuple[Tensor, list[Turn]]:
        """Crops one by one, and the order in which they are coded: the outer sections, then what lies between."""
        stacks = sampler.stacks(size)
        first, reaches = 3 * np.arange(size), self.config.model.reaches
        near = reach_of(stacks.distance, reaches)
        far = np.where(self.random.random(size) < ALONE, 0, reach_of(2 * stacks.distance, reaches))
        order = [
            Turn(first, np.zeros(size, np.int64), first, first),
            Turn(first + 2, far, first, first),
            Turn(first + 1, near, first, first + 2),
        ]
        return stacks.grey.flatten(0, 1)[:, None], order

    def forward(
        self, grey: Tensor, levels: Tensor, order: Sequence[Turn] | None = None, *, hard: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Bits and squared error per voxel, each ``[B]``, of crops at levels; `hard` counts bits of the symbols.

        Without an order every crop is coded alone.
        """
        model = self.model
        half = self.config.bfloat16 and not hard
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            latents = model.analysis(grey)
        places = model.split(latents.float())
        if torch.is_grad_enabled():
            with torch.no_grad():
                axes = [0, 1, *range(3, places.ndim)]
                model.variance.lerp_(places.square().mean(axes), 0.002)
        gains = model.gains(levels)
        unit = gains.reshape(len(gains), 1, -1, *[1] * self.config.model.ndim)
        coded = self._code(places, levels, gains, unit, order, hard=hard)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            decoded = model.decode(model.join(coded.values * unit), levels, gains)
        error = (decoded.float() - grey).square().flatten(1).mean(1)
        return coded.bits / grey[0].numel(), error

    def _code(
        self, places: Tensor, levels: Tensor, gains: Tensor, unit: Tensor, order: Sequence[Turn] | None, *, hard: bool
    ) -> Coded:
        """Latents as the decoder gets them and bits, of all crops."""
        model = self.model
        shifts, powers, steps = model.shifts(gains), model.powers(levels), places / unit
        if order is None:
            alone: Coded = model.context(steps, model.hyper_latents(places, levels), shifts, powers, hard=hard)
            return alone
        values = list(places)  # replaced turn by turn
        bits = list(places.new_zeros(len(places)))
        for turn in order:
            at, reach = torch.from_numpy(turn.sections), torch.from_numpy(turn.reach)
            # what is expected moves with the networks, not the networks with what is expected of them
            known = [torch.stack([values[i] for i in refs]).detach() for refs in (turn.before, turn.after)]
            expected = (known[0] + known[1]) * 0.5 * (reach > 0).reshape(-1, *[1] * (places.ndim - 1))
            hyper = model.hyper_latents(places[at], levels[at], reach, expected * unit[at])
            coded = model.context(steps[at], hyper, shifts[at], powers[at], reach, expected, hard=hard)
            for i, value, cost in zip(turn.sections, coded.values, coded.bits, strict=True):
                values[i], bits[i] = value, cost
        return Coded(torch.stack(values), torch.stack(bits))

    @torch.inference_mode()
    def validate(self, crops: int = 8) -> dict[str, list[float]]:
        """Bits per voxel and PSNR on held-out crops at six levels of the band, no augmentation; no bfloat16."""
        cell = self.config.model.cell
        table: dict[str, list[float]] = {"step": [], "bpp": [], "psnr": [], "cost": []}
        held_out: list[tuple[Tensor, list[Turn] | None]] = []
        for v in self.sampler.validation[:crops]:
            fits = [min(n, 256) // c * c for n, c in zip(v.shape[-len(cell) :], cell, strict=True)]
            if not all(fits):  # thinner than a cell
                continue
            inner: Any = (..., *(slice(n) for n in fits))
            grey = torch.from_numpy(np.ascontiguousarray(v[inner]))
            if v.ndim > len(cell):  # a stack of sections
                held_out.append((grey[:, None], turns([len(v)], self.config.model.reaches)))
            else:
                held_out.append((grey[None, None], None))
        if not held_out:
            return {}
        chosen = self.levels[np.linspace(0, len(self.levels) - 1, 6).round().astype(int)]
        for level in chosen:
            found = [
                self.forward(v.to(self.device), torch.full((len(v),), int(level)), order, hard=True)
                for v, order in held_out
            ]
            table["step"].append(round(float(self.model.steps(torch.tensor([level]))), 2))
            table["bpp"].append(round(float(torch.cat([bits for bits, _ in found]).mean()), 4))
            mean = float(torch.cat([error for _, error in found]).mean())
            table["psnr"].append(round(10 * math.log10(255**2 / mean), 3))
            costs = [bits + error / (LAMBDA * self.model.steps(torch.tensor([level])) ** 2) for bits, error in found]
            table["cost"].append(round(float(torch.cat(costs).mean()), 4))
        return table


def load_variable(path: Path) -> tuple[VariableVAE, VariableTrainConfig, int]:
    """The network, its configuration and the steps taken, from a checkpoint of `VariableTrainer`."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    config = VariableTrainConfig.from_dict(json.loads(saved["config"]))
    model = VariableVAE(config.model)
    model.load_state_dict(saved["model"])
    return model.eval(), config, int(saved["step"])
