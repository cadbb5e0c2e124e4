"""``python -m zarr_emcodec.train RECIPE ... --checkpoint FILE``: fit or fine-tune one network within a time budget."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from zarr_emcodec.runtime import find_model
from zarr_emcodec.train.arch.vae2d import VAE2d
from zarr_emcodec.train.arch.variable import VariableVAE
from zarr_emcodec.train.arch.vqvae import VQVAE, TwoLevel
from zarr_emcodec.train.data import Source
from zarr_emcodec.train.loop import Progress, TrainConfig, Trainer
from zarr_emcodec.train.recipes import RECIPES, VARIABLE_RECIPES, VQ_RECIPES, standard_sources
from zarr_emcodec.train.start import model_from_directory, tokens_from_directory, variable_from_directory
from zarr_emcodec.train.variable import VariableTrainConfig, VariableTrainer
from zarr_emcodec.train.vq import VQTrainConfig, VQTrainer, load_checkpoint

_FINE_TUNE = 0.2  # of the learning rates: a trained network is to be moved, not shaken


def main() -> None:
    """Parse, train, print one JSON line per validation."""
    parser = argparse.ArgumentParser(prog="python -m zarr_emcodec.train", description=__doc__)
    parser.add_argument("recipe", choices=sorted([*RECIPES, *VARIABLE_RECIPES, *VQ_RECIPES]))
    parser.add_argument("--volume", type=Path, action="append", default=[], help="TIFF or .npy to learn from; repeat")
    parser.add_argument("--isotropic", action="store_true", help="voxels are cubes: any plane is a section")
    parser.add_argument("--data", type=Path, help="folder with the volumes of the shipped models")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="written every minute, resumed from when present"
    )
    parser.add_argument(
        "--start",
        metavar="MODEL",
        help="what to go on from: an installed model, or the checkpoint of a vector-quantised one (for a second level"
        " that of its top, or of both); from the block KLT of the volumes when not given",
    )
    parser.add_argument("--fine-tune", action="store_true", help="gentle learning rates, for a start that is good")
    parser.add_argument("--minutes", type=float, default=60.0, help="time budget over all runs of this checkpoint")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bfloat16", action="store_true", help="mixed precision, where the processor has it")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between validations")
    weights = parser.add_argument_group("losses beside the squared error, vector-quantised models only")
    for name, what in (
        ("ssim", "1 - SSIM"),
        ("structure", "distance of ridge responses: membranes"),
        ("adversarial", "a patch discriminator's: texture"),
    ):
        weights.add_argument(f"--{name}", type=float, metavar="WEIGHT", help=what)
    args = parser.parse_args()
    missing = [str(path) for path in args.volume if not path.exists()]
    # of volumes as many planes as a cell has, else one section
    is_3d = args.recipe in VARIABLE_RECIPES and VARIABLE_RECIPES[args.recipe].model.ndim == 3
    held_out = VARIABLE_RECIPES[args.recipe].model.cell[0] if is_3d else 1
    sources = [Source(path, isotropic=args.isotropic or is_3d, held_out=held_out) for path in args.volume]
    sources += standard_sources(args.data) if args.data else []
    if missing or not sources:
        parser.error(f"no such volume: {', '.join(missing)}" if missing else "give --volume or --data")
    budget = {"minutes": args.minutes, "threads": args.threads, "seed": args.seed, "bfloat16": args.bfloat16}
    make = _vae if args.recipe in RECIPES else _variable if args.recipe in VARIABLE_RECIPES else _vq
    trainer = make(args, sources, budget)

    def tell(progress: Progress) -> None:
        print(json.dumps(dataclasses.asdict(progress)), flush=True)

    trainer.run(tell, every_s=args.every)


def _vae(args: argparse.Namespace, sources: list[Source], budget: dict[str, float]) -> Trainer:
    config: TrainConfig = dataclasses.replace(RECIPES[args.recipe], **budget)  # type: ignore[arg-type]
    start: VAE2d | None = None
    if args.start:
        start = model_from_directory(find_model(args.start))
        slower = {name: _FINE_TUNE * getattr(config, name) for name in ("rate_conv", "rate_linear")}
        config = dataclasses.replace(config, arch=start.config, **slower)
    return Trainer(config, sources, args.checkpoint, args.device, start)


def _variable(args: argparse.Namespace, sources: list[Source], budget: dict[str, float]) -> VariableTrainer:
    config: VariableTrainConfig = dataclasses.replace(VARIABLE_RECIPES[args.recipe], **budget)  # type: ignore[arg-type]
    start: VariableVAE | VAE2d | VQVAE | None = None
    model = find_model(args.start) if args.start and not Path(args.start).is_file() else None
    if model and model.card.context is not None:
        start, trained = variable_from_directory(model)
        config = dataclasses.replace(config, model=trained.model)
    elif args.start:
        found = _token_start(args.start)
        start = found.top if isinstance(found, TwoLevel) else found
    if args.fine_tune:
        slower = {name: _FINE_TUNE * getattr(config, name) for name in ("rate", "rate_transforms", "rate_linear")}
        config = dataclasses.replace(config, **slower)
    return VariableTrainer(config, sources, args.checkpoint, args.device, start)


def _vq(args: argparse.Namespace, sources: list[Source], budget: dict[str, float]) -> VQTrainer:
    words = {name: getattr(args, name) for name in ("ssim", "structure", "adversarial")}
    config: VQTrainConfig = dataclasses.replace(
        VQ_RECIPES[args.recipe],
        **budget,  # type: ignore[arg-type]
        **{name: value for name, value in words.items() if value is not None},
    )
    start = _token_start(args.start) if args.start else None
    if isinstance(start, TwoLevel) and config.bottom is None:
        start = start.top
    if isinstance(start, TwoLevel):
        config = dataclasses.replace(config, model=start.top.config, bottom=start.bottom.arch)
    elif isinstance(start, VQVAE):
        config = dataclasses.replace(config, model=start.config)
    if args.fine_tune:
        slower = {name: _FINE_TUNE * getattr(config, name) for name in ("rate", "rate_linear")}
        config = dataclasses.replace(config, **slower)
    return VQTrainer(config, sources, args.checkpoint, start, args.device)


def _token_start(name: str) -> VQVAE | TwoLevel | VAE2d:
    """A token model's checkpoint, or an installed model of tokens or of latents at fixed tables."""
    if Path(name).is_file():
        return load_checkpoint(Path(name))[0].train()
    model = find_model(name)
    return model_from_directory(model) if model.card.tokens is None else tokens_from_directory(model)[0]


if __name__ == "__main__":
    main()
