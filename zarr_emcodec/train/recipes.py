"""The recipes of the shipped models: which network, which band of ratios, which volumes."""

from __future__ import annotations

from pathlib import Path

from zarr_emcodec.train.arch.vae2d import ArchConfig
from zarr_emcodec.train.data import Source
from zarr_emcodec.train.loop import TrainConfig

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
