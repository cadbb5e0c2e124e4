"""Volumes in other people's formats, written by other people's libraries; and a web server to put them behind."""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.volumes import Array, fibsem

BOX = (slice(3, 9), slice(10, 101), slice(7, 128))
WHOLE = (slice(0, 32), slice(0, 128), slice(0, 128))
VOXEL_NM = (40.0, 8.0, 4.0)
BLOSC = {"cname": "zstd", "clevel": 3, "shuffle": 1}


def write_n5(path: Path, values: Array, *, compression: str = "gzip", **attributes: Any) -> None:
    """A data set of blocks of 16 x 32 x 64 (z, y, x)."""
    tensorstore = pytest.importorskip("tensorstore")
    spec = {
        "driver": "n5",
        "kvstore": {"driver": "file", "path": f"{path}/"},
        "metadata": {
            "dimensions": values.shape[::-1],
            "dataType": values.dtype.name,
            "blockSize": [64, 32, 16, 1, 1][: values.ndim],
            "compression": {"type": compression, **(BLOSC if compression == "blosc" else {})},
            **attributes,
        },
    }
    tensorstore.open(spec, create=True, open=True).result()[...] = values.T


def write_precomputed(
    path: Path,
    values: Array,
    *,
    encoding: str = "raw",
    offset: tuple[int, int, int] = (7, 5, 3),
    resolution: tuple[float, float, float] = VOXEL_NM[::-1],
    key: str = "fine",
    **scale: Any,
) -> None:
    """A scale of chunks of 16 x 32 x 64 (z, y, x); offset and resolution are x first."""
    tensorstore = pytest.importorskip("tensorstore")
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": f"{path}/"},
        "multiscale_metadata": {"data_type": values.dtype.name, "num_channels": 1, "type": "image"},
        "scale_metadata": {
            "resolution": resolution,
            "size": values.shape[::-1],
            "voxel_offset": offset,
            "encoding": encoding,
            "chunk_size": [64, 32, 16],
            "key": key,
            **scale,
        },
    }
    tensorstore.open(spec, create=True, open=True).result()[...] = values.T[..., None]


def halved(values: Array) -> Array:
    """Every second voxel along y and x."""
    return np.ascontiguousarray(values[:, ::2, ::2])


def n5_pyramid(path: Path) -> None:
    """Two levels as n5-viewer writes them."""
    pixel = {"unit": "um", "dimensions": [0.004, 0.008, 0.04]}
    write_n5(path / "s0", fibsem(), pixelResolution=pixel, downsamplingFactors=[1, 1, 1])
    write_n5(path / "s1", halved(fibsem()), pixelResolution=pixel, downsamplingFactors=[2, 2, 1])


def precomputed_pyramid(path: Path) -> None:
    """Two scales whose corners agree."""
    write_precomputed(path, fibsem(), offset=(8, 6, 3))
    write_precomputed(path, halved(fibsem()), offset=(4, 3, 3), resolution=(8.0, 16.0, 40.0), key="coarse")


class _Handler(SimpleHTTPRequestHandler):
    """Files with byte ranges; refusals where the test wants them."""

    def do_GET(self) -> None:
        server: Any = self.server
        server.asked.append(self.path)
        status = next((code for part, code in server.refusals.items() if part in self.path), None)
        path = Path(self.translate_path(self.path))
        if status is None and not path.is_file():
            status = 404
        if status is not None:
            self.send_error(status)
            return
        data = path.read_bytes()
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(span[1]), min(int(span[2] or len(data)), len(data) - 1)) if span else (0, len(data) - 1)
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{len(data)}-{path.stat().st_mtime_ns}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[first : last + 1])

    do_HEAD = do_GET  # noqa: N815  # the library's name

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the library's name
        pass


class Web:
    """A folder behind HTTP.

    Attributes
    ----------
    url : str
    refusals : dict
        Part of a path to the status it is answered with.
    asked : list of str
        Paths of all requests so far.
    """

    def __init__(self, server: Any) -> None:
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        self.refusals: dict[str, int] = server.refusals
        self.asked: list[str] = server.asked


@contextlib.contextmanager
def web(folder: Path) -> Iterator[Web]:
    """Serve a folder."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
    server.daemon_threads = True
    server.refusals, server.asked = {}, []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Web(server)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
