"""A stream read piece by piece gives what it gives read whole, and refuses what is not such a stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from zarr_emcodec.entropy import coder
from zarr_emcodec.entropy.coder import Backend, Mode
from zarr_emcodec.entropy.feed import Feed
from zarr_emcodec.entropy.tables import build_tables
from zarr_emcodec.errors import FrameError

TABLES = build_tables([0.1, 0.5, 2.0, 9.0], [1.0, 2.0], precision=12)
BACKENDS: tuple[Backend, ...] = ("numpy", "numba")


def material(n: int, seed: int = 0) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Symbols with some escaped ones, and their tables, some of them 0."""
    rng = np.random.default_rng(seed)
    index = rng.integers(0, TABLES.n_tables, n).astype(np.uint8)
    spread = np.array([0, 0.1, 0.5, 2.0, 9.0, 0.1, 0.5, 2.0, 9.0])[index]
    symbols = np.rint(rng.laplace(0, 1, n) * spread).astype(np.int32)
    symbols[rng.random(n) < 0.003] *= 40
    symbols[index == 0] = 0
    return symbols, index


def read(data: bytes, index: NDArray[Any], cuts: list[int], backend: Backend) -> NDArray[np.int32]:
    feed = Feed(data, int(np.count_nonzero(index)), TABLES, backend=backend)
    found = np.concatenate([feed.take(piece) for piece in np.split(index, cuts)])
    feed.finish()
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", [1, 7, 300, 20_000])
def test_pieces_are_the_whole(n: int, backend: Backend) -> None:
    symbols, index = material(n)
    data = coder.encode(symbols, index, TABLES)
    cuts = sorted(np.random.default_rng(n).integers(0, n + 1, 9).tolist())
    assert np.array_equal(read(data, index, cuts, backend), symbols)
    assert np.array_equal(read(data, index, [], backend), symbols)


@pytest.mark.parametrize("backend", BACKENDS)
def test_streams_have_several_lanes_and_escapes(backend: Backend) -> None:
    symbols, index = material(40_000, seed=3)
    data = coder.encode(symbols, index, TABLES)
    assert data[0] & 15, "more lanes than one, so that pieces end between lanes"
    assert data[0] & 64, "with escapes"
    assert np.array_equal(read(data, index, [1, 2, 5, 1001], backend), symbols)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fixed_fields(backend: Backend) -> None:
    rng = np.random.default_rng(5)
    index = rng.integers(0, TABLES.n_tables, 500).astype(np.uint8)
    low, size = TABLES.lows[index].astype(np.int32), TABLES.sizes[index].astype(np.int32)
    symbols = np.where(index > 0, low + rng.integers(0, 1 << 30, 500) % np.maximum(size - 1, 1), 0).astype(np.int32)
    data = coder.encode(symbols, index, TABLES, mode="nominal")
    assert np.array_equal(read(data, index, [3, 90, 91], backend), symbols)
    with pytest.raises(FrameError):
        read(data[:-2], index, [3, 90, 91], backend)
    with pytest.raises(FrameError):
        read(data + b"\0", index, [3, 90, 91], backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_damage_ends_in_typed_errors_or_in_other_symbols(backend: Backend) -> None:
    symbols, index = material(900, seed=1)
    data = coder.encode(symbols, index, TABLES)
    refused = 0
    for i in range(len(data)):
        for wrong in (data[:i], data[:i] + bytes([data[i] ^ 0x41]) + data[i + 1 :]):
            try:
                read(wrong, index, [100, 101, 600], backend)
            except FrameError:
                refused += 1
    assert refused > len(data)  # every prefix, and most of the rest: the final states no longer fit
    with pytest.raises(FrameError):
        read(data, index[:-5], [20], backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["entropy", "nominal"])
def test_tables_that_mean_other_numbers_of_symbols_are_refused(mode: Mode, backend: Backend) -> None:
    index = np.tile(np.array([1, 0, 3], np.uint8), 40)
    symbols = np.where(index > 0, 1, 0).astype(np.int32)
    data = coder.encode(symbols, index, TABLES, mode=mode)
    stated = int(np.count_nonzero(index))
    feed = Feed(data, stated, TABLES, backend=backend)
    feed.take(index[:90])
    with pytest.raises(FrameError, match="fewer symbols than its tables mean") as caught:
        feed.take(index[:60])
    assert caught.value.field == "payload"
    feed = Feed(data, stated, TABLES, backend=backend)
    feed.take(index[:-3])
    with pytest.raises(FrameError, match="more symbols than its tables mean") as caught:
        feed.finish()
    assert caught.value.field == "payload"
    # where nothing is left to be said, tables that are 0 may follow
    feed = Feed(data, stated, TABLES, backend=backend)
    assert np.array_equal(feed.take(index), symbols)
    assert not feed.take(np.zeros(7, np.uint8)).any()
    feed.finish()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stream_of_nothing(backend: Backend) -> None:
    feed = Feed(b"", 0, TABLES, backend=backend)
    assert feed.take(np.zeros(3, np.uint8)).tolist() == [0, 0, 0]
    feed.finish()
    with pytest.raises(FrameError, match="fewer symbols"):
        feed.take(np.ones(1, np.uint8))
    for data, stated in ((b"\0", 0), (b"", 1)):
        with pytest.raises(FrameError):
            Feed(data, stated, TABLES, backend=backend)
