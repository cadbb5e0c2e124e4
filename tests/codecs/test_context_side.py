"""Changes of scales that an encoder tells: where symbols spread otherwise than their tables say, and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.codecs.context import DEEP, FLAT, STACK, bytes_at, decode, encode, latents_of, model
from tests.volumes import fibsem
from zarr_emcodec import options
from zarr_emcodec.codecs.context_probe import probe
from zarr_emcodec.codecs.context_side import CHANGES, best_change, pack_side, read_side
from zarr_emcodec.codecs.quantise import HALF_WIDTH
from zarr_emcodec.frame import unpack
from zarr_emcodec.runtime import Options

EACH = pytest.mark.parametrize("name", [FLAT, DEEP, STACK])
CELLS = 900


def drawn(table: NDArray[Any], name: str, seed: int) -> NDArray[np.int32]:
    """Symbols as tables expect them."""
    rng = np.random.default_rng(seed)
    symbols = np.zeros(table.shape, np.int32)
    for number in np.unique(table[table > 0]):
        p = np.exp2(-model(name).costs.bits[number].astype(np.float64))
        here = table == number
        symbols[here] = rng.choice(len(p), here.sum(), p=p / p.sum()) - HALF_WIDTH
    return symbols


def pair_of(name: str, wider: int, seed: int) -> Any:
    """Symbols of one section whose channels are so many scales wider than their tables; the tables."""
    card = model(name).card
    shape = (1, len(card.places), card.channels, *[1] * (model(name).model.card.ndim - 1), CELLS)
    index = np.random.default_rng(seed).integers(card.scales // 3, 2 * card.scales // 3, shape)
    return drawn(index + wider, name, seed), index.astype(np.uint8)


def bits_of(pair: Any, name: str) -> float:
    symbols, table = pair
    return float(model(name).costs.bits[table, symbols + HALF_WIDTH].sum())


@EACH
def test_symbols_that_are_as_expected_change_nothing(name: str) -> None:
    pair = pair_of(name, 0, 1)
    places = CELLS * len(model(name).card.places)
    change, saved = best_change([pair], bits_of(pair, name), places, 1.0, model(name))
    assert not change.any()
    assert not saved
    assert pack_side(change) == b""


@EACH
@pytest.mark.parametrize("wider", [-3, 4])
def test_symbols_that_spread_otherwise_are_told_apart(name: str, wider: int) -> None:
    pair = pair_of(name, wider, 2)
    card, places = model(name).card, CELLS * len(model(name).card.places)
    change, saved = best_change([pair], bits_of(pair, name), places, 1.0, model(name))
    assert wider in CHANGES
    assert not change[: card.hyper].any()  # of which there are none
    assert np.abs(change[card.hyper :] - wider).max() <= 1
    now = np.clip(pair[1] + change[card.hyper :].reshape(1, 1, -1, *[1] * (pair[1].ndim - 3)), 1, card.scales)
    told = bits_of((pair[0], now), name) + 8 * len(pack_side(change))
    assert saved == pytest.approx(1 - told / bits_of(pair, name))
    np.testing.assert_array_equal(read_side(pack_side(change), 0, model(name)), change)


def test_a_chunk_with_changes_takes_fewer_bytes() -> None:
    item = latents_of(fibsem()[:16], STACK)  # this model has not learned much
    probe([item], lambda _: 24, Options())
    assert item.change.any()
    with_change = bytes_at(item, 24)
    item.change[:] = 0
    assert with_change < 0.99 * bytes_at(item, 24)


@pytest.mark.parametrize("effort", [0, 1])
def test_frames_with_changes_are_read(effort: int) -> None:
    if effort:
        pytest.importorskip("torch")
    chunk = fibsem()[:16]
    data = encode(chunk, STACK, ratio=40, effort=effort)
    frame = unpack(data)
    assert len(frame.sections[0])
    assert read_side(frame.sections[0], frame.setting, model(STACK)).any()
    assert len(data) <= chunk.nbytes / 40
    found = decode(data)
    assert np.abs(found.astype(float) - chunk).mean() < 12
    with options(entropy_backend="numpy"):
        np.testing.assert_array_equal(decode(data), found)
