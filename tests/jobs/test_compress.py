from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
import zarr

from tests.volumes import as_dtype, fibsem, noise
from zarr_emcodec.errors import JobError, SpecError, VerifyError
from zarr_emcodec.jobs import compare, grid
from zarr_emcodec.jobs.compress import compress
from zarr_emcodec.jobs.decompress import decompress
from zarr_emcodec.jobs.demo import SAMPLE
from zarr_emcodec.jobs.sources import Source
from zarr_emcodec.quality import psnr, ssim, worst_error

if TYPE_CHECKING:
    from pathlib import Path

CHUNKS = (16, 64, 64)


def bytes_under(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    "words",
    [
        {"zarr_format": 2},
        {"zarr_format": 3},
        {"shards": (32, 128, 128)},
        {"shards": (16, 64, 128), "embed_model": True},
    ],
    ids=["v2", "v3", "one shard", "shards and model"],
)
def test_the_report_tells_what_plain_zarr_reads_back(words: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    ticks: list[tuple[int, int]] = []
    report = compress(SAMPLE, out, ratio=8, chunks=CHUNKS, progress=lambda *t: ticks.append(t), **words)
    stored = zarr.open_array(out, mode="r")
    decoded = np.asarray(stored[...])
    assert report.stored_bytes == bytes_under(out)
    assert report.ratio == pytest.approx(fibsem().nbytes / bytes_under(out))
    assert report.psnr_db == pytest.approx(psnr(fibsem(), decoded))
    assert report.ssim == pytest.approx(ssim(fibsem(), decoded), abs=1e-6)
    corners = [np.s_[z : z + 16, y : y + 64, x : x + 64] for z in (0, 16) for y in (0, 64) for x in (0, 64)]
    assert report.lowest_chunk_db == pytest.approx(min(psnr(fibsem()[c], decoded[c]) for c in corners))
    assert report.worst_error == worst_error(fibsem(), decoded)
    assert (report.chunks, report.shards) == (CHUNKS, words.get("shards"))
    assert report.frames == {"latent": 8}
    assert ticks[-1] == (2 * fibsem().nbytes, 2 * fibsem().nbytes)
    assert [p.name for p in tmp_path.iterdir()] == ["out.zarr"]
    own = stored.attrs["emcodec"]
    assert isinstance(own, dict)
    assert own["psnr_db"] == pytest.approx(report.psnr_db)
    assert own["source"] == SAMPLE.name
    json.dumps(report.to_dict(), allow_nan=False)


def test_boxes_do_not_change_what_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compress(SAMPLE, tmp_path / "a.zarr", ratio=32, chunks=(20, 80, 80))
    monkeypatch.setattr(grid, "BLOCK_BYTES", 1)
    second = compress(SAMPLE, tmp_path / "b.zarr", ratio=32, chunks=(20, 80, 80))
    assert second.psnr_db == pytest.approx(first.psnr_db)
    for path in (tmp_path / "a.zarr" / "c").rglob("*"):
        if path.is_file():
            twin = tmp_path / "b.zarr" / path.relative_to(tmp_path / "a.zarr")
            assert path.read_bytes() == twin.read_bytes()


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_other_dtypes_are_measured_against_their_own_range(dtype: str, tmp_path: Path) -> None:
    values = as_dtype(fibsem(), dtype)[:16]
    np.save(tmp_path / "in.npy", values)
    report = compress(tmp_path / "in.npy", tmp_path / "out.zarr", ratio=8)
    assert report.peak == pytest.approx(float(values.max()) - float(values.min()))
    decoded = np.asarray(zarr.open_array(tmp_path / "out.zarr")[...])
    assert report.psnr_db == pytest.approx(psnr(values, decoded, peak=report.peak))
    assert report.psnr_db is not None
    assert report.psnr_db > 25


def test_the_guards_fallbacks_are_counted(tmp_path: Path) -> None:
    values = np.concatenate([fibsem()[:16], noise((16, 128, 128)), np.full((16, 128, 128), 9, "u1")])
    values = np.concatenate([values, np.zeros((16, 128, 128), "u1")])
    np.save(tmp_path / "in.npy", values)
    report = compress(tmp_path / "in.npy", tmp_path / "out.zarr", max_error=20, chunks=(16, 128, 128))
    assert report.frames == {"absent": 1, "constant": 1, "latent": 1, "lossless": 1}
    assert report.worst_error is not None
    assert report.worst_error <= 20
    exact = compress(tmp_path / "in.npy", tmp_path / "exact.zarr", max_error=0, chunks=(16, 128, 128))
    assert exact.worst_error == 0
    assert exact.to_dict()["psnr_db"] is None
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "exact.zarr")[...], values)


