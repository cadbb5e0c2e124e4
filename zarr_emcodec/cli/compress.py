"""``zarr-emcodec compress``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from zarr_emcodec.cli import console

if TYPE_CHECKING:
    from zarr_emcodec.jobs.compress import Report


class Mode(StrEnum):
    """How latents are stored."""

    ENTROPY = "entropy"
    NOMINAL = "nominal"


class ZarrFormat(StrEnum):
    """Version of the Zarr format."""

    V2 = "2"
    V3 = "3"


def compress(
    source: Annotated[str, typer.Argument(help="TIFF or OME-TIFF stack, .npy, Zarr v2 or v3 (path or URL).")],
    destination: Annotated[Path, typer.Argument(help="Zarr array to write.")],
    ratio: Annotated[
        float | None,
        typer.Option(help="Raw bytes over stored bytes; 32 (vqvae: 1024, inr: 64) unless a quality is asked."),
    ] = None,
    codec: Annotated[
        str,
        typer.Option(
            help="Family of models: vae, vqvae (tokens, to 1024x, read at tiers), or inr (fitted to each chunk)."
        ),
    ] = "vae",
    model: Annotated[
        str, typer.Option(help="Model name, name@version or sha256:...; see the command models.")
    ] = "auto",
    min_psnr: Annotated[
        float | None, typer.Option(help="Every chunk reaches this PSNR (dB), whatever it costs.")
    ] = None,
    max_error: Annotated[
        float | None, typer.Option(help="No voxel is off by more, in source units; 0 is lossless.")
    ] = None,
    mode: Annotated[Mode, typer.Option(help="nominal: fixed-width latents.")] = Mode.ENTROPY,
    window: Annotated[
        str | None, typer.Option(metavar="LOW,HIGH", help="Grey range of uint16, int16 and float32 data.")
    ] = None,
    effort: Annotated[
        int | None, typer.Option(min=0, max=9, help="Search or fit longer: better quality, the same decoding.")
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds of fitting for each chunk, whatever the effort; inr only.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="What is fitted: siren (a network) or latents; inr only.")
    ] = None,
    chunks: Annotated[
        str | None,
        typer.Option(metavar="Z,Y,X", help="Chunk shape; about 16,512,512 fitted to the volume if not given."),
    ] = None,
    shards: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="Shard shape, multiples of the chunks (v3).")
    ] = None,
    zarr_format: Annotated[ZarrFormat, typer.Option(help="Zarr format to write.")] = ZarrFormat.V3,
    embed_model: Annotated[
        bool, typer.Option("--embed-model", help="Let the decoder travel inside the array.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing array.")] = False,
    verify: Annotated[bool, typer.Option(help="Read back and measure before the array takes its name.")] = True,
    picture: Annotated[Path | None, typer.Option(help="PNG of original, decoded and difference.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of one inference call; 1 if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Write a volume as a compressed Zarr array, and read it back.

    Example: zarr-emcodec compress stack.tif stack.zarr --ratio 64 --picture look.png
    """
    from zarr_emcodec.jobs.compress import compress as run

    with console.runtime_options(threads), console.progress_bar("compressing", quiet=as_json) as progress:
        report = run(
            source,
            destination,
            ratio=ratio,
            codec=codec,
            model=model,
            mode="nominal" if mode is Mode.NOMINAL else "entropy",
            min_psnr=min_psnr,
            max_error=max_error,
            window=console.two_numbers(window, "window"),
            effort=effort,
            time_limit=time_limit,
            backbone=backbone,
            chunks=console.integers(chunks, "chunks"),
            shards=console.integers(shards, "shards"),
            zarr_format=2 if zarr_format is ZarrFormat.V2 else 3,
            embed_model=embed_model,
            overwrite=overwrite,
            verify=verify,
            picture=picture,
            progress=progress,
        )
    if as_json:
        console.print_json(report)
    else:
        _show(report)


def _show(report: Report) -> None:
    chunks = console.shape(report.chunks) + (f", shards {console.shape(report.shards)}" if report.shards else "")
    worst = console.number(report.worst_error, "g")
    speed = f"written at {report.write_mb_s:.1f} MB/s"
    if report.read_mb_s is not None:
        speed += f", read back at {report.read_mb_s:.1f} MB/s"
    console.print_facts(
        f"{report.destination}  {report.ratio:.1f}x smaller",
        [
            ("source", f"{report.source}  {report.dtype} {console.shape(report.shape)}"),
            ("note", report.note),
            ("model", report.model),
            ("chunks", f"{chunks}  (Zarr v{report.zarr_format})"),
            ("stored", f"{console.size(report.stored_bytes)} of {console.size(report.raw_bytes)}, all files counted; "
                       f"{report.bits_per_voxel:.3f} bits per voxel"),
            ("frames", console.counts(report.frames)),
            ("PSNR", console.quality(report.psnr_db, report.lowest_chunk_db, report.peak)),
            ("SSIM", console.number(report.ssim, ".4f")),
            ("worst error", worst),
            ("speed", speed),
            ("picture", report.picture or ""),
        ],
    )  # fmt: skip
