"""A chunk that is decoded where it is asked: single voxels, boxes and strides, places between voxels.

A frame in, an object that is indexed like its chunk out. Of a neural field only what is asked for is computed, and a
voxel has the same bits on every way. Other frames are decoded whole, once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec import transform
from zarr_emcodec._types import Buffer, Chunk, Shape
from zarr_emcodec.codecs import mask
from zarr_emcodec.codecs.decode import decode_many
from zarr_emcodec.codecs.opened import Opened, open_frame
from zarr_emcodec.codecs.slots import slot
from zarr_emcodec.errors import SpecError
from zarr_emcodec.frame import Frame, Kind, Limits, unpack
from zarr_emcodec.runtime import Options, current

Positions = Sequence[NDArray[Any]]
"""One array (n,) for each axis, in voxels from the centre of the first: whole numbers, or numbers between."""


class LazyChunk:
    """One chunk, decoded as it is asked for.

    Parameters
    ----------
    data : buffer or Frame
        A whole frame.
    options : Options, optional
        Runtime settings; those of the process when not given.

    Attributes
    ----------
    shape : tuple of int, voxels
    dtype : dtype
        As it was encoded, byte order included.

    Raises
    ------
    FrameError
        If the bytes are not a frame, or not one that this version reads.
    ModelNotFoundError
        If its model is not on the search path.
    """

    def __init__(self, data: Buffer | Frame, options: Options | None = None) -> None:
        self._options = current() if options is None else options
        limits = Limits(max_chunk_bytes=self._options.max_chunk_bytes)
        frame = data if isinstance(data, Frame) else unpack(data, limits=limits)
        self.shape: Shape = frame.shape
        self.dtype: np.dtype[np.generic] = frame.dtype
        self._frame = frame
        self._opened: Opened | None = None
        if frame.kind in (Kind.LATENT, Kind.MASKED):
            opened = open_frame(frame, None, self._options)
            if opened.model.card.inr is not None and _home(opened).is_field(opened):
                self._opened = opened

    @property
    def is_field(self) -> bool:
        """Whether voxels are computed one by one; else the chunk is decoded whole when it is first asked for any."""
        return self._opened is not None

    def __getitem__(self, selection: Any) -> Chunk:
        """Voxels of a selection, as NumPy would give them of the chunk: slices, indices, index arrays, masks."""
        if self._opened is None:
            return np.asarray(self._whole[selection])
        axes = (np.arange(n).reshape([-1 if i == j else 1 for j in range(len(self.shape))])
                for i, n in enumerate(self.shape))  # fmt: skip
        # views that repeat one axis' indices: whatever NumPy selects of them are the places to compute
        places = [np.broadcast_to(axis, self.shape)[selection] for axis in axes]
        shape = places[0].shape
        flat = [place.reshape(-1) for place in places]
        return self._sample(math.prod(shape), lambda a, b: [p[a:b] for p in flat]).reshape(shape)

    def at(self, positions: Any) -> Chunk:
        """Values at any places, voxel centres lying at whole numbers.

        Parameters
        ----------
        positions : array_like, shape (n, ndim), voxels
            Each from -0.5 to the axis' length - 0.5, both included. Chunks that are stored otherwise than as a field,
            and background, give their nearest voxel.

        Returns
        -------
        ndarray, shape (n,)

        Raises
        ------
        SpecError
            If a place lies outside the chunk.
        """
        places = checked_positions(positions, self.shape)
        return self._sample(len(places), lambda a, b: list(places[a:b].T))

    def on_grid(self, axes: Positions) -> Chunk:
        """Values where each axis takes each of its positions: shape (len(axes[0]), len(axes[1]), ...)."""
        shape = tuple(map(len, axes))

        def positions(start: int, stop: int) -> Positions:
            places = np.unravel_index(np.arange(start, stop), shape)
            return [axis[place] for axis, place in zip(axes, places, strict=True)]

        return self._sample(math.prod(shape), positions).reshape(shape)

    @cached_property
    def _whole(self) -> Chunk:
        return decode_many([self._frame], self._options)[0]

    @cached_property
    def _network(self) -> Any:
        assert self._opened is not None
        return _home(self._opened).network_of(self._opened, self._options)

    def _sample(self, n: int, positions: Callable[[int, int], Positions]) -> Chunk:
        """Values (n,) at positions of the whole chunk, given range by range."""
        if self._opened is None:
            return np.asarray(self._whole[nearest(positions(0, n), self.shape)])
        with slot():
            background = self._opened.background
            values = self._compute(n, positions) if background is None else self._masked(background, n, positions)
        return values.astype(self.dtype, copy=False)

    def _compute(self, n: int, positions: Callable[[int, int], Positions]) -> Chunk:
        grey = self._network.grey(n, positions, self._options)
        window = transform.Window(*self._frame.window) if self._frame.window else None
        return transform.from_grey(grey, window, self.dtype.newbyteorder("="))

    def _masked(self, background: mask.Background, n: int, positions: Callable[[int, int], Positions]) -> Chunk:
        everywhere = positions(0, n)
        places = nearest(everywhere, self.shape)
        inside = np.ones(n, bool)
        for place, part in zip(places, background.box, strict=True):
            inside &= (place >= part.start) & (place < part.stop)
        if background.tissue is not None:
            local = tuple(p[inside] - part.start for p, part in zip(places, background.box, strict=True))
            inside[inside] = background.tissue[local]
        out = np.full(n, background.value, self.dtype.newbyteorder("="))
        wanted = [p[inside] - part.start for p, part in zip(everywhere, background.box, strict=True)]
        out[inside] = self._compute(len(wanted[0]), lambda a, b: [p[a:b] for p in wanted])
        return out


def _home(opened: Opened) -> Any:
    from zarr_emcodec.codecs.inr_chain import home_of

    return home_of(opened.model, "decode")


def nearest(positions: Positions, shape: Shape) -> tuple[NDArray[np.intp], ...]:
    """Voxels nearest to places, the upper one half-way between two."""
    return tuple(
        np.clip(np.floor(np.asarray(p) + 0.5).astype(np.intp), 0, n - 1) for p, n in zip(positions, shape, strict=True)
    )


def checked_positions(positions: Any, shape: Shape) -> NDArray[np.float64]:
    """Places (n, ndim) within an array of this shape.

    Raises
    ------
    SpecError
        If they have another shape, or one lies outside.
    """
    places = np.asarray(positions, np.float64)
    if places.ndim != 2 or places.shape[1] != len(shape):
        raise SpecError(
            f"positions of shape {places.shape}: needed is (n, {len(shape)}).", name="positions", value=places.shape
        )
    inside = ((places >= -0.5) & (places <= np.array(shape) - 0.5)).all(1)
    if not inside.all():
        worst = tuple(places[~inside][0].tolist())
        raise SpecError(f"position {worst} lies outside the shape {shape}.", name="positions", value=worst)
    return places


def resampled_axis(extent: int, scale: float) -> NDArray[np.float64]:
    """Centres of the voxels of an axis at another resolution, in voxels of the old one.

    Parameters
    ----------
    extent : int, voxels
    scale : float
        New voxels for each old one.

    Examples
    --------
    >>> resampled_axis(4, 0.5).tolist(), resampled_axis(2, 2).tolist()
    ([0.5, 2.5], [-0.25, 0.25, 0.75, 1.25])
    """
    if not (math.isfinite(scale) and scale > 0):
        raise SpecError(f"scale {scale!r}: needs a number above 0.", name="scale", value=scale)
    count = max(1, round(extent * scale))
    return np.asarray((np.arange(count) + 0.5) * (extent / count) - 0.5)
