"""What the commands share: words for sizes and figures, tables, a progress bar on a terminal, JSON."""

from __future__ import annotations

import json
import math
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from zarr_emcodec.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.table import Table

    from zarr_emcodec.jobs.report import Record


def print_json(record: Record | Sequence[Record]) -> None:
    """A report, or several, as JSON on stdout and nothing else."""
    data = record.to_dict() if hasattr(record, "to_dict") else [item.to_dict() for item in record]
    typer.echo(json.dumps(data, indent=2, allow_nan=False))


def print_facts(title: str, facts: Sequence[tuple[str, str]]) -> None:
    """Names and values, one a line; empty values are left out."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in facts:
        if value:
            table.add_row(name, value)
    print_table(table, title)


def print_table(table: Table, title: str = "") -> None:
    """A table on stdout, as wide as it needs to be where nobody watches."""
    from rich.console import Console
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    if title:
        console.print(Text(title, style="bold"))
    console.print(table)


@contextmanager
def progress_bar(words: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr, fed with bytes done and in all; None where stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(words, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def size(n_bytes: float) -> str:
    """Bytes in words, powers of 1000.

    Examples
    --------
    >>> size(987), size(4296875)
    ('987 B', '4.30 MB')
    """
    unit = 0
    while n_bytes >= 1000 and unit < 5:
        n_bytes, unit = n_bytes / 1000, unit + 1
    return f"{n_bytes:.0f} B" if unit == 0 else f"{n_bytes:.2f} {'BkMGTP'[unit]}B"


def shape(extents: Sequence[int] | None) -> str:
    """Extents joined by crosses.

    Examples
    --------
    >>> shape((16, 512, 512))
    '16 x 512 x 512'
    """
    return " x ".join(map(str, extents)) if extents else ""


def decibels(value: float | None) -> str:
    """A PSNR in words; infinite where nothing differs."""
    if value is None or math.isnan(value):
        return ""
    return "exact" if math.isinf(value) else f"{value:.2f} dB"


def quality(psnr: float | None, lowest: float | None, peak: float | None) -> str:
    """PSNR of a whole and of its worst chunk, with the peak; nothing where it was not measured."""
    if psnr is None or peak is None:
        return ""
    worst = "" if psnr == math.inf else f"; worst chunk {decibels(lowest)}"
    return f"{decibels(psnr)}{worst}  (peak {peak:g})"


def number(value: float | None, form: str) -> str:
    """A number, or nothing where there is none."""
    return "" if value is None or math.isnan(value) else format(value, form)


def counts(numbers: Any) -> str:
    """Kinds and how many there are of each."""
    return ", ".join(f"{count} {kind}" for kind, count in numbers.items())


def integers(text: str | None, name: str) -> tuple[int, ...] | None:
    """``16,512,512`` as integers.

    Raises
    ------
    SpecError
        If it is something else.
    """
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise SpecError(f"--{name} {text}: needs integers such as 16,512,512.", name=name, value=text) from None


def two_numbers(text: str | None, name: str) -> tuple[float, float] | None:
    """``low,high`` as numbers.

    Raises
    ------
    SpecError
        If it is something else.
    """
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise SpecError(f"--{name} {text}: needs two numbers, low,high.", name=name, value=text) from None
    return low, high


@contextmanager
def runtime_options(threads: int | None) -> Iterator[None]:
    """Run a job with the runtime options of the command line."""
    if threads is None:
        yield
        return
    from zarr_emcodec.runtime import options

    with options(threads=threads):
        yield
