from __future__ import annotations

import dataclasses
import json
import math
import pickle
import re
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import FOLDER as TOKEN_MODELS
from tests.volumes import as_dtype, fibsem
from zarr_emcodec import VAECodec, VAESpec, VQVAESpec, create_array, options, v3
from zarr_emcodec.errors import JobError, PlanMismatchError, SpecError
from zarr_emcodec.jobs.coding import codec_config
from zarr_emcodec.jobs.demo import SAMPLE
from zarr_emcodec.jobs.fitting import SHARD_BYTES, Fitting, choose_shards
from zarr_emcodec.jobs.memory import Memory, read_amplification
from zarr_emcodec.jobs.plan import Plan, differences, plan
from zarr_emcodec.jobs.sources import open_source

if TYPE_CHECKING:
    from pathlib import Path

    from zarr_emcodec._types import Shape

NOTHING = Memory(held={}, reading={}, writing={}, comparing={})


def planned(shape: Shape, chunks: Shape, shards: Shape | None = None, **words: Any) -> Plan:
    """A plan over nothing."""
    fixed: dict[str, Any] = {"source": "a.tif", "source_fingerprint": "1", "destination": "b.zarr", "dtype": "uint8"}
    return Plan(
        **{**fixed, "codec": codec_config(64), "memory": NOTHING, **words}, shape=shape, chunks=chunks, shards=shards
    )


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Shape, Shape, Shape]:
    ndim = draw(st.integers(2, 4))
    shape = tuple(draw(st.integers(1, 23)) for _ in range(ndim))
    chunks = tuple(draw(st.integers(1, 9)) for _ in range(ndim))
    return shape, chunks, tuple(chunk * draw(st.integers(1, 4)) for chunk in chunks)


@settings(deadline=None)
@given(layouts(), st.booleans())
def test_blocks_cover_every_voxel_once(layout: tuple[Shape, Shape, Shape], sharded: bool) -> None:
    shape, chunks, shards = layout
    made = planned(shape, chunks, shards if sharded else None)
    seen = np.zeros(shape, int)
    for index in range(made.n_blocks):
        box = made.box(index)
        assert all(part.start % edge == 0 for part, edge in zip(box, made.block, strict=True))
        assert made.coords(index) == tuple(part.start // edge for part, edge in zip(box, made.block, strict=True))
        assert np.ravel_multi_index(made.coords(index), made.grid) == index
        seen[box] += 1
    assert (seen == 1).all()
    assert made.raw_bytes == seen.size


@pytest.mark.parametrize("index", [-1, 8])
def test_there_are_no_further_blocks(index: int) -> None:
    with pytest.raises(IndexError, match="the plan has 8"):
        planned((4, 4, 4), (2, 2, 2)).box(index)


def fitting(shape: Shape, **words: Any) -> Fitting:
    fixed: dict[str, Any] = {"itemsize": 1, "source_chunks": None, "configs": (codec_config(64),), "threads": 1}
    return Fitting(
        **{**fixed, "block_voxels": 2**20, "mask_bytes": None, "source_held": 0, "max_memory": None, **words},
        shape=shape,
    )


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 5000), st.integers(64, 40000), st.integers(64, 40000)),
    st.tuples(st.sampled_from([1, 16, 64]), st.sampled_from([64, 512]), st.sampled_from([64, 512])),
    st.sampled_from([None, (1, 4096, 4096), (64, 64, 64), (200, 300, 100)]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([None, 4.2e8, 6e8, 1e9, 8e9]),
)
def test_a_layout_fits_the_memory_or_the_message_says_what_would(
    shape: Shape, chunks: Shape, source_chunks: Shape | None, itemsize: int, limit: float | None
) -> None:
    chunks = tuple(map(min, chunks, shape))
    tight = fitting(shape, itemsize=itemsize, source_chunks=source_chunks, max_memory=limit)
    shards = tight.shards("auto", chunks, 3)
    assert shards is None or all(s % c == 0 for s, c in zip(shards, chunks, strict=True))
    if limit is None or tight.memory(shards, chunks).peak_bytes <= limit:
        assert tight.check(shards, chunks) == tight.memory(shards, chunks)
        return
    with pytest.raises(JobError) as caught:
        tight.check(shards, chunks)
    text = str(caught.value)
    allowed = re.search(r"Allow ([\d,]+) MB", text)
    assert allowed
    enough = 1e6 * float(allowed[1].replace(",", ""))
    assert dataclasses.replace(tight, max_memory=enough).check(shards, chunks).peak_bytes <= enough
    if smaller := re.search(r"take (shards|chunks) ([\dx ]+?)(?: without shards)?, which need", text):
        extents = tuple(map(int, smaller[2].split(" x ")))
        assert tight.fits(*((extents, chunks) if smaller[1] == "shards" else (None, extents)))
    else:
        assert "no smaller layout fits" in text


