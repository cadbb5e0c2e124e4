"""``zarr-emcodec recompress``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zarr_emcodec.cli import console
from zarr_emcodec.cli.plan import Missing
from zarr_emcodec.errors import JobError, SpecError

if TYPE_CHECKING:
    from zarr_emcodec.jobs.plan import Plan
    from zarr_emcodec.jobs.recompress import RecompressReport

_SHOWN = 10  # failed blocks that are named; the log and --json name more
_STOPPED = 130  # what shells give for a process that Ctrl-C ended


class Levels(StrEnum):
    """What becomes of a pyramid."""

    REBUILD = "rebuild"
    EVERY = "every"


class Device(StrEnum):
    """What runs the networks."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


def recompress(
    source: Annotated[
        str, typer.Argument(help="Volume to recompress (path or URL), or a plan as plan --json made it.")
    ],
    destination: Annotated[
        str | None, typer.Argument(help="Zarr array to write (path or URL); not with a plan, which names it.")
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Raw bytes over stored bytes; 32 unless a quality is asked.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model name, name@version or sha256:...; see models.")] = None,
    min_psnr: Annotated[float | None, typer.Option(help="Every chunk reaches this PSNR (dB).")] = None,
    max_error: Annotated[float | None, typer.Option(help="No voxel is off by more; 0 is lossless.")] = None,
    window: Annotated[str | None, typer.Option(metavar="LOW,HIGH", help="Grey range of data beyond uint8.")] = None,
    effort: Annotated[
        int | None, typer.Option(min=0, max=9, help="Search or fit longer: better quality, the same decoding.")
    ] = None,
    chunks: Annotated[str | None, typer.Option(metavar="Z,Y,X", help="Chunk shape; fitted if not given.")] = None,
    shards: Annotated[
        str, typer.Option(metavar="Z,Y,X", help="Shard shape, auto (64 MiB of voxels or more) or none.")
    ] = "auto",
    missing: Annotated[
        Missing, typer.Option(help="What chunks are that the source lacks: its fill value, or their block's failure.")
    ] = Missing.FILL,
    max_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="What a worker may hold, such as 4GB; refused if it needs more.")
    ] = None,
    levels: Annotated[
        Levels | None,
        typer.Option(
            help="Write an OME-Zarr group with coarser levels: rebuilt from decoded data, or every level of the source."
        ),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address or file of a running Dask scheduler; a cluster here if not given.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes of the cluster here; one for each core.")
    ] = None,
    serial: Annotated[bool, typer.Option("--serial", help="Without Dask, block after block.")] = False,
    device: Annotated[
        Device, typer.Option(help="cuda: a worker for each GPU, or scheduler's workers with resource GPU.")
    ] = Device.AUTO,
    threads: Annotated[int, typer.Option(min=1, help="Threads of one inference call.")] = 1,
    retries: Annotated[int, typer.Option(min=0, help="After a block's first try.")] = 3,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an array that is there, and begin anew.")
    ] = False,
    embed_model: Annotated[
        bool, typer.Option("--embed-model", help="Let the decoder travel inside the array.")
    ] = False,
    log: Annotated[Path | None, typer.Option(help="Append events here, one JSON object a line.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write the report to a file: .html, with pictures of the worst chunks, or .json."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Recompress a volume of any size; run it again after whatever happened, and it goes on.

    Every block is read back and compared before it counts as done. Exit status: 0 all done, 1 blocks have failed,
    130 stopped by Ctrl-C.

    Example: zarr-emcodec recompress volume.n5 volume.zarr --ratio 64 --workers 8
    """
    words = {"ratio": ratio, "model": model, "min_psnr": min_psnr, "max_error": max_error,
             "window": console.two_numbers(window, "window"), "effort": effort}  # fmt: skip
    layout = {"chunks": chunks, "shards": shards, "max_memory": max_memory, "missing": missing.value}
    codec = {k: v for k, v in words.items() if v is not None}

    def listen(event: Mapping[str, Any]) -> None:
        if event["event"] == "begun" and event["done"]:
            typer.echo(f"going on: {event['done']} of {event['blocks']} blocks are done", err=True)
        if event["event"] == "advice":
            typer.echo(f"advice: {event['text']}", err=True)
        if event.get("dashboard"):
            typer.echo(f"dashboard: {event['dashboard']}", err=True)

    with console.progress_bar("recompressing", quiet=as_json) as progress:
        found = _run(
            source,
            destination,
            codec,
            layout,
            levels,
            engine="serial" if serial else "dask",
            scheduler=scheduler,
            workers=workers,
            device=device.value,
            threads=threads,
            retries=retries,
            overwrite=overwrite,
            embed_model=embed_model,
            progress=progress,
            log=log,
            report=report,
            listener=None if as_json else listen,
        )
    reports = [found] if not hasattr(found, "levels") else list(found.levels.values())
    if as_json:
        console.print_json(found)
    else:
        for each in reports:
            _show(each)
    if not found.ok:
        raise typer.Exit(_STOPPED if any(each.stopped for each in reports) else 1)


def _run(
    source: str,
    destination: str | None,
    codec: dict[str, Any],
    layout: dict[str, str | None],
    levels: Levels | None,
    **running: Any,
) -> Any:
    """One array's report, or a whole image's."""
    from zarr_emcodec.jobs.pyramid import recompress_image
    from zarr_emcodec.jobs.recompress import recompress as run

    if levels is None:
        return run(_plan(source, destination, codec, layout), **running)
    if destination is None:
        raise SpecError("--levels: a plan is of one array. Name the volume and a destination.", name="levels")
    if running["report"] is not None:
        raise SpecError("--report: is of one array. Leave it out, and verify each level.", name="report")
    from zarr_emcodec.cli.plan import codec_words

    return recompress_image(
        source, destination, codec_words("vae", codec), levels=levels.value, planning=_layout(layout), **running
    )


def _layout(words: dict[str, str | None]) -> dict[str, Any]:
    """Words of `plan` that lay an array out."""
    from zarr_emcodec.cli.plan import shard_words, size_words

    return {
        "chunks": console.integers(words["chunks"], "chunks"),
        "shards": shard_words(words["shards"] or "auto"),
        "max_memory": size_words(words["max_memory"]),
        "missing": words["missing"],
        "samples": 0,
    }


def _plan(source: str, destination: str | None, words: dict[str, Any], layout: dict[str, str | None]) -> Plan:
    """The plan in a file, or one made of the options."""
    from zarr_emcodec.cli.plan import codec_words
    from zarr_emcodec.jobs.plan import Plan, plan

    if destination is None:
        if words or layout != {"chunks": None, "shards": "auto", "max_memory": None, "missing": "fill"}:
            raise SpecError("a plan decides on codec and layout. Leave those options out, or name a destination.")
        try:
            data = json.loads(Path(source).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise JobError(
                f"{source}: is no plan ({error}). Make one with plan --json, or name a destination."
            ) from error
        return Plan.from_dict(data)
    return plan(source, destination, codec_words("vae", words), **_layout(layout))


def _show(report: RecompressReport) -> None:
    left = report.n_blocks - report.n_done
    state = "all blocks done and read back" if report.ok else f"{left:,} of {report.n_blocks:,} blocks are not done"
    mend = "" if report.ok else "; run the same command again to go on"
    speed = f"{report.mb_s:.1f} MB/s on {report.threads} workers, {report.seconds:.0f} s" if report.threads else ""
    failed = [f"{failure.reason} ({failure.tries} tries)" for failure in report.failed[:_SHOWN]]
    if report.n_failed > _SHOWN:
        failed.append(f"and {report.n_failed - _SHOWN} more")
    console.print_facts(
        f"{report.destination}  {state}{mend}",
        [
            ("source", report.source),
            ("blocks", f"{report.n_done:,} done, {report.n_before:,} of them before, {report.n_empty:,} empty"),
            ("stored", f"{console.size(report.stored_bytes + report.other_bytes)} of {console.size(report.raw_bytes)}"
                       + (f", {report.ratio:.1f}x smaller" if report.ratio else "")),
            ("frames", console.counts(report.frames)),
            ("PSNR", console.quality(report.psnr_db, report.lowest_chunk_db, report.peak) if report.n_done else ""),
            ("SSIM", console.number(report.ssim, ".4f")),
            ("worst error", console.number(report.worst_error, "g")),
            ("speed", speed),
            *(("failed", line) for line in failed),
        ],
    )  # fmt: skip
