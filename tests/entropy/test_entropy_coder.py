"""Symbols to bytes and back: inversion, equality of backends, rate, and what the encoder refuses."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zarr_emcodec.entropy import coder, fast
from zarr_emcodec.entropy.coder import Backend, decode, decode_many, encode, encode_many
from zarr_emcodec.entropy.tables import Tables, build_tables, ideal_bits
from zarr_emcodec.errors import FrameError, MissingExtraError, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Item = tuple[NDArray[np.int32], NDArray[np.uint8]]

SCALES = np.geomspace(0.11, 60, 60)
TABLES = build_tables(SCALES.tolist(), [1.0])
NARROW = build_tables([0.3, 2.0], [1.0, 2.0], precision=8)
HAS_NUMBA = fast.is_available()

needs_numba = pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed (extra 'fast')")
BACKENDS: list[Any] = ["numpy", pytest.param("numba", marks=[pytest.mark.extra, needs_numba])]


def laplace(n: int, seed: int = 0, n_tables: int = 60) -> Item:
    """Symbols that follow the first tables, every table equally often."""
    rng = np.random.default_rng(seed)
    index = rng.integers(1, n_tables + 1, n).astype(np.uint8)
    return np.rint(rng.laplace(0, SCALES[index - 1] / np.sqrt(2))).astype(np.int32), index


@pytest.fixture(params=[1, 4, 64])
def _many_lanes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the encoder spend that many bytes per lane, fewer than it normally would."""
    monkeypatch.setattr(coder, "_BYTES_PER_LANE", request.param)


symbol = st.one_of(st.integers(-3, 3), st.integers(-200, 200), st.sampled_from([-(2**31), 2**31 - 1, -32768, 32767]))


@st.composite
def items(draw: st.DrawFn, tables: Tables) -> Item:
    n = draw(st.integers(0, 40))
    index = np.array(draw(st.lists(st.integers(0, tables.n_tables - 1), min_size=n, max_size=n)), np.uint8)
    symbols = np.array(draw(st.lists(symbol, min_size=n, max_size=n)), np.int32)
    return np.where(index == 0, 0, symbols).astype(np.int32), index


def backends() -> Iterator[Backend]:
    yield "numpy"
    if HAS_NUMBA:
        yield "numba"


@settings(deadline=None, max_examples=150)
@given(st.lists(items(NARROW), min_size=1, max_size=5), st.sampled_from([1, 3, coder._BYTES_PER_LANE]))
def test_inverts_alike_on_all_backends_in_batches_and_alone(batch: list[Item], bytes_per_lane: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coder, "_BYTES_PER_LANE", bytes_per_lane)
        streams = encode_many(batch, NARROW, backend="numpy")
        alone = [encode(*item, NARROW, backend=b) for item in batch for b in backends()]
    n_backends = len(list(backends()))
    assert alone == [stream for stream in streams for _ in range(n_backends)]
    for backend in backends():
        decoded = decode_many(list(zip(streams, [index for _, index in batch], strict=True)), NARROW, backend=backend)
        for (symbols, index), stream, found in zip(batch, streams, decoded, strict=True):
            assert found.dtype == np.int32
            np.testing.assert_array_equal(found, symbols)
            np.testing.assert_array_equal(decode(stream, index, NARROW, backend=backend), symbols)


@pytest.mark.usefixtures("_many_lanes")
@pytest.mark.parametrize("backend", BACKENDS)
def test_streams_of_all_sizes_share_a_batch(backend: Backend) -> None:
    batch = [laplace(n, seed=n) for n in (3000, 1, 0, 700, 2, 3001, 40, 9000)]
    streams = encode_many(batch, TABLES, backend=backend)
    assert streams == encode_many(batch, TABLES, backend="numpy")
    decoded = decode_many([(s, i) for s, (_, i) in zip(streams, batch, strict=True)], TABLES, backend=backend)
    for (symbols, _), found in zip(batch, decoded, strict=True):
        np.testing.assert_array_equal(found, symbols)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", [65_536, 65_537, 150_000])
def test_long_runs_that_cost_nothing_are_spread_over_lanes(n: int, backend: Backend) -> None:
    index = np.ones(n, np.uint8)
    data = encode(np.zeros(n, np.int32), index, TABLES, backend=backend)
    assert 2 ** (data[0] & 15) == 2 ** np.ceil(np.log2(n / 65536))
    assert not decode(data, index, TABLES, backend=backend).any()


@pytest.mark.parametrize("precision", [8, 15])
@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_precisions_and_certain_symbols(precision: int, backend: Backend) -> None:
    total = 1 << precision
    freqs = np.array([[0, 0, 0], [total - 1, 1, 0], [1, total - 2, 1]], np.uint16)
    tables = Tables(freqs, np.array([0, 7, -1], np.int16), np.array([0, 2, 3], np.int16), precision)
    rng = np.random.default_rng(2)
    index = rng.integers(0, 3, 5000).astype(np.uint16)
    symbols = np.choose(index, [0, 7, rng.integers(-3, 2, 5000)]).astype(np.int32)
    data = encode(symbols, index, tables, backend=backend)
    assert data == encode(symbols, index, tables, backend="numpy")
    np.testing.assert_array_equal(decode(data, index, tables, backend=backend), symbols)


