#!/usr/bin/env python3
"""What a model's starts are worth to neural fields: the same chunks at the same bytes with each model.

    pip install 'zarr_emcodec[cpu,torch,train]'
    python benchmarks/inr_starts.py --data FOLDER --models inr-siren@1 inr-siren@2 --efforts 1 2 4

FOLDER holds the volumes of the shipped models; chunks are cut from the sections that trainings hold out. A model
without starts begins with random weights and stores them whole, one with starts stores differences. Every chunk is
fitted with several seeds, since random weights alone move the result by tenths of a dB.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import figures
import numpy as np
from common import OURS, RESULTS, Chunk, machine, package_version, versions, write_json
from metrics import psnr

from zarr_emcodec.codecs import INRSpec, decode_many, encode_many
from zarr_emcodec.runtime import find_model
from zarr_emcodec.train.data import read_volume
from zarr_emcodec.train.recipes import standard_sources

BOX, SECTION = (16, 64, 64), (1, 224, 224)
PER_SOURCE = 2


def held_out(folder: Path) -> dict[str, Chunk]:
    """Chunks of uint8 volumes, by name: boxes of isotropic ones, sections of all."""
    rng = np.random.default_rng(0)
    chunks = {}
    for source in standard_sources(folder):
        volume = read_volume(source.path)
        if not source.held_out or volume.dtype != np.uint8:
            continue
        kept = volume[len(volume) - source.held_out :]
        for shape in (BOX, SECTION) if source.isotropic else (SECTION,):
            for n in range(PER_SOURCE):
                starts = [int(rng.integers(m - k + 1)) for k, m in zip(shape, kept.shape, strict=True)]
                box = tuple(slice(a, a + k) for a, k in zip(starts, shape, strict=True))
                kind = "box" if shape == BOX else "section"
                chunks[f"{source.path.stem}_{kind}_{n}"] = np.ascontiguousarray(kept[box])
    return chunks


def measure(chunk: Chunk, model: str, ratio: float, effort: int, seeds: int) -> dict[str, float]:
    """Means over seeds."""
    found, sizes = [], []
    for seed in range(seeds):
        (frame,) = encode_many(INRSpec(ratio=ratio, model=model, effort=effort, seed=seed), [chunk])
        found.append(psnr(chunk, decode_many([frame])[0]))
        sizes.append(len(frame))
    return {"psnr": float(np.mean(found)), "psnr_spread": float(np.std(found)), "bytes": float(np.mean(sizes))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the volumes of the shipped models")
    parser.add_argument("--models", nargs="+", default=["inr-siren@1"])
    parser.add_argument("--ratios", nargs="+", type=float, default=[32.0, 64.0])
    parser.add_argument("--efforts", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / package_version(), help="folder of the JSON")
    args = parser.parse_args()
    chunks = held_out(args.data)
    points: list[dict[str, Any]] = []
    for effort in args.efforts:
        for ratio in args.ratios:
            for name, chunk in chunks.items():
                for model in args.models:
                    point = measure(chunk, model, ratio, effort, args.seeds)
                    points.append({"chunk": name, "model": model, "ratio": ratio, "effort": effort, **point})
            rows = table(points, args.models, ratio, effort)
            print(rows, flush=True)
    record = {
        "benchmark": "inr_starts",
        "protocol": "held-out sections of training volumes; whole frames; PSNR peak 255, means over seeds",
        "models": {model: find_model(model).card.digest_hex for model in args.models},
        "seeds": args.seeds,
        "machine": machine(),
        "versions": versions((*OURS, "torch")),
        "points": points,
    }
    write_json(args.out / "inr_starts.json", record)


def table(points: list[dict[str, Any]], models: list[str], ratio: float, effort: int) -> str:
    """PSNR by kind of chunk: of the first model, and what the others add."""
    chosen = [p for p in points if (p["ratio"], p["effort"]) == (ratio, effort)]
    rows = []
    for kind in ("box", "section"):
        mine = {model: [p for p in chosen if p["model"] == model and f"_{kind}_" in p["chunk"]] for model in models}
        first = np.array([p["psnr"] for p in mine[models[0]]])
        gains = [f"{np.mean([p['psnr'] for p in mine[model]] - first):+.2f}" for model in models[1:]]
        rows.append([kind, f"{ratio:g}x", str(effort), f"{first.mean():.2f}", *gains])
    return figures.table(["", "asked", "effort", models[0], *models[1:]], rows)


if __name__ == "__main__":
    main()
