"""In which order the sections of a chunk are coded, and which others each may refer to.

Counts of sections in, `Turn`s out. Sections of a *part* of a frame know each other and nothing of other parts. The
first is coded alone, then those halfway between what is known, at half the distance each turn: no section is more than
six turns from the first one, and those of a turn go through the networks at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec.codecs.latents import group_starts

MOST_SECTIONS = 32
"""Of a part: in longer ones even fewer sections would be coded alone, but more has to be read for any one section."""


class Turn(NamedTuple):
    """Sections that are coded at once.

    Attributes
    ----------
    sections : ndarray, shape (n,), int64
        Their numbers, rising.
    reach : ndarray, shape (n,), int64
        How far their references lie, see `reach_of`; 0 where a section is coded alone.
    before, after : ndarray, shape (n,), int64
        The sections that they refer to; twice the same where there is one only, or none.
    """

    sections: NDArray[np.int64]
    reach: NDArray[np.int64]
    before: NDArray[np.int64]
    after: NDArray[np.int64]


def reach_of(distance: NDArray[np.int64], reaches: int) -> NDArray[np.int64]:
    """Reach of sections whose references are so many sections away; 0 stands for none.

    Examples
    --------
    >>> reach_of(np.array([0, 1, 2, 3, 4, 8, 16]), 5).tolist()
    [0, 1, 2, 2, 3, 4, 4]
    """
    logs = np.log2(np.maximum(distance, 1)).astype(np.int64)
    return np.where(distance > 0, np.minimum(logs + 1, reaches - 1), 0)


def even_counts(n: int, n_parts: int) -> list[int]:
    """Sections of each of so many parts of a chunk of n, as `group_starts` cuts them; perhaps fewer parts."""
    return [stop - start for start, stop in pairwise([*group_starts(n, n_parts), n])]


def part_counts(n: int) -> list[int]:
    """Sections of each part of a chunk of n.

    Examples
    --------
    >>> part_counts(16), part_counts(33)
    ([16], [17, 16])
    """
    return even_counts(n, -(-n // MOST_SECTIONS))


def turns(counts: Sequence[int], reaches: int) -> list[Turn]:
    """The turns of parts with so many sections, one part behind the other.

    Parameters
    ----------
    counts : sequence of int
        Sections of each part.
    reaches : int
        Of the model; 0 of one whose sections know nothing of each other.

    Examples
    --------
    >>> for turn in turns([6], 5):
    ...     print(*(array.tolist() for array in turn))
    [0] [0] [0] [0]
    [4] [3] [0] [0]
    [2] [2] [0] [4]
    [1, 3, 5] [1, 1, 1] [0, 2, 4] [2, 4, 4]
    """
    every = np.arange(sum(counts), dtype=np.int64)
    if not reaches:
        return [Turn(every, np.zeros_like(every), every, every)]
    sizes = np.asarray(counts, np.int64)
    size = np.repeat(sizes, sizes)
    place = every - np.repeat(np.cumsum(sizes) - sizes, sizes)
    first = every[place == 0]
    found = [Turn(first, np.zeros_like(first), first, first)]
    distance = 1 << max(int(sizes.max()) - 1, 0).bit_length() >> 1
    while distance:
        mine = every[place % (2 * distance) == distance]
        before = mine - distance
        after = np.where(place[mine] + distance < size[mine], mine + distance, before)
        found.append(Turn(mine, reach_of(np.full_like(mine, distance), reaches), before, after))
        distance >>= 1
    return [turn for turn in found if len(turn.sections)]
