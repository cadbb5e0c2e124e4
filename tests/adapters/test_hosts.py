"""xarray, dask and worker processes read and write the arrays, as a rule without knowing of this package."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import zarr_emcodec
from tests.adapters.common import RATIO, fresh, get, keys, tissue
from tests.volumes import Array
from zarr_emcodec.quality import psnr

LAYOUTS: dict[str, dict[str, Any]] = {
    "v2": {"zarr_format": 2, "name": "em"},
    "v3": {"dimension_names": ("z", "y", "x"), "name": "em"},
    "sharded": {"dimension_names": ("z", "y", "x"), "name": "em", "shards": (8, 64, 128)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Groups with an array "em" in each layout, and what the arrays hold."""
    place = tmp_path_factory.mktemp("hosts")
    for layout, words in LAYOUTS.items():
        version: Any = words.get("zarr_format", 3)
        zarr.open_group(place / layout, mode="w", zarr_format=version)
        stored = zarr_emcodec.create_array(
            place / layout,
            data=tissue(16, 64, 128),
            chunks=(4, 64, 64),
            ratio=RATIO,
            attributes={"_ARRAY_DIMENSIONS": ["z", "y", "x"]} if version == 2 else None,
            **words,
        )
        np.save(place / f"{layout}.npy", np.asarray(stored[...]))
    return place


@pytest.fixture(params=LAYOUTS)
def place(request: pytest.FixtureRequest, folder: Path) -> tuple[str, str]:
    """The path of a group, and of a file with the voxels of its array."""
    return str(folder / request.param), str(folder / f"{request.param}.npy")


PREAMBLE = """
import sys
from pathlib import Path
import numpy as np

def check(found, expected):
    assert np.array_equal(found, expected), "voxels differ"

places = [(path.removesuffix(".npy"), np.load(path)) for path in sys.argv[1:]]
"""
EPILOGUE = """
assert not {"torch", "zarr_emcodec.train", "zarr_emcodec.jobs"} & set(sys.modules)
print(f"{len(places)} read")
"""
# Zarr v2 has no other word for a missing value than the fill value, so xarray masks it unless told not to
XARRAY = """
import xarray
for place, expected in places:
    em = xarray.open_zarr(place, consolidated=False, mask_and_scale=False{words})["em"]
    assert em.dims == ("z", "y", "x") and em.dtype == np.uint8
    check(em.isel(z=slice(5, 7)).values, expected[5:7])
    check(em.isel(z=5, x=[3, 90]).values, expected[5][:, [3, 90]])
    check(em.values, expected)
"""
DASK = """
import dask, dask.array
arrays = [dask.array.from_zarr(place + "/em") for place, _ in places]
whole = dask.compute(arrays, [array[:, ::2].max() for array in arrays], scheduler="{scheduler}", num_workers=2)
for (_, expected), found, highest in zip(places, *whole):
    check(found, expected)
    check(highest, expected[:, ::2].max())
"""
DISTRIBUTED = """
import dask.array
from distributed import Client, LocalCluster
workers = dict(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None)
with LocalCluster(**workers) as cluster, Client(cluster):
    for place, expected in places:
        check(dask.array.from_zarr(place + "/em").compute(), expected)
"""


def check_fresh(code: str, *files: Path) -> None:
    assert "emcodec" not in code
    assert fresh(PREAMBLE + code + EPILOGUE, *map(str, files)) == f"{len(files)} read"


@pytest.mark.parametrize("words", ["", ", chunks=None"], ids=["dask", "numpy"])
def test_xarray_reads_without_an_import(folder: Path, words: str) -> None:
    pytest.importorskip("xarray")
    pytest.importorskip("dask")
    check_fresh(XARRAY.format(words=words), *folder.glob("*.npy"))


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_dask_reads_without_an_import(folder: Path, scheduler: str) -> None:
    pytest.importorskip("dask")
    check_fresh(DASK.format(scheduler=scheduler), *folder.glob("*.npy"))


@pytest.mark.slow
def test_distributed_workers_read_without_an_import(folder: Path) -> None:
    pytest.importorskip("distributed")
    check_fresh(DISTRIBUTED, *folder.glob("*.npy"))


