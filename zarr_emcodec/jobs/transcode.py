"""The way out: a compressed volume into something that tools without plug-ins read.

A source, a destination and a target in, a `Transcoded` record out. Every level of the image, its voxel sizes and its
offsets come along. Blocks stream through, each is read back, and the result takes its name only when it is complete.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from zarr_emcodec.errors import MissingExtraError, SpecError, VerifyError
from zarr_emcodec.jobs import grid, writers
from zarr_emcodec.jobs.landing import landing
from zarr_emcodec.jobs.measure import GREY_PEAK, decibels
from zarr_emcodec.jobs.report import Record
from zarr_emcodec.jobs.sources import Source, open_source
from zarr_emcodec.quality.measure import squared_error, worst_error

if TYPE_CHECKING:
    from zarr_emcodec._types import Chunk, Shape
    from zarr_emcodec.jobs.compare import Progress
    from zarr_emcodec.jobs.scales import Multiscale

Target = Literal["zarr", "precomputed"]


@dataclass(frozen=True, kw_only=True)
class LevelFacts(Record):
    """One level that was written.

    Parameters
    ----------
    name : str
        Path in the destination.
    shape, chunks : tuple of int, voxels
    voxel_nm : tuple of float or None
        (z, y, x).
    offset : tuple of float, voxels
        Centre of the first voxel.
    """

    name: str
    shape: Shape
    chunks: Shape
    voxel_nm: tuple[float, ...] | None
    offset: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Transcoded(Record):
    """What `transcode` did.

    Parameters
    ----------
    source, destination, format, encoding : str
    dtype : str
    levels : tuple of LevelFacts
        Finest first.
    raw_bytes, stored_bytes : int
        Of all levels; every file of the destination.
    exact : bool
        Whether the destination holds the very voxels that the source decodes to.
    psnr_db, worst_error : float
        Of the destination against what the source decodes to: what this second coding cost. PSNR is infinite (None in
        JSON) where nothing differs; its peak is 255.
    note : str
        What was chosen on the user's behalf, or could not be carried over as it was.
    seconds, mb_s : float
        10^6 raw bytes a second.
    """

    source: str
    destination: str
    format: str
    encoding: str
    dtype: str
    levels: tuple[LevelFacts, ...]
    raw_bytes: int
    stored_bytes: int
    exact: bool
    psnr_db: float
    worst_error: float
    note: str
    seconds: float
    mb_s: float


def transcode(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    to: Target = "zarr",
    encoding: str | None = None,
    quality: int = writers.DEFAULT_QUALITY,
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | None = None,
    levels: int | None = None,
    overwrite: bool = False,
    trust_embedded: bool = False,
    progress: Progress | None = None,
) -> Transcoded:
    """Write a volume so that it can be read without this package.

    Parameters
    ----------
    source : path or URL
        A compressed array or image; anything that `open_source` reads works.
    destination : path
        Local; becomes a folder.
    to : {"zarr", "precomputed"}
        An OME-Zarr 0.5 image (Zarr v3, its levels "0", "1", ...), or a Neuroglancer precomputed volume.
    encoding : str, optional
        Of the chunks. Zarr: "zstd" or "raw". Precomputed: "jpeg" (uint8, lossy once more), "png" (uint8, uint16) or
        "raw". The first that takes such voxels when not given.
    quality : int
        Of JPEG, 1 to 100.
    chunks, shards : sequence of int, voxels, optional
        As the source's chunks, or 64 x 64 x 64 in precomputed; shards in Zarr only.
    levels : int, optional
        How many of the image's levels, from the one that is named on; all when not given.
    overwrite : bool
        Whether an existing Zarr array or image may be replaced.
    trust_embedded : bool
        Decode with a model that travels with the array although its digest is not known here.
    progress : callable, optional
        Called with raw bytes done and in all.

    Returns
    -------
    Transcoded

    Raises
    ------
    SpecError
        If the target does not take such voxels or options.
    JobError
        If a path cannot be used, or a chunk cannot be decoded. Nothing is left behind.
    VerifyError
        If a lossless encoding gives back other voxels than were written. Nothing is left behind.
    MissingExtraError
        If tensorstore is absent and precomputed is asked for.
    """
    _check(to, encoding, quality, shards, levels)
    with ExitStack() as stack:
        volumes = _volumes(stack, source, levels, trust_embedded)
        image = _numbered(volumes)
        chosen = encoding or next(e for e in writers.ENCODINGS[to] if to == "zarr" or writers.takes(e, volumes[0]))
        draft = stack.enter_context(landing(destination, overwrite=overwrite, keep=source))
        started = time.perf_counter()
        copy = _Copy(chosen != "jpeg", progress, sum(volume.nbytes for volume in volumes))
        facts, notes = [], [volumes[0].note]
        if to == "zarr":
            writers.write_group(draft, image)
        for number, volume in enumerate(volumes):
            writer: writers.Writer
            if to == "zarr":
                writer = writers.ZarrLevel(draft, str(number), volume, chosen, chunks, shards)
            else:
                writer = writers.PrecomputedLevel(draft, volume, image, number, chosen, quality, chunks)
            copy.level(volume, writer)
            facts.append(_facts(volume, writer, str(number)))
            notes.append(writer.note)
        seconds = time.perf_counter() - started
        size = sum(path.stat().st_size for path in draft.rglob("*") if path.is_file())
    return Transcoded(
        source=os.fspath(source),
        destination=os.fspath(destination),
        format=to,
        encoding=chosen,
        dtype=volumes[0].dtype.name,
        levels=tuple(facts),
        raw_bytes=copy.total,
        stored_bytes=size,
        exact=copy.squared == 0,
        psnr_db=decibels(copy.squared / copy.n_voxels, GREY_PEAK),
        worst_error=copy.worst,
        note="; ".join(filter(None, notes)),
        seconds=seconds,
        mb_s=copy.total / 1e6 / seconds,
    )


def _check(to: str, encoding: str | None, quality: int, shards: Sequence[int] | None, levels: int | None) -> None:
    if to not in writers.ENCODINGS:
        raise SpecError(f"to {to!r}: 'zarr' or 'precomputed'.", name="to", value=to)
    if encoding is not None and encoding not in writers.ENCODINGS[to]:
        known = ", ".join(writers.ENCODINGS[to])
        raise SpecError(f"encoding {encoding!r}: {to} is written as {known}.", name="encoding", value=encoding)
    if not 1 <= quality <= 100:
        raise SpecError(f"quality {quality}: 1 to 100.", name="quality", value=quality)
    if shards is not None and to != "zarr":
        raise SpecError("shards: only Zarr is written in shards.", name="shards", value=shards)
    if levels is not None and levels < 1:
        raise SpecError(f"levels {levels}: at least 1.", name="levels", value=levels)
    if to == "precomputed":
        try:
            import tensorstore  # noqa: F401  # wanted here, so that a missing one is told before work begins
        except ImportError as error:
            raise MissingExtraError("writing precomputed", extra="sources") from error


def _volumes(
    stack: ExitStack, source: str | os.PathLike[str], levels: int | None, trust_embedded: bool
) -> list[Source]:
    """The level that is named, and the coarser ones of its image."""
    first = stack.enter_context(open_source(source, trust_embedded=trust_embedded))
    coarser = first.levels[first.level + 1 :] if first.scales is not None else ()
    wanted = coarser if levels is None else coarser[: levels - 1]
    places = [level.location for level in wanted]
    return [first, *(stack.enter_context(open_source(place, trust_embedded=trust_embedded)) for place in places)]


def _numbered(volumes: Sequence[Source]) -> Multiscale:
    """The image that is written, its levels named by their numbers."""
    image, first = volumes[0].image, volumes[0].level
    kept = image.levels[first : first + len(volumes)]
    return dataclasses.replace(
        image, levels=tuple(dataclasses.replace(level, name=str(number)) for number, level in enumerate(kept))
    )


def _facts(volume: Source, writer: writers.Writer, name: str) -> LevelFacts:
    return LevelFacts(
        name=name, shape=volume.shape, chunks=writer.chunks, voxel_nm=volume.voxel_nm, offset=volume.offset
    )  # fmt: skip


class _Copy:
    """Levels copied block by block, and what they lost on the way."""

    def __init__(self, lossless: bool, progress: Progress | None, total: int) -> None:
        self.squared, self.worst, self.n_voxels, self.total = 0.0, 0.0, 0, total
        self._lossless, self._progress, self._done = lossless, progress, 0

    def level(self, volume: Source, writer: writers.Writer) -> None:
        """Copy one level."""
        for box in _boxes(volume, writer.chunks):
            voxels = volume.read(box)
            writer.write(box, voxels)
            self._compare(voxels, writer.read(box), box, volume)
            self._done += voxels.nbytes
            if self._progress is not None:
                self._progress(self._done, self.total)

    def _compare(self, voxels: Chunk, stored: Chunk, box: grid.Box, volume: Source) -> None:
        self.n_voxels += voxels.size
        if np.array_equal(voxels, stored, equal_nan=voxels.dtype.kind == "f"):
            return
        if self._lossless:
            place = ", ".join(f"{part.start}:{part.stop}" for part in box)
            index = tuple(part.start for part in box)
            raise VerifyError(f"voxels {place} of {volume.location} came back changed.", chunks=[index])
        self.squared += squared_error(voxels, stored)
        self.worst = max(self.worst, worst_error(voxels, stored))


def _boxes(volume: Source, unit: Shape) -> Iterator[grid.Box]:
    """Boxes of whole chunks of the destination, and of the source too where that fits into memory."""
    both = tuple(min(math.lcm(a, b), -(-n // a) * a) for a, b, n in zip(unit, volume.chunks or unit, volume.shape,
                                                                     strict=True))  # fmt: skip
    size = math.prod(map(min, both, volume.shape)) * volume.dtype.itemsize
    step = grid.grow(both if size <= grid.BLOCK_BYTES else unit, volume.shape, volume.dtype.itemsize)
    return grid.boxes(volume.shape, step)
