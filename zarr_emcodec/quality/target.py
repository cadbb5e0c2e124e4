"""From a quality or a ratio asked for to the setting that reaches it: search over a ladder of levels.

A ladder runs from fine (level 0: most bytes, best quality) to coarse. Nothing here knows what a level does.
"""

from __future__ import annotations

from collections.abc import Callable


def finest_level(fits: Callable[[int], bool], n_levels: int, start: int) -> int | None:
    """The finest level for which `fits` holds, where it holds for every coarser one.

    Parameters
    ----------
    fits : callable
        Level to "small enough".
    n_levels : int
        Levels of the ladder.
    start : int
        First guess; a good one saves calls, a bad one costs a logarithm.

    Returns
    -------
    int or None
        None where not even the coarsest level fits.

    Examples
    --------
    >>> finest_level(lambda level: level >= 41, 64, start=30)
    41
    """
    low, high = -1, n_levels  # low never fits, high is taken to fit
    level, stride = min(max(start, 0), n_levels - 1), 1
    while high - low > 1:
        if fits(level):
            high = level
        else:
            low = level
        if low >= 0 and high < n_levels:  # bracketed: halve
            level, stride = (low + high) // 2, 0
        else:  # gallop towards the side that is still open
            level = max(high - stride, 0) if low < 0 else min(low + stride, n_levels - 1)
            stride *= 2
        if high - low <= 1:
            break
    return high if high < n_levels else None


def coarsest_level(good: Callable[[int], bool], n_levels: int, start: int) -> int | None:
    """The coarsest level for which `good` holds, where it holds for every finer one; None where none does.

    Examples
    --------
    >>> coarsest_level(lambda level: level <= 17, 64, start=40)
    17
    """
    mirrored = finest_level(lambda level: good(n_levels - 1 - level), n_levels, n_levels - 1 - start)
    return None if mirrored is None else n_levels - 1 - mirrored
