"""The quality ladder: what a level costs is known before it is coded, and its rounding is worth its bits."""

from __future__ import annotations

import zlib
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.codecs.frames import cut
from tests.volumes import fibsem
from zarr_emcodec.codecs import inference
from zarr_emcodec.codecs.latents import ChunkLatents
from zarr_emcodec.codecs.quantise import PRICE, Ladder
from zarr_emcodec.codecs.vae_decode import ladder_of
from zarr_emcodec.entropy import coder
from zarr_emcodec.errors import FrameError, ModelError
from zarr_emcodec.runtime import Model, Options, list_models

MODELS = [model for model in list_models() if model.card.codec == "vae" and model.card.context is None]
LEVELS = [0, 40, 80, 120, 160, 190, 210]

every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.card.id)


@cache
def latents_of(model: Model) -> NDArray[np.float32]:
    """Latents of real tissue, shape (n, channels, h, w)."""
    return inference.analyse(model, fibsem().astype(np.float32), Options())


@cache
def flat_of(model: Model) -> NDArray[np.float32]:
    return ChunkLatents(latents_of(model), ladder_of(model)).flat


def coded_bytes(ladder: Ladder, symbols: NDArray[np.int32], index: NDArray[np.uint8], n: int) -> int:
    """Size of symbols, shape (channels, m), as one stream."""
    by_section = symbols.reshape(len(index), n, -1, 1).transpose(1, 0, 2, 3)
    (item,) = cut(np.ascontiguousarray(by_section), index, 1)
    return len(coder.encode(*item, ladder.tables))


@every_model
@pytest.mark.parametrize("level", LEVELS)
def test_estimated_bits_are_those_of_the_stream(model: Model, level: int) -> None:
    ladder, flat = ladder_of(model), flat_of(model)
    side, _ = ChunkLatents(latents_of(model), ladder).streams(level, "entropy")
    symbols = ladder.quantise(flat, level, ladder.table_index(side, level))
    index, bits = ladder.fit_tables(symbols, level)
    coded = coded_bytes(ladder, symbols, index, len(latents_of(model)))
    assert abs(coded - bits / 8) <= 0.01 * coded + 8


@every_model
@pytest.mark.parametrize("level", LEVELS)
def test_own_tables_never_cost_more_than_the_levels(model: Model, level: int) -> None:
    ladder, flat = ladder_of(model), flat_of(model)
    symbols = ladder.quantise(flat, level)
    index, bits = ladder.fit_tables(symbols, level)
    n = len(latents_of(model))
    own = coded_bytes(ladder, symbols, index, n)
    if not symbols[ladder.index[level] == 0].any():
        assert own <= coded_bytes(ladder, symbols, ladder.index[level], n)
        assert bits <= ladder.default_bits(symbols, level) * (1 + 1e-6)
    assert not symbols[index == 0].any()