def test_shards_are_large_where_there_is_enough_to_share() -> None:
    shape, chunks = (6400, 51200, 51200), (16, 512, 512)
    shards = choose_shards(shape, chunks, 1)
    assert shards is not None
    assert SHARD_BYTES <= math.prod(shards) < 2 * SHARD_BYTES
    assert choose_shards((64, 1024, 1024), chunks, 1) is None, "sixteen blocks of one chunk keep workers busy"
    assert choose_shards((128, 1024, 1024), chunks, 1) == (32, 512, 512)
    assert choose_shards(shape, chunks, 1, fits=lambda shards: math.prod(shards) < 2**25) == (64, 512, 512)


def test_shards_hold_whole_source_chunks_first() -> None:
    assert choose_shards((6400, 51200, 51200), (16, 512, 512), 1, source_chunks=(1, 4096, 4096)) == (16, 2048, 2048)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=3),
)
def test_read_amplification_counts_what_blocks_touch(axes: list[tuple[int, int, int]]) -> None:
    shape, block, unit = (tuple(axis[i] for axis in axes) for i in range(3))
    # brute force over enough blocks for edges to average out as the periodic count does
    found = read_amplification(block, unit, shape)
    assert found >= 1
    expected = 1.0
    for n, b, u in axes:
        spans = [(start, min(start + b, n)) for start in range(0, n, b)][: max(1, math.lcm(b, u) // b)]
        touched = sum(len({v // u for v in range(lo, hi)}) * u - max(0, -(-hi // u) * u - n) for lo, hi in spans)
        expected *= touched / sum(hi - lo for lo, hi in spans)
    assert found == pytest.approx(expected)


def test_a_plan_survives_json_and_pickle() -> None:
    made = plan(SAMPLE, "out.zarr", 16, chunks=(16, 64, 64), samples=2, regions=[(np.s_[:16, :64, :64], 8)])
    again = Plan.from_dict(json.loads(json.dumps(made.to_dict(), allow_nan=False)))
    assert again.digest == made.digest
    assert again == made
    assert pickle.loads(pickle.dumps(made)) == made
    assert again.to_dict()["n_blocks"] == made.n_blocks == math.prod(made.grid)


@pytest.mark.parametrize(
    "change",
    [{"shape": (30, 128, 128)}, {"fill_value": 3}, {"codec": {**codec_config(64), "ratio": 32.0}}, {"tissue": None}],
    ids=lambda change: next(iter(change)),
)
def test_a_plan_that_was_changed_by_hand_is_refused(change: dict[str, Any]) -> None:
    made = planned((32, 128, 128), (16, 64, 64), tissue={"kind": "threshold", "below": 3, "above": None})
    with pytest.raises(PlanMismatchError, match="changed by hand"):
        Plan.from_dict({**made.to_dict(), **change})


@pytest.mark.parametrize("wrong", [{}, {"format": 7}, {"shape": 3}])
def test_what_is_no_plan_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(PlanMismatchError, match="Make a new one"):
        Plan.from_dict({**planned((4, 4), (2, 2)).to_dict(), **wrong} if wrong else {})


def test_the_digest_is_of_what_decides_the_bytes_alone() -> None:
    made = planned((32, 128, 128), (16, 64, 64))
    same: dict[str, Any] = {"source": "b.tif", "destination": "s3://c", "note": "x", "threads": 4}
    for name, value in same.items():
        other = dataclasses.replace(made, **{name: value})
        assert other.digest == made.digest, name
        assert differences(made, other) == ()
    boxes = ({"where": {"kind": "boxes", "boxes": [[[0, 1]] * 3]}, "codec": codec_config(8), "ratio": 8},)
    others: dict[str, Any] = {
        "source_fingerprint": "2", "shape": (33, 128, 128), "dtype": "int16", "chunks": (8, 64, 64), "zarr_format": 2,
        "shards": (32, 64, 64), "fill_value": 1, "codec": codec_config(63), "regions": boxes,
        "tissue": {"kind": "threshold", "below": 3, "above": None},
    }  # fmt: skip
    digests = {made.digest}
    for name, value in others.items():
        other = dataclasses.replace(made, **{name: value})
        digests.add(other.digest)
        assert differences(made, other) == (name.removesuffix("_fingerprint"),)
    assert len(digests) == 1 + len(others)


def test_where_a_mask_lies_is_no_part_of_the_digest() -> None:
    mask = {"kind": "mask", "location": "a.npy", "cells": [2, 2], "sha256": "00"}
    made, moved, other = (
        planned((4, 4), (2, 2), tissue={**mask, **change})
        for change in ({}, {"location": "b.npy"}, {"sha256": "11"})
    )  # fmt: skip
    assert made.digest == moved.digest != other.digest


@pytest.mark.parametrize(
    "codec",
    [
        64,
        VAECodec(64),
        v3.VAECodec(64),
        VAESpec(ratio=64),
        {"ratio": 64},
        VAECodec(64).get_config(),
    ],
    ids=["ratio", "v2", "v3", "spec", "words", "config"],
)
def test_codecs_come_in_many_forms(codec: Any) -> None:
    assert plan(SAMPLE, "out.zarr", codec, samples=0).codec == VAECodec(64).get_config()


def test_token_codecs_are_planned_alike(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.tile(fibsem()[:2], (1, 8, 8)))
    with options(model_path=TOKEN_MODELS):
        made = plan(tmp_path / "a.npy", "out.zarr", {"id": "emcodec_vqvae", "ratio": 64}, samples=1)
        spec = VQVAESpec(ratio=64)
        assert plan(tmp_path / "a.npy", "out.zarr", spec, samples=0).digest == made.digest
        store: Any = zarr.storage.MemoryStore()
        assert made.chunks == create_array(store, shape=made.shape, dtype="u1", codec=spec).chunks
    assert made.estimate is not None
    assert made.estimate.ratio >= 64
    assert Plan.from_dict(json.loads(json.dumps(made.to_dict()))).digest == made.digest


@pytest.mark.parametrize("codec", ["x", True, {"id": "zlib"}, {"id": "emcodec_none"}, {"nothing": 1}])
def test_what_is_no_codec_of_ours_is_refused(codec: Any) -> None:
    with pytest.raises(SpecError):
        plan(SAMPLE, "out.zarr", codec, samples=0)


def test_a_plan_of_a_stack_writes_nothing(tmp_path: Path) -> None:
    spec = VAESpec(ratio=16, model="vae-2d-s16")
    made = plan(SAMPLE, tmp_path / "out.zarr", spec, chunks=(16, 64, 64), shards=(32, 64, 128), samples=2)
    assert (made.shape, made.dtype, made.chunks, made.shards) == ((32, 128, 128), "uint8", (16, 64, 64), (32, 64, 128))
    assert (made.grid, made.n_blocks) == ((1, 2, 1), 2)
    assert made.destination == str(tmp_path / "out.zarr")
    assert made.models[0]["model"].startswith("vae-2d-s16@")
    assert list(tmp_path.iterdir()) == []


def test_the_source_may_be_open_already() -> None:
    with open_source(SAMPLE) as volume:
        made = plan(volume, "out.zarr", 16, samples=0)
        assert volume.read(made.box(0)).shape == tuple(part.stop - part.start for part in made.box(0))
    assert made.digest == plan(SAMPLE, "out.zarr", 16, samples=0).digest


def test_a_changed_source_makes_another_plan(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", fibsem())
    first = plan(tmp_path / "a.npy", "out.zarr", 16, samples=0)
    np.save(tmp_path / "a.npy", fibsem()[:31])
    assert "source" in differences(first, plan(tmp_path / "a.npy", "out.zarr", 16, samples=0))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"shards": (20, 64, 64)}, "multiples of the chunks"),
        ({"shards": (32, 128, 128), "zarr_format": 2}, "needs zarr_format=3"),
        ({"fill_value": 300}, "fill_value 300: uint8 does not hold it"),
        ({"fill_value": float("nan")}, "it is no number"),
        ({"fill_value": 0.5}, "does not hold it"),
        ({"codec": {"min_psnr": 30}, "regions": [("boxes", 16)]}, "promises nothing of min_psnr"),
        ({"codec": {"max_error": 3}, "regions": [("boxes", {"max_error": 4})]}, "promises 4 of max_error"),
        ({"codec": {"max_error": 0}, "regions": [("boxes", {"min_psnr": 60})]}, "promises nothing of max_error"),
        ({"codec": {"ratio": 16, "background": 3}, "tissue": "boxes"}, "has to look for that"),
        ({"codec": {"ratio": 16, "background": None}, "tissue": "boxes"}, "has to look for that"),
        ({"tissue": "os.path:exists"}, "tells blocks, not voxels"),
    ],
)
def test_what_cannot_work_together_is_refused(words: dict[str, Any], told: str) -> None:
    boxes = [np.s_[:16, :64, :64]]
    regions = [(boxes, codec) for _, codec in words.get("regions", ())]
    tissue = {"tissue": boxes} if words.get("tissue") == "boxes" else {}
    with pytest.raises(SpecError, match=re.escape(told)):
        plan(SAMPLE, "out.zarr", samples=0, chunks=(16, 64, 64), **{**words, "regions": regions, **tissue})


def test_regions_may_promise_more() -> None:
    where = np.s_[:16, :64, :64]
    for codec in ({"min_psnr": 31}, {"max_error": 0}, {"ratio": 8, "min_psnr": 30}):
        made = plan(SAMPLE, "out.zarr", {"min_psnr": 30}, regions=[(where, codec)], chunks=(16, 64, 64), samples=0)
        assert [made.codec_index(i) for i in range(made.n_blocks)] == [1] + [0] * (made.n_blocks - 1)
        assert made.codec_of(0)["max_error"] == codec.get("max_error")


def test_a_background_of_its_own_is_looked_for(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", as_dtype(fibsem(), "int16"))
    made = plan(tmp_path / "a.npy", "o", 16, fill_value=-5, tissue=[np.s_[:, 3:, :]], samples=0)
    assert made.codec["background"] == -5
    assert isinstance(made.fill_value, int)


def test_labels_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.zeros((4, 8, 8), "u4"))
    with pytest.raises(SpecError, match="labels"):
        plan(tmp_path / "labels.npy", "out.zarr", samples=0)


def test_a_million_blocks_are_planned_at_once(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "big.zarr", shape=(6400, 102400, 102400), chunks=(64, 64, 64), dtype="u1")
    plan(tmp_path / "big.zarr", "warm.zarr", 64, samples=0)
    tracemalloc.start()
    started = time.perf_counter()
    made = plan(tmp_path / "big.zarr", "out.zarr", 64, shards=(64, 1024, 1024), samples=0)
    seconds = time.perf_counter() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.n_blocks == 10**6
    assert seconds < 2
    assert peak < 20e6
    assert made.box(999_999) == np.s_[6336:6400, 101376:102400, 101376:102400]
