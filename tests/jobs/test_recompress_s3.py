"""The same jobs into a bucket of a real S3-compatible server, by a process that only its environment leads there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adapters.common import fresh
from tests.jobs.recompressing import source_of

moto_server = pytest.importorskip("moto.server", reason="the S3 server needs moto[server]")
pytest.importorskip("s3fs")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    words = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b",
             "DEFAULT_REGION": "us-east-1"}  # fmt: skip
    for name, value in words.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    yield "s3://recompressed"  # moto keeps its buckets for the whole process
    server.stop()


CODE = """
import sys
import numpy as np
import s3fs
import zarr
from tests.jobs.recompressing import PATTERN
from zarr_emcodec.errors import JobError, PlanMismatchError
from zarr_emcodec.jobs import store
from zarr_emcodec.jobs.plan import plan
from zarr_emcodec.jobs.recompress import recompress

def refused(made, kind, words):
    try:
        recompress(made, engine="serial")
    except kind as error:
        assert words in str(error), error
    else:
        raise SystemExit(f"not refused: {words}")

bucket, source = sys.argv[1:]
s3fs.S3FileSystem().mkdir("recompressed")
made = plan(source, f"{bucket}/out.zarr", **PATTERN)
original = store.put

def put(place, key, data):
    if key == "c/1/0/0" and type(place.store).__name__ == "FsspecStore":
        raise JobError("the network is away")
    original(place, key, data)

store.put = put
first = recompress(made, engine="serial", retries=1, backoff_s=0.001)
assert [failure.coords for failure in first.failed] == [(1, 0, 0)], first.failed
store.put = original
second = recompress(made, engine="serial", embed_model=True)
assert second.ok and second.n_before == made.n_blocks - 1
assert np.array_equal(zarr.open_array(f"{bucket}/out.zarr", mode="r")[...], np.load(source))
other = plan(source, f"{bucket}/out.zarr", **{**PATTERN, "codec": {"max_error": 1}})
refused(other, PlanMismatchError, "ledger belongs to plan")
assert recompress(other, engine="serial", overwrite=True).ok
zarr.create_array(f"{bucket}/other.zarr", data=np.ones((4, 4), "u1"))
refused(plan(source, f"{bucket}/other.zarr", **PATTERN), JobError, "exists already")
refused(plan(source, "s3://nothing/out.zarr", **PATTERN), JobError, "nothing/out.zarr")
print("all of it")
"""


def test_a_bucket_is_claimed_written_resumed_and_replaced(bucket: str, tmp_path: Path) -> None:
    assert fresh(CODE, bucket, str(source_of(tmp_path))).splitlines()[-1] == "all of it"
