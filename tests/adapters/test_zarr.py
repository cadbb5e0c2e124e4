"""The codec inside Zarr arrays: every format, dtype, order, shape and way of indexing."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
import zarr
import zarr.core.codec_pipeline

import zarr_emcodec
from tests.adapters.common import alone, get, keys, tissue, write
from tests.volumes import Array, as_dtype
from zarr_emcodec.quality import psnr
from zarr_emcodec.runtime import Model

LAYOUTS = ("v2", "v3", "sharded")
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "2d": ((70, 90), (64, 64)),
    "3d": ((5, 70, 48), (4, 48, 48)),
    "4d": ((2, 3, 40, 48), (1, 2, 40, 48)),
    "5d": ((2, 1, 3, 40, 40), (1, 1, 3, 40, 32)),
}
PIPELINES = [
    pytest.param(f"zarr.core.codec_pipeline.{name}", marks=() if there else pytest.mark.skip(f"no {name} in this Zarr"))
    for name in ("BatchedCodecPipeline", "FusedCodecPipeline")
    for there in [hasattr(zarr.core.codec_pipeline, name)]
]


@cache
def by_the_codec_alone(dtype: str, name: str) -> Array:
    return alone(as_dtype(volume(name), dtype), SHAPES[name][1])


def volume(name: str) -> Array:
    shape = SHAPES[name][0]
    flat: Array = tissue(int(np.prod(shape[:-2])), *shape[-2:])
    return flat.reshape(shape)


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(params=PIPELINES)
def pipeline(request: pytest.FixtureRequest) -> Any:
    with zarr.config.set({"codec_pipeline.path": request.param}):
        yield request.param


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Inference calls by network."""
    counted: Counter[str] = Counter()
    original = Model.run

    def run(self: Model, part: Any, *arguments: Any) -> Any:
        counted[part] += 1
        return original(self, part, *arguments)

    monkeypatch.setattr(Model, "run", run)
    return counted


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_what_comes_back_is_as_good_as_the_codec_alone(layout: str, dtype: str, name: str) -> None:
    data, chunks = as_dtype(volume(name), dtype), SHAPES[name][1]
    back: Array = write(data, layout, chunks)[...]
    assert type(back) is np.ndarray
    assert back.dtype == data.dtype
    assert back.shape == data.shape
    peak = float(data.max()) - float(data.min())
    assert psnr(data, back, peak=peak) >= psnr(data, by_the_codec_alone(dtype, name), peak=peak) - 0.05
    assert psnr(data, back, peak=peak) > 22


@pytest.mark.parametrize("name", SHAPES)
def test_fortran_order_in_v2_is_not_scrambled(name: str) -> None:
    data, chunks = volume(name), SHAPES[name][1]
    stored = write(data, "v2", chunks, order="F")
    assert stored.order == "F"
    back = stored[...]
    assert np.array_equal(back, write(data, "v2", chunks)[...])
    assert psnr(data, back) > 22
    part = (slice(0, 1), slice(3, 20)) if data.ndim < 4 else (0, slice(1, 3), slice(3, 20))
    assert np.array_equal(stored[part], back[part])


@pytest.mark.parametrize("source", [np.asfortranarray, lambda x: x[::-1, :, ::-1][::-1, :, ::-1], lambda x: x[:, ::2]])
def test_memory_layout_of_the_users_array_does_not_matter(layout: str, source: Any) -> None:
    data = source(tissue(5, 70, 48))
    chunks = (4, 32, 48)
    assert np.array_equal(write(data, layout, chunks)[...], write(data.copy(order="C"), layout, chunks)[...])


def test_big_endian_arrays_are_read_as_they_were_written(layout: str) -> None:
    data = as_dtype(tissue(4, 48, 48), "uint16")
    stored = write(data.astype(">u2"), layout, (4, 48, 48))
    assert np.array_equal(stored[...].astype("<u2"), write(data, layout, (4, 48, 48))[...])


