"""The same numbers as `context_steps`, in one pass over each latent, with numba; part of the extra ``fast``.

The loops hold no lock, so threads code in parallel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec._types import Symbols
from zarr_emcodec.codecs.context_steps import ACTIVATION_MAX, FRACTION, GATE_SHIFT, MEAN_MAX, SYMBOL_MAX, TOTAL_MAX
from zarr_emcodec.entropy.fast import compiled, import_numba

# numba would compute with float64 where a Python number meets a float32
_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_FRACTION, _SIXTEENTH = np.float32(FRACTION), np.float32(1 / FRACTION)
_LARGEST, _TOLD, _FULLEST = np.float32(SYMBOL_MAX), np.float32(ACTIVATION_MAX), np.float32(TOTAL_MAX)
_GATE_HALF, _GATE_ALL, _FARTHEST = np.int32(1 << GATE_SHIFT), np.int32(GATE_SHIFT + 1), np.int32(MEAN_MAX)


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
    """Fill in means and tables of a group; see `context_steps.predict`."""
    # bytes, so that they are combined with tables without a branch
    _kernels().predict(out, unit, scale, first_table, scales, stored.view(np.uint8), mean, table)
    if references is not None:
        _kernels().expect(out, references, first, mean)


def refer(values: NDArray[np.float32], before: NDArray[np.int64], after: NDArray[np.int64]) -> NDArray[np.float32]:
    """Sums of the latents of two sections each; see `context_steps.refer`."""
    total = np.empty((len(before), values.shape[1]), np.float32)
    _kernels().refer(values, before, after, total)
    return total


def leave(latents: NDArray[np.float32], total: NDArray[np.float32], gain: NDArray[np.float32]) -> NDArray[np.float32]:
    """What references leave over of latents; see `context_steps.leave`."""
    left = np.empty(total.shape, np.float32)
    _kernels().leave(latents, total, gain * np.float32(-0.5 / FRACTION), left)
    return left


def quantise(
    latents: NDArray[np.float32],
    first_place: int,
    per_step: NDArray[np.float32],
    mean: NDArray[np.float32],
    table: NDArray[np.uint8],
    change: NDArray[np.int16],
    first_table: NDArray[np.int16],
    scales: int,
    first: NDArray[np.float32],
    further: NDArray[np.float32],
) -> Symbols:
    """Integers nearest to latents ``(n, all places, C, cells)`` times `per_step` ``(n, C)`` less a group's means.

    See `context_steps.quantise`, and `context_steps.unchanged` for the tables that decide how they are rounded.
    """
    symbols = np.empty(mean.shape, np.int32)
    given = np.ascontiguousarray(mean), np.ascontiguousarray(table)
    thresholds = first, np.float32(1) - further
    _kernels().quantise(latents, first_place, per_step, *given, change, first_table, scales, *thresholds, symbols)
    return symbols


def learn(
    symbols: Symbols,
    mean: NDArray[np.float32],
    spread: NDArray[np.float32],
    values: NDArray[np.float32],
    known: NDArray[np.float32] | None,
) -> None:
    """Fill in a group's latents; see `context_steps.learn`."""
    kernels = _kernels()
    for i in range(len(symbols)):  # of each section or volume these are contiguous
        given = np.ascontiguousarray(symbols[i]), np.ascontiguousarray(mean[i])
        if known is None:
            kernels.value(*given, values[i])
        else:
            kernels.learn(*given, spread[i], values[i], known[i])


def _predict(
    out: NDArray[np.float32],
    unit: NDArray[np.float32],
    scale: NDArray[np.int16],
    first_table: NDArray[np.int16],
    scales: int,
    stored: NDArray[np.uint8],
    mean: NDArray[np.float32],
    table: NDArray[np.uint8],
) -> None:
    n, places, _, channels, cells = out.shape
    last = np.int32(scales)
    for i in range(n):
        for place in range(places):
            for channel in range(channels):
                factor = unit[i, channel]
                start, first = np.int32(scale[i, channel]), np.int32(first_table[i, channel])
                for cell in range(cells):
                    mean[i, place, channel, cell] = np.floor(out[i, place, 0, channel, cell] * factor + _HALF)
                    index = np.int32(out[i, place, 1, channel, cell]) + start
                    number = (index if index < last else last) + first
                    number = number if index > 0 else np.int32(0)
                    table[i, place, channel, cell] = number * np.int32(stored[place, cell])


def _expect(out: NDArray[np.float32], references: NDArray[np.float32], first: int, mean: NDArray[np.float32]) -> None:
    n, places, _, channels, cells = out.shape
    for i in range(n):
        for place in range(places):
            for channel in range(channels):
                # rows, so that the loop over them is one that compilers take several steps of at once
                gate, known = out[i, place, 2, channel], references[i, first + place, channel]
                own = mean[i, place, channel]
                for cell in range(cells):
                    gated = np.int32(gate[cell]) * np.int32(known[cell])
                    moved = np.int32(own[cell]) + ((gated + _GATE_HALF) >> _GATE_ALL)
                    moved = moved if moved < _FARTHEST else _FARTHEST
                    own[cell] = np.float32(moved if moved > -_FARTHEST else -_FARTHEST)


