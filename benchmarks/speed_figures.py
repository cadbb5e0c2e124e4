#!/usr/bin/env python3
"""Tables and the plot of speed.py, from its record; nothing is measured here.

python benchmarks/speed_figures.py benchmarks/results/0.1.0/speed_*.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from figures import number, table
from matplotlib import pyplot as plt  # after figures, which picks the file backend
from stages import ENTROPY_CODING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ENCODE, DECODE = "#b5121b", "#0072b2"
STAGES = {
    "network": "transforms",
    "context": "networks of the entropy model",
    "symbols": "symbols",
    "entropy": "rANS",
    "search": "rate search",
}


def label_of(result: Mapping[str, Any]) -> str:
    """What tables and plots call a case."""
    if result["codec"] == "peer":
        return str(result["label"])
    model = "" if result["model"] == "auto" else f", {result['model']}"
    coder = f", {result['entropy']}" if result["entropy"] else ""
    return f"zarr_emcodec{model}{coder}"


def shares(way: Mapping[str, Any]) -> str:
    """Percent of the call in each of `STAGES` and in the rest; blank for peers."""
    if "share" not in way:
        return ""
    known = [way["share"].get(stage, 0.0) for stage in STAGES]
    return " / ".join(f"{100 * share:.0f}" for share in [*known, 1 - sum(known)])


def entropy_coding(way: Mapping[str, Any]) -> str:
    """Percent of the call between latents and bytes, and MB/s if that were all; blank for peers."""
    if "share" not in way:
        return ""
    share = sum(way["share"].get(stage, 0.0) for stage in ENTROPY_CODING)
    return f"{100 * share:.0f} ({number(way['mb_s'] / share, 0) if share else '-'})"


def case_table(results: Sequence[Mapping[str, Any]]) -> str:
    """One row per case: speeds both ways, shares, memory."""
    rows = [
        [
            label_of(result),
            "x".join(map(str, result["chunk"])),
            str(result["batch"]),
            f"{result['reached']:.1f}x",
            number(result["encode"]["mb_s"], 1),
            number(result["decode"]["mb_s"], 1),
            *(entropy_coding(result[way]) for way in ("encode", "decode")),
            shares(result["encode"]),
            shares(result["decode"]),
            f"{result['peak_bytes'] / 1e6:.0f}",
            f"{(result['peak_bytes'] - result['before_bytes']) / result['raw_bytes']:.1f}",
        ]
        for result in results
    ]
    speeds = ["enc MB/s", "dec MB/s", "entropy coding enc % (MB/s)", "dec"]
    header = ["", "chunk", "batch", "ratio", *speeds, "enc %", "dec %", "peak MB", "added B/voxel"]
    note = f"enc %, dec %: CPU time in {' / '.join(STAGES.values())} / the rest."
    return f"{table(header, rows)}\n{note}"


def start_table(start: Mapping[str, Any]) -> str:
    """Milliseconds of imports and first calls."""
    rows = [[name, *(number(row[key], 1) for key in ("median_ms", "min_ms", "max_ms"))] for name, row in start.items()]
    return table(["fresh interpreter", "median ms", "min", "max"], rows)


def speed_report(record: Mapping[str, Any]) -> str:
    """Everything that speed.py prints."""
    volume = record["volume"]
    parts = [f"{volume['name']}: {record['protocol']}, {record['machine']['processor']}"]
    parts += [case_table(record[part]) for part in ("codecs", "chunks", "batches") if part in record]
    if "start" in record:
        parts.append(start_table(record["start"]))
    results = [result for part in ("codecs", "chunks", "batches") for result in record.get(part, [])]
    busiest = max(map(wall_over_cpu, results), default=1)
    if busiest > 1.1:
        parts.append(f"The machine was busy: wall-clock time up to {busiest:.2f} x CPU time.")
    return "\n\n".join(parts)


def wall_over_cpu(result: Mapping[str, Any]) -> float:
    """How much longer a case waited than it computed."""
    wall = sum(result["encode"]["wall_s"]) + sum(result["decode"]["wall_s"])
    return float(wall / (sum(result["encode"]["cpu_s"]) + sum(result["decode"]["cpu_s"])))


def draw_codecs(axis: Any, results: Sequence[Mapping[str, Any]]) -> None:
    """Bars of both ways per codec, logarithmic, the range of the repeats as a line."""
    for row, result in enumerate(results):
        for way, colour, shift in (("encode", ENCODE, -0.2), ("decode", DECODE, 0.2)):
            speed, (low, high) = result[way]["mb_s"], result[way]["mb_s_range"]
            axis.barh(row + shift, speed, 0.36, color=colour, alpha=1.0 if result["codec"] == "ours" else 0.45)
            axis.plot([low, high], [row + shift] * 2, color="#222222", lw=1)
            axis.text(1.05 * high, row + shift, f"{speed:.3g}", va="center", fontsize=7.5)
    labels = [f"{label_of(result)}  {result['reached']:.0f}x" for result in results]
    axis.set_yticks(range(len(results)), labels, fontsize=8.5)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlabel("MB/s per core")
    axis.margins(x=0.12)


def draw_scan(axis: Any, results: Sequence[Mapping[str, Any]], x: Sequence[float], label: str) -> None:
    """Both ways over a quantity that doubles."""
    for way, colour in (("encode", ENCODE), ("decode", DECODE)):
        axis.plot(x, [result[way]["mb_s"] for result in results], "-o", color=colour, label=way, lw=2, ms=5)
    axis.set_xscale("log", base=2)
    axis.set_xticks(x, [f"{value:g}" for value in x])
    axis.minorticks_off()
    axis.set_ylim(0, 1.08 * max(result[way]["mb_s"] for result in results for way in ("encode", "decode")))
    axis.set_xlabel(label)
    axis.set_ylabel("MB/s per core")


def speed_plot(record: Mapping[str, Any], path: Path) -> None:
    """A panel for each part that was measured."""
    parts = [part for part in ("codecs", "chunks", "batches") if part in record]
    if not parts:
        return
    widths = [6.2 if part == "codecs" else 3.4 for part in parts]
    height = max(3.6, 0.42 * len(record.get("codecs", [])) + 1.2)
    figure, axes = plt.subplots(1, len(parts), figsize=(sum(widths), height), width_ratios=widths, squeeze=False)
    for axis, part in zip(axes[0], parts, strict=True):
        results = record[part]
        if part == "codecs":
            draw_codecs(axis, results)
        elif part == "chunks":
            draw_scan(axis, results, [r["raw_bytes"] / 2**20 for r in results], "chunk, Mvoxel")
        else:
            draw_scan(axis, results, [r["batch"] for r in results], "chunks in one call")
        axis.grid(visible=True, color="#dddddd", lw=0.7)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in (ENCODE, DECODE)]
    figure.legend(handles, ["encode", "decode"], loc="upper right", ncols=2, frameon=False, fontsize=9)
    figure.text(0.01, 0.01, f"{record['volume']['name']}; {record['protocol']}", fontsize=7.5, color="#555555")
    figure.tight_layout(rect=(0, 0.03, 1, 0.95))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, nargs="+", help="JSON of speed.py")
    for path in parser.parse_args().record:
        record = json.loads(path.read_text(encoding="utf-8"))
        print(speed_report(record), end="\n\n")
        speed_plot(record, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
