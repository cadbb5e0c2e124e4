"""Proof that a stored array is whole and keeps its promise, when it was written or years later.

An array, and its source where there is one, in; a `VerifyReport` out that lists everything that is wrong. It goes from
box to box, so that memory does not grow with the array, and what cannot be read is a finding and no end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.errors import JobError, SpecError
from zarr_emcodec.jobs import compare
from zarr_emcodec.jobs.examine import Examination, Sample, find_array, open_written
from zarr_emcodec.jobs.frames import layout_of
from zarr_emcodec.jobs.measure import BlockMeasure, Guard, compare_block
from zarr_emcodec.jobs.promised import promised_of
from zarr_emcodec.jobs.report import Record
from zarr_emcodec.jobs.report_page import check_report, is_page, worst_pictures, write_json, write_page
from zarr_emcodec.jobs.sources import Source, open_source
from zarr_emcodec.jobs.tally import Finding, Tally

if TYPE_CHECKING:
    import zarr

    from zarr_emcodec._types import Shape

__all__ = [
    "BlockMeasure", "Finding", "Guard", "VerifyReport", "compare_block", "examine", "find_array", "open_written",
    "verify",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class VerifyReport(Record):
    """What a verification found.

    Parameters
    ----------
    ok : bool
        Whether nothing was found wrong.
    array : str
    source : str or None
    n_chunks : int
        Cells of the chunk grid.
    frames_checked : int
        Stored frames whose structure and CRC32C were checked.
    chunks_compared : int
        Chunks decoded and held against the source.
    frames : mapping
        Kind to count, "absent" and "damaged" included.
    models, levels : mapping
        First 8 bytes of a model's digest, and quality level, to the number of frames.
    promise : mapping
        ``min_psnr`` and ``max_error`` of the array's codec, where stated: checked on every chunk compared.
    psnr_db, ssim, worst_error, peak : float or None
        Over the chunks compared; None without a source. PSNR is infinite (None in JSON) where nothing differs. SSIM is
        taken of one section in eight.
    lowest_chunk_db : float or None
        PSNR of the worst chunk, padding left aside. The guard counts padding, which its codec cannot tell from data, so
        an edge chunk may be below `min_psnr` here and yet keep the promise.
    chunk_db, errors
        Histograms, as in `BlockMeasure`.
    worst_chunks : tuple of (chunk index, PSNR, largest difference)
    n_findings : int
    findings : tuple of Finding
        As many as `MAX_FINDINGS`.
    seconds : float
    """

    ok: bool
    array: str
    source: str | None
    n_chunks: int
    frames_checked: int
    chunks_compared: int
    frames: Mapping[str, int]
    models: Mapping[str, int]
    levels: Mapping[int, int]
    promise: Mapping[str, float]
    psnr_db: float | None
    lowest_chunk_db: float | None
    ssim: float | None
    worst_error: float | None
    peak: float | None
    chunk_db: Mapping[str, int]
    errors: tuple[int, ...]
    worst_chunks: tuple[tuple[Shape, float, float], ...]
    n_findings: int
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def chunks(self) -> tuple[Shape, ...]:
        """Indices of the chunks with findings."""
        return tuple(sorted({finding.chunk for finding in self.findings}))

    def to_dict(self) -> dict[str, Any]:
        """As of every record, with the chunks that have findings."""
        return {**super().to_dict(), "chunks": [list(index) for index in self.chunks]}


def verify(array: str | os.PathLike[str], source: str | os.PathLike[str] | None = None, **words: Any) -> VerifyReport:
    """As `examine`, for a caller to whom an array with findings is an error.

    Parameters
    ----------
    array, source, **words
        As for `examine`.

    Raises
    ------
    VerifyError
        If anything is wrong with a chunk; `.chunks` holds the indices.
    """
    report = examine(array, source, **words)
    if not report.ok:
        wrong = {finding.chunk: finding.reason for finding in reversed(report.findings)}
        raise compare.verify_error(report.array, sorted(wrong.items()))
    return report


def examine(
    array: str | os.PathLike[str],
    source: str | os.PathLike[str] | None = None,
    *,
    sample: Sample = None,
    only_sampled: bool = False,
    trust_embedded: bool = False,
    trust_plan: bool = False,
    report: str | os.PathLike[str] | None = None,
    progress: compare.Progress | None = None,
) -> VerifyReport:
    """Check every frame of an array and, where the source is given, every voxel.

    Parameters
    ----------
    array : path or URL
        What was written: Zarr, or N5 with our blocks.
    source : path or URL, optional
        What it was written from. Without it only structure and checksums of the frames are checked.
    sample : int or float, optional
        Chunks to compare, or the fraction of them, above 0 and up to 1.0; the same chunks in every run.
    only_sampled : bool
        Check the frames of the sampled chunks alone; otherwise those of all chunks, which reads the whole array.
    trust_embedded : bool
        Decode with a model that travels with the array although its digest is not known here.
    trust_plan : bool
        Import the functions by which the plan that the array was written by tells its regions, where it does.
    report : path, optional
        Write it to a file as well: ``.html``, with pictures of the worst chunks, or ``.json``.
    progress : callable, optional
        Called with raw bytes done and in all.

    Returns
    -------
    VerifyReport

    Raises
    ------
    JobError
        If array or source cannot be opened, or there is nothing that could be checked.
    ModelError
        If a model is not here, so that nothing can be said of its chunks.
    SpecError
        If source and array differ in shape or dtype.
    """
    _check_words(sample, only_sampled, source, report)
    where = os.fspath(array)
    started = time.perf_counter()
    opened = open_written(where, models=source is not None, trust_embedded=trust_embedded)
    layout = layout_of(opened)
    if source is None and not layout.has_frames:
        raise JobError(f"{where}: holds no frames of this package that could be checked alone. Pass its source.")
    if source is None:
        examination = Examination(opened, layout, None, progress)
        examination.run(sample, only_sampled)
        found, pictures = _record(where, None, examination, started), []
    else:
        with open_source(source) as volume:
            _check_same(volume, opened)
            promised = promised_of(opened, layout, trust_plan=trust_plan)
            examination = Examination(opened, layout, volume, progress, promised=promised)
            examination.run(sample, only_sampled)
            found = _record(where, os.fspath(source), examination, started)
            wanted = report is not None and is_page(report)
            pictures = worst_pictures(volume, opened, examination.tally, expected=promised.voxels) if wanted else []
    if report is not None:
        _write(report, found, examination.tally, pictures)
    return found


def _check_words(sample: Sample, only_sampled: bool, source: object, report: str | os.PathLike[str] | None) -> None:
    if sample is not None and not (sample >= 1 if isinstance(sample, int) else 0 < sample <= 1):
        raise SpecError(
            f"sample {sample:g}: needs a number of chunks, or a fraction above 0 and up to 1.",
            name="sample",
            value=sample,
        )
    if (sample is not None or only_sampled) and source is None:
        raise SpecError("sample: only what is compared can be sampled. Pass the source.", name="sample", value=sample)
    if only_sampled and sample is None:
        raise SpecError("only_sampled: pass a sample.", name="only_sampled", value=True)
    if report is not None:
        check_report(report)


def _check_same(volume: Source, array: zarr.Array[Any]) -> None:
    if volume.shape != array.shape or volume.dtype != np.dtype(array.dtype).newbyteorder("="):
        raise SpecError(
            f"{volume.location}: is {volume.dtype} {volume.shape}, the array is {array.dtype} {array.shape}. "
            "It is not what the array was written from.",
            name="source",
            value=volume.location,
        )


def _record(where: str, source: str | None, examination: Examination, started: float) -> VerifyReport:
    tally, layout = examination.tally, examination.layout
    compared = tally.n_voxels > 0
    return VerifyReport(
        ok=tally.n_findings == 0,
        array=where,
        source=source,
        n_chunks=layout.n_chunks,
        frames_checked=sum(count for kind, count in tally.kinds.items() if kind != "absent"),
        chunks_compared=tally.n_chunks,
        frames=dict(sorted(tally.kinds.items())),
        models=dict(sorted(tally.digests.items())),
        levels=dict(sorted(tally.settings.items())),
        promise={key: layout.config[key] for key in ("min_psnr", "max_error") if layout.config.get(key) is not None},
        psnr_db=tally.psnr_db if compared else None,
        lowest_chunk_db=tally.lowest_chunk_db if compared else None,
        ssim=tally.ssim if compared else None,
        worst_error=tally.worst if compared else None,
        peak=tally.peak,
        chunk_db=tally.sorted_db,
        errors=tuple(tally.errors) if compared else (),
        worst_chunks=tuple(tally.worst_chunks),
        n_findings=tally.n_findings,
        findings=tuple(tally.findings),
        seconds=time.perf_counter() - started,
    )


def _write(path: str | os.PathLike[str], found: VerifyReport, tally: Tally, pictures: list[str]) -> None:
    if not is_page(path):
        write_json(path, found.to_dict())
        return
    promise = ", ".join(f"{name} {value:g}" for name, value in found.promise.items())
    facts = [
        ("array", found.array),
        ("source", found.source or "not given: voxels were not compared"),
        ("chunks", f"{found.n_chunks:,}"),
        ("promise", promise),
        ("took", f"{found.seconds:.1f} s"),
    ]
    write_page(path, f"Verification of {found.array}", facts, tally, pictures)
