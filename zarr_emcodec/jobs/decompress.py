"""A compressed array back into something that any tool reads: TIFF, .npy, or plain Zarr with zstd.

Two paths in, an `Unpacked` record out. Voxels stream through; the result takes its name only when it is complete.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.errors import MissingExtraError
from zarr_emcodec.jobs import grid, writers
from zarr_emcodec.jobs.landing import landing
from zarr_emcodec.jobs.report import Record
from zarr_emcodec.jobs.sources import Source, open_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from zarr_emcodec._types import Chunk, Shape
    from zarr_emcodec.jobs.compare import Progress


@dataclass(frozen=True, kw_only=True)
class Unpacked(Record):
    """What `decompress` did.

    Parameters
    ----------
    source, destination, format : str
    shape : tuple of int, voxels
    dtype : str
    raw_bytes, stored_bytes : int
        Voxels x itemsize; size of the destination.
    seconds, mb_s : float
        10^6 raw bytes a second.
    """

    source: str
    destination: str
    format: str
    shape: Shape
    dtype: str
    raw_bytes: int
    stored_bytes: int
    seconds: float
    mb_s: float


def decompress(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    trust_embedded: bool = False,
    progress: Progress | None = None,
) -> Unpacked:
    """Write an array's voxels without this package's codecs.

    Parameters
    ----------
    source : path or URL
        A compressed array; anything that `open_source` reads works.
    destination : path
        Local: ".tif" or ".tiff" (zlib), ".npy", or any other name for a Zarr v3 array (zstd).
    overwrite : bool
        Whether something that is there may be replaced.
    trust_embedded : bool
        Decode with a model that travels with the array although its digest is not known here.
    progress : callable, optional
        Called with raw bytes done and in all.

    Returns
    -------
    Unpacked

    Raises
    ------
    JobError
        If a path cannot be used, or a chunk is damaged. Nothing is left behind.
    """
    kind, write = _writer(Path(destination).suffix.lower())
    with (
        open_source(source, trust_embedded=trust_embedded) as volume,
        landing(destination, overwrite=overwrite, keep=source) as draft,
    ):
        started = time.perf_counter()
        write(draft, volume, progress)
        seconds = time.perf_counter() - started
        size = sum(p.stat().st_size for p in [draft, *draft.rglob("*")] if p.is_file())
    return Unpacked(
        source=volume.location,
        destination=os.fspath(destination),
        format=kind,
        shape=volume.shape,
        dtype=volume.dtype.name,
        raw_bytes=volume.nbytes,
        stored_bytes=size,
        seconds=seconds,
        mb_s=volume.nbytes / 1e6 / seconds,
    )


def _writer(suffix: str) -> tuple[str, Callable[[Path, Source, Progress | None], None]]:
    if suffix in (".tif", ".tiff"):
        return "tiff", _write_tiff
    if suffix == ".npy":
        return "npy", _write_npy
    return "zarr", _write_zarr


def _blocks(volume: Source, progress: Progress | None, *, sections: bool = False) -> Iterator[tuple[grid.Box, Chunk]]:
    unit = volume.chunks or (1,) * len(volume.shape)
    if sections:  # whole pages in page order: whole sections, and z cut before any axis in front of it is
        unit = ((1,) * len(unit) + unit[-3:-2] + volume.shape[-2:])[-len(unit) :]
    done = 0
    for box in grid.boxes(volume.shape, grid.grow(unit, volume.shape, volume.dtype.itemsize)):
        block = volume.read(box)
        yield box, block
        done += block.nbytes
        if progress is not None:
            progress(done, volume.nbytes)


def _write_npy(draft: Path, volume: Source, progress: Progress | None) -> None:
    out: Any = np.lib.format.open_memmap(draft, mode="w+", dtype=volume.dtype, shape=volume.shape)
    for box, block in _blocks(volume, progress):
        out[box] = block
    out.flush()


def _write_zarr(draft: Path, volume: Source, progress: Progress | None) -> None:
    level = writers.ZarrLevel(draft.parent, draft.name, volume, "zstd", None, None)
    for box, block in _blocks(volume, progress):
        level.write(box, block)


def _write_tiff(draft: Path, volume: Source, progress: Progress | None) -> None:
    try:
        import tifffile
    except ImportError as error:
        raise MissingExtraError("writing TIFF", extra="sources") from error

    def pages() -> Iterator[Chunk]:
        for _, block in _blocks(volume, progress, sections=True):
            yield from block.reshape(-1, *block.shape[-2:])

    tifffile.imwrite(
        draft,
        pages(),
        shape=volume.shape,
        dtype=volume.dtype,
        compression="zlib",
        photometric="minisblack",
        bigtiff=volume.nbytes > 2**31,  # zlib may enlarge noise, so well below the 4 GiB where classic TIFF ends
        metadata={"axes": "TCZYX"[-len(volume.shape) :]},
    )
