"""The stored objects of a chunked array: which of them a box touches, whether they are there, whether they changed."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zarr_emcodec.jobs.grid import grid_shape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zarr_emcodec._types import Shape
    from zarr_emcodec.jobs.grid import Box
    from zarr_emcodec.jobs.sources.place import Place

_SAMPLED = 8


@dataclass(frozen=True)
class Objects:
    """The grid of an array's objects; axes are ours.

    Parameters
    ----------
    place : Place
    shape, unit : tuple of int, voxels
        Of the array; of what one object holds.
    key : callable
        Grid index to the object's name under the place.
    """

    place: Place
    shape: Shape
    unit: Shape
    key: Callable[[Shape], str]

    def absent(self, box: Box) -> tuple[int, int]:
        """How many of the objects that a box touches are not there, and how many it touches."""
        return self.place.count_absent(self._touched(box))

    def _touched(self, box: Box) -> Iterator[str]:
        cells = (range(part.start // u, (part.stop - 1) // u + 1) for part, u in zip(box, self.unit, strict=True))
        return map(self.key, itertools.product(*cells))

    def marks(self) -> list[str]:
        """Marks of a few objects spread over the volume, always the same ones."""
        cells = grid_shape(self.shape, self.unit)
        steps = range(_SAMPLED)
        # the diagonal: every axis is crossed, whatever its length
        picked = {tuple((n - 1) * i // (_SAMPLED - 1) for n in cells) for i in steps}
        return self.place.marks([self.key(index) for index in sorted(picked)])


def digest(*documents: Mapping[str, Any] | None) -> str:
    """SHA-256 of metadata documents, whatever the order of their keys."""
    text = json.dumps(documents, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
