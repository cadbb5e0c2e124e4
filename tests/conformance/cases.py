"""What every codec is put through: configurations with their promises, and the arrays that they must take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.models import CONTEXT_FOLDER, FOLDER
from tests.volumes import Array, as_dtype, checkerboard, fibsem, noise, padded


@dataclass(frozen=True)
class Case:
    """One configuration of one codec.

    `exact`, `worst` and `floor_db` say what it promises of every chunk; `ratio` of chunks large enough. Small
    models are looked for in `models`.
    """

    id: str
    words: dict[str, Any]
    codec: str = "vae"
    exact: bool = False
    worst: float | None = None
    floor_db: float | None = None
    ratio: float | None = None
    models: Path = FOLDER


def in_context(name: str, words: dict[str, Any], **promise: Any) -> Case:
    """A configuration of a small model with a learned entropy model."""
    models = {"3d": "tiny-context3d", "stack": "tiny-stack"}
    model = models.get(name.partition("-")[0], "tiny-context")
    return Case(f"context-{name}", {"model": model, **words}, models=CONTEXT_FOLDER, **promise)


CASES = [
    Case("vae-16x", {"ratio": 16}, ratio=16),
    Case("vae-64x", {"ratio": 64}, ratio=64),
    Case("vae-nominal", {"ratio": 24, "mode": "nominal"}, ratio=24),
    Case("vae-psnr", {"min_psnr": 34.0}, floor_db=34.0),
    Case("vae-psnr-and-ratio", {"ratio": 32, "min_psnr": 30.0}, floor_db=30.0),
    Case("vae-error", {"max_error": 40}, worst=40),
    Case("vae-lossless", {"max_error": 0}, exact=True),
    Case("vqvae-top", {"ratio": 64}, "vqvae", ratio=64),
    Case("vqvae-full", {"ratio": 12.8}, "vqvae", ratio=12.8),
    Case("vqvae-blocks", {"ratio": 24, "model": "tiny-vq"}, "vqvae"),
    Case("vqvae-prior", {"ratio": 64, "tier": "prior"}, "vqvae", ratio=64),
    Case("vqvae-nominal", {"ratio": 12.8, "mode": "nominal"}, "vqvae"),
    Case("vqvae-one-level", {"ratio": 256}, "vqvae"),
    Case("vqvae-3d", {"ratio": 32, "voxel_nm": (8, 8, 8)}, "vqvae"),
    Case("vqvae-psnr", {"ratio": 64, "min_psnr": 28.0}, "vqvae", floor_db=28.0),
    Case("vqvae-error", {"ratio": 64, "max_error": 40}, "vqvae", worst=40),
    Case("vqvae-lossless", {"max_error": 0}, "vqvae", exact=True),
    in_context("ratio", {"ratio": 48}, ratio=48),
    in_context("psnr", {"min_psnr": 24.0}, floor_db=24.0),
    in_context("error", {"max_error": 60}, worst=60),
    in_context("lossless", {"max_error": 0}, exact=True),
    in_context("3d-ratio", {"ratio": 24}, ratio=24),
    in_context("3d-psnr-and-ratio", {"ratio": 24, "min_psnr": 27.0}, floor_db=27.0),
    in_context("3d-error", {"max_error": 60}, worst=60),
    in_context("stack-ratio", {"ratio": 48}, ratio=48),
    in_context("stack-psnr-and-ratio", {"ratio": 48, "min_psnr": 22.0}, floor_db=22.0),
    in_context("stack-error", {"max_error": 60}, worst=60),
    Case("inr-siren", {"ratio": 40, "effort": 0}, "inr", ratio=40),
    Case("inr-hybrid", {"ratio": 40, "effort": 0, "prior": "vae-2d-s32"}, "inr", ratio=40),
    Case("inr-error", {"ratio": 40, "effort": 0, "layers": 5, "bits": 8, "max_error": 60}, "inr", worst=60),
    Case("inr-latents", {"backbone": "latents", "ratio": 40, "effort": 0}, "inr", ratio=40),
    Case(
        "inr-latents-psnr",
        {"backbone": "latents", "ratio": 40, "effort": 0, "min_psnr": 29.0},
        "inr",
        floor_db=29.0,
    ),
    Case("inr-lossless", {"max_error": 0}, "inr", exact=True),
]

KINDS = {
    f"emcodec.{codec}": [case.id for case in CASES if case.codec == codec] for codec in {case.codec for case in CASES}
}
"""Which cases stand for each registered codec."""


def shapes() -> dict[str, Array]:
    """Chunks of 2 to 5 axes, smaller and larger than a block, ragged and not."""
    v = fibsem()
    return {
        "2d": v[3, :96, :112],
        "2d-ragged": v[3, :37, :53],
        "2d-small": v[0, :5, :3],
        "one-voxel": v[:1, :1, :1],
        "3d": v[:4],
        "3d-ragged": v[:3, :40, :127],
        "3d-thin": v[:6, :1, :64],
        "3d-deep": v[:32, :32, :32],
        "4d": v[:4, :48, :48].reshape(2, 2, 48, 48),
        "5d": v[:8, :33, :40].reshape(2, 1, 4, 33, 40),
    }


def contents() -> dict[str, Array]:
    """Chunks that are not tissue, or not only."""
    v = fibsem()
    hole = v[:4].copy()
    hole[:, 30:90, 40:100] = 0
    saturated = v[:2].copy()
    saturated[saturated > 128] = 255
    return {
        "constant": v[:2] * 0 + 77,
        "noise": noise((2, 64, 64)),
        "checkerboard": checkerboard((2, 64, 64)),
        "saturated": saturated,
        "edge-chunk": padded(v[:3, :100, :70], (8, 128, 128)),
        "edge-chunk-white": padded(v[:3, :100, :70], (8, 128, 128), 255),
        "hole": hole,
        "one-section-left": padded(v[:1, :64, :64], (16, 64, 64)),
    }


def dtypes() -> dict[str, Array]:
    """The same tissue in each dtype and byte order."""
    v = fibsem()[:3, :80, :96]
    out = {name: as_dtype(v, name) for name in ("uint8", "uint16", "int16", "float32")}
    out["big-endian uint16"] = out["uint16"].astype(">u2")
    out["big-endian float32"] = out["float32"].astype(">f4")
    return out


def arrays() -> dict[str, Array]:
    """All of the above by name."""
    return {**shapes(), **contents(), **dtypes()}
