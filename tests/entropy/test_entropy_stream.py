"""The bytes of a stream: golden ones, a reader written from the layout alone, and hostile ones."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest

from zarr_emcodec.entropy import coder, fast
from zarr_emcodec.entropy.coder import Backend, Mode, decode, decode_many, encode
from zarr_emcodec.entropy.tables import Tables, build_tables
from zarr_emcodec.errors import FrameError, TruncatedFrameError, UnsupportedFrameError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BACKENDS: list[Backend] = ["numpy", "numba"] if fast.is_available() else ["numpy"]

# Written out, so that golden bytes do not hang on how a distribution is rounded.
TABLES = Tables(
    freqs=np.array([[0, 0, 0, 0, 0, 0], [1000, 20, 4, 0, 0, 0], [10, 200, 600, 200, 10, 4]], np.uint16),
    lows=np.array([0, 0, -2], np.int16),
    sizes=np.array([0, 3, 6], np.int16),
    precision=10,
)
INDEX = np.array([2, 1, 0, 2, 2, 1, 2, 2, 0, 2, 1, 2, 2, 2, 2, 2], np.uint8)
PLAIN = np.array([0, 0, 0, 1, -1, 0, 0, 2, 0, 0, 1, -2, 0, 1, 0, -1], np.int32)
SPARSE = np.where(np.arange(16) % 5 == 4, PLAIN, 0).astype(np.int32)
ESCAPED = np.where(np.arange(16) == 7, 300, np.where(np.arange(16) == 11, -4, PLAIN)).astype(np.int32)


def read_by_the_document(data: bytes, index: NDArray[np.uint8], tables: Tables) -> list[int]:
    """Decode one symbol at a time, as the layout in `stream` says; for well-formed streams."""
    symbols = []
    coded = [int(t) for t in index if t]
    if not coded:
        return [0] * len(index)
    head, place, escapes = data[0], 1, b""
    if head >> 6 & 1:
        assert data[1] < 128
        place, data, escapes = 2, data[: len(data) - data[1]], data[len(data) - data[1] :]
    if head >> 4 & 3 == 1:
        number = int.from_bytes(data[1:], "little")
        for t in coded:
            width = int(tables.sizes[t] - 2).bit_length()
            symbols.append(int(tables.lows[t]) + (number & (1 << width) - 1))
            number >>= width
    else:
        body, n_lanes = data[place:], 1 << (head & 15)
        n_bytes = 4 if n_lanes > 1 else len(body) if len(body) <= 4 else 4 - len(body) % 2
        states = [int.from_bytes(body[k * n_bytes : (k + 1) * n_bytes], "little") for k in range(n_lanes)]
        words = [int.from_bytes(body[k : k + 2], "little") for k in range(n_lanes * n_bytes, len(body), 2)]
        for i, t in enumerate(coded):
            x = states[i % n_lanes]
            slot = x % 2**tables.precision
            column, c = 0, 0
            while c + tables.freqs[t][column] <= slot:
                c += int(tables.freqs[t][column])
                column += 1
            x = int(tables.freqs[t][column]) * (x >> tables.precision) + slot - c
            if x < 2**16 and (n_lanes > 1 or words):
                x = (x << 16) + words.pop(0)
            states[i % n_lanes] = x
            low, high = int(tables.lows[t]), int(tables.lows[t] + tables.sizes[t]) - 2
            if column == tables.sizes[t] - 1:
                number, shift = 0, 0
                while True:
                    byte, escapes = escapes[0], escapes[1:]
                    number |= (byte & 127) << shift
                    shift += 7
                    if byte < 128:
                        break
                symbols.append(low - 1 - number // 2 if number % 2 else high + 1 + number // 2)
            else:
                symbols.append(low + column)
        assert states == ([65536] * n_lanes if n_lanes > 1 else [0])
        assert not words
        assert not escapes
    it = iter(symbols)
    return [next(it) if t else 0 for t in index]


def encode_in(n_lanes: int, symbols: NDArray[np.int32], mode: Mode = "entropy", repeat: int = 1) -> bytes:
    """Encode the small example, over and over, with that many lanes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coder, "_BYTES_PER_LANE", 1)
        patch.setattr(coder, "_MAX_LANES", n_lanes)
        return encode(np.tile(symbols, repeat), np.tile(INDEX, repeat), TABLES, mode=mode, backend="numpy")


