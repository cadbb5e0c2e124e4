"""Proof that a stored array is whole and keeps its promise.

An array, and its source where there is one, in; a `VerifyReport` out, or a `VerifyError` that names every bad chunk.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.errors import JobError, SpecError
from zarr_emcodec.jobs import compare, grid
from zarr_emcodec.jobs.census import Census, take_census
from zarr_emcodec.jobs.compress import ATTRIBUTE
from zarr_emcodec.jobs.frames import Layout, layout_of
from zarr_emcodec.jobs.measure import BlockMeasure, Guard, compare_block
from zarr_emcodec.jobs.ome import pick_array
from zarr_emcodec.jobs.report import Record
from zarr_emcodec.jobs.sources import Source, open_source

if TYPE_CHECKING:
    import zarr

    from zarr_emcodec._types import Shape


__all__ = ["BlockMeasure", "Guard", "VerifyReport", "compare_block", "verify"]


@dataclass(frozen=True, kw_only=True)
class VerifyReport(Record):
    """What `verify` found; there is one only if nothing failed.

    Parameters
    ----------
    array : str
    source : str or None
    n_chunks : int
        Cells of the chunk grid.
    frames_checked : int
        Stored frames whose structure and CRC32C were checked.
    chunks_compared : int
        Chunks decoded and held against the source.
    frames : mapping
        Kind to count.
    promise : mapping
        ``min_psnr`` and ``max_error`` of the array's codec, where stated: checked on every chunk compared.
    psnr_db, ssim, worst_error, peak : float or None
        Over the chunks compared; None without a source. PSNR is infinite (None in JSON) where nothing differs.
    lowest_chunk_db : float or None
        PSNR of the worst chunk, padding left aside. The guard counts padding, which its codec cannot tell from data, so
        an edge chunk may be below `min_psnr` here and yet keep the promise.
    seconds : float
    """

    array: str
    source: str | None
    n_chunks: int
    frames_checked: int
    chunks_compared: int
    frames: Mapping[str, int]
    promise: Mapping[str, float]
    psnr_db: float | None
    lowest_chunk_db: float | None
    ssim: float | None
    worst_error: float | None
    peak: float | None
    seconds: float


def verify(
    array: str | os.PathLike[str],
    source: str | os.PathLike[str] | None = None,
    *,
    sample: float | None = None,
    trust_embedded: bool = False,
    progress: compare.Progress | None = None,
) -> VerifyReport:
    """Check every frame of an array and, where the source is given, every voxel.

    Parameters
    ----------
    array : path or URL
        What was written.
    source : path or URL, optional
        What it was written from. Without it only structure and checksums of the frames are checked.
    sample : float, optional
        Fraction of the chunks to compare, above 0 and up to 1; the same chunks in every run. All frames are checked
        in any case.
    trust_embedded : bool
        Decode with a model that travels with the array although its digest is not known here.
    progress : callable, optional
        Called with raw bytes compared and in all.

    Returns
    -------
    VerifyReport

    Raises
    ------
    VerifyError
        If a chunk is damaged, or falls short of the guard in the array's metadata; `.chunks` holds their indices.
    JobError
        If a path cannot be read, or there is nothing that could be checked.
    SpecError
        If source and array differ in shape or dtype.
    """
    if sample is not None and not 0 < sample <= 1:
        raise SpecError(f"sample {sample:g}: needs a fraction above 0 and up to 1.", name="sample", value=sample)
    where = os.fspath(array)
    opened, _, _ = pick_array(where, models=source is not None, trust_embedded=trust_embedded)
    layout = layout_of(opened)
    if source is None and not layout.has_frames:
        raise JobError(f"{where}: holds no frames of this package that could be checked alone. Pass its source.")
    started = time.perf_counter()
    census = take_census(opened, layout) if layout.has_frames else None
    failures = list(census.damaged) if census else []
    found, compared = None, 0
    if source is not None:
        with open_source(source) as volume:
            found, compared = _against(volume, opened, layout, census, sample, progress)
        known = {index for index, _ in failures}
        failures += [failure for failure in found.failures if failure[0] not in known]
    if failures:
        raise compare.verify_error(where, sorted(failures))
    return VerifyReport(
        array=where,
        source=None if source is None else os.fspath(source),
        n_chunks=layout.n_chunks,
        frames_checked=0 if census is None else sum(n for kind, n in census.kinds.items() if kind != "absent"),
        chunks_compared=compared,
        frames={} if census is None else census.kinds,
        promise={key: layout.config[key] for key in ("min_psnr", "max_error") if layout.config.get(key) is not None},
        psnr_db=None if found is None else found.psnr_db,
        lowest_chunk_db=None if found is None else found.lowest_chunk_db,
        ssim=None if found is None else found.ssim,
        worst_error=None if found is None else found.worst,
        peak=None if found is None else found.peak,
        seconds=time.perf_counter() - started,
    )


def _against(
    volume: Source,
    array: zarr.Array[Any],
    layout: Layout,
    census: Census | None,
    sample: float | None,
    progress: compare.Progress | None,
) -> tuple[compare.Comparison, int]:
    """Compare with the source; how many chunks were compared."""
    if volume.shape != array.shape or volume.dtype != np.dtype(array.dtype).newbyteorder("="):
        raise SpecError(
            f"{volume.location}: is {volume.dtype} {volume.shape}, the array is {array.dtype} {array.shape}. "
            "It is not what the array was written from.",
            name="source",
            value=volume.location,
        )
    n_chunks = layout.n_chunks if sample is None else max(1, math.ceil(sample * layout.n_chunks))
    total = volume.nbytes if sample is None else round(volume.nbytes * n_chunks / layout.n_chunks)
    done = 0

    def tick(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if progress is not None:
            progress(min(done, total), total)

    found = compare.compare(
        volume,
        array,
        _boxes(volume, layout) if sample is None else _sampled(layout, n_chunks),
        guard=Guard.of(layout.config if layout.is_ours else {}, layout.chunks, _peak(volume, array, layout)),
        scales=census.scales if census else None,
        tick=tick,
    )
    return found, n_chunks


def _boxes(volume: Source, layout: Layout) -> Iterator[grid.Box]:
    step = grid.grow(layout.shards or layout.chunks, volume.shape, volume.dtype.itemsize)
    return grid.boxes(volume.shape, step)


def _sampled(layout: Layout, n_chunks: int) -> Iterator[grid.Box]:
    """Single chunks, drawn with a fixed seed, in store order."""
    cells = grid.grid_shape(layout.shape, layout.chunks)
    drawn = np.random.default_rng(0).choice(layout.n_chunks, n_chunks, replace=False)
    for flat in np.sort(drawn):
        index: Shape = tuple(int(i) for i in np.unravel_index(flat, cells))
        yield grid.box_of(index, layout.chunks, layout.shape)


def _peak(volume: Source, array: zarr.Array[Any], layout: Layout) -> float:
    window = layout.config.get("window")
    if volume.dtype == np.uint8 or window:
        return compare.peak_of(volume.dtype, window, (0, 0))
    own = array.attrs.get(ATTRIBUTE)
    stated = own.get("source_range") if isinstance(own, Mapping) else None
    if isinstance(stated, list) and len(stated) == 2 and all(isinstance(v, int | float) for v in stated):
        return compare.peak_of(volume.dtype, None, (float(stated[0]), float(stated[1])))
    extremes = [(float(b.min()), float(b.max())) for b in map(volume.read, _boxes(volume, layout))]
    return compare.peak_of(volume.dtype, None, (min(e[0] for e in extremes), max(e[1] for e in extremes)))
