"""Fitted latents to the sections of a frame, and back: side information, and parts of one stream each.

Symbols in, byte strings out; byte strings in, checked symbols out. Layout: FORMAT.md, "Frames of fitted latents".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec._types import Buffer, Shape, Symbols
from zarr_emcodec.codecs.latents import group_starts
from zarr_emcodec.codecs.latents_context import LatentsModel, Step, Walk
from zarr_emcodec.entropy import coder
from zarr_emcodec.entropy.feed import Feed
from zarr_emcodec.errors import FrameError
from zarr_emcodec.runtime import Model, Options

SIDE_BYTES = 1
SYMBOL_MAX = 1 << 20
"""Larger symbols are an error: float32 holds them, and sums of them, exactly."""
_PART_BYTES = 8192  # below it a part's index entry costs more than 0.1 %


def n_parts(n: int, size_bytes: float) -> int:
    """How many parts n sections or volumes are coded in."""
    each = max(size_bytes / n, 1e-6)
    return len(group_starts(n, -(-n // max(1, round(_PART_BYTES / each)))))


def encode_part(model: LatentsModel, level: int, symbols: Symbols, options: Options) -> bytes:
    """The stream of some sections or volumes, (n, C, \\*grid); symbols of table 0 must be 0."""
    values: list[Symbols] = []
    index: list[NDArray[np.uint8]] = []

    def decide(step: Step, table: NDArray[np.uint8]) -> Symbols:
        mine: Symbols = symbols[(slice(None), step.channels, *step.cells)]
        values.append(mine.reshape(-1))
        index.append(table.reshape(-1))
        return mine

    model.walk(level, Walk(model.card, len(symbols), symbols.shape[2:]), decide)
    joined = np.concatenate(values), np.concatenate(index)
    return coder.encode(*joined, model.tables, backend=options.entropy_backend)


def decode_part(model: LatentsModel, level: int, data: Buffer, n: int, grid: Shape, options: Options) -> Symbols:
    """Inverse of `encode_part`.

    Raises
    ------
    FrameError
        If the stream does not hold exactly the symbols that its tables mean.
    """
    feed = Feed(data, model.n_coded(level, n * math.prod(grid)), model.tables, backend=options.entropy_backend)

    def decide(step: Step, table: NDArray[np.uint8]) -> Symbols:
        symbols = feed.take(table.reshape(-1)).reshape(table.shape)
        if symbols.size and max(int(symbols.max()), -int(symbols.min())) > SYMBOL_MAX:
            raise FrameError("latents: a symbol beyond 2^20.", field="payload")
        return symbols

    symbols = model.walk(level, Walk(model.card, n, grid), decide)
    feed.finish()
    return symbols


def pack_side(ndim: int) -> bytes:
    """Side information: which grid the latents lie on."""
    return bytes([ndim])


def read_side(sections: Sequence[Buffer], model: Model, level: int) -> int:
    """Axes of the grid, by the side information.

    Raises
    ------
    FrameError
        If the model has no such grid, or no such level.
    """
    assert model.card.inr is not None
    side = bytes(sections[0])
    known = {grid.ndim: grid for grid in model.card.inr.grids}
    if len(side) != SIDE_BYTES or side[0] not in known:
        raise FrameError(
            f"side information {side[:8].hex()!r}: the model has grids of {sorted(known)} axes.", field="side"
        )
    if level >= known[side[0]].levels:
        raise FrameError(f"setting: level {level}, the model has 0 to {known[side[0]].levels - 1}.", field="setting")
    return side[0]
