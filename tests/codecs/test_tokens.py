"""Rooms of the token codec one by one: contrast, groups, context, sections, blocks, made-up tokens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.codecs import vq
from tests.volumes import fibsem
from zarr_emcodec.codecs.token_coding import (
    LevelCoder,
    StoredLevel,
    draw_keys,
    group_numbers,
    make_up,
    pack_fields,
    read_levels,
    unpack_fields,
)
from zarr_emcodec.codecs.token_frames import (
    Setting,
    Storage,
    choose_blocks,
    n_blocks,
    pack_side,
    stored_tokens,
    summed,
    unpack_side,
)
from zarr_emcodec.codecs.tokens import Candidates, Contrast, TokenModel, Tokens, repeated
from zarr_emcodec.entropy.fast import is_available
from zarr_emcodec.errors import FrameError
from zarr_emcodec.runtime import Options

OPTIONS = Options()
BACKENDS = ["numpy", "numba"] if is_available() else ["numpy"]


def some_tokens(model: TokenModel, shape: tuple[int, ...], seed: int = 0) -> Tokens:
    """Tokens whose means follow each other, as those of tissue do."""
    rng = np.random.default_rng(seed)
    smooth = 7.5 + 4 * np.sin(np.indices(shape).sum(0) / 4) + rng.normal(0, 0.7, shape)
    tokens: Tokens = 16 * np.clip(np.rint(smooth), 0, 15).astype(np.int64) + rng.integers(0, 16, shape)
    return tokens


def coded(
    model: TokenModel, level: str, tokens: Tokens, stored: NDArray[np.bool_], top: Tokens | None, counts: list[int]
) -> list[tuple[bytes, bool]]:
    near = Candidates(np.zeros((len(tokens), 1, *tokens.shape[1:]), np.float32), tokens[:, None])
    coder = LevelCoder(model, level, near, [0.0] * len(counts), counts, stored)
    coder.choose(top, OPTIONS)
    return coder.sections(OPTIONS, coded=True)


@pytest.mark.parametrize("mean", [0, 40.4, 128, 254.9])
@pytest.mark.parametrize("deviation", [0.01, 0.6, 5, 33, 90])
def test_contrast_is_measured_to_a_few_per_cent(mean: float, deviation: float) -> None:
    grey = np.random.default_rng(0).normal(mean, deviation, (4, 64, 64)).astype(np.float32)
    grey[0, :2, :2] = 5000  # dirt
    contrast = Contrast.of_tissue(grey)
    assert abs(contrast.mean - mean) <= max(1, 0.05 * deviation)
    assert contrast.scale == pytest.approx(max(deviation, 0.5), rel=0.05)
    image = contrast.to_image(grey)
    assert np.allclose(contrast.to_grey(image.copy()), grey, atol=1e-2 * max(deviation, 1))


def test_contrast_stays_within_its_bytes() -> None:
    wild = np.array([-1e3, 1e3] * 5000, np.float32)
    assert Contrast.of_tissue(wild) == Contrast(0, 255)
    assert Contrast.of_tissue(wild * 0 + 300) == Contrast(255, 0)


@pytest.mark.parametrize("name", ["tiny-vq", "tiny-vq3d"])
def test_every_token_has_its_turn_once(name: str) -> None:
    model = vq.model(name)
    prior = model.card.priors["top"]
    ndim = len(model.card.stride)
    numbers = group_numbers(model, "top", (5,) * ndim)
    for number, places in enumerate(prior.groups):
        for place in places:
            assert (numbers[tuple(slice(p, None, 2) for p in place)] == number).all()
    assert set(numbers.reshape(-1)) == set(range(len(prior.groups)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "grid"), [("tiny-vq", (9, 14)), ("tiny-vq", (1, 1)), ("tiny-vq3d", (3, 6, 5))])
def test_tokens_survive_their_section(name: str, grid: tuple[int, ...], backend: Any) -> None:
    model = vq.model(name)
    tokens = some_tokens(model, (3, *grid))
    stored = np.ones(tokens.shape, bool)
    sections = coded(model, "top", tokens, stored, None, [1, 2])
    items = [StoredLevel(data, is_coded, stored[:n]) for (data, is_coded), n in zip(sections, (1, 2), strict=True)]
    back = read_levels(model, "top", items, None, Options(entropy_backend=backend, block_voxels=1 << 10))
    assert np.array_equal(np.concatenate(back), tokens)


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_bottom_tokens_are_stored_where_the_mask_says(share: float) -> None:
    model = vq.model()
    top, bottom = some_tokens(model, (2, 20, 20)), some_tokens(model, (2, 40, 40), 1)
    stored = np.random.default_rng(2).random(bottom.shape) < share
    ((section, is_coded), (other, _)) = coded(model, "bottom", bottom, stored, top, [1, 1])
    alone = coded(model, "bottom", bottom[1:], stored[1:], top[1:], [1])[0]
    assert alone[0] == other
    assert len(section) <= stored[0].sum()
    (back,) = read_levels(model, "bottom", [StoredLevel(section, is_coded, stored[:1])], [top[:1]], OPTIONS)
    assert np.array_equal(back[stored[:1]], bottom[:1][stored[:1]])
    assert (back[~stored[:1]] == model.unknown).all()


def test_what_is_stored_costs_what_the_tables_say() -> None:
    model = vq.model()
    tokens = some_tokens(model, (4, 64, 64))
    near = Candidates(np.zeros((4, 1, 64, 64), np.float32), tokens[:, None])
    coder = LevelCoder(model, "top", near, [0.0], [4], np.ones(tokens.shape, bool))
    coder.choose(None, OPTIONS)
    bits = 0.0
    numbers = group_numbers(model, "top", (64, 64))
    for number in range(4):
        seen = np.where(numbers < number, tokens, model.unknown)
        index = model.table_index("top", seen, None, OPTIONS)
        here = np.broadcast_to(numbers == number, tokens.shape)
        cost = float(model.tables["top"].cost_bits[index[here], tokens[here]].sum())
        bits += min(cost, 8.0 * here.sum())  # a stream whose tables do not fit is one of fixed fields
    ((section, is_coded),) = coder.sections(OPTIONS, coded=True)
    assert is_coded
    assert bits / 8 <= len(section) <= 1.01 * bits / 8


@pytest.mark.parametrize("level", ["top", "bottom"])
def test_context_is_the_same_in_any_pieces_batch_and_threads(level: str) -> None:
    model = vq.model()
    top = some_tokens(model, (3, 17, 23))
    tokens = top if level == "top" else some_tokens(model, (3, 34, 46), 5)
    tokens = np.where(np.random.default_rng(1).random(tokens.shape) < 0.5, tokens, model.unknown)
    whole = model.table_index(level, tokens, top, OPTIONS)
    for options in (Options(block_voxels=1 << 10), Options(block_voxels=1 << 13), Options(threads=2)):
        assert np.array_equal(model.table_index(level, tokens, top, options), whole)
    assert np.array_equal(model.table_index(level, tokens[1:2], top[1:2], OPTIONS), whole[1:2])
    assert whole.min() >= 1
    assert len(np.unique(whole)) > 5


def test_context_is_the_same_through_torch() -> None:
    pytest.importorskip("torch", reason="compares ONNX Runtime with torch")
    pytest.importorskip("onnx", reason="the torch backend reads models with onnx")
    for name, shape in (("tiny-vq", (2, 9, 12)), ("tiny-vq3d", (1, 4, 6, 8))):
        model = vq.model(name)
        tokens = np.where(np.random.default_rng(1).random(shape) < 0.5, some_tokens(model, shape), model.unknown)
        expected = model.table_index("top", tokens, None, OPTIONS)
        assert np.array_equal(model.table_index("top", tokens, None, Options(backend="torch")), expected)
    both = vq.levels_of(vq.frames()["full"])
    full = vq.model().decode_both(both[0], both[1], None, OPTIONS)
    assert np.abs(full - vq.model().decode_both(both[0], both[1], None, Options(backend="torch"))).max() < 1e-4


@given(st.integers(0, 200), st.integers(2, 10))
def test_fields_are_exactly_as_long_as_their_tokens(count: int, bits: int) -> None:
    model = vq.model()
    tokens = np.random.default_rng(count).integers(0, 256, count)
    data = pack_fields(tokens, 8)
    assert len(data) == count
    assert np.array_equal(unpack_fields(data, count, model), tokens)
    with pytest.raises(FrameError):
        unpack_fields(data + bytes(bits), count, model)


@pytest.mark.parametrize("storage", list(Storage))
@pytest.mark.parametrize("bits", range(4))
def test_settings_invert(storage: Storage, bits: int) -> None:
    setting = Setting(storage, bool(bits & 1), bool(bits & 2))
    if setting.bottom_coded and not setting.has_bottom:
        with pytest.raises(FrameError):
            Setting.from_byte(setting.to_byte(), two_levels=True)
        return
    assert Setting.from_byte(setting.to_byte(), two_levels=True) == setting
    if storage:
        with pytest.raises(FrameError):
            Setting.from_byte(setting.to_byte(), two_levels=False)


@given(st.integers(1, 4), st.integers(1, 50), st.integers(1, 50), st.integers(0, 99))
def test_side_information_inverts(n: int, h: int, w: int, seed: int) -> None:
    shape = (n, *n_blocks((h, w)))
    blocks = np.random.default_rng(seed).random(shape) < 0.5
    contrast = Contrast(seed, 255 - seed)
    mapped = blocks.any() and not blocks.all()
    data = pack_side(contrast, blocks if mapped else None)
    back, found = unpack_side(data, Storage.MAPPED if mapped else Storage.ALL, shape)
    assert back == contrast
    assert found is None if not mapped else np.array_equal(found, blocks)  # type: ignore[arg-type]
    assert stored_tokens(blocks, (h, w)).shape == (n, h, w)
    if mapped:
        for wrong in (data + b"\0", data[:-1], data[:2] + bytes(len(data) - 2), data[:2] + b"\xff" * (len(data) - 2)):
            with pytest.raises(FrameError):
                unpack_side(wrong, Storage.MAPPED, shape)


@pytest.mark.parametrize("share", [0, 0.1, 0.25, 0.5, 0.9, 1])
def test_chosen_blocks_are_the_worst_and_as_many_as_asked(share: float) -> None:
    rng = np.random.default_rng(0)
    missed = rng.random((4, 10, 10)).astype(np.float32)
    tokens = np.full(missed.shape, 256)
    chosen = choose_blocks(missed, tokens, share)
    assert abs(chosen.mean() - share) <= 1 / 400
    if chosen.any() and not chosen.all():
        assert missed[chosen].min() >= missed[~chosen].max()


def test_sums_and_repeats_undo_each_other() -> None:
    values = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    assert np.array_equal(summed(repeated(values, (2, 3)), (2, 3)), 6 * values)
    assert summed(np.ones((2, 5, 7), np.float32), (4, 4)).tolist() == 2 * [[[16, 12], [4, 3]]]


def filled(model: TokenModel, top: Tokens, keys: NDArray[np.uint64], **words: Any) -> Tokens:
    bottom = np.full((len(top), *(2 * n for n in top.shape[1:])), model.unknown)
    make_up(model, bottom, bottom == model.unknown, top, keys, Options(**words))
    return bottom


def test_drawn_tokens_follow_their_tables() -> None:
    model = vq.model()
    top = some_tokens(model, (2, 40, 40))
    keys = draw_keys(model.model.card.digest, top, (2, 80, 80))
    bottom = filled(model, top, keys)
    assert bottom.max() < 256
    assert np.array_equal(filled(model, top, keys, block_voxels=1 << 10), bottom)
    first = group_numbers(model, "bottom", (80, 80)) == 0
    steep = repeated(np.abs(2 * (top // 4 % 4) - 3) // 2 + np.abs(2 * (top % 4) - 3) // 2, (2, 2))
    tables = model.tables["bottom"]
    for table, here in ((1, first & (steep < 2)), (2, first & (steep >= 2))):
        drawn = np.bincount(bottom[here] // 16, minlength=16) / here.sum()
        expected = tables.freqs[table, :256].reshape(16, 16).sum(1) / 2**14
        assert np.abs(drawn - expected).max() < 4 * math.sqrt(0.25 / here.sum())


def test_keys_are_fixed_by_model_chunk_and_place() -> None:
    top = np.arange(6).reshape(1, 2, 3)
    keys = draw_keys(bytes(range(32)), top, (1, 4, 6))
    # written down once: what archives show must not change with this code
    assert [hex(int(k)) for k in keys.reshape(-1)[:2]] == EXPECTED_KEYS
    assert np.array_equal(draw_keys(bytes(range(8)), top, (1, 4, 6)), keys)
    assert not np.array_equal(draw_keys(bytes(range(1, 9)), top, (1, 4, 6)), keys)
    assert not np.array_equal(draw_keys(bytes(range(32)), top + 1, (1, 4, 6)), keys)
    assert len(np.unique(keys)) == keys.size


EXPECTED_KEYS = ["0x753107c8b7962b2c", "0xd3281993ebe22005"]  # worked out with Python's integers


def test_nearest_codes_are_the_nearest() -> None:
    model = vq.model()
    contrast = Contrast.of_tissue(fibsem().astype(np.float32))
    image = contrast.to_image(fibsem()[:2, :64, :64].astype(np.float32))
    near = model.nearest("top", image, None, 5, OPTIONS)
    assert near.code.shape == near.excess.shape == (2, 5, 8, 8)
    assert (near.excess[:, 0] == 0).all()
    assert (np.diff(near.excess, axis=1) >= 0).all()
    single = model.nearest("top", image, None, 1, Options(block_voxels=1 << 10))
    assert np.array_equal(single.code[:, 0], near.code[:, 0])


def test_every_place_in_a_cell_has_tables_of_its_own() -> None:
    model = vq.model("tiny-vq3d")
    tokens = some_tokens(model, (2, 4, 6, 8))
    index = model.table_index("top", tokens, None, OPTIONS)
    for place, (y, x) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        own = index[:, :, y::2, x::2]
        assert 1 + 17 * place <= own.min()
        assert own.max() <= 17 * (place + 1)
    assert np.array_equal(model.table_index("top", tokens, None, Options(block_voxels=1 << 10)), index)
