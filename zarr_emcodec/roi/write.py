"""Data written so that a region of them is stored richly and the rest cheaply: ROI-adaptive storage.

An array, data and a region in; the array's objects out, with bottom tokens only in blocks that the region touches. Zarr
alone cannot do this: it does not tell a codec where its chunk lies.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from zarr_emcodec import codecs
from zarr_emcodec.errors import JobError, SpecError
from zarr_emcodec.jobs.frames import ABSENT, Layout, shard_index_bytes
from zarr_emcodec.jobs.grid import box_of, chunk_indices, grid_shape, voxels
from zarr_emcodec.jobs.report import Record
from zarr_emcodec.roi.fetch import Frames, codec_of
from zarr_emcodec.roi.objects import check_writable
from zarr_emcodec.roi.region import Factor, cells_of
from zarr_emcodec.roi.voxels import voxels_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import zarr
    from numpy.typing import NDArray

    from zarr_emcodec._types import Chunk, Shape


@dataclass(frozen=True, kw_only=True)
class WriteReport(Record):
    """What `write_roi` stored.

    Parameters
    ----------
    array : str
    n_chunks : int
        Written; chunks of nothing but the fill value are not stored.
    in_roi : int
        Chunks of the array that the region touches.
    rho : float
        Share of the voxels that the region holds.
    raw_bytes, stored_bytes : int
        Of the data; of the objects written.
    seconds : float
    """

    array: str
    n_chunks: int
    in_roi: int
    rho: float
    raw_bytes: int
    stored_bytes: int
    seconds: float


def write_roi(
    array: zarr.Array[Any],
    data: Any,
    roi: Any,
    *,
    radius: float | Sequence[float] | None = None,
    factor: Factor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> WriteReport:
    """Fill an array, storing bottom tokens only where a region is.

    Parameters
    ----------
    array : zarr.Array
        Of a two-level codec (``VQVAECodec``), open for writing; what it holds is replaced.
    data : array_like
        Of the array's shape: NumPy's, Zarr's or anything that is indexed by slices. Read shard by shard, or chunk by
        chunk.
    roi : box, boxes, mask or points
        As for `upgrade_roi`: blocks of tokens that it touches can be decoded at tier "full", all others at "top" and
        "prior".
    radius, factor
        Of `roi`, as for `upgrade_roi`.
    progress : callable, optional
        Called with raw bytes written, and in all.

    Returns
    -------
    WriteReport

    Raises
    ------
    SpecError
        If the codec has no bottom tokens, the array is read-only, or shapes differ.
    JobError
        If the store fails.
    """
    started = time.perf_counter()
    check_writable(array)
    layout = Frames(array).layout
    if tuple(data.shape) != array.shape:
        raise SpecError(
            f"data of shape {tuple(data.shape)}: the array has {array.shape}.", name="data", value=tuple(data.shape)
        )
    cells = cells_of(roi, array.shape, array.chunks, radius=radius, factor=factor)
    marked = _Marked(roi, cells, layout, {"radius": radius, "factor": factor})
    unit = layout.shards or layout.chunks
    itemsize = np.dtype(array.dtype).itemsize
    done = stored = n_chunks = 0
    total = itemsize * int(np.prod(layout.shape, dtype=np.int64))
    for index in chunk_indices(layout.shape, unit):
        box = box_of(index, unit, layout.shape)
        frames = _encode(array, layout, np.asarray(data[box]), [part.start for part in box], marked)
        stored += _store(array, layout, index, frames)
        n_chunks += sum(frame is not None for frame in frames.values())
        done += itemsize * voxels(box)
        if progress is not None:
            progress(done, total)
    return WriteReport(
        array=str(array.store_path),
        n_chunks=n_chunks,
        in_roi=int(cells.sum()),
        rho=marked.n_voxels * itemsize / total,
        raw_bytes=total,
        stored_bytes=stored,
        seconds=time.perf_counter() - started,
    )


class _Marked:
    """The region, chunk by chunk; counts the voxels that it has handed out."""

    def __init__(self, roi: Any, cells: NDArray[np.bool_], layout: Layout, words: dict[str, Any]) -> None:
        self.roi, self.cells, self.layout, self.words = roi, cells, layout, words
        self.n_voxels = 0

    def mask(self, index: Shape) -> NDArray[np.bool_]:
        """Of a whole chunk, padding included."""
        mask = np.zeros(self.layout.chunks, np.bool_)
        if self.cells[index]:
            box = box_of(index, self.layout.chunks, self.layout.shape)
            inside = voxels_of(self.roi, box, self.layout.shape, **self.words)
            mask[tuple(slice(0, n) for n in inside.shape)] = inside
            self.n_voxels += int(inside.sum())
        return mask


def _encode(
    array: zarr.Array[Any], layout: Layout, block: Chunk, origin: list[int], marked: _Marked
) -> dict[Shape, bytes | None]:
    """Frames of all chunks of a block, by index; None for those of nothing but the fill value."""
    fill = 0 if array.fill_value is None else array.fill_value
    out: dict[Shape, bytes | None] = {}
    chunks, masks = [], []
    first = [start // c for start, c in zip(origin, layout.chunks, strict=True)]
    for local in chunk_indices(block.shape, layout.chunks):
        index = tuple(f + i for f, i in zip(first, local, strict=True))
        piece = block[box_of(local, layout.chunks, block.shape)]
        mask = marked.mask(index)
        out[index] = None
        if (piece == fill).all():
            continue
        chunk = np.full(layout.chunks, fill, array.dtype, order=array.order)
        chunk[tuple(slice(0, n) for n in piece.shape)] = piece
        out[index] = b""
        chunks.append(chunk)
        masks.append(mask)
    encoded = iter(codecs.encode_many(codec_of(array).spec, chunks, roi=masks) if chunks else ())
    return {index: frame if frame is None else next(encoded) for index, frame in out.items()}


def _store(array: zarr.Array[Any], layout: Layout, index: Shape, frames: dict[Shape, bytes | None]) -> int:
    """Write, or delete, one object; its size."""
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    data = next(iter(frames.values())) if layout.shards is None else _shard(layout, index, frames)
    path = array.store_path / array.metadata.encode_chunk_key(index)
    try:
        if data is None:
            sync(path.delete())
            return 0
        sync(path.set(default_buffer_prototype().buffer.from_bytes(data)))
    except OSError as error:
        raise JobError(f"{path}: cannot be written: {error}") from error
    return len(data)


def _shard(layout: Layout, index: Shape, frames: dict[Shape, bytes | None]) -> bytes | None:
    """A shard of frames (zarr spec, "sharding_indexed", 1.0); None where it would be empty."""
    assert layout.shards is not None
    if not any(frame is not None for frame in frames.values()):
        return None
    per_shard = grid_shape(layout.shards, layout.chunks)
    config = layout.shard_config or {}
    size = shard_index_bytes(int(np.prod(per_shard)), config)
    at_start = config.get("index_location", "end") == "start"
    offset, table, body = (size if at_start else 0), b"", []
    for local in np.ndindex(per_shard):
        frame = frames.get(tuple(i * n + k for i, n, k in zip(index, per_shard, local, strict=True)))
        table += struct.pack("<QQ", *((ABSENT, ABSENT) if frame is None else (offset, len(frame))))
        if frame is not None:
            body.append(frame)
            offset += len(frame)
    if size > len(table):
        table += google_crc32c.value(table).to_bytes(4, "little")
    return b"".join([table, *body] if at_start else [*body, table])
