"""A volume into a compressed Zarr array.

A source path, a destination path and what is asked of the codec in; a `Report` out. The volume streams through in
boxes of whole chunks (or shards), and the array takes its name only when it is complete and read back.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from zarr_emcodec.errors import JobError, SpecError
from zarr_emcodec.jobs import compare, grid
from zarr_emcodec.jobs.census import Census, take_census
from zarr_emcodec.jobs.coding import chunks_for, codec_from
from zarr_emcodec.jobs.frames import layout_of, stored_bytes
from zarr_emcodec.jobs.landing import landing
from zarr_emcodec.jobs.measure import Guard
from zarr_emcodec.jobs.picture import draw_rows
from zarr_emcodec.jobs.report import Record, plain
from zarr_emcodec.jobs.sources import Source, open_source

if TYPE_CHECKING:
    import zarr

    from zarr_emcodec._types import Shape
    from zarr_emcodec.adapters.numcodecs import SpecCodec

ATTRIBUTE = "emcodec"
"""Name of the array attribute that holds origin and measured quality."""
_AXES = ("t", "c", "z", "y", "x")


@dataclass(frozen=True, kw_only=True)
class Report(Record):
    """What `compress` did.

    Parameters
    ----------
    source, destination : str
    note : str
        What was chosen on the user's behalf.
    shape, chunks : tuple of int, voxels
    shards : tuple of int, voxels, or None
    dtype : str
    zarr_format : int
    model : str
        Id of the codec's model.
    raw_bytes, stored_bytes : int
        Voxels x itemsize; every file of the destination.
    ratio : float
        Raw over stored.
    bits_per_voxel : float
    frames : mapping
        Kind to count: latent and masked frames went through the model; lossless ones are those where it fell short
        (or was not cheaper); constant and absent chunks cost next to nothing.
    write_s, write_mb_s : float
        Reading the source, encoding, writing; 10^6 raw bytes a second.
    read_s, read_mb_s : float or None
        Reading back, decoding, measuring; None without verification.
    psnr_db, ssim, worst_error : float or None
        Of the whole volume as read back; PSNR is infinite (None in JSON) where nothing differs.
    lowest_chunk_db : float or None
        PSNR of the worst chunk, padding left aside.
    peak : float
        That PSNR and SSIM refer to, in source units.
    picture : str or None
    """

    source: str
    destination: str
    note: str
    shape: Shape
    chunks: Shape
    shards: Shape | None
    dtype: str
    zarr_format: int
    model: str
    raw_bytes: int
    stored_bytes: int
    ratio: float
    bits_per_voxel: float
    frames: Mapping[str, int]
    write_s: float
    write_mb_s: float
    read_s: float | None
    read_mb_s: float | None
    psnr_db: float | None
    lowest_chunk_db: float | None
    ssim: float | None
    worst_error: float | None
    peak: float
    picture: str | None = None


def compress(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    ratio: float | None = None,
    codec: str = "vae",
    model: str = "auto",
    mode: Literal["entropy", "nominal"] = "entropy",
    min_psnr: float | None = None,
    max_error: float | None = None,
    window: tuple[float, float] | None = None,
    effort: int | None = None,
    time_limit: float | None = None,
    backbone: str | None = None,
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | None = None,
    zarr_format: Literal[2, 3] = 3,
    embed_model: bool = False,
    overwrite: bool = False,
    verify: bool = True,
    picture: str | os.PathLike[str] | None = None,
    progress: compare.Progress | None = None,
) -> Report:
    """Write a volume as a Zarr array of neural frames, and read it back.

    Parameters
    ----------
    source : path or URL
        Anything that `open_source` reads.
    destination : path
        Local; becomes a directory that any Zarr reader with this package installed can open.
    codec : str
        Family of models: "vae", "vqvae" (tokens: the highest ratios, read at tiers), or "inr" (a network or latents
        fitted to each chunk).
    ratio, model, mode, min_psnr, max_error, window, effort, time_limit, backbone
        As in `zarr_emcodec.VAECodec`, `zarr_emcodec.VQVAECodec` and `zarr_emcodec.INRCodec`; the last two are the last
        one's alone.
    chunks : sequence of int, voxels, optional
        About 16 x 512 x 512 when not given, larger for tokens, fitted to the array.
    shards : sequence of int, voxels, optional
        Multiples of the chunks; Zarr v3 only.
    zarr_format : {2, 3}
    embed_model : bool
        Put the decoder into the array, so that it can be read where the model is not installed.
    overwrite : bool
        Whether an existing Zarr array may be replaced; it stays as it is until the new one is complete.
    verify : bool
        Read back, measure, and check the guard before the array takes its name.
    picture : path, optional
        Draw original, decoded and difference of the middle section here (PNG).
    progress : callable, optional
        Called with raw bytes done and in all; reading back counts like writing. While networks are fitted also between
        chunks, then from several threads.

    Returns
    -------
    Report

    Raises
    ------
    JobError
        If a path cannot be used. Nothing is left behind.
    VerifyError
        If what was read back breaks the guard's promise. Nothing is left behind.
    SpecError
        If source or options cannot be coded.
    """
    words = {"ratio": ratio, "model": model, "mode": mode, "min_psnr": min_psnr, "max_error": max_error,
             "window": window, "effort": effort, "time_limit": time_limit, "backbone": backbone}  # fmt: skip
    config: dict[str, Any] = {
        "id": f"emcodec_{codec}",
        **{key: value for key, value in words.items() if value is not None},
    }
    codec_from(config)  # what cannot work ends here, before the source is opened
    with open_source(source) as volume, landing(destination, overwrite=overwrite, keep=source) as draft:
        if codec != "inr" and volume.voxel_nm is not None and len(volume.voxel_nm) == 3:
            config["voxel_nm"] = volume.voxel_nm  # volumes or sections: the voxels' shape decides
        made = codec_from(config)
        array = _create(draft, volume, made, chunks_for(config, volume.shape, chunks), shards, zarr_format, embed_model)
        tick = _Ticks(progress, volume.nbytes * (2 if verify else 1))
        started = time.perf_counter()
        with _fits_watched(tick, volume.dtype.itemsize):
            extremes = _copy(volume, array, tick)
        write_s = time.perf_counter() - started
        census = take_census(array, layout_of(array))
        peak = compare.peak_of(volume.dtype, window, extremes)
        found, read_s = _read_back(volume, array, peak, census, tick) if verify else (None, None)
        _sign(array, volume, extremes, found)
        if picture is not None:
            draw_rows(picture, volume, [(f"{made.spec.model}", array)], peak=peak)
        size = stored_bytes(array)
    return Report(
        source=volume.location,
        destination=os.fspath(destination),
        note=volume.note,
        shape=volume.shape,
        chunks=array.chunks,
        shards=array.shards,
        dtype=volume.dtype.name,
        zarr_format=zarr_format,
        model=made.spec.model,
        raw_bytes=volume.nbytes,
        stored_bytes=size,
        ratio=volume.nbytes / size,
        bits_per_voxel=8 * size * volume.dtype.itemsize / volume.nbytes,
        frames=census.kinds,
        write_s=write_s,
        write_mb_s=volume.nbytes / 1e6 / write_s,
        read_s=read_s,
        read_mb_s=None if read_s is None else volume.nbytes / 1e6 / read_s,
        psnr_db=None if found is None else found.psnr_db,
        lowest_chunk_db=None if found is None else found.lowest_chunk_db,
        ssim=None if found is None else found.ssim,
        worst_error=None if found is None else found.worst,
        peak=peak,
        picture=None if picture is None else os.fspath(picture),
    )


def _create(
    draft: Path,
    volume: Source,
    codec: SpecCodec,
    chunks: Shape,
    shards: Sequence[int] | None,
    zarr_format: Literal[2, 3],
    embed_model: bool,
) -> zarr.Array[Any]:
    from zarr_emcodec.adapters import arrays

    attributes = {key: value for key, value in volume.attributes.items() if key != ATTRIBUTE}
    # readers that know axes by name (xarray) find them here
    named: dict[str, Any] = {"dimension_names": _AXES[-len(volume.shape) :]} if zarr_format == 3 else {}
    if zarr_format == 2:
        attributes.setdefault("_ARRAY_DIMENSIONS", list(_AXES[-len(volume.shape) :]))
    return arrays.create_array(
        draft,
        shape=volume.shape,
        dtype=volume.dtype,
        chunks=chunks,
        shards=None if shards is None else tuple(shards),
        codec=codec,
        zarr_format=zarr_format,
        attributes=attributes,
        embed_model=embed_model,
        **named,
    )


def _copy(volume: Source, array: zarr.Array[Any], tick: _Ticks) -> tuple[float, float]:
    """Write every voxel; the smallest and the largest value."""
    low, high = np.inf, -np.inf
    step = grid.grow(array.shards or array.chunks, volume.shape, volume.dtype.itemsize)
    for box in grid.boxes(volume.shape, step):
        block = volume.read(box)
        low, high = min(low, float(block.min())), max(high, float(block.max()))
        try:
            array[box] = block
        except SpecError as error:
            place = ", ".join(f"{part.start}:{part.stop}" for part in box)
            raise SpecError(f"voxels {place}: {error}", name=error.name, value=error.value) from error
        tick.add(block.nbytes)
    return low, high


def _read_back(
    volume: Source, array: zarr.Array[Any], peak: float, census: Census, tick: _Ticks
) -> tuple[compare.Comparison, float]:
    step = grid.grow(array.shards or array.chunks, volume.shape, volume.dtype.itemsize)
    started = time.perf_counter()
    found = compare.compare(
        volume,
        array,
        grid.boxes(volume.shape, step),
        guard=Guard.of(layout_of(array).config, array.chunks, peak),
        scales=census.scales,
        tick=tick.add,
    )
    failures = [*census.damaged, *found.failures]
    if failures:
        raise compare.verify_error("the array just written", failures)
    return found, time.perf_counter() - started


def _sign(
    array: zarr.Array[Any], volume: Source, extremes: tuple[float, float], found: compare.Comparison | None
) -> None:
    """Leave in the attributes where the array comes from and what it was measured to be worth."""
    facts: dict[str, Any] = {"source": Path(volume.location).name, "source_range": extremes}
    if volume.voxel_nm is not None:
        facts["voxel_nm"] = volume.voxel_nm
    if found is not None:
        facts.update(psnr_db=found.psnr_db, peak=found.peak, ssim=found.ssim, worst_error=found.worst)
    earlier = array.attrs.get(ATTRIBUTE)
    array.attrs[ATTRIBUTE] = plain({**(earlier if isinstance(earlier, Mapping) else {}), **facts})


class _Ticks:
    """Progress over several passes as one count."""

    def __init__(self, progress: compare.Progress | None, total: int) -> None:
        self._progress, self._total, self._done, self._ahead = progress, total, 0, 0.0

    def add(self, n_bytes: int) -> None:
        self._done, self._ahead = self._done + n_bytes, 0.0
        self._tell()

    def work(self, n_bytes: float) -> None:
        """Count what is in work until the box that it belongs to is there as a whole."""
        self._ahead += n_bytes
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(min(int(self._done + self._ahead), self._total), self._total)


@contextmanager
def _fits_watched(tick: _Ticks, itemsize: int) -> Iterator[None]:
    """Count the work of fits, which run in threads of Zarr; where the job ends early, they end as well."""
    from zarr_emcodec.fitting import watching

    ended = threading.Event()

    def worked(n_voxels: float) -> None:
        if ended.is_set():
            raise JobError("fit stopped: the job that it was for has ended.")
        tick.work(n_voxels * itemsize)

    with watching(worked):
        try:
            yield
        except BaseException:
            ended.set()
            raise
