"""The same states and words as `lanes`, symbol by symbol in numba; part of the extra ``fast``.

Compiled on first use and kept on disk where Python may write. The loops hold no lock, so threads decode in parallel.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.entropy.lanes import START, Decoded, Encoded, start_state
from zarr_emcodec.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from zarr_emcodec.entropy.lanes import DecodeJob, EncodeJob


@cache
def is_available() -> bool:
    """Tell whether numba can be imported."""
    try:
        _kernels()
    except MissingExtraError:
        return False
    return True


def encode_streams(jobs: Sequence[EncodeJob], precision: int) -> list[Encoded]:
    """Encode streams one after the other; see `lanes.encode_streams`."""
    kernel, _ = _kernels()
    results = []
    for job in jobs:
        states = np.full(job.n_lanes, start_state(job.n_lanes), np.uint32)
        words = np.empty(len(job.freqs), np.uint16)
        first = kernel(job.freqs, job.starts, states, words, precision)
        results.append(Encoded(states, words[first:].copy()))
    return results


def decode_streams(jobs: Sequence[DecodeJob], steps: NDArray[np.uint32], precision: int) -> list[Decoded]:
    """Decode streams one after the other; see `lanes.decode_streams`."""
    _, kernel = _kernels()
    results = []
    for job in jobs:
        slots, states = job.rows.copy(), job.states.copy()
        n_words = kernel(slots, states, np.ascontiguousarray(job.words), steps, precision)
        results.append(Decoded(slots, states, n_words))
    return results


def _encode(
    freqs: NDArray[np.uint32],
    starts: NDArray[np.uint32],
    states: NDArray[np.uint32],
    words: NDArray[np.uint16],
    precision: int,
) -> int:
    """Fill `words` from its end; return where they begin."""
    n_lanes = len(states)
    place = len(words)
    lane = (len(freqs) - 1) % n_lanes
    for i in range(len(freqs) - 1, -1, -1):
        x = np.uint64(states[lane])
        freq = np.uint64(freqs[i])
        if x >= freq << np.uint64(32 - precision):
            place -= 1
            words[place] = x & np.uint64(0xFFFF)
            x >>= np.uint64(16)
        # 32-bit division: several times faster than the 64-bit one
        quotient = np.uint64(np.uint32(x) // freqs[i])
        states[lane] = x + quotient * ((np.uint64(1) << np.uint64(precision)) - freq) + np.uint64(starts[i])
        lane = lane - 1 if lane else n_lanes - 1
    return place


def _decode(
    slots: NDArray[np.int64],
    states: NDArray[np.uint32],
    words: NDArray[np.uint16],
    steps: NDArray[np.uint32],
    precision: int,
) -> int:
    """Turn `slots` from table rows to slots; return the number of words asked for, counting on past their end."""
    n_lanes = len(states)
    mask = np.uint32((1 << precision) - 1)
    place = 0
    lane = 0
    for i in range(len(slots)):
        x = states[lane]
        slot = slots[i] + np.int64(x & mask)
        slots[i] = slot
        step = steps[slot]
        x = np.uint32((x >> np.uint32(precision)) * (step >> np.uint32(16)) + (step & np.uint32(0xFFFF)))
        if x < START and (n_lanes > 1 or place < len(words)):
            word = words[place] if place < len(words) else np.uint16(0)
            x = np.uint32(x << np.uint32(16) | np.uint32(word))
            place += 1
        states[lane] = x
        lane += 1
        if lane == n_lanes:
            lane = 0
    return place


@cache
def _kernels() -> tuple[Callable[..., int], Callable[..., int]]:
    """Return both loops, compiled."""
    try:
        import numba
    except ImportError as error:
        raise MissingExtraError("backend='numba'", extra="fast") from error
    u16, u32, i64 = numba.uint16[::1], numba.uint32[::1], numba.int64
    encode = i64(u32, u32, u32, u16, i64)
    decode = i64(i64[::1], u32, u16, u32, i64)
    return _compile(numba, encode, _encode), _compile(numba, decode, _decode)


def _compile(numba: Any, signature: Any, function: Callable[..., int]) -> Callable[..., int]:
    try:
        compiled = numba.njit(signature, cache=True, nogil=True)(function)
    except RuntimeError:  # nowhere to keep it: a read-only installation without a home directory
        compiled = numba.njit(signature, cache=False, nogil=True)(function)
    return compiled  # type: ignore[no-any-return]