def test_rate_is_within_half_a_percent_of_what_the_tables_promise() -> None:
    symbols, index = laplace(100_000)
    data = encode(symbols, index, TABLES)
    ideal = ideal_bits(symbols, index, TABLES) / 8
    assert ideal < len(data) < 1.005 * ideal + 8


@pytest.mark.extra
def test_the_cost_told_is_the_size_of_the_streams_whatever_the_backend() -> None:
    batch = [laplace(50_000, seed) for seed in range(3)]
    batch[0][0][::1000] = 3000  # escaped, two bytes each where one is counted
    told = {coder.cost_bits(batch, TABLES, backend=backend) for backend in backends()}
    size = 8 * sum(map(len, encode_many(batch, TABLES)))
    assert len(told) == 1
    assert 0.985 * size < told.pop() < size
    assert coder.cost_bits([(ONE[:0].astype(np.int32), ONE[:0]), (np.zeros(3, np.int32), 0 * ONE)], TABLES) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_symbols_that_are_not_stored_cost_nothing_and_must_be_zero(backend: Any) -> None:
    index = np.array([0, 1, 0], np.uint8)
    alone = coder.cost_bits([(np.zeros(1, np.int32), index[1:2])], TABLES, backend=backend)
    assert coder.cost_bits([(np.zeros(3, np.int32), index)], TABLES, backend=backend) == alone
    with pytest.raises(SpecError, match="not stored"):
        coder.cost_bits([(np.array([0, 0, 1], np.int32), index)], TABLES, backend=backend)


def test_rate_is_that_of_an_independent_coder() -> None:
    constriction = pytest.importorskip("constriction", reason="constriction is the oracle of the rate")
    symbols, index = laplace(100_000, seed=1)
    symbols = np.clip(symbols, TABLES.lows[index], TABLES.lows[index] + TABLES.sizes[index] - 2).astype(np.int32)
    oracle = constriction.stream.stack.AnsCoder()
    for t in range(1, 61):
        shares = TABLES.freqs[t, : TABLES.sizes[t]].astype(np.float64) / (1 << TABLES.precision)
        model = constriction.stream.model.Categorical(shares, perfect=False)
        oracle.encode_reverse((symbols[index == t] - TABLES.lows[t]).astype(np.int32), model)
    assert len(encode(symbols, index, TABLES)) < 1.005 * oracle.get_compressed().nbytes + 8


@pytest.mark.parametrize("n_tables", [10, 25, 60])
def test_small_streams_pay_less_than_8_bytes_beyond_the_ideal(n_tables: int) -> None:
    overheads = []
    for seed in range(40):
        symbols, index = laplace(500, seed, n_tables)
        overheads.append(len(encode(symbols, index, TABLES)) - ideal_bits(symbols, index, TABLES) / 8)
    assert max(overheads) < 8
    assert np.mean(overheads) < 3.5


def test_overhead_at_256_bytes_is_less_than_8_bytes() -> None:
    for seed in range(20):
        symbols, index = laplace(600, seed)
        data = encode(symbols, index, TABLES)
        assert 230 < len(data) < 290
        assert len(data) - ideal_bits(symbols, index, TABLES) / 8 < 8


def test_skipped_symbols_cost_nothing() -> None:
    symbols, index = laplace(300)
    wide = np.zeros(3000, np.uint8)
    wide[::10] = index
    spread = np.zeros(3000, np.int32)
    spread[::10] = symbols
    for mode in ("entropy", "nominal"):
        inside = np.clip(spread, -1, 1)
        data = encode(inside, wide, TABLES, mode=mode)
        assert data == encode(inside[::10], index, TABLES, mode=mode)
        np.testing.assert_array_equal(decode(data, wide, TABLES), inside)
        assert encode(np.zeros(99, np.int32), np.zeros(99, np.uint8), TABLES, mode=mode) == b""
    assert decode(b"", np.zeros(99, np.uint8), TABLES).tolist() == [0] * 99
    assert decode(b"", np.zeros(0, np.uint8), TABLES).shape == (0,)


