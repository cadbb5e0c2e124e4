"""N5 datasets whose blocks are frames: a store that shows one as a Zarr array, both ways.

An N5 dataset counts its axes from the fastest on, (x, y, z); the array has them as everywhere here, (z, y, x). Nothing
else is translated: a block is a frame behind N5's own header, so all that reads frames reads N5. Other N5 readers do
not know the compression and say so; tensorstore 0.1.86: ``"emcodec_vae" is not registered``, zarr-n5 0.3.1:
``unsupported codec with type emcodec_vae``, z5py 3.0.2: ``wrong compressor for n5 format``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import os
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import FsspecStore, LocalStore

from zarr_emcodec.adapters import arrays
from zarr_emcodec.adapters.layout import fit_chunks
from zarr_emcodec.adapters.n5_format import (
    DOCUMENT,
    VERSION,
    attributes_from,
    frame_of,
    header,
    is_block,
    metadata_from,
    n5_key,
    zarr_key,
)
from zarr_emcodec.codecs.vae import VAESpec
from zarr_emcodec.errors import JobError, SpecError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from zarr_emcodec._types import Shape


class N5Store(Store):
    """One N5 dataset as the store of a Zarr v3 array.

    Parameters
    ----------
    store : zarr.abc.store.Store
        Where the N5 container lies.
    path : str
        Of the dataset in it; "" where the container is the dataset.

    Notes
    -----
    Blocks are written whole, edge blocks too, as tensorstore does. Those that another writer cut at the edge of the
    dataset are read as well: such a frame is handed on padded, and losslessly, as a frame of full size.
    """

    def __init__(self, store: Store, path: str = "") -> None:
        super().__init__(read_only=store.read_only)
        self._base, self._path = store, path.strip("/")
        self._chunks: tuple[Shape, Any] | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, N5Store) and (self._base, self._path) == (other._base, other._path)

    def __str__(self) -> str:
        return f"n5 in {self._base}" + (f"/{self._path}" if self._path else "")

    __repr__ = __str__

    @property
    def supports_writes(self) -> bool:
        """As the container's store."""
        return self._base.supports_writes

    @property
    def supports_deletes(self) -> bool:
        """As the container's store."""
        return self._base.supports_deletes

    @property
    def supports_listing(self) -> bool:
        """As the container's store."""
        return self._base.supports_listing

    def with_read_only(self, read_only: bool = False) -> Self:
        """The same dataset, for reading only or for writing too."""
        return type(self)(self._base.with_read_only(read_only), self._path)

    async def _open(self) -> None:
        await self._base._ensure_open()
        await super()._open()

    def close(self) -> None:
        """Close the container's store."""
        self._base.close()
        super().close()

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Metadata made from N5's, the frame of a block, or any other object as it is."""
        prototype = prototype or default_buffer_prototype()
        if key != "zarr.json" and not is_block(key):
            return await self._base.get(self._place(key), prototype, byte_range)
        data = await self._base.get(self._place(key), prototype)
        if data is None:
            return None
        if key == "zarr.json":
            document = metadata_from(data.to_bytes(), where=str(self))
            whole = None if document is None else json.dumps(document).encode()
        else:
            chunks, background = await self._layout()
            whole = await asyncio.to_thread(frame_of, data.to_bytes(), chunks, background, self._place(key))
        return None if whole is None else prototype.buffer.from_bytes(_part(whole, byte_range))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Parts of several objects."""
        return await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges))

    async def set(self, key: str, value: Buffer) -> None:
        """Write metadata as N5's, a frame as a block, or any other object as it is."""
        self._check_writable()
        data = value.to_bytes()
        if key == "zarr.json":
            data = attributes_from(json.loads(data), root=not self._path)
            self._chunks = None
            await self._sign_root(value)
        elif is_block(key):
            chunks, _ = await self._layout()
            data = header(chunks) + data
        await self._base.set(self._place(key), type(value).from_bytes(data))

    async def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return await self._base.exists(self._place(key))

    async def delete(self, key: str) -> None:
        """Remove an object."""
        self._check_writable()
        await self._base.delete(self._place(key))

    async def getsize(self, key: str) -> int:
        """Stored bytes of an object, a block's header included."""
        return await self._base.getsize(self._place(key))

    async def list(self) -> AsyncIterator[str]:
        """Keys of all objects of the dataset."""
        start = f"{self._path}/" if self._path else ""
        async for key in self._base.list_prefix(start):
            yield zarr_key(key.removeprefix(start))

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Keys that begin with `prefix`."""
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names of what lies directly under `prefix`."""
        start = f"{prefix.rstrip('/')}/" if prefix else ""
        seen = set()
        async for key in self.list_prefix(start):
            name = key.removeprefix(start).split("/", 1)[0]
            if name not in seen:
                seen.add(name)
                yield name

    def _place(self, key: str) -> str:
        """The key in the container's store."""
        key = n5_key(key)
        return f"{self._path}/{key}" if self._path else key

    async def _layout(self) -> tuple[Shape, Any]:
        """Chunk shape of the dataset and its codec's background, read once."""
        if self._chunks is None:
            data = await self._base.get(self._place("zarr.json"), default_buffer_prototype())
            document = None if data is None else metadata_from(data.to_bytes(), where=str(self))
            if document is None:
                raise JobError(f"{self}: blocks without the {DOCUMENT} of a dataset cannot be told.")
            chunks = tuple(document["chunk_grid"]["configuration"]["chunk_shape"])
            self._chunks = chunks, document["codecs"][0]["configuration"].get("background", "auto")
        return self._chunks

    async def _sign_root(self, like: Buffer) -> None:
        """Give the container's root its version, where it has none: Java readers ask for it."""
        if self._path and not await self._base.exists(DOCUMENT):
            await self._base.set(DOCUMENT, type(like).from_bytes(json.dumps({"n5": VERSION}).encode()))


