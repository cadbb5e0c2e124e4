#!/usr/bin/env python3
"""What token priors save on held-out tokens: the parallel prior of a model beside an autoregressive Transformer.

    pip install 'zarr_emcodec[train,bench]'
    python -m zarr_emcodec.train.export_vq --checkpoint two.pt --data TRAIN --tokens two.npz
    python -m zarr_emcodec.train.prior two.npz --checkpoint parallel.pt --minutes 12
    python -m zarr_emcodec.train.prior two.npz --checkpoint serial.pt --kind autoregressive --minutes 15
    python benchmarks/priors.py two.npz --parallel parallel.pt --autoregressive serial.pt --name vqvae-2d-1024

Both predict the finest level's tokens, a second level's given the first. Code lengths are cross-entropies in bits a
token, beside the order-0 entropy of the same tokens (without any context); the two kinds are compared on the same
windows. "Passes" is how often a network runs for a window's tokens when it decodes: what an autoregressive prior costs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import figures
import torch
from common import RESULTS, machine, package_version, versions, write_json

from zarr_emcodec.train.prior import report
from zarr_emcodec.train.prior_loop import load_finished


def effort(checkpoint: Path) -> dict[str, Any]:
    """Minutes of the whole training, and steps, best code length and shape of each of its networks."""
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    shapes = json.loads(saved["config"])["arch"]
    parts = {
        name: {
            "steps": {**fit, **fit.get("numbers", {})}["step"],  # checkpoints of old hold it one level up
            "parameters": sum(tensor.numel() for tensor in fit["model"].values()),
            "shape": shapes[name],
        }
        for name, fit in saved["fits"].items()
    }
    return {"minutes": round(saved["elapsed_s"] / 60, 2), "networks": parts}


def passes(parallel: Path, autoregressive: Path) -> dict[str, int]:
    """How often each prior's network runs for the tokens of one window."""
    priors, transformer = load_finished(parallel).priors, load_finished(autoregressive).transformer
    assert transformer is not None
    finest = list(priors)[-1]
    return {
        "parallel": len(priors[finest][0].config.groups),
        "autoregressive": math.prod(transformer.config.window),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens", type=Path, help="token grids that both were fitted to")
    parser.add_argument("--parallel", type=Path, required=True, help="finished checkpoint")
    parser.add_argument("--autoregressive", type=Path, required=True, help="finished checkpoint")
    parser.add_argument("--name", required=True, help="of the model whose tokens they are")
    parser.add_argument("--out", type=Path, help="folder of the JSON; results/<version> beside this script")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = report(args.tokens, args.parallel, args.autoregressive)
    compared = found.pop("compared")
    record = {
        "benchmark": "priors",
        "protocol": "held-out sections of the training volumes; bits a token; both kinds on the same windows",
        "model": args.name,
        "tokens_sha256": hashlib.sha256(args.tokens.read_bytes()).hexdigest(),
        "training": {"parallel": effort(args.parallel), "autoregressive": effort(args.autoregressive)},
        "passes": passes(args.parallel, args.autoregressive),
        "machine": machine(),
        "versions": versions(("zarr-emcodec", "numpy", "torch")),
        "levels": found,
        "compared": compared,
    }
    write_json((args.out or RESULTS / package_version()) / f"priors_{args.name}.json", record)
    serial = compared["autoregressive"]
    rows = [
        ["order 0", f"{serial['order0_own_bits']:.3f}", "", ""],
        *(
            [
                kind,
                f"{compared[kind]['soft_bits']:.3f}",
                f"{compared[kind]['accuracy']:.3f}",
                f"{record['passes'][kind]}",
            ]
            for kind in ("parallel", "autoregressive")
        ),
    ]
    print(figures.table(["prior", "bits a token", "right", "passes"], rows))


if __name__ == "__main__":
    main()
