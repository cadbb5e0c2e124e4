#!/usr/bin/env python3
"""Bytes that are no payload: what each kind of frame costs beside its sections, and what the entropy coder adds.

    python benchmarks/overhead.py [--out benchmarks/results/0.1.0]

Chunks of 16 x 512 x 512, synthetic texture (sizes of headers do not depend on it). Entropy coder: streams of about 256
bytes against the ideal length of their symbols under the tables.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, package_version, write_json
from figures import table

import zarr_emcodec
from zarr_emcodec.entropy.coder import encode
from zarr_emcodec.entropy.tables import build_tables, ideal_bits

SHAPE = (16, 512, 512)
STREAMS = 200


def texture() -> np.ndarray[Any, Any]:
    """Smoothed noise with the mean and spread of stained tissue, uint8."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(SHAPE[0], SHAPE[1] // 8 + 1, SHAPE[2] // 8 + 1))
    smooth = np.repeat(np.repeat(coarse, 8, 1), 8, 2)[:, : SHAPE[1], : SHAPE[2]]
    return np.clip(128 + 30 * smooth + 4 * rng.normal(size=SHAPE), 0, 255).astype(np.uint8)


def frame_row(name: str, chunk: np.ndarray[Any, Any], **codec: Any) -> dict[str, Any]:
    info = zarr_emcodec.inspect(zarr_emcodec.VAECodec(**codec).encode(chunk))
    return {
        "chunk": name,
        "kind": info.kind,
        "sections": len(info.section_bytes),
        "overhead_bytes": info.overhead_bytes,
        "total_bytes": info.total_bytes,
    }


def frames() -> list[dict[str, Any]]:
    """One row for each kind of frame and what may add to it."""
    volume = texture()
    edge = volume.copy()
    edge[:, 300:] = 0
    return [
        frame_row("constant uint8", np.full(SHAPE, 7, np.uint8)),
        frame_row("constant uint16", np.full(SHAPE, 700, np.uint16)),
        frame_row("lossless uint8", volume, max_error=0),
        frame_row("one stream, uint8", volume[:, :64, :64], ratio=256),
        frame_row("one stream, uint16 (window)", volume[:, :64, :64].astype(np.uint16) * 30, ratio=256),
        frame_row("indexed streams, uint8", volume, ratio=32),
        frame_row("edge chunk, uint8", edge, ratio=32),
    ]


def coder() -> dict[str, float]:
    """Bytes over the ideal length, streams of about 256 bytes."""
    tables = build_tables([0.3, 1.0, 3.0], [1.0])
    rng = np.random.default_rng(1)
    over, sizes = [], []
    for _ in range(STREAMS):
        index = rng.integers(1, 4, 800).astype(np.uint8)
        symbols = np.rint(rng.laplace(0, np.array([0, 0.3, 1.0, 3.0])[index] / 2**0.5)).astype(np.int32)
        data = encode(symbols, index, tables)
        sizes.append(len(data))
        over.append(len(data) - ideal_bits(symbols, index, tables) / 8)
    return {"mean_bytes": float(np.mean(sizes)), "mean_overhead": float(np.mean(over)), "worst_overhead": max(over)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / package_version())
    args = parser.parse_args()
    rows, streams = frames(), coder()
    write_json(args.out / "overhead.json", {"benchmark": "overhead", "frames": rows, "coder": streams})
    print(table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
    print("\nentropy coder: " + ", ".join(f"{key} {value:.2f}" for key, value in streams.items()))


if __name__ == "__main__":
    main()
