"""The recipes of the shipped models: which network, which band of ratios, which volumes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from zarr_emcodec.train.arch.context import REACHES
from zarr_emcodec.train.arch.vae2d import ArchConfig
from zarr_emcodec.train.arch.vae3d import Arch3dConfig
from zarr_emcodec.train.arch.variable import VariableConfig
from zarr_emcodec.train.arch.vqvae import VQConfig
from zarr_emcodec.train.data import Source
from zarr_emcodec.train.loop import TrainConfig
from zarr_emcodec.train.variable import VariableTrainConfig
from zarr_emcodec.train.vq import VQTrainConfig

RECIPES: dict[str, TrainConfig] = {
    # to 48x: blocks of 16 x 16 are where a 2-D block transform of EM levels off at these rates
    "vae-2d-s16": TrainConfig(
        arch=ArchConfig(
            stride=16, channels=192, enc_widths=(64, 128), enc_blocks=(1, 1), dec_widths=(64, 160), dec_blocks=(2, 2)
        ),
        step_low=5.0,
        step_high=120.0,
    ),
    # from 32x: at fewer than 32 bits per 16 x 16 block larger blocks save what the low frequencies cost
    "vae-2d-s32": TrainConfig(
        arch=ArchConfig(
            stride=32,
            channels=256,
            enc_widths=(64, 112, 192),
            enc_blocks=(1, 1, 1),
            dec_widths=(64, 128, 256),
            dec_blocks=(2, 2, 2),
        ),
        step_low=25.0,
        step_high=350.0,
        crop=256,
        batch=6,
    ),
}


_S16 = RECIPES["vae-2d-s16"].arch
_S32 = RECIPES["vae-2d-s32"].arch
_V3 = Arch3dConfig(
    strides=((4, 4, 4), (2, 2, 2), (1, 1, 2)),
    channels=192,
    enc_widths=(56, 112, 144),
    enc_blocks=(0, 1, 1),
    dec_widths=(56, 128, 160),
    dec_blocks=(1, 1, 2),
)

VQ_RECIPES: dict[str, VQTrainConfig] = {
    # one token for each 4 x 4, 8 x 8, 16 x 16 voxels; four share a cell of twice the edge
    "vqvae-2d-16": VQTrainConfig(
        model=VQConfig(
            ArchConfig(stride=8, channels=64, enc_widths=(64,), enc_blocks=(2,), dec_widths=(80,), dec_blocks=(3,)),
            lattice=(2, 2),
        ),
        crop=(128, 128),
        batch=8,
    ),
    "vqvae-2d-64": VQTrainConfig(model=VQConfig(_S16, lattice=(2, 2)), crop=(192, 192), batch=8),
    "vqvae-2d-256": VQTrainConfig(model=VQConfig(_S32, lattice=(2, 2)), crop=(256, 256), batch=6),
    "vqvae-2d-1024": VQTrainConfig(model=VQConfig(_S32), crop=(256, 256), batch=6),
    # the second level of vqvae-2d-1024: tokens of 16 x 16 voxels for what the top leaves over
    "vqvae-2d-1024-bottom": VQTrainConfig(
        model=VQConfig(_S32),
        bottom=ArchConfig(
            stride=16, channels=96, enc_widths=(64, 96), enc_blocks=(1, 1), dec_widths=(64, 128), dec_blocks=(2, 2)
        ),
        crop=(256, 256),
        batch=6,
    ),
    "vqvae-3d-256": VQTrainConfig(
        model=VQConfig(
            _V3,
            lattice=(1, 2, 2),
        ),
        crop=(32, 64, 96),
        batch=4,
    ),
    "vqvae-3d-1024": VQTrainConfig(
        model=VQConfig(
            Arch3dConfig(
                strides=((4, 4, 4), (2, 2, 2), (1, 1, 2)),
                channels=64,
                enc_widths=(48, 112, 160),
                enc_blocks=(0, 1, 1),
                dec_widths=(48, 128, 176),
                dec_blocks=(1, 1, 2),
            ),
            lattice=(1, 1, 1),
        ),
        crop=(32, 64, 96),
        batch=4,
    ),
}

VARIABLE_RECIPES: dict[str, VariableTrainConfig] = {
    # start from vae-2d-s16: its 192 latents of 16 x 16 voxels and nearly all of the rest, so that high rates lose
    # nothing; larger blocks would serve low rates better, which the entropy model makes up for
    "vae-2d-best": VariableTrainConfig(
        model=VariableConfig(
            dataclasses.replace(
                _S16, channels=240, step_min=2.5, step_max=1200.0, enc_blocks=(1, 2), dec_blocks=(2, 3)
            ),
            hyper=8,
            hyper_width=64,
            context_width=96,
            reaches=REACHES,
        ),
        step_low=4.0,
        step_high=800.0,
        crop=(192, 192),
        batch=9,
        rate=8e-4,
        rate_transforms=2e-4,
        rate_linear=3e-5,
    ),
    # a quarter of the multiplications, on smaller blocks; starts from their KLT
    "vae-2d-fast": VariableTrainConfig(
        model=VariableConfig(
            ArchConfig(
                stride=16,
                channels=208,
                step_min=2.5,
                step_max=1200.0,
                enc_widths=(32, 96),
                enc_blocks=(1, 1),
                dec_widths=(32, 128),
                dec_blocks=(1, 1),
            ),
            hyper=8,
            hyper_width=48,
            context_width=48,
            reaches=REACHES,
        ),
        step_low=4.0,
        step_high=800.0,
        crop=(192, 192),
        batch=9,
        rate=1.5e-3,
        rate_transforms=1.5e-3,
        rate_linear=2e-4,
    ),
    # start from vqvae-3d-256, which was trained where volumes are worth most; added latents serve the high rates
    "vae-3d": VariableTrainConfig(
        model=VariableConfig(
            dataclasses.replace(_V3, channels=512, step_min=4.0, step_max=1600.0), hyper=32, context_width=96
        ),
        step_low=7.0,
        step_high=800.0,
        crop=(16, 96, 96),
        batch=4,
        more_crops=((64, 64, 64),),  # or chunks deeper than a cell would be strange to it
        orthogonal=1.5,
        rate=6e-4,
        rate_transforms=6e-4,
        rate_linear=5e-5,
        warm_up=100,
    ),
}

AUTO: dict[str, tuple[float, float] | bool] = {
    "vae-2d-fast": False,
    "vae-2d-best": (4.0, 24.0),
    "vae-3d": (24.0, 512.0),
}
"""Where ``model="auto"`` takes a model: False of those made for speed. On held-out FIB-SEM the curves of sections that
refer to one another and of volumes cross at 24x."""

RATIOS: dict[str, tuple[float, float]] = {"vae-2d-s16": (4.0, 48.0), "vae-2d-s32": (32.0, 512.0)}
"""The ratios that each model is offered for. Their held-out curves cross at 32x."""


def standard_sources(folder: Path) -> list[Source]:
    """The volumes that the shipped models were trained on, as far as they lie in `folder`.

    Weights follow what users store: much FIB-SEM and serial-section TEM of nervous tissue, some of everything else.
    """
    table = [
        Source(folder / "fib_medulla_train.tif", weight=5.0, isotropic=True, held_out=16),
        Source(folder / "sstem_cremi_a.tif", weight=3.0, held_out=1),
        Source(folder / "sbem_hela_a.tif", weight=0.7),
        Source(folder / "sbem_hela_b.tif", weight=0.7, held_out=1),
        Source(folder / "temca_tiles.tif", weight=1.2, held_out=1),
        Source(folder / "temca_full.tif", weight=0.8),
        Source(folder / "tem_myelin_u16.tif", weight=1.0, held_out=1),
    ]
    return [source for source in table if source.path.exists()]


VARIABLE_RATIOS: dict[str, tuple[float, float]] = {
    "vae-2d-best": (4.0, 512.0),
    "vae-2d-fast": (4.0, 512.0),
    "vae-3d": (6.0, 512.0),
}
"""The ratios that the variable-rate models are offered for."""
