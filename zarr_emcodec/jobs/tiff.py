"""Boxes of voxels from TIFF and OME-TIFF stacks, one page at a time.

A file in, a `Stack` out; many files of one section each in, `Sections` out. No file is loaded whole: uncompressed
series are mapped, pages of others are decoded when asked for, and the last ones are kept, since neighbouring boxes
share them.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from zarr_emcodec.errors import SpecError
from zarr_emcodec.jobs.scales import to_nm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from zarr_emcodec._types import Chunk, Shape
    from zarr_emcodec.jobs.grid import Box

KEPT_BYTES = 1 << 28
"""Decoded pages kept, at most (one page, where that is larger)."""


class _Pages:
    """Decoded pages, the last ones kept."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, Chunk] = OrderedDict()
        self._lock = Lock()

    def get(self, number: int, decode: Callable[[int], Chunk]) -> Chunk:
        with self._lock:  # one thread decodes at a time: the file has one position
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
            values = decode(number)
            room = max(1, KEPT_BYTES // max(1, values.nbytes))
            while len(self._kept) >= room:
                self._kept.popitem(last=False)
            self._kept[number] = values
            return values


class Stack:
    """The first series of a TIFF file, with axes of length 1 before (y, x) dropped.

    Parameters
    ----------
    file : str or file object
        Path, or bytes that can be sought in.
    location : str
        For messages.

    Attributes
    ----------
    shape : tuple of int, voxels
    dtype : numpy.dtype
        As stored, byte order included.
    voxel_nm : tuple of float or None
        (z, y, x) or (y, x), from OME or ImageJ metadata.
    note : str
        What was left aside.

    Raises
    ------
    SpecError
        If the file holds colour images.
    """

    def __init__(self, file: Any, location: str) -> None:
        self._file = tifffile.TiffFile(file)
        try:
            self._series = self._file.series[0]
            self._check_colour(location)
        except BaseException:
            self.close()
            raise
        self.shape: Shape = tuple(int(n) for n in self._series.shape)
        self.dtype: np.dtype[Any] = np.dtype(self._series.dtype)
        self.voxel_nm = _voxel_nm(self._file, min(3, len(self.shape)))
        self.note = self._note()
        self._mapped: Chunk | None = None
        if self._series.dataoffset is not None and self._series.size:
            self._mapped = self._map(file)
        self._pages = _Pages()

    @property
    def nbytes(self) -> int:
        """Raw size: voxels x itemsize."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_mapped(self) -> bool:
        """Whether voxels lie in the file as they are, so that nothing is kept."""
        return self._mapped is not None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, box: Box) -> Chunk:
        """The voxels of a box, decoding the pages that it touches."""
        if self._mapped is not None:
            return self._mapped.reshape(self.shape)[box]
        leading = [range(part.start, part.stop) for part in box[:-2]]
        out = np.empty([part.stop - part.start for part in box], self.dtype)
        pages = out.reshape(-1, *out.shape[-2:])
        for i, index in enumerate(itertools.product(*leading)):
            number = int(np.ravel_multi_index(index, self.shape[:-2])) if index else 0
            pages[i] = self._pages.get(number, self._decode)[box[-2:]]
        return out

    def _map(self, file: Any) -> Chunk | None:
        if not isinstance(file, str):
            return None
        try:
            return tifffile.memmap(file, mode="r", series=0)  # type: ignore[no-any-return]
        except BaseException:
            self.close()
            raise

    def _decode(self, number: int) -> Chunk:
        page = self._series.pages[number]
        # OME files may leave pages out; their voxels are zero
        values = np.zeros(self.shape[-2:], self.dtype) if page is None else page.asarray()
        return values.reshape(self.shape[-2:])

    def _check_colour(self, location: str) -> None:
        page = self._series.keyframe
        if page.samplesperpixel > 1 or "S" in self._series.axes:
            raise SpecError(
                f"{location}: holds colour images ({page.samplesperpixel} samples per pixel). "
                "Electron microscopy is grey: convert it, or split the channels.",
                name="source",
                value=location,
            )
        pages = math.prod(self._series.shape[:-2])
        if pages != len(self._series.pages) and self._series.dataoffset is None:
            raise SpecError(
                f"{location}: {len(self._series.pages)} pages for axes {self._series.axes} of shape "
                f"{self._series.shape}; one page per section is needed.",
                name="source",
                value=location,
            )

    def _note(self) -> str:
        others = len(self._file.series) - 1
        return f"took the first of {others + 1} image series" if others else ""


class Sections:
    """Files of one section each, stacked along z in the order of the numbers in their names.

    Parameters
    ----------
    location : str
        For messages.
    files : sequence of Path
        At least one.

    Attributes
    ----------
    files : tuple of Path
        In z order.
    shape : tuple of int, voxels
    dtype : numpy.dtype

    Raises
    ------
    SpecError
        If the first file holds anything but one grey section.
    """

    def __init__(self, location: str, files: Sequence[Path]) -> None:
        self.files = tuple(sorted(files, key=_natural))
        first = Stack(str(self.files[0]), location)
        first.close()
        if len(first.shape) != 2:
            raise SpecError(
                f"{location}: {self.files[0].name} holds {first.shape}, not one section. Name one file of the folder.",
                name="source",
                value=location,
            )
        self.shape: Shape = (len(self.files), *first.shape)
        self.dtype = first.dtype
        self._pages = _Pages()

    @property
    def nbytes(self) -> int:
        """Raw size: voxels x itemsize."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, box: Box) -> Chunk:
        """The voxels of a box, decoding the files that it touches."""
        return np.stack([self._pages.get(z, self._decode)[box[1:]] for z in range(box[0].start, box[0].stop)])

    def _decode(self, number: int) -> Chunk:
        path = self.files[number]
        stack = Stack(str(path), str(path))
        try:
            if (stack.shape, stack.dtype) != (self.shape[1:], self.dtype):
                raise ValueError(
                    f"{path.name} is {stack.dtype} {stack.shape}, the first section is {self.dtype} {self.shape[1:]}"
                )
            return stack.read(tuple(slice(0, n) for n in stack.shape))
        finally:
            stack.close()


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """A key that puts section_9 before section_10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", path.name)]


def _voxel_nm(file: tifffile.TiffFile, ndim: int) -> tuple[float, ...] | None:
    """Voxel size along the last axes, or None unless all of them are stated."""
    sizes: list[float | None] = []
    if file.is_ome:
        sizes = _ome_sizes(file.ome_metadata)
    elif file.is_imagej:
        sizes = _imagej_sizes(file)
    known = tuple(size for size in sizes[-ndim:] if size is not None)
    return known if len(known) == ndim else None


def _ome_sizes(text: str) -> list[float | None]:
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return []
    pixels = next((node for node in root.iter() if node.tag.endswith("}Pixels")), None)
    if pixels is None:
        return []
    return [_ome_size(pixels.get(f"PhysicalSize{a}"), pixels.get(f"PhysicalSize{a}Unit", "µm")) for a in "ZYX"]


def _ome_size(value: str | None, unit: str) -> float | None:
    try:
        return None if value is None else to_nm(float(value), unit)
    except ValueError:
        return None


def _imagej_sizes(file: tifffile.TiffFile) -> list[float | None]:
    facts, tags = file.imagej_metadata or {}, file.pages[0].tags
    unit = facts.get("unit")
    sizes: list[float | None] = [to_nm(float(facts.get("spacing", 0)), unit)]
    for name in ("YResolution", "XResolution"):
        over, under = tags[name].value if name in tags else (0, 1)
        sizes.append(to_nm(under / over, unit) if over else None)
    return sizes
