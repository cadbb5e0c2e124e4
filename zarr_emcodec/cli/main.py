"""Entry point of ``zarr-emcodec``: arguments in, an exit status out.

Says in one sentence what to install where the command line's own libraries are missing.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit status.

    0: done. 1: verification failed. 2: wrong usage, or an error of ours, as one line on stderr.

    Parameters
    ----------
    arguments : sequence of str, optional
        ``sys.argv[1:]`` when not given.
    """
    try:
        import rich  # noqa: F401  # wanted here, so that a later import cannot fail half-way
        import typer  # noqa: F401
    except ImportError:
        print("zarr-emcodec needs typer and rich. Install them with: pip install 'zarr_emcodec[cli]'.", file=sys.stderr)
        raise SystemExit(2) from None
    from zarr_emcodec.cli.app import app

    app(args=None if arguments is None else list(arguments), prog_name="zarr-emcodec")


if __name__ == "__main__":
    main()
