from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zarr_emcodec.errors import JobError, PlanMismatchError
from zarr_emcodec.jobs import ledger as ledgers
from zarr_emcodec.jobs import store
from zarr_emcodec.jobs.ledger import DONE, FAILED, FOLDER, Ledger, read_plan, read_records
from zarr_emcodec.jobs.measure import Guard, compare_block

PLAN = {"digest": "a" * 64, "n_blocks": 21, "chunks": [1, 2]}


@pytest.fixture
def place(tmp_path: Path) -> store.Place:
    return store.place_at(tmp_path / "out.zarr")


def begun(place: store.Place, plan: dict[str, Any] = PLAN, flush_s: float = 0) -> Ledger:
    return Ledger.begin(place, plan, flush_s=flush_s)


def done(block: int, off: int = 1) -> dict[str, Any]:
    voxels = np.full((2, 4, 4), 100, "u1")
    measure = compare_block(voxels, voxels + np.uint8(off), Guard(chunks=(2, 4, 4), peak=255.0))
    return {
        "block": block,
        "state": DONE,
        "raw_bytes": 32,
        "n_voxels": 32,
        "stored_bytes": 8,
        "range": [100, 100],
        "frames": {"kinds": {"latent": 1}, "digests": {}, "settings": {"7": 1}, "frame_bytes": 8},
        "measure": measure.to_dict(),
        "seconds": {"read": 1.0},
    }


def failed(block: int) -> dict[str, Any]:
    return {"block": block, "state": FAILED, "reason": "no"}


def test_what_is_done_stays_done_in_the_next_run(place: store.Place) -> None:
    first = begun(place)
    for record in (done(3), failed(4), done(20)):
        first.add(record)
    first.close()
    second = begun(place)
    assert (second.n_before, second.n_done, second.run) == (2, 2, 1)
    assert [i for i in range(21) if second.is_done(i)] == [3, 20]
    assert list(second.pending()) == [i for i in range(21) if i not in (3, 20)]
    second.add(done(4))
    second.close()
    third = begun(place)
    assert third.n_before == 3
    assert third.totals.raw_bytes == 96
    assert third.totals.tally.kinds == {"latent": 3}
    assert third.totals.psnr_db(255) == pytest.approx(48.13, abs=0.01)
    assert third.totals.ratio == 4
    third.close()
    assert [(r["block"], r["state"]) for r in read_records(place)] == [(3, DONE), (4, FAILED), (20, DONE), (4, DONE)]


def test_a_block_with_two_records_counts_once(place: store.Place) -> None:
    ledger = begun(place)
    ledger.add(done(5))
    ledger.add(done(5))
    ledger.close()
    assert ledger.n_done == 1
    again = begun(place)
    assert (again.n_done, again.totals.raw_bytes) == (1, 32)
    again.close()


def test_parts_are_closed_and_read_in_order(place: store.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "_PART_RECORDS", 4)
    ledger = begun(place)
    for block in range(10):
        ledger.add(done(block))
    ledger.close()
    folder = Path(store.folder_of(place)) / FOLDER / "run-0000"
    parts = sorted(folder.glob("*.jsonl"))
    assert [len(p.read_text().splitlines()) for p in parts] == [4, 4, 2]
    assert [record["block"] for record in read_records(place)] == list(range(10))


def test_records_wait_for_one_another_but_not_for_long(place: store.Place) -> None:
    ledger = begun(place, flush_s=60)
    ledger.add(done(0))
    ledger._flush_took = 10  # of a store that is slow
    ledger.add(done(1))
    assert len(list(read_records(place))) == 1, "writing the first took long enough for the second to wait"
    ledger._flush_took = 0
    ledger.tick()
    assert len(list(read_records(place))) == 2
    ledger.close()


def test_another_plans_ledger_is_refused_with_what_differs(place: store.Place) -> None:
    begun(place).close()
    with pytest.raises(PlanMismatchError, match=r"plan aaaaaaaaaaaa, this command makes plan bbbb.*chunks differ"):
        begun(place, {**PLAN, "digest": "b" * 64, "chunks": [2, 2]})
    assert (read_plan(place) or {})["digest"] == "a" * 64


def test_two_runs_at_a_time_are_refused_until_the_first_is_dead(place: store.Place) -> None:
    ledger = begun(place)
    with pytest.raises(JobError, match=r"process \d+ on .* is at work on it"):
        begun(place)
    ledger.close()
    begun(place).close()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    lease = {"id": "x", "host": platform.node(), "pid": gone.pid, "beat": time.time()}
    store.put(place, f"{FOLDER}/lease.json", json.dumps(lease).encode())
    begun(place).close()  # its process is not there any more
    elsewhere = {**lease, "host": "another machine"}
    store.put(place, f"{FOLDER}/lease.json", json.dumps(elsewhere).encode())
    with pytest.raises(JobError, match="another machine is at work"):
        begun(place)
    store.put(place, f"{FOLDER}/lease.json", json.dumps({**elsewhere, "beat": time.time() - 301}).encode())
    begun(place).close()


@pytest.mark.parametrize("data", [b"{", b'{"block": "x", "state": "done"}', b'{"block": 1, "state": "perhaps"}', b"3"])
def test_a_damaged_part_is_named(place: store.Place, data: bytes) -> None:
    ledger = begun(place)
    ledger.add(done(1))
    ledger.close()
    name = f"{FOLDER}/run-0000/000000.jsonl"
    store.put(place, name, (store.get(place, name) or b"") + data + b"\n")
    with pytest.raises(JobError, match=r"000000\.jsonl, line 2: is no record"):
        begun(place)
    assert store.get(place, f"{FOLDER}/lease.json") is None, "nobody is kept out"


def test_a_ledger_that_is_not_json_is_named(place: store.Place) -> None:
    store.put(place, f"{FOLDER}/plan.json", b"[1]")
    with pytest.raises(JobError, match="holds no JSON object"):
        begun(place)
    store.put(place, f"{FOLDER}/plan.json", b"{")
    with pytest.raises(JobError, match="is not JSON"):
        begun(place)


def test_a_store_that_fails_once_loses_no_record(place: store.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    original = store.put
    for n in range(1, 30):
        calls = iter(range(1, 1000))

        def put(where: Any, key: str, data: bytes, n: int = n, calls: Any = calls) -> None:
            if next(calls) == n:
                raise JobError(f"{key}: the store is away")
            original(where, key, data)

        here = place / f"n{n}"
        monkeypatch.setattr(store, "put", put)
        told: list[int] = []
        try:
            ledger = begun(here)
            for block in range(3):
                ledger.add(done(block))
                told.append(block)
            ledger.close()
        except JobError as error:
            assert "the store is away" in str(error)  # noqa: PT017  # which of the calls raises is not known here
        else:
            assert n > 5
            return
        monkeypatch.setattr(store, "put", original)
        store.delete(here, f"{FOLDER}/lease.json")
        again = begun(here)
        assert set(told) <= {block for block in range(21) if again.is_done(block)}
        again.close()
    pytest.fail("every call failed")


def test_a_million_blocks_take_a_bitmap(place: store.Place) -> None:
    tracemalloc.start()
    ledger = begun(place, {**PLAN, "n_blocks": 1_000_000})
    count = sum(1 for _ in ledger.pending())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    ledger.close()
    assert count == 1_000_000
    assert peak < 8_000_000
