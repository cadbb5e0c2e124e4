"""Where a source's bytes lie: a folder or a file, on disk or behind a URL.

A location and options in; documents, existence, and marks of change out. Zarr's stores carry the requests, so whatever
fsspec or obstore reaches is reached here. Only "not found" counts as absent: a server that refuses or fails raises.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr_emcodec.errors import EmCodecError, JobError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from zarr.abc.store import Store
    from zarr.storage import StorePath

_AT_ONCE = 32  # requests in flight


@dataclass(frozen=True)
class Place:
    """A place in a store.

    Parameters
    ----------
    location : str
        Local path, or URL.
    options : mapping, optional
        For the fsspec file system or obstore store of a URL.
    store : zarr Store or StorePath, optional
        Used as it is; `location` then only names it.
    """

    location: str
    options: Mapping[str, Any] | None = None
    store: Store | StorePath | None = field(default=None, repr=False)

    @property
    def is_remote(self) -> bool:
        """Whether a URL leads there."""
        return "://" in self.location or self.store is not None

    @property
    def path(self) -> Path:
        """The local path."""
        return Path(self.location)

    @cached_property
    def store_path(self) -> StorePath:
        """The place as Zarr takes it, read-only.

        Raises
        ------
        JobError
            If it cannot be reached.
        MissingExtraError
            If what carries the protocol is not installed.
        """
        from zarr.core.sync import sync
        from zarr.storage import StorePath

        try:
            if isinstance(self.store, StorePath):
                return self.store
            return sync(StorePath.open(self.store or self._open_store(), "", mode="r"))
        except EmCodecError:
            raise
        except Exception as error:  # stores raise whatever their transport does
            raise JobError(f"{self.location}: cannot be reached: {reason(error)}") from error

    def _open_store(self) -> Store:
        from zarr.storage import FsspecStore, LocalStore, ZipStore

        if not self.is_remote:
            return ZipStore(self.path, mode="r") if self.path.is_file() else LocalStore(self.path, read_only=True)
        options = dict(self.options) if self.options else None
        try:
            return FsspecStore.from_url(self.location, storage_options=options, read_only=True)
        except ImportError:  # fsspec knows the protocol, its file system is not installed (gcsfs, adlfs, ...)
            return self._open_obstore()

    def _open_obstore(self) -> Store:
        try:
            import obstore.store
            from zarr.storage import ObjectStore
        except ImportError as error:
            raise MissingExtraError(f"reading {self.location.split('://')[0]}:// URLs", extra="sources") from error
        return ObjectStore(obstore.store.from_url(self.location, **(self.options or {})), read_only=True)

    def parent(self) -> tuple[Place | None, str]:
        """The folder that this one lies in, and this one's name in it; None at the root of a store."""
        if self.store is not None:
            path = self.store_path.path.rstrip("/")
            if not path:
                return None, ""
            above, _, name = path.rpartition("/")
            where = type(self.store_path)(self.store_path.store, above)
            return Place(str(where), None, where), name
        text = self.location if self.is_remote else str(self.path.absolute())
        above, _, name = text.rstrip("/").rpartition("/")
        inside = bool(above) and not above.endswith(":/") and not (self.is_remote and above.count("/") < 3)
        return (Place(above, self.options), name) if inside else (None, name)

    def child(self, name: str) -> Place:
        """A place further down."""
        if self.store is not None:
            where = self.store_path / name
            return Place(str(where), None, where)
        return Place(f"{self.location.rstrip('/')}/{name}", self.options)

    def get(self, *names: str) -> list[bytes | None]:
        """Objects of this folder, all asked for at once; None for one that is not there.

        Raises
        ------
        JobError
            If the store does not answer, or refuses.
        """
        from zarr.core.buffer import default_buffer_prototype

        async def one(name: str) -> bytes | None:
            found = await (self.store_path / name).get(default_buffer_prototype())
            return None if found is None else found.to_bytes()

        return self._all(one, names)

    def document(self, name: str) -> dict[str, Any] | None:
        """A JSON object of this folder, or None where there is none.

        Raises
        ------
        JobError
            If it is there and is no JSON object.
        """
        (data,) = self.get(name)
        return None if data is None else self.parsed(name, data)

    def parsed(self, name: str, data: bytes) -> dict[str, Any]:
        """A JSON object from the bytes of a document of this folder."""
        try:
            value = json.loads(data)
        except ValueError as error:
            raise JobError(f"{self.location}/{name}: is no JSON document ({error}). Restore it.") from error
        if not isinstance(value, dict):
            raise JobError(f"{self.location}/{name}: holds no JSON object. Restore it.")
        return value

    def zarr_attributes(self) -> dict[str, Any]:
        """User attributes of a Zarr group or array of either format; empty where there is none."""
        v3, v2 = self.get("zarr.json", ".zattrs")
        if v3 is not None:
            attributes = self.parsed("zarr.json", v3).get("attributes")
            return dict(attributes) if isinstance(attributes, Mapping) else {}
        return {} if v2 is None else self.parsed(".zattrs", v2)

    def count_absent(self, keys: Iterable[str]) -> tuple[int, int]:
        """How many objects are not there, and how many were asked for; one byte of each is fetched."""
        found = self._all(self._is_absent, list(keys))
        return sum(found), len(found)

    def marks(self, keys: Sequence[str]) -> list[str]:
        """What tells objects from changed ones: size with time or entity tag; "absent" for one that is not there."""

        async def mark(key: str) -> str:
            return "absent" if await self._is_absent(key) else await self._mark(key)

        return self._all(mark, keys)

    async def _is_absent(self, key: str) -> bool:
        # a byte, not `exists`: file systems answer that with "no" where a server refuses or is down
        from zarr.abc.store import RangeByteRequest
        from zarr.core.buffer import default_buffer_prototype

        return await (self.store_path / key).get(default_buffer_prototype(), RangeByteRequest(0, 1)) is None

    async def _mark(self, key: str) -> str:
        from zarr.storage import FsspecStore, LocalStore

        place = self.store_path / key
        if isinstance(place.store, LocalStore):
            return stat_mark(place.store.root / place.path)
        if isinstance(place.store, FsspecStore):
            info = await place.store.fs._info("/".join(filter(None, [place.store.path.rstrip("/"), place.path])))
            return info_mark(info)
        return str(await place.store.getsize(place.path))

    def _all(self, one: Any, names: Sequence[str]) -> list[Any]:
        from zarr.core.sync import sync

        async def gather() -> list[Any]:
            gate = asyncio.Semaphore(_AT_ONCE)

            async def gated(name: str) -> Any:
                async with gate:
                    return await one(name)

            return await asyncio.gather(*(gated(name) for name in names))

        self.store_path  # noqa: B018  # opened here: inside the loop it could not be
        try:
            return sync(gather())
        except EmCodecError:
            raise
        except Exception as error:  # stores raise whatever their transport does
            raise JobError(f"{self.location}: cannot be read: {reason(error)}") from error


def stat_mark(path: str | os.PathLike[str]) -> str:
    """Size and time of a local file, or "absent"."""
    try:
        facts = os.stat(path)  # noqa: PTH116  # takes what a store calls its root
    except (FileNotFoundError, NotADirectoryError):
        return "absent"
    return f"{facts.st_size} {facts.st_mtime_ns}"


def info_mark(info: Mapping[str, Any]) -> str:
    """Size with entity tag or time, from what an fsspec file system tells about a file."""
    for name in ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created"):
        if info.get(name):
            return f"{info.get('size')} {info[name]}"
    return str(info.get("size"))


def reason(error: BaseException) -> str:
    """The first line of a library's message, without the dumps of settings that some append.

    Examples
    --------
    >>> reason(ValueError("no such block [tensorstore_spec='...']\\nmore"))
    'no such block'
    """
    text = re.split(r" \[(?:tensorstore_spec|source locations)=", str(error).split("\n", 1)[0])[0].strip()
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return reason(error.__cause__)  # fsspec says "not found" of whatever a web server answers
    return text or type(error).__name__
