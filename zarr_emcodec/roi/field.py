"""An array of neural fields, read where it is asked: `INRField`.

An array or a frame in; single voxels, boxes, strides, places between voxels and other resolutions out. Each chunk's
frame is fetched once and kept; no chunk is decoded.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec.codecs.lazy import LazyChunk, checked_positions, nearest, resampled_axis
from zarr_emcodec.errors import FrameError, JobError, SpecError
from zarr_emcodec.roi.fetch import Frames

if TYPE_CHECKING:
    import zarr

    from zarr_emcodec._types import Buffer, Chunk, Shape

_KEPT = 256
"""Chunks whose networks stay in memory: a few kilobytes to megabytes each."""


class INRField:
    """What an array of `INRCodec` stands for: a value at every voxel, and between them.

    Parameters
    ----------
    source : zarr.Array, or buffer
        An open array of this package, v2 or v3, sharded or not; or one frame.

    Attributes
    ----------
    shape : tuple of int, voxels
    dtype : dtype

    Raises
    ------
    SpecError
        If the array's chunks are not frames.
    FrameError
        If a single frame is damaged.

    Notes
    -----
    The same voxel has the same bits however it is asked for, alone or with others. Chunks that are stored losslessly,
    or by another codec, are decoded whole and answer with their nearest voxel.

    Examples
    --------
    >>> from zarr_emcodec.codecs import VAESpec, encode_many
    >>> flat = INRField(encode_many(VAESpec(ratio=32), [np.full((4, 64, 64), 9, "u1")])[0])
    >>> int(flat[3, 10, 20]), flat[:, ::32, 5].shape, flat.at([[0.5, 10.2, 63.4]]).tolist()
    (9, (4, 2), [9])
    """

    def __init__(self, source: zarr.Array[Any] | Buffer) -> None:
        self._lock = threading.RLock()  # dashboards ask from many threads
        if isinstance(source, bytes | bytearray | memoryview):
            chunk = LazyChunk(source)
            self.shape: Shape = chunk.shape
            self.dtype: np.dtype[Any] = chunk.dtype
            self._chunks: Shape = chunk.shape
            self._frames: Frames | None = None
            self._known: OrderedDict[Shape, LazyChunk | None] = OrderedDict({(0,) * len(chunk.shape): chunk})
            return
        self._frames = Frames(source)
        self.shape, self._chunks = source.shape, source.chunks
        self.dtype = np.dtype(source.dtype)
        self._fill: Any = source.fill_value
        self._known = OrderedDict()

    def __getitem__(self, selection: Any) -> Any:
        """Voxels of a basic selection: integers, slices with any step, an ellipsis."""
        picks, kept = _basic(selection, self.shape)
        out = self._grid(picks)
        return out.reshape(tuple(len(pick) for pick, keep in zip(picks, kept, strict=True) if keep))[()]

    def at(self, positions: Any) -> Chunk:
        """Values at any places.

        Parameters
        ----------
        positions : array_like, shape (n, ndim), voxels
            Voxel centres lie at whole numbers; from -0.5 to the axis' length - 0.5.

        Returns
        -------
        ndarray, shape (n,), the array's dtype

        Raises
        ------
        SpecError
            If a place lies outside the array.
        """
        places = checked_positions(positions, self.shape)
        out = np.empty(len(places), self.dtype)
        index = np.stack(nearest(list(places.T), self.shape), 1) // self._chunks
        cells, member = np.unique(index, axis=0, return_inverse=True)
        member = member.reshape(-1)
        self._load(tuple(map(int, cell)) for cell in cells)
        for i, cell in enumerate(cells):
            mine = member == i
            chunk = self._chunk(tuple(map(int, cell)))
            # half-way between two chunks lies half a voxel outside the upper one
            local = places[mine] - cell * self._chunks
            out[mine] = self._fill if chunk is None else chunk.at(local)
        return out

    def resample(self, scale: float | Sequence[float], selection: Any = ...) -> Chunk:
        """The field at another resolution.

        Parameters
        ----------
        scale : float, or one for each axis
            New voxels for each old one: 2 is twice as fine. A single number leaves axes of one voxel as they are.
        selection : slices of step 1, optional
            The box to resample; all of it when not given.

        Returns
        -------
        ndarray, the array's dtype
            The field's values at the centres of the new voxels. They are not averages: at scales below 1 fine texture
            is sampled, not smoothed.
        """
        picks, _ = _basic(selection, self.shape)
        if isinstance(scale, int | float):
            scales = [1.0 if n == 1 else float(scale) for n in self.shape]
        else:
            scales = [float(s) for s in scale]
        if len(scales) != len(self.shape) or any(len(p) > 1 and p[1] - p[0] != 1 for p in picks):
            raise SpecError(
                f"resample: needs one scale, or one for each of {len(self.shape)} axes, and a box without strides.",
                name="scale",
                value=scale,
            )
        return self._grid([p[0] + resampled_axis(len(p), s) for p, s in zip(picks, scales, strict=True)])

    def _grid(self, axes: Sequence[NDArray[Any]]) -> Chunk:
        """Values where each axis takes each of its positions."""
        out = np.empty(tuple(map(len, axes)), self.dtype)
        owners = [place // n for place, n in zip(nearest(axes, self.shape), self._chunks, strict=True)]
        groups = [[(int(i), np.flatnonzero(owner == i)) for i in np.unique(owner)] for owner in owners]
        self._load(tuple(i for i, _ in cell) for cell in itertools.product(*groups))
        for cell in itertools.product(*groups):
            index = tuple(i for i, _ in cell)
            chunk = self._chunk(index)
            where = np.ix_(*(members for _, members in cell))
            if chunk is None:
                out[where] = self._fill
                continue
            starts = (i * n for i, n in zip(index, self._chunks, strict=True))
            out[where] = chunk.on_grid(
                [axis[members] - start for axis, (_, members), start in zip(axes, cell, starts, strict=True)]
            )
        return out

    def _load(self, indices: Iterator[Shape]) -> None:
        """Fetch the frames of chunks together, as far as they may be kept."""
        with self._lock:
            missing = [index for index in itertools.islice(indices, _KEPT // 2) if index not in self._known]
            if self._frames is not None and missing:
                for index, data in zip(missing, self._frames.fetch(missing), strict=True):
                    self._keep(index, data)

    def _chunk(self, index: Shape) -> LazyChunk | None:
        with self._lock:
            if index not in self._known:
                self._load(iter([index]))
            self._known.move_to_end(index)
            return self._known[index]

    def _keep(self, index: Shape, data: bytes | None) -> None:
        try:
            chunk = None if data is None else LazyChunk(data)
        except FrameError as error:
            raise JobError(f"chunk {index}: {error}") from error
        if chunk is not None and chunk.shape != self._chunks:
            raise JobError(f"chunk {index}: decodes to {chunk.shape}, the array's chunks are {self._chunks}.")
        self._known[index] = chunk
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)


def _basic(selection: Any, shape: Shape) -> tuple[list[NDArray[np.intp]], list[bool]]:
    """Indices that a basic selection takes on each axis, and whether the axis remains."""
    parts = list(selection) if isinstance(selection, tuple) else [selection]
    if sum(part is ... for part in parts) > 1:
        raise SpecError("selection: more than one ellipsis.", name="selection")
    where = next((i for i, part in enumerate(parts) if part is ...), len(parts))
    missing = len(shape) - (len(parts) - (where < len(parts)))
    if missing < 0:
        raise SpecError(f"selection: {len(parts)} indices for {len(shape)} axes.", name="selection", value=len(parts))
    parts[where : where + 1] = [slice(None)] * missing
    picks, kept = [], []
    for part, n in zip(parts, shape, strict=True):
        if not isinstance(part, slice | int | np.integer) or isinstance(part, bool):
            raise SpecError(
                f"selection {part!r:.80}: needs integers, slices or an ellipsis; other places go to at().",
                name="selection",
                value=part,
            )
        if not isinstance(part, slice) and not -n <= part < n:
            raise IndexError(f"index {part} is out of bounds for an axis of {n} voxels")
        kept.append(isinstance(part, slice))
        picks.append(np.arange(n)[part] if isinstance(part, slice) else np.array([part % n]))
    return picks, kept
