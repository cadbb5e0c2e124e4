"""``zarr-emcodec info``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zarr_emcodec.cli import console

if TYPE_CHECKING:
    from zarr_emcodec.jobs.info import ArrayInfo, FrameFacts, ModelFacts


def info(
    path: Annotated[str, typer.Argument(help="Zarr array (path or URL), or the file of one chunk.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say what an array is: layout, codec, model, sizes, frames by kind.

    Example: zarr-emcodec info stack.zarr
    """
    from zarr_emcodec.jobs.info import ArrayInfo, describe

    found = describe(path)
    if as_json:
        console.print_json(found)
    elif isinstance(found, ArrayInfo):
        _show_array(found)
    else:
        _show_frame(found)


def _show_array(found: ArrayInfo) -> None:
    settings = ", ".join(
        f"{key}={value}" for key, value in found.config.items() if value is not None and key not in ("digest", "model")
    )
    facts = [
        ("format", f"Zarr v{found.zarr_format}"),
        ("note", found.note),
        ("shape", f"{found.dtype} {console.shape(found.shape)}"),
        ("chunks", f"{found.n_chunks} of {console.shape(found.chunks)}"),
        ("shards", console.shape(found.shards)),
        ("codec", f"{found.codec}  {settings}" if found.is_emcodec else f"{found.codec}, not one of this package"),
        ("stored", f"{console.size(found.stored_bytes)} of {console.size(found.raw_bytes)}, all files counted"),
        ("ratio", f"{found.ratio:.2f}   {found.bits_per_voxel:.3f} bits per voxel"),
    ]
    facts += [("model", _model_words(model)) for model in found.models]
    if found.census is not None:
        census = found.census
        facts += [
            ("frames", console.counts(census.kinds)),
            ("frame bytes", f"{console.size(census.frame_bytes)}, {census.overhead_bytes} B of them overhead"),
            ("largest", f"{census.largest[1]} B, chunk {census.largest[0]}" if census.largest else ""),
            ("smallest", f"{census.smallest[1]} B, chunk {census.smallest[0]}" if census.smallest else ""),
            ("levels", ", ".join(f"{level}: {count}" for level, count in census.settings.items())),
        ]
        facts += [("damaged", f"chunk {index}: {reason}") for index, reason in census.damaged[:10]]
    measured = {
        key: value for key, value in found.measured.items() if key not in ("model", "digest") and value is not None
    }
    facts.append(("measured", ", ".join(f"{key} {_short(value)}" for key, value in measured.items())))
    console.print_facts(found.array, facts)


def _short(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _model_words(model: ModelFacts) -> str:
    used = "" if model.frames is None else f"   in {model.frames} frames"
    if model.found is None:
        return f"{model.id}  {model.digest[:23]}   MISSING{used}\n{model.mend}"
    low, high = model.ratio_range or (0, 0)
    return f"{model.id}  {model.digest[:23]}   {low:g}x to {high:g}x   {model.licence}{used}"


def _show_frame(found: FrameFacts) -> None:
    frame = found.frame
    facts = [
        (name.replace("_", " "), console.shape(value) if name == "shape" else str(value))
        for name, value in frame.items()
        if value is not None and name != "model"
    ]
    if found.model is not None:
        facts.append(("model", _model_words(found.model)))
    console.print_facts(found.file, facts)
