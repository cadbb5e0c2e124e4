"""Chunks that are not stored, files that end early, and how much of a source one box loads."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from tests.jobs.foreign import write_n5, write_precomputed
from tests.volumes import fibsem
from zarr_emcodec.errors import FrameError, JobError, SpecError
from zarr_emcodec.jobs.sources import open_source

FIRST = (slice(0, 8), slice(0, 32), slice(0, 64))
LAST = (slice(24, 32), slice(96, 128), slice(64, 128))
ACROSS = (slice(0, 32), slice(0, 40), slice(0, 70))


def holes(kind: str, path: Path) -> Path:
    """The sample with its first chunk deleted; the chunk."""
    if kind == "v2":
        zarr.create_array(path, data=fibsem(), chunks=(8, 32, 64), zarr_format=2, fill_value=9)
        chunk = path / "0.0.0"
    elif kind == "v3":
        zarr.create_array(path, data=fibsem(), chunks=(8, 32, 64), fill_value=9)
        chunk = path / "c" / "0" / "0" / "0"
    elif kind == "sharded":
        zarr.create_array(path, data=fibsem(), chunks=(8, 32, 64), shards=(16, 32, 64), fill_value=9)
        chunk = path / "c" / "0" / "0" / "0"
    elif kind == "n5":
        write_n5(path, fibsem())
        chunk = path / "0" / "0" / "0"
    else:
        write_precomputed(path, fibsem())
        chunk = path / "fine" / "7-71_5-37_3-19"
    chunk.unlink()
    return chunk


@pytest.mark.parametrize("kind", ["v2", "v3", "sharded", "n5", "precomputed"])
def test_missing_chunks_are_fill_or_an_error_as_asked(kind: str, tmp_path: Path) -> None:
    holes(kind, tmp_path / "v")
    with open_source(tmp_path / "v") as source:
        assert source.missing(FIRST) is True
        assert source.missing(LAST) is False
        assert source.missing(ACROSS) is False
        assert np.all(source.read(FIRST) == source.fill)
        assert source.fill == (9 if kind in ("v2", "v3", "sharded") else 0)
    with open_source(tmp_path / "v", missing="error") as source:
        np.testing.assert_array_equal(source.read(LAST), fibsem()[LAST])
        with pytest.raises(JobError, match=r"v: 1 of the 1 stored objects of voxels 0:8, 0:32, 0:64 are missing"):
            source.read(FIRST)
        with pytest.raises(JobError, match="missing='fill'"):
            source.read(ACROSS)


def test_sharded_precomputed_refuses_missing_chunks_too(tmp_path: Path) -> None:
    sharding = {"@type": "neuroglancer_uint64_sharded_v1", "preshift_bits": 0, "minishard_bits": 0, "shard_bits": 2,
                "hash": "identity"}  # fmt: skip
    write_precomputed(tmp_path / "v", fibsem(), sharding=sharding)
    next((tmp_path / "v" / "fine").glob("*.shard")).unlink()
    everything = tuple(slice(0, n) for n in fibsem().shape)
    assert (open_source(tmp_path / "v").read(everything) == 0).sum() > (fibsem() == 0).sum()
    with pytest.raises(JobError, match=r"voxels 0:32, 0:128, 0:128.*missing"):
        open_source(tmp_path / "v", missing="error").read(everything)
    with pytest.raises(SpecError, match="'fill' or 'error'"):
        open_source(tmp_path / "v", missing="ignore")  # type: ignore[arg-type]


def test_chunks_of_hdf5_that_were_never_written(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "v.h5", "w") as file:
        data = file.create_dataset("em", fibsem().shape, "u1", chunks=(8, 32, 64), fillvalue=7)
        data[8:] = fibsem()[8:]
    with open_source(tmp_path / "v.h5") as source:
        assert (source.missing(FIRST), source.missing(LAST), source.fill) == (True, False, 7)
        assert np.all(source.read(FIRST) == 7)
    with open_source(tmp_path / "v.h5", missing="error") as source, pytest.raises(JobError, match="1 of the 1"):
        source.read(FIRST)


def test_asking_is_given_up_where_it_is_not_cheap(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "v", shape=(64, 64, 64), chunks=(2, 2, 2), dtype="u1")
    with open_source(tmp_path / "v") as source:
        assert source.missing(tuple(slice(0, 4) for _ in range(3))) is True
        assert source.missing(tuple(slice(0, 64) for _ in range(3))) is None


@pytest.mark.parametrize("kind", ["v2", "v3", "n5", "precomputed"])
def test_a_chunk_that_ends_early_names_the_box(kind: str, tmp_path: Path) -> None:
    chunk = holes(kind, tmp_path / "v")
    neighbour = next(p for p in sorted(chunk.parent.iterdir()) if p.is_file() and p.name[0].isdigit())
    chunk.write_bytes(neighbour.read_bytes()[:-9])
    with open_source(tmp_path / "v") as source, pytest.raises(JobError, match="v: cannot read voxels 0:8, 0:32, 0:64"):
        source.read(FIRST)


def test_a_damaged_frame_is_the_cause(stored_v3: Path) -> None:
    chunk = stored_v3 / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with open_source(stored_v3) as source, pytest.raises(JobError) as caught:
        source.read(FIRST)
    assert isinstance(caught.value.__cause__, FrameError)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_tiff_that_ends_early(compression: Any, tmp_path: Path) -> None:
    path = tmp_path / "v.tif"
    tifffile.imwrite(path, fibsem(), photometric="minisblack", compression=compression)
    path.write_bytes(path.read_bytes()[:-9000])
    with pytest.raises(JobError, match=r"v\.tif"), open_source(path) as source:
        source.read(LAST)


def test_other_files_that_end_early(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    np.save(tmp_path / "v.npy", fibsem())
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["em"] = fibsem()
    for name, error, words in (("v.npy", JobError, "ends before"), ("v.h5", SpecError, "not an HDF5 file")):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-5000])
        with pytest.raises(error, match=words):
            open_source(path)


@pytest.mark.parametrize("name", ["attributes.json", "info"])
@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"dimensions": "many", "scales": 3}', '{"dimensions": [1], "scales": [{}]}']
)
def test_damaged_documents_are_typed_errors(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises((JobError, SpecError), match=str(tmp_path)):
        open_source(tmp_path)


def test_labels_are_refused_in_every_format(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    labels = fibsem().astype("u8")
    write_n5(tmp_path / "n5", labels)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["ids"] = labels
    write_precomputed(tmp_path / "precomputed", fibsem())
    info = tmp_path / "precomputed" / "info"
    info.write_text(info.read_text().replace('"image"', '"segmentation"'))
    for name in ("n5", "v.h5", "precomputed"):
        with pytest.raises(SpecError, match="compressed_segmentation") as caught:
            open_source(tmp_path / name)
        assert caught.value.name == "dtype"
    info.write_text(info.read_text().replace('"segmentation"', '"image"').replace('"raw"', '"jxl"'))
    with pytest.raises(SpecError, match=r"'jxl'; raw, jpeg, png are read"):
        open_source(tmp_path / "precomputed")


def test_an_unknown_codec_is_told(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "v", data=fibsem(), chunks=(8, 64, 64))
    document = tmp_path / "v" / "zarr.json"
    document.write_text(document.read_text().replace('"zstd"', '"nobody.knows"'))
    with pytest.raises(JobError, match=r"nobody\.knows"):
        open_source(tmp_path / "v")


@pytest.fixture
def stranger() -> Iterator[Path]:
    """A folder that anyone may enter; the test runs as somebody whom file modes bind."""
    is_root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        if is_root:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if is_root:
                os.seteuid(0)


@pytest.mark.parametrize("kind", ["v2", "v3", "n5", "precomputed"])
def test_permission_errors_name_the_place(kind: str, stranger: Path) -> None:
    path = stranger / "v"
    chunk = holes(kind, path)
    chunk.write_bytes(b"secret")
    chunk.chmod(0)
    with open_source(path) as source:
        with pytest.raises(JobError, match=r"v: cannot read voxels 0:8, 0:32, 0:64: .*(?i:permission)"):
            source.read(FIRST)
        with pytest.raises(JobError, match=r"v: cannot look for voxels .*(?i:permission)"):
            source.missing(FIRST)
    path.chmod(0)
    with pytest.raises(JobError, match=r"v: .*(?i:permission)"):
        open_source(path)
    path.chmod(0o755)


@pytest.mark.parametrize("name", ["v.npy", "v.tif", "v.h5"])
def test_files_that_may_not_be_read(name: str, stranger: Path) -> None:
    (stranger / name).write_bytes(b"secret")
    (stranger / name).chmod(0)
    with pytest.raises(JobError, match=rf"{name}: .*(?i:permission)"):
        open_source(stranger / name)


MEASURE = """
import resource, sys
from zarr_emcodec.jobs import tiff
from zarr_emcodec.jobs.sources import open_source, tensors
tensors.CACHE_BYTES = tiff.KEPT_BYTES = 1 << 20
with open_source(sys.argv[1]) as source:
    box = lambda z: (slice(z, z + 16), slice(0, 512), slice(0, 512))
    source.read(box(0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for z in range(16, 256, 16):
        source.read(box(z))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize("kind", ["zarr", "n5", "precomputed", "tif"])
def test_reading_a_volume_in_boxes_never_holds_it(kind: str, tmp_path: Path) -> None:
    volume = np.tile(np.arange(512).astype("u1"), (256, 512, 1))
    path = tmp_path / f"v.{kind}"
    if kind == "zarr":
        zarr.create_array(path, data=volume, chunks=(16, 256, 256))
    elif kind == "n5":
        write_n5(path, volume, compression="raw")
    elif kind == "precomputed":
        write_precomputed(path, volume)
    else:
        tifffile.imwrite(path, volume, compression="zlib", photometric="minisblack")
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < volume.nbytes / 4
