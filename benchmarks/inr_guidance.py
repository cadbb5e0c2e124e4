#!/usr/bin/env python3
"""What guidance does to neural fields: squared error alone, with a membrane network, with features of a shipped model.

    pip install 'zarr_emcodec[cpu,torch,train]'
    python benchmarks/inr_guidance.py --data FOLDER --membranes membranes.pt

FOLDER holds the volumes of the shipped models; the checkpoint is that of ``train.guidance``. Crops are boxes of the
sections that trainings hold out, networks have the size of a 64th of the bytes, all fits the same steps and the same
random voxels; guided ones see a rendered patch besides. Membranes are scored by a detector that is not the network:
the strongest fifth of the ridge responses of each section, original against fit (IoU), and the mean squared difference
of the responses (ridge distance).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import figures
import numpy as np
import torch
from common import OURS, RESULTS, machine, package_version, versions, write_json
from metrics import ssim

from zarr_emcodec.fitting import Architecture, siren
from zarr_emcodec.train.data import read_volume
from zarr_emcodec.train.field_start import AdamCosine
from zarr_emcodec.train.field_tasks import LAYERS, FieldTask, fit_task, task_of
from zarr_emcodec.train.guidance import feature_view, guide, load_membranes, membrane_view, pseudo_labels
from zarr_emcodec.train.losses import ridge_distance
from zarr_emcodec.train.recipes import standard_sources

if TYPE_CHECKING:
    from zarr_emcodec.train.guidance import View

BOX = (16, 64, 64)
WIDTH = 24  # 1,321 weights of 6 bits: a 64th of the box
ROWS, PATCH = 1024, 48
WEIGHTS = (0.03, 0.1, 0.3, 1.0)
AS_MUCH, AS_LONG = "none, as much time", 4  # times the steps: what a guided step takes beside a plain one


def crops(folder: Path, n: int) -> list[FieldTask]:
    """Boxes of the isotropic volumes' held-out sections."""
    rng = np.random.default_rng(3)
    out = []
    for source in standard_sources(folder):
        if source.isotropic:
            kept = read_volume(source.path)[-source.held_out :]
            for _ in range(n):
                y, x = (int(rng.integers(m - k + 1)) for k, m in zip(BOX[1:], kept.shape[1:], strict=True))
                box = kept[: BOX[0], y : y + BOX[1], x : x + BOX[2]].astype(np.float32)
                out.append(task_of(box[None], Architecture(3, WIDTH, LAYERS)))
    return out


def measure(task: FieldTask, view: View | None, weight: float, steps: int) -> dict[str, float]:
    """One fit, scored."""
    problem = task.problem(ROWS, 0)
    first = siren.initial(task.architecture, task.extents, problem.random)
    extra = None if view is None else guide(task, view, weight, 0, patch=PATCH)
    began = time.process_time()
    fitted = fit_task(problem, first, steps, AdamCosine(5e-3), extra)
    seconds = time.process_time() - began
    original, decoded = task.images[0], task.decoded(fitted)[0]
    a, b = (torch.from_numpy(image)[:, None] for image in (original, decoded))
    with torch.no_grad():
        truth, found = pseudo_labels(a), pseudo_labels(b)
        distance = float(ridge_distance(a, b))
    scale = task.scale[0]
    return {
        "psnr": task.psnr(fitted),
        "ssim": ssim(original * scale + 128, decoded * scale + 128),
        "membrane_iou": float((truth & found).sum() / (truth | found).sum()),
        "ridge_distance": distance,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the volumes of the shipped models")
    parser.add_argument("--membranes", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--crops", type=int, default=3)
    parser.add_argument("--weights", nargs="+", type=float, default=WEIGHTS)
    parser.add_argument("--out", type=Path, default=RESULTS / package_version(), help="folder of the JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tasks = crops(args.data, args.crops)
    views: dict[str, View | None] = {
        "none": None,
        AS_MUCH: None,
        "membrane": membrane_view(load_membranes(args.membranes)),
        "perceptual": feature_view(),
    }
    points: list[dict[str, Any]] = []
    rows = []
    for name, view in views.items():
        for weight in args.weights if view else (0.0,):
            steps = args.steps * (AS_LONG if name == AS_MUCH else 1)
            found = [measure(task, view, weight, steps) for task in tasks]
            points += [
                {"guidance": name, "steps": steps, "weight": weight, "crop": i, **point}
                for i, point in enumerate(found)
            ]
            means = [float(np.mean([point[key] for point in found])) for key in found[0]]
            rows.append(
                [name, f"{weight:g}", f"{means[0]:.2f}", *(f"{mean:.4f}" for mean in means[1:4]), f"{means[4]:.1f}"]
            )
            print(" ".join(rows[-1]), flush=True)
    record = {
        "benchmark": "inr_guidance",
        "protocol": f"{args.crops} held-out boxes of {BOX}; width {WIDTH}; {args.steps} steps of {ROWS} voxels, and "
        f"patches of {PATCH} where guided; unrounded; PSNR peak 255",
        "machine": machine(),
        "versions": versions((*OURS, "torch")),
        "points": points,
    }
    write_json(args.out / "inr_guidance.json", record)
    print(figures.table(["guidance", "weight", "PSNR", "SSIM", "membrane IoU", "ridge distance", "CPU s"], rows))


if __name__ == "__main__":
    main()
