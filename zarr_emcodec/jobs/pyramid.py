"""A whole multiscale image: its finest level recompressed, its coarser ones rebuilt from that or recompressed too.

A source and a destination in; an OME-Zarr group of compressed levels out. Each level is a job of its own, planned,
resumed and verified like any other; a coarser one reads means of the level before it as it decodes
(``sources.reduced``). The group's metadata name a level when it is complete.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zarr_emcodec.errors import JobError, SpecError
from zarr_emcodec.jobs import store
from zarr_emcodec.jobs.compress import ATTRIBUTE
from zarr_emcodec.jobs.grid import fit_chunks, grid_shape
from zarr_emcodec.jobs.landing import check_apart, check_replaceable
from zarr_emcodec.jobs.metadata import provenance, write_image
from zarr_emcodec.jobs.plan import plan
from zarr_emcodec.jobs.recompress import RecompressReport, recompress
from zarr_emcodec.jobs.report import Record
from zarr_emcodec.jobs.scales import coarser_level, spatial
from zarr_emcodec.jobs.sources import Source, open_source
from zarr_emcodec.jobs.sources.reduced import reduced_location

if TYPE_CHECKING:
    from zarr_emcodec._types import Shape
    from zarr_emcodec.jobs.coding import Codec
    from zarr_emcodec.jobs.scales import Level, Multiscale

Keep = Literal["finest", "rebuild", "every"]

_SMALLEST = 256  # voxels: a level that fits on a screen needs no coarser one
_FINEST_ONLY = ("regions", "tissue")  # stated in voxels of the finest level
_MEASURED = ("psnr_db", "peak", "ssim", "worst_error", "ratio")


@dataclass(frozen=True, kw_only=True)
class ImageReport(Record):
    """What `recompress_image` did.

    Parameters
    ----------
    ok : bool
        Whether every level is complete.
    source, destination : str
    levels : mapping
        Name to the report of its job; what comes after a level that is not complete was not begun.
    """

    ok: bool
    source: str
    destination: str
    levels: Mapping[str, RecompressReport]


@dataclass(frozen=True)
class LevelJob:
    """One level to be written.

    Parameters
    ----------
    level : Level
        As it will be in the destination; its location is there.
    source : str
        What `open_source` opens to get its voxels.
    shape : tuple of int, voxels
    """

    level: Level
    source: str
    shape: Shape


def recompress_image(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    codec: Codec = None,
    *,
    levels: Keep = "rebuild",
    n_levels: int | None = None,
    overwrite: bool = False,
    planning: Mapping[str, Any] | None = None,
    **running: Any,
) -> ImageReport:
    """Recompress a volume with its pyramid, or do the rest of it.

    Parameters
    ----------
    source : path or URL
        Anything that `open_source` reads; the level that is named (by default the finest) is the finest that is kept.
    destination : path or URL
        Of the group to be, of OME-Zarr 0.5, or 0.4 with ``planning={"zarr_format": 2}``.
    codec : number, codec, spec or mapping
        Of all levels; as in `plan`.
    levels : {"finest", "rebuild", "every"}
        One level; that and coarser ones rebuilt from it as it decodes, in the source's own steps where it has levels;
        or every level that the source has.
    n_levels : int, optional
        At most so many in all.
    overwrite : bool
        Whether a Zarr group that is there may be replaced.
    planning : mapping, optional
        Further words of `plan`, for every level; "regions" and "tissue" are for the finest alone.
    **running
        Words of `recompress`, for every level.

    Returns
    -------
    ImageReport
        Also where blocks have failed or the run was stopped: look at `ok`.

    Raises
    ------
    JobError
        If a path cannot be used, or the group belongs to something else.
    PlanMismatchError
        If a level was begun with other options.
    SpecError
        If source, codec or options cannot work.
    """
    words = {"samples": 0, **(planning or {})}
    zarr_format = words.get("zarr_format", 3)
    where = _from_root(os.fspath(destination))
    with open_source(source) as volume:
        facts = provenance(volume)
        jobs, image = level_jobs(volume, where, levels=levels, n_levels=n_levels), volume.image
    place = _claim(where, os.fspath(source), facts, zarr_format, overwrite)
    done: dict[str, RecompressReport] = {}
    for i, job in enumerate(jobs):
        if i == 1 and levels == "rebuild":
            words.pop("missing", None)  # of a level of ours, blocks that are all fill value are not stored
        made = plan(job.source, job.level.location, codec, **_fitted(words, job.shape, finest=not i))
        report = done[job.level.name] = recompress(made, **running)
        if not report.ok:
            break
        complete = dataclasses.replace(image, levels=tuple(job.level for job in jobs[: i + 1]))
        measured = {name: {key: getattr(found, key) for key in _MEASURED} for name, found in done.items()}
        write_image(place, complete, zarr_format=zarr_format, facts={**facts, "levels": measured})
    return ImageReport(
        ok=len(done) == len(jobs) and all(report.ok for report in done.values()),
        source=os.fspath(source),
        destination=os.fspath(destination),
        levels=done,
    )


def level_jobs(volume: Source, destination: str, *, levels: Keep, n_levels: int | None = None) -> list[LevelJob]:
    """The levels that will be written, finest first.

    Parameters
    ----------
    volume : Source
    destination : str
        Path or URL of the group.
    levels, n_levels
        As in `recompress_image`.

    Raises
    ------
    SpecError
        If `levels` is none of the words, or `n_levels` not positive.
    """
    if levels not in ("finest", "rebuild", "every"):
        raise SpecError(f"levels {levels!r}: 'finest', 'rebuild' or 'every'.", name="levels", value=levels)
    if n_levels is not None and n_levels < 1:
        raise SpecError(f"n_levels {n_levels}: at least 1.", name="n_levels", value=n_levels)
    most = 1 if levels == "finest" else n_levels
    if levels == "every":
        return _every(volume, destination, most)
    return _rebuilt(volume, destination, most)


def _every(volume: Source, destination: str, most: int | None) -> list[LevelJob]:
    kept = volume.levels[volume.level :][:most]
    names = _names(volume, len(kept))
    jobs = []
    for level, name in zip(kept, names, strict=True):
        with open_source(level.location if level is not kept[0] else volume.location) as source:
            place = dataclasses.replace(level, name=name, location=f"{destination.rstrip('/')}/{name}")
            jobs.append(LevelJob(place, source.location, source.shape))
    return jobs


def _rebuilt(volume: Source, destination: str, most: int | None) -> list[LevelJob]:
    steps = _stated_steps(volume.image, volume.level) or choose_steps(volume.levels[volume.level].scale, volume.shape)
    steps = steps if most is None else steps[: most - 1]
    names = _names(volume, len(steps) + 1)
    root = destination.rstrip("/")
    level = dataclasses.replace(volume.levels[volume.level], name=names[0], location=f"{root}/{names[0]}")
    jobs = [LevelJob(level, volume.location, volume.shape)]
    for name, factors in zip(names[1:], steps, strict=True):
        finer = jobs[-1]
        level = coarser_level(finer.level, name, f"{root}/{name}", factors)
        source = reduced_location(_from_root(finer.level.location), factors)
        jobs.append(LevelJob(level, source, grid_shape(finer.shape, factors)))
    return jobs


def _stated_steps(image: Multiscale, first: int) -> list[Shape]:
    """From each of a source's levels to the next, where that is by whole factors."""
    steps = []
    for k in range(first + 1, len(image.levels)):
        ratios = [c / f for c, f in zip(image.levels[k].scale, image.levels[k - 1].scale, strict=True)]
        factors = tuple(max(1, round(ratio)) for ratio in ratios)
        if not all(math.isclose(f, r, rel_tol=0.01) for f, r in zip(factors, ratios, strict=True)):
            return []
        steps.append(factors)
    return steps


