"""Stored objects (chunks or shards) replaced one by one, whole and never on top of somebody else's change.

An array and a function from old to new bytes in; the store with the object replaced out. What the bytes mean is not
known here. Each store is used as safely as it allows:

========== ============================================= ===================================================
store      replaced by                                   two writers
========== ============================================= ===================================================
local      rename of a complete, synced file             a lock on a file beside the metadata (POSIX flock)
obstore    one put, on condition of the object's etag    the store refuses the second, which starts again
other      one put, after reading the object once more   a lock object beside the metadata
========== ============================================= ===================================================

A lock is held for a handful of objects and then given up, so writers take turns; a process that dies leaves none that
lasts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from zarr_emcodec.errors import JobError, SpecError

if TYPE_CHECKING:
    import zarr
    from zarr.abc.store import Store

T = TypeVar("T")

LOCK = ".emcodec-roi.lock"
"""Name of the lock beside an array's metadata."""
WAIT_S = 60.0
"""How long a writer waits for its turn."""
LEASE_S = 15.0
"""A lock object that stays the same for so long belongs to a process that died."""
_ATTEMPTS = 8
_POLL_S = 0.05

Change = Callable[[bytes | None], tuple[bytes | None, T]]
"""Old bytes (None: no such object) to new bytes (None: leave it) and what to tell the caller."""


class Objects(ABC):
    """The objects of one array, open for replacing."""

    @abstractmethod
    async def read(self, key: str) -> tuple[bytes, Any] | None:
        """An object and a token of its state; None where there is none."""

    @abstractmethod
    async def replace(self, key: str, data: bytes, token: Any) -> bool:
        """Put new bytes in place of an object, unless it is no longer as `token` says: then False."""

    @abstractmethod
    def turn(self) -> AbstractAsyncContextManager[None]:
        """Hold off other writers of this kind for the length of a block."""

    async def update(self, key: str, change: Change[T], before: Callable[[], Awaitable[None]] | None = None) -> T:
        """Replace one object by what `change` makes of it; called again where somebody else was quicker.

        Parameters
        ----------
        key : str
        change : callable
            Called in a thread.
        before : callable, optional
            Awaited when there is something to replace, ahead of replacing it.

        Raises
        ------
        JobError
            If the store fails, or the object keeps changing.
        """
        for _ in range(_ATTEMPTS):
            try:
                data, token = await self.read(key) or (None, None)
            except OSError as error:
                raise JobError(f"{key}: cannot be read: {error}") from error
            new, told = await asyncio.to_thread(change, data)
            if new is None:
                return told
            if before is not None:
                await before()
            try:
                if await self.replace(key, new, token):
                    return told
            except OSError as error:
                raise JobError(f"{key}: cannot be replaced, and is as it was: {error}") from error
        raise JobError(f"{key}: is being written by somebody else all the time. Run this again when they are done.")


def open_objects(array: zarr.Array[Any]) -> Objects:
    """The objects of an array, replaced in the way that suits its store.

    Raises
    ------
    SpecError
        If the store is read-only, or can only be added to.
    """
    from zarr.storage import LocalStore

    check_writable(array)
    store, path = array.store, array.path
    lock_key = f"{path}/{LOCK}" if path else LOCK
    if isinstance(store, LocalStore) and sys.platform != "win32":
        return LocalObjects(Path(store.root), lock_key)
    inner = getattr(store, "store", None)  # obstore's own, inside zarr's ObjectStore
    if type(inner).__module__.startswith("obstore") and type(inner).__name__ != "LocalStore":
        return ConditionalObjects(inner)
    return PlainObjects(store, lock_key)


def check_writable(array: zarr.Array[Any]) -> None:
    """Refuse arrays whose objects cannot be replaced.

    Raises
    ------
    SpecError
        If the store is read-only, or can only be added to.
    """
    if array.read_only:
        raise SpecError(
            f"{array.store_path}: is open for reading only. Open it with mode='r+'; or use read_roi, which decodes the "
            "region richly and writes nothing.",
            name="array",
        )
    if not array.store.supports_deletes:
        raise SpecError(
            f"{array.store_path}: a {type(array.store).__name__} cannot replace what it holds. Use read_roi, which "
            "decodes the region richly and writes nothing.",
            name="array",
        )


class LocalObjects(Objects):
    """Files, replaced by renaming; the lock ends with the process that holds it."""

    def __init__(self, root: Path, lock_key: str) -> None:
        self.root = root
        self.lock = root / lock_key

    async def read(self, key: str) -> tuple[bytes, Any] | None:
        """The object and what it looked like."""
        return await asyncio.to_thread(_read_file, self.root / key)

    async def replace(self, key: str, data: bytes, token: Any) -> bool:
        """A new object, if the old one is as it was."""
        return await asyncio.to_thread(_replace_file, self.root / key, data, token)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """As in `Objects`."""
        import fcntl

        deadline = time.monotonic() + WAIT_S
        while (held := await asyncio.to_thread(_try_lock, self.lock)) is None:
            if time.monotonic() > deadline:
                raise _busy(self.lock, "another process")
            await asyncio.sleep(_POLL_S)
        try:
            yield
        finally:
            self.lock.unlink(missing_ok=True)  # before letting go: whoever waits looks whether its file is still there
            fcntl.flock(held, fcntl.LOCK_UN)
            os.close(held)


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read_file(path: Path) -> tuple[bytes, Any] | None:
    try:
        with path.open("rb") as file:
            token = _identity(os.fstat(file.fileno()))
            return file.read(), token
    except (FileNotFoundError, NotADirectoryError):
        return None


