"""Tiers of real frames: two-level tokens, stored in full, at the top alone, or where a region is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore, MemoryStore, WrapperStore

import zarr_emcodec
from tests.models import FOLDER
from tests.roi.conftest import LAYOUTS, frames, tiers_in
from tests.volumes import fibsem
from zarr_emcodec import codecs, options
from zarr_emcodec.codecs import VQVAESpec
from zarr_emcodec.errors import JobError, SpecError
from zarr_emcodec.quality import psnr
from zarr_emcodec.roi import downgrade_roi, draw_tiers, propose_roi, read_roi, tier_map, upgrade_roi, write_roi
from zarr_emcodec.runtime import current

CHUNKS = (8, 32, 64)
SHARDS = {"sharded": {"shards": (16, 64, 64)}}
FLAG = "emcodec:synthesised"


@pytest.fixture(autouse=True)
def models() -> Iterator[None]:
    with options(model_path=FOLDER):
        yield


def tokens(store: Any = None, layout: str = "v3", *, data: Any = None, keep: float = 1.0, **words: Any) -> Any:
    """16 x 96 x 128 voxels in 2 x 3 x 2 chunks."""
    data = fibsem()[:16, :96].copy() if data is None else data
    spec = VQVAESpec(model="tiny-vq", keep=keep, **words)
    place = {**LAYOUTS[layout], **SHARDS.get(layout, {})}
    return zarr_emcodec.create_array(
        MemoryStore() if store is None else store, data=data, codec=spec, chunks=CHUNKS, **place
    )


def decoded(array: Any, tier: Any) -> Any:
    """The whole array at a tier, chunk by chunk, without the room under test."""
    out = np.empty(array.shape, array.dtype)
    for index, data in frames(array).items():
        with options(tier=tier):
            [chunk] = codecs.decode_many([data])
        box = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, array.chunks, strict=True))
        out[box] = chunk[tuple(slice(0, n) for n in out[box].shape)]
    return out


def test_what_zarr_reads_follows_the_tiers(layout: str) -> None:
    array = tokens(layout=layout)
    top, full = decoded(array, "top"), decoded(array, "full")
    assert psnr(fibsem()[:16, :96], full) > psnr(fibsem()[:16, :96], top) + 2
    assert np.array_equal(array[...], full)
    downgrade_roi(array, (...,))
    assert np.array_equal(array[...], top)
    report = upgrade_roi(array, np.s_[0:1, 40:70, 0:1], "full")
    assert report.changed == 2
    mixed = top.copy()
    mixed[:8, 32:, :64] = full[:8, 32:, :64]
    assert np.array_equal(array[...], mixed)
    assert FLAG not in array.attrs


def test_a_read_only_store_reads_as_if_it_had_been_upgraded(layout: str, tmp_path: Path) -> None:
    tokens(tmp_path / "a.zarr", layout)
    array = zarr.open_array(tmp_path / "a.zarr", mode="r")
    top, full = decoded(array, "top"), decoded(array, "full")
    box = np.s_[3:14, 20:96, 10:100]
    before = current()
    assert np.array_equal(read_roi(array, box, "top"), top[box])
    assert np.array_equal(read_roi(array, box, "full"), full[box])
    mixed = top.copy()
    mixed[:8, :32, :64] = full[:8, :32, :64]
    assert np.array_equal(read_roi(array, box, "full", roi=np.array([[2, 9, 9]]), radius=3), mixed[box])
    assert current() == before


def test_prior_makes_up_what_is_not_stored_and_says_so(layout: str) -> None:
    array = tokens(layout=layout, keep=0.0)
    sizes = {key: len(value) for key, value in array.store._store_dict.items() if "json" not in key and ".z" not in key}
    assert set(tiers_in(array).ravel()) == {"top"}
    assert FLAG not in array.attrs
    prior, top = decoded(array, "prior"), decoded(array, "top")
    assert np.array_equal(read_roi(array, (...,)), prior)
    assert upgrade_roi(array, np.s_[0:1, 0:1, 0:1]).changed == 1
    assert np.array_equal(array[:8, :32, :64], prior[:8, :32, :64])
    assert np.array_equal(array[8:], top[8:])
    assert not np.array_equal(prior[:8, :32, :64], top[:8, :32, :64])
    assert {key: len(array.store._store_dict[key]) for key in sizes} == sizes  # its ratio is that of the top
    reopened: Any = zarr.open_array(array.store, mode="r")
    assert reopened.attrs[FLAG] is True
    assert array.attrs[FLAG] is True
    assert reopened.attrs["emcodec"]["model"] == "tiny-vq@1"
    downgrade_roi(array, (...,))
    assert np.array_equal(array[...], top)


def test_bottom_tokens_that_are_not_stored_cannot_be_decoded(layout: str) -> None:
    array = tokens(layout=layout, keep=0.0)
    before = dict(array.store._store_dict)
    with pytest.raises(SpecError, match=r"chunk \(0, 0, 0\): .*not 'full' \(its bottom tokens are not stored\)"):
        upgrade_roi(array, np.s_[0:1, 0:1, 0:1], "full")
    with pytest.raises(SpecError, match="bottom tokens are not stored"):
        read_roi(array, np.s_[0:1, 0:1, 0:1], "full")
    assert array.store._store_dict == before


def test_models_of_one_level_have_one_tier() -> None:
    spec = VQVAESpec(model="tiny-vq16")
    array: Any = zarr_emcodec.create_array({}, data=fibsem()[:4].copy(), codec=spec, chunks=(4, 64, 64))
    with pytest.raises(SpecError, match="'tiny-vq16@1' has tier 'full', not 'prior'"):
        upgrade_roi(array, (...,))
    assert read_roi(array, np.s_[0:1, 0:9, 0:9], "full").shape == (1, 9, 9)


def test_the_flag_stands_before_the_first_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    array = tokens(keep=0.0)
    seen: list[str] = []
    real = MemoryStore.set

    async def record(self: Any, key: str, value: Any, byte_range: Any = None) -> None:
        seen.append(key)
        await real(self, key, value, byte_range)

    monkeypatch.setattr(MemoryStore, "set", record)
    upgrade_roi(array, (...,))
    assert seen[0] == "zarr.json"
    assert seen.count("zarr.json") == 1
    assert len(seen) == 13
    seen.clear()
    upgrade_roi(array, (...,))
    assert seen == []


def test_attributes_of_others_are_kept(layout: str) -> None:
    array = tokens(layout=layout, keep=0.0)
    zarr.open_array(array.store, mode="r+").attrs["note"] = "set by somebody else"
    upgrade_roi(array, np.s_[0:1, 0:1, 0:1])
    assert zarr.open_array(array.store, mode="r").attrs["note"] == "set by somebody else"
    if layout == "v2":
        del array.store._store_dict[".zattrs"]
        upgrade_roi(zarr.open_array(array.store, mode="r+"), np.s_[8:9, 0:1, 0:1])
        assert json.loads(array.store._store_dict[".zattrs"].to_bytes()) == {FLAG: True}


class Counting(WrapperStore[Any]):
    """Counts the bytes that leave a store."""

    count = 0

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        found = await super().get(key, prototype, byte_range)
        Counting.count += 0 if found is None else len(found)
        return found


def bytes_read(array: Any, *words: Any, **more: Any) -> int:
    counted = zarr.open_array(Counting(array.store), mode="r")
    Counting.count = 0
    read_roi(counted, *words, **more)
    return Counting.count


@pytest.mark.parametrize("layout", ["v3", "sharded"])
def test_a_read_at_the_top_with_five_percent_in_full_costs_little_more_than_the_top(layout: str) -> None:
    array: Any = zarr_emcodec.create_array(
        {},
        data=np.tile(fibsem()[:32], (1, 2, 4))[:, :256, :512].copy(),
        codec=VQVAESpec(model="tiny-vq", mode="nominal", keep=1.0),
        chunks=(16, 128, 128),
        shards=(32, 256, 512) if layout == "sharded" else None,
    )  # 16 chunks
    everything, top = bytes_read(array, (...,), "full"), bytes_read(array, (...,), "top")
    assert top < 0.26 * everything  # a fifth, and headers
    mixed = bytes_read(array, (...,), "full", roi=np.s_[0:16, 0:128, 0:128])  # 6.25 %
    assert mixed < 1.3 * top
    assert bytes_read(array, np.s_[0:16, 0:128, 0:128], "full") < top


def test_proposals_come_from_the_top_alone() -> None:
    array = tokens()
    full, top = bytes_of(array, "full"), bytes_of(array, "top")
    assert top < 0.6 * full
    seen: list[Any] = []

    def watch(volume: Any) -> float:
        seen.append(volume)
        return float(volume.std())

    found = propose_roi(array, by=watch, fraction=0.2)
    assert found.tier == "top"
    assert np.array_equal(seen[0], decoded(array, "top")[:8, :32, :64])
    bits = propose_roi(array, by="uncertainty", fraction=1)
    assert len(bits.scores) == 12
    assert 0 < max(bits.scores) <= 8 / 64  # a top token is a byte for 64 voxels
    assert upgrade_roi(array, found, "full").already == len(found.boxes)


def bytes_of(array: Any, tier: Any) -> int:
    return bytes_read(array, (...,), tier)


def test_a_damaged_section_is_found_in_a_read_of_parts(tmp_path: Path) -> None:
    array = tokens(tmp_path / "a.zarr")
    path = tmp_path / "a.zarr" / "c" / "0" / "0" / "1"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert np.array_equal(read_roi(array, np.s_[0:1, 0:1, 64:65], "top").shape, (1, 1, 1))  # that of the bottom tokens
    with pytest.raises(JobError, match=r"chunk \(0, 0, 1\)"):
        read_roi(array, np.s_[0:1, 0:1, 64:65], "full")
    middle = len(data) // 10 + 60
    path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    with pytest.raises(JobError, match=r"chunk \(0, 0, 1\)"):
        read_roi(array, np.s_[0:1, 0:1, 64:65], "top")


@pytest.mark.parametrize("layout", ["v2", "v3", "sharded"])
def test_a_region_alone_has_its_bottom_tokens_stored(layout: str) -> None:
    data = np.tile(fibsem()[:16], (1, 4, 4))
    place: dict[str, Any] = {"sharded": {"shards": (16, 512, 512)}}.get(layout, dict(LAYOUTS[layout]))
    spec = VQVAESpec(model="tiny-vq", keep=0.0, mode="nominal")
    array: Any = zarr_emcodec.create_array(
        {},
        shape=data.shape,
        dtype="u1",
        codec=spec,
        chunks=(16, 256, 256),
        **place,
    )
    # 1 of 16 blocks of 16 x 16 bottom tokens (64 x 64 voxels) of the first chunk
    region = np.s_[0:16, 64:128, 0:64]
    report = write_roi(array, data, region)
    stored = report.stored_bytes
    assert report.rho == 1 / 64
    assert report.in_roi == 1
    expected = data.size / (64 / (1 + 4 / 64))
    assert expected < stored < 1.02 * expected + 4 * 80 + 4 * 16 + 4  # headers, and the shard's index
    tiers = tiers_in(array)
    assert tiers[0, 0, 0] == "full"
    full, top = np.asarray(array[...]), decoded(array, "top")
    assert psnr(data[region], full[region]) > psnr(data[region], top[region]) + 2
    assert np.array_equal(full[:, 256:], top[:, 256:])


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_region_of_all_and_of_nothing(dtype: str) -> None:
    data = fibsem()[:16, :96].astype(dtype)
    array = tokens(data=data, keep=0.0)
    kept = frames(array)
    write_roi(array, data, np.zeros((16, 96, 128), np.bool_))
    assert {index: len(frame) for index, frame in frames(array).items()} == {i: len(f) for i, f in kept.items()}
    write_roi(array, data, np.ones((2, 6, 8), np.bool_), factor=(8, 16, 16))
    assert np.array_equal(array[...], tokens(data=data, keep=1.0)[...])
    assert psnr(data, np.asarray(array[...]), peak=255) > 28


def test_a_picture_of_a_restored_chunk(tmp_path: Path) -> None:
    array = tokens(tmp_path / "a.zarr", keep=0.0)
    assert isinstance(array.store, LocalStore)
    upgrade_roi(array, np.s_[0:1, 0:1, 0:1])
    found = tier_map(array)
    assert found.counts == {"top": 11, "prior": 1}
    draw_tiers(tmp_path / "a.png", array, found)
    assert (tmp_path / "a.png").stat().st_size > 10_000
