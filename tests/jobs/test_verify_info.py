from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zarr

from tests.volumes import as_dtype, fibsem
from zarr_emcodec import frame, options
from zarr_emcodec.errors import JobError, SpecError, VerifyError
from zarr_emcodec.jobs import info as info_module
from zarr_emcodec.jobs.compress import compress
from zarr_emcodec.jobs.demo import SAMPLE
from zarr_emcodec.jobs.frames import layout_of, stored_chunks
from zarr_emcodec.jobs.info import ArrayInfo, FrameFacts, describe
from zarr_emcodec.jobs.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

CHUNKS = (16, 64, 64)


def flip_byte_of_chunk(path: Path, index: tuple[int, ...]) -> None:
    """Flip one bit in the payload of a stored chunk, wherever it lies."""
    array = zarr.open_array(path, mode="r")
    data = next(s.data for s in stored_chunks(array, layout_of(array)) if s.chunk_index == index)
    assert data is not None
    for file in path.rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        if (place := content.find(data)) >= 0:
            middle = place + len(data) - 5
            file.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
            return
    pytest.fail("the chunk's bytes were not found")


def test_raw_frames_are_those_that_the_array_decodes(stored: Path) -> None:
    array = zarr.open_array(stored, mode="r")
    layout = layout_of(array)
    assert layout.has_frames
    cells = list(stored_chunks(array, layout))
    assert sorted(c.chunk_index for c in cells) == sorted(np.ndindex(2, 2, 2))
    for cell in cells:
        assert cell.data is not None
        header = frame.inspect(cell.data)
        assert header.crc_ok
        assert header.shape == CHUNKS


def test_a_whole_array_passes(stored: Path) -> None:
    report = verify(stored, SAMPLE)
    decoded = np.asarray(zarr.open_array(stored)[...])
    assert (report.frames_checked, report.chunks_compared, report.n_chunks) == (8, 8, 8)
    assert report.worst_error == np.abs(decoded.astype(int) - fibsem()).max()
    alone = verify(stored)
    assert (alone.frames_checked, alone.chunks_compared, alone.psnr_db) == (8, 0, None)
    sampled = verify(stored, SAMPLE, sample=0.25)
    assert sampled.chunks_compared == 2
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_flipped_bit_is_found_and_named(stored: Path) -> None:
    flip_byte_of_chunk(stored, (1, 0, 1))
    for source in (None, SAMPLE):
        with pytest.raises(VerifyError, match=r"1 chunks fail.*chunk \(1, 0, 1\)") as caught:
            verify(stored, source)
        assert caught.value.chunks == ((1, 0, 1),)
    found = describe(stored)
    assert isinstance(found, ArrayInfo)
    assert found.census is not None
    assert found.census.kinds == {"damaged": 1, "latent": 7}


def test_a_damaged_shard_index_condemns_its_chunks(stored_sharded: Path) -> None:
    shard = stored_sharded / "c" / "0" / "1" / "0"
    data = bytearray(shard.read_bytes())
    data[-10] ^= 1
    shard.write_bytes(data)
    with pytest.raises(VerifyError, match="does not match its checksum") as caught:
        verify(stored_sharded)
    assert caught.value.chunks == ((0, 1, 0), (0, 1, 1), (1, 1, 0), (1, 1, 1))
    shard.write_bytes(b"short")
    with pytest.raises(VerifyError, match="its index alone needs"):
        verify(stored_sharded)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_promise_is_checked_on_every_chunk(dtype: str, tmp_path: Path) -> None:
    values = as_dtype(fibsem(), dtype)
    np.save(tmp_path / "a.npy", values)
    compress(tmp_path / "a.npy", tmp_path / "a.zarr", min_psnr=30, chunks=CHUNKS)
    assert verify(tmp_path / "a.zarr", tmp_path / "a.npy").promise == {"min_psnr": 30}
    step = 30 if dtype == "uint16" else 1
    values[16:, 64:, :64] += np.asarray(12 * step, dtype)  # the source is not what it was
    np.save(tmp_path / "b.npy", values)
    with pytest.raises(VerifyError, match="30 were promised") as caught:
        verify(tmp_path / "a.zarr", tmp_path / "b.npy")
    assert caught.value.chunks == ((1, 1, 0),)


