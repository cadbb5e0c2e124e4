"""``zarr-emcodec plan``, and the words of it that other commands on plans share."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zarr_emcodec.cli import console
from zarr_emcodec.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zarr_emcodec.jobs.plan import Plan


class Missing(StrEnum):
    """What source chunks are that are not there."""

    FILL = "fill"
    ERROR = "error"


_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)[bB]?\s*")
_BOX = re.compile(r"[\d:,\s]+")


def plan(
    source: Annotated[str, typer.Argument(help="Volume to recompress: whatever compress reads (path or URL).")],
    destination: Annotated[str, typer.Argument(help="Zarr array to be; nothing is written yet.")],
    ratio: Annotated[
        float | None, typer.Option(help="Raw bytes over stored bytes; 32 unless a quality is asked.")
    ] = None,
    codec: Annotated[str, typer.Option(help="Family of models: vae, or another that is installed.")] = "vae",
    model: Annotated[str | None, typer.Option(help="Model name, name@version or sha256:...; see models.")] = None,
    min_psnr: Annotated[float | None, typer.Option(help="Every chunk reaches this PSNR (dB).")] = None,
    max_error: Annotated[float | None, typer.Option(help="No voxel is off by more; 0 is lossless.")] = None,
    mode: Annotated[str | None, typer.Option(help="nominal: fixed-width latents.")] = None,
    window: Annotated[str | None, typer.Option(metavar="LOW,HIGH", help="Grey range of data beyond uint8.")] = None,
    effort: Annotated[
        int | None, typer.Option(min=0, max=9, help="Search or fit longer: better quality, the same decoding.")
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHERE=RATIO",
            help="Another ratio for blocks that a mask volume, a box (z0:z1,y0:y1,x0:x1) or a module:function "
            "touches; may be repeated, the first decides.",
        ),
    ] = None,
    tissue: Annotated[str | None, typer.Option(help="Mask volume: what is outside becomes the fill value.")] = None,
    background_below: Annotated[
        float | None, typer.Option(help="So does what is this dark or darker, in cells of 16 x 16 voxels.")
    ] = None,
    background_above: Annotated[float | None, typer.Option(help="So does what is this bright or brighter.")] = None,
    fill_value: Annotated[float, typer.Option(help="Value of background.")] = 0,
    missing: Annotated[
        Missing, typer.Option(help="What chunks are that the source lacks: its fill value, or their block's failure.")
    ] = Missing.FILL,
    chunks: Annotated[str | None, typer.Option(metavar="Z,Y,X", help="Chunk shape; fitted if not given.")] = None,
    shards: Annotated[
        str, typer.Option(metavar="Z,Y,X", help="Shard shape, auto (64 MiB of voxels or more) or none.")
    ] = "auto",
    zarr_format: Annotated[int, typer.Option(min=2, max=3, help="Zarr format to write.")] = 3,
    max_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="What a worker may hold, such as 4GB; refused if it needs more.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Chunks that a worker codes at a time.")] = 1,
    samples: Annotated[int, typer.Option(min=0, help="Blocks to code on trial; 0 for no estimate.")] = 8,
    seed: Annotated[int, typer.Option(help="Which blocks those are.")] = 0,
    price: Annotated[float, typer.Option(min=0, help="Of a core-hour.")] = 0.04,
    preview: Annotated[Path | None, typer.Option(help="Pictures of samples (.png), with all figures (.html).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Say what recompressing a volume will cost and look like, before anything is written.

    Example: zarr-emcodec plan s3://lab/volume.n5 volume.zarr --ratio 64 --preview look.html
    """
    from zarr_emcodec.jobs.plan import plan as run
    from zarr_emcodec.jobs.preview import check_preview
    from zarr_emcodec.jobs.preview import preview as draw

    if preview is not None:
        check_preview(preview, samples)
    words = {"ratio": ratio, "model": model, "min_psnr": min_psnr, "max_error": max_error, "mode": mode,
             "window": console.two_numbers(window, "window"), "effort": effort}  # fmt: skip
    with console.progress_bar("sampling", quiet=as_json) as progress:
        made = run(
            source,
            destination,
            codec_words(codec, words),
            chunks=console.integers(chunks, "chunks"),
            shards=shard_words(shards),
            zarr_format=2 if zarr_format == 2 else 3,
            fill_value=fill_value,
            regions=[region_words(text, codec, words) for text in region or ()],
            tissue=tissue_words(tissue, background_below, background_above),
            missing="error" if missing is Missing.ERROR else "fill",
            max_memory=size_words(max_memory),
            threads=threads,
            samples=samples,
            seed=seed,
            price=price,
            progress=progress,
        )
    if preview is not None:
        draw(made, preview)
    if as_json:
        console.print_json(made)
    else:
        show_plan(made, preview)


