"""What a frame of a sinusoidal field holds: side information, and weights as symbols of frozen tables.

Weights and steps in, sections out; sections in, a checked network out. FORMAT.md, "Frames of neural fields", is the
layout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec._types import Buffer, Shape, Symbols
from zarr_emcodec.codecs.tokens import Contrast
from zarr_emcodec.entropy import coder
from zarr_emcodec.entropy.tables import COST_SHIFT, ESCAPE_BITS_MIN, SKIP, Tables
from zarr_emcodec.errors import FrameError, ModelError, SpecError
from zarr_emcodec.fitting import MAX_WIDTH, Architecture, Start
from zarr_emcodec.frame.wire import Cursor, varint
from zarr_emcodec.runtime import Model, Options

MAX_WEIGHTS = 1 << 20
_FREE_WEIGHTS, _WEIGHTS_PER_VOXEL = 4096, 4
_MAX_SYMBOL = 1 << 24  # the largest whole number that float32 surely holds
_MAX_STEPS = 256  # a step's number is a byte
PRIOR = 0x10
"""In a frame's setting, beside the number of layers: a prior stands behind the side information."""


@dataclass(frozen=True)
class Field:
    """A network as a frame holds it.

    Attributes
    ----------
    architecture : Architecture
    contrast : Contrast
        Of the chunk, in whose terms the network's values are.
    weights : tuple of ndarray, float32
        Its tensors in order, of the architecture's shapes.
    prior : buffer, optional
        The frame that its values are added to.
    """

    architecture: Architecture
    contrast: Contrast
    weights: tuple[NDArray[np.float32], ...]
    prior: Buffer | None = None


def most_weights(n_voxels: int) -> int:
    """The most weights that a field of so many voxels may have."""
    return min(MAX_WEIGHTS, _WEIGHTS_PER_VOXEL * n_voxels + _FREE_WEIGHTS)


def side_bytes(architecture: Architecture) -> int:
    """Size of the side information."""
    return 2 + len(varint(architecture.width)) + 4 * architecture.layers


def coordinate_axes(shape: Shape) -> tuple[int, ...]:
    """Axes of a chunk that are coordinates of its field: those longer than 1, or the last."""
    return tuple(i for i, n in enumerate(shape) if n > 1) or (len(shape) - 1,)


