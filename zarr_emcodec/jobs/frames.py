"""The stored frames of an array, one by one, without decoding a voxel.

An open Zarr array in; its layout and its chunks' bytes out. Shards are taken apart by their index, v2 and v3 alike.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from zarr_emcodec.errors import JobError
from zarr_emcodec.jobs.grid import chunks_in, grid_shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import zarr

    from zarr_emcodec._types import Shape
    from zarr_emcodec.jobs.grid import Box

ABSENT = 2**64 - 1
"""Offset and length of an inner chunk that is not stored."""
_BATCH = 64  # objects fetched at once


@dataclass(frozen=True)
class Layout:
    """How an array lies in its store.

    Parameters
    ----------
    shape, chunks : tuple of int, voxels
        Of the array; of one (inner) chunk.
    shards : tuple of int, voxels, or None
        None where each chunk is an object of its own.
    codec : str
        Name of the codec that turns a chunk into bytes.
    config : mapping
        Its configuration.
    wrapped_by : tuple of str
        Codecs after it: where there are any, stored chunks are not frames.
    shard_config : mapping
        Configuration of the sharding codec.
    """

    shape: Shape
    chunks: Shape
    shards: Shape | None
    codec: str
    config: Mapping[str, Any]
    wrapped_by: tuple[str, ...] = ()
    shard_config: Mapping[str, Any] | None = None

    @property
    def is_ours(self) -> bool:
        """Whether this package wrote the chunks."""
        return self.codec.startswith(("emcodec.", "emcodec_"))

    @property
    def has_frames(self) -> bool:
        """Whether stored chunks are frames as they lie."""
        return self.is_ours and not self.wrapped_by

    @property
    def n_chunks(self) -> int:
        """Cells of the chunk grid, stored or not."""
        return int(np.prod(grid_shape(self.shape, self.chunks), dtype=np.int64))


@dataclass(frozen=True)
class Stored:
    """One cell of the chunk grid.

    Parameters
    ----------
    chunk_index : tuple of int
    data : bytes or None
        As stored; None where nothing is (the chunk is all fill value) or `problem` says why not.
    problem : str
        Empty unless the bytes could not be told apart.
    """

    chunk_index: Shape
    data: bytes | None
    problem: str = ""


def layout_of(array: zarr.Array[Any]) -> Layout:
    """The layout of an open array, v2 or v3."""
    facts: dict[str, Any] = array.metadata.to_dict()
    if facts["zarr_format"] == 2:
        chain = [*(facts.get("filters") or []), *([facts["compressor"]] if facts.get("compressor") else [])]
        names = [str(codec["id"]) for codec in chain]
        mine = next((i for i, name in enumerate(names) if name.startswith("emcodec_")), max(len(names) - 1, 0))
        config = {key: value for key, value in chain[mine].items() if key != "id"} if chain else {}
        name = names[mine] if names else "none"
        return Layout(array.shape, array.chunks, None, name, config, tuple(names[mine + 1 :]))
    codecs, shard_config = list(facts["codecs"]), None
    if codecs and codecs[0]["name"] == "sharding_indexed":
        shard_config = codecs[0]["configuration"]
        codecs = list(shard_config["codecs"])
    names = [str(codec["name"]) for codec in codecs]
    mine = next((i for i, name in enumerate(names) if name.startswith("emcodec.")), len(names) - 1)
    config = codecs[mine].get("configuration", {})
    return Layout(array.shape, array.chunks, array.shards, names[mine], config, tuple(names[mine + 1 :]), shard_config)


def stored_bytes(array: zarr.Array[Any]) -> int:
    """All bytes under the array's name: chunks or shards, metadata, an embedded model."""
    from zarr.storage import LocalStore

    if isinstance(array.store, LocalStore):
        root = Path(array.store.root) / array.path
        return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    return int(array.nbytes_stored())


