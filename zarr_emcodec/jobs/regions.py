"""Where a job treats a volume differently: regions with a codec of their own, and background that holds no tissue.

What a user says (a mask volume, boxes, a function's name, thresholds) in; plain data out, hashed with the plan. From
those, on any machine, the same answer for the same box: does a region touch it, which of its voxels are tissue.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from zarr_emcodec.errors import JobError, MissingExtraError, PlanMismatchError, SpecError
from zarr_emcodec.jobs.grid import Box

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from zarr_emcodec._types import Shape

Where: TypeAlias = str | os.PathLike[str] | Sequence[Any]
"""A mask volume's path, boxes as slices or (start, stop) pairs, or a function as "module:function"."""
_MAX_MASK_VOXELS = 2**28  # workers hold a mask whole, one byte a voxel
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Area(Protocol):
    """What a region's or a tissue's plain data stand for."""

    def touches(self, box: Box) -> bool:
        """Whether any voxel of a box lies in it."""

    def inside(self, box: Box) -> NDArray[np.bool_]:
        """Which voxels of a box lie in it."""


@dataclass(frozen=True, eq=False)
class Mask:
    """A boolean volume, as fine as the array or coarser by a whole factor along each axis.

    Parameters
    ----------
    cells : ndarray of bool
    scale : tuple of int
        Voxels of the array per cell; cells at the far edges reach as far as the array does.
    """

    cells: NDArray[np.bool_]
    scale: Shape

    def touches(self, box: Box) -> bool:
        """Whether any voxel of a box is marked."""
        spans = (
            slice(min(part.start // f, n - 1), max(min(-(-part.stop // f), n), 1))
            for part, f, n in zip(box, self.scale, self.cells.shape, strict=True)
        )
        return bool(self.cells[tuple(spans)].any())

    def inside(self, box: Box) -> NDArray[np.bool_]:
        """Which voxels of a box are marked."""
        index = (
            np.minimum(np.arange(part.start, part.stop) // f, n - 1)
            for part, f, n in zip(box, self.scale, self.cells.shape, strict=True)
        )
        return np.asarray(self.cells[np.ix_(*index)])


@dataclass(frozen=True)
class Boxes:
    """Boxes of voxels, counted from the array's first."""

    boxes: tuple[Box, ...]

    def touches(self, box: Box) -> bool:
        """Whether any voxel of a box lies in one of them."""
        return any(_overlap(box, mine) is not None for mine in self.boxes)

    def inside(self, box: Box) -> NDArray[np.bool_]:
        """Which voxels of a box lie in one of them."""
        found = np.zeros([part.stop - part.start for part in box], np.bool_)
        for mine in self.boxes:
            if (shared := _overlap(box, mine)) is not None:
                found[tuple(slice(s.start - b.start, s.stop - b.start) for s, b in zip(shared, box, strict=True))] = 1
        return found


@dataclass(frozen=True)
class Function:
    """A user's function: a box as a tuple of slices in, whether the region takes it out."""

    name: str
    call: Callable[[Box], Any]

    def touches(self, box: Box) -> bool:
        """What the function says of a box."""
        return bool(self.call(box))

    def inside(self, box: Box) -> NDArray[np.bool_]:
        """All of a box that the function takes, or none of it."""
        return np.full([part.stop - part.start for part in box], self.touches(box))


def describe_area(where: Where, shape: Shape) -> dict[str, Any]:
    """An area as plain data.

    Parameters
    ----------
    where : path, "module:function" or sequence of boxes
        A mask volume (.npy, TIFF, Zarr; what is not 0 is marked) of the array's shape, or coarser by a whole factor
        along each axis. Or boxes, in voxels from the array's first. Or a function that can be imported wherever the
        job runs, takes a block's box as a tuple of slices, and gives the same answer every time.
    shape : tuple of int, voxels
        Of the array.

    Returns
    -------
    dict
        "kind", and what identifies it: the contents' SHA-256 of a mask, the source text's of a function.

    Raises
    ------
    SpecError
        If it does not fit the array, or is nothing of the kind.
    JobError
        If a mask cannot be read.
    """
    if isinstance(where, str) and _FUNCTION.fullmatch(where):
        return {"kind": "function", "name": where, "sha256": _digest_of_function(_import(where))}
    if isinstance(where, str | os.PathLike):
        location = os.fspath(where)
        cells = _read_mask(location)
        _scale(cells.shape, shape, location)
        if "://" not in location:
            location = str(Path(location).absolute())  # workers may have been started elsewhere
        return {"kind": "mask", "location": location, "cells": list(cells.shape), "sha256": _digest_of_mask(cells)}
    return {"kind": "boxes", "boxes": [_box(box, shape) for box in _several(where)]}


def open_area(described: Mapping[str, Any], shape: Shape) -> Area:
    """What plain data of `describe_area` stand for; opened once in a process.

    Raises
    ------
    PlanMismatchError
        If a mask or a function is no longer what it was when it was described.
    """
    return _open_area(json.dumps(described, sort_keys=True), tuple(shape))


@lru_cache(maxsize=16)
def _open_area(text: str, shape: Shape) -> Area:
    described = json.loads(text)
    if described["kind"] == "boxes":
        return Boxes(tuple(tuple(slice(*pair) for pair in box) for box in described["boxes"]))
    if described["kind"] == "function":
        function = _import(described["name"])
        _check_same(f"function {described['name']}", described["sha256"], _digest_of_function(function))
        return Function(described["name"], function)
    cells = _read_mask(described["location"])
    _check_same(f"mask {described['location']}", described["sha256"], _digest_of_mask(cells))
    return Mask(cells, _scale(cells.shape, shape, described["location"]))


def identity(described: Mapping[str, Any]) -> dict[str, Any]:
    """What of an area's plain data decides the output: a mask's contents, not where it lies."""
    return {key: value for key, value in described.items() if key != "location"}


def mask_bytes(described: Iterable[Mapping[str, Any] | None]) -> int:
    """Bytes that the masks among areas take in memory."""
    return sum(math.prod(area["cells"]) for area in described if area is not None and area["kind"] == "mask")


def _check_same(what: str, expected: str, found: str) -> None:
    if expected != found:
        raise PlanMismatchError(f"{what} has changed since the plan was made. Put it back, or make a new plan.")


def _overlap(a: Box, b: Box) -> Box | None:
    shared = tuple(slice(max(p.start, q.start), min(p.stop, q.stop)) for p, q in zip(a, b, strict=True))
    return shared if all(part.start < part.stop for part in shared) else None


def _several(where: Sequence[Any]) -> Sequence[Any]:
    """Boxes, where one box of slices may stand for itself."""
    return [where] if len(where) and all(isinstance(part, slice) for part in where) else where


def _box(box: Any, shape: Shape) -> list[list[int]]:
    """A box as pairs, checked against the array and cut at its ends."""
    try:
        pairs = [(part.start, part.stop) if isinstance(part, slice) else tuple(part) for part in box]
        ends = [
            (int(start or 0), n if stop is None else int(stop)) for (start, stop), n in zip(pairs, shape, strict=True)
        ]
    except (TypeError, ValueError):
        raise SpecError(
            f"box {box!r:.120}: needs a slice or a (start, stop) pair for each of {len(shape)} axes.",
            name="regions",
            value=box,
        ) from None
    if not all(0 <= start < min(stop, n) for (start, stop), n in zip(ends, shape, strict=True)):
        raise SpecError(f"box {ends}: lies outside the array {shape}, or is empty.", name="regions", value=box)
    return [[start, min(stop, n)] for (start, stop), n in zip(ends, shape, strict=True)]


def _scale(cells: Shape, shape: Shape, location: str) -> Shape:
    """Voxels per cell; a mask may be up to one cell longer or shorter than the array."""
    if len(cells) == len(shape) and 0 not in cells:
        scale = tuple(max(1, round(n / m)) for n, m in zip(shape, cells, strict=True))
        if all(abs(f * m - n) < f for f, m, n in zip(scale, cells, shape, strict=True)):
            return scale
    raise SpecError(
        f"mask {location}: its shape {cells} is not that of the array {shape}, nor that divided by whole factors. "
        "Resample it.",
        name="mask",
        value=cells,
    )


def _read_mask(location: str) -> NDArray[np.bool_]:
    """All of a mask volume, as booleans."""
    lower = location.lower()
    try:
        if lower.endswith(".npy"):
            values: Any = np.load(location, mmap_mode="r", allow_pickle=False)
        elif lower.endswith((".tif", ".tiff")):
            values = _read_tiff(location)
        else:
            from zarr_emcodec.jobs import ome

            values = ome.pick_array(location)[0]
    except (OSError, ValueError) as error:
        if isinstance(error, SpecError):
            raise
        raise JobError(f"mask {location}: cannot be read: {error}") from error
    if math.prod(values.shape) > _MAX_MASK_VOXELS:
        raise SpecError(
            f"mask {location}: {math.prod(values.shape)} voxels, at most {_MAX_MASK_VOXELS} are held in memory. "
            "Give a coarser one: any whole factor along each axis will do.",
            name="mask",
            value=values.shape,
        )
    return np.asarray(values[...]).astype(np.bool_)


def _read_tiff(location: str) -> Any:
    try:
        import tifffile
    except ImportError as error:
        raise MissingExtraError("reading TIFF", extra="sources") from error
    if not Path(location).is_file():
        raise JobError(f"mask {location}: no such file.")
    return tifffile.imread(location)


def _digest_of_mask(cells: NDArray[np.bool_]) -> str:
    return hashlib.sha256(json.dumps(cells.shape).encode() + np.packbits(cells).tobytes()).hexdigest()


def _import(name: str) -> Callable[[Box], Any]:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise SpecError(
            f"function {name}: cannot be imported ({error}). It has to be, here and on every worker.",
            name="regions",
            value=name,
        ) from error
    if not callable(found):
        raise SpecError(f"function {name}: is a {type(found).__name__}, not a function.", name="regions", value=name)
    return found  # type: ignore[no-any-return]


def _digest_of_function(function: Callable[..., Any]) -> str:
    """Of the text of its whole module, since it may call what stands beside it."""
    try:
        text = inspect.getsource(inspect.getmodule(function) or function)
    except (OSError, TypeError) as error:
        raise SpecError(
            f"function {function!r}: has no source text to tell whether it has changed. Write it in Python.",
            name="regions",
            value=function,
        ) from error
    return hashlib.sha256(text.encode()).hexdigest()
