"""Where a job writes: a local folder or an object store, as a root and keys below it.

A path or URL in, a `Place` out; whole objects in and out, each written at once. Errors of every transport become one.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from zarr_emcodec.errors import JobError, MissingExtraError

if TYPE_CHECKING:
    from zarr.storage import StorePath

    Place: TypeAlias = StorePath

FULL = (errno.ENOSPC, errno.EDQUOT)
LOCKED = (errno.EACCES, errno.EPERM, errno.EROFS)


def place_at(location: str | os.PathLike[str], *, read_only: bool = False) -> Place:
    """The root of an array that is, or is to be, at a path or URL. Nothing is touched.

    Raises
    ------
    JobError
        If the URL is of a kind that cannot be opened.
    MissingExtraError
        If it needs a library that is not installed.
    """
    from zarr.storage import FsspecStore, LocalStore, StorePath

    text = os.fspath(location).removeprefix("file://")
    if "://" not in text:
        return StorePath(LocalStore(Path(text).absolute(), read_only=read_only))
    try:
        return StorePath(FsspecStore.from_url(text, read_only=read_only))
    except ImportError as error:
        raise MissingExtraError(f"writing to {text}", extra="sources") from error
    except Exception as error:  # each file system has errors of its own
        raise JobError(f"{text}: cannot be opened for writing: {error}") from error


def is_local(place: Place) -> bool:
    """Whether a place is a folder of this machine."""
    return hasattr(place.store, "root")


def get(place: Place, key: str) -> bytes | None:
    """One whole object; None where there is none.

    Raises
    ------
    JobError
        If the store cannot be read; the cause is its own error.
    """
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    try:
        # zarr's own loop: remote stores hold connections that belong to it
        data = sync((place / key).get(default_buffer_prototype()))
    except Exception as error:
        raise refusal(place, key, "read", error) from error
    return None if data is None else data.to_bytes()


def put(place: Place, key: str, data: bytes) -> None:
    """Write one whole object: a reader, or a crash, sees all of it or what was there before.

    Raises
    ------
    JobError
        If the store cannot be written; the cause is its own error.
    """
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    try:
        sync((place / key).set(default_buffer_prototype().buffer.from_bytes(data)))
    except Exception as error:
        raise refusal(place, key, "write", error) from error


def delete(place: Place, key: str) -> None:
    """Remove one object, if it is there.

    Raises
    ------
    JobError
        If that is refused; the cause is the store's own error.
    """
    from zarr.core.sync import sync

    try:
        sync((place / key).delete())
    except FileNotFoundError:
        return
    except Exception as error:
        raise refusal(place, key, "remove", error) from error


def clear(place: Place) -> None:
    """Remove everything below a place.

    Raises
    ------
    JobError
        If that is refused.
    """
    from zarr.core.sync import sync

    try:
        sync(place.delete_dir())
    except FileNotFoundError:
        return
    except Exception as error:
        raise refusal(place, "", "remove", error) from error


def holds_only(place: Place, names: tuple[str, ...]) -> bool:
    """Whether nothing lies directly below a place but what has one of these names.

    Raises
    ------
    JobError
        If the store cannot be read.
    """
    from zarr.core.sync import sync

    async def look() -> bool:
        async for name in place.store.list_dir(place.path):
            if name.rstrip("/") not in names:
                return False
        return True

    if is_local(place) and not folder_of(place).is_dir():
        return not os.path.lexists(folder_of(place))
    try:
        return bool(sync(look()))
    except FileNotFoundError:
        return True
    except Exception as error:
        raise refusal(place, "", "read", error) from error


def size_below(place: Place, prefix: str) -> int:
    """Bytes of all objects below a prefix that holds a handful.

    Raises
    ------
    JobError
        If the store cannot be read.
    """
    from zarr.core.sync import sync

    try:
        return int(sync(place.store.getsize_prefix((place / prefix).path)))
    except FileNotFoundError:
        return 0
    except Exception as error:
        raise refusal(place, prefix, "read", error) from error


def folder_of(place: Place) -> Path:
    """The folder of a local place."""
    return Path(place.store.root) / place.path  # type: ignore[attr-defined]  # told by `is_local`


def sweep(place: Place, before: float) -> int:
    """Remove what writers that were killed left half written; how many files that was.

    Local folders only: elsewhere an object appears whole or not at all.

    Parameters
    ----------
    before : float, seconds since the epoch
        Younger files are left: they may be somebody's who is still writing.
    """
    if not is_local(place):
        return 0
    count = 0
    for folder, _, names in os.walk(folder_of(place)):
        for name in names:
            path = Path(folder) / name
            # the suffix that zarr's LocalStore gives a file until it is complete
            if name.endswith(".partial") and path.stat().st_mtime < before:
                path.unlink(missing_ok=True)
                count += 1
    return count


def error_number(error: BaseException) -> int | None:
    """The operating system's number of an error, or of what caused it; None where there is none."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen.errno
        if isinstance(seen, PermissionError):  # object stores raise it without a number
            return errno.EACCES
        seen = seen.__cause__
    return None


def refusal(place: Any, key: str, verb: str, error: Exception) -> JobError:
    """A store's error in our words, to be raised from it.

    Parameters
    ----------
    place : Place
    key : str
        Of the object, or empty.
    verb : str
        What was to be done with it.
    error : Exception
    """
    where = f"{place}/{key}" if key else str(place)
    number = error_number(error)
    if number in FULL:
        return JobError(f"{where}: no space left. Free some, and run the same command again.")
    if number in LOCKED:
        return JobError(f"{where}: no permission to {verb} it. Get it, and run the same command again.")
    return JobError(f"{where}: cannot {verb} it: {str(error) or type(error).__name__}")