def open(  # noqa: A001  # `n5.open`, as `zarr_emcodec.open`
    location: Store | str | os.PathLike[str],
    path: str = "",
    *,
    mode: Literal["r", "r+"] = "r",
    trust_embedded: bool = False,
    storage_options: dict[str, Any] | None = None,
) -> zarr.Array[Any]:
    """Open an N5 dataset whose blocks are frames.

    Parameters
    ----------
    location : store, path or URL
        Of the N5 container, or of the dataset itself.
    path : str
        Of the dataset in the container.
    mode : {"r", "r+"}
        Read, or read and write.
    trust_embedded : bool
        As in `zarr_emcodec.open`.
    storage_options : dict, optional
        For a URL, as in fsspec.

    Returns
    -------
    zarr.Array
        With axes (z, y, x), and the dataset's further attributes as its own.

    Raises
    ------
    JobError
        If there is no N5 dataset.
    SpecError
        If its blocks are of another compression.
    """
    store = N5Store(_store(location, storage_options, read_only=mode == "r"), path)
    try:
        node = arrays.open(store, mode=mode, trust_embedded=trust_embedded)
    except FileNotFoundError as error:
        raise JobError(f"{store}: no N5 dataset there: {DOCUMENT} is missing, or it is a group's.") from error
    assert isinstance(node, zarr.Array)  # the store's zarr.json says "array", or is not there
    return node


def create(
    location: Store | str | os.PathLike[str],
    path: str = "",
    *,
    data: Any = None,
    shape: tuple[int, ...] | None = None,
    dtype: DTypeLike | None = None,
    chunks: tuple[int, ...] | None = None,
    ratio: float | None = None,
    codec: Any = None,
    attributes: dict[str, Any] | None = None,
    embed_model: bool = False,
    overwrite: bool = False,
    storage_options: dict[str, Any] | None = None,
) -> zarr.Array[Any]:
    """Create an N5 dataset whose blocks are frames.

    Parameters
    ----------
    location, path, storage_options
        As in `open`.
    data, shape, dtype, chunks, ratio, codec, embed_model
        As in `zarr_emcodec.create_array`, the codec as an object; axes and chunks are (z, y, x).
    attributes : dict, optional
        Go into the dataset's ``attributes.json`` as they are: what N5 counts from x on (``resolution``, ``offset``,
        ``units``, ``axes``) is given in that order.
    overwrite : bool
        Whether a dataset that is there may be replaced.

    Returns
    -------
    zarr.Array

    Raises
    ------
    SpecError
        As `zarr_emcodec.create_array`, or if an attribute has a name that N5 uses itself.
    """
    if codec is not None and ratio is not None:
        raise SpecError("pass ratio= or codec=, not both.", name="ratio", value=ratio)
    spec = VAESpec(ratio=ratio) if codec is None else getattr(codec, "spec", codec)
    if data is not None:
        data = data if hasattr(data, "dtype") else np.asarray(data)
    extent = shape if data is None else data.shape
    itemsize = np.dtype(dtype if data is None else data.dtype).itemsize
    if extent is not None:
        chunks = chunks or fit_chunks(extent)
    array = arrays.create_array(
        N5Store(_store(location, storage_options, read_only=False), path),
        data=data,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        codec=_with_headers(spec, extent or (), chunks or (), itemsize),
        attributes=attributes,
        embed_model=embed_model,
        overwrite=overwrite,
        dimension_names=None,
    )
    note: Any = array.attrs["emcodec"]
    array.attrs["emcodec"] = {**note, "ratio": spec.ratio}  # the one asked for, as in every array
    return array


def _with_headers(spec: Any, shape: Shape, chunks: Shape, itemsize: int) -> Any:
    """The spec whose frames leave room for the blocks' headers."""
    if spec.ratio is None or getattr(spec, "mode", "") == "nominal" or 0 in shape or len(shape) != len(chunks):
        return spec
    raw = math.prod(shape) * itemsize
    headers = len(header(chunks)) * math.prod(-(-n // edge) for n, edge in zip(shape, chunks, strict=True))
    budget = raw / spec.ratio
    return dataclasses.replace(spec, ratio=raw / (budget - min(headers, budget / 2)))


def _store(
    location: Store | str | os.PathLike[str], storage_options: dict[str, Any] | None, *, read_only: bool
) -> Store:
    if isinstance(location, Store):
        return location if location.read_only or not read_only else location.with_read_only(True)
    where = os.fspath(location)
    if "://" in where:
        return FsspecStore.from_url(where, storage_options=storage_options, read_only=read_only)
    return LocalStore(where, read_only=read_only)


def _part(data: bytes, byte_range: ByteRequest | None) -> bytes:
    if isinstance(byte_range, RangeByteRequest):
        return data[byte_range.start : byte_range.end]
    if isinstance(byte_range, OffsetByteRequest):
        return data[byte_range.offset :]
    if isinstance(byte_range, SuffixByteRequest):
        return data[-byte_range.suffix :] if byte_range.suffix else b""
    return data