def cost(ladder: Ladder, symbols: NDArray[np.int64], index: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Bits of each symbol under its channel's table, read off the integer shares."""
    tables = ladder.tables
    low, size = (a[index].astype(np.int64)[:, None] for a in (tables.lows, tables.sizes))
    column = np.where((symbols < low) | (symbols > low + size - 2), size - 1, symbols - low)
    bits = tables.cost_bits[index[:, None], np.maximum(column, 0)].astype(np.float64)
    return np.where(size == 0, np.where(symbols == 0, 0.0, np.inf), bits)


@every_model
@pytest.mark.parametrize("level", LEVELS)
def test_thresholds_are_never_worse_than_rounding(model: Model, level: int) -> None:
    ladder, flat = ladder_of(model), flat_of(model)
    index = np.maximum(ladder.index[level], 1)  # a skipped channel has no plain rounding to compare with
    scaled = flat / ladder.gain[level][:, None]

    def objective(symbols: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray(((scaled - symbols) ** 2 + PRICE * cost(ladder, symbols, index)).sum(1))

    plain = objective(np.rint(scaled).astype(np.int64))
    chosen = objective(ladder.quantise(flat, level, index).astype(np.int64))
    assert (chosen <= plain * (1 + 1e-6) + 1e-3).all()
    assert chosen.sum() < plain.sum()


@every_model
def test_coarser_levels_cost_less_and_err_more(model: Model) -> None:
    ladder = ladder_of(model)
    chunk = ChunkLatents(latents_of(model), ladder)
    levels = range(0, ladder.n_levels, 16)
    sizes = [chunk.estimated_bytes(level, "entropy") for level in levels]
    nominal = [chunk.estimated_bytes(level, "nominal") for level in levels]
    errors = [chunk.estimated_squared_error(level) for level in levels]
    assert sizes == sorted(sizes, reverse=True)
    assert nominal == sorted(nominal, reverse=True)
    assert errors == sorted(errors)
    assert (np.diff(ladder.gain, axis=0) > 0).all()


@every_model
def test_quantising_is_odd_and_monotonic(model: Model) -> None:
    ladder = ladder_of(model)
    channels = model.card.channels
    ramp = np.tile(np.linspace(-3000, 3000, 4001, dtype=np.float32), (channels, 1))
    for level in (0, ladder.n_levels // 2, ladder.n_levels - 1):
        symbols = ladder.quantise(ramp, level)
        assert symbols.dtype == np.int32
        assert (np.diff(symbols, axis=1) >= 0).all()
        assert np.array_equal(symbols, -ladder.quantise(-ramp, level))
        assert np.abs(symbols * ladder.gain[level][:, None] - ramp).max() <= 1.2 * ladder.gain[level].max() * 1.0001


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_side_information_round_trip(data: st.DataObject) -> None:
    model = data.draw(st.sampled_from(MODELS), label="model")
    ladder = ladder_of(model)
    level = data.draw(st.integers(0, ladder.n_levels - 1), label="level")
    seed = data.draw(st.integers(0, 2**32 - 1), label="seed")
    share = data.draw(st.sampled_from([0.0, 0.05, 1.0]), label="share of channels changed")
    rng = np.random.default_rng(seed)
    other = rng.integers(0, ladder.tables.n_tables, model.card.channels).astype(np.uint8)
    index = np.where(rng.random(model.card.channels) < share, other, ladder.index[level])
    side = ladder.pack_side(index, level)
    assert np.array_equal(ladder.table_index(side, level), index)
    assert (side == b"") == np.array_equal(index, ladder.index[level])


@every_model
def test_side_information_that_lies_is_refused(model: Model) -> None:
    ladder, channels = ladder_of(model), model.card.channels

    def deflate(raw: bytes) -> bytes:
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
        return squeeze.compress(raw) + squeeze.flush()

    good = deflate(bytes(channels))
    assert np.array_equal(ladder.table_index(good, 3), ladder.index[3])
    bad = [deflate(bytes(n)) for n in (0, 1, channels - 1, channels + 1, 1 << 24)]
    bad += [good[:n] for n in range(1, len(good))] + [good + b"\0", zlib.compress(bytes(channels))]
    beyond = (ladder.tables.n_tables - ladder.index[3].astype(int)) % 256
    bad.append(deflate(beyond.astype(np.uint8).tobytes()))
    for side in bad:
        with pytest.raises(FrameError) as caught:
            ladder.table_index(side, 3)
        assert caught.value.field == "side"
    for level in (ladder.n_levels, 255, 1000):
        if level >= ladder.n_levels:
            with pytest.raises(FrameError, match="level") as caught:
                ladder.table_index(b"", level)
            assert caught.value.field == "setting"


@every_model
@pytest.mark.parametrize("name", ["index", "step", "gain", "freqs"])
def test_a_ladder_without_a_member_or_with_a_wrong_one_is_refused(model: Model, name: str) -> None:
    arrays = dict(model.tables())
    with pytest.raises(ModelError, match=name):
        Ladder({key: value for key, value in arrays.items() if key != name})
    with pytest.raises(ModelError):
        Ladder(arrays | {name: arrays[name][:-1]})
    with pytest.raises(ModelError):
        Ladder(arrays | {"gain": -arrays["gain"]})
    with pytest.raises(ModelError):
        Ladder(arrays | {"index": np.full_like(arrays["index"], 255)})
