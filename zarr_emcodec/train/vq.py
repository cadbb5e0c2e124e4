"""Fitting vector-quantised models: one level, or the second level of a finished one.

A recipe and volumes go in, a checkpoint comes out, resumable and within a time budget like that of `loop`. Every term
of the loss is logged on its own; each weight may be zero.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zarr_emcodec.errors import SpecError
from zarr_emcodec.train.adversary import Discriminator, hinge
from zarr_emcodec.train.arch.vae2d import ArchConfig, VAE2d, block_order
from zarr_emcodec.train.arch.vae3d import Analysis3d, Synthesis3d, start_from_klt
from zarr_emcodec.train.arch.vqvae import VQVAE, TwoLevel, VQConfig, perplexity
from zarr_emcodec.train.data import Source, StandardSampler
from zarr_emcodec.train.klt import fit_block_klt, fit_klt
from zarr_emcodec.train.loop import Budgeted
from zarr_emcodec.train.losses import ridge_distance, ssim_loss


@dataclass(frozen=True)
class VQTrainConfig:
    """How a vector-quantised network is fitted; every field has its reason beside it.

    Attributes
    ----------
    model : VQConfig
        The one-level network, or the top of a two-level one.
    bottom : ArchConfig or None
        The second level, trained behind a finished top that stays as it is.
    """

    model: VQConfig = field(default_factory=VQConfig)
    bottom: ArchConfig | None = None
    crop: tuple[int, ...] = (256, 256)
    batch: int = 6
    minutes: float = 30.0
    rate: float = 1e-3  # Adam, convolutional paths
    rate_linear: float = 1e-4  # KLT weights are already good: move them gently
    warm_up: int = 200  # steps until the full learning rate
    commitment: float = 0.25  # of the squared error per voxel between vectors and codes; 0.25 after van den Oord 2017
    ssim: float = 0.0  # weight of 1 - SSIM, in units of squared standard deviations
    structure: float = 0.0  # weight of the difference of ridge responses: membranes are dark ridges
    adversarial: float = 0.0  # weight of a patch discriminator; invents texture, costs PSNR
    klt_crops: int = 300  # that the block KLT is fitted on
    seeding: int = 30_000  # vectors that the first codebooks are clustered from
    restart_every: int = 100  # steps between looks for dead codes
    restart_until: float = 0.7  # share of the budget after which the codebook settles
    clip: float = 1.0
    seed: int = 0
    threads: int = 1
    bfloat16: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as it stands in checkpoints and cards."""
        data = {k: getattr(self, k) for k in self.__dataclass_fields__}
        return {**data, "model": self.model.to_dict(), "bottom": self.bottom.to_dict() if self.bottom else None}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> VQTrainConfig:
        """Inverse of `to_dict`."""
        bottom = ArchConfig.from_dict(data["bottom"]) if data["bottom"] else None
        words = {**data, "model": VQConfig.from_dict(data["model"]), "bottom": bottom, "crop": tuple(data["crop"])}
        return cls(**words)


