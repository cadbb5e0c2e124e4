"""What the tests of the adapters share: arrays written through plain Zarr, keys of a store, code in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

import zarr_emcodec
from tests.volumes import Array, fibsem, padded

RATIO = 16.0
ROOT = Path(__file__).parents[2]


def tissue(*shape: int) -> Array:
    """A piece of the shipped sample, uint8, up to 32 x 128 x 128."""
    piece: Array = fibsem()[tuple(slice(0, n) for n in shape)].copy()
    return piece


def write(
    data: Array,
    layout: str,
    chunks: tuple[int, ...],
    *,
    store: Any = None,
    codec: zarr_emcodec.VAECodec | None = None,
    **words: Any,
) -> Any:
    """A `zarr.Array` made by Zarr alone: `layout` is "v2", "v3" or "sharded".

    Typed loosely: the union of all that indexing may give helps no test.
    """
    codec = codec or zarr_emcodec.VAECodec(ratio=RATIO, model="vae-2d-s16")
    place: dict[str, Any] = {"zarr_format": 2, "compressors": codec, "filters": None}
    if layout != "v2":
        place = {"zarr_format": 3, "serializer": codec.to_v3(), "compressors": None}
    if layout == "sharded":
        place["shards"] = tuple(2 * n for n in chunks)
    array = zarr.create_array(
        MemoryStore() if store is None else store,
        shape=data.shape,
        dtype=data.dtype,
        chunks=chunks,
        **{"fill_value": 0, **place, **words},
    )
    array[...] = data
    return array


def keys(array: zarr.Array[Any]) -> list[str]:
    """Keys of chunks and shards in the array's store, sorted."""

    async def listed() -> list[str]:
        return [key async for key in array.store.list()]

    return sorted(key for key in sync(listed()) if not key.rsplit("/", 1)[-1].startswith((".z", "zarr.json")))


def get(array: zarr.Array[Any], key: str) -> bytes:
    data = sync(array.store.get(key, default_buffer_prototype()))
    assert data is not None
    return data.to_bytes()


def put(array: zarr.Array[Any], key: str, data: bytes) -> None:
    sync(array.store.set(key, default_buffer_prototype().buffer.from_bytes(data)))


def alone(data: Array, chunks: tuple[int, ...], fill: float = 0) -> Array:
    """What the codec makes of the same chunks without Zarr."""
    codec = zarr_emcodec.VAECodec(ratio=RATIO)
    out = np.empty_like(data)
    for coords in np.ndindex(*(-(-n // edge) for n, edge in zip(data.shape, chunks, strict=True))):
        box = tuple(slice(i * edge, (i + 1) * edge) for i, edge in zip(coords, chunks, strict=True))
        chunk = codec.decode(codec.encode(padded(data[box], chunks, fill)))
        out[box] = chunk[tuple(slice(0, n) for n in data[box].shape)]
    return out


def fresh(code: str, *arguments: str, **environment: str) -> str:
    """What a new interpreter prints that runs `code` with warnings as errors, and never heard of these tests."""
    environment = {**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, **environment}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
        cwd=ROOT.anchor,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
