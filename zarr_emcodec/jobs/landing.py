"""Where a job's result lands: built under a temporary sibling name, renamed when complete, removed when not.

A destination path in, a path to build at out. What stood at the destination is untouched until the new is complete.
"""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from zarr_emcodec.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Iterator

_ZARR_MARKS = ("zarr.json", ".zarray", ".zgroup")


@contextmanager
def landing(destination: str | os.PathLike[str], *, overwrite: bool, keep: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a place to build at, and move it to `destination` if the block ends without an error.

    Parameters
    ----------
    destination : path
        Local; a file or a directory may be built there.
    overwrite : bool
        Whether something that is there may be replaced. A directory that is not Zarr is never replaced.
    keep : path
        The job's source, which is never overwritten.

    Raises
    ------
    JobError
        Before the block, if the destination cannot be used.
    """
    target = _check(destination, overwrite=overwrite, keep=keep)
    draft = target.with_name(f".{target.name}.part-{os.getpid()}-{secrets.token_hex(3)}")
    try:
        yield draft
        _swap(draft, target)
    finally:
        _remove(draft)


def _check(destination: str | os.PathLike[str], *, overwrite: bool, keep: str | os.PathLike[str]) -> Path:
    if "://" in str(destination):
        raise JobError(f"{destination}: this job writes to local paths only. Write here, then copy it there.")
    target = check_apart(destination, keep)
    if not os.path.lexists(target):
        return target
    if not overwrite:
        raise JobError(f"{destination}: exists already. Choose another name, or pass overwrite=True (--overwrite).")
    check_replaceable(target)
    return target


def check_apart(destination: str | os.PathLike[str], keep: str | os.PathLike[str]) -> Path:
    """The local path of a destination that a job may write at.

    Raises
    ------
    JobError
        If its folder does not exist, or it overlaps the source `keep`.
    """
    target = Path(destination).absolute()  # not resolved: a link is replaced, not followed
    if not target.parent.is_dir():
        raise JobError(f"{destination}: the folder {target.parent} does not exist. Create it first.")
    if "://" not in str(keep):
        source, real = Path(keep).resolve(), target.resolve()
        if real == source or real in source.parents or source in real.parents:
            raise JobError(f"{destination}: the destination overlaps the source {keep}. Choose another place.")
    return target


def check_replaceable(target: Path) -> None:
    """Refuse to replace a folder that is not Zarr.

    Raises
    ------
    JobError
        If it is one.
    """
    if target.is_dir() and any(target.iterdir()) and not any((target / mark).exists() for mark in _ZARR_MARKS):
        raise JobError(f"{target}: is a folder that holds no Zarr; it is not overwritten. Remove it yourself.")


def _swap(draft: Path, target: Path) -> None:
    if not os.path.lexists(target):
        draft.rename(target)
        return
    old = draft.with_name(f"{draft.name}.old")
    target.rename(old)
    try:
        draft.rename(target)
    except BaseException:
        old.rename(target)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
