"""Fitted latents in frames: the budget, what comes back, the entropy model recomputed, chunks that hold none."""

from __future__ import annotations

import itertools
import sys
import threading
from typing import Any

import numpy as np
import pytest

from tests.codecs.fitted import chunks, encode, frames, spec
from tests.volumes import Array, fibsem, noise
from zarr_emcodec import INRField, options
from zarr_emcodec.codecs import INRSpec, decode_many, decode_sections, encode_many, latents_encode
from zarr_emcodec.codecs.latents_coding import decode_part, encode_part
from zarr_emcodec.codecs.latents_context import OWN_MAX, SIZE_MAX, LatentsModel, latents_model_of, places
from zarr_emcodec.entropy import coder
from zarr_emcodec.errors import FrameError, MissingExtraError, SpecError
from zarr_emcodec.frame import Kind, inspect, unpack
from zarr_emcodec.quality import psnr
from zarr_emcodec.runtime import current, find_model

MODEL = find_model("inr-latents")


def decode(frame: bytes) -> Array:
    return decode_many([frame])[0]


@pytest.mark.parametrize("name", chunks())
def test_the_ratio_is_kept_and_used(name: str) -> None:
    chunk, words = chunks()[name]
    frame = frames()[name]
    back = decode(frame)
    assert (back.shape, back.dtype) == (chunk.shape, chunk.dtype)
    kind = inspect(frame).kind
    assert kind == ("masked" if "masked" in name else "latent")
    if kind == "latent":
        budget = chunk.nbytes / words.get("ratio", 32)
        assert 0.94 * budget < len(frame) <= budget


@pytest.mark.parametrize(("ratio", "floor"), [(16, 30.0), (64, 28.0), (300, 23.0), (1024, 19.0)])
def test_volumes_at_any_ratio(ratio: float, floor: float) -> None:
    frame = encode(fibsem(), ratio=ratio)
    assert len(frame) <= fibsem().nbytes / ratio
    assert psnr(fibsem(), decode(frame)) > floor


def test_volumes_lie_on_a_grid_of_volumes_and_sections_do_not() -> None:
    def axes(name: str) -> int:
        return bytes(unpack(frames()[name]).sections[0])[0]

    assert axes("volume") == 3
    assert axes("section") == axes("thin") == 2
    unlike = np.stack([np.rot90(fibsem()[4 * i], i) for i in range(8)])  # neighbours that have nothing in common
    assert bytes(unpack(encode(unlike)).sections[0])[0] == 2


@pytest.mark.parametrize("name", ["volume", "section", "5d", "masked bitmap"])
def test_equal_chunks_give_equal_bytes(name: str) -> None:
    chunk, words = chunks()[name]
    both = encode_many(spec(**words), [chunk, chunk])
    assert both[0] == both[1] == frames()[name]
    first, second = decode_many(both)
    assert np.array_equal(first, second)


def test_threads_share_a_model() -> None:
    found: dict[int, bytes] = {}

    def work(i: int) -> None:
        found[i] = decode(frames()["volume"]).tobytes()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found.values())) == 1


@pytest.mark.parametrize("name", ["volume", "ragged volume", "thin", "5d"])
def test_planes_alone_are_planes_of_the_whole(name: str) -> None:
    whole = decode(frames()[name])
    for start, stop in ((0, 1), (1, 2), (len(whole) - 1, len(whole)), (0, len(whole))):
        assert np.array_equal(decode_sections(frames()[name], start, stop), whole[start:stop])


def test_sections_in_several_parts() -> None:
    chunk = noise((6, 200, 200)) // 3 + np.uint8(90)
    frame = encode(chunk, ratio=16)
    assert len(unpack(frame).sections) > 2
    assert len(frame) <= chunk.nbytes / 16
    assert np.array_equal(decode_sections(frame, 4, 5), decode(frame)[4:5])


