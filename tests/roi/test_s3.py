"""Writers side by side in a bucket of a real S3-compatible server: by conditional puts, and by a lock object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import ObjectStore

from tests.roi.conftest import tiers_in
from tests.roi.test_objects import at_once, keys
from zarr_emcodec.roi import downgrade_roi, read_roi, upgrade_roi
from zarr_emcodec.roi.objects import ConditionalObjects, PlainObjects, open_objects

moto_server = pytest.importorskip("moto.server", reason="the S3 server needs moto[server]")
s3fs = pytest.importorskip("s3fs", reason="needs s3fs")
obstore = pytest.importorskip("obstore", reason="needs obstore")

BUCKET = "regions"  # moto keeps its buckets for the whole process
PLACE = {"key": "somebody", "secret": "something"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    s3fs.S3FileSystem(**PLACE, client_kwargs={"endpoint_url": url, "region_name": "eu-central-1"}).mkdir(BUCKET)
    yield url
    server.stop()


@pytest.fixture(params=["obstore", "fsspec"])
def array(request: pytest.FixtureRequest, endpoint: str, masters: Any, all_tiers: None) -> Any:
    """A sharded array in a bucket, open for writing."""
    place = f"{request.param}.zarr"
    store = obstore.store.S3Store(
        BUCKET,
        prefix=place,
        endpoint=endpoint,
        region="eu-central-1",
        access_key_id=PLACE["key"],
        secret_access_key=PLACE["secret"],
        client_options={"allow_http": True},
    )
    for key, data in masters["sharded"].items():
        obstore.put(store, key, data)
    if request.param == "obstore":
        return zarr.open_array(ObjectStore(store), mode="r+")
    words = {**PLACE, "client_kwargs": {"endpoint_url": endpoint, "region_name": "eu-central-1"}}
    return zarr.open_array(f"s3://{BUCKET}/{place}", mode="r+", storage_options=words)


def test_upgrades_at_once_in_a_bucket_are_all_kept(array: Any) -> None:
    conditional = type(array.store) is ObjectStore
    assert type(open_objects(array)) is (ConditionalObjects if conditional else PlainObjects)
    before = keys(array)
    downgrade_roi(array, ...)
    at_once(
        lambda: upgrade_roi(array, np.s_[:, :, 0:32]),
        lambda: upgrade_roi(array, np.s_[:, :, 32:64], "full"),
        lambda: upgrade_roi(array, np.s_[:, :, 96:128]),
    )
    found = tiers_in(array)
    for column, tier in enumerate(["prior", "full", "top", "prior"]):
        assert set(found[..., column].ravel()) - {""} == {tier}
    assert keys(array) == before
    assert array.attrs["emcodec:synthesised"] is True
    upgrade_roi(array, ..., "full")
    assert np.array_equal(read_roi(array, np.s_[5:12, 30:40, 20:70], "full"), array[5:12, 30:40, 20:70])
