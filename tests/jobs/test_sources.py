from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
import zarr

from tests.volumes import Array, as_dtype, fibsem
from zarr_emcodec.errors import EmCodecError, JobError, SpecError
from zarr_emcodec.jobs.sources import open_source

if TYPE_CHECKING:
    from pathlib import Path

BOX = (slice(3, 9), slice(10, 101), slice(7, 128))


def volume(dtype: str = "uint8") -> Array:
    return as_dtype(fibsem(), dtype)


def write_zarr(path: Path, values: Array, **words: Any) -> None:
    array = zarr.create_array(path, shape=values.shape, dtype=values.dtype, chunks=(8, 64, 64), **words)
    array[...] = values


def big_endian(path: Path, values: Array) -> None:
    tifffile.imwrite(path, values, byteorder=">", photometric="minisblack")


WRITERS: dict[str, Any] = {
    "plain.tif": lambda p, v: tifffile.imwrite(p, v, photometric="minisblack"),
    "zlib.tif": lambda p, v: tifffile.imwrite(p, v, compression="zlib", photometric="minisblack"),
    "tiled.tif": lambda p, v: tifffile.imwrite(p, v, compression="zlib", tile=(64, 64), photometric="minisblack"),
    "big_endian.tif": big_endian,
    "stack.ome.tif": lambda p, v: tifffile.imwrite(p, v, ome=True, metadata={"axes": "ZYX"}, photometric="minisblack"),
    "c.npy": np.save,
    "fortran.npy": lambda p, v: np.save(p, np.asfortranarray(v)),
    "swapped.npy": lambda p, v: np.save(p, v.astype(v.dtype.newbyteorder(">"))),
    "v2.zarr": lambda p, v: write_zarr(p, v, zarr_format=2),
    "v3.zarr": lambda p, v: write_zarr(p, v),
    "sharded.zarr": lambda p, v: write_zarr(p, v, shards=(16, 128, 128)),
}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("name", WRITERS)
def test_every_source_gives_the_voxels_of_a_box(name: str, dtype: str, tmp_path: Path) -> None:
    values = volume(dtype)
    WRITERS[name](tmp_path / name, values)
    with open_source(tmp_path / name) as source:
        assert (source.shape, source.dtype) == (values.shape, np.dtype(dtype))
        assert source.nbytes == values.nbytes
        block = source.read(BOX)
        assert block.flags.c_contiguous
        assert block.dtype.isnative
        np.testing.assert_array_equal(block, values[BOX])
        np.testing.assert_array_equal(source.read(tuple(slice(0, n) for n in values.shape)), values)


def test_single_images_and_five_axes_are_read(tmp_path: Path) -> None:
    image = volume()[0]
    tifffile.imwrite(tmp_path / "image.tif", image, photometric="minisblack")
    with open_source(tmp_path / "image.tif") as source:
        np.testing.assert_array_equal(source.read((slice(5, 9), slice(0, 128))), image[5:9])
    many = volume()[:24].reshape(2, 3, 4, 128, 128)
    tifffile.imwrite(
        tmp_path / "many.ome.tif", many, ome=True, compression="zlib", metadata={"axes": "TCZYX"},
        photometric="minisblack",
    )  # fmt: skip
    with open_source(tmp_path / "many.ome.tif") as source:
        assert source.shape == many.shape
        box = (slice(1, 2), slice(0, 3), slice(1, 3), slice(4, 100), slice(0, 128))
        np.testing.assert_array_equal(source.read(box), many[box])


