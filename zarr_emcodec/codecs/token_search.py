"""Better tokens by trying: other codes in place of the nearest, judged by what the decoder makes of them.

Candidates in, candidates in a better order out. The nearest code is the best only for a linear decoder; a real one
also looks at the neighbours. Only the encoder pays for the search.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec.codecs.token_frames import summed
from zarr_emcodec.codecs.tokens import Candidates, Image, TokenModel, Tokens
from zarr_emcodec.runtime import Options

_APART = 3  # cells between those tried at once: each is judged by itself and the cells around it


def refine(model: TokenModel, near: Candidates, image: Image, effort: int, options: Options) -> Candidates:
    """Bring forward, token by token, the candidate with which the top decodes best.

    Parameters
    ----------
    model : TokenModel
    near : Candidates
        At least ``1 + effort`` of them, nearest first.
    image : ndarray, shape (n, \\*extent), float32
        What is to be decoded.
    effort : int
        How many candidates beside the first are tried; 0 gives `near` back.
    options : Options

    Returns
    -------
    Candidates
        A candidate that was brought forward has no excess.

    Notes
    -----
    Candidates of tokens three apart are tried together, and each is kept if the squared error around it falls. A pass
    that makes a section worse all the same, since what is tried reaches further, is undone.
    """
    grid = near.code.shape[2:]
    voxels = tuple(n // g for n, g in zip(image.shape[1:], grid, strict=True))
    best = np.zeros(near.code[:, 0].shape, np.int64)
    error = _errors(model, _pick(near, best), image, voxels, options)
    for rank, place in itertools.product(range(1, 1 + effort), itertools.product(range(_APART), repeat=len(grid))):
        here = (slice(None), *(slice(start, None, _APART) for start in place))
        if 0 in best[here].shape:
            continue
        trial = best.copy()
        trial[here] = rank
        tried = _errors(model, _pick(near, trial), image, voxels, options)
        gain = _around(error) - _around(tried)
        better = np.zeros(best.shape, bool)
        better[here] = gain[here] > 0
        changed = np.where(better, rank, best)
        if (better & (best != rank)).any():
            found = _errors(model, _pick(near, changed), image, voxels, options)
            keep = _total(found) < _total(error)
            best, error = np.where(keep, changed, best), np.where(keep, found, error)
    return _forward(near, best) if effort else near


def _pick(near: Candidates, rank: NDArray[np.int64]) -> Tokens:
    return np.take_along_axis(near.code, rank[:, None], 1)[:, 0]


def _errors(
    model: TokenModel, tokens: Tokens, image: Image, voxels: tuple[int, ...], options: Options
) -> NDArray[np.float32]:
    """Squared error over the voxels of each token."""
    return summed(np.square(model.decode(tokens, options) - image), voxels)


def _around(error: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums over each token and those around it."""
    for axis in range(1, error.ndim):
        padded = np.pad(error, [(int(a == axis), int(a == axis)) for a in range(error.ndim)])
        n = error.shape[axis]
        error = sum(np.take(padded, range(i, i + n), axis) for i in range(_APART))  # type: ignore[assignment]
    return error


def _total(error: NDArray[np.float32]) -> NDArray[np.float64]:
    """Error of each section, in a shape that spreads over its tokens."""
    sums = error.reshape(len(error), -1).sum(1, dtype=np.float64)
    return np.asarray(sums.reshape(-1, *[1] * (error.ndim - 1)))


def _forward(near: Candidates, best: NDArray[np.int64]) -> Candidates:
    """The candidates with the best one first."""
    first = _pick(near, best)
    code, excess = near.code.copy(), near.excess.copy()
    np.put_along_axis(code, best[:, None], near.code[:, :1], 1)
    np.put_along_axis(excess, best[:, None], np.take_along_axis(near.excess, best[:, None], 1), 1)
    code[:, 0], excess[:, 0] = first, 0
    return Candidates(excess, code)
