"""Shared networks of latents that are fitted to each chunk: where a fit starts, and what decodes it.

Volumes in, a checkpoint out. A fit finds the latents that a decoder makes most of, so only the decoder is trained here:
on quantised latents of a fixed analysis, that of a trained autoencoder or a block KLT, at steps from all of the band.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zarr_emcodec.train.arch.vae2d import Analysis, ArchConfig, Synthesis, VAE2d
from zarr_emcodec.train.arch.vae3d import Analysis3d, Arch3dConfig, Synthesis3d, start_from_klt
from zarr_emcodec.train.data import CropSampler, Source, VolumeSampler
from zarr_emcodec.train.klt import fit_block_klt
from zarr_emcodec.train.loop import Budgeted
from zarr_emcodec.train.losses import quantise

Arch = ArchConfig | Arch3dConfig
Blocks = tuple[tuple[int, ...], ...]
_OPENING = 2  # layers of a stage before its residual blocks


@dataclass(frozen=True)
class LatentsTrainConfig:
    """How a decoder is fitted; every field has its reason beside it.

    Attributes
    ----------
    arch : ArchConfig or Arch3dConfig
        Of both transforms.
    step_low, step_high : float
        Quantiser steps drawn during training, log-uniform: the band of ratios that the decoder is for.
    """

    arch: Arch
    step_low: float = 15.0
    step_high: float = 500.0
    crop: tuple[int, ...] = (256, 256)  # whole cells, several times the receptive field
    batch: int = 6  # each crop at its own step, so that one step of the optimiser sees the whole band
    minutes: float = 40.0  # the budget that the learning rate follows
    rate: float = 6e-4  # Adam, convolutional path
    rate_linear: float = 3e-5  # KLT weights are small and already good: move them gently
    warm_up: int = 100  # steps until the full learning rate
    clip: float = 1.0  # gradient norm
    seed: int = 0
    threads: int = 1
    bfloat16: bool = False  # autocast of the convolutional paths; pays where the processor has it

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return 3 if isinstance(self.arch, Arch3dConfig) else 2

    @property
    def cell(self) -> tuple[int, ...]:
        """Voxels of a cell along each axis."""
        return self.arch.stride if isinstance(self.arch, Arch3dConfig) else (self.arch.stride,) * 2

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as it stands in checkpoints and cards."""
        return {**{k: getattr(self, k) for k in self.__dataclass_fields__}, "arch": self.arch.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LatentsTrainConfig:
        """Inverse of `to_dict`, also from JSON."""
        kind = Arch3dConfig if "strides" in data["arch"] else ArchConfig
        return cls(**{**data, "arch": kind.from_dict(data["arch"]), "crop": tuple(data["crop"])})


class LatentsModel(nn.Module):
    """Analysis, synthesis and a ladder of steps, of sections or volumes.

    Attributes
    ----------
    log_step : buffer, shape (C,)
        Natural log of a channel's step relative to its level's.
    log_scale : buffer, shape (C,)
        Natural log of the Laplace scale of a channel's latents, in grey levels.
    """

    log_step: Tensor
    log_scale: Tensor

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        self.ndim = 3 if isinstance(arch, Arch3dConfig) else 2
        self.analysis = Analysis3d(arch) if isinstance(arch, Arch3dConfig) else Analysis(arch)
        self.synthesis = Synthesis3d(arch) if isinstance(arch, Arch3dConfig) else Synthesis(arch)
        self.register_buffer("log_step", torch.zeros(arch.channels))
        self.register_buffer("log_scale", torch.zeros(arch.channels))

    @torch.no_grad()
    def start_from(self, network: VAE2d, blocks: Blocks) -> None:
        """Take over a trained autoencoder: the channels of most energy, and some residual blocks of its decoder.

        Parameters
        ----------
        network : VAE2d
            Of the same widths.
        blocks : tuple of tuple of int
            Which of its blocks become those of each stage here, coarse stages first.
        """
        given = network.state_dict()
        strength = network.log_scale - network.log_step
        kept = strength.argsort(descending=True)[: self.arch.channels].sort().values
        for name, value in self.state_dict().items():
            parts = name.split(".")
            if parts[:2] == ["synthesis", "stages"] and int(parts[3]) >= _OPENING:
                parts[3] = str(blocks[int(parts[2])][int(parts[3]) - _OPENING] + _OPENING)
            found = given[".".join(parts)]
            for axis, (have, want) in enumerate(zip(found.shape, value.shape, strict=True)):
                found = found if have == want else found.index_select(axis, kept)
            value.copy_(found)

    def over_grid(self, values: Tensor) -> Tensor:
        """``[B, C]`` to ``[B, C, 1, 1(, 1)]``."""
        return values.reshape(*values.shape, *[1] * self.ndim)

    def gains(self, steps: Tensor) -> Tensor:
        """Quantiser step of each sample and channel, ``[B, C]`` grey levels, for the samples' steps ``[B]``."""
        return steps[:, None] * torch.exp(self.log_step)[None]

    def coarseness(self, steps: Tensor) -> Tensor:
        """Log of the step, mapped to [-1, 1] over the ladder."""
        low, high = math.log(self.arch.step_min), math.log(self.arch.step_max)
        return (torch.log(steps) - low) / (high - low) * 2 - 1

    def quantise(self, latents: Tensor, steps: Tensor) -> Tensor:
        """Symbols of latents ``[B, C, *grid]`` at steps ``[B]``, rate-distortion optimal under Laplace densities."""
        gains = self.over_grid(self.gains(steps))
        return quantise(latents / gains, self.over_grid(torch.exp(self.log_scale)[None]) / gains)

    def decode(self, symbols: Tensor, steps: Tensor) -> Tensor:
        """Grey levels of symbols ``[B, C, *grid]`` at steps ``[B]``."""
        gains = self.gains(steps)
        squash = torch.rsqrt(2 * torch.exp(2 * self.log_scale)[None] + gains**2)
        grey: Tensor = self.synthesis(symbols * self.over_grid(gains), squash, self.coarseness(steps))
        return grey


class LatentsTrainer(Budgeted):
    """One decoder on its way.

    Parameters
    ----------
    config : LatentsTrainConfig
        Shape of network and training.
    sources : sequence of Source
        Volumes to learn from; for 3-D networks the isotropic ones are used.
    checkpoint : Path
        Written about once a minute and at the end; resumed from when it exists.
    start : (VAE2d, blocks), optional
        A trained autoencoder to go on from, and what `LatentsModel.start_from` keeps of it; the block KLT of the
        volumes when not given.
    """

    def __init__(
        self,
        config: LatentsTrainConfig,
        sources: Sequence[Source],
        checkpoint: Path,
        start: tuple[VAE2d, Blocks] | None = None,
    ) -> None:
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.config = config
        self.checkpoint = checkpoint
        self.rates = (config.rate_linear, config.rate)
        self.model: LatentsModel = LatentsModel(config.arch)
        self.model.analysis.requires_grad_(False)
        linear = self.model.synthesis.linear.weight
        others = [p for p in self.model.synthesis.parameters() if p is not linear and p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": [linear]}, {"params": others}]
        self.optimiser = torch.optim.Adam(groups, lr=config.rate, betas=(0.9, 0.98))
        saved = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else None
        # a resumed run must not draw the crops of its first minutes again
        seed = config.seed + (saved["step"] if saved else 0)
        self.sampler: CropSampler | VolumeSampler = (
            CropSampler(sources, config.crop[0], seed)
            if config.ndim == 2
            else VolumeSampler(sources, config.crop, seed)
        )
        if saved:
            self.model.load_state_dict(saved["model"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.step, self.elapsed_s = saved["step"], saved["elapsed_s"]
        elif start is not None:
            self.model.start_from(*start)
        else:
            self._start_from_klt()
        self.random = np.random.default_rng(seed)

    @torch.no_grad()
    def _start_from_klt(self) -> None:
        arch = self.config.arch
        assert isinstance(arch, Arch3dConfig)
        edges = tuple(3 * n for n in arch.stride)
        draws = (self.sampler.raw_crop(edges) for _ in range(500))  # type: ignore[arg-type]
        basis, deviations = fit_block_klt(draws, arch.stride, arch.channels)
        start_from_klt(self.model.analysis, self.model.synthesis, basis)  # type: ignore[arg-type]
        self.model.log_scale.copy_(torch.as_tensor(np.log(deviations / 2**0.5), dtype=torch.float32))

    def _advance(self, share: float) -> dict[str, float]:
        config = self.config
        grey = self.sampler.batch(config.batch)
        low, high = math.log(config.step_low), math.log(config.step_high)
        steps = torch.from_numpy(np.exp(self.random.uniform(low, high, config.batch)).astype(np.float32))
        error = self.error(grey, steps)
        # coarse and fine steps pull equally
        loss = torch.log(error + 1e-3).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.synthesis.parameters(), config.clip)
        if torch.isfinite(norm):  # some processors' bfloat16 convolutions lose a gradient now and then
            self.optimiser.step()
        self.step += 1
        return {"loss": float(loss.detach())}

    def error(self, grey: Tensor, steps: Tensor) -> Tensor:
        """Squared error per voxel ``[B]`` of crops at steps."""
        half = self.config.bfloat16 and torch.is_grad_enabled()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            with torch.no_grad():
                symbols = self.model.quantise(self.model.analysis(grey).float(), steps)
            decoded = self.model.decode(symbols, steps)
        return (decoded.float() - grey).square().flatten(1).mean(1)

    @torch.inference_mode()
    def validate(self, crops: int = 6) -> dict[str, list[float]]:
        """PSNR on held-out crops at five steps of the band, no augmentation; no bfloat16."""
        table: dict[str, list[float]] = {"step": [], "psnr": []}
        held_out = []
        for section in self.sampler.validation[:crops]:
            fits = [min(n, 256) // c * c for n, c in zip(section.shape, self.config.cell, strict=True)]
            if all(fits):
                cut = tuple(slice(n) for n in fits)
                held_out.append(torch.from_numpy(np.ascontiguousarray(section[cut]))[None, None])
        if not held_out:
            return {}
        for step in np.geomspace(self.config.step_low, self.config.step_high, 5):
            steps = torch.tensor([float(step)])
            mean = float(torch.cat([self.error(grey, steps) for grey in held_out]).mean())
            table["step"].append(round(float(step), 2))
            table["psnr"].append(round(10 * math.log10(255**2 / mean), 3))
        return table


def load_latents(path: Path) -> tuple[LatentsModel, LatentsTrainConfig, int]:
    """The networks, their configuration and the steps taken, from a checkpoint of `LatentsTrainer`."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    config = LatentsTrainConfig.from_dict(json.loads(saved["config"]))
    model = LatentsModel(config.arch)
    model.load_state_dict(saved["model"])
    return model.eval(), config, int(saved["step"])


SECTIONS = LatentsTrainConfig(
    arch=ArchConfig(
        stride=32,
        channels=192,
        step_min=4.0,
        step_max=640.0,
        enc_widths=(64, 112, 192),
        enc_blocks=(1, 1, 1),
        dec_widths=(64, 128, 256),
        dec_blocks=(2, 1, 1),
    ),
    rate=4e-4,
    bfloat16=True,
)
"""Sections: the transforms of vae-2d-s32, of whose decoder the blocks stay without which most is lost."""
SECTIONS_BLOCKS: Blocks = ((0,), (1,), (0, 1))
VOLUMES = LatentsTrainConfig(
    arch=Arch3dConfig(
        strides=((4, 4, 4), (2, 2, 2), (1, 2, 2)),
        channels=192,
        step_min=8.0,
        step_max=1600.0,
        enc_widths=(8, 8, 8),
        enc_blocks=(0, 0, 0),
        dec_widths=(32, 64, 96),
        dec_blocks=(1, 1, 1),
    ),
    step_low=20.0,
    step_high=800.0,
    crop=(16, 128, 128),
    batch=3,
    rate=1.5e-3,
    minutes=30.0,
)
"""Volumes: a block KLT, and a small network that looks after what blocks leave."""


def main() -> None:
    """``python -m zarr_emcodec.train.latents {sections,volumes} --data FOLDER --checkpoint FILE``."""
    import argparse

    from zarr_emcodec.runtime import find_model
    from zarr_emcodec.train.recipes import standard_sources
    from zarr_emcodec.train.start import model_from_directory

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("kind", choices=("sections", "volumes"))
    parser.add_argument("--data", type=Path, required=True, help="folder with the volumes of the shipped models")
    parser.add_argument("--checkpoint", type=Path, required=True, help="resumed from when present")
    parser.add_argument("--minutes", type=float, default=30.0)
    args = parser.parse_args()
    start = None
    config = VOLUMES
    if args.kind == "sections":
        config, start = SECTIONS, (model_from_directory(find_model("vae-2d-s32@1")), SECTIONS_BLOCKS)
    config = replace(config, minutes=args.minutes)
    trainer = LatentsTrainer(config, standard_sources(args.data), args.checkpoint, start)
    trainer.run(lambda progress: print(json.dumps(asdict(progress)), flush=True))


if __name__ == "__main__":
    main()