def stored_chunks(array: zarr.Array[Any], layout: Layout, box: Box | None = None) -> Iterator[Stored]:
    """Every cell of the chunk grid with its bytes; memory follows one shard, or a few dozen chunks.

    Parameters
    ----------
    array, layout
    box : tuple of slice, optional
        Only the cells of this box, which is made of whole shards, or chunks where there are none. An object that
        cannot be read is then a problem of its cells.

    Raises
    ------
    JobError
        If the store cannot be read, or the shard index is coded in a way that is not known here.
    """
    whole = box is None
    box = tuple(slice(0, n) for n in layout.shape) if box is None else box
    if layout.shards is None:
        for batch in _batched(chunks_in(box, layout.chunks), _BATCH):
            for index, data in zip(batch, _fetch(array, batch, strict=whole), strict=True):
                yield Stored(index, None, data) if isinstance(data, str) else Stored(index, data)
        return
    per_shard = grid_shape(layout.shards, layout.chunks)
    cells = grid_shape(layout.shape, layout.chunks)
    for shard_index in chunks_in(box, layout.shards):
        [shard] = _fetch(array, (shard_index,), strict=whole)
        first = tuple(i * n for i, n in zip(shard_index, per_shard, strict=True))
        inner = [tuple(f + i for f, i in zip(first, local, strict=True)) for local in np.ndindex(per_shard)]
        for stored in _inner_chunks(shard, inner, layout):
            if all(i < n for i, n in zip(stored.chunk_index, cells, strict=True)):
                yield stored


def _fetch(array: zarr.Array[Any], indices: tuple[Shape, ...], *, strict: bool) -> list[bytes | str | None]:
    """Whole objects of chunks or shards, or what the store says instead of one."""
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    async def get() -> list[Any]:
        paths = [array.store_path / array.metadata.encode_chunk_key(index) for index in indices]
        return await asyncio.gather(*(path.get(default_buffer_prototype()) for path in paths), return_exceptions=True)

    found: list[bytes | str | None] = []
    # zarr's own loop: remote stores hold connections that belong to it
    for index, data in zip(indices, sync(get()), strict=True):
        if isinstance(data, Exception):  # stores raise whatever their transport does
            if strict:
                raise JobError(f"{array.store_path}: cannot read chunk {index}: {data}") from data
            found.append(f"cannot be read: {data}")
        elif isinstance(data, BaseException):
            raise data
        else:
            found.append(None if data is None else data.to_bytes())
    return found


def _inner_chunks(shard: bytes | str | None, indices: list[Shape], layout: Layout) -> Iterator[Stored]:
    if shard is None:
        yield from (Stored(index, None) for index in indices)
        return
    if isinstance(shard, str):
        yield from (Stored(index, None, shard) for index in indices)
        return
    table = shard_index(shard, len(indices), layout.shard_config or {})
    if isinstance(table, str):
        yield from (Stored(index, None, table) for index in indices)
        return
    for index, (offset, length) in zip(indices, table, strict=True):
        if (offset, length) == (ABSENT, ABSENT):
            yield Stored(index, None)
        elif offset + length > len(shard):
            yield Stored(
                index, None, f"the shard's index points at bytes {offset} to {offset + length} of {len(shard)}"
            )
        else:
            yield Stored(index, shard[offset : offset + length])


def shard_index_bytes(count: int, config: Mapping[str, Any]) -> int:
    """Size of the index of a shard that holds so many inner chunks.

    Raises
    ------
    JobError
        If the index is coded in a way that is not known here.
    """
    coded_by = [codec["name"] for codec in config["index_codecs"]]
    little = all(codec.get("configuration", {}).get("endian", "little") == "little" for codec in config["index_codecs"])
    if coded_by not in (["bytes"], ["bytes", "crc32c"]) or not little:
        raise JobError(f"shard index coded by {', '.join(coded_by)}: only little-endian bytes and crc32c are known.")
    return 16 * count + (4 if "crc32c" in coded_by else 0)


def shard_index(shard: bytes, count: int, config: Mapping[str, Any]) -> list[tuple[int, int]] | str:
    """Where each inner chunk lies in its shard (zarr spec, "sharding_indexed", 1.0).

    Parameters
    ----------
    shard : bytes
        A whole shard, or its index alone.
    count : int
        Inner chunks of a shard.
    config : mapping
        Of the sharding codec.

    Returns
    -------
    list of (offset, length), or str
        In bytes, C order, `ABSENT` twice where nothing is stored; or what is wrong with the index, in words.

    Raises
    ------
    JobError
        If the index is coded in a way that is not known here.
    """
    size = shard_index_bytes(count, config)
    if len(shard) < size:
        return f"the shard has {len(shard)} bytes, its index alone needs {size}"
    coded = shard[:size] if config.get("index_location", "end") == "start" else shard[-size:]
    body = coded[: 16 * count]
    if len(coded) > len(body) and google_crc32c.value(body) != int.from_bytes(coded[-4:], "little"):
        return "the shard's index does not match its checksum"
    return list(struct.iter_unpack("<QQ", body))


def _batched(items: Iterable[Shape], size: int) -> Iterator[tuple[Shape, ...]]:
    """`itertools.batched`, which Python 3.11 lacks."""
    rest = iter(items)
    while batch := tuple(itertools.islice(rest, size)):
        yield batch
