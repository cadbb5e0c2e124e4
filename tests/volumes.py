"""Arrays that tests share: the shipped piece of real FIB-SEM, and what detectors and pipelines make of such data."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from zarr_emcodec.jobs.demo import SAMPLE

Array = NDArray[Any]


@cache
def fibsem() -> Array:
    """32 x 128 x 128 voxels, uint8, read-only."""
    volume: Array = tifffile.imread(SAMPLE)
    volume.setflags(write=False)
    return volume


def as_dtype(volume: Array, dtype: str) -> Array:
    """The same tissue as another detector would store it: part of the range, an offset, a sign."""
    x = volume.astype(np.float64)
    if dtype == "uint8":
        return volume.copy()
    if dtype == "uint16":
        return (7000 + 30 * x).astype(np.uint16)
    if dtype == "int16":
        return (-3000 + 20 * x).astype(np.int16)
    return ((x - 128) / 300).astype(np.float32)


def noise(shape: tuple[int, ...], seed: int = 0) -> Array:
    """Uniform bytes: what no model can predict."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def checkerboard(shape: tuple[int, ...]) -> Array:
    """0 and 255 in turn: the steepest steps there are."""
    return np.asarray(np.indices(shape).sum(0) % 2 * 255, np.uint8)


def padded(volume: Array, extent: tuple[int, ...], fill: float = 0) -> Array:
    """An edge chunk as Zarr hands it over: data in one corner, the fill value elsewhere."""
    out = np.full(extent, fill, volume.dtype)
    out[tuple(slice(0, n) for n in volume.shape)] = volume
    return out
