"""Fields in frames: the budget, what comes back, exactness on every way, chunks that hold no network."""

from __future__ import annotations

import math
import random
import sys
import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="fitting a field needs torch")

from tests.codecs.fields import chunks, encode, frames, spec, tissue
from tests.volumes import Array, fibsem, noise, padded
from zarr_emcodec import options
from zarr_emcodec.codecs import decode_many, decode_sections, encode_many
from zarr_emcodec.codecs.siren_encode import _StepSearch
from zarr_emcodec.codecs.siren_frames import WeightCoder, too_small
from zarr_emcodec.codecs.tokens import Contrast
from zarr_emcodec.entropy import coder
from zarr_emcodec.entropy.tables import ideal_bits
from zarr_emcodec.errors import MissingExtraError, ModelError, SpecError
from zarr_emcodec.fitting import Architecture
from zarr_emcodec.frame import Kind, inspect, unpack
from zarr_emcodec.quality import psnr, worst_error
from zarr_emcodec.runtime import current, find_model

CODER = WeightCoder(find_model("inr-siren@1"))


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
        assert 0.95 * budget < len(frame) <= budget


@pytest.mark.parametrize("ratio", [8, 30, 111.5])
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_any_ratio_at_any_bits(ratio: float, bits: int) -> None:
    chunk = fibsem()[:3, :60, :64]
    frame = encode(chunk, ratio=ratio, bits=bits)
    assert 0.95 * chunk.nbytes / ratio < len(frame) <= chunk.nbytes / ratio


def test_more_effort_and_more_bytes_are_better() -> None:
    chunk = fibsem()[:4, :64, :64]
    worst, more_bytes, more_steps = (
        psnr(chunk, decode(encode(chunk, **words)), peak=255)
        for words in ({"ratio": 64}, {"ratio": 16, "effort": 1}, {"ratio": 64, "effort": 2})
    )
    assert worst > psnr(chunk, np.full_like(chunk, round(float(chunk.mean()))), peak=255) + 1
    assert more_bytes > worst + 2
    assert more_steps > worst + 1


def test_the_seed_decides() -> None:
    assert encode(tissue(), seed=0) == frames()["volume"] != encode(tissue(), seed=1)


@pytest.mark.parametrize("name", ["volume", "5d", "deep", "hybrid", "masked bitmap"])
@pytest.mark.parametrize("threads", [1, 2])
def test_planes_have_the_bits_of_the_whole(name: str, threads: int) -> None:
    whole = decode(frames()[name])
    with options(threads=threads):
        for start in range(len(whole)):
            assert np.array_equal(decode_sections(frames()[name], start, start + 1), whole[start : start + 1])


