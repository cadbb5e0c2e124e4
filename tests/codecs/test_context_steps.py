"""The steps around the networks of an entropy model: with NumPy and with numba the same numbers, frames and voxels."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from tests.codecs.context import DEEP, FLAT, STACK, decode, encode
from tests.volumes import fibsem
from zarr_emcodec import options
from zarr_emcodec.codecs import context_fast, context_steps
from zarr_emcodec.codecs.quantise import SymbolCosts
from zarr_emcodec.entropy import fast
from zarr_emcodec.entropy.tables import build_tables
from zarr_emcodec.frame import Kind, unpack

pytestmark = [
    pytest.mark.extra,
    pytest.mark.skipif(not fast.is_available(), reason="numba is not installed (extra 'fast')"),
]

N, PLACES, CHANNELS, CELLS, SCALES = 3, 2, 5, 33, 20
SHAPE = (N, PLACES, CHANNELS, CELLS)
TABLES = build_tables(np.geomspace(0.08, 60, SCALES).tolist(), [0.8, 1.0])


def shifts(rng: np.random.Generator) -> Any:
    return rng.integers(-16, 17, (N, CHANNELS)).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_means_and_tables_are_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    out = rng.integers(-511, 512, (N, PLACES, 2, CHANNELS, CELLS)).astype(np.float32)
    out[:, :, 1] = rng.integers(-63, 64, SHAPE)
    scale = rng.integers(-70, 70, (N, CHANNELS)).astype(np.int16)
    first_table = (SCALES * rng.integers(0, 2, (N, CHANNELS))).astype(np.int16)
    given = out, np.exp2(shifts(rng) - 1), scale, first_table, SCALES, rng.random((PLACES, CELLS)) < 0.8
    results = []
    for steps in (context_steps, context_fast):
        mean, table = np.empty(SHAPE, np.float32), np.empty(SHAPE, np.uint8)
        steps.predict(*given, None, 0, mean, table)
        results.append((mean, table))
    assert {0, SCALES, 2 * SCALES} <= set(np.unique(results[0][1]))  # none, and the widest of either shape
    for i in range(2):
        np.testing.assert_array_equal(results[0][i], results[1][i])


@pytest.mark.parametrize("seed", range(3))
def test_what_references_lead_to_expect_is_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    out = rng.integers(-127, 128, (N, PLACES, 3, CHANNELS, CELLS)).astype(np.float32)
    start, gate = out[:, :, 0], out[:, :, 2]
    every = rng.integers(-(1 << 23), (1 << 23) + 1, (N, PLACES + 1, CHANNELS, CELLS)).astype(np.float32)
    references = every[:, 1:]  # those of the group
    start[...] = rng.integers(-511, 512, SHAPE)
    unit = np.exp2(rng.integers(-1, 14, (N, CHANNELS))).astype(np.float32)
    # the ends of what there may be, and halves to be rounded
    ends = list(itertools.product((-127, 0, 127), (-(1 << 23), 0, 1 << 23)))
    gate[0, 0, 0, :9], references[0, 0, 0, :9] = np.array(ends, np.float32).T
    start[0, 0, 0, :9] = 0
    unit[0, 1] = 1
    gate[0, 0, 1, :8] = 64
    references[0, 0, 1, :8] = np.arange(-4, 4)
    start[0, 0, 1, :8] = 5
    unit[1] = 1
    references[1] = rng.integers(-900, 901, SHAPE[1:])
    scale, nothing = rng.integers(-70, 70, (N, CHANNELS)).astype(np.int16), np.zeros((N, CHANNELS), np.int16)
    given = out, unit, scale, nothing, SCALES, rng.random((PLACES, CELLS)) < 0.8
    results = []
    for steps in (context_steps, context_fast):
        mean, table = np.empty(SHAPE, np.float32), np.empty(SHAPE, np.uint8)
        steps.predict(*given, every, 1, mean, table)
        results.append((mean, table))
    whole = [array.astype(np.int64) for array in (gate, references, np.floor(start * unit[:, None, :, None] + 0.5))]
    expected = np.clip(whole[2] + (whole[0] * whole[1] + 64) // 128, -(1 << 22), 1 << 22)
    assert np.abs(expected).max() == 1 << 22
    assert results[0][0][0, 0, 1, :8].tolist() == [3, 4, 4, 5, 5, 6, 6, 7]
    without = np.empty(SHAPE, np.float32), np.empty(SHAPE, np.uint8)
    context_steps.predict(*given, None, 0, *without)
    for mean, table in results:
        np.testing.assert_array_equal(mean, expected)
        np.testing.assert_array_equal(table, without[1])


@pytest.mark.parametrize("widest", [0, 3])
@pytest.mark.parametrize("seed", range(3))
def test_symbols_are_the_same(seed: int, widest: int) -> None:
    rng = np.random.default_rng(seed)
    first_table = (SCALES * rng.integers(0, 2, (N, CHANNELS))).astype(np.int16)
    change = rng.integers(-widest, widest + 1, (N, CHANNELS)).astype(np.int16)
    index = rng.integers(0, SCALES + 1, SHAPE)
    table = np.where(index, index + first_table[:, None, :, None], 0).astype(np.uint8)
    rounding = context_steps.unchanged(table, change, first_table, SCALES)
    if not widest:
        np.testing.assert_array_equal(rounding, table)
    mean = np.rint(rng.normal(0, 20, SHAPE)).astype(np.float32)
    scaled = (mean / 16 + rng.laplace(0, 3, SHAPE)).astype(np.float32)
    scaled[0, 0, 0, :6] = -1e9, 1e9, 0, -0.0, 0.5, -0.5
    mean[0, 0, 0, :6] = 0
    table[0, 0, 0, :6] = rounding[0, 0, 0, :6] = first_table[0, 0] + 1
    thresholds = SymbolCosts(TABLES).thresholds
    # latents at a threshold itself: which side of it they fall on is part of the frame
    scaled[1] = mean[1] / 16 + np.sign(rng.normal(size=SHAPE[1:])).astype(np.float32) * thresholds[0][rounding[1]]
    per_step = np.exp2(rng.integers(-3, 3, (N, CHANNELS))).astype(np.float32)
    latents = (scaled / per_step[:, None, :, None]).astype(np.float32)
    expected = context_steps.quantise(scaled.copy(), mean, rounding, *thresholds)
    every = np.concatenate([np.full_like(latents[:, :1], np.nan), latents], 1)
    found = context_fast.quantise(every, 1, per_step, mean, table, change, first_table, SCALES, *thresholds)
    assert np.abs(expected).max() == context_steps.SYMBOL_MAX
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)


def test_rounding_goes_by_the_scale_that_networks_tell() -> None:
    first_table = np.array([[0, SCALES]], np.int16)
    table = np.array([1, 5, SCALES, 0, SCALES + 1, SCALES + 5, 2 * SCALES, 0], np.uint8).reshape(1, 1, 2, 4)
    for change, told in ((2, [1, 3, SCALES - 2, 0]), (-2, [3, 7, SCALES, 0])):
        rounding = context_steps.unchanged(table, np.full((1, 2), change, np.int16), first_table, SCALES)
        assert rounding[0, 0, 0].tolist() == told
        assert rounding[0, 0, 1].tolist() == [n + SCALES if n else 0 for n in told]


@pytest.mark.parametrize("seed", range(3))
def test_references_and_what_they_leave_over_are_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.integers(-(1 << 8), 1 << 8, (5, math.prod(SHAPE[1:]))) / 16).astype(np.float32)
    values[2] *= 1 << 15  # beyond what is told
    before, after = rng.integers(0, 5, (2, SHAPE[0]))
    before[0] = after[0] = 2
    total = context_steps.refer(values, before, after)
    assert np.abs(total).max() == context_steps.TOTAL_MAX
    np.testing.assert_array_equal(context_fast.refer(values, before, after), total)
    latents = rng.normal(0, 30, SHAPE).astype(np.float32)
    gain = np.exp(rng.normal(0, 1, (SHAPE[0], SHAPE[2]))).astype(np.float32)
    given = latents, total.reshape(SHAPE), gain
    np.testing.assert_array_equal(context_fast.leave(*given), context_steps.leave(*given))


@pytest.mark.parametrize("is_last", [False, True])
def test_values_and_what_networks_are_told_are_the_same(is_last: bool) -> None:
    rng = np.random.default_rng(int(is_last))
    symbols = np.rint(rng.laplace(0, 4, SHAPE)).astype(np.int32)
    symbols[0, 0, 0, :4] = -(2**31), 2**31 - 1, -(1 << 15) - 1, 1 << 15  # what a hostile stream may hold
    mean = np.rint(rng.normal(0, 90, SHAPE)).astype(np.float32)
    spread = np.exp2(-shifts(rng))
    results = []
    for steps in (context_steps, context_fast):
        # part of larger arrays, as within a walk through the groups
        values, known = (
            np.zeros((N, PLACES + 3, CHANNELS, CELLS), np.float32),
            np.zeros((N, PLACES + 2, *SHAPE[2:]), "f4"),
        )
        steps.learn(symbols, mean, spread, values[:, 2:-1], None if is_last else known[:, 1:-1])
        results.append((values, known))
    assert bool(results[0][1].any()) is not is_last
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("model", "shape"), [(FLAT, (3, 75, 64)), (FLAT, (40, 9)), (DEEP, (9, 40, 33)), (STACK, (9, 40, 33))]
)
@pytest.mark.parametrize("ratio", [20, 100])
def test_frames_and_voxels_are_the_same(model: str, shape: tuple[int, ...], ratio: float) -> None:
    chunk = fibsem()[tuple(slice(n) for n in (1, *shape)[-3:])].reshape(shape)
    frames = []
    for backend in ("numpy", "numba"):
        with options(entropy_backend=backend):
            frames.append(encode(chunk, model, ratio=ratio))
    assert frames[0] == frames[1]
    assert unpack(frames[0]).kind is Kind.LATENT
    voxels = [decode(frames[0], entropy_backend=backend) for backend in ("numpy", "numba")]
    np.testing.assert_array_equal(voxels[0], voxels[1])
