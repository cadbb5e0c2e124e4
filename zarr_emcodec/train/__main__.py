"""``python -m zarr_emcodec.train RECIPE ... --checkpoint FILE``: fit or fine-tune one network within a time budget."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from zarr_emcodec.runtime import find_model
from zarr_emcodec.train.arch.vae2d import VAE2d
from zarr_emcodec.train.data import Source
from zarr_emcodec.train.loop import Progress, Trainer
from zarr_emcodec.train.recipes import RECIPES, standard_sources
from zarr_emcodec.train.start import model_from_directory

_FINE_TUNE = 0.2  # of the learning rates: a trained network is to be moved, not shaken


def main() -> None:
    """Parse, train, print one JSON line per validation."""
    parser = argparse.ArgumentParser(prog="python -m zarr_emcodec.train", description=__doc__)
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--volume", type=Path, action="append", default=[], help="TIFF or .npy to learn from; repeat")
    parser.add_argument("--data", type=Path, help="folder with the volumes of the shipped models")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="written every minute, resumed from when present"
    )
    parser.add_argument("--start", metavar="MODEL", help="installed model to fine-tune; from scratch when not given")
    parser.add_argument("--minutes", type=float, default=60.0, help="time budget over all runs of this checkpoint")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bfloat16", action="store_true", help="mixed precision, where the processor has it")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between validations")
    args = parser.parse_args()
    missing = [str(path) for path in args.volume if not path.exists()]
    sources = [Source(path, held_out=1) for path in args.volume] + (standard_sources(args.data) if args.data else [])
    if missing or not sources:
        parser.error(f"no such volume: {', '.join(missing)}" if missing else "give --volume or --data")
    config = dataclasses.replace(
        RECIPES[args.recipe], minutes=args.minutes, threads=args.threads, seed=args.seed, bfloat16=args.bfloat16
    )
    start: VAE2d | None = None
    if args.start:
        start = model_from_directory(find_model(args.start))
        slower = {name: _FINE_TUNE * getattr(config, name) for name in ("rate_conv", "rate_linear")}
        config = dataclasses.replace(config, arch=start.config, **slower)
    trainer = Trainer(config, sources, args.checkpoint, args.device, start)

    def tell(progress: Progress) -> None:
        print(json.dumps(dataclasses.asdict(progress)), flush=True)

    trainer.run(tell, every_s=args.every)


if __name__ == "__main__":
    main()