def choose_steps(scale: Sequence[float], shape: Shape) -> list[Shape]:
    """Factors from level to level that lead to voxels of equal sides, and on until a section fits on a screen.

    Parameters
    ----------
    scale : sequence of float
        Extent of a voxel, one value per axis; axes of space are the last ones.
    shape : tuple of int, voxels

    Examples
    --------
    >>> choose_steps((40, 8, 8), (100, 2000, 2000))
    [(1, 2, 2), (1, 2, 2), (2, 2, 2)]
    """
    n = spatial(len(shape))
    sizes, extents, steps = [float(s) for s in scale], tuple(shape), []
    while max(extents[-n:]) > _SMALLEST:
        long = [i for i in range(len(extents) - n, len(extents)) if extents[i] > 1]
        # halving what is at most sqrt(2) of the shortest side brings the sides closer together
        limit = math.sqrt(2) * min(sizes[i] for i in long)
        factors = tuple(2 if i in long and sizes[i] <= limit else 1 for i in range(len(extents)))
        sizes = [s * f for s, f in zip(sizes, factors, strict=True)]
        extents = grid_shape(extents, factors)
        steps.append(factors)
    return steps


def _names(volume: Source, count: int) -> list[str]:
    """Of the levels: those of an OME-Zarr source, else s0, s1, ..."""
    own = [level.name for level in volume.levels[volume.level :][:count]] if volume.kind == "zarr" else []
    usable = len(own) == count and all(own) and not any("/" in name for name in own)
    return own if usable else [f"s{i}" for i in range(count)]


