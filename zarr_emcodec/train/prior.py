"""``python -m zarr_emcodec.train.prior TOKENS.npz --checkpoint FILE``: fit the token priors of a model, export them.

Tokens of a trained vector-quantised model in (`write_tokens`), the prior part of its directory out: networks that are
exact in whole numbers, their tables, and what the card says of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec.errors import ModelError, SpecError
from zarr_emcodec.train.prior_graph import prior_onnx
from zarr_emcodec.train.prior_loop import PriorTrainer, Progress, load_finished
from zarr_emcodec.train.prior_report import compare
from zarr_emcodec.train.tokens import read_tokens

_FILES = {"top": "prior.onnx", "bottom": "prior-bottom.onnx"}


def export_prior(
    checkpoint: Path, folder: Path, *, policy: str = "draw", codebook: NDArray[np.float32] | None = None
) -> dict[str, Any]:
    """Write a finished parallel prior into a model directory.

    Parameters
    ----------
    checkpoint : Path
        Of a training whose budget is used up.
    folder : Path
        Gets ``prior.onnx``, for two levels ``prior-bottom.onnx`` as well, and ``tables.npz``: the members of `Tables`
        with the level before them, as in ``top_freqs``. Table ``1 + place * M + i`` is what the network's score ``i``
        stands for, ``place`` being the token's position in the lattice, row-major; 0 in two-level models.
    policy : {"draw", "mode", "mean"}
        How bottom tokens that are not stored are made from the tables.
    codebook : ndarray, shape (K, D), float32, optional
        Of the bottom tokens, for policy "mean": which code is nearest to a table's mean.

    Returns
    -------
    dict
        The card's ``decoder.prior``, by level, and under ``files`` the SHA-256 of each file, for ``decoder.files``.
        Figures on held-out tokens are with `report`.

    Raises
    ------
    ModelError
        If the training is not finished, or of an autoregressive prior, or its sums are not exact in float32.
    """
    finished = load_finished(checkpoint)
    if not finished.priors:
        raise ModelError(f"{checkpoint.name}: an autoregressive prior. Only parallel priors are part of a model.")
    card: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    for level, (model, tables) in finished.priors.items():
        config = model.config
        files[_FILES[level]] = prior_onnx(model.integers(), config)
        arrays |= {f"{level}_{name}": value for name, value in tables.to_arrays().items()}
        groups = [[list(position)] for position in config.groups]
        card[level] = {"tables": config.tables, "groups": groups, "halo": config.halo}
    if "bottom" in card:
        card["bottom"]["policy"] = policy
        if policy == "mean":
            if codebook is None:
                raise SpecError("policy 'mean' needs the codebook of the bottom tokens.", name="codebook", value=None)
            arrays["bottom_mean"] = nearest_to_mean(arrays["bottom_freqs"][:, : len(codebook)], codebook)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    files["tables.npz"] = buffer.getvalue()
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return {**card, "files": hashes}


def nearest_to_mean(shares: NDArray[np.uint16], codebook: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The code nearest to the mean code vector under each table: the guess of least expected squared error.

    Parameters
    ----------
    shares : ndarray, shape (tables, K)
        Frequencies.
    codebook : ndarray, shape (K, D)

    Returns
    -------
    ndarray, shape (tables,), uint16

    Examples
    --------
    >>> nearest_to_mean(np.array([[5, 1, 5]], "u2"), np.array([[-1], [0.1], [1]], "f4"))
    array([1], dtype=uint16)
    """
    weight = shares.astype(np.float64)
    mean = (
        weight @ codebook.astype(np.float64) / np.maximum(weight.sum(1, keepdims=True), 1)
    )  # (tables, D); the skip table is empty
    distances = np.square(codebook).sum(1)[None] - 2 * mean @ codebook.T.astype(np.float64)
    return np.asarray(distances.argmin(1).astype(np.uint16))


def report(tokens: Path, checkpoint: Path, autoregressive: Path | None = None) -> dict[str, Any]:
    """Figures of finished priors on held-out tokens, ready for JSON.

    Parameters
    ----------
    tokens : Path
        What they were fitted to.
    checkpoint : Path
        Of a parallel prior.
    autoregressive : Path, optional
        Of an autoregressive prior, to stand beside it on the same windows.

    Returns
    -------
    dict
        For each level `parallel_figures`; under ``compared`` what `compare` returns.
    """
    finished = load_finished(checkpoint)
    out = dict(finished.figures)
    if autoregressive is not None:
        transformer = load_finished(autoregressive).transformer
        if transformer is None or not finished.priors:
            raise ModelError(
                f"{autoregressive.name} must be of an autoregressive, {checkpoint.name} of a parallel prior."
            )
        data = read_tokens(tokens)
        out["compared"] = compare(data, finished.priors[data.levels[-1]][0], transformer)
    return out


def main() -> None:
    """Fit priors within a time budget; print one JSON line per validation, the last with all figures."""
    parser = argparse.ArgumentParser(prog="python -m zarr_emcodec.train.prior", description=main.__doc__)
    parser.add_argument("tokens", type=Path, help="what write_tokens wrote")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="written every minute, resumed from when present"
    )
    parser.add_argument("--kind", choices=["parallel", "autoregressive"], default="parallel")
    parser.add_argument("--minutes", type=float, default=15.0, help="time budget over all runs of this checkpoint")
    parser.add_argument("--width", type=int, help="numbers that describe a context")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--embedding", type=int, help="numbers that stand for a token; parallel priors")
    parser.add_argument("--tables", type=int, help="frequency tables for each codebook; parallel priors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between validations")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the finished prior into this directory")
    parser.add_argument(
        "--beside", type=Path, metavar="CHECKPOINT", help="finished autoregressive prior to compare with"
    )
    args = parser.parse_args()
    names = ("width", "layers", "embedding", "tables")
    arch = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    trainer = PriorTrainer(read_tokens(args.tokens), args.checkpoint, kind=args.kind, arch=arch, seed=args.seed)

    def tell(progress: Progress) -> None:
        print(json.dumps(dataclasses.asdict(progress)), flush=True)

    trainer.run(args.minutes, tell, every_s=args.every)
    if args.export:
        print(json.dumps(export_prior(args.checkpoint, args.export)), flush=True)
    if args.beside:
        print(json.dumps(report(args.tokens, args.checkpoint, args.beside)), flush=True)


if __name__ == "__main__":
    main()
