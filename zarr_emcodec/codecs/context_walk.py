"""Sections of some parts through the entropy model, turn by turn, in either direction.

What a turn knows is made of the latents of the turns before; who walks says how symbols of a turn are found or read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec._types import Shape
from zarr_emcodec.codecs import context_fast, context_steps
from zarr_emcodec.codecs.context import ContextModel, References, Sections
from zarr_emcodec.codecs.context_order import Turn, turns
from zarr_emcodec.entropy import coder
from zarr_emcodec.runtime import Options

Code = Callable[[Turn, Sections, References], NDArray[np.float32]]
"""Codes the sections of a turn, which know their references; to their latents in steps, (n, P * C, \\*grid)."""


@dataclass(eq=False)
class Walk:
    """Sections or volumes of one model and one grid, part behind part.

    Attributes
    ----------
    levels : ndarray, shape (n,), int64
        Of each section on the quality ladder.
    change : ndarray, shape (n, Z + C), int16
        What side information adds to the index of each channel's scale.
    counts : sequence of int
        Sections of each part; their sum is n.
    grid, extent : tuple of int
        Cells and voxels along each axis.
    """

    model: ContextModel
    levels: NDArray[np.int64]
    change: NDArray[np.int16]
    counts: Sequence[int]
    grid: Shape
    extent: Shape
    options: Options

    def run(self, code: Code) -> NDArray[np.float32]:
        """Latents in steps of all sections, (n, P * C, \\*grid), as decoders get them."""
        card = self.model.card
        order = turns(self.counts, card.reaches)
        values: NDArray[np.float32] | None = None
        for turn in order:
            references = self._references(turn, values)
            found = code(turn, self.sections(turn, references), references)
            if len(order) == 1:
                return found
            if values is None:
                values = np.empty((len(self.levels), *found.shape[1:]), np.float32)
            values[turn.sections] = found
        assert values is not None
        return values

    def sections(self, turn: Turn, references: References) -> Sections:
        """Those of a turn, ready to be coded."""
        at = turn.sections
        given = self.levels[at], self.change[at], self.grid, self.extent, self.options
        return Sections(self.model, *given, references if self.model.card.reaches else None)

    def _references(self, turn: Turn, values: NDArray[np.float32] | None) -> References:
        card = self.model.card
        shape = len(turn.sections), len(card.places), card.channels, *self.grid
        if values is None or not turn.reach.any():  # nothing is known of others: no memory for zeros
            return References(turn.reach, np.broadcast_to(np.float32(0), shape))
        refer = context_fast.refer if coder.is_fast(self.options.entropy_backend) else context_steps.refer
        return References(turn.reach, refer(values.reshape(len(values), -1), turn.before, turn.after).reshape(shape))


def rows_of(turn: Turn, counts: Sequence[int]) -> list[slice]:
    """Which sections of a turn each part has: they follow one another."""
    bounds = np.searchsorted(turn.sections, np.cumsum([0, *counts])).tolist()
    return [slice(start, stop) for start, stop in pairwise(bounds)]