class WeightCoder:
    """The tables of a model for its frames' weights: read-only, one for each model and process.

    Attributes
    ----------
    tables : Tables
    steps : ndarray, float32
        Quantiser steps by their numbers, falling.
    starts : tuple of Start
        What frames of some networks store differences to.
    """

    def __init__(self, model: Model) -> None:
        arrays = model.tables()
        self.tables = Tables.from_arrays(arrays)
        steps = arrays.get("steps")
        if steps is None or steps.dtype != np.float32 or steps.ndim != 1 or not 1 <= len(steps) <= _MAX_STEPS:
            raise ModelError(f"model '{model.card.id}': tables.npz holds no quantiser steps. Reinstall the model.")
        if not (np.isfinite(steps).all() and (steps > 0).all()):
            raise ModelError(f"model '{model.card.id}': a quantiser step is not a positive number.")
        self.steps: NDArray[np.float32] = steps
        assert model.card.inr is not None
        self.starts = tuple(_start(model.card.id, arrays, *entry) for entry in model.card.inr.starts)

    def start(self, architecture: Architecture, extents: Sequence[int]) -> list[NDArray[np.float32]] | None:
        """Effective weights that a network's differences are to; None where it has no start."""
        found = next((start for start in self.starts if start.covers(architecture)), None)
        return None if found is None else found.weights(architecture, extents)

    def quantise(self, tensor: NDArray[np.float32], step: int) -> Symbols:
        """Symbols of a tensor, flat, at a step's number."""
        symbols = np.rint(tensor.reshape(-1).astype(np.float64) / self.steps[step])
        out: Symbols = np.clip(symbols, -_MAX_SYMBOL, _MAX_SYMBOL).astype(np.int32)
        return out

    def best_table(self, symbols: Symbols) -> tuple[int, float]:
        """The table that takes fewest bits for symbols, and how many; table 0 and none where all are zero."""
        values, counts = np.unique(symbols, return_counts=True)
        if not values.any():
            return SKIP, 0.0
        column = values[None] - self.tables.lows[1:, None].astype(np.int64)  # (tables, values)
        last = self.tables.sizes[1:, None].astype(np.int64) - 1
        escaped = (column < 0) | (column >= last)
        cost = np.take_along_axis(self.tables.cost_units[1:], np.where(escaped, last, column), 1) / 2.0**COST_SHIFT
        beyond = np.where(column < 0, -2 * column - 1, 2 * (column - last))
        n_bytes = sum((beyond >= 1 << 7 * k).astype(np.int64) for k in range(1, 5)) + 1  # of an escaped value
        bits = ((cost + escaped * ESCAPE_BITS_MIN * n_bytes) * counts).sum(1)
        best = int(bits.argmin())
        return best + 1, float(bits[best])

    def estimated_bytes(self, weights: Sequence[NDArray[np.float32]], steps: Sequence[int]) -> float:
        """About how many bytes the stream of weights takes at steps of these numbers."""
        bits = sum(self.best_table(self.quantise(w, step))[1] for w, step in zip(weights, steps, strict=True))
        # lanes and their states take half a percent of long streams, a few bytes of short ones
        return 4 + 1.006 * bits / 8

    def pack(
        self,
        architecture: Architecture,
        contrast: Contrast,
        weights: Sequence[NDArray[np.float32]],
        steps: Sequence[int],
        options: Options,
        prior: bytes = b"",
    ) -> tuple[bytes, bytes]:
        """The two sections of a field, whose weights are differences where it has a start."""
        symbols = [self.quantise(w, step) for w, step in zip(weights, steps, strict=True)]
        tables = [self.best_table(s)[0] for s in symbols]
        side = bytes([contrast.mean, contrast.deviation]) + varint(architecture.width) + bytes(steps) + bytes(tables)
        side += prior
        index = np.repeat(np.array(tables, np.uint16), architecture.counts)
        return side, coder.encode(np.concatenate(symbols), index, self.tables, backend=options.entropy_backend)

    def unpack(
        self, sections: Sequence[Buffer], shape: Shape, setting: int, known: tuple[int, int], options: Options
    ) -> Field:
        """Inverse of `pack`.

        Parameters
        ----------
        sections : sequence of buffer
            All but a mask.
        shape : tuple of int, voxels
            Of the box that the field stands for.
        setting : int
            The frame's.
        known : (int, int)
            Fewest and most layers that the model computes.
        options : Options

        Raises
        ------
        FrameError
            If the sections do not hold exactly such a network, or a larger one than so many voxels may have.
        """
        has_prior, layers = bool(setting & PRIOR), setting & ~PRIOR
        if not known[0] <= layers <= known[1]:
            raise FrameError(f"setting: a network of {layers} layers, the model has {known}.", field="setting")
        if len(sections) != 2:
            raise FrameError(f"frame holds {len(sections)} sections, a field has 2.", field="table")
        cursor = Cursor(memoryview(sections[0]))
        contrast = Contrast(*cursor.take(2, "side"))
        width = cursor.take_varint("side")
        if not 1 <= width <= MAX_WIDTH:
            raise FrameError(f"side information: width {width}, possible are 1 to {MAX_WIDTH}.", field="side")
        architecture = Architecture(len(coordinate_axes(shape)), width, layers)
        if architecture.n_weights > (most := most_weights(math.prod(shape))):  # before memory is taken for them
            raise FrameError(
                f"side information: {architecture.n_weights} weights for {math.prod(shape)} voxels, at most {most}.",
                field="side",
            )
        steps = np.frombuffer(cursor.take(2 * layers, "side"), np.uint8)
        tables = np.frombuffer(cursor.take(2 * layers, "side"), np.uint8)
        prior = cursor.view[cursor.offset :]
        if len(prior) and not has_prior:
            raise FrameError(f"side information: {len(prior)} bytes too many.", field="side")
        if steps.max() >= len(self.steps) or tables.max() >= self.tables.n_tables:
            raise FrameError("side information: a step or table that the model lacks.", field="side")
        index = np.repeat(tables.astype(np.uint16), architecture.counts)
        symbols = coder.decode(sections[1], index, self.tables, backend=options.entropy_backend)
        if len(symbols) and max(int(symbols.max()), -int(symbols.min())) > _MAX_SYMBOL:
            raise FrameError("weights: a symbol beyond 2^24.", field="payload")
        extents = [shape[i] for i in coordinate_axes(shape)]
        weights = self._weights(symbols, steps, architecture, extents)
        return Field(architecture, contrast, weights, prior if has_prior else None)

    def _weights(
        self, symbols: Symbols, steps: NDArray[np.uint8], architecture: Architecture, extents: Sequence[int]
    ) -> tuple[NDArray[np.float32], ...]:
        parts = np.split(symbols.astype(np.float32), np.cumsum(architecture.counts)[:-1])
        stored = [
            (part * self.steps[step]).reshape(shape)
            for part, step, shape in zip(parts, steps, architecture.shapes, strict=True)
        ]
        start = self.start(architecture, extents)
        return tuple(stored if start is None else (w + s for w, s in zip(stored, start, strict=True)))


def _start(model_id: str, arrays: Mapping[str, NDArray[Any]], axes: int, layers: int, width: int) -> Start:
    """One learnt start from the arrays of a model."""
    widest = Architecture(axes, width, layers)
    tensors = []
    for i, shape in enumerate(widest.shapes):
        array = arrays.get(f"start_{axes}_{layers}_{i}")
        if array is None or array.dtype != np.float16 or array.shape != shape or not np.isfinite(array).all():
            raise ModelError(
                f"model '{model_id}': tables.npz does not hold start {i} of {widest}. Reinstall the model."
            )
        tensors.append(array.astype(np.float32))
    return Start(widest, tuple(tensors))


@lru_cache(maxsize=16)
def weight_coder_of(model: Model) -> WeightCoder:
    """The tables of a model, set up once per process."""
    return WeightCoder(model)


def too_small(n_voxels: int, ratio: float, least_bytes: int, itemsize: int) -> SpecError:
    """The error for a chunk whose budget holds no network."""
    needed = math.ceil(least_bytes * ratio / itemsize)
    return SpecError(
        f"chunk of {n_voxels} voxels: at ratio {ratio:g} its budget holds no network; the smallest chunk that works "
        f"has {needed} voxels. Use larger chunks, or a lower ratio.",
        name="shape",
        value=needed,
    )
