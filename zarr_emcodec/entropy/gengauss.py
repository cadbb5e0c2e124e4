"""Scale and shape in, the probability of every integer out: the symmetric generalised Gaussian, binned.

Floating point, hence for model export only: `tables.build_tables` freezes what comes out of here into integers, and
nothing that encodes or decodes may import this module's results in any other way.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# exp(-700) is the last power that float64 holds as a normal number; what lies beyond has no mass worth a slot.
_LARGEST_EXPONENT = 700.0
_N_TERMS = 400


def bin_masses(scale: float, shape: float, half_width: int) -> NDArray[np.float64]:
    """Integrate a generalised Gaussian of mean zero over the bins ``[k - 1/2, k + 1/2]``.

    Parameters
    ----------
    scale : float
        Standard deviation, in quantiser steps; above 0.
    shape : float
        Exponent: 1 is the Laplace distribution, 2 the Gaussian; above 0.
    half_width : int
        Largest ``k`` wanted.

    Returns
    -------
    ndarray, shape (half_width + 1,), float64
        Mass of bin ``k`` for ``k = 0 .. half_width``; bin ``-k`` has the same.

    Notes
    -----
    The density is proportional to ``exp(-|x / a| ** shape)`` with ``a = scale * sqrt(G(1 / shape) / G(3 / shape))``,
    so that ``P(|x| > y) = Q(1 / shape, (y / a) ** shape)`` with the regularised upper incomplete gamma function Q
    (Nadarajah 2005, "A generalized normal distribution", section 2).

    Examples
    --------
    >>> bin_masses(1.0, 2.0, 2).round(4)
    array([0.3829, 0.2417, 0.0606])
    """
    log_width = math.log(scale) + (math.lgamma(1 / shape) - math.lgamma(3 / shape)) / 2
    log_edges = np.log(np.arange(half_width + 1) + 0.5)
    # In logarithms, since an edge many scales out would overflow as a power.
    exponents = np.exp(np.minimum(shape * (log_edges - log_width), math.log(_LARGEST_EXPONENT)))
    beyond = _upper_gamma(1 / shape, exponents)
    return np.concatenate([1 - beyond[:1], (beyond[:-1] - beyond[1:]) / 2])


def _upper_gamma(a: float, z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Regularised upper incomplete gamma function Q(a, z) for z > 0 (DLMF 8.7.1 and 8.9.2)."""
    near = z < a + 1
    result = np.empty_like(z)
    result[near] = 1 - _lower_series(a, z[near])
    result[~near] = _upper_fraction(a, z[~near])
    return result


def _prefactor(a: float, z: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(a * np.log(z) - z - math.lgamma(a))


def _lower_series(a: float, z: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(a, z) by its power series, which converges fast for z < a + 1."""
    term = np.full_like(z, 1 / a)
    total = term.copy()
    for n in range(1, _N_TERMS):
        term *= z / (a + n)
        total += term
    return _prefactor(a, z) * total


def _upper_fraction(a: float, z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Q(a, z) by its continued fraction, evaluated from the far end, for z >= a + 1."""
    value = z + (2 * _N_TERMS + 1 - a)
    for n in range(_N_TERMS, 0, -1):
        value = z + (2 * n - 1 - a) + n * (a - n) / value
    return _prefactor(a, z) / value