def _replace_file(path: Path, data: bytes, token: Any) -> bool:
    # one name for all attempts: what a killed process leaves is overwritten by the next
    draft = path.with_name(f"{path.name}.roi-partial")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave the new name with no content
        if _identity(path.stat()) != token:
            return False
        shutil.copymode(path, draft)
        draft.replace(path)
    except FileNotFoundError:
        return False  # somebody removed the object, or its folder: look again
    finally:
        draft.unlink(missing_ok=True)
    return True


def _try_lock(path: Path) -> int | None:
    """An open, locked file; None while another holds it."""
    import fcntl

    try:
        held = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise JobError(f"{path}: cannot be made, and nothing is changed without it: {error}") from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        same = os.fstat(held).st_ino == path.stat().st_ino  # not one that its holder removed meanwhile
        if same and os.fstat(held).st_size == 0:  # a lock object of PlainObjects has content
            return held
    except OSError:
        pass
    os.close(held)
    return None


class ConditionalObjects(Objects):
    """An object store of obstore's, with puts that name the etag they replace."""

    def __init__(self, store: Any) -> None:
        self.store = store

    async def read(self, key: str) -> tuple[bytes, Any] | None:
        """The object and what it looked like."""
        import obstore

        try:
            found = await obstore.get_async(self.store, key)
            return bytes(await found.bytes_async()), found.meta
        except FileNotFoundError:
            return None

    async def replace(self, key: str, data: bytes, token: Any) -> bool:
        """A new object, if the old one is as it was."""
        import obstore
        from obstore import exceptions

        state = {name: token[name] for name in ("e_tag", "version") if token.get(name)}
        if not state:
            raise _unconditional(key)
        try:
            await obstore.put_async(self.store, key, data, mode=state)
        except (exceptions.PreconditionError, exceptions.NotFoundError, FileNotFoundError):
            return False
        except (exceptions.NotSupportedError, NotImplementedError) as error:
            raise _unconditional(key) from error
        return True

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """As in `Objects`."""
        yield  # each put is its own turn


def _unconditional(key: str) -> JobError:
    return JobError(
        f"{key}: the store takes no conditional puts, so an upgrade could overwrite somebody's change. Open it with "
        "conditional_put='etag', or through fsspec."
    )


class PlainObjects(Objects):
    """Any other store of Zarr's: a look before each put, under a lock object."""

    def __init__(self, store: Store, lock_key: str) -> None:
        self.store = store
        self.lock_key = lock_key

    async def read(self, key: str) -> tuple[bytes, Any] | None:
        """The object and what it looked like."""
        from zarr.core.buffer import default_buffer_prototype

        found = await self.store.get(key, default_buffer_prototype())
        data = None if found is None else found.to_bytes()
        return None if data is None else (data, data)

    async def replace(self, key: str, data: bytes, token: Any) -> bool:
        """A new object, if the old one is as it was."""
        found = await self.read(key)
        if found is None or found[0] != token:
            return False
        await self.store.set(key, _buffer(data))
        return True

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """As in `Objects`."""
        mine = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "turn": secrets.token_hex(8)}).encode()
        deadline = time.monotonic() + WAIT_S
        seen, since = b"", time.monotonic()
        while (other := await self._take(mine)) is not None:
            now = time.monotonic()
            if other != seen:
                seen, since = other, now
            elif now - since > LEASE_S:
                await self._give(other)
                continue
            if now > deadline:
                raise _busy(self.lock_key, _holder(other))
            await asyncio.sleep(_POLL_S)
        try:
            yield
        finally:
            await self._give(mine)

    async def _take(self, mine: bytes) -> bytes | None:
        """None if the lock is ours now; else what stands in it."""
        filesystem = getattr(self.store, "fs", None)
        if filesystem is not None and hasattr(filesystem, "_pipe_file"):
            # fsspec makes "create" atomic where the service can; Zarr's own test-then-set is not
            with contextlib.suppress(FileExistsError):
                await filesystem._pipe_file(f"{self.store.path}/{self.lock_key}", mine, mode="create")  # type: ignore[attr-defined]
        else:
            await self.store.set_if_not_exists(self.lock_key, _buffer(mine))
        found = await self.read(self.lock_key)
        return None if found is not None and found[0] == mine else (found or (b"",))[0]

    async def _give(self, held: bytes) -> None:
        found = await self.read(self.lock_key)
        if found is not None and found[0] == held:
            await self.store.delete(self.lock_key)


def _buffer(data: bytes) -> Any:
    from zarr.core.buffer import default_buffer_prototype

    return default_buffer_prototype().buffer.from_bytes(data)


def _holder(lock: bytes) -> str:
    try:
        said = json.loads(lock)
        return f"process {said['pid']} on {said['host']}"
    except (ValueError, KeyError, TypeError):
        return "somebody"


def _busy(lock: object, holder: str) -> JobError:
    return JobError(
        f"{lock}: {holder} has been changing tiers of this array for {WAIT_S:.0f} s. Run this again when it is done; "
        "what is done already stays done."
    )