@pytest.mark.parametrize("ndim", [2, 3])
def test_tables_follow_from_what_is_known(ndim: int) -> None:
    """Every latent's table, recomputed one by one as FORMAT.md says, decodes the stream in one go."""
    model = latents_model_of(MODEL, ndim)
    card = model.card
    rng = np.random.default_rng(ndim)
    grid = (3, 4) if ndim == 2 else (2, 3, 3)
    level = 120
    symbols = np.rint(rng.laplace(0, 0.8, (2, card.channels, *grid))).astype(np.int32)
    symbols[:, model.base[level] <= 0] = 0
    data = encode_part(model, level, symbols, current())
    assert np.array_equal(decode_part(model, level, data, 2, grid, current()), symbols)
    values, index = naive_order(model, level, symbols)
    assert np.array_equal(coder.decode(data, index, model.tables), values)


def naive_order(model: LatentsModel, level: int, symbols: Array) -> tuple[Array, Array]:
    """Symbols in coding order with their tables, a scalar at a time."""
    card, grid = model.card, symbols.shape[2:]
    size = np.minimum(np.abs(symbols), SIZE_MAX)
    bounds = (0, *card.bands)
    band_of = np.searchsorted(card.bands, np.arange(card.channels), side="right")
    bucket = level * len(model._weights) // card.levels
    known: set[tuple[int, tuple[int, ...], int]] = set()  # section, cell, band
    values, index = [], []
    for number, place in enumerate(places(card.ndim)):
        cells = [c for c in np.ndindex(*grid) if tuple(x % 2 for x in c) == place]
        for band, (low, high) in enumerate(itertools.pairwise(bounds)):
            for n in range(len(symbols)):
                rows = {cell: around(size, known, n, cell, band_of, grid) for cell in cells}
                for channel in range(low, high):
                    for cell in cells:
                        totals, inside, beside = rows[cell]
                        weights = model._weights[bucket, number, band].astype(int)
                        activity = int(weights[0] @ totals + weights[1] @ inside)
                        kind = int((model._edges[bucket, number, band] <= activity).sum())
                        own = min(int(beside[channel]), OWN_MAX)
                        move = int(model._moves[bucket, number, band, kind, own])
                        base, shape = int(model.base[level, channel]), int(model.shape[level, channel])
                        table = min(max(base + move, 1), card.scales) + card.scales * shape if base > 0 else 0
                        values.append(symbols[(n, channel, *cell)])
                        index.append(table)
            known |= {(n, cell, band) for n in range(len(symbols)) for cell in cells}
    return np.array(values, np.int32), np.array(index, np.uint8)


def around(
    size: Array, known: set[Any], n: int, cell: tuple[int, ...], band_of: Array, grid: tuple[int, ...]
) -> tuple[Array, Array, Array]:
    """Sums of bands around a cell and in it, and of each channel around it, of what is known."""
    bands = int(band_of.max()) + 1
    totals, inside, beside = np.zeros(bands, int), np.zeros(bands, int), np.zeros(len(band_of), int)
    for move in itertools.product((-1, 0, 1), repeat=len(grid)):
        other = tuple(a + b for a, b in zip(cell, move, strict=True))
        if not all(0 <= a < b for a, b in zip(other, grid, strict=True)):
            continue
        for band in range(bands):
            if (n, other, band) in known:
                there: Any = (n, slice(None), *other)
                sizes = np.where(band_of == band, size[there], 0)
                (totals if any(move) else inside)[band] += sizes.sum()
                if any(move):
                    beside += sizes
    return totals, inside, beside


def test_backends_agree() -> None:
    with options(entropy_backend="numpy"):
        assert encode(fibsem()[:16]) == encode_many(spec(), [fibsem()[:16]], current())[0]
        back = decode(frames()["volume"])
    with options(entropy_backend="numba"):
        assert np.array_equal(decode(frames()["volume"]), back)


def test_what_no_budget_holds_is_coarser_still() -> None:
    chunk = noise((8, 128, 128))
    for ratio in (16, 1024):
        assert len(encode(chunk, ratio=ratio)) <= chunk.nbytes / ratio


@pytest.mark.parametrize("shape", [(40, 40), (1, 3), (1, 1, 2), (5, 2, 2)])
def test_small_chunks_take_what_a_header_does(shape: tuple[int, ...]) -> None:
    chunk = fibsem()[tuple(slice(n) for n in (1,) * (3 - len(shape)) + shape)].reshape(shape)
    frame = encode(chunk, ratio=256)
    assert len(frame) <= 64
    assert decode(frame).shape == shape


