"""What a user marks, as chunks: a box, boxes, a mask or points in, one boolean for each cell of the chunk grid out.

Coordinates are voxels of the array at hand. What is outside the array, or of another shape, is refused here.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from zarr_emcodec.errors import SpecError
from zarr_emcodec.jobs.grid import grid_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from zarr_emcodec._types import Shape
    from zarr_emcodec.jobs.grid import Box

Factor: TypeAlias = "int | Sequence[int]"
_POINTS = 1 << 15  # points marked at once: bounds the memory of their candidate cells


def cells_of(
    roi: Any,
    shape: Shape,
    chunks: Shape,
    *,
    radius: float | Sequence[float] | None = None,
    factor: Factor | None = None,
) -> NDArray[np.bool_]:
    """Mark the chunks that a region touches.

    Parameters
    ----------
    roi : box, boxes, mask or points
        A box is a tuple of slices (or integers, or ``...``) as in indexing; boxes are a list of such, or anything with
        ``.boxes``. A mask is a boolean array, NumPy's or Zarr's, of the array's shape or coarser by `factor`. Points
        are numbers of shape (n, ndim), voxels.
    shape, chunks : tuple of int, voxels
        Of the array; of one chunk.
    radius : float or one per axis, voxels, optional
        Around points: chunks that hold a voxel no farther away are marked. 0 when not given.
    factor : int or one per axis, optional
        Voxels of the array per mask voxel.

    Returns
    -------
    ndarray, bool
        One entry for each cell of the chunk grid.

    Raises
    ------
    SpecError
        If the region is of none of these kinds, outside the array, or a mask of the wrong shape or dtype.

    Examples
    --------
    >>> cells_of((slice(0, 8), slice(60, 70)), (64, 128), (16, 64)).sum(axis=0)
    array([1, 1])
    """
    roi = as_region(roi)
    if not is_boxes(roi):
        return _of_array(roi, shape, chunks, radius, factor)
    for name, value in (("radius", radius), ("factor", factor)):
        if value is not None:
            raise SpecError(f"{name}={value!r}: a box has none. Leave it out.", name=name, value=value)
    cells = np.zeros(grid_shape(shape, chunks), np.bool_)
    for box in [roi] if _is_box(roi) else roi:
        parts = normal_box(box, shape)
        cells[tuple(slice(p.start // c, (p.stop - 1) // c + 1) for p, c in zip(parts, chunks, strict=True))] = True
    return cells


def normal_box(box: Any, shape: Shape) -> Box:
    """A box as one slice per axis, with start and stop inside the array.

    Raises
    ------
    SpecError
        If it is no box, empty, has a step, or reaches outside the array.

    Examples
    --------
    >>> normal_box((..., slice(2, None)), (4, 8))
    (slice(0, 4, None), slice(2, 8, None))
    """
    box = as_region(box)
    parts = list(box) if isinstance(box, tuple) else [box]
    if not _is_box(tuple(parts)):
        raise SpecError(f"box {box!r}: needs a slice per axis, as in array[0:16, 0:512, 0:512].", name="box", value=box)
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (len(shape) - len(parts) + 1)
    if len(parts) != len(shape):
        raise SpecError(f"box has {len(parts)} axes, the array {len(shape)}.", name="box", value=box)
    return tuple(_normal_part(part, extent, axis) for axis, (part, extent) in enumerate(zip(parts, shape, strict=True)))


def _is_box(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(p, slice | int | np.integer) or p is Ellipsis for p in value)


def as_region(roi: Any) -> Any:
    """Boxes of a proposal as a list; a lone slice or ``...`` as a box of the first axis, as in indexing."""
    if isinstance(roi, slice) or roi is Ellipsis:
        return (roi, ...) if isinstance(roi, slice) else (...,)
    return list(roi.boxes) if hasattr(roi, "boxes") else roi


def is_boxes(value: Any) -> bool:
    """Whether a region is one box, or a sequence of boxes; else it is a mask or points."""
    if isinstance(value, tuple) and value:
        return _is_box(value) or all(_is_box(box) for box in value)
    return isinstance(value, list) and all(_is_box(box) for box in value)


def _normal_part(part: slice | int, extent: int, axis: int) -> slice:
    if isinstance(part, slice):
        if part.step not in (None, 1):
            raise SpecError(f"box axis {axis}: a step of {part.step} is none that a box can have.", name="box")
        start = 0 if part.start is None else operator.index(part.start)
        stop = extent if part.stop is None else operator.index(part.stop)
    else:
        start, stop = operator.index(part), operator.index(part) + 1
    if not 0 <= start < stop <= extent:
        raise SpecError(
            f"box axis {axis}: {start}:{stop} is not inside the array, which has voxels 0:{extent} there.",
            name="box",
            value=(start, stop),
        )
    return slice(start, stop)


def _of_array(
    roi: Any, shape: Shape, chunks: Shape, radius: float | Sequence[float] | None, factor: Factor | None
) -> NDArray[np.bool_]:
    """A mask or points, told apart by dtype."""
    values = roi if hasattr(roi, "dtype") and hasattr(roi, "shape") else _as_array(roi)
    if values.dtype == np.bool_:
        if radius is not None:
            raise SpecError("radius: a mask has none; it is for points.", name="radius", value=radius)
        return _of_mask(values, shape, chunks, factor)
    if values.ndim == 2 and values.shape[1] == len(shape) and values.dtype.kind in "iuf":
        if factor is not None:
            raise SpecError("factor: points have none; it is for masks.", name="factor", value=factor)
        return _of_points(np.asarray(values, np.float64), shape, chunks, radius)
    raise SpecError(
        f"roi of {values.dtype} {values.shape}: a mask is boolean (labels > 0 makes one), points are numbers of shape "
        f"(n, {len(shape)}), a box is a tuple of slices.",
        name="roi",
        value=values.shape,
    )


def _as_array(roi: Any) -> NDArray[Any]:
    try:
        return np.asarray(roi)
    except (TypeError, ValueError) as error:
        raise SpecError(f"roi {type(roi).__name__}: not a box, boxes, a mask or points.", name="roi") from error


def per_axis(value: Any, ndim: int, name: str, least: float) -> tuple[float, ...]:
    """One number for each axis, from one or as many.

    Raises
    ------
    SpecError
        If there are others, or one is below `least`.
    """
    numbers = [value] * ndim if isinstance(value, int | float | np.number) else list(value)
    if len(numbers) != ndim or not all(isinstance(n, int | float | np.number) and least <= n < np.inf for n in numbers):
        raise SpecError(
            f"{name} {value!r}: needs a number of at least {least:g}, or {ndim} of them.", name=name, value=value
        )
    return tuple(float(n) for n in numbers)


def _of_mask(mask: Any, shape: Shape, chunks: Shape, factor: Factor | None) -> NDArray[np.bool_]:
    """Cells with a true voxel, one row of cells at a time, so that a mask in a store is never held whole."""
    steps = [int(f) for f in per_axis(1 if factor is None else factor, len(shape), "factor", 1)]
    expected = grid_shape(shape, tuple(steps))
    if tuple(mask.shape) != expected:
        hint = "" if factor is not None else " Pass factor= with a mask that is coarser."
        raise SpecError(
            f"mask has shape {tuple(mask.shape)}, the array's is {shape}: expected {expected}.{hint}",
            name="mask",
            value=tuple(mask.shape),
        )
    counts = grid_shape(shape, chunks)
    spans = [
        [(i * c // f, -(-min((i + 1) * c, n) // f)) for i in range(count)]
        for count, c, f, n in zip(counts, chunks, steps, shape, strict=True)
    ]
    cells = np.empty(counts, np.bool_)
    for i, (start, stop) in enumerate(spans[0]):
        row = np.asarray(np.asarray(mask[start:stop]).any(axis=0))
        for axis, span in enumerate(spans[1:]):
            row = _any_in(row, span, axis)
        cells[i] = row
    return cells


def _any_in(values: NDArray[np.bool_], spans: list[tuple[int, int]], axis: int) -> NDArray[np.bool_]:
    """Whether any entry of each span is true; spans may overlap, as a coarse voxel may lie in two chunks."""
    counted = np.cumsum(values, axis=axis, dtype=np.int32)
    counted = np.concatenate([np.zeros_like(counted.take([0], axis)), counted], axis)
    first, last = np.array(spans).T
    return np.asarray(counted.take(last, axis) > counted.take(first, axis))


def _of_points(
    points: NDArray[np.float64], shape: Shape, chunks: Shape, radius: float | Sequence[float] | None
) -> NDArray[np.bool_]:
    """Cells that an ellipsoid around a point reaches; voxel centres lie at whole numbers."""
    reach = np.array(per_axis(0 if radius is None else radius, len(shape), "radius", 0))
    inside = ((points >= 0) & (points <= np.array(shape) - 1)).all(axis=1)
    if not inside.all():
        first = int(np.argmin(inside))
        raise SpecError(
            f"point {first}, {points[first].tolist()}: outside the array of shape {shape}.", name="points", value=first
        )
    cells = np.zeros(grid_shape(shape, chunks), np.bool_)
    for i in range(0, len(points), _POINTS):
        _mark_points(cells, points[i : i + _POINTS], reach, np.array(shape), np.array(chunks))
    return cells


def _mark_points(
    cells: NDArray[np.bool_],
    points: NDArray[np.float64],
    reach: NDArray[np.float64],
    shape: NDArray[np.int64],
    chunks: NDArray[np.int64],
) -> None:
    low = np.clip(np.ceil(points - reach), 0, None).astype(np.int64) // chunks
    high = np.minimum(np.floor(points + reach), shape - 1).astype(np.int64) // chunks
    low = np.minimum(low, points.astype(np.int64) // chunks)  # between two voxels: the one before it counts
    high = np.maximum(high, low)
    scale = np.where(reach > 0, reach, 1.0)
    # every cell of the largest neighbourhood, one offset at a time: few offsets, many points
    for offset in itertools.product(*(range(int(n)) for n in (high - low).max(axis=0) + 1)):
        cell = low + np.array(offset)
        start, stop = cell * chunks, np.minimum((cell + 1) * chunks, shape) - 1
        away = np.maximum(np.maximum(start - points, np.floor(points) - stop), 0.0)
        near = (cell <= high).all(axis=1) & ((np.where(away > 0, away / scale, 0.0) ** 2).sum(axis=1) <= 1)
        cells[tuple(cell[near].T)] = True


def indices_of(cells: NDArray[np.bool_]) -> Iterable[Shape]:
    """The marked chunk indices in C order."""
    return (tuple(int(i) for i in index) for index in np.argwhere(cells))
