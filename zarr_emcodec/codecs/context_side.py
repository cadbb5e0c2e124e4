"""Side information of frames under a learned entropy model: what a chunk adds to the indices of its channels' scales.

Symbols with their tables in, changes out; changes to bytes and back. Networks say what to expect of tissue that they
have seen. Where a channel of a chunk spreads wider or narrower than that at all places alike, one change of its scale
says so.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec._types import Buffer, Symbols
from zarr_emcodec.codecs.context import ContextModel
from zarr_emcodec.codecs.quantise import HALF_WIDTH
from zarr_emcodec.errors import FrameError

Pair = tuple[Symbols, NDArray[np.uint8]]
"""Symbols and their tables, (n, Z, \\*grid) or (n, places, C, \\*grid)."""

CHANGES = np.arange(-4, 5)
"""Of an index: scales are 15 % apart."""
_SAMPLE = 512  # symbols of each channel that tell whether a closer look is worth its time
_PROMISING, _ENOUGH = 0.03, 0.02  # of the bits; a sample promises more than it holds
_WORTH_BITS, _CERTAIN_BITS = 24.0, 12.0  # a change has to save more than it takes, and in a part more than by chance


def best_change(
    coded: Sequence[Pair], bits: float, places: int, times: float, model: ContextModel
) -> tuple[NDArray[np.int16], float]:
    """The change of each channel that is worth telling.

    Parameters
    ----------
    coded : sequence of Pair
        Of a chunk or a part of it.
    bits : float
        That they cost without changes.
    places : int
        Of each channel's symbols in all of them.
    times : float
        How many times as large the chunk is.
    model : ContextModel

    Returns
    -------
    change : ndarray, shape (Z + C,), int16
    saved : float
        Share of the bits.
    """
    nothing = np.zeros(model.card.hyper + model.card.channels, np.int16)
    # an odd stride, or the same columns of cells would be looked at everywhere
    if _savings(coded, places // _SAMPLE | 1, model).max(1).sum() < _PROMISING * bits:
        return nothing, 0.0
    saved = times * _savings(coded, 1, model)
    chosen = saved.argmax(1)
    gain = np.take_along_axis(saved, chosen[:, None], 1)[:, 0]
    change = np.where(gain > max(_WORTH_BITS, times * _CERTAIN_BITS), CHANGES[chosen], 0).astype(np.int16)
    total = float(gain[change != 0].sum()) - 8 * len(pack_side(change))
    return (change, total / (times * bits)) if total > _ENOUGH * times * bits else (nothing, 0.0)


def _savings(coded: Sequence[Pair], stride: int, model: ContextModel) -> NDArray[np.float64]:
    """Bits that each change would save, (Z + C, changes), by one symbol in so many."""
    card = model.card
    scales, bits = card.scales, model.costs.bits
    saved = np.zeros((card.hyper + card.channels, len(CHANGES)))
    for pair in coded:
        told = pair[0].ndim == 2 + model.model.card.ndim  # hyper-latents have no places
        channels, axis = (slice(0, card.hyper), 1) if told else (slice(card.hyper, None), 2)
        symbols, table = (np.moveaxis(values, axis, 0) for values in pair)
        symbols, table = (values.reshape(len(values), -1)[:, ::stride] for values in (symbols, table))
        column = np.clip(symbols, -HALF_WIDTH, HALF_WIDTH) + HALF_WIDTH
        first = (table.astype(np.int64) - 1) // scales * scales  # of the shape; what is not stored is left out
        index = table - first
        spent = np.stack(
            [
                np.where(table, bits[np.clip(index + change, 1, scales) + first, column], 0.0).sum(1)
                for change in CHANGES
            ],
            axis=1,
        )
        saved[channels] += stride * (spent[:, CHANGES == 0] - spent)
    return saved


def pack_side(change: NDArray[np.int16]) -> bytes:
    """Side information; none where nothing changes."""
    if not change.any():
        return b""
    engine = zlib.compressobj(9, zlib.DEFLATED, -15)
    return engine.compress(change.astype(np.int8).tobytes()) + engine.flush()


def read_side(side: Buffer, level: int, model: ContextModel) -> NDArray[np.int16]:
    """What side information adds to the index of each channel's scale, shape (Z + C,).

    Raises
    ------
    FrameError
        If the level does not exist, or the side information is not one signed byte per channel.
    """
    channels = model.card.hyper + model.card.channels
    if level >= model.model.card.levels:
        raise FrameError(
            f"frame names level {level}, the model has 0 to {model.model.card.levels - 1}.", field="setting"
        )
    if not len(side):
        return np.zeros(channels, np.int16)
    engine = zlib.decompressobj(-15)
    try:
        raw = engine.decompress(side, channels + 1)
    except zlib.error as error:
        raise FrameError(f"side information is not deflate data: {error}.", field="side") from error
    if len(raw) != channels or not engine.eof or engine.unused_data:
        raise FrameError(f"side information does not hold {channels} channels.", field="side")
    return np.frombuffer(raw, np.int8).astype(np.int16)
