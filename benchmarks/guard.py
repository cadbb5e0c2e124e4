#!/usr/bin/env python3
"""What a promise of quality costs where the model is out of its depth: ratios and fallbacks under `min_psnr`.

    python benchmarks/guard.py fib.tif cremi.tif beads.tif [--model auto] [--min-psnr 30 34 38] [--chunk 16 128 128]

Each volume is written as a Zarr array under a floor of PSNR and read back. Printed and recorded for each floor: the
ratio over all stored bytes, the PSNR of the worst chunk as a reader sees it, and how many frames are latent, lossless,
constant or masked. A chunk that the model cannot bring to the floor is stored losslessly: bytes, not data, are lost.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ours
from common import RESULTS, Shape3, Volume, clip_chunk, load_volume, machine, package_version, versions, write_json
from figures import table
from metrics import psnr

DISTRIBUTIONS = ("zarr-emcodec", "numpy", "zarr", "onnxruntime", "numba")


def boxes(shape: Shape3, chunk: Shape3) -> Iterator[tuple[slice, ...]]:
    """Chunks of a volume."""
    starts = (range(0, n, edge) for n, edge in zip(shape, chunk, strict=True))
    for corner in itertools.product(*starts):
        yield tuple(slice(i, i + edge) for i, edge in zip(corner, chunk, strict=True))


def measure(volume: Volume, chunk: Shape3, floor: float, model: str) -> dict[str, Any]:
    """One floor of one volume."""
    stored = ours.store_and_read(volume.voxels, chunk=chunk, min_psnr=floor, model=model)
    each = [psnr(volume.voxels[b], stored.voxels[b], peak=volume.peak) for b in boxes(volume.voxels.shape, chunk)]
    return {
        "volume": volume.name,
        "min_psnr": floor,
        "ratio": volume.voxels.nbytes / stored.stored_bytes,
        "worst_chunk_db": float(np.min(each)),
        "psnr": psnr(volume.voxels, stored.voxels, peak=volume.peak),
        "frames": stored.kinds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", type=Path, nargs="+", help="TIFF stack or .npy, (z, y, x)")
    parser.add_argument("--model", default="auto")
    parser.add_argument("--min-psnr", type=float, nargs="+", default=(30.0, 34.0, 38.0))
    parser.add_argument("--chunk", nargs=3, type=int, default=(16, 128, 128), metavar=("Z", "Y", "X"))
    parser.add_argument("--out", type=Path, default=RESULTS / package_version())
    args = parser.parse_args()
    rows = []
    for path in args.volume:
        volume = load_volume(path)
        chunk = clip_chunk(args.chunk, volume.voxels.shape)
        rows += [{**measure(volume, chunk, floor, args.model), "chunk": list(chunk)} for floor in args.min_psnr]
    record = {"benchmark": "guard", "model": args.model, "rows": rows, "machine": machine()}
    write_json(args.out / f"guard_{args.model}.json", {**record, "versions": versions(DISTRIBUTIONS)})
    cells = [
        [row["volume"], f"{row['min_psnr']:g}", f"{row['ratio']:.1f}x", f"{row['worst_chunk_db']:.2f}",
         " ".join(f"{n} {kind}" for kind, n in row["frames"].items())]
        for row in rows
    ]  # fmt: skip
    print(table(["volume", "floor, dB", "ratio", "worst chunk, dB", "frames"], cells))


if __name__ == "__main__":
    main()
