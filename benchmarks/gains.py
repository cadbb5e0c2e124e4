#!/usr/bin/env python3
"""What each improvement bought: bytes at equal PSNR, from the linear floor to the shipped networks with their effort.

    pip install 'zarr_emcodec[cpu,bench,train]'
    python benchmarks/gains.py fib_medulla_64.tif --train FOLDER --record rd_fib_medulla_64.json \\
        --ours vae-2d-fast/1 vae-2d-fast vae-2d-best/1 vae-2d-best vae-2d-best:6 [--block 1 32 32] [--chunk 16 512 512]

Rows: a block KLT fitted to the training volumes with one quantiser step and one Laplace scale a component (ideal code
lengths, nothing for headers); each model given, over all stored bytes: ``name:effort`` with an effort of the encoder,
``name/1`` in chunks of one section, which then know nothing of each other. Beside each the BD-rate (PSNR, 8x to 256x)
to every reference that the record of `rd.py` holds, and to the KLT. For each model with a learned entropy model also
what its context saves over fixed tables, as its tables tell from training volumes.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import figures
import numpy as np
import ours
import torch
from common import RESULTS, Shape3, Volume, clip_chunk, load_volume, machine, package_version, versions, write_json
from metrics import bd_rate

from zarr_emcodec.runtime import find_model
from zarr_emcodec.train.data import CropSampler, Source, VolumeSampler
from zarr_emcodec.train.klt import fit_block_klt, fit_klt
from zarr_emcodec.train.losses import laplace_bits, quantise
from zarr_emcodec.train.recipes import standard_sources

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

RATIOS = (6.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 320.0)
STEPS = np.geomspace(5.0, 700.0, 16)


def blocks_of(volume: NDArray[np.float32], block: Shape3) -> NDArray[np.float32]:
    """Blocks as rows, the far edges mirrored to whole ones, grey levels less 128."""
    pad = [(0, -n % edge) for n, edge in zip(volume.shape, block, strict=True)]
    whole = np.pad(volume, pad, mode="symmetric")
    counts = [n // edge for n, edge in zip(whole.shape, block, strict=True)]
    parts = whole.reshape([m for pair in zip(counts, block, strict=True) for m in pair])
    return parts.transpose(0, 2, 4, 1, 3, 5).reshape(-1, math.prod(block)) - 128


def back_to_volume(rows: NDArray[np.float32], shape: Shape3, block: Shape3) -> NDArray[np.float32]:
    """Inverse of `blocks_of`."""
    counts = [-(-n // edge) for n, edge in zip(shape, block, strict=True)]
    parts = rows.reshape(*counts, *block).transpose(0, 3, 1, 4, 2, 5) + 128
    whole = parts.reshape([n * edge for n, edge in zip(counts, block, strict=True)])
    return whole[tuple(slice(n) for n in shape)]


def klt(sources: Sequence[Source], block: Shape3) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """All components of the training volumes' blocks, and their Laplace scales."""
    if block[0] == 1:
        flat = CropSampler(sources, 256, seed=1)
        basis, deviations = fit_klt((flat.raw_crop(512) for _ in range(300)), block[1], block[1] ** 2)
    else:
        deep = VolumeSampler(sources, (16, 96, 96), seed=1)
        crops = (deep.raw_crop(tuple(6 * n for n in block)) for _ in range(150))
        basis, deviations = fit_block_klt(crops, block, math.prod(block))
    return basis.astype(np.float32), (deviations / math.sqrt(2)).astype(np.float32)


def linear_floor(volume: Volume, sources: Sequence[Source], block: Shape3) -> list[dict[str, float]]:
    """The KLT's curve."""
    basis, scales = klt(sources, block)
    rows = torch.from_numpy(blocks_of(volume.voxels.astype(np.float32), block) @ basis.T)
    points = []
    for step in STEPS:
        scale = torch.from_numpy(scales)[None] / float(step)
        symbols = quantise(rows / float(step), scale)
        bits = float(laplace_bits(symbols, scale).sum())
        back = back_to_volume((symbols * float(step)).numpy() @ basis, volume.voxels.shape, block)
        error = np.clip(np.rint(back), 0, 255) - volume.voxels
        mse = float(np.mean(np.square(error, dtype=np.float64)))
        points.append({"ratio": 8 * volume.voxels.nbytes / bits, "psnr": 10 * math.log10(255**2 / mse)})
    return points


