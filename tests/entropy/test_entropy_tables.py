"""Tables: built from distributions, checked when read, and the costs and look-ups derived from them."""

from __future__ import annotations

import io
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from zarr_emcodec.entropy.gengauss import bin_masses
from zarr_emcodec.entropy.tables import ESCAPE_BITS_MIN, Tables, build_tables, ideal_bits
from zarr_emcodec.errors import ModelError, SpecError

SCALES = np.geomspace(0.11, 500, 12).tolist()
SHAPES = [0.7, 1.0, 2.0]


@pytest.mark.parametrize("precision", [8, 12, 14, 15])
def test_built_tables_hold_every_rule_and_lie_where_documented(precision: int) -> None:
    tables = build_tables(SCALES, SHAPES, precision=precision)
    assert tables.n_tables == 1 + len(SCALES) * len(SHAPES)
    for i_shape in range(len(SHAPES)):
        rows = slice(1 + i_shape * len(SCALES), 1 + (i_shape + 1) * len(SCALES))
        assert (np.diff(tables.sizes[rows]) >= 0).all(), "wider scales need wider tables"
    assert (tables.sizes[1:] >= 4).all(), "zero, its neighbours and the escape"
    assert (tables.lows[1:] == -(tables.sizes[1:] // 2 - 1)).all()


def test_heavier_shape_of_one_scale_gives_heavier_tails() -> None:
    laplace, gauss = build_tables([3.0], [1.0, 2.0]).freqs[1:]
    assert np.count_nonzero(laplace) > np.count_nonzero(gauss)


@pytest.mark.extra
@pytest.mark.parametrize("shape", [0.5, 0.7, 1.0, 1.7, 2.0, 4.0])
@pytest.mark.parametrize("scale", [0.02, 0.3, 1.0, 30.0, 700.0])
def test_masses_agree_with_scipy(scale: float, shape: float) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is the oracle of the distribution")
    width = scale * math.sqrt(math.gamma(1 / shape) / math.gamma(3 / shape))
    k = np.arange(200)
    expected = stats.gennorm.sf(k - 0.5, shape, scale=width) - stats.gennorm.sf(k + 0.5, shape, scale=width)
    np.testing.assert_allclose(bin_masses(scale, shape, 199), expected, rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("scale", [0.3, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_frozen_shares_cost_under_one_percent_of_the_entropy(scale: float, shape: float) -> None:
    half = bin_masses(scale, shape, 1500)
    masses = np.concatenate([half[:0:-1], half])
    symbols = np.arange(-1500, 1501, dtype=np.int32)
    tables = build_tables([scale], [shape])
    index = np.ones(1, np.uint8)
    costs = np.array([ideal_bits(symbols[i : i + 1], index, tables) for i in range(len(symbols))])
    entropy = -(masses * np.log2(np.maximum(masses, 1e-300))).sum()
    assert entropy - 1e-3 < (masses * costs).sum() < 1.01 * entropy + 1e-3


def test_costs_are_the_logarithms_of_the_shares() -> None:
    tables = build_tables([0.2, 1.0, 40.0], [1.0])
    last = tables.sizes[1:] - 1
    expected = tables.precision - np.log2(np.maximum(tables.freqs, 1))
    used = tables.freqs > 0
    np.testing.assert_allclose(tables.cost_units[used] / 65536, expected[used], rtol=0, atol=2**-15)
    expected[np.arange(1, 4), last] += ESCAPE_BITS_MIN
    np.testing.assert_allclose(tables.cost_bits[used], expected[used], rtol=0, atol=2**-15)
    assert np.isinf(tables.cost_bits[1:][~used[1:]]).all()
    assert not tables.cost_bits[0].any()


def test_ideal_bits_counts_escapes_and_not_what_is_skipped() -> None:
    tables = build_tables([1.0], [1.0])
    inside = ideal_bits(np.array([0], np.int32), np.array([1], np.uint8), tables)
    escape = tables.cost_bits[1, tables.sizes[1] - 1]
    symbols, index = np.array([0, 0, 60, -300, 2**31 - 1], np.int32), np.array([0, 1, 1, 1, 1], np.uint8)
    # 8, 16 and 40 bits for the three values behind the escapes; the cost of an escape counts 8 already
    assert ideal_bits(symbols, index, tables) == pytest.approx(inside + 3 * escape + 8 + 32, abs=1e-4)


def test_bits_hold_every_symbol_and_no_more() -> None:
    tables = build_tables(SCALES, SHAPES)
    n_symbols = tables.sizes[1:].astype(int) - 1
    assert tables.bits[0] == 0
    assert (n_symbols <= 1 << tables.bits[1:].astype(int)).all()
    assert (n_symbols > 1 << tables.bits[1:].astype(int) - 1).all()


def test_arrays_survive_an_npz_file() -> None:
    tables = build_tables([0.5, 5.0], [1.0, 2.0], precision=12)
    file = io.BytesIO()
    np.savez(file, **tables.to_arrays())  # type: ignore[arg-type]
    file.seek(0)
    with np.load(file, allow_pickle=False) as members:
        again = Tables.from_arrays(members)
    for name, array in tables.to_arrays().items():
        np.testing.assert_array_equal(array, again.to_arrays()[name])


def test_tables_neither_change_nor_follow_their_source() -> None:
    arrays = {name: array.copy() for name, array in build_tables([1.0], [1.0]).to_arrays().items()}
    tables = Tables.from_arrays(arrays)
    arrays["freqs"][1, 0] += 1
    assert tables.freqs[1].sum() == 1 << tables.precision
    with pytest.raises(ValueError, match="read-only"):
        tables.freqs[1, 0] = 2


def _damage(name: str, value: Any) -> dict[str, Any]:
    arrays: dict[str, Any] = {n: a.copy() for n, a in build_tables([1.0, 2.0], [1.0]).to_arrays().items()}
    arrays[name] = value(arrays[name])
    return arrays


def _set(array: Any, place: Any, value: Any) -> Any:
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("precision", lambda _: np.array(16)),
        ("precision", lambda _: np.array(7)),
        ("precision", lambda _: np.array(13)),
        ("precision", lambda _: np.array([14])),
        ("precision", lambda _: np.array(14.0)),
        ("freqs", lambda a: a.astype(np.int64)),
        ("freqs", lambda a: a[0]),
        ("freqs", lambda a: a[:, :3]),
        ("freqs", lambda a: a[:0]),
        ("freqs", lambda a: np.tile(a, (400, 1))),
        ("freqs", lambda a: a.tolist()),
        ("freqs", lambda a: _set(a, (0, 0), 1)),
        ("freqs", lambda a: _set(a, (1, 0), a[1, 0] + 1)),
        ("freqs", lambda a: _set(a, (1, slice(0, 2)), [0, a[1, 0] + a[1, 1]])),
        ("freqs", lambda a: _set(a, (1, -1), 1)),
        ("lows", lambda a: _set(a, 0, 1)),
        ("lows", lambda a: _set(a, 1, 32767)),
        ("lows", lambda a: a[:2]),
        ("lows", lambda a: a.astype(np.float32)),
        ("sizes", lambda a: _set(a, 0, 1)),
        ("sizes", lambda a: _set(a, 1, 1)),
        ("sizes", lambda a: _set(a, 1, -3)),
        ("sizes", lambda a: _set(a, 2, 32767)),
        ("sizes", lambda a: a[None]),
    ],
)
def test_inconsistent_arrays_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ModelError, match="tables"):
        Tables.from_arrays(_damage(name, value))


@pytest.mark.parametrize("name", ["freqs", "lows", "sizes", "precision"])
def test_missing_members_are_named(name: str) -> None:
    arrays = build_tables([1.0], [1.0]).to_arrays()
    del arrays[name]
    with pytest.raises(ModelError, match=name):
        Tables.from_arrays(arrays)


@pytest.mark.parametrize(
    ("scales", "shapes", "precision"),
    [([], [1.0], 14), ([1.0], [], 14), ([0.0], [1.0], 14), ([1.0], [-1.0], 14), ([math.nan], [1.0], 14),
     ([1.0], [1.0], 16), ([1.0] * 512, [1.0, 2.0], 14)],
)  # fmt: skip
def test_impossible_families_are_refused(scales: list[float], shapes: list[float], precision: int) -> None:
    with pytest.raises(SpecError):
        build_tables(scales, shapes, precision=precision)


def test_look_ups_filled_by_several_threads_are_right() -> None:
    tables = build_tables(np.geomspace(0.2, 20, 40).tolist(), [1.0])
    rng = np.random.default_rng(0)
    with ThreadPoolExecutor(4) as pool:
        wanted = [rng.permutation(41)[:30] for _ in range(16)]
        found = list(pool.map(tables.decoding, wanted))
    slot = np.arange(1 << tables.precision)
    for used, (steps, columns) in zip(wanted, found, strict=True):
        for t in used[used > 0]:
            column = np.searchsorted(np.cumsum(tables.freqs[t]), slot, side="right")
            row = (t << tables.precision) + slot
            np.testing.assert_array_equal(columns[row], column)
            np.testing.assert_array_equal(steps[row] >> 16, tables.freqs[t][column])
            np.testing.assert_array_equal(steps[row] & 0xFFFF, slot - tables.starts[t][column])
