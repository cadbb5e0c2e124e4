from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import WrapperStore

from tests.roi.conftest import CHUNKS, SHAPE
from zarr_emcodec import options
from zarr_emcodec.errors import JobError, SpecError
from zarr_emcodec.roi import read_roi
from zarr_emcodec.roi.fetch import Frames


@pytest.mark.parametrize(
    "box",
    [
        np.s_[...],
        np.s_[3:17, 10:99, 5:128],
        np.s_[19:20, 99:100, 127:128],
        np.s_[8:16, 32:64, 32:64],
        np.s_[0:3, 30:70, 30:70],  # the constant chunk and the one that is not stored
        np.s_[5, 0:10, :],
    ],
)
def test_a_box_is_what_zarr_reads_there(array: Any, box: Any) -> None:
    got = read_roi(zarr.open_array(array.store.root, mode="r"), box, "full")
    box = tuple(slice(part, part + 1) if isinstance(part, int) else part for part in box) if box != ... else box
    expected = np.asarray(array[box])
    assert got.dtype == np.uint8
    assert np.array_equal(got, expected)


def test_a_halo_grows_the_box_as_far_as_the_array_goes(array: Any) -> None:
    got = read_roi(array, np.s_[4:10, 50:60, 120:128], "full", halo=(2, 8, 16))
    assert np.array_equal(got, np.asarray(array[2:12, 42:68, 104:128]))
    assert np.array_equal(read_roi(array, np.s_[0:1, 0:1, 0:1], "full", halo=2), np.asarray(array[:3, :3, :3]))


def test_chunks_outside_the_region_are_decoded_at_the_base(array: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[str | None, int]] = []
    real = Frames.decode

    def decode(self: Frames, indices: Any, tier: Any, planes: Any = None) -> Any:
        decoded.append((tier, len(indices)))
        return real(self, indices, "full", planes)

    monkeypatch.setattr(Frames, "decode", decode)
    from zarr_emcodec.roi import tiers

    monkeypatch.setattr(tiers, "tiers_of", lambda _: ("top", "prior", "full"))
    told: list[Any] = []
    got = read_roi(array, np.s_[:, :, 0:64], roi=np.array([[0, 0, 0]]), radius=4, progress=lambda *n: told.append(n))
    assert np.array_equal(got, np.asarray(array[:, :, 0:64]))
    assert decoded == [("prior", 1), ("top", 23)]
    assert told[-1] == (got.nbytes, got.nbytes)


def test_nothing_of_the_process_or_the_store_is_changed(in_memory: Any) -> None:
    before = dict(in_memory.store._store_dict)
    with options(threads=2) as set_before:
        read_roi(in_memory, np.s_[0:5, 0:5, 0:5], "full")
        from zarr_emcodec.runtime import current

        assert current() == set_before
    assert in_memory.store._store_dict == before


class Counting(WrapperStore[Any]):
    """Counts the bytes that leave a store."""

    count = 0

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        found = await super().get(key, prototype, byte_range)
        Counting.count += 0 if found is None else len(found)
        return found


def test_of_a_shard_only_the_frames_asked_for_are_fetched(sharded: Any) -> None:
    counted = zarr.open_array(Counting(sharded.store), mode="r")
    frame = Frames(sharded).fetch([(0, 0, 0)])[0]
    assert frame is not None
    Counting.count = 0
    read_roi(counted, np.s_[0:1, 0:1, 0:1], "full")
    assert Counting.count == len(frame) + 8 * 16 + 4
    Counting.count = 0
    assert [header.shape for header in Frames(counted).headers([(0, 0, 0), (0, 0, 2)]) if header] == [CHUNKS, CHUNKS]
    assert Counting.count <= 2 * (8 * 16 + 4) + 2 * 64


def test_tiers_that_are_not_there_are_refused_before_anything_is_read(array: Any) -> None:
    with pytest.raises(SpecError, match="has tier 'full', not 'prior'"):
        read_roi(array, np.s_[0:1, 0:1, 0:1])
    with pytest.raises(SpecError, match="not 'top'"):
        read_roi(array, np.s_[0:1, 0:1, 0:1], "full", roi=np.s_[...,])
    with pytest.raises(SpecError, match="needs 'top', 'prior' or 'full'"):
        read_roi(array, np.s_[0:1, 0:1, 0:1], "fine")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="not inside the array"):
        read_roi(array, np.s_[0:99, 0:1, 0:1], "full")
    with pytest.raises(SpecError, match="halo"):
        read_roi(array, np.s_[0:1, 0:1, 0:1], "full", halo=-1)


def test_a_damaged_chunk_is_named(array: Any) -> None:
    data = Frames(array).fetch([(1, 0, 1)])[0]
    assert data is not None
    for path in Path(array.store.root).rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        if (at := content.find(data)) >= 0:
            path.write_bytes(content[: at + 40] + bytes([content[at + 40] ^ 1]) + content[at + 41 :])
    with pytest.raises(JobError, match=r"chunk \(1, 0, 1\): frame byte .*CRC32C"):
        read_roi(array, (...,), "full")
    assert read_roi(array, np.s_[0:8, :, :], "full").shape == (8, *SHAPE[1:])


def test_a_broken_shard_is_told_from_a_missing_one(sharded: Any) -> None:
    path = Path(sharded.store.root) / "c" / "0" / "0" / "0"
    content = path.read_bytes()
    path.write_bytes(content[:-3] + b"abc")
    with pytest.raises(JobError, match=r"shard \(0, 0, 0\): .*does not match its checksum"):
        read_roi(sharded, np.s_[0:1, 0:1, 0:1], "full")
    path.write_bytes(content[300:])
    with pytest.raises(JobError, match=r"chunk|frame"):
        read_roi(sharded, np.s_[0:16, 0:64, 0:64], "full")
    path.unlink()
    assert not read_roi(sharded, np.s_[0:1, 0:1, 0:1], "full").any()