def _fitted(words: Mapping[str, Any], shape: Shape, *, finest: bool) -> dict[str, Any]:
    """Words of `plan` for a level: chunks no longer than it, shards made of those."""
    found = {key: value for key, value in words.items() if finest or key not in _FINEST_ONLY}
    shards = found.get("shards")
    if isinstance(shards, Sequence) and not isinstance(shards, str):
        chunks = found["chunks"] = fit_chunks(shape, found.get("chunks"))
        found["shards"] = tuple(
            c * max(1, min(s // c, -(-n // c))) for s, c, n in zip(shards, chunks, shape, strict=True)
        )
    return found


def _claim(
    where: str, source: str, facts: Mapping[str, Any], zarr_format: Literal[2, 3], overwrite: bool
) -> store.Place:
    """The place of a group that is ours or free."""
    import zarr

    local = "://" not in where
    path = check_apart(where, source) if local else Path()
    place = store.place_at(where)
    if not store.holds_only(place, ()):
        if overwrite:
            if local:
                check_replaceable(path)
            store.clear(place)
        else:
            _check_begun(where, place, facts)
    try:
        group = zarr.open_group(place, mode="a", zarr_format=zarr_format)
        group.attrs[ATTRIBUTE] = {**_own(group.attrs.asdict()), **facts}
    except Exception as error:  # stores raise whatever their transport does
        raise JobError(f"{where}: cannot be created: {error}") from error
    return place


def _check_begun(where: str, place: store.Place, facts: Mapping[str, Any]) -> None:
    import zarr

    try:
        stated = _own(zarr.open_group(place, mode="r").attrs.asdict()).get("source_fingerprint")
    except Exception:  # no group, or a damaged one: not ours to go on with
        stated = None
    if stated is None:
        raise JobError(
            f"{where}: exists already, and no recompression was begun there. Choose another name, or pass "
            "overwrite=True (--overwrite)."
        )
    if stated != facts["source_fingerprint"]:
        raise JobError(f"{where}: was begun from another source, or the source has changed. Choose another name.")


def _own(attributes: Mapping[str, Any]) -> dict[str, Any]:
    own = attributes.get(ATTRIBUTE)
    return dict(own) if isinstance(own, Mapping) else {}


def _from_root(location: str) -> str:
    return location if "://" in location else str(Path(location).absolute())
