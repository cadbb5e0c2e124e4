"""A checkpoint of a variable-rate VAE to a model directory: transforms, the entropy model in whole numbers, a card.

What training only approximates is settled here on training volumes with the finished networks: which shape of table
fits each channel at each level, and the rates that an encoder guesses sizes by.
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

from zarr_emcodec import transform
from zarr_emcodec.codecs import inference
from zarr_emcodec.codecs.context import ContextModel
from zarr_emcodec.codecs.context_coding import code_sections
from zarr_emcodec.codecs.context_order import part_counts
from zarr_emcodec.codecs.quantise import HALF_WIDTH, Ladder
from zarr_emcodec.entropy.tables import build_tables
from zarr_emcodec.runtime import canonical_digest
from zarr_emcodec.runtime.model import open_model
from zarr_emcodec.runtime.options import current
from zarr_emcodec.train.arch.context import N_SCALES, SCALE_FIRST, SCALE_RATIO
from zarr_emcodec.train.arch.variable import LEVELS, VariableVAE
from zarr_emcodec.train.cells import CellDecoder, CellEncoder, CellHyper, gains_of_levels
from zarr_emcodec.train.context_graph import group_onnx, integer_group
from zarr_emcodec.train.data import CropSampler, Source, StackSampler, VolumeSampler
from zarr_emcodec.train.export import SHAPES, best_index, measure, training_facts, write_card
from zarr_emcodec.train.graph import macs, to_onnx
from zarr_emcodec.train.variable import VariableTrainConfig, known_levels, load_variable

SCALES = tuple(SCALE_FIRST * SCALE_RATIO**i for i in range(N_SCALES))
_LAPLACE = SHAPES.index(1.0)  # what training assumes
_FITTED_LEVELS = 24  # those between take the nearest one's shapes
_CHANGES = (-2, -1, 0, 1, 2)  # of a scale's index, tried with each shape
_CROPS = {2: 24, 3: 12}
_RUN = 8  # sections in a row: enough for every reach but the farthest
_WEIGHTS = {"embed", "window", "hidden", "out"}  # what the entropy model multiplies with at every cell
_BYTE_FROM = 1 << 13  # weights of a layer: there are millions, and a byte each costs hundredths of a decibel

Volumes = Sequence[NDArray[np.float32]]


def export(
    checkpoint: Path,
    folder: Path,
    *,
    name: str,
    version: int,
    ratio_range: tuple[float, float],
    sources: Sequence[Source],
    licence: str = "BSD-3-Clause",
    auto: tuple[float, float] | bool = True,
) -> dict[str, Any]:
    """Write a model directory.

    Parameters
    ----------
    checkpoint : Path
        As `VariableTrainer` writes it.
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
    auto : bool or (float, float)
        Whether ``model="auto"`` may take it, and at which of its ratios.

    Returns
    -------
    dict
        The card.
    """
    model, config, steps_taken = load_variable(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    sampler = _sampler(config, sources)
    with torch.inference_mode():
        networks = _networks(model, config)
        arrays = _first_tables(model, config)
        card = _card(model, config, f"{name}@{version}", ratio_range, licence)
    if auto is not True:
        card["auto"] = list(auto) if auto else False
    card["training"] = training_facts(config.to_dict(), steps_taken, sources)
    _write(folder, card, networks, arrays)
    _settle_tables(folder, arrays, [_raw_crop(sampler) for _ in range(_CROPS[config.model.ndim])])
    _write(folder, card, networks, arrays)
    card["measured"] = {"held_out": measure(card["id"], folder.parent, sampler.validation)}
    write_card(folder, card)
    (folder / "README.md").write_text(_readme(card, sum(map(len, networks.values()))), encoding="utf-8")
    return card


def _sampler(config: VariableTrainConfig, sources: Sequence[Source]) -> CropSampler | VolumeSampler:
    if config.model.ndim == 2:
        return (StackSampler if config.model.reaches else CropSampler)(sources, 512, seed=1)
    return VolumeSampler(sources, config.crop, seed=1)


def _raw_crop(sampler: CropSampler | VolumeSampler) -> NDArray[np.float32]:
    """Sections in a row, (n, y, x), or a volume, (1, z, y, x)."""
    if isinstance(sampler, StackSampler):
        return sampler.raw_run(_RUN, 256)
    if isinstance(sampler, CropSampler):
        return sampler.raw_crop(512)[None]
    return sampler.raw_crop((32, 128, 128))[None]


def _networks(model: VariableVAE, config: VariableTrainConfig) -> dict[str, bytes]:
    shape = config.model
    cell, grid = shape.cell, [2, 4, 4] if shape.ndim == 3 else [4, 4]
    latents = 2**shape.ndim * shape.arch.channels
    files = {
        "encoder.onnx": to_onnx(
            CellEncoder(model),
            {"grey": torch.full((2, 1, *(n * c for n, c in zip(grid, cell, strict=True))), 128.0)},
            ["latents"],
            byte_from=_BYTE_FROM,
        ),
        "decoder.onnx": to_onnx(
            CellDecoder(model, config),
            {"symbols": torch.zeros(2, latents, *grid), "level": torch.zeros(2, dtype=torch.int64)},
            ["grey"],
            byte_from=_BYTE_FROM,
        ),
    }
    if shape.reaches:
        nothing = {name: torch.zeros(2, latents, *grid) for name in ("latents", "left")}
        files["hyper.onnx"] = to_onnx(CellHyper(model), nothing, ["hyper"], byte_from=_BYTE_FROM)
    powers = model.powers(known_levels(config))
    for i, net in enumerate(model.context.nets):
        files[f"context-{i}.onnx"] = group_onnx(integer_group(net, powers))  # type: ignore[arg-type]
    return files


def _first_tables(model: VariableVAE, config: VariableTrainConfig) -> dict[str, NDArray[Any]]:
    """Members of ``tables.npz`` as training leaves them: Laplace shapes everywhere, no rates."""
    levels, known = torch.arange(LEVELS), known_levels(config)
    powers = model.powers(known)
    full = torch.cat([torch.ones(LEVELS, 1), powers], 1)
    # scales follow the step also where the networks' own polynomials were never trained
    beyond = torch.log(model.steps(levels) / model.steps(known))[:, None] / math.log(SCALE_RATIO)
    base = torch.cat([full @ model.context.hyper_base, full @ model.context.base - beyond], 1)
    gains = gains_of_levels(model)
    scale = torch.floor(base + 0.5).clamp(-64, N_SCALES).numpy().astype(np.int16)
    further: dict[str, NDArray[Any]] = {}
    if config.model.reaches:
        reach = torch.cat([model.context.hyper_reach, model.context.reach], 1)
        further["reach"] = torch.floor(reach + 0.5).clamp(-64, 64).numpy().astype(np.int16)
        further["reach_gain"] = torch.exp(model.log_reach).numpy().astype(np.float32)
    return {
        **build_tables(SCALES, SHAPES).to_arrays(),
        **further,
        "scale": scale,
        "shape": np.full(scale.shape, _LAPLACE, np.uint8),
        "shift": model.shifts(gains).numpy().astype(np.int8),
        "gain": gains.numpy().astype(np.float32),
        "hyper_gain": model.hyper_gains(known).numpy().astype(np.float32),
        "static": np.ones((LEVELS, config.model.arch.channels), np.uint8),
        "rate": np.ones(LEVELS, np.float32),
        "static_rate": np.ones(LEVELS, np.float32),
    }


def _settle_tables(folder: Path, arrays: dict[str, NDArray[Any]], crops: Volumes) -> None:
    """Fit shapes, scales, the fixed ladder and the rates to training crops, with the networks as they run."""
    model = ContextModel(open_model(folder))
    card, hyper = model.card, model.card.hyper
    coded = [_latents(model, crop) for crop in crops]
    places = len(card.places)
    flat = np.concatenate(
        [
            np.moveaxis(c[:, model.first_latent :].reshape(len(c) * places, card.channels, -1), 1, 0).reshape(
                card.channels, -1
            )
            for c in coded
        ],
        axis=1,
    )
    sample = flat[:, :: max(1, flat.shape[1] // 30_000)]
    arrays["static"] = best_index(arrays, sample, arrays["gain"].shape)
    ladder = Ladder({**arrays, "index": arrays["static"]})
    chosen = np.unique(np.linspace(0, LEVELS - 1, _FITTED_LEVELS).round().astype(int))
    shapes, changes, rates = [], [], []
    n_places = flat.shape[1]
    for level in chosen:
        cost = np.zeros((hyper + card.channels, len(SHAPES), len(_CHANGES)))
        for latents, crop in zip(coded, crops, strict=True):
            cost += _costs(model, latents, int(level), crop.shape[1:])
        best = cost.reshape(len(cost), -1).argmin(1)
        best[cost.reshape(len(cost), -1).max(1) == 0] = _LAPLACE * len(_CHANGES) + _CHANGES.index(0)
        shapes.append(best // len(_CHANGES))
        changes.append(np.array(_CHANGES)[best % len(_CHANGES)])
        fixed = ladder.default_bits(ladder.quantise(flat, int(level)), int(level))
        rates.append((cost.reshape(len(cost), -1).min(1).sum() / n_places, fixed / n_places))
    nearest = np.abs(np.arange(LEVELS)[:, None] - chosen).argmin(1)
    arrays["shape"] = np.stack(shapes)[nearest].astype(np.uint8)
    arrays["scale"] = (arrays["scale"] + np.stack(changes)[nearest]).astype(np.int16)
    for name, bits in zip(("rate", "static_rate"), np.array(rates).T, strict=True):
        logs = np.log(np.maximum(bits, 1e-6))
        arrays[name] = np.exp(np.interp(np.arange(LEVELS), chosen, logs)).astype(np.float32)


def _latents(model: ContextModel, crop: NDArray[np.float32]) -> NDArray[np.float32]:
    grey = transform.pad_to_stride(crop, model.model.card.stride)
    return inference.analyse(model.model, grey, current())


def _costs(
    model: ContextModel, latents: NDArray[np.float32], level: int, extent: tuple[int, ...]
) -> NDArray[np.float64]:
    """Bits of each channel's symbols under each shape and change of scale, shape (Z + C, shapes, changes)."""
    card = model.card
    cost = np.zeros((card.hyper + card.channels, len(SHAPES), len(_CHANGES)))
    coded = code_sections(model, [latents], [level], [part_counts(len(latents))], extent, current())
    for piece in coded.pieces:
        told = piece.symbols.ndim == latents.ndim  # hyper-latents have no places
        rows, axis = (slice(0, card.hyper), 1) if told else (slice(card.hyper, None), 2)
        symbols = np.moveaxis(piece.symbols, axis, 0).reshape(piece.symbols.shape[axis], -1)
        table = np.moveaxis(piece.table, axis, 0).reshape(symbols.shape)
        column = np.clip(symbols, -HALF_WIDTH, HALF_WIDTH) + HALF_WIDTH
        index = table.astype(int) - _LAPLACE * N_SCALES
        stored = table > 0
        for i in range(len(SHAPES)):
            for j, change in enumerate(_CHANGES):
                moved = np.clip(index + change, 1, N_SCALES) + i * N_SCALES
                cost[rows, i, j] += np.where(stored, model.costs.bits[moved, column], 0.0).sum(1)
    return cost


