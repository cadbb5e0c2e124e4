"""The report of a verification or a recompression as one HTML page: figures, histograms, worst chunks as pictures.

A `Tally`, and the source and the array for pictures, in; a file out. Of each chunk shown one section is kept.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.errors import EmCodecError, JobError, SpecError
from zarr_emcodec.jobs import page
from zarr_emcodec.jobs.compare import read_box
from zarr_emcodec.jobs.grid import box_of
from zarr_emcodec.jobs.measure import ERROR_EDGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import zarr

    from zarr_emcodec._types import Chunk, Shape
    from zarr_emcodec.jobs.grid import Box
    from zarr_emcodec.jobs.sources import Source
    from zarr_emcodec.jobs.tally import Tally

SHOWN = 256
"""Voxels along an edge of a picture."""
N_PICTURES = 8
_LISTED = 200  # findings on the page; the JSON has more


def check_report(path: str | os.PathLike[str]) -> None:
    """Refuse a name that does not say which kind of report is wanted.

    Raises
    ------
    SpecError
        If it ends in neither .html nor .json.
    """
    if not str(path).lower().endswith((".html", ".htm", ".json")):
        raise SpecError(f"report {path}: needs a name that ends in .html or .json.", name="report", value=str(path))


def is_page(path: str | os.PathLike[str]) -> bool:
    """Whether a report is to be a page, with pictures."""
    return not str(path).lower().endswith(".json")


def write_json(path: str | os.PathLike[str], data: Mapping[str, Any]) -> None:
    """Write a report as JSON.

    Raises
    ------
    JobError
        If the file cannot be written.
    """
    try:
        Path(path).write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise JobError(f"report {path}: cannot be written: {error}") from error


def write_page(
    path: str | os.PathLike[str],
    title: str,
    facts: Sequence[tuple[str, str]],
    tally: Tally,
    pictures: Iterable[str] = (),
) -> None:
    """Write a report that any browser shows without a network.

    Parameters
    ----------
    path : path
    title : str
    facts : sequence of (name, value)
        What the caller knows beyond the tally: places, times, sizes.
    tally : Tally
    pictures : iterable of str
        HTML, as from `worst_pictures`.

    Raises
    ------
    JobError
        If the file cannot be written.
    """
    well = "Everything that was looked at is well." if not tally.n_findings else f"{tally.n_findings} findings."
    body = [page.heading(title, 1), page.paragraph(well, "bad" if tally.n_findings else "good")]
    body += [page.table([*facts, *_figures(tally)])]
    body += _findings(tally) + _histograms(tally)
    shown = list(pictures)
    if shown:
        body += [page.heading("Worst chunks"), *shown]
    try:
        Path(path).write_text(page.document(title, body), encoding="utf-8")
    except OSError as error:
        raise JobError(f"report {path}: cannot be written: {error}") from error


def worst_pictures(
    source: Source,
    array: zarr.Array[Any],
    tally: Tally,
    *,
    expected: Callable[[Box, Chunk], Chunk] | None = None,
) -> list[str]:
    """Original, decoded and difference around the worst voxel of the chunks that break the guard, then of the lowest.

    Parameters
    ----------
    source, array
        Open, of one shape.
    tally : Tally
    expected : callable, optional
        Box and source voxels to what was to be stored of them.
    """
    broken = [finding.chunk for finding in tally.findings if finding.kind == "guard"]
    chosen = dict.fromkeys([*broken[:N_PICTURES], *(index for index, _, worst in tally.worst_chunks if worst)])
    reached = {index: decibels for index, decibels, _ in tally.worst_chunks}
    found = []
    for index in list(chosen)[:N_PICTURES]:
        box = box_of(index, array.chunks, array.shape)
        try:
            original = source.read(box)
            decoded = read_box(array, box)
        except (EmCodecError, OSError, ValueError):
            continue  # listed among the findings
        original = original if expected is None else expected(box, original)
        found.append(_picture(index, box, original, decoded, reached.get(index)))
    return found


def _picture(index: Shape, box: Box, original: Chunk, decoded: Chunk, reached: float | None) -> str:
    with np.errstate(invalid="ignore"):  # infinity less itself
        off = np.nan_to_num(np.abs(decoded.astype(np.float64) - original))
    worst = tuple(int(at) for at in np.unravel_index(int(off.argmax()), off.shape))
    corner = [min(max(0, at - SHOWN // 2), max(0, n - SHOWN)) for at, n in zip(worst, off.shape, strict=True)][-2:]
    cut: Any = (*worst[:-2], *(slice(start, start + SHOWN) for start in corner))
    place = ", ".join(str(part.start + at) for part, at in zip(box, worst, strict=True))
    quality = "" if reached is None else f"{reached:.2f} dB, "
    caption = f"chunk {index}: {quality}off by {off[worst]:g} at voxel ({place})"
    return page.triptych(caption, original[cut], decoded[cut])


def _figures(tally: Tally) -> list[tuple[str, str]]:
    def shown(value: float, form: str, unit: str = "") -> str:
        if math.isnan(value):
            return ""
        return "exact" if math.isinf(value) and unit else f"{value:{form}}{unit}"

    return [
        ("frames", ", ".join(f"{count:,} {kind}" for kind, count in sorted(tally.kinds.items()))),
        ("frame bytes", f"{tally.frame_bytes:,}" if tally.frame_bytes else ""),
        ("models", ", ".join(f"{digest}: {count:,} frames" for digest, count in sorted(tally.digests.items()))),
        ("compared", f"{tally.n_chunks:,} chunks, {tally.n_voxels:,} voxels" if tally.n_voxels else ""),
        ("PSNR", shown(tally.psnr_db, ".2f", " dB") + (f", peak {tally.peak:g}" if tally.peak else "")),
        ("worst chunk", shown(tally.lowest_chunk_db, ".2f", " dB")),
        ("SSIM", shown(tally.ssim, ".4f")),
        ("worst voxel", f"off by {tally.worst:g}" if tally.n_voxels else ""),
    ]


def _findings(tally: Tally) -> list[str]:
    if not tally.findings:
        return []
    rows = [(finding.kind, str(finding.chunk), finding.reason) for finding in tally.findings[:_LISTED]]
    more = tally.n_findings - len(rows)
    rest = [page.paragraph(f"and {more} more; the JSON report lists up to {len(tally.findings)}.")] if more else []
    return [page.heading("Findings"), page.table(rows), *rest]


def _histograms(tally: Tally) -> list[str]:
    if not tally.n_voxels:
        return []
    return [
        page.heading("Chunks by PSNR"),
        page.bars(*_by_decibel(tally.chunk_db), unit="dB, rounded down"),
        page.heading("Voxels by difference"),
        page.bars(_error_labels(), tally.errors, unit="difference, in 255ths of the peak", log=True),
    ]


def _by_decibel(counts: Mapping[str, int]) -> tuple[list[str], list[int]]:
    """Every whole decibel between the lowest and the highest, and the exact chunks last."""
    whole = sorted(int(key) for key in counts if key.lstrip("-").isdigit())
    labels = [str(db) for db in range(whole[0], whole[-1] + 1)] if whole else []
    labels = [*(["-inf"] if "-inf" in counts else []), *labels, *(["inf"] if "inf" in counts else [])]
    return ["exact" if key == "inf" else key for key in labels], [counts.get(key, 0) for key in labels]


def _error_labels() -> list[str]:
    ends = [str(edge) for edge in ERROR_EDGES]
    spans = [
        end if int(end) - int(start) == 1 else f"{int(start) + 1} to {end}" for start, end in itertools.pairwise(ends)
    ]
    return [ends[0], *spans, f"above {ends[-1]}"]
