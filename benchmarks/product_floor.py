#!/usr/bin/env python3
"""What product quantisation is worth before any network: the linear floor of tokens of 256 voxels, one byte each.

    pip install 'zarr_emcodec[train,bench]'
    python benchmarks/product_floor.py fib_medulla_train.tif

A token can stand alone for a block of 4 x 8 x 8 voxels, or share a cell of 8 x 8 x 16 with three others, each coding
channels of its own of the cell's KLT: a large block codes slow variations once. Both ways are linear: block KLT, the
nearest code of a codebook of 256 found by Lloyd's algorithm, back by the transposed KLT. They are fitted on the first
sections and measured on the last ones, in grey levels as stored, peak 255; beside it what that is at a standard
deviation of 32, in which trainings report. At 8 bits a token both are 256x.

Volume: GitHub janelia-flyem/neuroproof_examples, validation_sample, sections 3490-3697, y and x 0-415 (FlyEM, Janelia).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import figures
import numpy as np
import torch
from common import RESULTS, load_volume, machine, package_version, versions, write_json

from zarr_emcodec.train.arch.vqvae import Quantiser
from zarr_emcodec.train.klt import fit_block_klt

if TYPE_CHECKING:
    from common import Chunk, Shape3
    from numpy.typing import NDArray

CODES = 256
CASES: tuple[tuple[Shape3, int, int], ...] = (  # voxels of a block, tokens that share it, channels kept
    ((4, 8, 8), 1, 192),
    ((8, 8, 16), 4, 192),
)
STANDARD = 32.0  # deviation of the grey levels in which trainings report PSNR
ROUNDS = 20  # of Lloyd's algorithm, as in Quantiser.seed


def blocks_of(volume: Chunk, block: Shape3) -> NDArray[np.float32]:
    """Whole blocks of a volume as rows (n, voxels), grey levels less 128; what is left over at the ends is dropped."""
    counts = [n // edge for n, edge in zip(volume.shape, block, strict=True)]
    whole = volume[tuple(slice(n * edge) for n, edge in zip(counts, block, strict=True))]
    parts = whole.reshape([m for pair in zip(counts, block, strict=True) for m in pair])
    return parts.transpose(0, 2, 4, 1, 3, 5).reshape(-1, math.prod(block)).astype(np.float32) - 128


def slabs(volume: Chunk, depth: int) -> list[NDArray[np.float32]]:
    """The volume in slabs of a block's depth: a covariance of all mirrored blocks at once takes gigabytes."""
    return [volume[z : z + depth].astype(np.float32) for z in range(0, len(volume) - depth + 1, depth)]


def psnr_of(rows: NDArray[np.float32], back: NDArray[np.float32]) -> float:
    """Peak 255, rounded and clipped as a codec would."""
    error = np.clip(np.rint(back + 128), 0, 255) - (rows + 128)
    return float(10 * np.log10(255**2 / np.mean(np.square(error, dtype=np.float64))))


def measure(train: Chunk, held_out: Chunk, block: Shape3, groups: int, channels: int, seed: int) -> dict[str, Any]:
    """PSNR of the linear codec of one way, and of its KLT alone without quantisation."""
    basis = fit_block_klt(slabs(train, block[0]), block, channels)[0].astype(np.float32)
    quantiser = Quantiser(CODES, channels, groups)
    quantiser.seed(torch.from_numpy(blocks_of(train, block) @ basis.T), rounds=ROUNDS, random=seed)
    rows = blocks_of(held_out, block)
    vectors = torch.from_numpy(rows @ basis.T)[:, :, None, None]
    tokens = quantiser.choose(vectors)
    back = quantiser.look_up(tokens)[:, :, 0, 0].numpy() @ basis
    return {
        "block": list(block),
        "tokens": groups,
        "channels_of_each_token": quantiser.group.sum(1).int().tolist(),
        "ratio": math.prod(block) / groups,
        "psnr": psnr_of(rows, back),
        "psnr_standard": psnr_of(rows, back) + 20 * math.log10(float(train.std()) / STANDARD),
        "psnr_unquantised": psnr_of(rows, vectors[:, :, 0, 0].numpy() @ basis),
        "held_out_blocks": len(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", type=Path, help="uint8 stack (z, y, x), near isotropic")
    parser.add_argument("--held-out", type=int, default=16, help="last sections, measured")
    parser.add_argument("--seed", type=int, default=0, help="of the codebooks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder of the JSON; results/<version> beside this script")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    volume = load_volume(args.volume)
    train, held_out = volume.voxels[: -args.held_out], volume.voxels[-args.held_out :]
    cases = [measure(train, held_out, *case, args.seed) for case in CASES]
    record = {
        "benchmark": "product_floor",
        "protocol": f"fitted on all but the last {args.held_out} sections, measured on those; PSNR peak 255",
        "volume": volume.facts(),
        "seed": args.seed,
        "threads": args.threads,
        "machine": machine(),
        "versions": versions(("zarr-emcodec", "numpy", "torch")),
        "cases": cases,
        "gain_db": cases[1]["psnr"] - cases[0]["psnr"],
    }
    write_json((args.out or RESULTS / package_version()) / f"product_floor_{volume.name}.json", record)
    rows = [
        [
            " x ".join(map(str, c["block"])),
            f"{c['tokens']}",
            f"{c['ratio']:g}",
            f"{c['psnr']:.2f}",
            f"{c['psnr_standard']:.2f}",
        ]
        for c in cases
    ]
    print(figures.table(["block", "tokens", "ratio", "PSNR, dB", "at deviation 32"], rows))


if __name__ == "__main__":
    main()
