"""What an array was to hold, and what was promised of it: by its metadata, or block by block by its plan.

An open array in; for any of its boxes the voxels that were to be stored and the guard they were stored under out. A
plan comes from the array's own ledger, so it is data from elsewhere: it runs no code unless that is trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from zarr_emcodec.errors import EmCodecError, JobError
from zarr_emcodec.jobs.frames import Layout
from zarr_emcodec.jobs.ledger import read_plan
from zarr_emcodec.jobs.measure import Guard

if TYPE_CHECKING:
    import zarr

    from zarr_emcodec._types import Chunk
    from zarr_emcodec.jobs.grid import Box
    from zarr_emcodec.jobs.plan import Plan


class Promised(Protocol):
    """What is expected of an array.

    Attributes
    ----------
    by_block : bool
        Whether boxes must not reach beyond one stored object.
    """

    by_block: bool

    def voxels(self, box: Box, source_voxels: Chunk) -> Chunk:
        """What of a source's voxels was to be stored."""

    def guard(self, box: Box, peak: float) -> Guard:
        """What was promised of the chunks of a box."""


class ByMetadata:
    """Everything was to be stored, under the guard that the array's metadata state."""

    by_block = False

    def __init__(self, layout: Layout) -> None:
        self._config = layout.config if layout.is_ours else {}
        self._chunks = layout.chunks

    def voxels(self, box: Box, source_voxels: Chunk) -> Chunk:
        """The source's voxels themselves."""
        return source_voxels

    def guard(self, box: Box, peak: float) -> Guard:
        """One for the whole array."""
        return Guard.of(self._config, self._chunks, peak)


class ByPlan:
    """Background was to become the fill value, and regions have guards of their own."""

    by_block = True

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def voxels(self, box: Box, source_voxels: Chunk) -> Chunk:
        """The source's voxels with background made exact, as the plan's workers saw them."""
        index = self._index(box)
        if not self._plan.may_hold_tissue(index):
            return np.full_like(source_voxels, self._plan.fill_value)
        return self._plan.prepare(box, source_voxels, self._plan.codec_of(index))

    def guard(self, box: Box, peak: float) -> Guard:
        """That of the codec which the block got."""
        return Guard.of(self._plan.codec_of(self._index(box)), self._plan.chunks, peak)

    def _index(self, box: Box) -> int:
        coords = tuple(part.start // extent for part, extent in zip(box, self._plan.block, strict=True))
        return int(np.ravel_multi_index(coords, self._plan.grid))


def promised_of(array: zarr.Array[Any], layout: Layout, *, trust_plan: bool = False) -> Promised:
    """What is expected of an array.

    Parameters
    ----------
    array, layout
        Open for reading.
    trust_plan : bool
        Import the functions by which the plan in the array's ledger tells its regions.

    Raises
    ------
    JobError
        If there is a plan that decides what blocks hold, and it is damaged, not this array's, or needs to be trusted.
    """
    stored = read_plan(array.store_path)
    if stored is None or not (stored.get("tissue") or stored.get("regions")):
        return ByMetadata(layout)
    _check_functions(stored, str(array.store_path), trust_plan)
    from zarr_emcodec.jobs.plan import Plan

    try:
        plan = Plan.from_dict(stored)
    except EmCodecError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise JobError(f"{array.store_path}: the plan in its ledger is damaged: {error!r}") from error
    if (plan.shape, plan.chunks, plan.shards) != (layout.shape, layout.chunks, layout.shards):
        raise JobError(f"{array.store_path}: the plan in its ledger is that of another array. Remove the ledger.")
    return ByPlan(plan)


def _check_functions(stored: Mapping[str, Any], where: str, trust_plan: bool) -> None:
    places = [region.get("where") for region in stored.get("regions") or () if isinstance(region, Mapping)]
    names = [str(p.get("name")) for p in places if isinstance(p, Mapping) and p.get("kind") == "function"]
    if names and not trust_plan:
        raise JobError(
            f"{where}: its plan tells regions by code, {', '.join(names)}, and stored data run none unasked. Pass "
            "trust_plan=True (--trust-plan) if you know it."
        )
