"""Fidelity measures of one array against another: PSNR, SSIM, worst error. All in float64, NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec._types import Chunk
from zarr_emcodec.errors import SpecError

_BLOCK = 1 << 22  # voxels converted to float64 at once


def peak_of(array: Chunk) -> float:
    """The peak that PSNR refers to unless it is stated: the range of an integer dtype, the span of float values."""
    if array.dtype.kind in "iu":
        info = np.iinfo(array.dtype)
        return float(info.max - info.min)
    return float(np.max(array) - np.min(array)) or 1.0


def squared_error(a: Chunk, b: Chunk) -> float:
    """Sum of squared differences."""
    _same_shape(a, b)
    x, y = a.reshape(-1), b.reshape(-1)
    total = 0.0
    for i in range(0, x.size, _BLOCK):
        d = x[i : i + _BLOCK].astype(np.float64) - y[i : i + _BLOCK]
        total += float(np.dot(d, d))
    return total


def psnr(a: Chunk, b: Chunk, *, peak: float | None = None) -> float:
    """Peak signal-to-noise ratio.

    Parameters
    ----------
    a, b : ndarray, same shape
        Original and reconstruction.
    peak : float, optional
        In units of the values; `peak_of(a)` when not given (255 for uint8).

    Returns
    -------
    float
        Decibels; infinity where both are equal.

    Raises
    ------
    SpecError
        If the shapes differ.

    Examples
    --------
    >>> a = np.zeros((4, 4), "u1"); b = a.copy(); b[0, 0] = 4
    >>> round(psnr(a, b), 2)
    48.13
    """
    error = squared_error(a, b) / max(a.size, 1)
    if error == 0:
        return float("inf")
    return float(10 * np.log10((peak_of(a) if peak is None else peak) ** 2 / error))


def worst_error(a: Chunk, b: Chunk) -> float:
    """Largest absolute difference of any voxel, in units of the values; 0 for empty arrays."""
    _same_shape(a, b)
    wide = np.int64 if a.dtype.kind in "iub" else np.float64
    x, y = a.reshape(-1), b.reshape(-1)
    return max(
        (float(np.abs(x[i : i + _BLOCK].astype(wide) - y[i : i + _BLOCK]).max()) for i in range(0, x.size, _BLOCK)),
        default=0.0,
    )


def ssim(a: Chunk, b: Chunk, *, peak: float | None = None) -> float:
    """Structural similarity, mean over sections (Wang et al. 2004, Gaussian window sigma 1.5, K1 0.01, K2 0.03).

    Parameters
    ----------
    a, b : ndarray, same shape, at least 2-D
        Original and reconstruction; the last two axes are a section's.
    peak : float, optional
        As for `psnr`.

    Returns
    -------
    float
        1 where both are equal; ``nan`` where sections are smaller than the window of 11 x 11.

    Raises
    ------
    SpecError
        If the shapes differ.
    """
    _same_shape(a, b)
    if a.ndim < 2 or min(a.shape[-2:]) < 11:
        return float("nan")
    top = peak_of(a) if peak is None else peak
    c1, c2 = (0.01 * top) ** 2, (0.03 * top) ** 2
    scores = []
    for p, q in zip(a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]), strict=True):
        x, y = p.astype(np.float64), q.astype(np.float64)
        mx, my = _smooth(x), _smooth(y)
        vx, vy, cov = _smooth(x * x) - mx * mx, _smooth(y * y) - my * my, _smooth(x * y) - mx * my
        score = ((2 * mx * my + c1) * (2 * cov + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))
        scores.append(score.mean())
    return float(np.mean(scores))


def _smooth(image: NDArray[np.float64]) -> NDArray[np.float64]:
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()
    n = len(taps)
    rows = sum(taps[i] * image[i : image.shape[0] - n + 1 + i] for i in range(n))
    return np.asarray(sum(taps[i] * rows[:, i : image.shape[1] - n + 1 + i] for i in range(n)))


def _same_shape(a: Chunk, b: Chunk) -> None:
    if a.shape != b.shape:
        raise SpecError(f"arrays differ in shape: {a.shape} and {b.shape}.", name="shape", value=b.shape)
