"""Sources behind URLs: a real web server, a real S3 service, and store objects of fsspec and obstore."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from tests.jobs.foreign import BOX, VOXEL_NM, Web, n5_pyramid, precomputed_pyramid, web, write_n5, write_precomputed
from tests.volumes import fibsem
from zarr_emcodec.errors import JobError, SpecError
from zarr_emcodec.jobs.sources import open_source

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

CHUNKS = (8, 64, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample in every format."""
    h5py, root = pytest.importorskip("h5py"), tmp_path_factory.mktemp("web")
    zarr.create_array(root / "v2.zarr", data=fibsem(), chunks=CHUNKS, zarr_format=2)
    zarr.create_array(root / "v3.zarr", data=fibsem(), chunks=CHUNKS)
    zarr.create_array(root / "sharded.zarr", data=fibsem(), chunks=CHUNKS, shards=(16, 128, 128))
    n5_pyramid(root / "n5")
    precomputed_pyramid(root / "precomputed")
    tifffile.imwrite(root / "stack.tif", fibsem(), photometric="minisblack", compression="zlib")
    np.save(root / "v.npy", fibsem())
    with h5py.File(root / "v.h5", "w") as file:
        file.create_dataset("em", data=fibsem(), chunks=CHUNKS)
    return root


@pytest.fixture
def server(folder: Path) -> Iterator[Web]:
    with web(folder) as served:
        yield served


NAMES = ["v2.zarr", "v3.zarr", "sharded.zarr", "n5", "precomputed", "stack.tif", "v.npy", "v.h5::em"]


@pytest.mark.parametrize("name", NAMES)
def test_http(name: str, server: Web) -> None:
    with open_source(f"{server.url}/{name}") as source:
        assert source.shape == fibsem().shape
        np.testing.assert_array_equal(source.read(BOX), fibsem()[BOX])
        with pickle.loads(pickle.dumps(source)) as twin:
            assert twin.fingerprint() == source.fingerprint()
            np.testing.assert_array_equal(twin.read(BOX), fibsem()[BOX])
        if name in ("n5", "precomputed"):
            assert source.voxel_nm == pytest.approx(VOXEL_NM)
            with open_source(source.levels[1].location) as coarse:
                assert coarse.shape == (32, 64, 64)


@pytest.mark.parametrize("name", ["v3.zarr", "n5", "precomputed"])
def test_a_box_asks_only_for_the_blocks_it_touches(name: str, server: Web) -> None:
    source = open_source(f"{server.url}/{name}")
    server.asked.clear()
    box = (slice(0, 4), slice(2, 12), slice(70, 80))
    np.testing.assert_array_equal(source.read(box), fibsem()[box])
    assert len({path for path in server.asked if "info" not in path and ".json" not in path}) == 1


CHUNK = {"v2.zarr": "/0.0.0", "v3.zarr": "/c/0/0/0", "n5": "/s0/0/0/0", "precomputed": "/8-72_6-38_3-19"}


@pytest.mark.parametrize(("name", "status"), [("v2.zarr", 403), ("v3.zarr", 500), ("n5", 403), ("precomputed", 403)])
def test_what_a_server_refuses_is_not_taken_for_empty(name: str, status: int, server: Web) -> None:
    source = open_source(f"{server.url}/{name}")
    first = tuple(slice(0, 4) for _ in range(3))
    server.refusals[CHUNK[name]] = status
    with pytest.raises(JobError, match=rf"{name}.* 0:4, 0:4, 0:4: .*{status}"):
        source.read(first)
    with pytest.raises(JobError, match=rf"cannot look for voxels 0:4.*{status}"):
        source.missing(first)


@pytest.mark.parametrize("name", NAMES)
def test_a_source_that_may_not_be_read(name: str, server: Web) -> None:
    server.refusals["/"] = 403
    with pytest.raises(JobError, match=r"403"):
        open_source(f"{server.url}/{name}")


def test_a_server_that_is_down_is_an_error(folder: Path) -> None:
    with web(folder) as served:
        url = served.url
    for name in NAMES:
        with pytest.raises(JobError, match=name.split("::")[0]):
            open_source(f"{url}/{name}")


def test_what_is_not_there(server: Web) -> None:
    with pytest.raises(JobError, match="no Zarr array"):
        open_source(f"{server.url}/nothing")
    with pytest.raises(JobError, match=r"nothing\.tif"):
        open_source(f"{server.url}/nothing.tif")


