"""The training loop: seeded, bounded by a time budget, resumable from one file.

A recipe and volumes go in, a checkpoint comes out; `export` turns it into a model directory. The learning rate follows
the share of the time budget that is used up, so an interrupted run ends where an uninterrupted one would have.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zarr_emcodec.train.arch.vae2d import ArchConfig, VAE2d
from zarr_emcodec.train.data import CropSampler, Source
from zarr_emcodec.train.klt import fit_klt
from zarr_emcodec.train.losses import laplace_bits, quantise, rate_distortion


@dataclass(frozen=True)
class TrainConfig:
    """How a network is fitted; every field has its reason beside it.

    Attributes
    ----------
    arch : ArchConfig
        The network.
    step_low, step_high : float
        Quantiser steps drawn during training, log-uniform: the band of ratios that the model is for.
    """

    arch: ArchConfig = field(default_factory=ArchConfig)
    step_low: float = 5.0
    step_high: float = 120.0
    crop: int = 192  # several times the receptive field; small enough for eight to fit a cache-friendly step
    batch: int = 8  # each crop at its own level, so that one step sees the whole band
    minutes: float = 60.0  # the budget that the learning rate follows
    rate_conv: float = 1.5e-3  # Adam, convolutional paths
    rate_linear: float = 1e-4  # KLT weights are about 1/stride each and already good: move them gently
    warm_up: int = 200  # steps until the full learning rate; the first gradients of a zero head are erratic
    clip: float = 1.0  # gradient norm
    seed: int = 0
    threads: int = 1
    bfloat16: bool = False  # autocast of the convolutional paths; pays where the processor has it

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as it stands in checkpoints and cards."""
        return {**{k: getattr(self, k) for k in self.__dataclass_fields__}, "arch": self.arch.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TrainConfig:
        """Inverse of `to_dict`."""
        return cls(**{**data, "arch": ArchConfig.from_dict(data["arch"])})


@dataclass
class Progress:
    """What a running training tells: one of these per report."""

    step: int
    minutes: float
    loss: float | None  # None before the first step
    validation: dict[str, list[float]]


class Budgeted:
    """A training within a time budget, whose learning rates follow the share of it that is used up.

    What is trained says how a step is taken (`_advance`) and how it is doing (`validate`), and which rates its groups
    of parameters start from (`rates`). All state that matters is in the checkpoint.
    """

    config: Any  # has minutes, warm_up and to_dict
    checkpoint: Path
    model: torch.nn.Module
    optimiser: torch.optim.Optimizer
    rates: tuple[float, ...]
    step = 0
    elapsed_s = 0.0

    def run(self, report: Callable[[Progress], None], *, every_s: float = 60.0) -> None:
        """Train until the budget is used up; `report` is called after each validation."""
        started = time.monotonic() - self.elapsed_s
        told = -math.inf
        losses: list[dict[str, float]] = []
        while True:
            self.elapsed_s = time.monotonic() - started
            share = self.elapsed_s / (60 * self.config.minutes)
            if self.elapsed_s - told >= every_s or share >= 1:
                told = self.elapsed_s
                self.save()
                means = {key: float(np.mean([terms[key] for terms in losses])) for key in (losses or [{}])[0]}
                loss = means.pop("loss", None)
                terms = {key: [round(value, 5)] for key, value in means.items()}
                report(Progress(self.step, self.elapsed_s / 60, loss, {**terms, **self.validate()}))
                losses.clear()
                if share >= 1:
                    return
            self._set_rate(share)
            losses.append(self._advance(share))

    def _set_rate(self, share: float) -> None:
        factor = 0.5 * (1 + math.cos(math.pi * min(share, 1.0))) + 0.005
        factor *= min(1.0, (self.step + 1) / self.config.warm_up)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def _advance(self, share: float) -> dict[str, float]:
        """One step at a share of the budget: the terms of its loss by name, and their sum as "loss"."""
        raise NotImplementedError

    def validate(self) -> dict[str, list[float]]:
        """Figures on held-out data; none where nothing is held out."""
        raise NotImplementedError

    def save(self) -> None:
        """Write the checkpoint so that a crash leaves the old one or the new one, never half of one."""
        data = {
            "config": json.dumps(self.config.to_dict()),
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
        }
        part = self.checkpoint.with_suffix(".part")
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save(data, part)
        part.replace(self.checkpoint)


class Trainer(Budgeted):
    """One variational network on its way.

    Parameters
    ----------
    config : TrainConfig
        Shape of network and training.
    sources : sequence of Source
        Volumes to learn from.
    checkpoint : Path
        Written about once a minute and at the end; resumed from when it exists.
    device : str
        "cpu" or "cuda".
    start : VAE2d, optional
        A trained network to go on from, of the configured architecture; the block KLT of the volumes when not given.
    """

    def __init__(
        self,
        config: TrainConfig,
        sources: Sequence[Source],
        checkpoint: Path,
        device: str = "cpu",
        start: VAE2d | None = None,
    ) -> None:
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.config = config
        self.checkpoint = checkpoint
        self.device = torch.device(device)
        self.rates = (config.rate_linear, config.rate_conv)
        self.model: VAE2d = VAE2d(config.arch).to(self.device)
        linear = [self.model.analysis.linear.weight, self.model.synthesis.linear.weight]
        chosen = {id(p) for p in linear}
        others = [p for p in self.model.parameters() if id(p) not in chosen]
        self.optimiser = torch.optim.Adam(
            [{"params": linear, "lr": config.rate_linear}, {"params": others, "lr": config.rate_conv}],
            betas=(0.9, 0.98),
        )
        saved = torch.load(checkpoint, map_location=self.device, weights_only=True) if checkpoint.exists() else None
        # a resumed run must not draw the crops of its first minutes again
        self.sampler = CropSampler(sources, config.crop, config.seed + (saved["step"] if saved else 0))
        if saved:
            self.model.load_state_dict(saved["model"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.step, self.elapsed_s = saved["step"], saved["elapsed_s"]
        elif start is not None:
            self.model.load_state_dict(start.state_dict())
        else:
            draws = (self.sampler.raw_crop(512) for _ in range(300))
            self.model.start_from_klt(*fit_klt(draws, config.arch.stride, config.arch.channels))
        self.random = np.random.default_rng(config.seed + self.step)

    def _advance(self, share: float) -> dict[str, float]:
        return {"loss": self._train_step()}

    def _train_step(self) -> float:
        config = self.config
        grey = self.sampler.batch(config.batch).to(self.device)
        low, high = math.log(config.step_low), math.log(config.step_high)
        steps = torch.from_numpy(np.exp(self.random.uniform(low, high, config.batch)).astype(np.float32)).to(
            self.device
        )
        bits, error = self.forward(grey, steps)
        loss, _ = rate_distortion(bits, error, steps)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimiser.step()
        self.step += 1
        return float(loss.detach())

    def forward(self, grey: Tensor, steps: Tensor, *, hard: bool = False) -> tuple[Tensor, Tensor]:
        """Bits and squared error per voxel, each ``[B]``; noise stands in for rounding in the rate unless `hard`."""
        model = self.model
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bfloat16 and not hard):
            latents = model.analysis(grey)
        latents = latents.float()
        gains = model.gains(steps)[:, :, None, None]
        values = latents / gains
        scale = torch.exp(model.log_scale)[None, :, None, None] / gains
        symbols = quantise(values, scale)
        noisy = symbols if hard else values + (torch.rand_like(values) - 0.5)
        bits = laplace_bits(noisy, scale).sum((1, 2, 3)) / grey[0].numel()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bfloat16 and not hard):
            decoded = model.decode(symbols * gains, steps)
        error = (decoded.float() - grey).square().mean((1, 2, 3))
        return bits, error

    @torch.inference_mode()
    def validate(self, crops: int = 12) -> dict[str, list[float]]:
        """Bits per voxel and PSNR on held-out crops at five steps of the band, no augmentation."""
        stride = self.config.arch.stride
        edge = min([256, *(min(v.shape) for v in self.sampler.validation)]) // stride * stride
        held_out = [v[:edge, :edge] for v in self.sampler.validation][:crops]
        if not held_out or not edge:
            return {}
        grey = torch.from_numpy(np.stack(held_out))[:, None].to(self.device)
        table: dict[str, list[float]] = {"step": [], "bpp": [], "psnr": []}
        for step in np.geomspace(self.config.step_low, self.config.step_high, 5):
            bits, error = self.forward(grey, torch.full((len(grey),), float(step), device=self.device), hard=True)
            table["step"].append(round(float(step), 2))
            table["bpp"].append(round(float(bits.mean()), 4))
            table["psnr"].append(round(10 * math.log10(255**2 / float(error.mean())), 3))
        return table


def load_checkpoint(path: Path) -> tuple[VAE2d, TrainConfig, int]:
    """The network, its configuration and the steps taken, from a checkpoint of `Trainer`."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    config = TrainConfig.from_dict(json.loads(saved["config"]))
    model = VAE2d(config.arch)
    model.load_state_dict(saved["model"])
    return model.eval(), config, int(saved["step"])
