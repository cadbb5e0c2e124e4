"""What the tests of recompression share: small plans, stores as bytes, a store that fails or dies on call n."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from tests.volumes import fibsem, noise
from zarr_emcodec.jobs import store
from zarr_emcodec.jobs.plan import Plan, plan

CHUNKS = (8, 32, 32)
SHARDS = (8, 32, 64)
PATTERN: Any = {"codec": {"max_error": 0}, "chunks": CHUNKS, "shards": SHARDS, "samples": 0}
"""Of a plan whose blocks take milliseconds: no network runs."""


def source_of(folder: Path) -> Path:
    """16 x 40 x 128 voxels: blocks of noise, of a constant, of nothing, and cut at the edge."""
    values = np.zeros((16, 40, 128), np.uint8)
    values[:8, :, :64] = noise((8, 40, 64))
    values[8:, :32, :64] = 7
    values[8:, 10:, 64:] = fibsem()[:8, :30, :64]
    np.save(folder / "in.npy", values)
    os.utime(folder / "in.npy", (1, 1))  # part of its identity, and so of the plan's
    return folder / "in.npy"


def small_plan(folder: Path, name: str = "out.zarr", **words: Any) -> Plan:
    """A plan of eight blocks."""
    source = folder / "in.npy"
    if not source.exists():
        source_of(folder)
    return plan(source, folder / name, **{**PATTERN, **words})


def stored(path: Path) -> dict[str, str]:
    """SHA-256 of every file of an array but those of its ledger."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file() and "ledger" not in file.parts
    }


class Death(BaseException):
    """What a test raises where the process would be gone."""


@contextmanager
def dying(call: int, when: str) -> Iterator[list[str]]:
    """Let the process die at the n-th access to a store, before that; "torn": amid the n-th write.

    Yields the keys that were accessed.
    """
    calls: list[str] = []
    originals: dict[str, Callable[..., Any]] = {name: getattr(store, name) for name in ("get", "put", "delete")}

    def wrapped(name: str) -> Callable[..., Any]:
        def access(place: Any, key: str, *data: Any) -> Any:
            if not store.is_local(place):  # a draft in memory
                return originals[name](place, key, *data)
            if len(calls) >= call:
                raise Death  # the dead write nothing any more
            if when == "before" or name == "put":
                calls.append(key)
            if len(calls) < call:
                return originals[name](place, key, *data)
            if when == "torn":
                path = store.folder_of(place) / key
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_suffix(".0123.partial").write_bytes(data[0][: len(data[0]) // 2])
            raise Death

        return access

    with ExitStack() as stack:
        for name in originals:
            stack.enter_context(mock.patch.object(store, name, wrapped(name)))
        yield calls
