"""N5, precomputed, HDF5 and folders of TIFF, as their own libraries write them."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
import zarr

from tests.jobs.foreign import (
    BOX,
    VOXEL_NM,
    WHOLE,
    halved,
    n5_pyramid,
    precomputed_pyramid,
    write_n5,
    write_precomputed,
)
from tests.volumes import Array, as_dtype, fibsem
from zarr_emcodec.errors import JobError, MissingExtraError, SpecError
from zarr_emcodec.jobs.sources import open_source

if TYPE_CHECKING:
    from pathlib import Path

SHARDING = {
    "@type": "neuroglancer_uint64_sharded_v1",
    "preshift_bits": 2,
    "minishard_bits": 1,
    "shard_bits": 1,
    "hash": "identity",
    "data_encoding": "gzip",
}


def assert_reads(location: Any, values: Array) -> None:
    with open_source(location) as source:
        assert (source.shape, source.dtype) == (values.shape, values.dtype)
        block = source.read(BOX)
        assert block.flags.c_contiguous
        np.testing.assert_array_equal(block, values[BOX])
        np.testing.assert_array_equal(source.read(WHOLE), values)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("compression", ["raw", "gzip", "blosc"])
def test_n5_is_read_z_first(compression: str, dtype: str, tmp_path: Path) -> None:
    values = as_dtype(fibsem(), dtype)
    write_n5(tmp_path / "v.n5" / "em", values, compression=compression)
    assert_reads(tmp_path / "v.n5" / "em", values)
    with open_source(tmp_path / "v.n5" / "em") as source:
        assert source.chunks == (16, 32, 64)


@pytest.mark.parametrize("sharded", [False, True], ids=["plain", "sharded"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_precomputed_is_read_z_first_from_its_offset(dtype: str, sharded: bool, tmp_path: Path) -> None:
    values = as_dtype(fibsem(), dtype)
    words: dict[str, Any] = {"sharding": SHARDING} if sharded else {}
    write_precomputed(tmp_path / "v", values, **words)
    assert_reads(tmp_path / "v", values)
    with open_source(tmp_path / "v") as source:
        assert (source.chunks, source.voxel_nm, source.offset) == ((16, 32, 64), VOXEL_NM, (3, 5, 7))
        assert source.missing(BOX) is (None if sharded else False)


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_coded_precomputed_is_what_tensorstore_decodes(encoding: str, tmp_path: Path) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    write_precomputed(tmp_path / "v", fibsem(), encoding=encoding)
    spec = {"driver": "neuroglancer_precomputed", "kvstore": f"file://{tmp_path}/v/"}
    decoded = np.asarray(tensorstore.open(spec).result().read().result())[..., 0].T
    assert_reads(tmp_path / "v", np.ascontiguousarray(decoded))


def test_channels_of_precomputed_lead(tmp_path: Path) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    values = np.stack([fibsem()[:8], 255 - fibsem()[:8]])
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": f"file://{tmp_path}/v/",
        "multiscale_metadata": {"data_type": "uint8", "num_channels": 2, "type": "image"},
        "scale_metadata": {"resolution": [4, 4, 40], "size": [128, 128, 8], "encoding": "raw",
                           "chunk_size": [64, 64, 8], "key": "s"},
    }  # fmt: skip
    tensorstore.open(spec, create=True, open=True).result()[...] = values.transpose(3, 2, 1, 0)
    with open_source(tmp_path / "v") as source:
        assert source.axes == ("c", "z", "y", "x")
        np.testing.assert_array_equal(source.read(tuple(slice(0, n) for n in values.shape)), values)


@pytest.mark.parametrize("write", [n5_pyramid, precomputed_pyramid])
def test_levels_are_found_from_the_volume_and_from_each_of_them(write: Any, tmp_path: Path) -> None:
    write(tmp_path / "v")
    with open_source(tmp_path / "v") as source:
        assert "took" in source.note
        assert source.voxel_nm == pytest.approx(VOXEL_NM)
        assert [source.image.factors(i) for i in range(2)] == [(1, 1, 1), (1, 2, 2)]
        coarse_at = source.levels[1].location
        fine = source.image
    with open_source(coarse_at) as coarse:
        assert (coarse.level, coarse.shape) == (1, (32, 64, 64))
        assert coarse.voxel_nm == pytest.approx((40, 16, 8))
        assert coarse.image == fine
        np.testing.assert_array_equal(coarse.read((slice(0, 32), slice(0, 64), slice(0, 64))), halved(fibsem()))
    # corners agree: the first coarse voxel's centre lies half a fine voxel inside
    shift = np.subtract(fine.levels[1].translation, fine.levels[0].translation)
    np.testing.assert_allclose(shift, (0, 4, 2))


@pytest.mark.parametrize(
    ("attributes", "size", "offset"),
    [
        ({"resolution": [4, 8, 40], "units": ["nm", "nm", "nm"]}, VOXEL_NM, (0, 0, 0)),
        ({"resolution": [0.004, 0.008, 0.04], "units": ["um", "um", "um"]}, VOXEL_NM, (0, 0, 0)),
        ({"resolution": [4, 8, 40], "offset": [28, 40, 120]}, VOXEL_NM, (3, 5, 7)),
        ({"pixelResolution": {"unit": "nm", "dimensions": [4, 8, 40]}}, VOXEL_NM, (0, 0, 0)),
        ({"transform": {"axes": ["z", "y", "x"], "scale": [40, 8, 4], "translate": [120, 40, 28],
                        "units": ["nm"] * 3}}, VOXEL_NM, (3, 5, 7)),
        ({"pixelResolution": "unknown", "offset": None, "transform": {"axes": 3}}, None, (0, 0, 0)),
        ({"resolution": [4, 8, 40], "units": ["s", "s", "s"]}, None, (0, 0, 0)),
    ],
)  # fmt: skip
def test_dialects_of_n5_say_the_same(attributes: dict[str, Any], size: Any, offset: Any, tmp_path: Path) -> None:
    write_n5(tmp_path / "v", fibsem())
    document = tmp_path / "v" / "attributes.json"
    stated = {**json.loads(document.read_text()), **attributes, "animal": "fly 7"}
    document.write_text(json.dumps(stated))
    source = open_source(tmp_path / "v")
    assert source.voxel_nm == (None if size is None else pytest.approx(size))
    assert source.offset == pytest.approx(offset)
    assert source.attributes == {"animal": "fly 7"}


def test_attributes_that_tensorstore_refuses_are_told(tmp_path: Path) -> None:
    write_n5(tmp_path / "v", fibsem())
    document = tmp_path / "v" / "attributes.json"
    document.write_text(json.dumps({**json.loads(document.read_text()), "resolution": "unknown"}))
    with pytest.raises(JobError, match=r'TensorStore cannot open this N5 data set: .*"resolution"'):
        open_source(tmp_path / "v")


def test_zarr_axes_come_in_the_order_that_is_stated(tmp_path: Path) -> None:
    values = fibsem()[:16]
    turned = np.ascontiguousarray(values.transpose(2, 0, 1))  # (x, z, y)
    zarr.create_array(tmp_path / "named", data=turned, chunks=(64, 8, 32), dimension_names=["x", "z", "y"])
    group = zarr.create_group(tmp_path / "ome", zarr_format=2)
    zarr.create_array(tmp_path / "ome" / "a", data=turned, chunks=(64, 8, 32), zarr_format=2)
    steps: Any = [{"type": "scale", "scale": [4, 40, 8]}, {"type": "translation", "translation": [28, 120, 40]}]
    stated: Any = [{"name": n, "type": "space", "unit": "nanometer"} for n in "xzy"]
    group.attrs["multiscales"] = [
        {"axes": stated, "datasets": [{"path": "a", "coordinateTransformations": steps}]},
    ]
    for name in ("named", "ome", "ome/a"):
        with open_source(tmp_path / name) as source:
            assert (source.shape, source.chunks, source.axes) == ((16, 128, 128), (8, 32, 64), ("z", "y", "x"))
            box = (slice(2, 9), slice(10, 20), slice(30, 50))
            block = source.read(box)
            assert block.flags.c_contiguous
            np.testing.assert_array_equal(block, values[box])
            if name != "named":
                assert (source.voxel_nm, source.offset) == (VOXEL_NM, (3, 5, 7))


@pytest.mark.parametrize("chunks", [None, (8, 64, 64)], ids=["contiguous", "chunked"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", ">u2"])
def test_hdf5_data_sets(dtype: str, chunks: Any, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    values = as_dtype(fibsem(), np.dtype(dtype).name)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        data = file.create_dataset("volumes/raw", data=values.astype(dtype), chunks=chunks)
        data.attrs["resolution"] = VOXEL_NM
        data.attrs["offset"] = (120.0, 40.0, 28.0)
        data.attrs["animal"] = "fly 7"
        file["volumes"].create_dataset("points", data=np.zeros(5))
    assert_reads(tmp_path / "v.h5", values)
    with open_source(f"{tmp_path}/v.h5::volumes/raw") as source:
        assert (source.voxel_nm, source.offset, source.chunks) == (VOXEL_NM, (3, 5, 7), chunks)
        assert source.attributes["animal"] == "fly 7"


def test_hdf5_that_does_not_say_which(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["raw"] = file["labels"] = fibsem()
    with pytest.raises(SpecError, match=r"labels, raw.*FILE::DATASET"):
        open_source(tmp_path / "v.h5")
    with pytest.raises(SpecError, match="no data set 'row'"):
        open_source(f"{tmp_path}/v.h5::row")
    with pytest.raises(JobError, match=r"v\.h5::DATASET"):
        open_source(tmp_path / "v.h5" / "raw")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(SpecError, match="not an HDF5 file"):
        open_source(tmp_path / "text.h5")


def test_a_folder_of_sections_is_stacked_by_number(tmp_path: Path) -> None:
    for z, section in enumerate(fibsem()):
        tifffile.imwrite(tmp_path / f"section_{z}.tif", section, compression="zlib", photometric="minisblack")
    (tmp_path / "notes.txt").write_text("hello")
    assert_reads(tmp_path, fibsem())
    with open_source(tmp_path) as source:
        assert "section_0.tif" in source.note
        first = source.fingerprint()
        tifffile.imwrite(tmp_path / "section_11.tif", fibsem()[0, :64], photometric="minisblack")
        assert source.fingerprint() != first
    with open_source(tmp_path) as source, pytest.raises(JobError, match=r"section_11\.tif is uint8 \(64, 128\)"):
        source.read(WHOLE)
    tifffile.imwrite(tmp_path / "section_0.tif", fibsem(), photometric="minisblack")
    with pytest.raises(SpecError, match=r"section_0\.tif holds \(32, 128, 128\), not one section"):
        open_source(tmp_path)


def test_a_scheme_in_front_says_the_format(tmp_path: Path) -> None:
    write_n5(tmp_path / "v", fibsem())
    assert_reads(f"n5://{tmp_path}/v", fibsem())
    assert_reads(f"n5://file://{tmp_path}/v", fibsem())
    with pytest.raises(JobError, match="no Zarr array"):
        open_source(f"zarr://{tmp_path}/v")


def test_n5_with_frames_of_ours_is_a_source_too(tmp_path: Path) -> None:
    import zarr_emcodec

    array = zarr_emcodec.n5.create(tmp_path / "v", data=fibsem(), chunks=(16, 64, 64), ratio=8)
    assert_reads(tmp_path / "v", np.asarray(array[...]))


@pytest.mark.parametrize("layout", ["v2.zarr", "v3.zarr", "n5", "precomputed", "h5", "tif", "npy"])
def test_a_source_travels_as_its_location(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write_any(layout, tmp_path)
    monkeypatch.chdir(tmp_path)
    with open_source(name) as source:
        monkeypatch.chdir("/")  # where a worker may be
        data = pickle.dumps(source)
        assert len(data) < 600
        with pickle.loads(data) as twin:
            assert twin.fingerprint() == source.fingerprint()
            np.testing.assert_array_equal(twin.read(BOX), source.read(BOX))


def write_any(layout: str, folder: Path) -> str:
    """The sample in a format; its name in the folder."""
    name = f"a.{layout}"
    if layout.endswith("zarr"):
        version: Any = int(layout[1])
        zarr.create_array(folder / name, data=fibsem(), chunks=(8, 64, 64), zarr_format=version)
    elif layout == "n5":
        write_n5(folder / name, fibsem())
    elif layout == "precomputed":
        write_precomputed(folder / name, fibsem())
    elif layout == "h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(folder / name, "w") as file:
            file.create_dataset("em", data=fibsem(), chunks=(8, 64, 64))
    elif layout == "tif":
        tifffile.imwrite(folder / name, fibsem(), photometric="minisblack", compression="zlib")
    else:
        np.save(folder / name, fibsem())
    return name


@pytest.mark.parametrize("layout", ["v2.zarr", "v3.zarr", "n5", "precomputed", "h5", "tif", "npy"])
def test_a_fingerprint_changes_with_the_source_only(layout: str, tmp_path: Path) -> None:
    path = tmp_path / write_any(layout, tmp_path)
    with open_source(path) as source:
        first = source.fingerprint()
        assert first.startswith("sha256:")
        assert len(first) == 71
        source.read(BOX)
    with open_source(path) as source:
        assert source.fingerprint() == first
    chunks = path.rglob("*") if path.is_dir() else [path]
    for file in [p for p in chunks if p.is_file() and p.suffix != ".json" and p.name != "info"]:
        file.write_bytes(file.read_bytes())  # the same bytes at a later time: they may have been anything between
    with open_source(path) as source:
        assert source.fingerprint() != first


def test_annotating_a_zarr_source_does_not_change_it(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a", data=fibsem(), chunks=(8, 64, 64))
    before = open_source(tmp_path / "a").fingerprint()
    array.attrs["seen"] = True
    assert open_source(tmp_path / "a").fingerprint() == before


def test_formats_without_their_library_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {layout: write_any(layout, tmp_path) for layout in ("n5", "precomputed", "h5", "tif")}
    for module in ("tensorstore", "h5py", "tifffile"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    for name in names.values():
        with pytest.raises(MissingExtraError, match=r"zarr_emcodec\[sources\]"):
            open_source(tmp_path / name)