def test_voxel_sizes_come_from_the_file(tmp_path: Path) -> None:
    values = volume()[:4]
    sizes = {"axes": "ZYX", "PhysicalSizeZ": 0.04, "PhysicalSizeY": 8.0, "PhysicalSizeYUnit": "nm",
             "PhysicalSizeX": 80.0, "PhysicalSizeXUnit": "Å"}  # fmt: skip
    tifffile.imwrite(tmp_path / "a.ome.tif", values, ome=True, metadata=sizes, photometric="minisblack")
    tifffile.imwrite(
        tmp_path / "b.tif", values, imagej=True, resolution=(125.0, 125.0), metadata={"spacing": 0.04, "unit": "um"}
    )
    group = zarr.create_group(tmp_path / "c.zarr")
    write_zarr(tmp_path / "c.zarr" / "s0", values)
    units: Any = [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
    step = {"type": "scale", "scale": [0.04, 0.008, 0.008]}
    levels: Any = [{"path": "s0", "coordinateTransformations": [step]}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": units, "datasets": levels}]}
    with open_source(tmp_path / "b.tif") as source:
        assert source.voxel_nm == pytest.approx((40, 8, 8))
    with open_source(tmp_path / "c.zarr") as source:
        assert source.voxel_nm == pytest.approx((40, 8, 8))
        assert "level 0 ('s0')" in source.note
        np.testing.assert_array_equal(source.read(tuple(slice(0, n) for n in values.shape)), values)
    with open_source(tmp_path / "a.ome.tif") as source:
        assert source.voxel_nm == pytest.approx((40, 8, 8))


def test_a_group_without_scales_names_its_arrays(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "g.zarr")
    write_zarr(tmp_path / "g.zarr" / "raw", volume())
    write_zarr(tmp_path / "g.zarr" / "labels", volume())
    with pytest.raises(SpecError, match="labels, raw"):
        open_source(tmp_path / "g.zarr")
    with open_source(tmp_path / "g.zarr" / "raw") as source:
        assert source.shape == (32, 128, 128)


def test_a_multiscale_path_cannot_leave_its_group(tmp_path: Path) -> None:
    write_zarr(tmp_path / "secret.zarr", volume())
    group = zarr.create_group(tmp_path / "g.zarr")
    group.attrs["multiscales"] = [{"datasets": [{"path": "../secret.zarr"}]}]
    with pytest.raises(EmCodecError, match=r"g\.zarr"):
        open_source(tmp_path / "g.zarr")


@pytest.mark.parametrize("dtype", ["bool", "uint32", "uint64", "int32", "int64"])
def test_labels_are_refused_with_a_codec_that_fits(dtype: str, tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.zeros((2, 8, 8), dtype))
    with pytest.raises(SpecError, match="compressed_segmentation") as caught:
        open_source(tmp_path / "labels.npy")
    assert caught.value.name == "dtype"


def test_what_is_no_grey_volume_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((4, 32, 32, 3), "u1"), photometric="rgb")
    np.save(tmp_path / "line.npy", np.zeros(9, "u1"))
    np.save(tmp_path / "empty.npy", np.zeros((0, 4, 4), "u1"))
    np.save(tmp_path / "double.npy", np.zeros((2, 4, 4), "f8"))
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "many.npz", a=np.zeros(3))
    (tmp_path / "text.tif").write_text("this is no TIFF")
    (tmp_path / "notes.txt").write_text("hello")
    cases = {
        "rgb.tif": "colour",
        "line.npy": "2 to 5 axes",
        "empty.npy": "none of them empty",
        "double.npy": "float64 is not coded",
        "objects.npy": "not a .npy file of numbers",
        "many.npz": "numpy.save",
        "text.tif": "not a TIFF file",
        "notes.txt": "not a format read here",
    }
    for name, words in cases.items():
        with pytest.raises(SpecError, match=words):
            open_source(tmp_path / name)
    (tmp_path / "folder").mkdir()
    with pytest.raises(JobError, match="no Zarr array"):
        open_source(tmp_path / "folder")
    with pytest.raises(JobError, match="no such file"):
        open_source(tmp_path / "absent.tif")


def test_a_damaged_tiff_names_the_place(tmp_path: Path) -> None:
    whole = tmp_path / "cut.tif"
    tifffile.imwrite(whole, fibsem(), photometric="minisblack", compression="zlib")
    data = bytearray(whole.read_bytes())
    with tifffile.TiffFile(whole) as file:
        offset, length = file.pages[20].dataoffsets[0], file.pages[20].databytecounts[0]
    data[offset : offset + length] = bytes(length)
    whole.write_bytes(data)
    with open_source(whole) as source:
        np.testing.assert_array_equal(source.read((slice(0, 8), slice(0, 8), slice(0, 8))), fibsem()[:8, :8, :8])
        with pytest.raises(JobError, match=r"cannot read voxels 16:32"):
            source.read((slice(16, 32), slice(0, 8), slice(0, 8)))