@pytest.mark.parametrize("fill", [0, 200])
def test_padding_of_edge_chunks_costs_next_to_nothing(layout: str, fill: int) -> None:
    codec = zarr_emcodec.VAECodec(min_psnr=33.0)
    data = tissue(4, 80, 70)
    whole = write(data, layout, (4, 80, 70), codec=codec, fill_value=fill)
    edge = write(data, layout, (8, 128, 128), codec=codec, fill_value=fill)
    whole_bytes, edge_bytes = (sum(len(get(array, key)) for key in keys(array)) for array in (whole, edge))
    # the floor is over the chunk, padding included, so that even a coarser level may do for the padded one
    assert edge_bytes <= whole_bytes * 1.02 + 32
    assert psnr(data, edge[...]) > 25
    if layout == "v3":
        assert zarr_emcodec.inspect(get(edge, "c/0/0/0")).kind == "masked"


@pytest.mark.parametrize("fill", [0, 200])
def test_chunks_of_fill_value_have_no_key(layout: str, fill: int) -> None:
    data = tissue(4, 64, 128)
    data[:, :, 64:] = fill
    stored = write(data, layout, (4, 64, 32), fill_value=fill)
    assert len(keys(stored)) == (1 if layout == "sharded" else 2)
    assert (stored[:, :, 64:] == fill).all()
    stored[...] = fill
    assert keys(stored) == []
    assert (stored[...] == fill).all()


def test_empty_chunks_that_are_asked_for_cost_a_header(layout: str) -> None:
    data = np.full((4, 32, 64), 9, np.uint8)
    stored = write(data, layout, (4, 32, 32), fill_value=9, config={"write_empty_chunks": True})
    assert len(keys(stored)) == (1 if layout == "sharded" else 2)
    if layout != "sharded":
        for key in keys(stored):
            frame = get(stored, key)
            assert zarr_emcodec.inspect(frame).kind == "constant"
            assert len(frame) <= 24
    assert np.array_equal(np.asarray(zarr.open_array(stored.store, mode="r")[...]), data)


def test_an_array_without_dimensions_holds_its_value() -> None:
    for layout in ("v2", "v3"):
        assert write(np.array(7, np.uint8), layout, ())[...] == 7


SELECTIONS: dict[str, Any] = {
    "planes": np.s_[1:3],
    "one plane": np.s_[5],
    "last plane": np.s_[-1],
    "planes and rows": np.s_[2:7, 10:50],
    "stepped": np.s_[1:8:3, ::2, 5::7],
    "box": np.s_[3:4, 40:41, 20:60],
    "ellipsis": np.s_[..., 17],
    "integers": np.s_[2, 3, 4],
    "two integers": np.s_[2, 3],
    "row of all": np.s_[:, 12],
    "nothing": np.s_[3:3],
    "beyond": np.s_[6:100],
}


@cache
def master(layout: str) -> tuple[Any, Array]:
    """A store with one array in each layout, and what it holds."""
    stored = write(tissue(8, 64, 80), layout, (4, 48, 48))
    return stored.store, stored[...]


def test_basic_selections_equal_the_whole(layout: str, pipeline: str) -> None:
    store, whole = master(layout)
    stored: Any = zarr.open_array(store, mode="r")
    for name, chosen in SELECTIONS.items():
        assert np.array_equal(stored[chosen], whole[chosen]), name


def test_index_arrays_equal_the_whole(layout: str, pipeline: str) -> None:
    store, whole = master(layout)
    stored: Any = zarr.open_array(store, mode="r")
    planes, rows, columns = [6, 1, 2], [3, 63, 50], [79, 0, 48]
    assert np.array_equal(stored.oindex[planes, :, columns], whole[planes][:, :, columns])
    assert np.array_equal(stored.oindex[planes], whole[planes])
    assert np.array_equal(stored.oindex[3, rows], whole[3, rows])
    assert np.array_equal(stored.vindex[planes, rows, columns], whole[planes, rows, columns])
    mask = whole > np.percentile(whole, 99)
    assert np.array_equal(stored.vindex[mask], whole[mask])
    assert np.array_equal(stored.oindex[mask.any((1, 2))], whole[mask.any((1, 2))])
    if layout != "sharded":  # blocks are shards there
        assert np.array_equal(stored.blocks[1, 0], whole[4:8, :48])
    with pytest.raises(IndexError, match="step >= 1"):
        stored[::-1]


