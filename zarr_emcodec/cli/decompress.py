"""``zarr-emcodec decompress``."""

from __future__ import annotations

from pathlib import Path  # typer reads the annotations
from typing import Annotated

import typer

from zarr_emcodec.cli import console


def decompress(
    source: Annotated[str, typer.Argument(help="Compressed Zarr array (path or URL).")],
    destination: Annotated[Path, typer.Argument(help=".tif, .npy, or any other name for a plain Zarr array (zstd).")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    trust_embedded: Annotated[
        bool, typer.Option("--trust-embedded", help="Use the model inside the array, though it is not known here.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of one inference call; 1 if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Write an array as something that any tool reads.

    Example: zarr-emcodec decompress stack.zarr stack.tif
    """
    from zarr_emcodec.jobs.decompress import decompress as run

    with console.runtime_options(threads), console.progress_bar("decompressing", quiet=as_json) as progress:
        done = run(source, destination, overwrite=overwrite, trust_embedded=trust_embedded, progress=progress)
    if as_json:
        console.print_json(done)
        return
    console.print_facts(
        f"{done.destination}  {done.format}, {done.dtype} {console.shape(done.shape)}",
        [("size", console.size(done.stored_bytes)), ("speed", f"{done.mb_s:.1f} MB/s")],
    )