class Case(NamedTuple):
    name: str
    n_lanes: int
    symbols: NDArray[np.int32]
    mode: Mode
    repeat: int
    golden: str


CASES = [
    Case("one lane", 1, PLAIN, "entropy", 1, "00a5ca38f8bf"),
    Case("one lane with words", 1, PLAIN, "entropy", 3, "00025660adb13aa6faab653df8bf"),
    Case("one lane with escapes", 1, ESCAPED, "entropy", 1, "400304cd6501c20dd20403"),
    Case("two lanes with escapes", 2, ESCAPED, "entropy", 2, "41065a461b00256b020098faf4fbccf948fad20403d20403"),
    Case("four lanes", 4, SPARSE, "entropy", 12, "02160dbb0062112c00d7d8ba00a9ac2c00cc7d5718d005104a107af4b9"),
    Case("fixed fields", 1, PLAIN, "nominal", 1, "10b210159a02"),
]
each_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def _try(data: bytes, index: NDArray[np.uint8], backend: Backend) -> bool:
    """Decode hostile bytes: true if they were symbols, false if they were refused with a FrameError."""
    try:
        symbols = decode(data, index, TABLES, backend=backend)
    except FrameError:
        return False
    assert symbols.shape == index.shape
    assert symbols.dtype == np.int32
    assert not symbols[index == 0].any()
    return True


@each_case
def test_golden_bytes(case: Case) -> None:
    symbols, index = np.tile(case.symbols, case.repeat), np.tile(INDEX, case.repeat)
    data = bytes.fromhex(case.golden)
    assert encode_in(case.n_lanes, case.symbols, case.mode, case.repeat) == data
    assert read_by_the_document(data, index, TABLES) == symbols.tolist()
    for backend in BACKENDS:
        assert decode(data, index, TABLES, backend=backend).tolist() == symbols.tolist()


@pytest.mark.parametrize("n_lanes", [1, 2, 8, 64])
def test_a_reader_written_from_the_document_agrees(n_lanes: int) -> None:
    tables = build_tables([0.2, 1.0, 9.0], [1.0])
    rng = np.random.default_rng(n_lanes)
    for n in (1, 63, 64, 65, 700):
        index = rng.integers(0, 4, n).astype(np.uint8)
        symbols = np.where(index > 0, np.rint(rng.laplace(0, 4, n)), 0).astype(np.int32)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(coder, "_BYTES_PER_LANE", 1)
            patch.setattr(coder, "_MAX_LANES", n_lanes)
            data = encode(symbols, index, tables)
        escaped = (symbols < tables.lows[index]) | (symbols > tables.lows[index] + tables.sizes[index] - 2)
        if escaped[index > 0].sum() <= 60:  # the reader knows lengths of escapes below 128 only
            assert read_by_the_document(data, index, tables) == symbols.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@each_case
