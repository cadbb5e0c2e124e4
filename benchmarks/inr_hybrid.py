#!/usr/bin/env python3
"""Hybrids over the split: quality, fitting and decoding when a variational model has a share of the bytes.

    pip install 'zarr_emcodec[cpu,torch,train]'
    python benchmarks/inr_hybrid.py --data FOLDER --effort 2

FOLDER holds the volumes of the shipped models; chunks are cut from the sections that trainings hold out. Share 0 is the
field alone, share 1 the variational model alone (`VAECodec`), all at the same ratio, whole frames counted. Times are of
the processor, one thread.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import figures
import numpy as np
from common import OURS, RESULTS, Chunk, machine, package_version, versions, write_json
from inr_starts import held_out
from metrics import psnr, ssim

from zarr_emcodec.codecs import INRSpec, Spec, VAESpec, decode_many, encode_many

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
PRIORS = {"box": "vae-3d", "section": "vae-2d-s32"}


def spec_of(share: float, prior: str, ratio: float, effort: int) -> Spec:
    """The codec at one split."""
    if share == 1:
        return VAESpec(ratio=ratio, model=prior)
    words: dict[str, Any] = {} if share == 0 else {"prior": prior, "prior_share": share}
    return INRSpec(ratio=ratio, effort=effort, **words)


def measure(chunk: Chunk, spec: Spec) -> dict[str, float]:
    """Quality, size and cost of one chunk."""
    began = time.process_time()
    (frame,) = encode_many(spec, [chunk])
    encoded = time.process_time()
    back = decode_many([frame])[0]
    decoded = time.process_time()
    return {
        "psnr": psnr(chunk, back),
        "ssim": ssim(chunk, back),
        "ratio": chunk.nbytes / len(frame),
        "encode_s_per_mvoxel": (encoded - began) / (chunk.size / 1e6),
        "decode_mvoxel_s": chunk.size / 1e6 / (decoded - encoded),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the volumes of the shipped models")
    parser.add_argument("--ratios", nargs="+", type=float, default=[48.0, 128.0])
    parser.add_argument("--effort", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / package_version(), help="folder of the JSON")
    args = parser.parse_args()
    points: list[dict[str, Any]] = []
    rows = []
    chunks = held_out(args.data)
    for kind, prior in PRIORS.items():
        mine = {name: chunk for name, chunk in chunks.items() if f"_{kind}_" in name}
        warm = next(iter(mine.values()))
        decode_many(encode_many(VAESpec(ratio=args.ratios[0], model=prior), [warm]))  # sessions are opened once
        for ratio in args.ratios:
            for share in SHARES:
                spec = spec_of(share, prior, ratio, args.effort)
                found = [measure(chunk, spec) for chunk in mine.values()]
                where = {"kind": kind, "prior": prior, "asked": ratio, "prior_share": share}
                points += [{**where, "chunk": name, **point} for name, point in zip(mine, found, strict=True)]
                means = {key: float(np.mean([point[key] for point in found])) for key in found[0]}
                rows.append([f"{kind}, {prior}", f"{ratio:g}x", f"{share:g}", *(f"{v:.3g}" for v in means.values())])
                rows[-1][3] = f"{means['psnr']:.2f}"
                print(" ".join(rows[-1]), flush=True)
    record = {
        "benchmark": "inr_hybrid",
        "protocol": f"held-out sections of training volumes; whole frames; effort {args.effort}; PSNR peak 255",
        "machine": machine(),
        "versions": versions((*OURS, "torch")),
        "points": points,
    }
    write_json(args.out / "inr_hybrid.json", record)
    print(figures.table(["", "asked", "share", "PSNR", "SSIM", "ratio", "encode s/Mvoxel", "decode Mvoxel/s"], rows))


if __name__ == "__main__":
    main()
