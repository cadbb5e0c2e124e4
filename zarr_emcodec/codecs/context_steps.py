"""What stands between the networks of an entropy model and the entropy coder: a few sums for each latent, in NumPy.

Network outputs to means and tables; latents to symbols; symbols to values, and to what the next network is told; values
of sections to what others refer to. This
is the reference; `context_fast` does the same in one pass each. All results are whole numbers, or halves of whole
numbers down to 16ths, far below 2**24, so both agree bit for bit. Cells of a grid are one axis here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec._types import Symbols

FRACTION = 16
"""Parts of a quantiser step that means are told in."""
TOTAL_MAX = 1 << 23
"""Sums of two references are drawn in to so many 16ths of a step, so that their products with gates have 31 bits."""
SYMBOL_MAX = 1 << 15
"""Larger symbols are drawn in: 16ths of a step stay far below 2**24."""
ACTIVATION_MAX = 127
"""Of what networks are told."""
GATE_SHIFT = 6
"""A gate of 64 takes all of what references have."""
MEAN_MAX = 1 << 22
"""16ths of a step that means of latents with references are drawn in to: sections that follow from one another would
else outgrow what float32 holds exactly."""


def predict(
    out: NDArray[np.float32],
    unit: NDArray[np.float32],
    scale: NDArray[np.int16],
    first_table: NDArray[np.int16],
    scales: int,
    stored: NDArray[np.bool_],
    references: NDArray[np.float32] | None,
    first: int,
    mean: NDArray[np.float32],
    table: NDArray[np.uint8],
) -> None:
    """Fill in means and tables of a group.

    Parameters
    ----------
    out : ndarray, shape (n, places, 2 or 3, C, cells), float32
        Of the group's network: means in units, changes of indices of scales, gates.
    unit : ndarray, shape (n, C), float32
        16ths of a step in a unit of a mean: a power of two.
    scale : ndarray, shape (n, C), int16
        Index of a channel's scale before the network changes it; from 0 down nothing is stored.
    first_table : ndarray, shape (n, C), int16
        What index 0 of a channel's shape of table would be.
    scales : int
        Largest index.
    stored : ndarray, shape (places, cells), bool
        False where a latent stands for padding.
    references : ndarray, shape (n, all places, C, cells), float32, optional
        See `expect`.
    first : int
        Which of all places is the group's first.
    mean : ndarray, shape (n, places, C, cells), float32
        Set to 16ths of a step, whole.
    table : ndarray, same shape, uint8
        Set.
    """
    np.multiply(out[:, :, 0], unit[:, None, :, None], out=mean)
    mean += np.float32(0.5)
    np.floor(mean, out=mean)
    if references is not None:
        expect(out[:, :, 2], references[:, first : first + out.shape[1]], mean)
    index = out[:, :, 1].astype(np.int16)
    index += scale[:, None, :, None]
    table[...] = np.minimum(index, np.int16(scales)) + first_table[:, None, :, None]
    table[~((index > 0) & stored[None, :, None])] = 0


def expect(gate: NDArray[np.float32], references: NDArray[np.float32], mean: NDArray[np.float32]) -> None:
    """Add to means what latents are expected to have of their references.

    Parameters
    ----------
    gate : ndarray, shape (n, places, C, cells), float32
        64ths, whole, at most 127.
    references : ndarray, same shape, float32
        Sum of both references' latents in 16ths of a step, at most 2**23.
    mean : ndarray, same shape, float32
        Changed in place.
    """
    half = 1 << GATE_SHIFT
    moved = (gate.astype(np.int32) * references.astype(np.int32) + half) >> (GATE_SHIFT + 1)
    np.clip(mean.astype(np.int32) + moved, -MEAN_MAX, MEAN_MAX, out=mean, casting="unsafe")


def refer(values: NDArray[np.float32], before: NDArray[np.int64], after: NDArray[np.int64]) -> NDArray[np.float32]:
    """Sums of the latents of two sections each.

    Parameters
    ----------
    values : ndarray, shape (sections, K), float32
        In steps.
    before, after : ndarray, shape (n,), int64

    Returns
    -------
    ndarray, shape (n, K), float32
        In 16ths of a step.
    """
    total = values[before]
    total += values[after]
    total *= np.float32(FRACTION)
    np.clip(total, -TOTAL_MAX, TOTAL_MAX, out=total)
    return total


def leave(latents: NDArray[np.float32], total: NDArray[np.float32], gain: NDArray[np.float32]) -> NDArray[np.float32]:
    """What references leave over of latents: the encoder's networks see it, no decoder does.

    Parameters
    ----------
    latents : ndarray, shape (n, places, C, cells), float32
        In grey levels.
    total : ndarray, same shape, float32
        As `refer` gives it.
    gain : ndarray, shape (n, C), float32
        Grey levels of a step.

    Returns
    -------
    ndarray, same shape, float32
    """
    left = total * (gain * np.float32(-0.5 / FRACTION))[:, None, :, None]
    left += latents
    return left


def unchanged(
    table: NDArray[np.uint8], change: NDArray[np.int16], first_table: NDArray[np.int16], scales: int
) -> NDArray[np.uint8]:
    """Tables as they would be without side information, which decide how latents are rounded.

    What is rounded to zero was learnt with the scales that networks tell; what symbols cost is another matter.

    Parameters
    ----------
    table : ndarray, shape (n, places, C, cells), uint8
    change : ndarray, shape (n, C), int16
        What side information adds to the index of a channel's scale.
    first_table : ndarray, shape (n, C), int16
    scales : int
        As of `predict`.

    Returns
    -------
    ndarray, same shape, uint8
        0 where the table is 0.
    """
    first = first_table[:, None, :, None]
    index = np.clip(table - first - change[:, None, :, None], 1, scales)
    return np.where(table, index + first, 0).astype(np.uint8)


def quantise(
    scaled: NDArray[np.float32],
    mean: NDArray[np.float32],
    table: NDArray[np.uint8],
    first: NDArray[np.float32],
    further: NDArray[np.float32],
) -> Symbols:
    """Integers nearest to latents less their means, zero drawing more than its half.

    Parameters
    ----------
    scaled : ndarray, any shape, float32
        Latents in steps; used up.
    mean : ndarray, same shape, float32
        16ths of a step.
    table : ndarray, same shape, uint8
    first, further : ndarray, shape (n_tables,), float32
        From where on a residual becomes 1; from which fraction on it becomes the next integer.

    Returns
    -------
    ndarray, same shape, int32
        0 where the table is 0.
    """
    scaled -= mean * np.float32(1 / FRACTION)
    size = np.abs(scaled)
    coarse = np.floor(size + (np.float32(1) - further)[table])
    np.clip(coarse, 1, SYMBOL_MAX, out=coarse)
    coarse[(size < first[table]) | (table == 0)] = 0
    np.copysign(coarse, scaled, out=coarse)
    return np.asarray(coarse, np.int32)


def learn(
    symbols: Symbols,
    mean: NDArray[np.float32],
    spread: NDArray[np.float32],
    values: NDArray[np.float32],
    known: NDArray[np.float32] | None,
) -> None:
    """Fill in a group's latents, for the decoder and for the networks of later groups.

    Parameters
    ----------
    symbols : ndarray, shape (n, places, C, cells), int32
    mean : ndarray, same shape, float32
        16ths of a step.
    spread : ndarray, shape (n, C), float32
        What 16ths of a step are multiplied with for a network: a power of two.
    values : ndarray, same shape as `symbols`, float32
        Set to latents in steps.
    known : ndarray, same shape, float32, optional
        Set to what networks are told, whole numbers of at most 127.
    """
    np.multiply(np.clip(symbols, -SYMBOL_MAX, SYMBOL_MAX), np.float32(FRACTION), out=values, casting="unsafe")
    values += mean
    if known is not None:
        np.multiply(values, spread[:, None, :, None], out=known)
        known += np.float32(0.5)
        np.floor(known, out=known)
        np.clip(known, -ACTIVATION_MAX, ACTIVATION_MAX, out=known)
    values *= np.float32(1 / FRACTION)
