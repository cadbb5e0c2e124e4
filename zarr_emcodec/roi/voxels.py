"""What a user marks, as voxels of one box: for whoever stores some blocks of a chunk more richly than others.

A region that `cells_of` has accepted, and a box inside the array, in; a boolean for each voxel of the box out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.roi.region import Factor, as_region, is_boxes, normal_box, per_axis

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from zarr_emcodec._types import Shape
    from zarr_emcodec.jobs.grid import Box


def voxels_of(
    roi: Any,
    box: Box,
    shape: Shape,
    *,
    radius: float | Sequence[float] | None = None,
    factor: Factor | None = None,
) -> NDArray[np.bool_]:
    """Mark the voxels of a box that a region holds.

    Parameters
    ----------
    roi, radius, factor
        As for `zarr_emcodec.roi.region.cells_of`, which has checked them.
    box : tuple of slices, voxels
        With start and stop inside the array.
    shape : tuple of int, voxels
        Of the array.

    Returns
    -------
    ndarray, bool
        Of the box's shape.

    Examples
    --------
    >>> voxels_of([[4, 4]], (slice(3, 6), slice(0, 5)), (9, 9), radius=1).astype(int)
    array([[0, 0, 0, 0, 1],
           [0, 0, 0, 1, 1],
           [0, 0, 0, 0, 1]])
    """
    roi = as_region(roi)
    if is_boxes(roi):
        return _in_boxes(roi if isinstance(roi, list) or isinstance(roi[0], tuple) else [roi], box, shape)
    values = roi if hasattr(roi, "dtype") else np.asarray(roi)
    if values.dtype == np.bool_:
        return _in_mask(values, box, [int(f) for f in per_axis(1 if factor is None else factor, len(box), "factor", 1)])
    return _near_points(values, box, np.array(per_axis(0 if radius is None else radius, len(box), "radius", 0)))


def _in_boxes(boxes: Sequence[Any], box: Box, shape: Shape) -> NDArray[np.bool_]:
    out = np.zeros([part.stop - part.start for part in box], np.bool_)
    for marked in boxes:
        parts = zip(normal_box(marked, shape), box, strict=True)
        out[tuple(slice(max(0, m.start - b.start), max(0, m.stop - b.start)) for m, b in parts)] = True
    return out


def _in_mask(mask: Any, box: Box, factor: list[int]) -> NDArray[np.bool_]:
    covered = [(part.start // f, -(-part.stop // f)) for part, f in zip(box, factor, strict=True)]
    piece = np.asarray(mask[tuple(slice(*span) for span in covered)])
    places = [
        np.arange(part.start, part.stop) // f - span[0] for part, f, span in zip(box, factor, covered, strict=True)
    ]
    return np.asarray(piece[np.ix_(*places)])


def _near_points(points: Any, box: Box, reach: NDArray[np.float64]) -> NDArray[np.bool_]:
    out = np.zeros([part.stop - part.start for part in box], np.bool_)
    low, high = (np.array([getattr(part, end) for part in box]) for end in ("start", "stop"))
    near = ((points > low - 1 - reach) & (points < high + reach)).all(axis=1)
    scale = np.where(reach > 0, reach, 1.0)
    for point in np.asarray(points)[near]:  # few: those around one box
        # a point between two voxels is at the one before it, and around it where there is a radius
        centre = np.where(reach > 0, point, np.floor(point))
        lines = [(np.arange(p.start, p.stop) - c) / s for p, c, s in zip(box, centre, scale, strict=True)]
        for i, r in enumerate(reach):
            if r == 0:
                lines[i] = np.where(lines[i] == 0, 0, np.inf)
        squares = np.ix_(*(line**2 for line in lines))
        out |= sum(squares[1:], squares[0]) <= 1
        at = np.floor(point).astype(int) - low
        if ((at >= 0) & (at < high - low)).all():
            out[tuple(at)] = True
    return out
