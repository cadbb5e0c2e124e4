"""The commands as one application, with the errors of the package turned into lines and exit statuses."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from zarr_emcodec.cli import compress, decompress, demo, info, models, plan, recompress, roi, transcode, verify
from zarr_emcodec.errors import EmCodecError, VerifyError


class _Commands(TyperGroup):
    """Runs a command; what the package raises on purpose becomes one line on stderr."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader of a pipe has left: click ends quietly
            raise
        except (EmCodecError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            typer.secho(f"zarr-emcodec: {error}", err=True)
            raise typer.Exit(1 if isinstance(error, VerifyError) else 2) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(compress.compress)
app.command()(decompress.decompress)
app.command()(transcode.transcode)
app.command()(info.info)
app.command()(plan.plan)
app.command()(recompress.recompress)
app.command()(verify.verify)
app.add_typer(roi.roi, name="roi")
app.command()(models.models)
app.command()(demo.demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        from zarr_emcodec import __version__

        typer.echo(f"zarr-emcodec {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Neural compression of electron microscopy volumes as Zarr.

    Try it on a real EM stack: zarr-emcodec demo
    """