def saved_by_context(name: str) -> dict[str, float] | None:
    """Percent of the bytes that a model's context saves over fixed tables, by ratio; none without a context."""
    model = find_model(name)
    if model.card.context is None:
        return None
    tables = model.tables()
    voxels = math.prod(model.card.stride) / sum(map(len, model.card.context.groups))
    ratios = 8 * voxels / tables["rate"]
    found = {}
    for ratio in (16, 64, 256):
        level = int(np.abs(np.log(ratios / ratio)).argmin())
        found[f"{ratio}"] = float(100 * (1 - tables["rate"][level] / tables["static_rate"][level]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", type=Path, help="TIFF stack or .npy, (z, y, x), uint8")
    parser.add_argument("--train", type=Path, required=True, help="folder of the training volumes")
    parser.add_argument("--record", type=Path, required=True, help="of rd.py on the same volume, with references")
    parser.add_argument("--ours", nargs="+", default=["vae-2d-best"], metavar="MODEL[:EFFORT][/SECTIONS]")
    parser.add_argument("--block", nargs=3, type=int, default=(1, 32, 32), metavar=("Z", "Y", "X"))
    parser.add_argument("--chunk", nargs=3, type=int, default=(16, 512, 512), metavar=("Z", "Y", "X"))
    parser.add_argument("--suffix", default="", help="of the record's name")
    args = parser.parse_args()
    volume = load_volume(args.volume)
    references = json.loads(args.record.read_text(encoding="utf-8"))["curves"]
    block: Shape3 = tuple(args.block)
    curves: dict[str, Any] = {
        "klt": {
            "label": f"block KLT, {' x '.join(map(str, block))}",
            "points": linear_floor(volume, standard_sources(args.train), block),
        }
    }
    contexts = {}
    for words in args.ours:
        rest, _, sections = words.partition("/")
        name, _, effort = rest.partition(":")
        chunk = clip_chunk((int(sections), *args.chunk[1:]) if sections else args.chunk, volume.voxels.shape)
        curve = ours.sweep(volume, chunk, list(RATIOS), model=name, effort=int(effort or 0))
        label = name + (f", effort {effort}" if effort else "") + (f", chunks of {sections}" if sections else "")
        curves[words] = {"label": label, **curve}
        contexts[name] = saved_by_context(name)
        print(f"  {words}: measured", flush=True)
    chosen = {key: references[key] for key in figures.REFERENCES if key in references}
    table = [
        [curve["label"], figures.number(bd_rate(curves["klt"]["points"], curve["points"], "psnr"), 1)]
        + [figures.number(bd_rate(other["points"], curve["points"], "psnr"), 1) for other in chosen.values()]
        for curve in curves.values()
    ]
    print(figures.table(["BD-rate, %", "KLT", *(other["label"] for other in chosen.values())], table))
    for name, saved in contexts.items():
        if saved:
            print(f"context of {name}: " + ", ".join(f"-{v:.1f} % at {k}x" for k, v in saved.items()))
    record = {
        "benchmark": "gains",
        "volume": volume.facts(),
        "machine": machine(),
        "versions": versions(("zarr-emcodec", "numpy", "torch", "onnxruntime")),
        "curves": curves,
        "bd_rate_percent": {row[0]: dict(zip(["klt", *chosen], row[1:], strict=True)) for row in table},
        "context_saves_percent": contexts,
    }
    write_json(RESULTS / package_version() / f"gains_{volume.name}{args.suffix}.json", record)


if __name__ == "__main__":
    main()
