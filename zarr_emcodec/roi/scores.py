"""How much there is to be gained by decoding a place richly: detectors, from a decoded volume to one score per voxel.

A (z, y, x) volume in, a float32 array of its shape out. Sections are looked at one by one: between them lies the coarse
axis of most EM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.errors import MissingExtraError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RADIUS = 4  # voxels: windows of 9 x 9, about a synaptic cleft at 4 nm
_SIGMAS = (2.0, 4.0)  # voxels: membranes of 4 to 12 voxels, which is what survives coarse decoding


def texture(volume: NDArray[Any]) -> NDArray[np.float32]:
    """Variance of grey values in the 9 x 9 window around each voxel.

    Parameters
    ----------
    volume : ndarray, shape (z, y, x)

    Returns
    -------
    ndarray, shape (z, y, x), float32
        Squared units of the input.

    Examples
    --------
    >>> steps = np.kron(np.eye(8), np.ones((4, 4)))[None]
    >>> float(texture(steps).max()) > 0.2, float(texture(np.ones((1, 9, 9))).max())
    (True, 0.0)
    """
    grey = volume.astype(np.float64)
    grey -= grey.mean()  # variance as a difference of means keeps its digits only around 0
    mean = _window_mean(grey)
    return np.maximum(_window_mean(grey**2) - mean**2, 0).astype(np.float32)


def _window_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over a square window of each section, edges repeated."""
    for axis in (1, 2):
        pad = [(0, 0)] * 3
        pad[axis] = (_RADIUS + 1, _RADIUS)
        summed = np.cumsum(np.pad(values, pad, mode="edge"), axis=axis)
        width = 2 * _RADIUS + 1
        n = values.shape[axis]
        values = (summed.take(range(width, width + n), axis) - summed.take(range(n), axis)) / width
    return values


def boundary(volume: NDArray[Any]) -> NDArray[np.float32]:
    """Response of a ridge filter for dark lines, the largest over scales: where membranes are.

    Parameters
    ----------
    volume : ndarray, shape (z, y, x)

    Returns
    -------
    ndarray, shape (z, y, x), float32
        The larger eigenvalue of the scale-normalised Hessian where it is positive, else 0 (Lindeberg 1998, section 4;
        Sato et al. 1998).

    Raises
    ------
    MissingExtraError
        If scipy is absent.
    """
    try:
        from scipy.ndimage import gaussian_filter
    except ImportError as error:
        raise MissingExtraError("looking for boundaries", extra="roi") from error
    grey = volume.astype(np.float32)
    best = np.zeros_like(grey)
    for sigma in _SIGMAS:
        spread = (0, sigma, sigma)
        yy, xx, yx = (gaussian_filter(grey, spread, order) for order in ((0, 2, 0), (0, 0, 2), (0, 1, 1)))
        larger = (yy + xx) / 2 + np.hypot((yy - xx) / 2, yx)
        np.maximum(best, sigma**2 * larger, out=best)
    return best
