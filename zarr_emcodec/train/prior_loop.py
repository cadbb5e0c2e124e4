"""The loop around priors: a time budget shared by the levels of a model, one checkpoint, resumable at any moment.

A token file and a checkpoint's path go in; when the budget is used up the checkpoint holds finished priors, their
tables and their figures on held-out tokens.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from zarr_emcodec.entropy.tables import Tables
from zarr_emcodec.errors import ModelError, SpecError
from zarr_emcodec.train.arch.prior import ParallelPrior, PriorConfig
from zarr_emcodec.train.arch.prior_ar import TokenTransformer, TransformerConfig
from zarr_emcodec.train.prior_ar_fit import TransformerFit, transformer_config
from zarr_emcodec.train.prior_fit import FitConfig, ParallelFit
from zarr_emcodec.train.prior_report import parallel_figures, transformer_figures
from zarr_emcodec.train.tokens import TokenData

Kind = Literal["parallel", "autoregressive"]
TRANSFORMER = "autoregressive"
"""Name of the autoregressive prior among the parts of a checkpoint; parallel ones are named by their level."""


@dataclasses.dataclass
class Progress:
    """What a running training tells: one of these per report.

    Attributes
    ----------
    loss : dict
        Mean code length of the training tokens since the last report, in bits a token, by level.
    validation : dict
        Steps taken and code lengths of held-out tokens, by level; all figures at the end.
    """

    minutes: float
    loss: dict[str, float]
    validation: dict[str, Any]


class Finished(NamedTuple):
    """What a checkpoint holds once its budget is used up.

    Attributes
    ----------
    priors : dict
        Network and tables by level.
    transformer : TokenTransformer or None
    figures : dict
        Measured on held-out tokens, by level.
    """

    priors: dict[str, tuple[ParallelPrior, Tables]]
    transformer: TokenTransformer | None
    figures: dict[str, Any]


class PriorTrainer:
    """Priors of one model on their way.

    Parameters
    ----------
    data : TokenData
    checkpoint : Path
        Written about once a minute and at the end; resumed from when it exists.
    kind : {"parallel", "autoregressive"}
    arch : dict, optional
        Fields of `PriorConfig` or `TransformerConfig` to change: width, layers, embedding, tables.
    fit : FitConfig, optional
        Of parallel priors.
    seed : int

    Raises
    ------
    SpecError
        If the checkpoint is of other tokens or another kind of prior.
    """

    def __init__(
        self,
        data: TokenData,
        checkpoint: Path,
        *,
        kind: Kind = "parallel",
        arch: dict[str, int] | None = None,
        fit: FitConfig | None = None,
        seed: int = 0,
    ) -> None:
        torch.set_num_threads(1)  # steps are too small to share
        torch.manual_seed(seed)
        self.data, self.checkpoint = data, checkpoint
        self.elapsed_s = 0.0
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True) if checkpoint.exists() else None
        names = [TRANSFORMER] if kind == "autoregressive" else list(data.levels)
        config = json.loads(saved["config"]) if saved else _configure(data, names, arch or {}, fit or FitConfig(), seed)
        if list(config["arch"]) != names or config["lattice"] != list(data.lattice):
            found = f"{list(config['arch'])}, lattice {config['lattice']}"
            message = f"{checkpoint.name}: holds priors {found}; these tokens need {names}, {list(data.lattice)}."
            raise SpecError(f"{message} Name another checkpoint.", name="checkpoint", value=str(checkpoint))
        self.config: dict[str, Any] = config
        self.fits: dict[str, ParallelFit | TransformerFit] = {}
        for name, shape in config["arch"].items():
            if name == TRANSFORMER:
                self.fits[name] = TransformerFit(data, TransformerConfig.from_dict(shape), config["seed"])
            else:
                how = FitConfig(**config["fit"])
                self.fits[name] = ParallelFit(data, name, PriorConfig.from_dict(shape), how, config["seed"])
        self.figures: dict[str, Any] = json.loads(saved["figures"]) if saved else {}
        if saved:
            self.elapsed_s = saved["elapsed_s"]
            for name, part in self.fits.items():
                part.load(saved["fits"][name])

    def run(self, minutes: float, report: Callable[[Progress], None], *, every_s: float = 60.0) -> None:
        """Train until the budget over all runs of this checkpoint is used up, then make tables and measure.

        Ends before where no level gets any better. A finished checkpoint is left as it is, unless the budget has grown
        and there is something to gain.
        """
        if self.figures and (self.elapsed_s >= 60 * minutes or all(part.done for part in self.fits.values())):
            report(Progress(round(self.elapsed_s / 60, 3), {}, self.figures))
            return
        started = time.monotonic() - self.elapsed_s
        told = -math.inf
        spent = dict.fromkeys(self.fits, 0.0)
        losses: dict[str, list[float]] = {name: [] for name in self.fits}
        for part in self.fits.values():
            if not part.step:
                part.check()
        while (share := (time.monotonic() - started) / (60 * minutes)) < 1:
            open_ones = [name for name, part in self.fits.items() if not part.done]
            if not open_ones:
                break
            name = min(open_ones, key=spent.__getitem__)  # levels take turns by time: their steps differ in cost
            before = time.monotonic()
            losses[name].append(self.fits[name].advance(share))
            spent[name] += time.monotonic() - before
            self.elapsed_s = time.monotonic() - started
            if self.elapsed_s - told >= every_s:
                told = self.elapsed_s
                report(self._progress(losses, {key: part.progress() for key, part in self.fits.items()}))
                self.figures = {}
                self.save({})
        for part in self.fits.values():
            part.check()
        self.elapsed_s = time.monotonic() - started
        tables, self.figures = self._finish()
        self.save(tables)
        report(self._progress(losses, self.figures))

    def _finish(self) -> tuple[dict[str, Any], dict[str, Any]]:
        tables: dict[str, Any] = {}
        figures: dict[str, Any] = {}
        for name, part in self.fits.items():
            if isinstance(part, ParallelFit):
                made = part.finish()
                tables[name] = {key: _tensor(value) for key, value in made.to_arrays().items()}
                figures[name] = parallel_figures(self.data, name, part.model, made)
            else:
                part.take_best()
                figures[name] = transformer_figures(self.data, part.model)
        return tables, figures

    def _progress(self, losses: dict[str, list[float]], validation: dict[str, Any]) -> Progress:
        means = {name: round(float(np.mean(values)), 4) for name, values in losses.items() if values}
        for values in losses.values():
            values.clear()
        return Progress(round(self.elapsed_s / 60, 3), means, validation)

    def save(self, tables: dict[str, Any]) -> None:
        """Write the checkpoint so that a crash leaves the old one or the new one; tables once there are any."""
        data = {
            "config": json.dumps(self.config),
            "elapsed_s": self.elapsed_s,
            "fits": {name: part.state() for name, part in self.fits.items()},
            "tables": tables,
            "figures": json.dumps(self.figures),
        }
        part = self.checkpoint.with_suffix(".part")
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save(data, part)
        part.replace(self.checkpoint)


def load_finished(checkpoint: Path) -> Finished:
    """Priors of a checkpoint whose budget is used up.

    Raises
    ------
    ModelError
        If training has not come to its end.
    """
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    config, figures = json.loads(saved["config"]), json.loads(saved["figures"])
    if not figures:
        raise ModelError(f"{checkpoint.name}: training is not finished. Run it again with the same time budget.")
    priors = {}
    transformer: TokenTransformer | None = None
    for name, shape in config["arch"].items():
        if name == TRANSFORMER:
            transformer = TokenTransformer(TransformerConfig.from_dict(shape))
            transformer.load_state_dict(saved["fits"][name]["model"])
            transformer.eval()
        else:
            model = ParallelPrior(PriorConfig.from_dict(shape))
            model.load_state_dict(saved["fits"][name]["model"])
            priors[name] = model, Tables.from_arrays(_arrays(saved["tables"][name]))
    return Finished(priors, transformer, figures)


def _configure(data: TokenData, names: list[str], changes: dict[str, int], fit: FitConfig, seed: int) -> dict[str, Any]:
    """What a checkpoint says of its priors."""
    shapes: dict[str, Any] = {}
    for name in names:
        if name == TRANSFORMER:
            shapes[name] = transformer_config(data, **changes).to_dict()
        else:
            one = PriorConfig(lattice=data.lattice, conditional=name == "bottom", **changes)
            shapes[name] = dataclasses.replace(one, tables=min(one.tables, 1023 // one.n_pools)).to_dict()
    return {"arch": shapes, "fit": dataclasses.asdict(fit), "lattice": list(data.lattice), "seed": seed}


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    """As a type that checkpoints hold; torch has few unsigned ones."""
    return torch.from_numpy(np.asarray(array, np.int64).copy())


def _arrays(tensors: dict[str, torch.Tensor]) -> dict[str, NDArray[Any]]:
    dtypes = {"freqs": np.uint16, "lows": np.int16, "sizes": np.int16, "precision": np.int64}
    return {name: tensor.numpy().astype(dtypes[name]) for name, tensor in tensors.items()}
