#!/usr/bin/env python3
"""Tables and plots from the JSON records of the other scripts; nothing is measured here.

    python benchmarks/figures.py benchmarks/results/0.1.0/rd_*.json      # draws each plot again, prints each table

A record's ``curves`` map a key to ``label``, ``ours`` (bool) and ``points``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from metrics import TABLE_RATIOS, at_ratio, bd_rate

mpl.use("Agg")  # a plot is a file here; machines without a display draw it too
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

REFERENCES = ("hevc_intra", "hevc_inter", "av1_inter", "jpeg2k", "jpegxl")
OURS_COLOURS = ("#b5121b", "#e07a00", "#7a1fa2", "#00695c")
# Okabe and Ito's colours (distinct for colour-blind readers), and a marker each for print.
PEER_STYLES = {
    "jpeg": ("#999999", "v"),
    "jpeg2k": ("#0072b2", "s"),
    "jpegxl": ("#56b4e9", "D"),
    "avif": ("#009e73", "^"),
    "hevc_intra": ("#222222", "o"),
    "hevc_inter": ("#222222", "P"),
    "av1_inter": ("#cc79a7", "X"),
    "sperr3d": ("#8c6d1f", "*"),
    "down4_av1": ("#d6a3c2", "<"),
    "down8_av1": ("#e8cfe0", ">"),
}
THREE_D = ("hevc_inter", "av1_inter", "sperr3d", "down4_av1", "down8_av1")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain-text table, first column to the left."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def number(value: float | None, digits: int = 2) -> str:
    """The value, or nothing where it was not measured."""
    return "" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def quality_table(curves: Mapping[str, Any], key: str, digits: int) -> str:
    """Quality at fixed ratios, a row per curve; blank where the codec does not reach the ratio."""
    ratios = [r for r in TABLE_RATIOS if any(math.isfinite(at_ratio(c["points"], r, key)) for c in curves.values())]
    rows = [
        [curve["label"], *(number(at_ratio(curve["points"], ratio, key), digits) for ratio in ratios)]
        for curve in curves.values()
    ]
    return table([key.upper(), *(f"{ratio}x" for ratio in ratios)], rows)


def bd_rates(curves: Mapping[str, Any], quality: str = "psnr") -> dict[str, dict[str, float]]:
    """BD-rate (percent) at equal PSNR or SSIM of every curve against each reference that was measured."""
    return {
        reference: {
            key: bd_rate(curves[reference]["points"], curve["points"], quality)
            for key, curve in curves.items()
            if key != reference
        }
        for reference in REFERENCES
        if reference in curves
    }


def bd_table(record: Mapping[str, Any], quality: str = "psnr") -> str:
    """BD-rates as a table; negative: fewer bytes than the reference at equal quality."""
    curves, rates = record["curves"], record["bd_rate_percent" if quality == "psnr" else "bd_rate_ssim_percent"]
    rows = [[curve["label"], *(number(rates[ref].get(key), 1) for ref in rates)] for key, curve in curves.items()]
    return table([f"BD-rate ({quality.upper()}), % against", *(curves[ref]["label"] for ref in rates)], rows)


def asked_table(curve: Mapping[str, Any]) -> str:
    """What was asked for and what was reached, over all stored bytes."""
    rows = [
        [
            f"{point['asked']:g}x",
            f"{point['ratio']:.2f}x",
            f"{100 * (point['ratio'] / point['asked'] - 1):+.1f}",
            number(point["psnr"]),
            number(point["ssim"], 4),
            f"{point['stored_bytes'] - point['frame_bytes']}",
            " ".join(f"{n} {kind}" for kind, n in point["kinds"].items()),
        ]
        for point in curve["points"]
    ]
    return table(["asked", "reached", "%", "PSNR", "SSIM", "metadata B", "frames"], rows)


def rd_report(record: Mapping[str, Any]) -> str:
    """Everything that rd.py prints of one volume."""
    volume, curves = record["volume"], record["curves"]
    head = f"{volume['name']}: {' x '.join(map(str, volume['shape']))} {volume['dtype']}, {record['protocol']}"
    parts = [head]
    for curve in curves.values():
        if curve["ours"]:
            parts.append(f"{curve['label']}\n{asked_table(curve)}")
            parts.extend(f"  refused {ratio}x: {why}" for ratio, why in curve["refused"].items())
    parts += [quality_table(curves, "psnr", 2), quality_table(curves, "ssim", 4)]
    if record["bd_rate_percent"]:
        parts += [bd_table(record), bd_table(record, "ssim")]
    return "\n\n".join(parts)


def draw_curves(axes: Any, curves: Mapping[str, Any], key: str) -> None:
    """Quality over the ratio (logarithmic), peers thin, ours on top."""
    colours = itertools.cycle(OURS_COLOURS)
    for name, curve in curves.items():
        if not curve["points"]:
            continue
        points = sorted((p["ratio"], p[key]) for p in curve["points"])
        x, y = zip(*points, strict=True)
        if curve["ours"]:
            axes.plot(x, y, "-o", color=next(colours), lw=2.6, ms=5.5, label=curve["label"], zorder=5)
        else:
            colour, marker = PEER_STYLES[name]
            dashes = (0, (4, 2)) if name in THREE_D else "-"
            axes.plot(x, y, ls=dashes, marker=marker, color=colour, lw=1.2, ms=4, label=curve["label"], alpha=0.9)


def _ratio_axis(axes: Any, curves: Mapping[str, Any]) -> None:
    """Powers of two from the smallest to the largest ratio of ours, a step of room on both sides."""
    ours = [p["ratio"] for c in curves.values() if c["ours"] for p in c["points"]]
    ratios = ours or [p["ratio"] for c in curves.values() for p in c["points"]]
    low, high = min(ratios) / 1.5, max(ratios) * 1.5
    ticks = [2**k for k in range(1, 13) if low <= 2**k <= high]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.set_xlim(low, high)
    axes.set_xlabel("compression ratio")
    axes.grid(visible=True, color="#dddddd", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    _fit_height(axes, low, high)


def _fit_height(axes: Any, low: float, high: float) -> None:
    """Scale the y axis to what is visible: peers far outside the ratios of ours would flatten the picture."""
    seen = [y for line in axes.lines for x, y in zip(*line.get_data(), strict=True) if low <= x <= high]
    if seen:
        margin = 0.05 * (max(seen) - min(seen)) or 0.5
        axes.set_ylim(min(seen) - margin, max(seen) + margin)


def plot(record: Mapping[str, Any], path: Path, panels: Mapping[str, str]) -> None:
    """Draw a record's curves, one panel per quality, with one legend.

    Parameters
    ----------
    record : mapping
        With ``curves``, ``volume`` and ``protocol``.
    path : Path
        The PNG to write.
    panels : mapping
        Key of the points -> label of the axis.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(5.6 * len(panels) + 1.8, 4.6), squeeze=False)
    for axis, (key, label) in zip(axes[0], panels.items(), strict=True):
        draw_curves(axis, record["curves"], key)
        _ratio_axis(axis, record["curves"])
        axis.set_ylabel(label)
    volume = record["volume"]
    figure.suptitle(f"{volume['name']}  ({' x '.join(map(str, volume['shape']))} {volume['dtype']})", x=0.01, ha="left")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center right", frameon=False, fontsize=9)
    figure.text(0.01, 0.01, record["protocol"], fontsize=7.5, color="#555555")
    figure.tight_layout(rect=(0, 0.03, 1 - 1.75 / figure.get_figwidth(), 0.98))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def rd_plot(record: Mapping[str, Any], path: Path) -> None:
    """PSNR and SSIM over the ratio, side by side."""
    lo, hi = record["volume"]["window"]
    plot(record, path, {"psnr": f"PSNR in dB, peak {hi - lo:g}", "ssim": "SSIM"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, nargs="+", help="JSON of rd.py")
    for path in parser.parse_args().record:
        record = json.loads(path.read_text(encoding="utf-8"))
        print(rd_report(record), end="\n\n")
        rd_plot(record, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