def _refer(
    values: NDArray[np.float32], before: NDArray[np.int64], after: NDArray[np.int64], total: NDArray[np.float32]
) -> None:
    for i in range(len(total)):
        one, other, out = values[before[i]], values[after[i]], total[i]
        for k in range(len(out)):
            both = (one[k] + other[k]) * _FRACTION
            both = both if both < _FULLEST else _FULLEST
            out[k] = both if both > -_FULLEST else -_FULLEST


def _leave(
    latents: NDArray[np.float32], total: NDArray[np.float32], share: NDArray[np.float32], left: NDArray[np.float32]
) -> None:
    n, places, channels, cells = left.shape
    for i in range(n):
        for place in range(places):
            for channel in range(channels):
                factor = share[i, channel]
                for cell in range(cells):
                    expected = total[i, place, channel, cell] * factor
                    left[i, place, channel, cell] = expected + latents[i, place, channel, cell]


def _quantise(
    latents: NDArray[np.float32],
    first_place: int,
    per_step: NDArray[np.float32],
    mean: NDArray[np.float32],
    table: NDArray[np.uint8],
    change: NDArray[np.int16],
    first_table: NDArray[np.int16],
    scales: int,
    first: NDArray[np.float32],
    upward: NDArray[np.float32],
    symbols: NDArray[np.int32],
) -> None:
    n, places, channels, cells = symbols.shape
    for i in range(n):
        for place in range(places):
            for channel in range(channels):
                factor = per_step[i, channel]
                given, out = latents[i, first_place + place, channel], symbols[i, place, channel]
                means, tables = mean[i, place, channel], table[i, place, channel]
                added, lowest = np.int32(change[i, channel]), np.int32(first_table[i, channel]) + np.int32(1)
                highest = lowest + np.int32(scales) - np.int32(1)
                for cell in range(cells):
                    t = np.int32(tables[cell]) - added
                    t = t if t > lowest else lowest
                    t = t if t < highest else highest
                    residual = given[cell] * factor - means[cell] * _SIXTEENTH
                    size = abs(residual)
                    coarse = np.floor(size + upward[t])
                    coarse = coarse if coarse > _ONE else _ONE
                    coarse = coarse if coarse < _LARGEST else _LARGEST
                    whole = np.int32(coarse if size >= first[t] else _ZERO)
                    whole = whole if tables[cell] != 0 else np.int32(0)
                    out[cell] = whole if residual >= _ZERO else -whole


def _value(symbols: NDArray[np.int32], mean: NDArray[np.float32], values: NDArray[np.float32]) -> None:
    places, channels, cells = symbols.shape
    for place in range(places):
        for channel in range(channels):
            for cell in range(cells):
                symbol = np.float32(symbols[place, channel, cell])
                symbol = symbol if symbol < _LARGEST else _LARGEST
                symbol = symbol if symbol > -_LARGEST else -_LARGEST
                values[place, channel, cell] = (symbol * _FRACTION + mean[place, channel, cell]) * _SIXTEENTH


def _learn(
    symbols: NDArray[np.int32],
    mean: NDArray[np.float32],
    spread: NDArray[np.float32],
    values: NDArray[np.float32],
    known: NDArray[np.float32],
) -> None:
    places, channels, cells = symbols.shape
    for place in range(places):
        for channel in range(channels):
            factor = spread[channel]
            for cell in range(cells):
                symbol = np.float32(symbols[place, channel, cell])
                symbol = symbol if symbol < _LARGEST else _LARGEST
                symbol = symbol if symbol > -_LARGEST else -_LARGEST
                value = symbol * _FRACTION + mean[place, channel, cell]
                values[place, channel, cell] = value * _SIXTEENTH
                told = np.floor(value * factor + _HALF)
                told = told if told < _TOLD else _TOLD
                known[place, channel, cell] = told if told > -_TOLD else -_TOLD


class _Kernels(NamedTuple):
    predict: Callable[..., None]
    expect: Callable[..., None]
    refer: Callable[..., None]
    leave: Callable[..., None]
    quantise: Callable[..., None]
    value: Callable[..., None]
    learn: Callable[..., None]


@cache
def _kernels() -> _Kernels:
    """The loops, compiled."""
    numba = import_numba()
    nothing, i64, whole = numba.void, numba.int64, numba.int32
    real, small, byte = numba.float32, numba.int16, numba.uint8
    channels = real[:, ::1]
    indices, cells = small[:, ::1], real[:, :, :, ::1]
    outputs, tables = real[:, :, :, :, ::1], byte[:, :, :, ::1]
    predict = nothing(outputs, channels, indices, indices, i64, byte[:, ::1], cells, tables)
    expect = nothing(outputs, cells, i64, cells)
    lists = i64[::1]
    refer = nothing(real[:, ::1], lists, lists, real[:, ::1])
    leave = nothing(cells, cells, channels, cells)
    thresholds = real[::1], real[::1]
    quantise = nothing(cells, i64, channels, cells, tables, indices, indices, i64, *thresholds, whole[:, :, :, ::1])
    value = nothing(whole[:, :, ::1], real[:, :, ::1], real[:, :, ::1])
    learn = nothing(whole[:, :, ::1], real[:, :, ::1], real[::1], real[:, :, ::1], real[:, :, ::1])
    return _Kernels(
        compiled(_predict, predict),
        compiled(_expect, expect),
        compiled(_refer, refer),
        compiled(_leave, leave),
        compiled(_quantise, quantise),
        compiled(_value, value),
        compiled(_learn, learn),
    )
