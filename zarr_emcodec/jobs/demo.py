"""The whole job on a real EM stack: fetch, compress, read with plain Zarr, compare, draw.

A folder in; arrays, a picture and a `Demo` record out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zarr_emcodec.errors import JobError, MissingExtraError
from zarr_emcodec.jobs.compress import compress
from zarr_emcodec.jobs.peers import at_bytes
from zarr_emcodec.jobs.picture import draw_rows
from zarr_emcodec.jobs.report import Record
from zarr_emcodec.jobs.samples import SHIPPED, Download, Sample, load_sample
from zarr_emcodec.jobs.sources import open_source
from zarr_emcodec.quality.measure import psnr, ssim, worst_error

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from zarr_emcodec._types import Chunk, Shape

SAMPLE = SHIPPED
RATIOS = (16.0, 64.0)


@dataclass(frozen=True, kw_only=True)
class Row(Record):
    """One line of the table.

    Parameters
    ----------
    codec : str
    asked_ratio : float
        Of the block of lines that this one belongs to.
    stored_bytes : int
        For our codec every file of the array; for others their payload alone.
    ratio, psnr_db, ssim, worst_error : float
        PSNR with a peak of 255.
    write_mb_s, read_mb_s : float
        10^6 raw bytes a second; ours through Zarr and the disk, the others in memory on one thread.
    fits : bool
        Whether it got down to the bytes of ours.
    """

    codec: str
    asked_ratio: float
    stored_bytes: int
    ratio: float
    psnr_db: float
    ssim: float
    worst_error: float
    write_mb_s: float
    read_mb_s: float
    fits: bool = True


@dataclass(frozen=True, kw_only=True)
class Demo(Record):
    """What `demo` did.

    Parameters
    ----------
    original : str
        TIFF of the volume.
    shape : tuple of int, voxels
    raw_bytes : int
    credit : str
    why_shipped : str
        Empty, or why the small shipped sample stands in for the stack.
    rows : tuple of Row
    arrays : tuple of str
    picture : str or None
    note : str
        What was left out, and why.
    next_steps : tuple of str
        Commands worth trying.
    """

    original: str
    shape: Shape
    raw_bytes: int
    credit: str
    why_shipped: str
    rows: tuple[Row, ...]
    arrays: tuple[str, ...]
    picture: str | None
    note: str
    next_steps: tuple[str, ...]


def demo(
    folder: str | os.PathLike[str],
    *,
    ratios: Sequence[float] = RATIOS,
    download: Download | None = None,
    say: Callable[[str], None] | None = None,
) -> Demo:
    """Compress a real EM stack at a few ratios and show what it is worth.

    Parameters
    ----------
    folder : path
        For arrays and picture; made if absent. An earlier demonstration's files there are replaced.
    ratios : sequence of float
    download : callable, optional
        How the stack is fetched; by pip when not given. Where it fails, a small shipped sample is used instead.
    say : callable, optional
        Told in a few words what is being done.

    Returns
    -------
    Demo

    Raises
    ------
    JobError
        If the folder cannot be used.
    SpecError
        If no model covers a ratio.
    """
    say = say or (lambda _: None)
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JobError(f"{folder}: cannot be made a folder for the demonstration: {error}") from error
    say("fetching a stack of real EM")
    sample = load_sample(download=download)
    original = place / f"{sample.name}.tif"
    _write_original(original, sample)
    rows: list[Row] = []
    names = [place / f"{sample.name}_{ratio:g}x.zarr" for ratio in ratios]
    for ratio, name in zip(ratios, names, strict=True):
        say(f"compressing at {ratio:g}x")
        rows += _rows(sample.voxels, original, name, ratio)
    say("drawing")
    picture, note = _picture(place / f"{sample.name}.png", original, list(zip(ratios, names, strict=True)))
    if len(rows) == len(names):
        note = " ".join(filter(None, [note, "JPEG and JPEG 2000 are left out: imagecodecs is not installed."]))
    return Demo(
        original=str(original),
        shape=sample.voxels.shape,
        raw_bytes=sample.voxels.nbytes,
        credit=sample.credit,
        why_shipped=sample.why_shipped,
        rows=tuple(rows),
        arrays=tuple(map(str, names)),
        picture=picture,
        note=note,
        next_steps=(
            f"zarr-emcodec info {names[-1]}",
            f"python -c \"import zarr; print(zarr.open('{names[-1]}')[0].mean())\"",
            "zarr-emcodec compress YOUR_STACK.tif your_stack.zarr --ratio 32 --picture look.png",
        ),
    )


def _write_original(path: Path, sample: Sample) -> None:
    import tifffile

    draft = path.with_name(f".{path.name}.part")
    tifffile.imwrite(draft, sample.voxels, compression="zlib", photometric="minisblack", metadata={"axes": "ZYX"})
    draft.replace(path)


def _rows(voxels: Chunk, original: Path, destination: Path, ratio: float) -> list[Row]:
    """Our line, and the peers' at the bytes that ours took."""
    import zarr

    from zarr_emcodec.adapters.numcodecs import VAECodec

    codec = VAECodec(ratio)
    codec.decode(codec.encode(voxels[:1]))  # so that opening the model is not timed as coding
    report = compress(original, destination, ratio=ratio, overwrite=True, verify=False)
    started = time.perf_counter()
    decoded = np.asarray(zarr.open_array(destination, mode="r")[...])
    read_s = time.perf_counter() - started
    ours = Row(
        codec=report.model,
        asked_ratio=ratio,
        stored_bytes=report.stored_bytes,
        ratio=report.ratio,
        psnr_db=psnr(voxels, decoded),
        ssim=ssim(voxels, decoded),
        worst_error=worst_error(voxels, decoded),
        write_mb_s=report.write_mb_s,
        read_mb_s=voxels.nbytes / 1e6 / read_s,
    )
    peers = [
        Row(
            codec=peer.name,
            asked_ratio=ratio,
            stored_bytes=peer.stored_bytes,
            ratio=voxels.nbytes / peer.stored_bytes,
            psnr_db=peer.psnr_db,
            ssim=peer.ssim,
            worst_error=peer.worst_error,
            write_mb_s=peer.write_mb_s,
            read_mb_s=peer.read_mb_s,
            fits=peer.fits,
        )
        for peer in at_bytes(voxels, report.stored_bytes)
    ]
    return [ours, *peers]


def _picture(path: Path, original: Path, arrays: list[tuple[float, Path]]) -> tuple[str | None, str]:
    import zarr

    opened = [(f"asked for {ratio:g}x", zarr.open_array(name, mode="r")) for ratio, name in arrays]
    try:
        with open_source(original) as source:
            draw_rows(path, source, opened, peak=255.0)
    except MissingExtraError as error:
        return None, str(error)
    return str(path), ""
