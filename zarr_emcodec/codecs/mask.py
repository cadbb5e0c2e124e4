"""Background that is exact and nearly free: where a chunk holds no tissue, and what to code instead.

A chunk in, a `Background` out: one value, and either a box that holds all tissue (an edge chunk padded with the fill
value, the border of a mosaic) or a bitmap (holes, ragged borders). The bytes of both stand in FORMAT.md, "Masks".
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec._types import Buffer, Chunk, Shape
from zarr_emcodec.errors import FrameError, UnsupportedFrameError
from zarr_emcodec.frame.wire import Cursor, varint

Box = tuple[slice, ...]


class MaskMode(IntEnum):
    """How the mask section says where tissue is."""

    BOX = 0
    BITMAP = 1


@dataclass(frozen=True)
class Background:
    """Where a chunk is background.

    Attributes
    ----------
    value : ndarray, shape ()
        The voxel value outside tissue, native byte order.
    box : tuple of slice
        The smallest box that holds all tissue.
    tissue : ndarray of bool or None
        Which voxels of the box are tissue; None where all are.
    """

    value: Chunk
    box: Box
    tissue: NDArray[np.bool_] | None

    @property
    def shape(self) -> Shape:
        """Extent of the box in voxels."""
        return tuple(s.stop - s.start for s in self.box)

    def tissue_of(self, chunk: Chunk) -> Chunk:
        """The voxels of a chunk that are not background: the box, or a flat array where there is a bitmap."""
        inner = chunk[self.box]
        return inner if self.tissue is None else inner[self.tissue]


def find_background(chunk: Chunk, value: float | None, *, ratio: float) -> Background | None:
    """Background worth treating apart, or None.

    Faces of the chunk that hold one value throughout are background whatever that value is: real micrographs have no
    such faces, chunks padded to the grid do. Inside the remaining box, voxels of `value` are background if the bitmap
    costs no more than its share of the budget.

    Parameters
    ----------
    chunk : ndarray, at least 1-D, native byte order
        Not constant.
    value : float or None
        Background value inside the box; None: look at the faces only.
    ratio : float
        The compression ratio that the chunk is to reach: it says what a masked voxel may cost.
    """
    corner = chunk[(-1,) * chunk.ndim]
    box = _tissue_box(chunk, corner)
    if _covers(box, chunk.shape):
        corner = chunk[(0,) * chunk.ndim]
        box = _tissue_box(chunk, corner)
    holes = value is not None and (_covers(box, chunk.shape) or corner == value)
    if value is not None and holes and _is_representable(value, chunk.dtype):
        wanted = np.asarray(value).astype(chunk.dtype)
        tissue = chunk[box] != wanted
        masked = tissue.size - int(np.count_nonzero(tissue))
        if tissue.size > masked >= tissue.size / 32:
            cost = len(_pack_bitmap(tissue))
            if cost <= masked * chunk.dtype.itemsize / ratio:
                return Background(np.asarray(wanted), box, tissue)
    return None if _covers(box, chunk.shape) else Background(np.asarray(corner), box, None)


def _is_representable(value: float, dtype: np.dtype[np.generic]) -> bool:
    if dtype.kind == "f":
        return abs(value) <= float(np.finfo(dtype).max) and float(np.float32(value)) == value  # type: ignore[type-var]
    info = np.iinfo(dtype)  # type: ignore[type-var]
    return info.min <= value <= info.max and value == int(value)


def _equal(array: Chunk, value: np.generic) -> NDArray[np.bool_]:
    # arrays of floats are often padded with NaN, which is not equal to itself
    return np.asarray(np.isnan(array) if value != value else array == value)


def _covers(box: Box, shape: Shape) -> bool:
    return all(s.stop - s.start == n for s, n in zip(box, shape, strict=True))


def _tissue_box(chunk: Chunk, value: np.generic) -> Box:
    """Bounding box of the voxels that differ from `value`; faces are looked at before the whole chunk is."""
    whole = tuple(slice(0, n) for n in chunk.shape)
    if np.isinf(value):  # padding may be NaN; infinities are somebody's mistake, and refused later
        return whole
    faces = (chunk.take(end, axis=axis) for axis in range(chunk.ndim) for end in (0, -1))
    if not any(bool(_equal(face, value).all()) for face in faces):
        return whole
    other = ~_equal(chunk, value)
    if not other.any():  # zeros of both signs: not one value by its bits, but by comparison
        return whole
    box = []
    for axis in range(chunk.ndim):
        used = np.flatnonzero(other.any(axis=tuple(i for i in range(chunk.ndim) if i != axis)))
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)


def fill_background(chunk: Chunk, background: Background) -> Chunk:
    """The tissue box with its background painted over, so that no step to it costs bits.

    Each background voxel takes the value of the nearest tissue before it in its row (behind it, at a row's start); rows
    without tissue take the mean of the tissue.
    """
    inner = chunk[background.box]
    if background.tissue is None:
        return inner
    tissue = background.tissue
    columns = np.broadcast_to(np.arange(inner.shape[-1]), inner.shape)
    before = np.maximum.accumulate(np.where(tissue, columns, -1), axis=-1)
    behind = np.minimum.accumulate(np.where(tissue, columns, inner.shape[-1])[..., ::-1], axis=-1)[..., ::-1]
    source = np.where(before >= 0, before, behind)
    empty = source == inner.shape[-1]
    filled = np.take_along_axis(inner, np.where(empty, 0, source), axis=-1)
    filled[empty] = inner[tissue].mean().astype(inner.dtype)
    return filled


def restore(inner: Chunk, background: Background, shape: Shape) -> Chunk:
    """The whole chunk: background exact, tissue from the decoded box."""
    if background.tissue is not None:
        inner = np.where(background.tissue, inner, background.value)
    out = np.full(shape, background.value, inner.dtype)
    out[background.box] = inner
    return out


def pack_mask(background: Background) -> bytes:
    """The mask section: value, mode, box and, for a bitmap, its zlib data."""
    value = background.value.astype(background.value.dtype.newbyteorder("<")).tobytes()
    mode = MaskMode.BOX if background.tissue is None else MaskMode.BITMAP
    ends = b"".join(varint(s.start) + varint(s.stop) for s in background.box)
    bitmap = b"" if background.tissue is None else _pack_bitmap(background.tissue)
    return value + bytes([mode]) + ends + bitmap


def unpack_mask(data: Buffer, shape: Shape, dtype: np.dtype[np.generic]) -> Background:
    """Inverse of `pack_mask` for a chunk of this shape and dtype.

    Raises
    ------
    FrameError
        If the section is too short, names an unknown mode or a box outside the chunk, or holds another bitmap's size.
    """
    if not shape:
        raise FrameError("mask section: a chunk without axes has no tissue to tell from background.", field="mask")
    cursor = Cursor(memoryview(data))
    value = np.frombuffer(cursor.take(dtype.itemsize, "mask"), dtype.newbyteorder("<"))[0].astype(dtype)
    mode = cursor.take(1, "mask")[0]
    if mode not in tuple(MaskMode):
        raise UnsupportedFrameError(f"mask mode {mode}: this reader knows 0 and 1. Upgrade zarr_emcodec to read it.")
    box = []
    for extent in shape:
        start, stop = cursor.take_varint("mask"), cursor.take_varint("mask")
        if not start < stop <= extent:
            raise FrameError(f"mask section: box {start}:{stop} in an axis of {extent} voxels.", field="mask")
        box.append(slice(start, stop))
    background = Background(np.asarray(value), tuple(box), None)
    rest = cursor.view[cursor.offset :]
    if mode == MaskMode.BITMAP:
        return Background(background.value, background.box, _unpack_bitmap(rest, background.shape))
    if len(rest):
        raise FrameError(f"mask section: {len(rest)} bytes after the box.", field="mask")
    return background


def _pack_bitmap(tissue: NDArray[np.bool_]) -> bytes:
    # a row differs from the one above in few places: code the differences
    rows = tissue.reshape(-1, tissue.shape[-1])
    changes = rows.copy()
    changes[1:] ^= rows[:-1]
    return zlib.compress(np.packbits(changes.reshape(-1), bitorder="little").tobytes(), 9)


def _unpack_bitmap(data: memoryview, shape: Shape) -> NDArray[np.bool_]:
    count = int(np.prod(shape, dtype=np.int64))
    size = -(-count // 8)
    engine = zlib.decompressobj()
    try:
        raw = engine.decompress(data, size + 1)
    except zlib.error as error:
        raise FrameError(f"mask section is not zlib data: {error}.", field="mask") from error
    if len(raw) != size or not engine.eof or engine.unused_data:
        raise FrameError(f"mask section does not hold exactly {size} bytes of bitmap.", field="mask")
    bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
    if bits[count:].any():
        raise FrameError("mask section: padding bits are not zero.", field="mask")
    rows = bits[:count].reshape(-1, shape[-1])
    return np.bitwise_xor.accumulate(rows, axis=0).reshape(shape).astype(np.bool_)