class VQTrainer(Budgeted):
    """One vector-quantised network on its way.

    Parameters
    ----------
    config : VQTrainConfig
        Shape of network and training.
    sources : sequence of Source
        Volumes to learn from.
    checkpoint : Path
        Written about once a minute and at the end; resumed from when it exists.
    start : VQVAE or VAE2d, optional
        A trained network to go on from; for a second level the finished top, which is required.
    device : str
        "cpu" or "cuda".
    """

    def __init__(
        self,
        config: VQTrainConfig,
        sources: Sequence[Source],
        checkpoint: Path,
        start: VQVAE | TwoLevel | VAE2d | None = None,
        device: str = "cpu",
    ) -> None:
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.config, self.checkpoint, self.device = config, checkpoint, torch.device(device)
        self.rates = (config.rate_linear, config.rate)
        saved = torch.load(checkpoint, map_location=self.device, weights_only=True) if checkpoint.exists() else None
        # a resumed run must not draw the crops of its first minutes again
        self.sampler = StandardSampler(sources, config.crop, config.seed + (saved["step"] if saved else 0))
        self.model: VQVAE | TwoLevel = build(config)
        if saved:
            self.model.load_state_dict(saved["model"])
        else:
            with torch.no_grad():
                self._start(start)
        self.model.to(self.device)
        trained = self.model.bottom if isinstance(self.model, TwoLevel) else self.model
        self.model.requires_grad_(False)
        trained.requires_grad_(True)
        if isinstance(trained, VQVAE) and isinstance(trained.synthesis, Synthesis3d):
            trained.synthesis.fold.requires_grad_(False)
        gentle = {id(p) for name, p in trained.named_parameters() if "linear" in name}
        parameters = [p for p in trained.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(
            [
                {"params": [p for p in parameters if id(p) in gentle], "lr": config.rate_linear},
                {"params": [p for p in parameters if id(p) not in gentle], "lr": config.rate},
            ],
            betas=(0.9, 0.98),
        )
        self.discriminator: Discriminator | None = None
        if config.adversarial:
            self.discriminator = Discriminator(config.model.ndim).to(self.device)
            self.critic = torch.optim.Adam(self.discriminator.parameters(), lr=2e-4, betas=(0.5, 0.9))
        if saved:
            self.optimiser.load_state_dict(saved["optimiser"])
            self.step, self.elapsed_s = saved["step"], saved["elapsed_s"]

    def _start(self, start: VQVAE | TwoLevel | VAE2d | None) -> None:
        model = self.model
        if isinstance(model, TwoLevel):
            if isinstance(start, TwoLevel):
                model.load_state_dict(start.state_dict())
                return
            if not isinstance(start, VQVAE):
                raise SpecError("a second level needs a finished top to stand on.", name="start", value=str(start))
            model.top.load_state_dict(start.state_dict())
            self._start_bottom(model)
        elif isinstance(start, VQVAE):
            model.load_state_dict(start.state_dict())
        else:
            if start is None:
                self._start_from_klt(model)
            elif isinstance(start, VAE2d):
                start_from_vae(model, start)
            self._seed_codebook(model)

    def _start_from_klt(self, model: VQVAE) -> None:
        arch = model.config.arch
        crops = (self.sampler.raw_crop(self.config.crop) for _ in range(self.config.klt_crops))
        if isinstance(model.analysis, Analysis3d):
            assert isinstance(model.synthesis, Synthesis3d)
            basis, _ = fit_block_klt(crops, model.synthesis.config.stride, arch.channels)
            start_from_klt(model.analysis, model.synthesis, basis)
        else:
            assert isinstance(arch, ArchConfig)
            basis, _ = fit_klt(crops, arch.stride, arch.channels)
            weight = torch.as_tensor(basis[:, block_order(arch.stride)], dtype=torch.float32)
            model.analysis.linear.weight.copy_(weight[:, :, None, None])  # type: ignore[operator,union-attr]
            model.synthesis.linear.weight.copy_(weight.T[:, :, None, None])

    def _seed_codebook(self, model: VQVAE) -> None:
        cells = math.prod(self.config.crop) // math.prod(model.config.stride) // model.config.groups
        batches = max(4, self.config.seeding // (cells * self.config.batch))
        vectors = torch.cat([model.vectors(self.sampler.batch(self.config.batch)) for _ in range(batches)])
        flat = flatten(vectors)[: 2 * self.config.seeding]
        model.quantiser.seed(flat, random=self.config.seed)
        model.spread.copy_(flat.std(0).clamp(min=1.0))

    def _start_bottom(self, model: TwoLevel) -> None:
        arch = model.bottom.arch

        def left(batch: int) -> tuple[Tensor, Tensor]:
            grey = self.sampler.batch(batch)
            codes = model.top.quantiser.look_up(model.top.quantiser.choose(model.top.vectors(grey)))
            return grey, model.top.decode(codes)

        pairs = [left(self.config.batch) for _ in range(max(8, self.config.klt_crops // self.config.batch))]
        crops = [128 + (grey - top)[i, 0].numpy() for grey, top in pairs for i in range(len(grey))]
        basis, _ = fit_block_klt(crops, (arch.stride,) * 2, arch.channels)
        weight = torch.as_tensor(basis[:, block_order(arch.stride)], dtype=torch.float32)
        model.bottom.analysis.linear.weight.copy_(weight[:, :, None, None])
        model.bottom.linear.weight.copy_(weight.T[:, :, None, None])
        vectors = torch.cat([flatten(model.bottom.vectors(grey, top)) for grey, top in pairs])
        model.bottom.quantiser.seed(vectors[: 2 * self.config.seeding], random=self.config.seed)
        model.bottom.spread.copy_(vectors.std(0).clamp(min=1.0))

    def _advance(self, share: float) -> dict[str, float]:
        return self.train_step(restarts=share < self.config.restart_until)

    def train_step(self, *, restarts: bool = True) -> dict[str, float]:
        """One step of the optimiser and of the codebook; every term of the loss by name."""
        config = self.config
        grey = self.sampler.batch(config.batch).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.bfloat16):
            decoded, vectors, tokens, codes = self.forward(grey)
        decoded = decoded.float()
        voxels = grey.numel()
        terms = {
            "mse": (decoded - grey).square().mean() / 32**2,
            "commitment": config.commitment * (codes - vectors).square().sum() / voxels / 32**2,
        }
        if config.ssim:
            terms["ssim"] = config.ssim * ssim_loss(decoded / 32, grey / 32)
        if config.structure:
            terms["structure"] = config.structure * ridge_distance(decoded / 32, grey / 32)
        if self.discriminator:
            terms["adversarial"] = config.adversarial * -self.discriminator((decoded - 128) / 32).mean()
        loss = torch.stack(list(terms.values())).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([p for g in self.optimiser.param_groups for p in g["params"]], config.clip)
        self.optimiser.step()
        if self.discriminator:
            self.critic.zero_grad(set_to_none=True)
            judged = hinge(self.discriminator, (grey - 128) / 32, (decoded.detach() - 128) / 32)
            judged.backward()  # type: ignore[no-untyped-call]
            self.critic.step()
            terms["critic"] = judged
        self._follow(flatten(vectors.detach()), flatten(tokens), restarts)
        self.step += 1
        return {"loss": float(loss.detach()), **{key: float(value.detach()) for key, value in terms.items()}}

    def _follow(self, vectors: Tensor, tokens: Tensor, restarts: bool) -> None:
        model = self.model
        quantiser = model.bottom.quantiser if isinstance(model, TwoLevel) else model.quantiser
        quantiser.follow(vectors, tokens)
        if restarts and self.step % self.config.restart_every == self.config.restart_every - 1:
            quantiser.restart(vectors)

    def forward(self, grey: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Decoded grey levels, and the vectors, tokens and codes of the level in training."""
        model = self.model
        if isinstance(model, VQVAE):
            out: tuple[Tensor, Tensor, Tensor, Tensor] = model(grey)
            return out
        with torch.no_grad():
            top_codes = model.top.quantiser.look_up(model.top.quantiser.choose(model.top.vectors(grey)))
            top, features = model.decode_top(top_codes)
        vectors = model.bottom.vectors(grey, top)
        tokens = model.bottom.quantiser.choose(vectors.detach())
        codes = model.bottom.quantiser.look_up(tokens)
        straight = vectors + (codes - vectors).detach()
        return top + model.bottom.decode(straight, features), vectors, tokens, codes

    @torch.inference_mode()
    def validate(self) -> dict[str, list[float]]:
        """PSNR on held-out crops (peak 255, standard grey levels), perplexity of the tokens."""
        squared, voxels, tokens = 0.0, 0, []
        for held_out in self.sampler.validation[:16]:
            edges = [min(n, 256) // c * c for n, c in zip(held_out.shape, self.config.model.cell, strict=True)]
            if not all(edges):
                continue
            grey = torch.from_numpy(np.ascontiguousarray(held_out[tuple(slice(n) for n in edges)]))[None, None]
            decoded, _, chosen, _ = self.forward(grey.to(self.device))
            squared += float((decoded.clamp(0, 255) - grey.to(self.device)).square().sum())
            voxels += grey.numel()
            tokens.append(flatten(chosen))
        if not tokens:
            return {}
        codes = self.config.model.codes
        return {
            "psnr": [round(10 * math.log10(255**2 * voxels / squared), 3)],
            "perplexity": [round(perplexity(torch.cat(tokens), codes), 1)],
        }


def flatten(vectors: Tensor) -> Tensor:
    """``(B, D, ...)`` to ``(N, D)``, in the order of the flattened tokens."""
    return vectors.movedim(1, -1).reshape(-1, vectors.shape[1])


def build(config: VQTrainConfig) -> VQVAE | TwoLevel:
    """The network of a configuration, untrained."""
    top = VQVAE(config.model)
    return TwoLevel(top, config.bottom) if config.bottom else top


def start_from_vae(model: VQVAE, vae: VAE2d, *, coarseness: float = 1.0) -> None:
    """Take over the transforms of a variational model: the warm-up without quantisation is done already.

    Parameters
    ----------
    model : VQVAE
        Of the same architecture.
    vae : VAE2d
        Trained.
    coarseness : float
        The level that its decoder is told: 1 is the coarsest of its ladder.
    """
    for mine, theirs in ((model.analysis, vae.analysis), (model.synthesis, vae.synthesis)):
        mine.load_state_dict(theirs.state_dict())
    level = vae.synthesis.film_of(torch.tensor([coarseness]))[0]
    nn.init.zeros_(model.synthesis.film.weight)
    model.synthesis.film.bias.copy_(level)


def load_checkpoint(path: Path) -> tuple[VQVAE | TwoLevel, VQTrainConfig, int]:
    """The network, its configuration and the steps taken, from a checkpoint of `VQTrainer`."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    config = VQTrainConfig.from_dict(json.loads(saved["config"]))
    model = build(config)
    model.load_state_dict(saved["model"])
    return model.eval(), config, int(saved["step"])


@torch.no_grad()
def prune(model: VQVAE, channels: int) -> VQVAE:
    """The same network without the latent channels in which the code vectors say least.

    Parameters
    ----------
    model : VQVAE
        Of a 2-D or 3-D architecture.
    channels : int
        To keep.

    Returns
    -------
    VQVAE
        Smaller; to be trained on for a while, since what the dropped channels said is missing.
    """
    quantiser = model.quantiser
    energy = (quantiser.codebook.square() * quantiser.count[:, :, None]).sum((0, 1))
    kept = torch.sort(torch.argsort(energy, descending=True)[:channels]).values
    config = replace(model.config, arch=replace(model.config.arch, channels=channels))
    small = VQVAE(config)
    state = model.state_dict()
    for name, like in small.state_dict().items():
        value = state[name]
        axes = [axis for axis, (a, b) in enumerate(zip(value.shape, like.shape, strict=True)) if a != b]
        state[name] = value.index_select(axes[0], kept) if axes else value
    small.load_state_dict(state)
    return small


def tokens_of(model: VQVAE | TwoLevel, grey: NDArray[np.float32]) -> list[NDArray[np.uint8]]:
    """Token grids of a section or volume in standard grey levels, coarsest first."""
    top = model.top if isinstance(model, TwoLevel) else model
    edges = [n // c * c for n, c in zip(grey.shape, top.config.cell, strict=True)]
    image = torch.from_numpy(np.ascontiguousarray(grey[tuple(slice(n) for n in edges)]))[None, None]
    with torch.inference_mode():
        chosen = top.quantiser.choose(top.vectors(image))
        grids = [interleave(chosen[0].numpy(), top.config.lattice)]
        if isinstance(model, TwoLevel):
            decoded = top.decode(top.quantiser.look_up(chosen))
            grids.append(model.bottom.quantiser.choose(model.bottom.vectors(image, decoded))[0, 0].numpy())
    return [grid.astype(np.uint8) for grid in grids]


def interleave(tokens: NDArray[np.int64], lattice: tuple[int, ...]) -> NDArray[np.int64]:
    """Tokens ``(G, *cells)`` as a grid in which each cell's stand on its `lattice`, row-major."""
    ndim = len(lattice)
    shaped = tokens.reshape(*lattice, *tokens.shape[1:])
    order = [axis for i in range(ndim) for axis in (ndim + i, i)]
    return shaped.transpose(order).reshape([n * m for n, m in zip(tokens.shape[1:], lattice, strict=True)])