def test_every_prefix_flip_and_extension_is_refused_or_has_the_right_shape(case: Case, backend: Backend) -> None:
    data, index = bytes.fromhex(case.golden), np.tile(INDEX, case.repeat)
    prefixes = [data[:n] for n in range(len(data))]
    flips = [
        data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1 :] for byte in range(len(data)) for bit in range(8)
    ]
    longer = [data + bytes([byte]) for byte in range(256)] + [data + b"\1\2", data + data]
    outcomes = [_try(hostile, index, backend) for hostile in prefixes + flips + longer]
    assert len(outcomes) == 9 * len(data) + 258
    assert not all(outcomes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_bytes_are_refused_or_have_the_right_shape(backend: Backend) -> None:
    rng = np.random.default_rng(8)
    n_read = 0
    for trial in range(1500):
        index = rng.integers(0, 3, rng.integers(0, 40)).astype(np.uint8)
        heads = bytes([rng.choice(np.array([0, 1, 2, 0x10, 0x40, 0x41, rng.integers(256)]))])
        n_read += _try(heads[: trial % 9] + rng.bytes(int(rng.integers(0, 40))), index, backend)
    assert 0 < n_read < 1500


def test_backends_refuse_the_same_bytes() -> None:
    if len(BACKENDS) < 2:
        pytest.skip("numba is not installed (extra 'fast')")
    rng = np.random.default_rng(9)
    for _ in range(1000):
        data = bytes([rng.choice(np.array([0, 1, 0x40]))]) + rng.bytes(int(rng.integers(0, 24)))
        assert _try(data, INDEX, "numpy") == _try(data, INDEX, "numba")


def _refused(hex_bytes: str, index: NDArray[np.uint8] = INDEX) -> FrameError:
    with pytest.raises(FrameError) as caught:
        decode(bytes.fromhex(hex_bytes), index, TABLES, backend="numpy")
    return caught.value


@pytest.mark.parametrize("head", ["20", "30", "80", "90", "ff"])
def test_reserved_heads_are_of_another_version(head: str) -> None:
    assert isinstance(_refused(head + "a5ca38f8bf"), UnsupportedFrameError)


@pytest.mark.parametrize(
    ("hex_bytes", "field"),
    [
        ("11b210159a02", "head"),  # fixed fields with lanes
        ("50b210159a02", "head"),  # fixed fields with escapes
        ("04" + "00000100" * 16, "head"),  # more lanes than symbols
        ("00a5ca3800", "states"),  # a single state with a zero on top
        ("01" + "ffff0000" * 2, "states"),  # lanes below 2**16
        ("01" + "00000100" * 2 + "0000", "words"),  # left over
        ("4000", "escapes"),  # announced, none there
        ("10" + "ff" * 5, None),  # padding bits
        ("10" + "0f" * 4 + "02", "fields"),  # beyond the table
    ],
)
def test_broken_rules_are_named(hex_bytes: str, field: str | None) -> None:
    assert _refused(hex_bytes).field == field


@pytest.mark.parametrize("hex_bytes", ["", "10", "10b210159a", "01000001", "40", "4080", "4005aa", "4103" + "00" * 6])
def test_early_ends_are_truncation(hex_bytes: str) -> None:
    error = _refused(hex_bytes)
    assert isinstance(error, TruncatedFrameError)
    assert error.found <= len(hex_bytes) // 2
    assert error.needed > error.found


def test_escaped_values_beyond_32_bits_and_of_the_wrong_number_are_refused() -> None:
    golden = CASES[2].golden
    assert golden.endswith("d20403")  # 297 above, 2 below
    assert "stored" in str(_refused(golden.replace("4003", "4002")[:-2]))
    assert "32 bits" in str(_refused(golden.replace("4003", "4006")[:-6] + "ffffffff7f03"))


def test_lanes_must_end_where_they_began() -> None:
    golden = CASES[4].golden
    error = _refused(golden[:-4] + "f5b9", np.tile(INDEX, 12))  # f4b9: the last word but for one bit
    assert (golden[-4:], error.field) == ("f4b9", "states")


def test_bytes_for_no_symbols_are_refused() -> None:
    assert _refused("00", INDEX[:0]).field == "head"
    assert _refused("00", INDEX * 0).field == "head"


def test_one_lane_of_too_many_symbols_is_refused_before_any_work() -> None:
    error = _refused("00", np.ones(65_537, np.uint8))
    assert error.field == "head"


def test_memory_follows_the_symbols_asked_for_not_the_claims_of_the_bytes() -> None:
    index = np.ones(1000, np.uint8)
    decode(b"\0", index, TABLES, backend="numpy")
    hostile = [b"\x0f", b"\x09" + b"\xff" * 4096, b"\x40\xff\xff\xff\xff\x7f", b"\x40\xff\xff\xff\xff\x07" + b"\1" * 99]
    tracemalloc.start()
    try:
        for data in hostile:
            assert not _try(data, index, "numpy")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 500_000


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bad_stream_cannot_hide_behind_a_good_neighbour(backend: Backend) -> None:
    good = bytes.fromhex(CASES[4].golden)
    index = np.tile(INDEX, 12)
    with pytest.raises(TruncatedFrameError):
        decode_many([(good[:-2], index), (good, index)], TABLES, backend=backend)
    with pytest.raises(FrameError, match="left over"):
        decode_many([(good, index), (good + b"\0\0", index)], TABLES, backend=backend)
