"""The block KLT of a set of volumes: the linear transform that every network starts from."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def fit_klt(
    crops: Iterable[NDArray[np.float32]], stride: int, channels: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Principal axes of square blocks (Karhunen-Loeve transform of a stationary source).

    Parameters
    ----------
    crops : iterable of ndarray, shape (y, x), float32
        Sections in grey levels; each is cut into blocks at four shifts.
    stride : int
        Block edge in voxels.
    channels : int
        Components to keep.

    Returns
    -------
    basis : ndarray, shape (channels, stride * stride)
        Orthonormal rows, largest variance first.
    deviations : ndarray, shape (channels,)
        Their standard deviations in grey levels.
    """
    n = stride * stride
    second = np.zeros((n, n))
    count = 0
    half = stride // 2
    for crop in crops:
        for dy, dx in ((0, 0), (0, half), (half, 0), (half, half)):
            view = crop[dy:, dx:]
            h, w = view.shape[0] // stride, view.shape[1] // stride
            blocks = view[: h * stride, : w * stride].reshape(h, stride, w, stride).transpose(0, 2, 1, 3)
            flat = blocks.reshape(-1, n).astype(np.float64) - 128.0
            second += flat.T @ flat
            count += len(flat)
    second /= count
    # tissue has no up or down: averaging over the eight symmetries of the square makes the basis respect that
    axes = second.reshape(stride, stride, stride, stride)
    axes = (axes + axes[::-1, :, ::-1, :]) / 2
    axes = (axes + axes[:, ::-1, :, ::-1]) / 2
    axes = (axes + axes.transpose(1, 0, 3, 2)) / 2
    values, vectors = np.linalg.eigh(axes.reshape(n, n))
    keep = np.argsort(values)[::-1][:channels]
    return vectors[:, keep].T, np.sqrt(np.maximum(values[keep], 1e-3))


def fit_block_klt(
    crops: Iterable[NDArray[np.float32]], block: tuple[int, ...], components: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Principal axes of blocks of any shape, 2-D or 3-D; `fit_klt` for squares also averages over symmetries.

    Parameters
    ----------
    crops : iterable of ndarray, float32
        In grey levels, each with the axes of `block` and at least as large.
    block : tuple of int
        Edges in voxels.
    components : int
        To keep.

    Returns
    -------
    basis : ndarray, shape (components, voxels of a block)
        Orthonormal rows over a block's voxels in row-major order, largest variance first.
    deviations : ndarray, shape (components,)
        Their standard deviations in grey levels.
    """
    n = math.prod(block)
    ndim = len(block)
    second = np.zeros((n, n))
    count = 0
    for crop in crops:
        counts = [size // edge for size, edge in zip(crop.shape, block, strict=True)]
        view = crop[tuple(slice(c * edge) for c, edge in zip(counts, block, strict=True))]
        parts = view.reshape([m for pair in zip(counts, block, strict=True) for m in pair])
        flat = parts.transpose(*range(0, 2 * ndim, 2), *range(1, 2 * ndim, 2)).reshape(-1, n).astype(np.float64)
        for axis in range(ndim):  # tissue has no up or down: average over the mirror images
            shaped = flat.reshape(-1, *block)
            flat = np.concatenate([shaped, np.flip(shaped, axis + 1)]).reshape(-1, n)
        flat -= 128.0
        second += flat.T @ flat
        count += len(flat)
    values, vectors = np.linalg.eigh(second / count)
    keep = np.argsort(values)[::-1][:components]
    return vectors[:, keep].T, np.sqrt(np.maximum(values[keep], 1e-3))