def test_chunks_that_readers_would_refuse_are_lossless() -> None:
    chunk = np.ascontiguousarray(fibsem().reshape(-1, 2, 2)[:3000])
    with options(max_chunk_bytes=1 << 19):
        frame = encode(chunk)
        assert inspect(frame).kind == "lossless"
        assert np.array_equal(decode(frame), chunk)


def test_constant_chunks_and_nan() -> None:
    assert inspect(encode(np.full((4, 64, 64), 7, np.uint8))).kind == "constant"
    chunk = fibsem()[:4].astype(np.float32)
    chunk[2, 3, 4] = np.nan
    with pytest.raises(SpecError, match="NaN"):
        encode(chunk)


def test_the_guard_is_kept_by_a_finer_level_or_losslessly() -> None:
    chunk = fibsem()[:16]
    plain = encode(chunk, ratio=200)
    finer = encode(chunk, ratio=200, min_psnr=30.0)
    assert psnr(chunk, decode(plain)) < 30 <= psnr(chunk, decode(finer))
    assert inspect(finer).kind == "latent"
    assert len(finer) > len(plain)
    assert inspect(encode(chunk, max_error=3)).kind == "lossless"


def test_words_that_latents_have_no_use_for() -> None:
    for words in ({"layers": 4}, {"prior": "vae"}, {"ratio": 4}, {"backbone": "pyramid"}, {"mode": "nominal"}):
        with pytest.raises(SpecError):
            spec(**words)
    assert INRSpec(backbone="latents").model == MODEL.card.id


def test_a_frame_answers_between_voxels_with_the_nearest() -> None:
    whole = decode(frames()["volume"])
    field = INRField(frames()["volume"])
    assert field[5, 40, 77] == whole[5, 40, 77]
    assert np.array_equal(field[::7, 3:9, ::-11], whole[::7, 3:9, ::-11])
    assert field.at([[5.4, 39.6, 77.2]]).tolist() == [whole[5, 40, 77]]


def test_without_steps_no_torch_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "zarr_emcodec.fitting.latents", raising=False)
    assert inspect(encode(fibsem()[:8])).kind == "latent"
    with pytest.raises(MissingExtraError, match="torch"):
        encode(fibsem()[:8], effort=1)


def test_effort_pays_in_quality() -> None:
    pytest.importorskip("torch", reason="fitting needs torch")
    chunk = fibsem()[:1]
    start, fitted = (encode(chunk, ratio=64, effort=effort) for effort in (0, 1))
    assert psnr(chunk, decode(fitted)) > psnr(chunk, decode(start)) + 0.05
    assert encode(chunk, ratio=64, effort=1, seed=9) == fitted  # nothing is random


def test_a_fit_that_is_called_off_leaves_nothing() -> None:
    pytest.importorskip("torch", reason="fitting needs torch")
    from zarr_emcodec.fitting import watching

    told: list[float] = []

    def enough(voxels: float) -> None:
        told.append(voxels)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), watching(enough):
        encode(fibsem()[:1, :64, :64], effort=3)
    assert len(told) == 3
    told.clear()
    with watching(told.append):
        encode(fibsem()[:1, :64, :64], effort=1)
    assert sum(told) == pytest.approx(64 * 64)


def test_no_round_is_begun_after_the_time_limit() -> None:
    pytest.importorskip("torch", reason="fitting needs torch")
    from zarr_emcodec.fitting import watching

    told: list[float] = []
    with watching(told.append):
        limited = encode(fibsem()[:1], ratio=64, effort=9, time_limit=1e-4)
    assert limited == encode(fibsem()[:1], ratio=64)
    assert sum(told) == pytest.approx(128 * 128)


def test_budgets_of_parts() -> None:
    assert latents_encode.ROUNDS[0] == 0
    assert all(a < b for a, b in itertools.pairwise(latents_encode.ROUNDS))
    with pytest.raises(FrameError):
        decode_part(latents_model_of(MODEL, 2), 120, b"", 1, (2, 2), current())
    assert inspect(frames()["volume"]).kind == Kind.LATENT.name.lower()
