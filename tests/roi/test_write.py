from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import zarr_emcodec
from tests.roi.conftest import CHUNKS, LAYOUTS, SHAPE, frames
from tests.volumes import as_dtype, fibsem
from zarr_emcodec import codecs
from zarr_emcodec.errors import SpecError
from zarr_emcodec.roi import write_roi
from zarr_emcodec.roi.voxels import voxels_of


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The masks that came with chunks; the codec at hand stores them all alike."""
    seen: list[Any] = []
    real = codecs.encode_many

    def encode(spec: Any, chunks: Any, *, roi: Any = ()) -> Any:
        seen.extend(roi)
        return real(spec, chunks)

    monkeypatch.setattr(codecs, "encode_many", encode)
    return seen


def tissue(dtype: str = "uint8") -> Any:
    data = as_dtype(fibsem()[: SHAPE[0], : SHAPE[1], : SHAPE[2]], dtype)
    data[:8, 32:64, 32:64] = 0
    data[8:16, :, 32:] = 0
    data[16:, 64:] = 0  # all of one shard
    return data


def empty(dtype: str = "uint8", layout: str = "v3", **words: Any) -> Any:
    words = {"chunks": CHUNKS, "ratio": 16, **LAYOUTS[layout], **words}
    return zarr_emcodec.create_array({}, shape=SHAPE, dtype=dtype, **words)


@pytest.mark.parametrize("dtype", ["uint8", ">u2"])
def test_what_is_stored_is_what_zarr_stores(layout: str, dtype: str, masks: list[Any]) -> None:
    data = tissue("uint8" if dtype == "uint8" else "uint16").astype(dtype)
    by_zarr, ours = empty(dtype, layout), empty(dtype, layout)
    by_zarr[...] = data
    ours[...] = 3  # to be replaced, and removed
    told: list[Any] = []
    report = write_roi(ours, data, np.s_[0:9, 10:40, 60:70], progress=lambda *n: told.append(n))
    assert frames(ours) == frames(by_zarr)
    assert sorted(ours.store._store_dict) == sorted(by_zarr.store._store_dict)
    assert np.array_equal(np.asarray(ours[:5]), np.asarray(by_zarr[:5]))
    assert report.n_chunks == len(frames(ours)) == len(masks)
    assert (report.raw_bytes, told[-1]) == (data.nbytes, (data.nbytes, data.nbytes))
    assert report.rho == 9 * 30 * 10 / data.size
    assert report.in_roi == 2 * 2 * 2
    assert report.stored_bytes == sum(
        len(v) for k, v in ours.store._store_dict.items() if "json" not in k and ".z" not in k
    )


def test_shards_with_their_index_in_front(masks: list[Any], tmp_path: Path) -> None:
    from zarr.codecs import ShardingCodec

    from zarr_emcodec import v3

    serializer = ShardingCodec(chunk_shape=CHUNKS, codecs=[v3.VAECodec(ratio=16)], index_location="start")
    made: Any = zarr.create_array(
        tmp_path, shape=(16, 64, 64), dtype="u1", chunks=(16, 64, 64), serializer=serializer, compressors=None
    )
    write_roi(made, tissue()[:16, :64, :64], (...,))
    alone: Any = zarr_emcodec.create_array(
        {}, data=tissue()[:16, :64, :64], chunks=CHUNKS, codec=zarr_emcodec.VAECodec(ratio=16)
    )
    assert len(frames(made)) == len(frames(alone)) == 5
    assert np.asarray(made[0:8, 32:64, 32:64]).max() == 0


def test_masks_are_those_of_the_chunks(masks: list[Any]) -> None:
    data = np.full(SHAPE, 9, np.uint8)
    wanted = np.random.default_rng(1).random(SHAPE) < 0.01
    array = empty()
    write_roi(array, data, wanted)
    back = np.zeros([n * c for n, c in zip((3, 4, 4), CHUNKS, strict=True)], np.bool_)
    for index, mask in zip(np.ndindex(3, 4, 4), masks, strict=True):
        back[tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, CHUNKS, strict=True))] = mask
    assert np.array_equal(back[: SHAPE[0], : SHAPE[1], : SHAPE[2]], wanted)
    assert back.sum() == wanted.sum()  # nothing in the padding


def test_what_cannot_be_written_is_said(array: Any, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="codec 'vae' stores no region apart"):
        write_roi(empty(), tissue(), (...,))
    with pytest.raises(SpecError, match="the array has"):
        write_roi(array, tissue()[1:], (...,))
    with pytest.raises(SpecError, match="reading only"):
        write_roi(zarr.open_array(array.store.root, mode="r"), tissue(), (...,))
    from zarr.codecs import TransposeCodec

    from zarr_emcodec import v3

    turned: Any = zarr.create_array(
        tmp_path / "t", data=tissue(), chunks=CHUNKS, filters=[TransposeCodec(order=(2, 1, 0))],
        serializer=v3.VAECodec(ratio=16), compressors=None,
    )  # fmt: skip
    with pytest.raises(SpecError, match="TransposeCodec changes the chunks"):
        write_roi(turned, tissue(), (...,))


BOX: Any = np.s_[3:11, 5:17, 30:50]
WHOLE = (20, 37, 50)


def in_whole(mask: Any) -> Any:
    return mask[BOX]


@settings(max_examples=40, deadline=None)
@given(factor=st.tuples(*[st.integers(1, 9)] * 3), seed=st.integers(0, 999))
def test_voxels_of_a_coarse_mask(factor: tuple[int, ...], seed: int) -> None:
    coarse = np.random.default_rng(seed).random([-(-n // f) for n, f in zip(WHOLE, factor, strict=True)]) < 0.3
    fine = coarse
    for axis, f in enumerate(factor):
        fine = fine.repeat(f, axis)
    assert np.array_equal(voxels_of(coarse, BOX, WHOLE, factor=factor), in_whole(fine))


@settings(max_examples=40, deadline=None)
@given(
    points=st.lists(st.tuples(*[st.integers(0, n - 1) for n in WHOLE]), min_size=1, max_size=4),
    radius=st.one_of(st.sampled_from([0, 1, 4.5]), st.tuples(*[st.sampled_from([0, 2, 7.5])] * 3)),
)
def test_voxels_around_points(points: list[tuple[int, ...]], radius: Any) -> None:
    where: Any = np.moveaxis(np.indices(WHOLE), 0, -1)
    reach = np.broadcast_to(np.asarray(radius, float), (3,))
    mask = np.zeros(WHOLE, np.bool_)
    for point in points:
        away = np.abs(where - np.array(point))
        scaled = np.where(reach > 0, away / np.where(reach > 0, reach, 1), np.where(away > 0, np.inf, 0))
        mask |= (scaled**2).sum(-1) <= 1
    assert np.array_equal(voxels_of(np.array(points), BOX, WHOLE, radius=radius), in_whole(mask))


def test_voxels_of_boxes() -> None:
    boxes: Any = [np.s_[0:5, 0:6, 0:31], np.s_[10:20, :, 49], np.s_[0:1, 0:1, 0:1]]
    mask = np.zeros(WHOLE, np.bool_)
    mask[boxes[0]] = True
    assert np.array_equal(voxels_of(boxes[0], BOX, WHOLE), in_whole(mask))
    mask[boxes[1]] = True
    assert np.array_equal(voxels_of(boxes, BOX, WHOLE), in_whole(mask))
    assert not voxels_of([], BOX, WHOLE).any()