def test_what_cannot_be_verified_is_said(stored_v3: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", fibsem()[:8])
    with pytest.raises(SpecError, match="not what the array was written from"):
        verify(stored_v3, tmp_path / "other.npy")
    with pytest.raises(SpecError, match="sample"):
        verify(stored_v3, SAMPLE, sample=0)
    zarr.create_array(tmp_path / "plain.zarr", data=fibsem())
    with pytest.raises(JobError, match="Pass its source"):
        verify(tmp_path / "plain.zarr")
    assert verify(tmp_path / "plain.zarr", SAMPLE).worst_error == 0


def test_an_array_is_described(stored: Path) -> None:
    found = describe(stored)
    assert isinstance(found, ArrayInfo)
    assert found.census is not None
    assert found.census.kinds == {"latent": 8}
    assert found.stored_bytes == sum(p.stat().st_size for p in stored.rglob("*") if p.is_file())
    assert found.bits_per_voxel == pytest.approx(8 / found.ratio)
    assert found.census.largest is not None
    assert found.census.smallest is not None
    assert found.census.largest[1] >= found.census.smallest[1] > found.census.overhead_bytes / 8
    [model] = found.models
    assert model.frames == 8
    assert model.found
    assert 8 <= found.config["ratio"] < 8.5  # the metadata have their share of the budget
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_missing_model_is_said_not_raised(stored_v3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zarr_emcodec import runtime
    from zarr_emcodec.errors import ModelNotFoundError

    def find(ref: str) -> None:
        raise ModelNotFoundError("it is nowhere. Install it.", model_id=ref)

    monkeypatch.setattr(runtime, "find_model", find)
    found = describe(stored_v3)
    assert isinstance(found, ArrayInfo)
    [model] = found.models
    assert model.found is None
    assert model.id.startswith("vae-2d-s16")
    assert "Install it" in model.mend


def test_other_arrays_are_described_plainly(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "plain.zarr", data=fibsem())
    found = describe(tmp_path / "plain.zarr")
    assert isinstance(found, ArrayInfo)
    assert (found.is_emcodec, found.codec, found.census, found.models) == (False, "zstd", None, ())
    zarr.create_array(tmp_path / "raw.zarr", data=fibsem(), zarr_format=2, compressors=None)
    found = describe(tmp_path / "raw.zarr")
    assert isinstance(found, ArrayInfo)
    assert found.codec == "none"
    assert found.ratio < 1


def test_wrapped_chunks_are_said_to_be(tmp_path: Path) -> None:
    from zarr_emcodec import v3

    zarr.create_array(tmp_path / "a.zarr", data=fibsem(), serializer=v3.VAECodec(ratio=8))  # zarr adds zstd
    found = describe(tmp_path / "a.zarr")
    assert isinstance(found, ArrayInfo)
    assert (found.is_emcodec, found.census) == (True, None)
    assert "wrapped by zstd" in found.note


def test_the_file_of_a_frame_is_described(stored_v3: Path, tmp_path: Path) -> None:
    found = describe(stored_v3 / "c" / "0" / "0" / "0")
    assert isinstance(found, FrameFacts)
    assert found.frame["kind"] == "latent"
    assert found.model is not None
    assert found.model.frames == 1
    (tmp_path / "no.frame").write_bytes(b"something else")
    with pytest.raises(JobError, match="neither a Zarr array nor a frame"):
        describe(tmp_path / "no.frame")


def test_installed_models_are_listed_once(tmp_path: Path) -> None:
    with options(model_path=(tmp_path,)):
        found = info_module.installed_models()
    assert len({model.digest for model in found}) == len(found)
    assert any(model.id.startswith("vae-2d-s16@") for model in found)
