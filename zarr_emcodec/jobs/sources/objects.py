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

_SAMPLED = 16


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
        return self.place.marks([self.key(index) for index in spread_over(grid_shape(self.shape, self.unit))])


def spread_over(cells: Shape, count: int = _SAMPLED) -> list[Shape]:
    """Grid indices that leave no large gap along any axis: first, last, and a Kronecker sequence between.

    Examples
    --------
    >>> spread_over((2, 100), 4)
    [(0, 0), (0, 6), (0, 63), (1, 99)]
    """
    n = len(cells)
    root = 1.0
    for _ in range(40):  # x**(n + 1) = x + 1: Roberts' generalised golden ratio, the best such sequence known
        root = (1 + root) ** (1 / (n + 1))
    inner = {
        tuple(int((0.5 + i * root ** -(axis + 1)) % 1 * cell) for axis, cell in enumerate(cells))
        for i in range(1, count - 1)
    }
    return sorted({(0,) * n, tuple(cell - 1 for cell in cells), *inner})


def digest(*documents: Mapping[str, Any] | None) -> str:
    """SHA-256 of metadata documents, whatever the order of their keys."""
    text = json.dumps(documents, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
