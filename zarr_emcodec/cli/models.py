"""``zarr-emcodec models``."""

from __future__ import annotations

from typing import Annotated

import typer

from zarr_emcodec.cli import console


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """List the models that are found here.

    Example: zarr-emcodec models
    """
    from rich.table import Table

    from zarr_emcodec.jobs.info import installed_models

    found = installed_models()
    if as_json:
        console.print_json(found)
        return
    if not found:
        typer.echo("No model is found. Set ZARR_EMCODEC_MODELS to the folder that holds one.")
        return
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    for column in ("model", "ratios", "licence", "digest", "folder"):
        table.add_column(column, overflow="fold")
    for model in found:
        low, high = model.ratio_range or (0.0, 0.0)
        table.add_row(model.id, f"{low:g} to {high:g}", model.licence, model.digest[:23], model.found)
    console.print_table(table)
