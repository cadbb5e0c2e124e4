"""What a plan would do to the data, to look at before it is done: original, decoded and difference of sampled blocks.

A plan with an estimate in; a PNG, or one HTML page that needs no other file, out. The samples shown are coded again.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.errors import JobError, MissingExtraError, SpecError
from zarr_emcodec.jobs import page
from zarr_emcodec.jobs.measure import decibels
from zarr_emcodec.jobs.plan_words import estimate_facts, memory_facts, plan_facts, sample_facts
from zarr_emcodec.jobs.sources import Source, open_source
from zarr_emcodec.jobs.trial import Sample, Trial

if TYPE_CHECKING:
    from zarr_emcodec._types import Chunk
    from zarr_emcodec.jobs.estimate import Estimate
    from zarr_emcodec.jobs.plan import Plan

SHOWN = 320
"""Voxels along an edge of a picture: each one gets a pixel or more."""
_INK = "#222222"
_ROWS = 6


@dataclass(frozen=True)
class _Row:
    """One section of one sample, cut to what is shown."""

    label: str
    place: str
    original: Chunk
    decoded: Chunk


def preview(plan: Plan, path: str | os.PathLike[str], *, source: Source | None = None) -> None:
    """Draw the worst, the middle and the best of a plan's samples, for each of its codecs.

    Parameters
    ----------
    plan : Plan
        With an estimate.
    path : path
        ``.png`` for the pictures alone, ``.html`` for a page with the plan's figures as well.
    source : Source, optional
        The plan's, where it is open already.

    Raises
    ------
    SpecError
        If the path ends otherwise, or the plan was made without samples.
    JobError
        If the source cannot be read any more, or the file cannot be written.
    MissingExtraError
        If matplotlib is absent.
    """
    check_preview(path, 0 if plan.estimate is None else len(plan.estimate.samples))
    assert plan.estimate is not None
    with nullcontext(source) if source is not None else open_source(plan.source, missing=plan.missing) as volume:
        trial = Trial(plan, volume)
        rows = [_row(trial, plan, sample, plan.estimate.peak) for sample in shown_samples(plan.estimate)]
    peak = plan.estimate.peak
    data = _png(rows, peak) if Path(path).suffix.lower() == ".png" else _page(plan, plan.estimate, rows).encode()
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise JobError(f"preview {path}: cannot be written: {error}") from error


def check_preview(path: str | os.PathLike[str], samples: int) -> None:
    """Refuse before the samples are coded what cannot be drawn after it.

    Raises
    ------
    SpecError
        If the path ends neither in .png nor in .html, or there will be no samples.
    JobError
        If its folder does not exist.
    MissingExtraError
        If matplotlib is absent.
    """
    if Path(path).suffix.lower() not in (".png", ".html"):
        raise SpecError(f"preview {path}: needs a name that ends in .png or .html.", name="preview", value=str(path))
    if not Path(path).absolute().parent.is_dir():
        raise JobError(f"preview {path}: its folder does not exist. Create it first.")
    if samples < 1:
        raise SpecError("preview: the plan has no samples to show. Make it with one or more.", name="samples", value=0)
    if find_spec("matplotlib") is None:
        raise MissingExtraError("drawing a preview", extra="viz")


def shown_samples(found: Estimate) -> list[Sample]:
    """Of each codec the sample of lowest PSNR, the one in the middle and that of highest; six in all."""
    chosen: list[Sample] = []
    for codec in sorted({sample.codec_index for sample in found.samples}):
        ranked = sorted(
            (sample for sample in found.samples if sample.codec_index == codec),
            key=lambda sample: -sample.squared / sample.raw_bytes,
        )
        ends = dict.fromkeys((0, len(ranked) // 2, len(ranked) - 1))
        chosen += [ranked[i] for i in ends]
    return chosen[:_ROWS]


def _png(rows: Sequence[_Row], peak: float) -> bytes:
    """A line for each row: original, decoded, difference, all differences on one scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.1 * len(rows)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), 3, squeeze=False)
    offs = [row.decoded.astype(np.float64) - row.original for row in rows]
    reach = max([float(np.percentile(np.abs(off), 99.8)) for off in offs] + [1e-9])
    for line, row, off in zip(panels, rows, offs, strict=True):
        bounds = tuple(float(v) for v in np.percentile(row.original, (0.2, 99.8)))
        _panel(line[0], row.original, bounds, "gray", row.place)
        _panel(line[1], row.decoded, bounds, "gray", row.label)
        shown = _panel(line[2], off, (-reach, reach), "RdBu_r", "decoded minus original")
        bar = figure.colorbar(shown, ax=line[2], shrink=0.9, pad=0.02, aspect=28)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, colors=_INK, length=0)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=100, format="png")
    return stream.getvalue()


def _panel(axes: Any, image: Chunk, bounds: tuple[float, ...], colours: str, title: str) -> Any:
    shown = axes.imshow(image, cmap=colours, vmin=bounds[0], vmax=bounds[1], interpolation="nearest")
    axes.set_title(title, size=10, color=_INK, loc="left", pad=5)
    axes.set_axis_off()
    return shown


def _row(trial: Trial, plan: Plan, sample: Sample, peak: float) -> _Row:
    original, decoded = trial.pair(sample)
    leading = tuple(n // 2 for n in original.shape[:-2])
    corner = [max(0, (n - SHOWN) // 2) for n in original.shape[-2:]]
    cut = (*leading, *(slice(start, start + SHOWN) for start in corner))
    starts = [start for start, _ in sample.box]
    at = [a + i for a, i in zip(starts[:-2], leading, strict=True)]
    ends = [
        f"{a + i}:{a + i + n}"
        for a, i, n in zip(starts[-2:], corner, original[cut].shape, strict=True)
    ]  # fmt: skip
    ratio = sample.raw_bytes / sample.stored_bytes if sample.stored_bytes else math.inf
    reached = decibels(sample.squared / original.size, peak)
    quality = "exact" if math.isinf(reached) else f"{reached:.2f} dB"
    label = f"{plan.configs[sample.codec_index].get('model', '')}   {ratio:.1f}x smaller   {quality}"
    return _Row(label, f"block {sample.block}  [{', '.join([*map(str, at), *ends])}]", original[cut], decoded[cut])


def _page(plan: Plan, found: Estimate, rows: Sequence[_Row]) -> str:
    title = f"{plan.source} to {plan.destination}"
    body = [page.heading(title, 1), page.table(plan_facts(plan))]
    body += [page.heading("Estimate"), page.table(estimate_facts(found))]
    body += [page.heading("Memory of a worker"), page.table(memory_facts(plan.memory))]
    body.append(page.heading("Samples: the worst, the middle and the best of each codec"))
    body += [page.triptych(f"{row.place}   {row.label}", row.original, row.decoded) for row in rows]
    body.append(page.table(sample_facts(found)))
    return page.document(title, body)
