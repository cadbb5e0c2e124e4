"""A checkpoint to a model directory: networks as ONNX, a quality ladder with frozen tables, a card with every figure.

The card is generated here and nowhere else. Weights are stored in float16 and computed with in float32. Of the
training data only statistics enter: which table fits each channel at each level.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zarr_emcodec.codecs import VAESpec, decode_many, encode_many
from zarr_emcodec.codecs.quantise import Ladder
from zarr_emcodec.entropy.tables import build_tables
from zarr_emcodec.quality.measure import squared_error
from zarr_emcodec.runtime import canonical_digest, list_models, options
from zarr_emcodec.train.arch.vae2d import VAE2d
from zarr_emcodec.train.data import CropSampler, Source
from zarr_emcodec.train.graph import macs, to_onnx
from zarr_emcodec.train.loop import TrainConfig, load_checkpoint

SCALES = tuple(float(s) for s in np.geomspace(0.08, 420.0, 60))  # 15 % apart: a wrong neighbour costs under 0.3 %
SHAPES = (0.7, 1.0, 1.6)  # peaked as high frequencies of texture are, Laplace, near Gaussian as low ones are
LEVELS = 256  # all that a frame's byte can name: 2 % of a step, 3 to 4 % of the bytes from one to the next
_TABLE_CROPS = 64
_MEASURED_RATIOS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)


class AnalysisOnly(nn.Module):
    """Grey levels to latents in grey levels of the transform: all that an encoder without hyper-latents is."""

    def __init__(self, analysis: nn.Module) -> None:
        super().__init__()
        self.analysis = analysis

    def forward(self, grey: Tensor) -> Tensor:
        """``[B, 1, *edges]`` to ``[B, C, *grid]``."""
        latents: Tensor = self.analysis(grey)
        return latents


class _Decoder(nn.Module):
    """The synthesis with the step and the coarseness of each level looked up in tables."""

    step: Tensor
    gain: Tensor
    variance: Tensor
    coarseness: Tensor

    def __init__(self, model: VAE2d, config: TrainConfig) -> None:
        super().__init__()
        self.synthesis = model.synthesis
        steps = torch.as_tensor(model.config.steps(LEVELS), dtype=torch.float32)
        # the networks saw no coarser or finer steps than these: beyond, they are told the nearest that they know
        known = steps.clamp(config.step_low, config.step_high)
        self.register_buffer("step", steps[:, None])
        self.register_buffer("gain", torch.exp(model.log_step)[None])
        self.register_buffer("variance", 2 * torch.exp(2 * model.log_scale)[None])
        self.register_buffer("coarseness", model.synthesis.powers(model.coarseness(known)))

    def forward(self, symbols: Tensor, level: Tensor) -> Tensor:
        gain = torch.index_select(self.step, 0, level) * self.gain  # (B, C)
        film = self.synthesis.film(torch.index_select(self.coarseness, 0, level))
        latents = symbols * gain[:, :, None, None]
        spread = torch.sqrt(self.variance + gain * gain)
        return self.synthesis.synthesise(latents, latents / spread[:, :, None, None], film)


def export(
    checkpoint: Path,
    folder: Path,
    *,
    name: str,
    version: int,
    ratio_range: tuple[float, float],
    sources: Sequence[Source],
    licence: str = "BSD-3-Clause",
) -> dict[str, Any]:
    """Write a model directory.

    Parameters
    ----------
    checkpoint : Path
        As `Trainer` writes it.
    folder : Path
        The model directory; files of the same names are replaced.
    name, version : str, int
        The model's id is ``name@version``; never reuse a version.
    ratio_range : (float, float)
        Ratios that the model is offered for.
    sources : sequence of Source
        The training volumes: their statistics choose the tables, their held-out sections are measured.
    licence : str
        Of the weights.

    Returns
    -------
    dict
        The card.
    """
    model, config, steps_taken = load_checkpoint(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    sampler = CropSampler(sources, 512, seed=1)
    with torch.inference_mode():
        arrays = fit_ladder(model, sampler)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    h = model.config.stride * 4
    files = {
        "encoder.onnx": to_onnx(AnalysisOnly(model.analysis), {"grey": torch.full((2, 1, h, h), 128.0)}, ["latents"]),
        "decoder.onnx": to_onnx(
            _Decoder(model, config),
            {"symbols": torch.zeros(2, model.config.channels, 4, 4), "level": torch.zeros(2, dtype=torch.int64)},
            ["grey"],
        ),
        "tables.npz": buffer.getvalue(),
    }
    for file, data in files.items():
        (folder / file).write_bytes(data)
    card = _card(model, config, files, f"{name}@{version}", ratio_range, licence)
    card["voxel_nm"] = {"z": [4, 120], "y": [4, 12], "x": [4, 12]}
    card["training"] = training_facts(config.to_dict(), steps_taken, sources)
    write_card(folder, card)
    card["measured"] = {"held_out": measure(card["id"], folder.parent, sampler.validation)}
    write_card(folder, card)
    (folder / "README.md").write_text(_readme(card), encoding="utf-8")
    return card


def training_facts(config: dict[str, Any], steps: int, sources: Sequence[Source]) -> dict[str, Any]:
    """What a card says of a training."""
    volumes = [{"file": s.path.name, "weight": s.weight, "held_out_sections": s.held_out} for s in sources]
    return {"config": config, "steps": steps, "volumes": volumes}


def measure(model_id: str, models: Path, sections: Sequence[NDArray[np.float32]]) -> list[dict[str, float]]:
    """Ratio and PSNR of the finished model on held-out sections, each a chunk of its own; all bytes of frames count."""
    card = next(m.card for m in list_models(folders=[models]) if m.card.id == model_id)
    chunks = [np.clip(np.rint(section), 0, 255).astype(np.uint8) for section in sections]
    low, high = card.ratio_range
    rows = []
    with options(model_path=(models,)):
        for ratio in [r for r in _MEASURED_RATIOS if low <= r <= high]:
            spec = VAESpec(ratio=ratio, model=model_id)
            frames = encode_many(spec, chunks)
            error = sum(squared_error(a, b) for a, b in zip(chunks, decode_many(frames), strict=True))
            voxels = sum(chunk.size for chunk in chunks)
            psnr = 10 * math.log10(255**2 * voxels / error)
            rows.append({"asked": ratio, "ratio": round(voxels / sum(map(len, frames)), 2), "psnr_db": round(psnr, 2)})
    return rows


def _readme(card: dict[str, Any]) -> str:
    """What a person wants to know of a model, from its card."""
    training, decoder, cost = card["training"], card["decoder"], card["mac_per_voxel"]
    rows = "\n".join(f"| {row['ratio']:g} | {row['psnr_db']:.2f} |" for row in card["measured"]["held_out"])
    volumes = ", ".join(volume["file"] for volume in training["volumes"])
    low, high = card["ratio_range"]
    paragraphs = [
        f"# {card['id']}",
        f"A 2-D autoencoder for electron micrographs: one network for ratios {low:g} to {high:g}.",
        f"{decoder['channels']} latent channels for each {decoder['stride'][0]} x {decoder['stride'][1]} voxels;"
        f" {card['parameters'] / 1e6:.1f} million parameters, stored in float16; {cost['encode']:.0f}"
        f" multiply-accumulates a voxel to encode, {cost['decode']:.0f} to decode.",
        f"| ratio | PSNR, dB |\n|---|---|\n{rows}",
        f"Measured on sections held out of the training volumes ({volumes}). Trained for {training['steps']} steps. "
        f"Licence of the weights: {card['licence']}. Everything else is in card.json.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write ``card.json``; also how measured figures are added to a card later."""
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def fit_ladder(model: VAE2d, sampler: CropSampler) -> dict[str, NDArray[Any]]:
    """Tables, and for each level and channel the table that codes the training crops in the fewest bits.

    Returns
    -------
    dict
        Members of ``tables.npz``: those of `Tables`, ``index``, ``step`` and ``gain``.
    """
    stride = model.config.stride
    columns = []
    for _ in range(_TABLE_CROPS):
        crop = sampler.raw_crop(512)
        h, w = (n // stride * stride for n in crop.shape)
        latents = model.analysis(torch.from_numpy(np.ascontiguousarray(crop[:h, :w]))[None, None])
        columns.append(latents[0].flatten(1).numpy())
    latents_flat = np.concatenate(columns, axis=1)[:, :: max(1, stride // 8)]  # (C, m), some 30,000 cells
    tables = build_tables(SCALES, SHAPES)
    arrays = {
        **tables.to_arrays(),
        "step": model.config.steps(LEVELS).astype(np.float32),
        "gain": np.exp(model.log_step.numpy()),
    }
    return {**arrays, "index": best_index(arrays, latents_flat, (LEVELS, model.config.channels))}


def best_index(
    arrays: dict[str, NDArray[Any]], latents: NDArray[np.float32], shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """The fixed table of each channel at each level, of `shape`, that codes latents (C, m) in the fewest bits."""
    index = np.full(shape, 1 + len(SCALES) + len(SCALES) // 3, np.uint8)
    ladder = Ladder({**arrays, "index": index})
    for level in range(len(index)):
        # thresholds of the quantiser depend on the tables: both are found in turns, from the level before
        guess = index[max(level - 1, 0)]
        for _ in range(2 if level else 4):
            guess = ladder.best_tables(ladder.quantise(latents, level, guess))
        index[level] = guess
    return index


def _card(
    model: VAE2d,
    config: TrainConfig,
    files: dict[str, bytes],
    model_id: str,
    ratio_range: tuple[float, float],
    licence: str,
) -> dict[str, Any]:
    arch = model.config
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    encoder_halo, decoder_halo = arch.halo()
    decoder = {
        "files": {name: hashes[name] for name in ("decoder.onnx", "tables.npz")},
        "ndim": 2,
        "stride": [arch.stride, arch.stride],
        "channels": arch.channels,
        "levels": LEVELS,
        "halo": [decoder_halo, decoder_halo],
    }
    edge = 256
    grid = edge // arch.stride
    return {
        "format": 1,
        "id": model_id,
        "codec": "vae",
        "digest": f"sha256:{canonical_digest(decoder).hex()}",
        "decoder": decoder,
        "encoder": {"files": {"encoder.onnx": hashes["encoder.onnx"]}, "halo": [encoder_halo, encoder_halo]},
        "ratio_range": list(ratio_range),
        "parameters": sum(p.numel() for p in model.parameters()),
        "mac_per_voxel": {
            "encode": round(macs(AnalysisOnly(model.analysis), (torch.zeros(1, 1, edge, edge),)) / edge**2, 1),
            "decode": round(
                macs(
                    _Decoder(model, config),
                    (torch.zeros(1, arch.channels, grid, grid), torch.zeros(1, dtype=torch.int64)),
                )
                / edge**2,
                1,
            ),
        },
        "licence": licence,
    }


def main() -> None:
    """``python -m zarr_emcodec.train.export``: one checkpoint to one model directory."""
    import argparse

    from zarr_emcodec.train.recipes import RATIOS, RECIPES, standard_sources

    parser = argparse.ArgumentParser(prog="python -m zarr_emcodec.train.export", description=main.__doc__)
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument(
        "--volume", type=Path, action="append", default=[], help="TIFF or .npy it was trained on; repeat"
    )
    parser.add_argument("--data", type=Path, help="folder with the volumes of the shipped models")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder that gets <name>/")
    parser.add_argument("--name", help="of the model; the recipe's when not given")
    parser.add_argument("--version", type=int, default=1, help="never reuse one that was released")
    args = parser.parse_args()
    sources = [Source(path, held_out=1) for path in args.volume] + (standard_sources(args.data) if args.data else [])
    if not sources:
        parser.error("give --volume or --data")
    name = args.name or args.recipe
    card = export(
        args.checkpoint,
        args.models / name,
        name=name,
        version=args.version,
        ratio_range=RATIOS[args.recipe],
        sources=sources,
    )
    print(json.dumps({key: card[key] for key in ("id", "digest", "parameters", "mac_per_voxel", "ratio_range")}))


if __name__ == "__main__":
    main()
