"""The array that a recompression writes: claimed, created, and signed at the end.

A plan in; a place with an empty array out, or a refusal. What is there already is never touched unasked.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr_emcodec.errors import JobError
from zarr_emcodec.jobs import metadata, store
from zarr_emcodec.jobs.coding import codec_from
from zarr_emcodec.jobs.compress import ATTRIBUTE
from zarr_emcodec.jobs.landing import check_apart, check_replaceable
from zarr_emcodec.jobs.ledger import check_free, read_plan

if TYPE_CHECKING:
    import zarr

    from zarr_emcodec.jobs.plan import Plan
    from zarr_emcodec.jobs.sources import Source
    from zarr_emcodec.jobs.store import Place
    from zarr_emcodec.jobs.totals import Totals

_OURS = ".emcodec"
_DOCUMENTS = {2: (".zarray", ".zattrs"), 3: ("zarr.json",)}


def claim(plan: Plan, *, overwrite: bool) -> Place:
    """The place of a plan's destination, free for it or begun by it.

    Parameters
    ----------
    plan : Plan
    overwrite : bool
        Whether an array that is there may go; with this, nothing is ever resumed.

    Raises
    ------
    JobError
        If something else is there, it overlaps the source, or a run is at work on it.
    """
    local = "://" not in plan.destination
    path = check_apart(plan.destination, plan.source) if local else Path()
    place = store.place_at(plan.destination)
    if overwrite:
        check_free(place)
        if local:
            check_replaceable(path)
        store.clear(place)
    elif read_plan(place) is None and not store.holds_only(place, (_OURS,)):  # it may have died before its first word
        raise JobError(
            f"{plan.destination}: exists already, and no recompression was begun there. Choose another name, or pass "
            "overwrite=True (--overwrite)."
        )
    return place


def create(plan: Plan, place: Place, volume: Source, *, embed_model: bool) -> None:
    """Create the array, where an earlier run has not, and say in it where it comes from.

    Parameters
    ----------
    plan : Plan
    place : Place
    volume : Source
        The plan's, open.
    embed_model : bool
        Put the decoders of all its models beside it.

    Raises
    ------
    JobError
        If the store refuses.
    SpecError
        If the codec does not take such an array.
    """
    from zarr_emcodec.adapters import arrays

    if store.get(place, _DOCUMENTS[plan.zarr_format][0]) is None:
        _create(plan, place, volume)
    # what follows is done again in every run: the last one may have died in the middle
    array = _opened(place)
    if "source_fingerprint" not in array.attrs.get(ATTRIBUTE, {}):  # type: ignore[operator]  # it is ours: a mapping
        metadata.sign(array, {**metadata.provenance(volume), "plan": plan.digest, "complete": False})
    try:
        for model in plan.models if embed_model else ():
            arrays.embed(array, model["digest"])
    except OSError as error:
        raise store.refusal(place, _OURS, "write", error) from error


def _create(plan: Plan, place: Place, volume: Source) -> None:
    from zarr_emcodec.adapters import arrays

    try:
        arrays.create_array(
            place,
            shape=plan.shape,
            dtype=plan.dtype,
            chunks=plan.chunks,
            shards=plan.shards,
            codec=codec_from(plan.codec),
            zarr_format=plan.zarr_format,
            fill_value=plan.fill_value,
            **metadata.carried(volume, plan.zarr_format),
        )
    except OSError as error:
        raise store.refusal(place, "", "create", error) from error


def _opened(place: Place) -> zarr.Array[Any]:
    import zarr

    try:
        return zarr.open_array(place.store, path=place.path, mode="r+")
    except Exception as error:  # stores raise whatever their transport does
        raise store.refusal(place, "", "open", error) from error


def sign(plan: Plan, place: Place, totals: Totals, *, complete: bool) -> None:
    """Leave in the attributes what the array is worth, and whether it is complete.

    Raises
    ------
    JobError
        If the store refuses.
    """
    peak = totals.peak(plan.dtype, plan.codec.get("window"))
    facts: dict[str, Any] = {"complete": complete}
    if len(plan.models) > 1:
        facts["models"] = plan.models
    if totals.n_blocks:
        # sums depend on the order in which blocks came, in their last digits: the same job signs alike
        facts |= {"source_range": (totals.low, totals.high), "psnr_db": _rounded(totals.psnr_db(peak)), "peak": peak}
        facts |= {"ssim": _rounded(totals.ssim()), "worst_error": totals.tally.worst}
    metadata.sign(_opened(place), facts)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def other_bytes(plan: Plan, place: Place) -> int:
    """Stored bytes that are no voxels: metadata, embedded models. Not the ledger, which may be removed."""
    documents = (store.get(place, name) for name in _DOCUMENTS[plan.zarr_format])
    models = (store.size_below(place, f"{_OURS}/{model['digest'].removeprefix('sha256:')}") for model in plan.models)
    return sum(len(data) for data in documents if data is not None) + sum(models)
