#!/usr/bin/env python3
"""Write the measured tables of README.md from the records of rd.py, speed.py, tiers.py and recompress.py.

Nothing is measured here.

    python benchmarks/readme.py [--results benchmarks/results/0.1.0] [--check]

The tables stand between two marker comments. --check changes nothing and fails where the README says something else
than the records.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from metrics import at_ratio, bd_rate

from zarr_emcodec import list_models

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- figures -->", "<!-- end of figures -->"
RATIOS = (8, 16, 32, 64, 128, 256)
VOLUMES = {
    "fib_medulla_64": "FIB-SEM, fly medulla, 10 nm isotropic",
    "sstem_cremi_11": "ssTEM, fly brain, 8 x 8 x 40 nm (other sections of a block that was trained on)",
    "sstem_vnc_20_first8": "ssTEM, fly larva, 4.6 x 4.6 x 47 nm, unlike any training volume",
}


INTER = ("hevc_inter", "av1_inter")
DEPTHS = {
    "fib_medulla_64_3d16": "the same volume coded over z, chunks of 16 sections",
    "fib_medulla_64_3d64": "in chunks of 64 sections",
}
PEER_LABELS = {
    "jpeg2k": "JPEG 2000",
    "avif": "AVIF",
    "hevc_intra": "HEVC intra",
    "hevc_inter": "HEVC inter",
    "av1_inter": "AV1 inter",
    "down4_av1": "4x smaller + AV1 inter",
    "down8_av1": "8x smaller + AV1 inter",
}
TIER_VOLUMES = {
    "fib_medulla_64": "FIB-SEM, fly medulla, 10 nm isotropic",
    "sstem_vnc_20": "ssTEM, fly larva, sections 11-19, unlike any training volume",
}


def record(results: Path, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def quality_rows(results: Path, name: str) -> list[str]:
    """PSNR at each ratio, one row a codec, and the BD-rate against HEVC intra."""
    curves = record(results, f"rd_{name}")["curves"]
    rows = []
    for curve in curves.values():
        cells = [at_ratio(curve["points"], ratio) for ratio in RATIOS]
        shown = " | ".join("" if cell != cell else f"{cell:.2f}" for cell in cells)
        rate = bd_rate(curves["hevc_intra"]["points"], curve["points"]) if curve is not curves["hevc_intra"] else 0.0
        label = f"**{curve['label']}**" if curve["ours"] else curve["label"]
        rows.append(f"| {label} | {shown} | {'' if rate != rate else f'{rate:+.0f} %'} |")
    return rows


def depth_rows(results: Path, name: str) -> list[str]:
    """As `quality_rows`, beside codecs that predict over z, with the BD-rate against each of them."""
    curves = record(results, f"rd_{name}")["curves"]
    rows = []
    for curve in curves.values():
        cells = [at_ratio(curve["points"], ratio) for ratio in RATIOS]
        shown = ["" if cell != cell else f"{cell:.2f}" for cell in cells]
        rates = [bd_rate(curves[peer]["points"], curve["points"]) for peer in INTER]
        shown += ["" if rate != rate else f"{rate:+.0f} %" for rate in rates]
        label = f"**{curve['label']}**" if curve["ours"] else curve["label"]
        rows.append(f"| {label} | {' | '.join(shown)} |")
    return rows


def job_rows(results: Path) -> list[str]:
    """What a recompression costs beside the coding, and what it survives."""
    found = record(results, "recompress")
    first, *_, last = found["tasks"]
    memory = {
        who: " to ".join(f"{t[f'{who}_peak_bytes'] / 1e6:.0f}" for t in (first, last)) for who in ("client", "worker")
    }
    kills, cpu, planning = found["kills"], found["petabyte"]["cpu"], found["planning"]
    n_kills = sum(kills["kills"].values())
    overhead = 100 * found["overhead"]["dask_overhead"]
    facts = {
        "Dask with one worker beside a plain loop of the same blocks": f"{overhead:+.0f} %",
        "two workers beside one": f"{found['scaling']['speed_up']:.2f}x",
        f"a plan of {planning['n_blocks']:,} blocks": f"{planning['plan_s']:.2f} s, "
        f"{planning['peak_bytes'] / 1e6:.0f} MB",
        f"peak memory from {first['tasks']:,} to {last['tasks']:,} tasks, client": f"{memory['client']} MB",
        "the same, worker": f"{memory['worker']} MB",
        f"{n_kills} times kill -9 of client, worker or scheduler": f"{kills['lost']} blocks lost, "
        f"{kills['differing']} differing",
        f"one core at {cpu['ratio']:.0f}x, read back and compared": f"{cpu['mb_s']:.1f} MB/s, "
        f"{cpu['hours_per_pb']:,.0f} core-hours for 1 PB",
    }
    return [f"| {what} | {value} |" for what, value in facts.items()]


def speed_rows(results: Path) -> list[str]:
    """MB/s both ways of each codec on one chunk: beside peers first, then of models measured without them."""
    found = [json.loads(path.read_text(encoding="utf-8"))["codecs"] for path in sorted(results.glob("speed_*.json"))]
    found.sort(key=lambda cases: all(case["codec"] != "peer" for case in cases))
    rows = []
    for case in (case for cases in found for case in cases):
        if case["codec"] == "peer":
            label = case["label"]
        else:
            model = "" if case["model"] == "auto" else f", {case['model']}"
            label = f"**zarr_emcodec{model}** at {case['ratio']:g}x, {case['entropy']} entropy coder"
        rows.append(
            f"| {label} | {case['reached']:.0f}x | {case['encode']['mb_s']:.1f} | {case['decode']['mb_s']:.1f} |"
        )
    return rows


def tier_rows(results: Path, name: str) -> list[str]:
    """What each tier of each token model keeps of a volume, and the peers nearest to 256x and 1024x."""
    loaded = record(results, f"tiers_{name}")
    names = {card.digest.hex()[:16]: card.name for card in (model.card for model in list_models())}
    rows = []
    for point in loaded["points"]:
        stored = {p["tier"] for p in loaded["points"] if (p["model"], p["asked"]) == (point["model"], point["asked"])}
        if point["tier"] == "prior" and "full" in stored:
            continue  # nothing is missing that a prior could fill in
        label = f"**{names[point['model']]}**, {point['tier']}"
        rows.append(_tier_row(label, point["frames_ratio"], point))
    for peer, points in loaded["peers"].items():
        for ratio in (256, 1024):
            if points and points[-1]["ratio"] <= ratio <= points[0]["ratio"]:
                values = {key: at_ratio(points, ratio, key) for key in points[0] if key not in ("quality", "ratio")}
                rows.append(_tier_row(PEER_LABELS.get(peer, peer), ratio, values))
    return rows


def _tier_row(label: str, ratio: float, values: dict[str, Any]) -> str:
    iou = f"{values['iou_fraction']:.2f}" if "iou_fraction" in values else ""
    figures = f"{values['psnr']:.2f} | {values['ssim']:.3f} | {values['spectral_db']:.1f} | {values['texture']:.2f}"
    return f"| {label} | {ratio:.0f}x | {figures} | {iou} | {values['decode_mb_s']:.1f} |"


def _link(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _depth_tables(results: Path) -> list[str]:
    """The tables of volumes coded over z, as far as they were measured."""
    columns = [*(f"{ratio}x" for ratio in RATIOS), *(f"bytes against {PEER_LABELS[peer]}" for peer in INTER)]
    head = "| PSNR, dB, at a ratio of | " + " | ".join(columns) + " |"
    parts = []
    for name, title in DEPTHS.items():
        if (results / f"rd_{name}.json").exists():
            rows = [head, "|---" * (len(columns) + 1) + "|", *depth_rows(results, name)]
            parts += [f"{title[0].upper()}{title[1:]}:", "\n".join(rows)]
    return parts


def tables(results: Path) -> str:
    """The README's section, Markdown."""
    head = "| PSNR, dB, at a ratio of | " + " | ".join(f"{ratio}x" for ratio in RATIOS) + " | bytes against HEVC |"
    parts = [START, "## What it gives"]
    for name, title in VOLUMES.items():
        parts += [f"{title}:", "\n".join([head, "|---" * (len(RATIOS) + 2) + "|", *quality_rows(results, name)])]
        if name == "fib_medulla_64":
            parts += _depth_tables(results)
    parts += [
        'No network saw these sections in training. Ours count every stored byte, the others their payload. "Bytes '
        'against HEVC": BD-rate to HEVC intra, 8x to 256x, negative is better. `vae-2d-best` and `vae-2d-fast` know '
        "the other sections of a chunk, as the codecs that predict over z do; JPEG to HEVC intra do not. A blank: the "
        "codec does not get there. "
        f"Pictures and records: [benchmarks/results]({_link(results)}).",
        f"![PSNR and SSIM over ratio]({_link(results / 'rd_fib_medulla_64.png')})",
        "\n".join(
            ["| MB/s of raw voxels, one core | ratio | encode | decode |", "|---|---|---|---|", *speed_rows(results)]
        ),
        "Tokens, by model and tier. Ratios of frames (on disk a volume of a few MB gives up a tenth and more to "
        "metadata); spectrum and texture: distance from the original, 0 is alike; membranes: IoU of a segmentation, as "
        "a fraction of that on the original. Peers are interpolated at 256x and 1024x, where they get there.",
    ]
    head = "| | ratio | PSNR, dB | SSIM | spectrum, dB | texture | membranes | decode, MB/s |"
    for name, title in TIER_VOLUMES.items():
        parts += [f"{title}:", "\n".join([head, "|---" * 8 + "|", *tier_rows(results, name)])]
    picture = _link(results / "tiers_fib_medulla_64_1024.png")
    parts += [
        f"![a section, and the tiers top and prior at 1024x]({picture})",
        "Recompression of whole volumes (two cores, no GPU):",
        "\n".join(["| | |", "|---|---|", *job_rows(results)]),
        END,
    ]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "0.1.0")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(START, 1)
    after = rest.split(END, 1)[1] if END in rest else rest
    new = before + tables(args.results.resolve()) + after
    if args.check:
        sys.exit("README.md differs from the records: run benchmarks/readme.py" if new != text else 0)
    readme.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
