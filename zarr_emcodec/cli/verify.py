"""``zarr-emcodec verify``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from zarr_emcodec.cli import console


def verify(
    array: Annotated[str, typer.Argument(help="Compressed Zarr array (path or URL).")],
    source: Annotated[
        str | None, typer.Argument(help="What it was written from; without it only frames and checksums are checked.")
    ] = None,
    sample: Annotated[float | None, typer.Option(help="Fraction of the chunks to compare, such as 0.05.")] = None,
    trust_embedded: Annotated[
        bool, typer.Option("--trust-embedded", help="Use the model inside the array, though it is not known here.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of one inference call; 1 if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check that an array is whole and keeps its promise; exit status 1 if not.

    Example: zarr-emcodec verify stack.zarr stack.tif
    """
    from zarr_emcodec.errors import VerifyError
    from zarr_emcodec.jobs.verify import verify as run

    try:
        with console.runtime_options(threads), console.progress_bar("verifying", quiet=as_json) as progress:
            report = run(array, source, sample=sample, trust_embedded=trust_embedded, progress=progress)
    except VerifyError as error:
        if as_json:
            typer.echo(
                json.dumps({"ok": False, "chunks": [list(index) for index in error.chunks], "error": str(error)})
            )
        raise
    if as_json:
        typer.echo(json.dumps({"ok": True, **report.to_dict()}, indent=2))
        return
    promise = ", ".join(f"{name} {value:g}" for name, value in report.promise.items())
    console.print_facts(
        f"{report.array}  all well",
        [
            ("frames", f"{report.frames_checked} checked: {console.counts(report.frames)}" if report.frames else ""),
            (
                "compared",
                f"{report.chunks_compared} of {report.n_chunks} chunks with {report.source}" if source else "",
            ),
            ("promise", f"{promise}, kept by every chunk compared, as it was coded" if promise and source else ""),
            ("PSNR", console.quality(report.psnr_db, report.lowest_chunk_db, report.peak)),
            ("SSIM", console.number(report.ssim, ".4f")),
            ("worst error", console.number(report.worst_error, "g")),
            ("seconds", f"{report.seconds:.1f}"),
        ],
    )
