"""``zarr-emcodec transcode``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from zarr_emcodec.cli import console

if TYPE_CHECKING:
    from zarr_emcodec.jobs.transcode import LevelFacts, Transcoded


class Target(StrEnum):
    """What is written."""

    ZARR = "zarr"
    PRECOMPUTED = "precomputed"


def transcode(
    source: Annotated[str, typer.Argument(help="Compressed array or image (path or URL).")],
    destination: Annotated[Path, typer.Argument(help="Folder to write.")],
    to: Annotated[Target, typer.Option(help="Plain OME-Zarr, or Neuroglancer precomputed.")] = Target.ZARR,
    encoding: Annotated[
        str | None, typer.Option(help="zarr: zstd, raw; precomputed: jpeg (lossy once more), png, raw.")
    ] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEG.")] = 90,
    chunks: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="As the source's if not given; 64,64,64 in precomputed.")
    ] = None,
    shards: Annotated[str | None, typer.Option(metavar="Z,Y,X", help="Shard shape; Zarr only.")] = None,
    levels: Annotated[int | None, typer.Option(min=1, help="How many levels of the image; all if not given.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing Zarr.")] = False,
    trust_embedded: Annotated[
        bool, typer.Option("--trust-embedded", help="Use the model inside the array, though it is not known here.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of one inference call; 1 if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Write a volume so that tensorstore, Neuroglancer and others read it without this package.

    Example: zarr-emcodec transcode stack.zarr stack.precomputed --to precomputed
    """
    from zarr_emcodec.jobs.transcode import transcode as run

    with console.runtime_options(threads), console.progress_bar("transcoding", quiet=as_json) as progress:
        done = run(
            source,
            destination,
            to="precomputed" if to is Target.PRECOMPUTED else "zarr",
            encoding=encoding,
            quality=quality,
            chunks=console.integers(chunks, "chunks"),
            shards=console.integers(shards, "shards"),
            levels=levels,
            overwrite=overwrite,
            trust_embedded=trust_embedded,
            progress=progress,
        )
    if as_json:
        console.print_json(done)
    else:
        _show(done)


def _show(done: Transcoded) -> None:
    loss = "none: the very voxels that the source decodes to"
    if not done.exact:
        loss = f"{console.decibels(done.psnr_db)} against what the source decodes to, worst error {done.worst_error:g}"
    facts = [(f"level {level.name}", _words(level)) for level in done.levels]
    facts += [
        ("stored", f"{console.size(done.stored_bytes)}, {console.size(done.raw_bytes)} raw"),
        ("second loss", loss),
        ("note", done.note),
        ("speed", f"{done.mb_s:.1f} MB/s"),
    ]
    console.print_facts(f"{done.destination}  {done.format}, {done.encoding}, {done.dtype}", facts)


def _words(level: LevelFacts) -> str:
    size = "" if level.voxel_nm is None else f"  of {' x '.join(f'{v:g}' for v in level.voxel_nm)} nm"
    place = f"  at {', '.join(f'{v:g}' for v in level.offset)}" if any(level.offset) else ""
    return f"{console.shape(level.shape)}{size}{place}"
