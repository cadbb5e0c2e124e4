"""``zarr-emcodec roi``: upgrade, downgrade, propose, show."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zarr_emcodec.cli import console

if TYPE_CHECKING:
    from zarr_emcodec.roi import RoiReport

roi = typer.Typer(
    no_args_is_help=True,
    help="Change, find and show which chunks decode richly.\n\nExample: zarr-emcodec roi propose stack.zarr",
    rich_markup_mode="rich",
)


class TierName(StrEnum):
    """How richly a chunk is decoded."""

    TOP = "top"
    PRIOR = "prior"
    FULL = "full"


class Way(StrEnum):
    """How blocks are scored."""

    TEXTURE = "texture"
    BOUNDARY = "boundary"
    UNCERTAINTY = "uncertainty"


Place = Annotated[str, typer.Argument(help="Zarr array of this package (path or URL).")]
Boxes = Annotated[
    list[str] | None, typer.Option("--box", metavar="Z:Z,Y:Y,X:X", help="Box in voxels; may be given several times.")
]
BoxFile = Annotated[Path | None, typer.Option("--boxes", help="Boxes as the command propose --json prints them.")]
Mask = Annotated[str | None, typer.Option(help="Boolean .npy or Zarr array.")]
MaskFactor = Annotated[str | None, typer.Option("--factor", help="Voxels of the array per mask voxel: 8, or 1,8,8.")]
Points = Annotated[Path | None, typer.Option(help=".npy, or text with z,y,x on each line.")]
Radius = Annotated[float | None, typer.Option(min=0, help="Around points, voxels.")]
Picture = Annotated[Path | None, typer.Option(help="PNG of a section with the restored chunks outlined.")]
Trust = Annotated[
    bool, typer.Option("--trust-embedded", help="Use the model inside the array, though it is not known here.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of one inference call; 1 if not given.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


@roi.command()
def upgrade(
    array: Place,
    tier: Annotated[TierName, typer.Option(help="Tier to decode at.")] = TierName.PRIOR,
    box: Boxes = None,
    boxes: BoxFile = None,
    mask: Mask = None,
    factor: MaskFactor = None,
    points: Points = None,
    radius: Radius = None,
    picture: Picture = None,
    trust_embedded: Trust = False,
    as_json: Json = False,
) -> None:
    """Let the chunks of a region decode more richly; no latent changes, and no size.

    Example: zarr-emcodec roi upgrade stack.zarr --box 0:16,512:1024,512:1024
    """
    from zarr_emcodec.roi import upgrade_roi

    where = {"box": box or (), "boxes": boxes, "mask": mask, "points": points}
    _retier(upgrade_roi, array, tier, where, (factor, radius), picture, trust_embedded, as_json)


@roi.command()
def downgrade(
    array: Place,
    tier: Annotated[TierName, typer.Option(help="Tier to decode at.")] = TierName.TOP,
    box: Boxes = None,
    boxes: BoxFile = None,
    mask: Mask = None,
    factor: MaskFactor = None,
    points: Points = None,
    radius: Radius = None,
    picture: Picture = None,
    trust_embedded: Trust = False,
    as_json: Json = False,
) -> None:
    """Let the chunks of a region decode more cheaply again.

    Example: zarr-emcodec roi downgrade stack.zarr --box :,:,:
    """
    from zarr_emcodec.roi import downgrade_roi

    where = {"box": box or (), "boxes": boxes, "mask": mask, "points": points}
    _retier(downgrade_roi, array, tier, where, (factor, radius), picture, trust_embedded, as_json)


def _retier(
    change: Any,
    location: str,
    tier: TierName,
    where: dict[str, Any],
    words: tuple[str | None, float | None],
    picture: Path | None,
    trust: bool,
    as_json: bool,
) -> None:
    from zarr_emcodec.roi import draw_tiers
    from zarr_emcodec.roi.inputs import open_array, region

    found = region(**where)
    array = open_array(location, writable=True, trust_embedded=trust)
    factor = console.integers(words[0], "factor")
    with console.progress_bar("changing tiers", quiet=as_json) as progress:
        report = change(
            array,
            found,
            tier.value,
            factor=factor[0] if factor and len(factor) == 1 else factor,
            radius=words[1],
            progress=progress,
        )
    if picture is not None:
        draw_tiers(picture, array)
    if as_json:
        console.print_json(report)
    else:
        _show_report(report, picture)


def _show_report(report: RoiReport, picture: Path | None) -> None:
    rest = {"already there": report.already, "without a tier": report.plain, "not stored": report.absent}
    console.print_facts(
        f"{report.array}  {report.changed} chunks decode at '{report.tier}' now",
        [
            ("touched", f"{report.touched} of {report.n_chunks} chunks, {100 * report.rho:.2f} %"),
            ("unchanged", ", ".join(f"{count} {name}" for name, count in rest.items() if count)),
            ("rewritten", f"{report.objects_replaced} objects, {console.size(report.bytes_after)}, as before"
                          if report.objects_replaced else ""),
            ("picture", str(picture or "")),
            ("seconds", f"{report.seconds:.1f}"),
        ],
    )  # fmt: skip


@roi.command()
def propose(
    array: Place,
    by: Annotated[Way, typer.Option(help="What makes a block worth restoring.")] = Way.TEXTURE,
    fraction: Annotated[float, typer.Option(help="Of the volume to propose.")] = 0.05,
    block: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="What is scored as one; the chunk if not given.")
    ] = None,
    level: Annotated[str | None, typer.Option(help="Coarser version of the array to score in its stead.")] = None,
    trust_embedded: Trust = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Find what is worth restoring, from the cheapest decode.

    Example: zarr-emcodec roi propose stack.zarr --by boundary --json > boxes.json
    """
    from zarr_emcodec.roi import propose_roi
    from zarr_emcodec.roi.inputs import open_array

    opened = open_array(array, trust_embedded=trust_embedded)
    with console.runtime_options(threads), console.progress_bar("scoring", quiet=as_json) as progress:
        found = propose_roi(
            opened,
            by=by.value,
            fraction=fraction,
            block=console.integers(block, "block"),
            level=None if level is None else open_array(level, trust_embedded=trust_embedded),
            progress=progress,
        )
    if as_json:
        console.print_json(found)
        return
    from rich.table import Table

    table = Table("score", "box", box=None, header_style="dim")
    for box, score in zip(found.boxes[:20], found.scores, strict=False):
        table.add_row(f"{score:.4g}", ",".join(f"{part.start}:{part.stop}" for part in box))
    more = f", the first 20 of {len(found.boxes)}" if len(found.boxes) > 20 else ""
    console.print_table(table, f"{found.array}  {100 * found.fraction:.2f} % by {found.by}{more}")


@roi.command()
def show(
    array: Place,
    picture: Picture = None,
    section: Annotated[
        int | None, typer.Option(min=0, help="Along z; the one with the most restored chunks if not given.")
    ] = None,
    trust_embedded: Trust = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Say at which tier the chunks decode, and draw it.

    Example: zarr-emcodec roi show stack.zarr --picture tiers.png
    """
    from zarr_emcodec.roi import draw_tiers, tier_map
    from zarr_emcodec.roi.inputs import open_array

    opened = open_array(array, trust_embedded=trust_embedded)
    with console.runtime_options(threads):
        with console.progress_bar("looking", quiet=as_json) as progress:
            found = tier_map(opened, progress=progress)
        if picture is not None:
            draw_tiers(picture, opened, found, section=section)
    if as_json:
        console.print_json(found)
        return
    console.print_facts(
        found.array,
        [
            ("chunks", f"{found.n_chunks} of {console.shape(found.chunks)}"),
            ("tiers", console.counts(found.counts)),
            ("restored", f"{100 * found.rho:.2f} % of the chunks"),
            ("picture", str(picture or "")),
        ],
    )