def codec_words(codec: str, words: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a codec of which some words are given."""
    return {"id": f"emcodec_{codec}", **{key: value for key, value in words.items() if value is not None}}


def region_words(text: str, codec: str, words: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """``WHERE=RATIO`` as a region: of the array's codec only ratio and model are another's.

    Raises
    ------
    SpecError
        If it is something else.

    Examples
    --------
    >>> region_words("0:64,100:300,0:500=16", "vae", {"ratio": 64, "min_psnr": 30})
    ([[(0, 64), (100, 300), (0, 500)]], {'id': 'emcodec_vae', 'ratio': 16.0, 'min_psnr': 30})
    >>> region_words("roi.npy=16", "vae", {})[0]
    'roi.npy'
    """
    where, _, ratio = text.rpartition("=")
    try:
        config = codec_words(codec, {**words, "ratio": float(ratio), "model": None})
        if not _BOX.fullmatch(where):
            return where, config
        pairs = [tuple(int(end) for end in part.split(":")) for part in where.split(",")]
    except ValueError:
        pairs = []
    if not where or not pairs or any(len(pair) != 2 for pair in pairs):
        raise SpecError(
            f"--region {text}: needs WHERE=RATIO, such as roi.npy=16 or 0:64,0:512,0:512=16.", name="region", value=text
        )
    return [pairs], config


def tissue_words(mask: str | None, below: float | None, above: float | None) -> Any:
    """Where tissue is: a mask or thresholds.

    Raises
    ------
    SpecError
        If both are given.
    """
    if below is None and above is None:
        return mask
    if mask is not None:
        raise SpecError(
            "--tissue and --background-below or -above: give a mask or thresholds, not both.", name="tissue"
        )
    from zarr_emcodec.jobs.tissue import Threshold

    return Threshold(below=below, above=above)


def shard_words(text: str) -> Any:
    """``auto``, ``none`` or a shape."""
    return {"auto": "auto", "none": None}[text] if text in ("auto", "none") else console.integers(text, "shards")


def size_words(text: str | None) -> float | None:
    """``4GB`` or ``512MiB`` as bytes.

    Raises
    ------
    SpecError
        If it is something else.

    Examples
    --------
    >>> size_words("1.5GB"), size_words("2 GiB"), size_words("1000")
    (1500000000.0, 2147483648.0, 1000.0)
    """
    if text is None:
        return None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise SpecError(f"--max-memory {text}: needs a size such as 4GB or 512MiB.", name="max_memory", value=text)
    power = " KMGT".index(match[2].upper() or " ")
    return float(float(match[1]) * (1024 if match[3] else 1000) ** power)


def show_plan(made: Plan, preview: Path | None = None) -> None:
    """A plan in words."""
    from zarr_emcodec.jobs.plan_words import estimate_facts, plan_facts, size

    most = ", ".join(f"{name} {size(n_bytes)}" for name, n_bytes in made.memory.at_peak[:5])
    facts = [*plan_facts(made), ("memory", f"{size(made.memory.peak_bytes)} a worker at most: {most}, ...")]
    facts += estimate_facts(made.estimate) if made.estimate else []
    console.print_facts(f"{made.source} to {made.destination}", [*facts, ("preview", str(preview or ""))])