def test_decoding_loads_no_torch() -> None:
    import subprocess

    data = frames()["volume"].hex()
    code = (
        "import sys; from zarr_emcodec.codecs import decode_many\n"
        f"decode_many([bytes.fromhex('{data}')])\nassert not {{'torch', 'onnx', 'zarr'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["volume", "deep"])
def test_torch_decodes_within_a_grey_level(name: str) -> None:
    expected = decode(frames()[name])
    with options(backend="torch", provider="cpu"):
        found = decode(frames()[name])
    assert worst_error(expected, found) <= 1


def test_without_torch_encoding_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zarr_emcodec.fitting.fit", None)
    with pytest.raises(MissingExtraError, match=r"zarr_emcodec\[torch\]"):
        encode(tissue())


def test_a_chunk_without_room_names_the_smallest_that_works() -> None:
    chunk = tissue(2, 20, 30)
    with pytest.raises(
        SpecError, match=r"chunk of 1200 voxels: at ratio 32 .* the smallest chunk that works"
    ) as caught:
        encode(chunk)
    needed = caught.value.value
    edge = math.ceil((needed / 2) ** 0.5)
    assert len(encode(fibsem()[:2, :edge, :edge])) <= 2 * edge * edge / 32
    with pytest.raises(SpecError, match="smallest"):
        encode(fibsem()[:2, : edge - 2, :edge])
    assert str(too_small(5, 64, 100, 2)).startswith("chunk of 5 voxels: at ratio 64")


def test_what_is_refused_is_refused_before_anything_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zarr_emcodec.fitting.fit", None)
    with pytest.raises(SpecError, match="smallest"):
        encode_many(spec(), [tissue(), tissue(1, 9, 50)])


def test_few_voxels_and_little_tissue_are_stored_all_the_same() -> None:
    few = tissue(1, 3, 5)
    assert unpack(encode(few)).kind is Kind.LOSSLESS
    assert np.array_equal(decode(encode(few)), few)
    chunk = padded(tissue(1, 30, 31), (4, 64, 64))
    frame = encode(chunk)
    assert unpack(frame).kind is Kind.MASKED
    assert len(frame) <= chunk.nbytes / 32
    assert (decode(frame)[1:] == 0).all()


def test_constant_exact_and_broken_chunks() -> None:
    assert unpack(encode(np.full((2, 40, 40), 9, "u1"))).kind is Kind.CONSTANT
    assert np.array_equal(decode(encode(tissue(), max_error=0)), tissue())
    broken = tissue().astype("f4")
    broken[1, 2, 3] = np.nan
    with pytest.raises(SpecError, match="1 NaN or infinite"):
        encode(broken)
    with pytest.raises(SpecError, match="labels"):
        encode(tissue().astype("u4"))


def test_a_guard_that_is_missed_is_lossless() -> None:
    chunk = tissue()
    assert unpack(encode(chunk, min_psnr=15)).kind is Kind.LATENT
    for words in ({"min_psnr": 45}, {"max_error": 3}):
        frame = encode(chunk, **words)
        assert unpack(frame).kind is Kind.LOSSLESS
        assert np.array_equal(decode(frame), chunk)
    assert np.array_equal(decode(encode(noise((2, 40, 40)), max_error=9)), noise((2, 40, 40)))


def test_a_time_limit_holds_for_the_call() -> None:
    encode(tissue())  # what is loaded once is loaded
    began = time.perf_counter()
    frame = encode(fibsem()[:, :96, :96], effort=9, time_limit=2.0)
    assert time.perf_counter() - began < 3.5  # 2.1 on an idle machine
    assert len(frame) <= 32 * 96 * 96 / 32


def test_tiers_are_refused() -> None:
    with options(tier="full"):
        decode(frames()["volume"])
    with options(tier="top"), pytest.raises(SpecError, match="has one tier"):
        decode(frames()["volume"])


def test_the_best_table_is_the_cheapest() -> None:
    rng = random.Random(0)
    draw = np.random.default_rng(0)
    for _ in range(20):
        scale = 10 ** rng.uniform(-1, 2.6)
        symbols = np.rint(draw.laplace(0, scale, 300)).astype(np.int32)
        table, bits = CODER.best_table(symbols)
        costs = [ideal_bits(symbols, np.full(300, t, np.uint8), CODER.tables) for t in range(1, CODER.tables.n_tables)]
        if not symbols.any():
            assert (table, bits) == (0, 0.0)
        else:
            assert ideal_bits(symbols, np.full(300, table, np.uint8), CODER.tables) <= min(costs) + 1e-6
            assert abs(len(coder.encode(symbols, np.full(300, table, np.uint8), CODER.tables)) - bits / 8) < 6


def test_the_search_fills_its_room() -> None:
    rng = np.random.default_rng(1)
    net = Architecture(3, 24, 4)
    weights: list[Any] = [rng.normal(0, 10 ** rng.uniform(-2, 1), shape).astype("f4") for shape in net.shapes]
    felt = 10 ** rng.uniform(-2, 1, len(weights))
    for room in (400.0, 1300.0, 2600.0):
        search = _StepSearch(CODER, room, net)
        steps = search.search(weights, felt)
        size = sum(map(len, CODER.pack(net, Contrast(128, 100), weights, search.numbers(), current())))
        assert 0.96 * room < size <= room + 4
        # equal error for equal bits: steps fall with the root of what a weight's noise does
        ratios = steps * np.sqrt(felt)
        assert ratios.max() / ratios.min() < 1.07


def test_a_model_without_steps_is_refused() -> None:
    model = find_model("inr-siren@1")
    tables = dict(model.tables())

    class Other:
        card = model.card

        def tables(self) -> Any:
            return tables

    for steps in (None, np.zeros(4, np.float32), np.ones((2, 2), np.float32), np.ones(4), np.full(3, np.inf, "f4")):
        tables.pop("steps", None)
        if steps is not None:
            tables["steps"] = steps
        with pytest.raises(ModelError, match="step"):
            WeightCoder(Other())  # type: ignore[arg-type]
