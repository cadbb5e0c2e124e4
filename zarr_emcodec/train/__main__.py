"""``python -m zarr_emcodec.train RECIPE --data FOLDER --checkpoint FILE``: fit one network within a time budget."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from zarr_emcodec.train.loop import Progress, Trainer
from zarr_emcodec.train.recipes import RECIPES, standard_sources


def main() -> None:
    """Parse, train, print one JSON line per validation."""
    parser = argparse.ArgumentParser(prog="python -m zarr_emcodec.train", description=__doc__)
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--data", type=Path, required=True, help="folder with the training volumes")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="written every minute, resumed from when present"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="time budget over all runs of this checkpoint")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bfloat16", action="store_true", help="mixed precision, where the processor has it")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between validations")
    args = parser.parse_args()
    sources = standard_sources(args.data)
    if not sources:
        parser.error(f"no training volumes in {args.data}")
    config = dataclasses.replace(
        RECIPES[args.recipe], minutes=args.minutes, threads=args.threads, seed=args.seed, bfloat16=args.bfloat16
    )
    trainer = Trainer(config, sources, args.checkpoint, args.device)

    def tell(progress: Progress) -> None:
        print(json.dumps(dataclasses.asdict(progress)), flush=True)

    trainer.run(tell, every_s=args.every)


if __name__ == "__main__":
    main()
