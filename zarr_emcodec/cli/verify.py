"""``zarr-emcodec verify``."""

from __future__ import annotations

from pathlib import Path  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from zarr_emcodec.cli import console
from zarr_emcodec.errors import SpecError

if TYPE_CHECKING:
    from zarr_emcodec.jobs.verify import VerifyReport

_SHOWN = 10


def verify(
    source: Annotated[
        str, typer.Argument(metavar="[SOURCE]", help="What the array was written from; without it only frames and "
                            "checksums are checked.")
    ],
    array: Annotated[
        str | None, typer.Argument(metavar="ARRAY", help="Compressed Zarr array or N5 dataset (path or URL). Of two "
                                   "places the one with our frames is checked, the second where both have them.")
    ] = None,
    sample: Annotated[
        str | None, typer.Option(metavar="N", help="Compare so many chunks, or a fraction such as 0.05.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Compare every chunk, as without --sample.")] = False,
    only_sampled: Annotated[
        bool, typer.Option("--only-sampled", help="Check no other frames than those of the sample.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write it to a file too: .html, with the worst chunks as pictures, or .json.")
    ] = None,
    trust_embedded: Annotated[
        bool, typer.Option("--trust-embedded", help="Use the model inside the array, though it is not known here.")
    ] = False,
    trust_plan: Annotated[
        bool, typer.Option("--trust-plan", help="Run the functions by which the array's plan tells its regions.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of one inference call; 1 if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:  # fmt: skip
    """Check that an array is whole and keeps its promise; exit status 1 if not.

    Example: zarr-emcodec verify stack.tif stack.zarr --report look.html
    """
    from zarr_emcodec.jobs.verify import examine, find_array

    if everything and sample is not None:
        raise SpecError("--all and --sample: choose one.", name="sample", value=sample)
    place, origin = (source, None) if array is None else find_array(source, array)
    with console.runtime_options(threads), console.progress_bar("verifying", quiet=as_json) as progress:
        found = examine(
            place,
            origin,
            sample=_sample(sample),
            only_sampled=only_sampled,
            trust_embedded=trust_embedded,
            trust_plan=trust_plan,
            report=report,
            progress=progress,
        )
    if as_json:
        console.print_json(found)
    else:
        _show(found, report)
    if not found.ok:
        typer.secho(_verdict(found), err=True)
        raise typer.Exit(1)


def _sample(text: str | None) -> float | int | None:
    if text is None:
        return None
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        raise SpecError(
            f"--sample {text}: needs a number of chunks, or a fraction.", name="sample", value=text
        ) from None


def _verdict(found: VerifyReport) -> str:
    first = "; ".join(f"chunk {finding.chunk}: {finding.reason}" for finding in found.findings[:1])
    return f"zarr-emcodec: {found.array}: {len(found.chunks)} chunks fail. {first}"


def _show(found: VerifyReport, report: Path | None) -> None:
    promise = ", ".join(f"{name} {value:g}" for name, value in found.promise.items())
    kept = "kept by every chunk compared, as it was coded"
    if any(finding.kind == "guard" for finding in found.findings):
        kept = "not kept"
    facts = [
        ("frames", f"{found.frames_checked} checked: {console.counts(found.frames)}" if found.frames else ""),
        (
            "compared",
            f"{found.chunks_compared} of {found.n_chunks} chunks with {found.source}" if found.source else "",
        ),
        ("promise", f"{promise}, {kept}" if promise and found.source else ""),
        ("PSNR", console.quality(found.psnr_db, found.lowest_chunk_db, found.peak)),
        ("SSIM", console.number(found.ssim, ".4f")),
        ("worst error", console.number(found.worst_error, "g")),
        ("seconds", f"{found.seconds:.1f}"),
        ("report", str(report or "")),
    ]
    facts += [(finding.kind, f"chunk {finding.chunk}: {finding.reason}") for finding in found.findings[:_SHOWN]]
    if found.n_findings > _SHOWN:
        facts.append(("", f"and {found.n_findings - _SHOWN} more"))
    console.print_facts(f"{found.array}  {'all well' if found.ok else f'{found.n_findings} FINDINGS'}", facts)
