"""``zarr-emcodec demo``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zarr_emcodec.cli import console

if TYPE_CHECKING:
    from zarr_emcodec.jobs.demo import Demo


def demo(
    folder: Annotated[Path, typer.Argument(help="Where arrays and picture go.")] = Path("emcodec-demo"),
    ratio: Annotated[
        list[float] | None, typer.Option(help="Ratio to show; may be repeated. 16 and 64 if not given.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of one inference call; 1 if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Compress a real EM stack, read it with plain Zarr, compare, draw.

    Example: zarr-emcodec demo
    """
    from zarr_emcodec.jobs.demo import RATIOS
    from zarr_emcodec.jobs.demo import demo as run

    def say(words: str) -> None:
        if sys.stderr.isatty() and not as_json:
            typer.secho(f"{words} ...", err=True, dim=True)

    with console.runtime_options(threads):
        done = run(folder, ratios=ratio or RATIOS, say=say)
    if as_json:
        console.print_json(done)
    else:
        _show(done)


def _show(done: Demo) -> None:
    from rich.table import Table

    if done.why_shipped:
        typer.echo(f"The EM stack could not be fetched ({done.why_shipped})")
        typer.echo("A small sample that comes with the package is shown instead; the models have seen its kind.\n")
    typer.echo(f"{done.original}: {console.shape(done.shape)} voxels, {console.size(done.raw_bytes)}\n{done.credit}\n")
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    table.add_column("codec")
    for column in ("bytes", "ratio", "PSNR dB", "SSIM", "worst", "write MB/s", "read MB/s"):
        table.add_column(column, justify="right")
    for row in done.rows:
        ours = "@" in row.codec
        table.add_row(
            row.codec + ("" if row.fits else "  (its smallest)"),
            f"{row.stored_bytes:,}",
            f"{row.ratio:.1f}",
            console.decibels(row.psnr_db).removesuffix(" dB"),
            console.number(row.ssim, ".4f"),
            console.number(row.worst_error, "g"),
            f"{row.write_mb_s:.1f}",
            f"{row.read_mb_s:.1f}",
            style="bold" if ours else None,
        )
    console.print_table(table)
    typer.echo("\nOurs: every file of the Zarr array, through Zarr and disk. The others: payload alone, in memory.")
    for words in (done.note, f"Picture: {done.picture}" if done.picture else ""):
        if words:
            typer.echo(words)
    typer.echo("\nNext:\n" + "\n".join(f"  {step}" for step in done.next_steps))
