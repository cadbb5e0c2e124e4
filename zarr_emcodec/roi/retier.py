"""Stored objects at another tier: a frame, or the frames of a shard, and the attribute that goes with made-up texture.

Bytes of objects in, bytes of the same length and what became of each chunk out. No store is touched but for the array's
own metadata document.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.adapters.tiers import SYNTHESISED
from zarr_emcodec.errors import FrameError, JobError, SpecError
from zarr_emcodec.frame import Limits, Tier, read_header, replace_tier
from zarr_emcodec.jobs.frames import ABSENT, Layout, shard_index
from zarr_emcodec.jobs.grid import grid_shape
from zarr_emcodec.roi.tiers import RICHNESS, check_frame, has_tier

if TYPE_CHECKING:
    import zarr

    from zarr_emcodec._types import Shape
    from zarr_emcodec.roi.objects import Objects

Outcome = tuple[Counter[str], int]
"""Chunks by what became of them, and the bytes of an object that is to be replaced."""


@dataclass(frozen=True)
class Retier:
    """To which tier, and whether up (1) or down (-1)."""

    tier: Tier
    direction: int
    limits: Limits

    def frame(self, index: Shape, data: bytes) -> tuple[bytes | None, str]:
        """A frame at the new tier, or None, and what became of it.

        Raises
        ------
        FrameError
            If it is damaged; the message names its chunk.
        SpecError
            If it cannot decode at the tier; likewise.
        """
        try:
            header = read_header(data, limits=self.limits)
            if not has_tier(header):
                return None, "plain"
            if self.direction * (RICHNESS[self.tier] - RICHNESS[header.tier]) <= 0:
                return None, "already"
            check_frame(header, self.tier)
            return replace_tier(data, self.tier, limits=self.limits), "changed"
        except (FrameError, SpecError) as error:
            error.args = (f"chunk {index}: {error}",)
            raise

    def chunk(self, index: Shape, data: bytes | None) -> tuple[bytes | None, Outcome]:
        """An object that is one frame."""
        if data is None:
            return None, (Counter(absent=1), 0)
        new, became = self.frame(index, data)
        return new, (Counter({became: 1}), 0 if new is None else len(new))

    def shard(self, indices: list[Shape], layout: Layout, data: bytes | None) -> tuple[bytes | None, Outcome]:
        """An object that holds many: frames keep their place and length, so the index stays true as it is."""
        if data is None:
            return None, (Counter(absent=len(indices)), 0)
        assert layout.shards is not None
        per_shard = grid_shape(layout.shards, layout.chunks)
        table = shard_index(data, int(np.prod(per_shard)), layout.shard_config or {})
        if isinstance(table, str):
            raise JobError(f"chunk {indices[0]}: {table}. Restore the shard from its source.")
        counts: Counter[str] = Counter()
        out = bytearray(data)
        for index in indices:
            slot = np.ravel_multi_index([i % n for i, n in zip(index, per_shard, strict=True)], per_shard)
            offset, length = table[int(slot)]
            if (offset, length) == (ABSENT, ABSENT):
                counts["absent"] += 1
                continue
            if offset + length > len(data):
                raise JobError(f"chunk {index}: the shard's index points beyond its end. Restore it from its source.")
            new, became = self.frame(index, data[offset : offset + length])
            counts[became] += 1
            if new is not None:
                out[offset : offset + length] = new
        changed = counts["changed"] > 0
        return (bytes(out) if changed else None), (counts, len(out) if changed else 0)


class Flag:
    """The attribute that says of an array that voxels are made up.

    Set once, ahead of the first frame that makes it true: at no time is there made-up texture that is not said to be.
    """

    def __init__(self, array: zarr.Array[Any], objects: Objects) -> None:
        self.array, self.objects = array, objects
        self._turn = asyncio.Lock()
        self._is_set = False

    async def set(self) -> None:
        """See to it that the attribute is there."""
        from zarr.core.buffer import default_buffer_prototype

        async with self._turn:
            if self._is_set:
                return
            place = self.array.store_path / ("zarr.json" if self.array.metadata.zarr_format == 3 else ".zattrs")
            await place.set_if_not_exists(default_buffer_prototype().buffer.from_bytes(b"{}"))  # v2 may have none
            await self.objects.update(place.path, _flagged)
            self.array.metadata.attributes[SYNTHESISED] = True
            self._is_set = True


def _flagged(document: bytes | None) -> tuple[bytes | None, None]:
    """A metadata document with the attribute; None where it is there already."""
    facts = json.loads(document or b"{}")
    attributes = facts.setdefault("attributes", {}) if "zarr_format" in facts else facts
    if attributes.get(SYNTHESISED) is True:
        return None, None
    attributes[SYNTHESISED] = True
    return json.dumps(facts, indent=2).encode(), None
