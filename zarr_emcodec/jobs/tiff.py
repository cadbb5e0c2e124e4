"""Boxes of voxels from TIFF and OME-TIFF stacks, one page at a time.

A path in, a `Stack` out. The file is never loaded whole: uncompressed series are mapped, pages of others are decoded
when asked for, and the last ones are kept, since neighbouring boxes share them.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from zarr_emcodec.errors import SpecError
from zarr_emcodec.jobs.ome import to_nm

if TYPE_CHECKING:
    from zarr_emcodec._types import Chunk, Shape
    from zarr_emcodec.jobs.grid import Box

_KEPT_BYTES = 1 << 28


class Stack:
    """The first series of a TIFF file, with axes of length 1 before (y, x) dropped.

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

    def __init__(self, location: str) -> None:
        self._file = tifffile.TiffFile(location)
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
            self._mapped = tifffile.memmap(location, mode="r", series=0)
        self._kept: OrderedDict[int, Chunk] = OrderedDict()
        self._lock = Lock()

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
            pages[i] = self._page(number)[box[-2:]]
        return out

    def _page(self, number: int) -> Chunk:
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
            page = self._series.pages[number]
            # OME files may leave pages out; their voxels are zero
            values = np.zeros(self.shape[-2:], self.dtype) if page is None else page.asarray()
            values = values.reshape(self.shape[-2:])
            room = max(1, _KEPT_BYTES // max(1, values.nbytes))
            while len(self._kept) >= room:
                self._kept.popitem(last=False)
            self._kept[number] = values
            return values

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