@pytest.mark.parametrize("layout", ["v2", "v3", "sharded"])
def test_xarray_writes_with_an_encoding(layout: str, tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    codec = zarr_emcodec.VAECodec(ratio=RATIO)
    encoding: dict[str, Any] = {"chunks": (4, 64, 64), "serializer": codec.to_v3().to_dict(), "compressors": None}
    if layout == "v2":
        encoding = {"chunks": (4, 64, 64), "compressors": codec.get_config()}
    elif layout == "sharded":
        encoding["shards"] = (8, 64, 128)
    data = tissue(8, 64, 128)
    dataset = xarray.Dataset({"em": (("z", "y", "x"), data)})
    dataset.to_zarr(tmp_path, zarr_format=2 if layout == "v2" else 3, consolidated=False, encoding={"em": encoding})
    stored = zarr.open_array(str(tmp_path), path="em", mode="r")
    assert zarr_emcodec.inspect(get(stored, keys(stored)[0])).kind == "latent" or layout == "sharded"
    assert len(keys(stored)) == (1 if layout == "sharded" else 4)
    assert stored.nbytes_stored() < data.nbytes / 8
    opened = xarray.open_zarr(tmp_path, consolidated=False, mask_and_scale=False)["em"]
    assert psnr(data, opened.values) > 22


@pytest.mark.parametrize("version", [2, 3])
def test_without_a_fill_value_xarray_keeps_the_dtype(version: Any, tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    data = tissue(4, 64, 96)
    data[:, :, 48:] = 0
    zarr.open_group(tmp_path, mode="w", zarr_format=version)
    names: dict[str, Any] = {"dimension_names": ("z", "y", "x")}
    if version == 2:
        names = {"attributes": {"_ARRAY_DIMENSIONS": ["z", "y", "x"]}}
    stored = zarr_emcodec.create_array(
        tmp_path, name="em", data=data, chunks=(4, 48, 48), fill_value=None, zarr_format=version, **names
    )
    assert len([key for key in keys(stored) if "em" in key]) == 2
    em = xarray.open_zarr(tmp_path, consolidated=False)["em"]
    assert em.dtype == np.uint8
    assert (em.values[:, :, 48:] == 0).all()
    assert psnr(data, em.values) > 20


def test_dask_writes_through_zarr(tmp_path: Path) -> None:
    array = pytest.importorskip("dask.array")
    data = tissue(8, 64, 128)
    target = zarr_emcodec.create_array(
        tmp_path / "a.zarr", shape=data.shape, dtype=data.dtype, chunks=(4, 64, 64), ratio=RATIO
    )
    array.from_array(data, chunks=(4, 64, 64)).store(target, lock=False)
    assert psnr(data, np.asarray(target[...])) > 22


# pickles, threads, processes


def open_array(place: tuple[str, str]) -> zarr.Array[Any]:
    return zarr.open_array(place[0], path="em", mode="r")


def read(array: zarr.Array[Any]) -> Array:
    """All voxels; top-level, so that worker processes can call it."""
    return np.asarray(array[...])


def encode(codec: zarr_emcodec.VAECodec, chunk: Array) -> bytes:
    return codec.encode(chunk)


def test_arrays_and_codecs_survive_pickle_after_use(place: tuple[str, str]) -> None:
    array = open_array(place)
    expected = read(array)
    for twin in (pickle.loads(pickle.dumps(array)), copy.deepcopy(array)):
        assert twin.metadata == array.metadata
        assert np.array_equal(read(twin), expected)
    codec = zarr_emcodec.VAECodec(ratio=RATIO)
    frame = codec.encode(expected[:2])
    for used in (codec, codec.to_v3()):
        assert len(pickle.dumps(used)) < 2000  # a configuration, no network
        assert pickle.loads(pickle.dumps(used)) == used
    assert pickle.loads(pickle.dumps(codec)).encode(expected[:2]) == frame


def test_eight_threads_read_and_write(place: tuple[str, str], tmp_path: Path) -> None:
    expected = np.load(place[1])
    array = open_array(place)
    data = tissue(16, 32, 32)
    target = zarr_emcodec.create_array(
        tmp_path / "a.zarr", shape=data.shape, dtype=data.dtype, chunks=(2, 32, 32), ratio=RATIO
    )

    def work(i: int) -> bool:
        target[2 * i : 2 * i + 2] = data[2 * i : 2 * i + 2]
        return np.array_equal(np.asarray(array[i : i + 7]), expected[i : i + 7]) and np.array_equal(
            read(open_array(place)), expected
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    single = zarr_emcodec.create_array(tmp_path / "b.zarr", data=data, chunks=(2, 32, 32), ratio=RATIO)
    assert np.array_equal(read(target), read(single))


def test_spawned_workers_read_and_write_the_same(folder: Path) -> None:
    places = [(str(folder / layout), str(folder / f"{layout}.npy")) for layout in LAYOUTS]
    codec, chunk = zarr_emcodec.VAECodec(ratio=RATIO), tissue(2, 48, 48)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for place, found in zip(places, pool.map(read, map(open_array, places)), strict=True):
            assert np.array_equal(found, np.load(place[1]))
        assert pool.submit(encode, codec, chunk).result() == codec.encode(chunk)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this platform")
def test_forked_workers_read_though_the_parent_has_a_session(place: tuple[str, str]) -> None:
    code = """
import multiprocessing, warnings, zarr
array = zarr.open_array(places[0][0], path="em", mode="r")
check(array[...], places[0][1])
def work(i):
    return array[i:], array[i]
# newer Pythons warn of any fork beside threads, and Zarr has its own thread
warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
with multiprocessing.get_context("fork").Pool(2) as pool:
    for i, (rest, plane) in enumerate(pool.map(work, range(4))):
        check(rest, places[0][1][i:])
        check(plane, places[0][1][i])
"""
    check_fresh(code, Path(place[1]))
