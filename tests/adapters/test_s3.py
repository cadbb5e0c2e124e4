"""A bucket of a real S3-compatible server: written, listed and read through the stores that people use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import FsspecStore

import zarr_emcodec
from tests.adapters.common import RATIO, fresh, keys, tissue
from zarr_emcodec.adapters.arrays import EMBEDDED
from zarr_emcodec.errors import FrameError
from zarr_emcodec.quality import psnr

moto_server = pytest.importorskip("moto.server", reason="the S3 server needs moto[server]")
s3fs = pytest.importorskip("s3fs")

BUCKET = "volumes"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def words(endpoint: str) -> dict[str, Any]:
    """How fsspec reaches the server; the bucket is there."""
    options: dict[str, Any] = {
        "key": "somebody",
        "secret": "something",
        "client_kwargs": {"endpoint_url": endpoint, "region_name": "eu-central-1"},
    }
    s3fs.S3FileSystem(**options).mkdir(BUCKET)
    return options


@pytest.mark.parametrize("layout", ["v2", "v3", "sharded"])
def test_written_to_a_bucket_and_read_back(words: dict[str, Any], layout: str) -> None:
    data = tissue(8, 64, 128)
    layouts: dict[str, dict[str, Any]] = {"v2": {"zarr_format": 2}, "v3": {}, "sharded": {"shards": (8, 64, 128)}}
    place = layouts[layout]
    url = f"s3://{BUCKET}/{layout}.zarr"
    stored = zarr_emcodec.create_array(url, data=data, chunks=(4, 64, 64), ratio=RATIO, storage_options=words, **place)
    assert len(keys(stored)) == (1 if layout == "sharded" else 4)
    local = zarr_emcodec.create_array({}, data=data, chunks=(4, 64, 64), ratio=RATIO, **place)
    opened = zarr.open_array(url, mode="r", storage_options=words)
    back = np.asarray(opened[...])
    assert np.array_equal(back, np.asarray(local[...]))
    assert psnr(data, back) > 22
    assert np.array_equal(np.asarray(opened[5]), back[5])
    assert np.array_equal(np.asarray(opened[2:6, 10:20, 60:70]), back[2:6, 10:20, 60:70])
    assert opened.nbytes_stored() < data.nbytes / 8


def test_a_small_box_of_a_shard_is_read_by_ranges(words: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"s3://{BUCKET}/ranges.zarr"
    data = tissue(8, 128, 128)
    stored = zarr_emcodec.create_array(
        url, data=data, chunks=(4, 32, 32), shards=(8, 128, 128), ratio=RATIO, storage_options=words
    )
    shard_bytes = stored.nbytes_stored()
    received: list[int] = []
    original = FsspecStore.get

    async def get(self: FsspecStore, key: str, prototype: Any, byte_range: Any = None) -> Any:
        found = await original(self, key, prototype, byte_range)
        received.append(0 if found is None else len(found))
        return found

    opened = zarr.open_array(url, mode="r", storage_options=words)
    monkeypatch.setattr(FsspecStore, "get", get)
    assert np.asarray(opened[1, 5:9, 40:44]).shape == (4, 4)
    assert 0 < sum(received) < shard_bytes / 5


def test_an_embedded_model_lies_beside_the_data(words: dict[str, Any]) -> None:
    url = f"s3://{BUCKET}/embedded.zarr"
    codec = zarr_emcodec.VAECodec(ratio=RATIO, model="vae-2d-s16")
    zarr_emcodec.create_array(url, data=tissue(4, 64, 64), codec=codec, embed_model=True, storage_options=words)
    folder = f"{BUCKET}/embedded.zarr/{EMBEDDED}/{codec.spec.digest.removeprefix('sha256:')}"
    names = {path.rsplit("/", 1)[-1] for path in s3fs.S3FileSystem(**words).ls(folder)}
    assert names == {"card.json", "decoder.onnx", "tables.npz"}


def test_a_stranger_reads_with_the_embedded_model(words: dict[str, Any], tmp_path: Any) -> None:
    # a process whose search path holds no model at all
    url = f"s3://{BUCKET}/stranger.zarr"
    stored = zarr_emcodec.create_array(
        url, data=tissue(4, 64, 64), ratio=RATIO, embed_model=True, storage_options=words
    )
    np.save(tmp_path / "expected.npy", np.asarray(stored[...]))
    code = """
import json, sys
import numpy as np
from zarr_emcodec.runtime import find
find._folders = lambda *, named: iter(() if named else (find.cache_folder(),))
import zarr_emcodec
url, words, expected = sys.argv[1], json.loads(sys.argv[2]), np.load(sys.argv[3])
assert not zarr_emcodec.list_models()
try:
    zarr_emcodec.open(url, storage_options=words)
except zarr_emcodec.errors.ModelError as error:
    assert "trust_embedded=True" in str(error)
else:
    raise SystemExit("opened without trust")
array = zarr_emcodec.open(url, trust_embedded=True, storage_options=words)
assert np.array_equal(array[...], expected)
print("equal")
"""
    assert fresh(code, url, json.dumps(words), str(tmp_path / "expected.npy")) == "equal"


def test_a_truncated_object_raises(words: dict[str, Any]) -> None:
    url = f"s3://{BUCKET}/truncated.zarr"
    zarr_emcodec.create_array(url, data=tissue(4, 64, 64), ratio=RATIO, storage_options=words)
    files = s3fs.S3FileSystem(**words)
    key = f"{BUCKET}/truncated.zarr/c/0/0/0"
    files.pipe(key, files.cat(key)[:-7])
    with pytest.raises(FrameError):
        np.asarray(zarr.open_array(url, mode="r", storage_options=words)[...])