def _write(folder: Path, card: dict[str, Any], networks: dict[str, bytes], arrays: dict[str, NDArray[Any]]) -> None:
    """All files of a directory; the card's hashes and digest follow from them."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    files = {**networks, "tables.npz": buffer.getvalue()}
    for file, data in files.items():
        (folder / file).write_bytes(data)
    hashes = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    of_encoder = [file for file in ("encoder.onnx", "hyper.onnx") if file in hashes]
    card["encoder"]["files"] = {file: hashes.pop(file) for file in of_encoder}
    card["decoder"]["files"] = hashes
    card["digest"] = f"sha256:{canonical_digest(card['decoder']).hex()}"
    write_card(folder, card)


def _card(
    model: VariableVAE, config: VariableTrainConfig, model_id: str, ratio_range: tuple[float, float], licence: str
) -> dict[str, Any]:
    shape, context = config.model, config.model.context
    ndim = shape.ndim
    encoder_halo, decoder_halo = (_cells(halo, ndim) for halo in shape.arch.halo())
    places = context.places
    grid = [2, 4, 4] if ndim == 3 else [8, 8]
    voxels = math.prod(n * c for n, c in zip(grid, shape.cell, strict=True))
    latents = len(places) * shape.arch.channels
    edges = tuple(n * c for n, c in zip(grid, shape.cell, strict=True))
    decode = macs(CellDecoder(model, config), (torch.zeros(1, latents, *grid), torch.zeros(1, dtype=torch.int64)))
    encode = macs(CellEncoder(model), (torch.zeros(1, 1, *edges),))
    if shape.reaches:
        encode += macs(CellHyper(model), (torch.zeros(1, latents, *grid), torch.zeros(1, latents, *grid)))
    entropy = sum(p.numel() for name, p in model.context.named_parameters() if set(name.split(".")) & _WEIGHTS)
    per_voxel = entropy / math.prod(shape.cell)
    return {
        "format": 1,
        "id": model_id,
        "codec": "vae",
        "digest": "",
        "decoder": {
            "files": {},
            "ndim": ndim,
            "stride": list(shape.cell),
            "channels": context.hyper + latents,
            "levels": LEVELS,
            "halo": list(decoder_halo),
            "context": {
                "hyper": context.hyper,
                "groups": [[list(places[i]) for i in group] for group in context.groups],
                "scales": N_SCALES,
                "halo": [1] * ndim,
                "reaches": context.reaches,
            },
        },
        # what the hyper-analysis sees of cells around comes on top, where it is part of the encoder
        "encoder": {"files": {}, "halo": [n if shape.reaches else n + 1 for n in encoder_halo]},
        "ratio_range": list(ratio_range),
        "parameters": sum(p.numel() for p in model.parameters()),
        "mac_per_voxel": {
            "encode": round(encode / voxels, 1),
            "decode": round(decode / voxels + per_voxel, 1),
            "entropy": round(per_voxel, 1),
        },
        "licence": licence,
        "voxel_nm": {"z": [4, 120], "y": [4, 12], "x": [4, 12]}
        if ndim == 2
        else {"z": [4, 16], "y": [4, 16], "x": [4, 16]},
    }


def _cells(halo: int | tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Places of a halo as cells, rounded up."""
    each = (halo,) * ndim if isinstance(halo, int) else halo
    return tuple(-(-n // 2) for n in each)


def _readme(card: dict[str, Any], n_bytes: int) -> str:
    """What a person wants to know of a model, from its card."""
    training, decoder, cost = card["training"], card["decoder"], card["mac_per_voxel"]
    rows = "\n".join(f"| {row['ratio']:g} | {row['psnr_db']:.2f} |" for row in card["measured"]["held_out"])
    volumes = ", ".join(volume["file"] for volume in training["volumes"])
    low, high = card["ratio_range"]
    context = decoder["context"]
    cell = " x ".join(str(n) for n in decoder["stride"])
    per_place = (decoder["channels"] - context["hyper"]) // 2 ** decoder["ndim"]
    paragraphs = [
        f"# {card['id']}",
        f"A {decoder['ndim']}-D autoencoder for electron micrographs with a learned entropy model: one network for "
        f"every ratio from {low:g} to {high:g}.",
        f"{context['hyper']} hyper-latents and {2 ** decoder['ndim']} x {per_place} latents for each {cell} voxels; "
        f"{card['parameters'] / 1e6:.1f} million parameters in {n_bytes / 1e6:.1f} MB; {cost['encode']:.0f} "
        f"multiply-accumulates a voxel to encode, {cost['decode']:.0f} to decode, {cost['entropy']:.0f} of them in the "
        "entropy model, which computes with whole numbers.",
        f"| ratio | PSNR, dB |\n|---|---|\n{rows}",
        f"Measured on sections held out of the training volumes ({volumes}). Trained for {training['steps']} steps. "
        f"Licence of the weights: {card['licence']}. Everything else is in card.json.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def main() -> None:
    """``python -m zarr_emcodec.train.export_variable``: one checkpoint to one model directory."""
    import argparse

    from zarr_emcodec.train.recipes import AUTO, VARIABLE_RATIOS, VARIABLE_RECIPES, standard_sources

    parser = argparse.ArgumentParser(prog="python -m zarr_emcodec.train.export_variable", description=main.__doc__)
    parser.add_argument("recipe", choices=sorted(VARIABLE_RECIPES))
    parser.add_argument(
        "--volume", type=Path, action="append", default=[], help="TIFF or .npy it was trained on; repeat"
    )
    parser.add_argument("--data", type=Path, help="folder with the volumes of the shipped models")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder that gets <name>/")
    parser.add_argument("--name", help="of the model; the recipe's when not given")
    parser.add_argument("--version", type=int, default=1, help="never reuse one that was released")
    args = parser.parse_args()
    shape = VARIABLE_RECIPES[args.recipe].model
    held_out = shape.cell[0] if shape.ndim == 3 else 1
    sources = [Source(path, held_out=held_out, isotropic=shape.ndim == 3) for path in args.volume]
    sources += standard_sources(args.data) if args.data else []
    if not sources:
        parser.error("give --volume or --data")
    name = args.name or args.recipe
    card = export(
        args.checkpoint,
        args.models / name,
        name=name,
        version=args.version,
        ratio_range=VARIABLE_RATIOS[args.recipe],
        sources=sources,
        auto=AUTO[args.recipe],
    )
    print(json.dumps({key: card[key] for key in ("id", "digest", "parameters", "mac_per_voxel", "ratio_range")}))


if __name__ == "__main__":
    main()