def test_one_plane_of_a_deep_chunk_is_decoded_without_the_rest(monkeypatch: pytest.MonkeyPatch, pipeline: str) -> None:
    stored = write(tissue(16, 32, 32), "v3", (16, 32, 32))
    whole = np.asarray(stored[...])
    sections: list[int] = []
    original = Model.run

    def run(self: Model, part: Any, inputs: Any, *rest: Any) -> Any:
        sections.append(len(next(iter(inputs.values()))))
        return original(self, part, inputs, *rest)

    monkeypatch.setattr(Model, "run", run)
    assert np.array_equal(stored[5], whole[5])
    assert np.array_equal(stored[2:4], whole[2:4])
    assert np.array_equal(stored.oindex[[3, 5]], whole[[3, 5]])
    assert sections == [1, 2, 3]


def test_partial_writes_merge(layout: str, pipeline: str) -> None:
    data = tissue(8, 64, 96)
    stored = write(data, layout, (4, 48, 48))
    before = np.asarray(stored[...])
    frames = {key: get(stored, key) for key in keys(stored)}
    stored[1:3, 4:20, 8:40] = 255 - data[1:3, 4:20, 8:40]
    data[1:3, 4:20, 8:40] = 255 - data[1:3, 4:20, 8:40]
    after = np.asarray(stored[...])
    assert psnr(data[1:3, 4:20, 8:40], after[1:3, 4:20, 8:40]) > 18
    assert psnr(data, after) > 22
    changed = [key for key in keys(stored) if get(stored, key) != frames[key]]
    assert len(changed) == 1  # the chunk, or the shard that it is in
    assert np.array_equal(after[4:], before[4:])
    assert np.array_equal(after[:, 48:], before[:, 48:])
    assert psnr(before[:4, 20:48, 48:], after[:4, 20:48, 48:]) > 30


def test_resize_and_append(layout: str) -> None:
    data = tissue(10, 48, 48)
    stored = write(data[:4], layout, (4, 48, 48))
    stored.append(data[4:])
    assert stored.shape == (10, 48, 48)
    assert psnr(data, np.asarray(stored[...])) > 22
    stored.resize((2, 48, 48))
    assert psnr(data[:2], np.asarray(stored[...])) > 22
    stored.resize((6, 48, 60))
    assert (np.asarray(stored[:, :, 48:]) == 0).all()


def test_many_chunks_share_one_inference(runs: Counter[str]) -> None:
    # equal chunks, since chunks at different levels of the quality ladder need not share the decoder's call
    data = np.tile(tissue(2, 32, 32), (2, 2, 3))
    with zarr.config.set({"codec_pipeline.batch_size": 64}):
        stored = write(data, "v3", (2, 32, 32))
        assert runs == {"encoder": 1}
        runs.clear()
        back = np.asarray(stored[...])
        assert runs == {"decoder": 1}
        sharded = write(data, "sharded", (2, 32, 32))
        runs.clear()
        assert np.array_equal(np.asarray(sharded[...]), back)
        assert runs["decoder"] == len(keys(sharded)) == 2
    with zarr.config.set({"codec_pipeline.batch_size": 1}):
        runs.clear()
        assert np.array_equal(np.asarray(zarr.open_array(stored.store, mode="r")[...]), back)
        assert runs["decoder"] == 12


def test_both_pipelines_store_the_same_bytes(layout: str, pipeline: str) -> None:
    data = tissue(5, 64, 80)
    stored = write(data, layout, (4, 48, 48))
    with zarr.config.set({"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"}):
        plain = write(data, layout, (4, 48, 48))
    assert {key: get(stored, key) for key in keys(stored)} == {key: get(plain, key) for key in keys(plain)}
    assert np.array_equal(np.asarray(stored[...]), np.asarray(plain[...]))
