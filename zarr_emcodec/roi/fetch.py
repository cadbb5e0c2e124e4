"""Stored frames by chunk index, and chunks decoded from them at a tier of the caller's choice.

Chunk indices in; frames, headers or voxels out, in batches of bounded size. Of a shard only its index and the frames
asked for are fetched. Options of the process are not changed.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from zarr_emcodec import codecs
from zarr_emcodec.adapters.reading import Span, first_bytes, leading_part
from zarr_emcodec.codecs.vqvae import VQVAESpec
from zarr_emcodec.errors import EmCodecError, FrameError, JobError, ModelError, SpecError, TruncatedFrameError
from zarr_emcodec.frame import Frame, Header, Limits, read_header
from zarr_emcodec.jobs.frames import ABSENT, Layout, layout_of, shard_index, shard_index_bytes
from zarr_emcodec.jobs.grid import grid_shape
from zarr_emcodec.roi.tiers import check_layout
from zarr_emcodec.runtime import Options, current

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Iterator, Sequence

    import zarr

    from zarr_emcodec._types import Chunk, Shape
    from zarr_emcodec.runtime.options import TierName

    Planes = tuple[int, int] | None

T = TypeVar("T")
_BATCH_VOXELS = 1 << 24  # decoded at once, unless one chunk alone has more
_BATCH_FRAMES = 256
_HEAD_BYTES = 64  # of most frames the whole header
_HEAD_ATTEMPTS = 8
_SHARDS_KEPT = 64  # shard indices in memory: batches run along the grid and come back to the same shards


def codec_of(array: zarr.Array[Any]) -> Any:
    """Our codec as an open array holds it; it has a ``spec``.

    Raises
    ------
    SpecError
        If another codec changes chunks before it: what is encoded is not the array's voxels then.
    """
    facts: Any = array.metadata
    chain = [*(facts.filters or ()), facts.compressor] if facts.zarr_format == 2 else list(facts.codecs)
    if hasattr(chain[0], "chunk_shape"):  # a shard's codecs stand in the sharding codec
        chain = list(chain[0].codecs)
    if not hasattr(chain[0], "spec"):
        raise SpecError(
            f"{array.store_path}: {type(chain[0]).__name__} changes the chunks before they are encoded; only tiers can "
            "be changed there, voxels are read through Zarr.",
            name="array",
        )
    return chain[0]


class Frames:
    """The stored frames of one array, for reading.

    Parameters
    ----------
    array : zarr.Array
        Of a codec of this package.

    Raises
    ------
    SpecError
        If its chunks are not frames.
    """

    def __init__(self, array: zarr.Array[Any]) -> None:
        self.array = array
        self.layout: Layout = layout_of(array)
        check_layout(self.layout, array.store_path)
        self._tables: dict[Shape, list[tuple[int, int]] | None] = {}

    def batches(self, indices: Iterable[Shape]) -> Iterator[list[Shape]]:
        """Chunk indices in lists that may be in memory at once, decoded."""
        most = max(1, min(_BATCH_FRAMES, _BATCH_VOXELS // int(np.prod(self.layout.chunks))))
        batch: list[Shape] = []
        for index in indices:
            batch.append(index)
            if len(batch) == most:
                yield batch
                batch = []
        if batch:
            yield batch

    def fetch(self, indices: Sequence[Shape]) -> list[bytes | None]:
        """Whole frames; None where nothing is stored.

        Raises
        ------
        JobError
            If the store cannot be read, or a shard's index is damaged.
        """
        return self._run(self._fetch(indices, [None] * len(indices)), indices)

    def headers(self, indices: Sequence[Shape]) -> list[Header | None]:
        """Headers alone, from a few bytes of each frame; of un-indexed frames they are not proved by a CRC.

        Raises
        ------
        FrameError
            If there is no frame; the message names the chunk.
        JobError
            As `fetch`.
        """
        out: list[Header | None] = [None] * len(indices)
        todo = list(range(len(indices)))
        n_bytes = _HEAD_BYTES
        for _ in range(_HEAD_ATTEMPTS):
            short = []
            asked = [indices[i] for i in todo]
            found = self._run(self._fetch(asked, [(0, n_bytes)] * len(asked)), asked)
            for i, data in zip(todo, found, strict=True):
                try:
                    out[i] = None if data is None else read_header(data, limits=_limits(current()))
                except TruncatedFrameError as error:
                    if data is not None and len(data) < n_bytes:  # all there is
                        raise _named(error, indices[i]) from error
                    short.append((i, error.needed))
                except FrameError as error:
                    raise _named(error, indices[i]) from error
            if not short:
                return out
            todo, n_bytes = [i for i, _ in short], max(2 * n_bytes, *(needed for _, needed in short))
        raise JobError(f"chunk {indices[todo[0]]}: its header takes more than {n_bytes} bytes.")

    def decode(
        self, indices: Sequence[Shape], tier: TierName | None, planes: Sequence[Planes] | None = None
    ) -> list[Any]:
        """Chunks at a tier; None where nothing is stored.

        Parameters
        ----------
        indices : sequence of chunk index
            No more than one of `batches`.
        tier : str or None
            None: each at the tier that its frame states.
        planes : sequence of (start, stop) or None, optional
            Planes of each chunk's first axis, as `codecs.decode_many` takes them.

        Raises
        ------
        JobError
            If a chunk cannot be read or decoded; the message names it.
        ModelError
            If a model is missing.
        """
        options = dataclasses.replace(current(), tier=tier)
        frames = self._needed(indices, options)
        there = [i for i, data in enumerate(frames) if data is not None]
        spans = [None if planes is None else planes[i] for i in there]
        out: list[Chunk | None] = [None] * len(frames)
        data = [frame for frame in frames if frame is not None]
        try:
            chunks = codecs.decode_many(data, options, planes=spans)
        except FrameError as error:
            raise JobError(_which(data, [indices[i] for i in there], options, error)) from error
        for i, chunk, span in zip(there, chunks, spans, strict=True):
            expected = self.layout.chunks if span is None else (span[1] - span[0], *self.layout.chunks[1:])
            if chunk.shape != expected:
                raise JobError(f"chunk {indices[i]}: decodes to {chunk.shape}, the array's chunks are {expected}.")
            out[i] = chunk
        return out

    def _needed(self, indices: Sequence[Shape], options: Options) -> Sequence[Frame | bytes | None]:
        """Of each frame as much as decoding at the tier needs."""
        spec = codec_of(self.array).spec
        first = first_bytes(spec, self.layout.chunks, options) if isinstance(spec, VQVAESpec) else None
        if first is None:
            return self.fetch(indices)

        async def front(index: Shape) -> Frame | bytes | None:
            part = leading_part(first, options)
            start, stop = next(part)
            while True:
                [data] = await self._fetch([index], [(start, stop)])
                try:
                    start, stop = part.send(data)
                except StopIteration as done:
                    found: Frame | bytes | None = done.value
                    return found
                except FrameError as error:
                    raise JobError(f"chunk {index}: {error}") from error

        async def fronts() -> list[Frame | bytes | None]:
            if self.layout.shards is not None:  # before they ask for the same tables one by one
                await self._load_tables(indices, grid_shape(self.layout.shards, self.layout.chunks))
            return list(await asyncio.gather(*(front(index) for index in indices)))

        return self._run(fronts(), indices)

    def _run(self, work: Coroutine[Any, Any, T], indices: Sequence[Shape]) -> T:
        from zarr.core.sync import sync

        try:
            return sync(work)  # zarr's own loop: remote stores hold connections that belong to it
        except EmCodecError:
            raise
        except Exception as error:  # stores raise whatever their transport does
            raise JobError(f"{self.array.store_path}: cannot read chunks from {indices[0]} on: {error}") from error
        finally:
            for shard in list(self._tables)[:-_SHARDS_KEPT]:
                del self._tables[shard]

    async def _fetch(self, indices: Sequence[Shape], spans: Sequence[Span | None]) -> list[bytes | None]:
        """A range of each frame, which may end early where the frame does; None for all of it."""
        if self.layout.shards is None:
            return list(await asyncio.gather(*map(self._get, indices, spans)))
        per_shard = grid_shape(self.layout.shards, self.layout.chunks)
        shards = await self._load_tables(indices, per_shard)

        async def inner(index: Shape, shard: Shape, span: Span | None) -> bytes | None:
            table = self._tables[shard]
            slot = np.ravel_multi_index([i % n for i, n in zip(index, per_shard, strict=True)], per_shard)
            offset, length = (ABSENT, ABSENT) if table is None else table[int(slot)]
            if (offset, length) == (ABSENT, ABSENT):
                return None
            start, stop = (0, length) if span is None else (min(n, length) for n in span)
            if start == stop:
                return b""
            data = await self._get(shard, (offset + start, offset + stop))
            if data is None or len(data) != stop - start:
                raise JobError(f"chunk {index}: the shard's index points beyond its end. Restore it from its source.")
            return data

        return list(await asyncio.gather(*map(inner, indices, shards, spans)))

    async def _load_tables(self, indices: Sequence[Shape], per_shard: Shape) -> list[Shape]:
        """Have the index of every shard that holds one of these chunks at hand; the shards, chunk by chunk."""
        from zarr.abc.store import RangeByteRequest, SuffixByteRequest

        shards = [tuple(i // n for i, n in zip(index, per_shard, strict=True)) for index in indices]
        count, config = int(np.prod(per_shard)), self.layout.shard_config or {}
        size = shard_index_bytes(count, config)
        at_start = config.get("index_location", "end") == "start"
        where = RangeByteRequest(0, size) if at_start else SuffixByteRequest(size)

        async def load(shard: Shape) -> None:
            found = await self._path(shard).get(byte_range=where)
            table = None if found is None else shard_index(found.to_bytes(), count, config)
            if isinstance(table, str):
                raise JobError(f"shard {shard}: {table}. Restore it from its source.")
            self._tables[shard] = table

        await asyncio.gather(*(load(shard) for shard in dict.fromkeys(shards) if shard not in self._tables))
        return shards

    async def _get(self, index: Shape, span: Span | None) -> bytes | None:
        from zarr.abc.store import RangeByteRequest

        found = await self._path(index).get(byte_range=None if span is None else RangeByteRequest(*span))
        return None if found is None else found.to_bytes()

    def _path(self, index: Shape) -> Any:
        return self.array.store_path / self.array.metadata.encode_chunk_key(index)


def _limits(options: Options) -> Limits:
    return Limits(max_chunk_bytes=options.max_chunk_bytes)


def _named(error: FrameError, index: Shape) -> FrameError:
    error.args = (f"chunk {index}: {error}",)
    return error


def _which(data: list[bytes | Frame], indices: list[Shape], options: Options, error: FrameError) -> str:
    """The message of a failed batch with the chunk that made it fail: the rest is decoded once more for it."""
    for frame, index in zip(data, indices, strict=True):
        try:
            codecs.decode_many([frame], options)
        except FrameError as own:
            return f"chunk {index}: {own}"
        except (ModelError, SpecError):
            continue
    return f"chunks {indices[0]} to {indices[-1]}: {error}"
