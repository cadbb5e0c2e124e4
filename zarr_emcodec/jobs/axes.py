"""Axis order and voxel offset: the one place where a format's axes become ours and back.

Inside, arrays are (t, c, z, y, x) or their last axes, and the first voxel is 0. N5 and Neuroglancer precomputed count
x first; precomputed has a channel axis and a first voxel that need not be 0; Zarr says it in its OME metadata or in its
dimension names. Positions are those of voxel centres, in voxels of the array or in nm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr_emcodec._types import Chunk, Shape
    from zarr_emcodec.jobs.grid import Box

T = TypeVar("T")

NAMES = ("t", "c", "z", "y", "x")
"""Our axes, slowest first; an array of fewer axes has the last of them."""
_SAME = {"channel": "c", "c^": "c", "time": "t"}  # "c^" is how n5-ij and TensorStore write a channel axis


@dataclass(frozen=True)
class View:
    """How our axes lie in those of a stored array.

    Parameters
    ----------
    names : tuple of str
        Of our axes.
    axes : tuple of int
        Our axis i is the stored axis ``axes[i]``. Stored axes that do not occur have length 1 and are left out.
    origin : tuple of int, voxels
        Index of the first voxel along every stored axis.

    Examples
    --------
    >>> view = view_of(("x", "y", "z", "channel"), (100, 70, 40, 1), origin=(10, 20, 30, 0), drop=("c",))
    >>> view.names, view.pick((100, 70, 40, 1))
    (('z', 'y', 'x'), (40, 70, 100))
    >>> view.to_stored((slice(0, 1), slice(2, 3), slice(4, 8)))
    (slice(14, 18, None), slice(22, 23, None), slice(30, 31, None), 0)
    """

    names: tuple[str, ...]
    axes: tuple[int, ...]
    origin: Shape

    @property
    def is_plain(self) -> bool:
        """Whether boxes and voxels need no change."""
        return self.axes == tuple(range(len(self.origin))) and not any(self.origin)

    def pick(self, stored: Sequence[T]) -> tuple[T, ...]:
        """One value per stored axis to one per axis of ours."""
        return tuple(stored[axis] for axis in self.axes)

    def spread(self, ours: Sequence[T], other: T) -> tuple[T, ...]:
        """One value per axis of ours to one per stored axis; `other` where an axis is left out."""
        out = [other] * len(self.origin)
        for axis, value in zip(self.axes, ours, strict=True):
            out[axis] = value
        return tuple(out)

    def to_stored(self, box: Box) -> tuple[slice | int, ...]:
        """Index of a box in the stored array."""
        out: list[slice | int] = list(self.origin)
        for axis, part in zip(self.axes, box, strict=True):
            first = self.origin[axis]
            out[axis] = slice(first + part.start, first + part.stop)
        return tuple(out)

    def from_stored(self, values: Chunk) -> Chunk:
        """Voxels as ours, seen without a copy; `values` has the axes that `to_stored` kept."""
        kept = sorted(self.axes)
        return values.transpose([kept.index(axis) for axis in self.axes])

    def onto_stored(self, values: Chunk) -> Chunk:
        """Inverse of `from_stored`.

        Examples
        --------
        >>> view = view_of(("x", "y", "z", "channel"), (4, 3, 2, 1), drop=("c",))
        >>> view.onto_stored(np.zeros((2, 3, 4))).shape
        (4, 3, 2)
        """
        return values.transpose(np.argsort(self.axes))


def view_of(
    names: Sequence[str] | None, shape: Shape, *, origin: Shape | None = None, drop: Sequence[str] = ()
) -> View:
    """See a stored array with our axes.

    Parameters
    ----------
    names : sequence of str or None
        Of the stored axes. Where they are not all known, or none are stated, the order is taken to be ours.
    shape : tuple of int, voxels
        As stored.
    origin : tuple of int, voxels, optional
    drop : sequence of str
        Axes to leave out where their length is 1.

    Examples
    --------
    >>> view_of(("x", "y", "z"), (3, 2, 1)).axes
    (2, 1, 0)
    >>> view_of(("row", "column"), (3, 2)).names
    ('y', 'x')
    """
    n = len(shape)
    origin = (0,) * n if origin is None else origin
    known = [_SAME.get(str(name).lower(), str(name).lower()) for name in names or ()]
    if len(known) != n or len(set(known)) != n or not {"y", "x"} <= set(known) <= set(NAMES):
        return View(names_of(n), tuple(range(n)), origin)
    kept = [axis for axis in range(n) if not (known[axis] in drop and shape[axis] == 1)]
    order = tuple(sorted(kept, key=lambda axis: NAMES.index(known[axis])))
    return View(tuple(known[axis] for axis in order), order, origin)


def x_first(n: int) -> tuple[str, ...]:
    """Names of the axes of an N5 data set that states none.

    Examples
    --------
    >>> x_first(4)
    ('x', 'y', 'z', 'c')
    """
    return names_of(n) if n > len(NAMES) else tuple("xyzct"[:n])


def names_of(n: int) -> tuple[str, ...]:
    """Names of the axes of an array that states none.

    Examples
    --------
    >>> names_of(3)
    ('z', 'y', 'x')
    """
    return NAMES[-n:] if 0 < n <= len(NAMES) else tuple(f"dim_{i}" for i in range(n))


def to_nm(offset: Sequence[float], voxel_nm: Sequence[float]) -> tuple[float, ...]:
    """A position in voxels as one in nm.

    Examples
    --------
    >>> to_nm((30, 20, 10), (40, 4, 4))
    (1200.0, 80.0, 40.0)
    """
    return tuple(float(o) * float(v) for o, v in zip(offset, voxel_nm, strict=True))


def to_voxels(position_nm: Sequence[float], voxel_nm: Sequence[float]) -> tuple[float, ...]:
    """A position in nm as one in voxels; what is whole but for rounding comes out whole.

    Examples
    --------
    >>> to_voxels((1200, 80, 39.999999999), (40, 4, 4))
    (30.0, 20.0, 10.0)
    """
    exact = np.asarray(position_nm, float) / np.asarray(voxel_nm, float)
    whole = np.round(exact)
    return tuple(float(v) for v in np.where(np.isclose(exact, whole, rtol=0, atol=1e-6), whole, exact))


def coarser(offset: Sequence[float], factors: Sequence[float]) -> tuple[float, ...]:
    """Where the first voxel of a level lies whose voxels are means of `factors` voxels, in voxels of that level.

    Its centre is the mean of the centres it covers, so it moves by half a voxel or more.

    Examples
    --------
    >>> coarser((0, 10, 10), (1, 2, 2))
    (0.0, 5.25, 5.25)
    """
    return tuple((float(o) + (f - 1) / 2) / f for o, f in zip(offset, factors, strict=True))


def from_corner(corner: Sequence[float], factors: Sequence[float]) -> tuple[float, ...]:
    """Precomputed's `voxel_offset` of a level as the place of a voxel's centre, in voxels of that level.

    Precomputed counts from corners, and the corners of all levels agree: the first voxel of a level `factors` times
    coarser has its centre (factors - 1) / 2 fine voxels beyond that of the finest.

    Examples
    --------
    >>> from_corner((0, 5, 5), (1, 2, 2))
    (0.0, 5.25, 5.25)
    """
    return tuple(c + 0.5 - 0.5 / f for c, f in zip(corner, factors, strict=True))


def to_corner(offset: Sequence[float], factors: Sequence[float]) -> tuple[float, ...]:
    """What `from_corner` was given.

    Examples
    --------
    >>> to_corner((0.0, 5.25, 5.25), (1, 2, 2))
    (0.0, 5.0, 5.0)
    """
    return tuple(o - 0.5 + 0.5 / f for o, f in zip(offset, factors, strict=True))