def test_nominal_arithmetic_is_exact() -> None:
    rng = np.random.default_rng(4)
    index = rng.integers(0, 61, 1001).astype(np.uint8)
    low, high = TABLES.lows[index], TABLES.lows[index] + np.maximum(TABLES.sizes[index] - 2, 0)
    symbols = rng.integers(low, high + 1).astype(np.int32)
    data = encode(symbols, index, TABLES, mode="nominal")
    assert len(data) == 1 + -(-int(TABLES.bits[index].sum(dtype=int)) // 8)
    np.testing.assert_array_equal(decode(data, index, TABLES), symbols)


def test_entropy_coding_never_takes_more_than_fixed_fields() -> None:
    rng = np.random.default_rng(6)
    n_fallen = 0
    for n in (1, 2, 5, 50, 1000):
        index = rng.integers(1, 61, n).astype(np.uint8)
        low = TABLES.lows[index]
        uniform = rng.integers(low, low + TABLES.sizes[index] - 1).astype(np.int32)
        data = encode(uniform, index, TABLES)
        nominal = encode(uniform, index, TABLES, mode="nominal")
        assert len(data) <= len(nominal)
        n_fallen += data == nominal
        np.testing.assert_array_equal(decode(data, index, TABLES), uniform)
    assert n_fallen


def test_escapes_reach_every_32_bit_value() -> None:
    index = np.full(9, 5, np.uint8)
    symbols = np.array([-(2**31), 2**31 - 1, 0, 3, -3, 100, -100, 40_000, 1], np.int32)
    for backend in backends():
        data = encode(symbols, index, TABLES, backend=backend)
        np.testing.assert_array_equal(decode(data, index, TABLES, backend=backend), symbols)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint8, np.uint16])
def test_narrower_symbols_are_taken(dtype: Any) -> None:
    index = np.array([9, 30, 1], np.uint8)
    assert encode(np.array([1, 5, 0], dtype), index, TABLES) == encode(np.array([1, 5, 0], np.int32), index, TABLES)


def test_every_kind_of_buffer_decodes() -> None:
    symbols, index = laplace(50)
    data = encode(symbols, index, TABLES)
    for buffer in (data, bytearray(data), memoryview(data), memoryview(bytearray(b"x" + data))[1:]):
        np.testing.assert_array_equal(decode(buffer, index, TABLES), symbols)


ONE = np.ones(3, np.uint8)


@pytest.mark.parametrize(
    ("symbols", "index", "options", "message"),
    [
        (np.zeros(2, np.int32), ONE, {}, "one for each"),
        (np.zeros(3, np.int64), ONE, {}, "int32"),
        (np.zeros(3, np.float32), ONE, {}, "int32"),
        (np.zeros((3, 1), np.int32), ONE[:, None], {}, "1-D"),
        (np.zeros(3, np.int32), ONE.astype(np.int64), {}, "uint8"),
        (np.zeros(3, np.int32), ONE * 61, {}, "table 61"),
        (np.array([0, 1, 0], np.int32), ONE * 0, {}, "must be zero"),
        (np.array([0, 0, 99], np.int32), ONE, {"mode": "nominal"}, "symbol 99 is outside"),
        (np.zeros(3, np.int32), ONE, {"mode": "raw"}, "mode"),
        (np.zeros(3, np.int32), ONE, {"backend": "cuda"}, "backend"),
    ],
)
def test_what_cannot_be_encoded_is_refused(symbols: Any, index: Any, options: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        encode(symbols, index, TABLES, **options)


def test_decoding_names_a_missing_table_and_the_stream_at_fault() -> None:
    with pytest.raises(SpecError, match="table 99"):
        decode(b"", ONE * 99, TABLES)
    symbols, index = laplace(20)
    data = encode(symbols, index, TABLES)
    with pytest.raises(FrameError) as caught:
        decode_many([(data, index), (data[:-1], index)], TABLES)
    assert caught.value.__notes__ == ["in stream 1 of the batch"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_decode_alike(backend: Backend) -> None:
    tables = build_tables(SCALES.tolist(), [1.0])  # fresh: its look-ups are filled by the threads
    batch = [laplace(2000, seed) for seed in range(8)]
    streams = encode_many(batch, TABLES)
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda i: decode(streams[i], batch[i][1], tables, backend=backend), range(8))
    for (symbols, _), symbols_found in zip(batch, found, strict=True):
        np.testing.assert_array_equal(symbols_found, symbols)


def test_without_numba_the_default_works_and_asking_for_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    symbols, index = laplace(100)
    expected = encode(symbols, index, TABLES, backend="numpy")
    monkeypatch.setitem(sys.modules, "numba", None)
    fast._kernels.cache_clear()
    fast.is_available.cache_clear()
    try:
        assert encode(symbols, index, TABLES) == expected
        with pytest.raises(MissingExtraError, match=r"zarr_emcodec\[fast\]") as caught:
            encode(symbols, index, TABLES, backend="numba")
        assert caught.value.extra == "fast"
    finally:
        fast.is_available.cache_clear()


def test_importing_and_decoding_with_numpy_load_neither_numba_nor_scipy() -> None:
    code = (
        "import sys, numpy as np\n"
        "from zarr_emcodec.entropy.coder import decode\n"
        "from zarr_emcodec.entropy.tables import build_tables\n"
        "decode(b'\\x00', np.ones(1, 'u1'), build_tables([1.0], [1.0]), backend='numpy')\n"
        "print([name for name in ('numba', 'scipy', 'zarr', 'numcodecs', 'torch') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
