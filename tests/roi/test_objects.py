"""Writers side by side: nobody's change is lost, whatever the store."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, MemoryStore, ObjectStore, WrapperStore

from tests.roi.conftest import copy_to, tiers_in
from zarr_emcodec.errors import JobError
from zarr_emcodec.roi import downgrade_roi, objects, upgrade_roi
from zarr_emcodec.roi.objects import ConditionalObjects, LocalObjects, PlainObjects, open_objects

pytestmark = pytest.mark.usefixtures("all_tiers")


def obstore_memory(_: Path) -> Any:
    return ObjectStore(pytest.importorskip("obstore", reason="needs obstore").store.MemoryStore())


def obstore_local(folder: Path) -> Any:
    obstore = pytest.importorskip("obstore", reason="needs obstore")
    return ObjectStore(obstore.store.LocalStore(folder / "o", mkdir=True))


def fsspec_memory(folder: Path) -> Any:
    fsspec = pytest.importorskip("fsspec", reason="needs fsspec")
    from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

    return FsspecStore(AsyncFileSystemWrapper(fsspec.filesystem("memory"), asynchronous=True), path=f"/{folder}/f")


STORES: dict[str, tuple[Callable[[Path], Any], type]] = {
    "local": (lambda folder: LocalStore(folder / "a.zarr"), LocalObjects),
    "memory": (lambda _: MemoryStore(), PlainObjects),
    "wrapped": (lambda folder: WrapperStore(LocalStore(folder / "w.zarr")), PlainObjects),
    "obstore": (obstore_memory, ConditionalObjects),
    "obstore-local": (obstore_local, PlainObjects),
    "fsspec": (fsspec_memory, PlainObjects),
}


@pytest.fixture(params=STORES)
def shared(request: pytest.FixtureRequest, masters: Any, tmp_path: Path) -> Any:
    """A sharded array in each kind of store."""
    make, kind = STORES[request.param]
    array = copy_to(make(tmp_path), masters["sharded"])
    assert type(open_objects(array)) is kind
    return array


def keys(array: zarr.Array[Any]) -> set[str]:
    async def listed() -> set[str]:
        return {key async for key in array.store.list()}

    return sync(listed())


def at_once(*work: Callable[[], object]) -> None:
    errors: list[BaseException] = []
    start = threading.Barrier(len(work))

    def run(function: Callable[[], object]) -> None:
        start.wait()
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_two_upgrades_at_once_are_both_kept(shared: Any) -> None:
    before = keys(shared)
    for _ in range(3):
        downgrade_roi(shared, (...,))
        # neighbours in the same shards, in different boxes
        at_once(
            lambda: upgrade_roi(shared, np.s_[:, :, 0:32]),
            lambda: upgrade_roi(shared, np.s_[:, :, 32:64], "full"),
            lambda: upgrade_roi(shared, np.s_[:, :, 64:96]),
        )
        found = tiers_in(shared)
        for column, tier in enumerate(["prior", "full", "prior", "top"]):
            assert set(found[..., column].ravel()) - {""} == {tier}
    assert keys(shared) == before


def test_a_write_in_between_is_seen(shared: Any) -> None:
    key = "c/0/0/0"
    opened = open_objects(shared)

    def put(data: bytes) -> None:
        sync(shared.store.set(key, default_buffer_prototype().buffer.from_bytes(data)))

    seen: list[bytes] = []

    def change(data: bytes | None) -> tuple[bytes, str]:
        assert data is not None
        seen.append(data)
        if len(seen) < 3:  # somebody writes after we have read
            threading.Thread(target=put, args=(b"theirs %d" % len(seen),)).start()
            time.sleep(0.1)
        return data + b" and ours", "told"

    async def run() -> str:
        async with opened.turn():
            return await opened.update(key, change)

    put(b"first")
    assert sync(run()) == "told"
    assert seen == [b"first", b"theirs 1", b"theirs 2"]
    final = sync(shared.store.get(key, default_buffer_prototype()))
    assert final.to_bytes() == b"theirs 2 and ours"


def test_an_object_that_never_rests_is_given_up(shared: Any) -> None:
    key = "c/0/0/0"
    opened = open_objects(shared)
    count = 0

    def change(data: bytes | None) -> tuple[bytes, None]:
        nonlocal count
        count += 1
        thread = threading.Thread(
            target=lambda: sync(shared.store.set(key, default_buffer_prototype().buffer.from_bytes(b"%03d" % count)))
        )
        thread.start()
        thread.join()
        return b"ours", None

    with pytest.raises(JobError, match="somebody else all the time"):
        sync(opened.update(key, change))
    assert sync(shared.store.get(key, default_buffer_prototype())).to_bytes() == b"%03d" % count


def test_objects_that_vanish_are_absent(shared: Any) -> None:
    opened = open_objects(shared)
    assert sync(opened.update("c/9/9/9", lambda data: (None, data is None))) is True
    assert "c/9/9/9" not in keys(shared)

    def removed(data: bytes | None) -> tuple[bytes | None, str]:
        if data is None:
            return None, "gone"
        thread = threading.Thread(target=lambda: sync(shared.store.delete("c/0/0/0")))
        thread.start()
        thread.join()
        return b"ours", "kept"

    assert sync(opened.update("c/0/0/0", removed)) == "gone"


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_who_waits_too_long_is_told_who_holds_the_lock(
    kind: str, masters: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = copy_to(STORES[kind][0](tmp_path), masters["v3"])
    monkeypatch.setattr(objects, "WAIT_S", 0.3)

    async def hold() -> str:
        async with open_objects(array).turn():
            try:
                async with open_objects(array).turn():
                    return "two at once"
            except JobError as error:
                return str(error)

    told = sync(hold())
    assert "has been changing tiers of this array" in told
    assert "what is done already stays done" in told
    if kind == "memory":
        assert "process " in told
    assert downgrade_roi(array, (...,)).changed > 0


def test_a_lock_object_of_a_dead_process_is_taken_over(masters: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    array = copy_to(MemoryStore(), masters["v3"])
    monkeypatch.setattr(objects, "LEASE_S", 0.2)
    dead = json.dumps({"host": "gone", "pid": 1, "turn": "0"}).encode()
    sync(array.store.set(objects.LOCK, default_buffer_prototype().buffer.from_bytes(dead)))
    started = time.perf_counter()
    assert downgrade_roi(array, (...,)).changed > 0
    assert time.perf_counter() - started >= 0.2
    assert objects.LOCK not in keys(array)


def test_a_lock_file_of_a_dead_process_is_none(masters: Any, tmp_path: Path) -> None:
    array = copy_to(LocalStore(tmp_path), masters["v3"])
    (tmp_path / objects.LOCK).touch()
    assert downgrade_roi(array, (...,)).changed > 0
    assert not (tmp_path / objects.LOCK).exists()


def test_lock_files_and_lock_objects_keep_each_other_out(
    masters: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = copy_to(WrapperStore(LocalStore(tmp_path)), masters["v3"])
    local = zarr.open_array(tmp_path, mode="r+")
    monkeypatch.setattr(objects, "WAIT_S", 0.2)

    async def both(first: Any, second: Any) -> bool:
        async with open_objects(first).turn():
            try:
                async with open_objects(second).turn():
                    return True
            except JobError:
                return False

    assert sync(both(plain, local)) is False
    assert sync(both(local, plain)) is False


def test_a_store_without_conditional_puts_says_so() -> None:
    exceptions = pytest.importorskip("obstore.exceptions", reason="needs obstore")
    import obstore

    async def run() -> None:
        store = obstore.store.MemoryStore()
        await obstore.put_async(store, "a", b"1")
        opened = ConditionalObjects(store)

        async def refuse(*_: Any, **__: Any) -> None:
            raise exceptions.NotSupportedError("no")

        real, obstore.put_async = obstore.put_async, refuse
        try:
            await opened.update("a", lambda data: (b"2", None))
        finally:
            obstore.put_async = real

    with pytest.raises(JobError, match="takes no conditional puts"):
        asyncio.run(run())
