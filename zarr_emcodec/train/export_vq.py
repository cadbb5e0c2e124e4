"""A vector-quantised checkpoint, with or without its priors, to a model directory.

Networks as ONNX, frequency tables as integers, a card with every figure: generated here and nowhere else. The README
and the figures measured on held-out sections come from the finished model, through the codec.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from zarr_emcodec.codecs import VQVAESpec, decode_many, encode_many
from zarr_emcodec.quality.measure import squared_error
from zarr_emcodec.runtime import canonical_digest, options
from zarr_emcodec.train.arch.vae2d import PATCH
from zarr_emcodec.train.arch.vqvae import VQVAE, TwoLevel
from zarr_emcodec.train.data import Source, StandardSampler
from zarr_emcodec.train.export import training_facts, write_card
from zarr_emcodec.train.graph import macs, to_onnx
from zarr_emcodec.train.prior import export_prior
from zarr_emcodec.train.tokens import write_tokens
from zarr_emcodec.train.vq import VQTrainConfig, load_checkpoint, tokens_of
from zarr_emcodec.train.vq_parts import BottomDecoder, BottomEncoder, Decoder, Encoder, TopDecoder


def export_vq(
    checkpoint: Path,
    folder: Path,
    *,
    name: str,
    version: int,
    sources: Sequence[Source],
    prior: Path | None = None,
    price: float = 0.0,
    policy: str = "mean",
    licence: str = "BSD-3-Clause",
) -> dict[str, Any]:
    """Write a model directory.

    Parameters
    ----------
    checkpoint : Path
        As `VQTrainer` writes it.
    folder : Path
        The model directory; files of the same names are replaced.
    name, version : str, int
        The model's id is ``name@version``; never reuse a version.
    sources : sequence of Source
        The training volumes: their held-out sections are measured.
    prior : Path, optional
        Checkpoint of the context models of its tokens; without them tokens are stored in fixed fields.
    price : float
        Squared standard deviations that the encoder gives for a bit when it chooses tokens.
    policy : {"mean", "mode", "draw"}
        How the second level is filled in where it is not stored.
    licence : str
        Of the weights.

    Returns
    -------
    dict
        The card.
    """
    model, config, steps = load_checkpoint(checkpoint)
    model.requires_grad_(False)
    folder.mkdir(parents=True, exist_ok=True)
    parts = _parts(model)
    for file, data in parts.items():
        (folder / file).write_bytes(data)
    priors: dict[str, Any] = {"files": {}}
    if prior:
        book = model.bottom.quantiser.codebook[0].numpy() if isinstance(model, TwoLevel) else None
        priors = export_prior(prior, folder, policy=policy, codebook=book)
    hashes = {file: hashlib.sha256(data).hexdigest() for file, data in parts.items()} | priors.pop("files")
    card = _card(model, hashes, priors, price)
    card["id"] = f"{name}@{version}"
    card["licence"] = licence
    card["parameters"] = sum(p.numel() for p in model.parameters())
    card["voxel_nm"] = {"z": [4, 30] if config.model.ndim == 3 else [4, 120], "y": [4, 30], "x": [4, 30]}
    card["training"] = training_facts(config.to_dict(), steps, sources)
    write_card(folder, card)
    card["measured"] = {"held_out": measure(card, folder.parent, held_out(config, sources))}
    write_card(folder, card)
    (folder / "README.md").write_text(_readme(card), encoding="utf-8")
    return card


def _parts(model: VQVAE | TwoLevel) -> dict[str, bytes]:
    top = model.top if isinstance(model, TwoLevel) else model
    image = torch.zeros(2, 1, *[2 * c for c in top.config.cell])
    tokens = torch.zeros(2, *[2 * n for n in top.config.lattice], dtype=torch.int64)
    parts = {"encoder.onnx": to_onnx(Encoder(top), {"image": image}, ["distances"])}
    if not isinstance(model, TwoLevel):
        return {**parts, "decoder.onnx": to_onnx(Decoder(top), {"tokens": tokens}, ["image"])}
    with torch.inference_mode():
        _, features = TopDecoder(model)(tokens)
    bottom = torch.zeros(2, *features.shape[2:], dtype=torch.int64)
    given = {"bottom": bottom, "features": features.clone()}
    return {
        **parts,
        "decoder.onnx": to_onnx(TopDecoder(model), {"top": tokens}, ["image", "features"]),
        "encoder-bottom.onnx": to_onnx(BottomEncoder(model.bottom), {"image": image, "decoded": image}, ["distances"]),
        "decoder-bottom.onnx": to_onnx(BottomDecoder(model.bottom), given, ["image"]),
    }


def _card(model: VQVAE | TwoLevel, hashes: dict[str, str], priors: dict[str, Any], price: float) -> dict[str, Any]:
    top = model.top if isinstance(model, TwoLevel) else model
    two = isinstance(model, TwoLevel)
    halos = top.config.arch.halo()
    encoder_halo, decoder_halo = (list(h) if isinstance(h, tuple) else [h] * 2 for h in halos)
    ratio = float(math.prod(top.config.stride))
    tokens: dict[str, Any] = {
        "codes": top.config.codes,
        "levels": ["top", "bottom"] if two else ["top"],
        "lattice": list(top.config.lattice),
    }
    decoder: dict[str, Any] = {
        "files": {file: hashes[file] for file in sorted(hashes) if not file.startswith("encoder")},
        "ndim": top.config.ndim,
        "stride": list(top.config.stride),
        "tokens": tokens,
        "halo": decoder_halo,
    }
    encoder: dict[str, Any] = {
        "files": {file: hashes[file] for file in sorted(hashes) if file.startswith("encoder")},
        "halo": encoder_halo,
        "price": price,
    }
    if priors:
        decoder["prior"] = priors
    if isinstance(model, TwoLevel):
        refine = top.config.stride[0] // model.bottom.arch.stride
        tokens["refine"] = [refine] * 2
        blocks, stride = model.bottom.arch.dec_blocks, model.bottom.arch.stride
        reach = math.ceil((PATCH * blocks[0] + stride * blocks[-1]) / top.config.stride[0])
        decoder["halos"] = {"decoder-bottom": [reach] * 2}
        seen, _ = model.bottom.arch.halo()
        encoder["halos"] = {"encoder-bottom": [math.ceil(seen * stride / top.config.stride[0])] * 2}
    return {
        "format": 1,
        "codec": "vqvae",
        "digest": f"sha256:{canonical_digest(decoder).hex()}",
        "decoder": decoder,
        "encoder": encoder,
        "ratio_range": [ratio / (1 + refine**2), ratio] if two else [ratio, ratio],
        "mac_per_voxel": _cost(model),
    }


def _cost(model: VQVAE | TwoLevel) -> dict[str, float]:
    """Multiply-accumulates a voxel, to encode and to decode each tier that is stored."""
    top = model.top if isinstance(model, TwoLevel) else model
    cells = 4
    image = torch.zeros(1, 1, *[cells * c for c in top.config.cell])
    tokens = torch.zeros(1, *[cells * n for n in top.config.lattice], dtype=torch.int64)
    cost = {"encode": macs(Encoder(top), (image,)), "decode": macs(Decoder(top), (tokens,))}
    if isinstance(model, TwoLevel):
        with torch.inference_mode():
            _, features = TopDecoder(model)(tokens)
        bottom = torch.zeros(1, *features.shape[2:], dtype=torch.int64)
        cost["encode-full"] = cost["encode"] + cost["decode"] + macs(BottomEncoder(model.bottom), (image, image))
        cost["decode-full"] = cost["decode"] + macs(BottomDecoder(model.bottom), (bottom, features))
    return {key: round(value / image.numel(), 1) for key, value in cost.items()}


def held_out(config: VQTrainConfig, sources: Sequence[Source]) -> list[NDArray[np.uint8]]:
    """Held-out sections or volumes as chunks in standard grey levels."""
    sampler = StandardSampler(sources, config.crop, seed=1)
    chunks = [np.clip(np.rint(v), 0, 255).astype(np.uint8) for v in sampler.validation]
    return chunks if config.model.ndim == 3 else [chunk[None] for chunk in chunks]


def measure(card: dict[str, Any], models: Path, chunks: Sequence[NDArray[np.uint8]]) -> list[dict[str, Any]]:
    """Ratio and PSNR of the finished model on held-out chunks; all bytes of frames count."""
    rows = []
    voxels = sum(chunk.size for chunk in chunks)
    modes: list[Literal["entropy", "nominal"]] = ["entropy", "nominal"] if "prior" in card["decoder"] else ["nominal"]
    for ratio in sorted(set(card["ratio_range"])):
        for mode in modes:
            with options(model_path=(models,)):
                frames = encode_many(VQVAESpec(ratio=ratio, model=card["id"], mode=mode), list(chunks))
                decoded = decode_many(frames)
            error = sum(squared_error(a, b) for a, b in zip(chunks, decoded, strict=True))
            stored = voxels / sum(map(len, frames))
            psnr = 10 * math.log10(255**2 * voxels / error)
            rows.append({"asked": ratio, "mode": mode, "ratio": round(stored, 2), "psnr_db": round(psnr, 2)})
    return rows


def _readme(card: dict[str, Any]) -> str:
    """What a person wants to know of a model, from its card."""
    training, decoder, cost = card["training"], card["decoder"], card["mac_per_voxel"]
    rows = "\n".join(
        f"| {row['asked']:g} | {row['mode']} | {row['ratio']:.1f} | {row['psnr_db']:.2f} |"
        for row in card["measured"]["held_out"]
    )
    volumes = ", ".join(volume["file"] for volume in training["volumes"])
    tokens = decoder["tokens"]
    stride = " x ".join(map(str, decoder["stride"]))
    second = " and, in a second level, four more of a quarter of that each" if len(tokens["levels"]) == 2 else ""
    tiers = " A frame that stores both levels decodes as `top` or `full`" if second else ""
    tiers += "; `prior` fills in the second level where it is not stored." if second else ""
    paragraphs = [
        f"# {card['id']}",
        f"A vector-quantised autoencoder for electron micrographs: one of {tokens['codes']} codes for {stride} voxels"
        f"{second}.{tiers}",
        f"{card['parameters'] / 1e6:.1f} million parameters, stored in float16; {cost['encode']:.0f}"
        f" multiply-accumulates a voxel to encode, {cost['decode']:.0f} to decode.",
        f"| ratio asked | mode | ratio of frames | PSNR, dB |\n|---|---|---|---|\n{rows}",
        f"Measured on sections held out of the training volumes ({volumes}), brought to a standard deviation of 32."
        f" Trained for {training['steps']} steps. Licence of the weights: {card['licence']}."
        " Everything else is in card.json.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def save_tokens(checkpoint: Path, path: Path, sources: Sequence[Source], *, views: int = 8, seed: int = 0) -> None:
    """Token grids of the training volumes, for the priors: every section at a few shifts, turns and scales.

    Parameters
    ----------
    checkpoint : Path
        As `VQTrainer` writes it.
    path : Path
        The .npz to write.
    sources : sequence of Source
        The training volumes.
    views : int
        How often each place is seen.
    seed : int
        Of the variations.
    """
    model, config, _ = load_checkpoint(checkpoint)
    sampler = StandardSampler(sources, config.crop, seed)
    rng = np.random.default_rng(seed)
    top = model.top if isinstance(model, TwoLevel) else model
    grids: dict[str, list[NDArray[np.uint8]]] = {"top": [], "bottom": []}
    for volume, isotropic in zip(sampler.volumes, sampler.isotropic, strict=True):
        for _ in range(views):
            for item in _items(volume, config.model.ndim, isotropic, rng):
                view = _varied(item, rng)
                if any(n < edge for n, edge in zip(view.shape, top.config.cell, strict=True)):
                    continue  # a thin volume cut across
                for level, grid in zip(grids, tokens_of(model, view), strict=False):
                    grids[level].append(grid)
    kept: dict[str, list[NDArray[np.uint8]]] = {"top": [], "bottom": []}
    for still in sampler.validation:
        for level, grid in zip(kept, tokens_of(model, still), strict=False):
            kept[level].append(grid)
    book = top.quantiser.codebook.numpy()
    lattice = top.config.lattice
    codebooks = {"top": book.reshape(*lattice, *book.shape[1:]) if top.config.groups > 1 else book[0]}
    if isinstance(model, TwoLevel):
        codebooks["bottom"] = model.bottom.quantiser.codebook[0].numpy()
    levels = list(codebooks)
    write_tokens(
        path,
        train={level: grids[level] for level in levels},
        held_out={level: kept[level] for level in levels},
        codebooks=codebooks,
    )


def _items(
    volume: NDArray[np.float16], ndim: int, isotropic: bool, rng: np.random.Generator
) -> Sequence[NDArray[np.float16]]:
    if ndim == 3:
        edge = 96
        turned = volume.transpose(*rng.permutation(3))
        return [
            turned[z : z + edge, y : y + edge, x : x + edge]
            for z in range(0, turned.shape[0] - edge // 2, edge)
            for y in range(0, turned.shape[1] - edge // 2, edge)
            for x in range(0, turned.shape[2] - edge // 2, edge)
        ]
    if isotropic:  # neighbouring sections are nearly the same picture
        return list(np.moveaxis(volume, int(rng.integers(3)), 0)[int(rng.integers(4)) :: 4])
    return list(volume)


def _varied(item: NDArray[np.float16], rng: np.random.Generator) -> NDArray[np.float32]:
    """Shifted, turned, and half of the time at another scale and contrast: tokens are few, so each view counts."""
    starts = [int(rng.integers(min(32, n // 4) + 1)) for n in item.shape]
    view = item[tuple(slice(a, None) for a in starts)].astype(np.float32)
    view = np.flip(view, tuple(axis for axis in range(view.ndim) if rng.random() < 0.5))
    if rng.random() < 0.5:
        view = view.swapaxes(-1, -2)
    if rng.random() < 0.5:
        zoom = float(np.exp(rng.uniform(np.log(0.75), np.log(1.4))))
        mode = "bilinear" if view.ndim == 2 else "trilinear"
        image = torch.from_numpy(np.ascontiguousarray(view))[None, None]
        turned = F.interpolate(image, scale_factor=zoom, mode=mode, antialias=mode == "bilinear", align_corners=False)
        contrast = np.float32(np.exp(rng.normal(0, 0.1)))
        view = np.asarray((turned[0, 0].numpy() - 128) * contrast + 128, np.float32)
    return np.ascontiguousarray(view)


def main() -> None:
    """``python -m zarr_emcodec.train.export_vq``: tokens for the priors, then one checkpoint to one model directory."""
    from zarr_emcodec.train.recipes import VQ_RECIPES, standard_sources

    parser = argparse.ArgumentParser(prog="python -m zarr_emcodec.train.export_vq", description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--volume", type=Path, action="append", default=[], help="TIFF or .npy it was trained on")
    parser.add_argument("--isotropic", action="store_true", help="the volumes' voxels are cubes")
    parser.add_argument("--data", type=Path, help="folder with the volumes of the shipped models")
    parser.add_argument("--tokens", type=Path, help="write token grids for the priors there, and stop")
    parser.add_argument("--views", type=int, default=8, help="how often the tokens see each place")
    parser.add_argument("--prior", type=Path, help="checkpoint of the priors")
    parser.add_argument("--price", type=float, default=0.0, help="squared standard deviations that a bit is worth")
    parser.add_argument("--policy", default="mean", choices=("mean", "mode", "draw"), help="of tokens not stored")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder that gets <name>/")
    parser.add_argument("--name", help=f"of the model, e.g. one of {', '.join(VQ_RECIPES)}")
    parser.add_argument("--version", type=int, default=1, help="never reuse one that was released")
    args = parser.parse_args()
    sources = [Source(path, isotropic=args.isotropic, held_out=1) for path in args.volume]
    sources += standard_sources(args.data) if args.data else []
    if not sources:
        parser.error("give --volume or --data")
    if args.tokens:
        save_tokens(args.checkpoint, args.tokens, sources, views=args.views)
        return
    if not args.name:
        parser.error("give --name")
    card = export_vq(
        args.checkpoint,
        args.models / args.name,
        name=args.name,
        version=args.version,
        sources=sources,
        prior=args.prior,
        price=args.price,
        policy=args.policy,
    )
    print(json.dumps({key: card[key] for key in ("id", "digest", "parameters", "mac_per_voxel", "measured")}))


if __name__ == "__main__":
    main()