@pytest.fixture(scope="module")
def bucket(folder: Path) -> Iterator[dict[str, Any]]:
    """The same files in a bucket; the environment says where the service is."""
    moto_server = pytest.importorskip("moto.server", reason="the S3 server needs moto[server]")
    s3fs = pytest.importorskip("s3fs")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    words = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for key, value in words.items():
            patch.setenv(key, value)
        files = s3fs.S3FileSystem()
        files.mkdir("sources")
        for name in ("v3.zarr", "sharded.zarr", "n5", "precomputed", "stack.tif", "v.npy", "v.h5"):
            files.put(str(folder / name), f"sources/{name}", recursive=(folder / name).is_dir())
        yield {"endpoint": words["AWS_ENDPOINT_URL"], "files": files}
    server.stop()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "v2.zarr"])
def test_s3(name: str, bucket: dict[str, Any]) -> None:
    with open_source(f"s3://sources/{name}") as source:
        np.testing.assert_array_equal(source.read(BOX), fibsem()[BOX])
        first = source.fingerprint()
        with pickle.loads(pickle.dumps(source)) as twin:
            assert twin.fingerprint() == first
            np.testing.assert_array_equal(twin.read(BOX), fibsem()[BOX])
    with pytest.raises(JobError, match="nothing"):
        open_source(f"s3://sources/nothing/{name}")


def test_options_say_where_the_service_is(bucket: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    options = {"client_kwargs": {"endpoint_url": bucket["endpoint"]}}
    for name in ("v3.zarr", "n5"):
        with open_source(f"s3://sources/{name}", storage_options=options) as source:
            twin = pickle.loads(pickle.dumps(source))
            np.testing.assert_array_equal(twin.read(BOX), fibsem()[BOX])
    with pytest.raises(SpecError, match="AWS_ACCESS_KEY_ID"):
        open_source("s3://sources/n5", storage_options={**options, "key": "a", "secret": "b"})


def test_obstore_carries_what_fsspec_does_not(bucket: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")

    def absent(*args: Any, **words: Any) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(zarr.storage.FsspecStore, "from_url", absent)
    options = {"endpoint": bucket["endpoint"], "client_options": {"allow_http": True}}
    with open_source("s3://sources/v3.zarr", storage_options=options) as source:
        with pickle.loads(pickle.dumps(source)) as twin:
            assert twin.fingerprint() == source.fingerprint()
        np.testing.assert_array_equal(source.read(BOX), fibsem()[BOX])
        assert source.missing(BOX) is False


def test_a_chunk_that_is_deleted_from_a_bucket(bucket: dict[str, Any]) -> None:
    bucket["files"].copy("sources/v3.zarr", "sources/holes.zarr", recursive=True)
    with open_source("s3://sources/holes.zarr") as source:
        before = source.fingerprint()
        first = tuple(slice(0, n) for n in CHUNKS)
        assert source.missing(first) is False
        bucket["files"].rm("sources/holes.zarr/c/0/0/0")
        assert source.missing(first) is True
        assert source.fingerprint() != before
        assert not source.read(first).any()


def test_stores_of_obstore_and_fsspec(folder: Path) -> None:
    obstore = pytest.importorskip("obstore.store")
    local = zarr.storage.ObjectStore(obstore.LocalStore(folder / "v3.zarr"), read_only=True)
    name = f"memory://{uuid.uuid4()}"
    zarr.create_array(f"{name}/v", data=fibsem(), chunks=CHUNKS)
    for where in (local, zarr.storage.FsspecStore.from_url(f"{name}/v", read_only=True), f"{name}/v"):
        with open_source(where) as source, pickle.loads(pickle.dumps(source)) as twin:
            assert twin.fingerprint() == source.fingerprint()
            np.testing.assert_array_equal(twin.read(BOX), fibsem()[BOX])


def test_zip_files_are_stores(tmp_path: Path) -> None:
    with zarr.storage.ZipStore(tmp_path / "v.zarr.zip", mode="w") as store:
        zarr.create_array(store, data=fibsem(), chunks=CHUNKS)
    with open_source(tmp_path / "v.zarr.zip") as source:
        np.testing.assert_array_equal(source.read(BOX), fibsem()[BOX])
        assert source.missing(BOX) is False


def test_tensorstore_has_no_way_to_every_store(tmp_path: Path) -> None:
    write_n5(tmp_path / "n5", fibsem())
    write_precomputed(tmp_path / "precomputed", fibsem())
    name = f"memory://{uuid.uuid4()}"
    files = fsspec.filesystem("memory")
    for kind in ("n5", "precomputed"):
        files.put(str(tmp_path / kind), f"{name.removeprefix('memory:/')}/{kind}", recursive=True)
        with pytest.raises(SpecError, match=r"not memory:// URLs.*over HTTP"):
            open_source(f"{name}/{kind}")
