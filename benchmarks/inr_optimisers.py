#!/usr/bin/env python3
"""Steps to quality of neural fields: tuned Adam, Adam from learnt starts, and the learned optimiser, at equal steps.

    pip install 'zarr_emcodec[cpu,torch,train]'
    python benchmarks/inr_optimisers.py --data FOLDER --starts starts.pt --optimiser optimiser.pt

FOLDER holds the volumes of the shipped models; the checkpoints are those of ``train.field_start`` and
``train.optimiser_search``. Crops are cut from the sections that trainings hold out; the rate of Adam (with its cosine
over the steps given) is tuned for every width and number of steps on crops of the other sections. Fits are not rounded
and not coded: `inr_starts.py` compares at equal bytes. The learned optimiser knows the number of steps, as the cosine
does, and saw fits of up to 24 units and 400 steps.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import figures
import torch
from common import OURS, RESULTS, machine, package_version, versions, write_json

from zarr_emcodec.fitting import Start, siren
from zarr_emcodec.fitting.learned import LearnedUpdate, learned_rate
from zarr_emcodec.train.field_start import AdamCosine, load_starts
from zarr_emcodec.train.field_tasks import LAYERS, FieldTask, FieldTasks, Update, fit_task
from zarr_emcodec.train.optimiser_search import load_optimiser
from zarr_emcodec.train.recipes import standard_sources

if TYPE_CHECKING:
    from collections.abc import Callable

RATES = (1.25e-3, 2.5e-3, 5e-3, 1e-2, 2e-2)
ROWS = 1024
NAMES = ("Adam, cosine, tuned", "the same from learnt starts", "learned optimiser", "Adam at the codec's rate")


def fit(task: FieldTask, steps: int, update: Update, start: Start | None = None, seed: int = 0) -> float:
    """PSNR of the crops of a task after a fit."""
    problem = task.problem(ROWS, seed)
    first = siren.initial(task.architecture, task.extents, problem.random)
    if start is not None:
        first = siren.before_frequency(start.weights(task.architecture, task.extents))
    return task.psnr(fit_task(problem, first, steps, update))


def codec_rate(width: int) -> float:
    """What the codec fits with."""
    return 5e-3 * min(1.0, 80 / width)


def tuned_rate(tasks: list[FieldTask], steps: int) -> float:
    """The rate of Adam that ends highest."""
    means = {rate: sum(fit(task, steps, AdamCosine(rate)) for task in tasks) for rate in RATES}
    return max(means, key=lambda rate: means[rate])


def compare(tuning: list[FieldTask], tasks: list[FieldTask], steps: int, args: argparse.Namespace) -> dict[str, Any]:
    """Mean PSNR of each way over the tasks, after so many steps."""
    rate = tuned_rate(tuning, steps)
    starts = {start.widest.axes: start for start in load_starts(args.starts) if start.widest.layers == LAYERS}
    parameters = load_optimiser(args.optimiser)
    width = tasks[0].architecture.width
    own, usual = learned_rate(width), codec_rate(width)
    ways: list[tuple[Callable[[], Update], bool]] = [
        (lambda: AdamCosine(rate), False),
        (lambda: AdamCosine(rate), True),
        (lambda: LearnedUpdate(parameters, own), False),
        (lambda: AdamCosine(usual), False),
    ]
    found: dict[str, Any] = {"steps": steps, "tuned_rate": rate}
    for name, (update, learnt) in zip(NAMES, ways, strict=True):
        began = time.process_time()
        found[name] = [fit(t, steps, update(), starts[t.architecture.axes] if learnt else None) for t in tasks]
        found[f"{name}: ms of CPU a step"] = 1e3 * (time.process_time() - began) / (steps * len(tasks))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the volumes of the shipped models")
    parser.add_argument("--starts", type=Path, required=True)
    parser.add_argument("--optimiser", type=Path, required=True)
    parser.add_argument("--steps", nargs="+", type=int, default=[50, 100, 200, 400, 800])
    parser.add_argument("--widths", nargs="+", type=int, default=[20, 40], help="units of a layer")
    parser.add_argument("--crops", type=int, default=2, help="of each task, for tuning and for scoring")
    parser.add_argument("--out", type=Path, default=RESULTS / package_version(), help="folder of the JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sources = standard_sources(args.data)
    points, rows = [], []
    for width in args.widths:
        tuning = [FieldTasks(sources, 1).draw(axes, width, n=args.crops) for axes in (3, 2)]
        drawn = FieldTasks(sources, 2, held_out=True)
        tasks = [drawn.draw(axes, width, n=args.crops) for axes in (3, 2)]
        for steps in args.steps:
            point = {"width": width, **compare(tuning, tasks, steps, args)}
            points.append(point)
            means = [sum(point[name]) / len(tasks) for name in NAMES]
            rows.append([f"width {width}", str(steps), f"{point['tuned_rate']:g}", *(f"{mean:.2f}" for mean in means)])
            print(" ".join(rows[-1]), flush=True)
    record = {
        "benchmark": "inr_optimisers",
        "protocol": f"{args.crops} boxes and {args.crops} sections, held out; {ROWS} voxels a step; 4 layers; "
        "PSNR peak 255 of unrounded fields, mean over crops",
        "rates": RATES,
        "machine": machine(),
        "versions": versions((*OURS, "torch")),
        "points": points,
    }
    write_json(args.out / f"inr_optimisers_{'_'.join(map(str, args.widths))}.json", record)
    print(figures.table(["", "steps", "rate", *NAMES], rows))


if __name__ == "__main__":
    main()