def test_a_source_that_fails_in_the_middle_leaves_no_destination(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "BLOCK_BYTES", 1)
    original = Source.read
    calls = []

    def read(self: Any, box: Any) -> Any:
        calls.append(box)
        if len(calls) == 5:
            assert any(tmp_path.iterdir()), "something is half written by now"
            raise JobError("the disk is gone")
        return original(self, box)

    monkeypatch.setattr(Source, "read", read)
    with pytest.raises(JobError, match="the disk is gone"):
        compress(SAMPLE, tmp_path / "out.zarr", ratio=8, chunks=CHUNKS)
    assert list(tmp_path.iterdir()) == []


def test_an_array_that_breaks_its_promise_never_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "read_box", lambda array, box: np.asarray(array[box]) ^ 64)
    with pytest.raises(VerifyError, match="30 were promised") as caught:
        compress(SAMPLE, tmp_path / "out.zarr", min_psnr=30, chunks=CHUNKS)
    assert len(caught.value.chunks) == 8
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_coded_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    values = fibsem().astype(np.float32)
    values[20, 3, 3] = np.nan
    np.save(tmp_path / "nan.npy", values)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"source": tmp_path / "nan.npy"}, "NaN"),
        ({"source": SAMPLE, "chunks": (16, 16)}, "3 axes"),
        ({"source": SAMPLE, "ratio": 10**9}, "ratio"),
        ({"source": SAMPLE, "shards": (32, 128, 128), "zarr_format": 2}, "zarr_format=3"),
        ({"source": SAMPLE, "window": (5, 5)}, "window"),
    ]
    for words, told in cases:
        with pytest.raises(SpecError, match=told):
            compress(destination=tmp_path / "out.zarr", **words)
    assert [p.name for p in tmp_path.iterdir()] == ["nan.npy"]


def test_an_existing_destination_is_replaced_only_when_asked(tmp_path: Path) -> None:
    compress(SAMPLE, tmp_path / "out.zarr", ratio=8)
    with pytest.raises(JobError, match="exists already"):
        compress(SAMPLE, tmp_path / "out.zarr", ratio=32)
    assert compress(SAMPLE, tmp_path / "out.zarr", ratio=32, overwrite=True, verify=False).psnr_db is None
    with pytest.raises(JobError, match="overlaps the source"):
        compress(tmp_path / "out.zarr", tmp_path / "out.zarr", ratio=32, overwrite=True)


def test_attributes_and_voxel_size_travel_along(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "in.tif", fibsem(), imagej=True, resolution=(100.0, 100.0), metadata={"spacing": 0.01, "unit": "um"}
    )
    compress(tmp_path / "in.tif", tmp_path / "a.zarr", ratio=8)
    zarr.open_array(tmp_path / "a.zarr", mode="r+").attrs["animal"] = "fly 7"
    compress(tmp_path / "a.zarr", tmp_path / "b.zarr", ratio=8, zarr_format=2)
    found: dict[str, Any] = zarr.open_array(tmp_path / "b.zarr", mode="r").attrs.asdict()
    assert found["animal"] == "fly 7"
    assert found["emcodec"]["voxel_nm"] == pytest.approx([10, 10, 10])


@pytest.mark.parametrize("name", ["out.tif", "out.npy", "plain.zarr"])
def test_decompressed_files_hold_what_zarr_reads(
    name: str, stored_v3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "BLOCK_BYTES", 1)
    report = decompress(stored_v3, tmp_path / name)
    np.testing.assert_array_equal(read_plain(tmp_path / name), zarr.open_array(stored_v3)[...])
    assert report.raw_bytes == fibsem().nbytes
    if name == "plain.zarr":
        metadata = zarr.open_array(tmp_path / name).metadata.to_dict()
        assert "emcodec." not in json.dumps(metadata["codecs"], default=str)


@pytest.mark.parametrize("limit", [1, 40_000, 10**9])
def test_pages_of_four_axes_keep_their_order(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = fibsem()[:24, :80, :72].reshape(4, 6, 80, 72)
    zarr.create_array(tmp_path / "in.zarr", data=values, chunks=(2, 4, 32, 32))
    monkeypatch.setattr(grid, "BLOCK_BYTES", limit)
    decompress(tmp_path / "in.zarr", tmp_path / "out.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), values)


def read_plain(path: Path) -> Any:
    if path.suffix == ".tif":
        return tifffile.imread(path)
    return np.load(path) if path.suffix == ".npy" else zarr.open_array(path)[...]


def test_a_damaged_chunk_leaves_no_decompressed_file(stored_v3: Path, tmp_path: Path) -> None:
    chunk = stored_v3 / "c" / "1" / "1" / "1"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(JobError, match=r"cannot read voxels 0:32.*ended early"):
        decompress(stored_v3, tmp_path / "out.tif")
    assert list(tmp_path.iterdir()) == [stored_v3]
