"""What N5 and Neuroglancer precomputed share: TensorStore reads their blocks.

A driver's settings in, a reader of boxes out. Axis order is `axes.View`'s business.
"""

from __future__ import annotations

import math
import os
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.errors import JobError, MissingExtraError, SpecError
from zarr_emcodec.jobs.sources.place import reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr_emcodec._types import Chunk
    from zarr_emcodec.jobs.axes import View
    from zarr_emcodec.jobs.grid import Box
    from zarr_emcodec.jobs.sources.place import Place

CACHE_BYTES = 1 << 26
"""Decoded blocks kept for all sources of a process: neighbouring boxes share those at their edges."""
_PROTOCOLS = ("http", "https", "s3", "gs")


def open_tensors(place: Place, what: str, settings: dict[str, Any], *, strict: bool) -> Any:
    """A TensorStore of a place.

    Parameters
    ----------
    place : Place
    what : str
        Of the format, for messages.
    settings : dict
        Of the driver, without its key-value store.
    strict : bool
        Whether blocks that are not stored are errors.

    Raises
    ------
    SpecError
        If TensorStore reads no such place, encoding or data type.
    JobError
        If the place cannot be read.
    MissingExtraError
        Without tensorstore.
    """
    try:
        import tensorstore
    except ImportError as error:
        raise MissingExtraError(f"reading {what}", extra="sources") from error
    spec = {
        **settings,
        "kvstore": kvstore(place),
        "recheck_cached_data": "open",
        "fill_missing_data_reads": not strict,
    }
    try:
        return tensorstore.open(spec, read=True, context=_context()).result()
    except (ValueError, NotImplementedError, OSError) as error:
        raise JobError(f"{place.location}: TensorStore cannot open this {what}: {reason(error)}") from error


@cache
def _context() -> Any:
    import tensorstore

    return tensorstore.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})


def kvstore(place: Place) -> dict[str, Any]:
    """TensorStore's description of where a place lies.

    Raises
    ------
    SpecError
        If TensorStore has no way there, or options cannot be passed on to it.
    """
    if place.store is not None:
        raise _no_way(place, "a store object")
    if not place.is_remote:
        return {"driver": "file", "path": f"{place.path.absolute()}/"}
    protocol, _, rest = place.location.partition("://")
    host, _, path = rest.partition("/")
    path = f"{path.rstrip('/')}/" if path else ""
    if protocol in ("http", "https"):
        return {"driver": "http", "base_url": f"{protocol}://{host}", "path": f"/{path}"}
    if protocol == "gs":
        return {"driver": "gcs", "bucket": host, "path": path}
    if protocol == "s3":
        return {"driver": "s3", "bucket": host, "path": path, **_s3(place)}
    raise _no_way(place, f"{protocol}:// URLs")


def _no_way(place: Place, what: str) -> SpecError:
    return SpecError(
        f"{place.location}: N5 and precomputed volumes are read through TensorStore, which knows local paths and "
        f"{', '.join(f'{p}://' for p in _PROTOCOLS)}, not {what}. Copy it, mount it, or serve it over HTTP.",
        name="source",
        value=place.location,
    )


def _s3(place: Place) -> dict[str, Any]:
    """What fsspec's options, or the environment, say of an S3 service, in TensorStore's words."""
    options = dict(place.options or {})
    client = options.get("client_kwargs") or {}
    if options.get("key") or options.get("secret"):
        raise SpecError(
            f"{place.location}: TensorStore takes no keys as options. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
            name="storage_options",
        )
    endpoint = (
        options.get("endpoint_url")
        or client.get("endpoint_url")
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
    )
    region = client.get("region_name") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    out: dict[str, Any] = {}
    if endpoint:
        out = {"endpoint": endpoint, "aws_region": region or "us-east-1"}
    if options.get("anon"):
        out["aws_credentials"] = {"type": "anonymous"}
    return out


def held_bytes(store: Any) -> int:
    """What reading a store keeps between boxes, at most."""
    raw: int = math.prod(store.shape) * store.dtype.numpy_dtype.itemsize
    return min(CACHE_BYTES, raw)


def reader(store: Any, view: View) -> Callable[[Box], Chunk]:
    """Boxes of a TensorStore with our axes."""
    kept = sorted(view.axes)
    order = [kept.index(axis) for axis in view.axes]

    def read(box: Box) -> Chunk:
        # transposed before it is read: the voxels come in our order without a copy
        return np.asarray(store[view.to_stored(box)].transpose(order).read(order="C").result())

    return read
