from __future__ import annotations

import errno
from collections import Counter
from typing import Any

import pytest

from zarr_emcodec.errors import (
    FrameError,
    GuardError,
    JobError,
    MissingExtraError,
    ModelError,
    PlanMismatchError,
    SpecError,
    VerifyError,
)
from zarr_emcodec.jobs.execute import DONE, FAILED, Drive, Outcome, Patience, SerialEngine, Task, blocks_per_task
from zarr_emcodec.jobs.failures import AGAIN, FATAL, HALTED, POISONED, call_of

QUICK = Patience(retries=2, backoff_s=0.001)


class Fake:
    """Ends tasks in the wrong order, as a plan of outcomes says; remembers the most that was under way."""

    window = 5

    def __init__(self, outcomes: dict[int, list[Any]] | None = None) -> None:
        self.outcomes = {block: list(several) for block, several in (outcomes or {}).items()}
        self.running: list[Task] = []
        self.most = 0
        self.tasks: list[Task] = []
        self.halted = False

    @property
    def n_running(self) -> int:
        return len(self.running)

    def submit(self, task: Task) -> None:
        assert not self.halted
        self.running.append(task)
        self.tasks.append(task)
        self.most = max(self.most, len(self.running))

    def collect(self, timeout_s: float) -> list[tuple[Task, Outcome]]:
        task = self.running.pop()
        outcome = [self._of(block) for block in task]
        dead = next((o for o in outcome if isinstance(o, Exception)), None)
        return [(task, dead or outcome)]

    def _of(self, block: int) -> Any:
        several = self.outcomes.get(block)
        found = several.pop(0) if several else DONE
        if isinstance(found, Exception):
            return found
        if found in (DONE, HALTED):
            return {"block": block, "state": found}
        return {"block": block, "state": FAILED, "call": found, "error": "X", "reason": f"{block} says {found}"}

    def halt(self) -> None:
        self.halted = True

    def close(self) -> None: ...


def drive(engine: Any, blocks: Any, *, stopped: Any = lambda: False, per_task: int = 1) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    Drive(
        engine,
        lambda record: records.append(dict(record)),
        lambda: None,
        stopped,
        patience=QUICK,
        blocks_per_task=per_task,
    ).run(blocks)
    return records


@pytest.mark.parametrize("per_task", [1, 7])
def test_every_block_comes_back_once_with_a_bounded_number_under_way(per_task: int) -> None:
    engine = Fake()
    taken = []

    def blocks() -> Any:
        for block in range(1000):
            taken.append(block)
            assert len(taken) - len(records) <= (engine.window + 1) * per_task
            yield block

    records: list[int] = []
    Drive(
        engine, lambda r: records.append(r["block"]), lambda: None, lambda: False, blocks_per_task=per_task
    ).run(blocks())  # fmt: skip
    assert sorted(records) == list(range(1000))
    assert engine.most == engine.window
    assert {len(task) for task in engine.tasks} <= {per_task, 1000 % per_task}


def test_a_passing_failure_is_tried_again_alone(caplog: pytest.LogCaptureFixture) -> None:
    engine = Fake({3: [AGAIN, AGAIN], 8: [AGAIN]})
    records = drive(engine, range(10), per_task=5)
    assert sorted((r["block"], r["state"], r["tries"]) for r in records) == [
        (i, DONE, {3: 3, 8: 2}.get(i, 1)) for i in range(10)
    ]
    assert Counter(engine.tasks)[(3,)] == 2


def test_what_fails_too_often_or_is_poisoned_is_recorded_and_the_rest_goes_on() -> None:
    records = drive(Fake({2: [AGAIN] * 9, 5: [POISONED]}), range(8))
    bad = {r["block"]: r for r in records if r["state"] == FAILED}
    assert {block: r["tries"] for block, r in bad.items()} == {2: 3, 5: 1}
    assert bad[5]["reason"] == "5 says poisoned"
    assert len(records) == 8


def test_a_task_that_kills_its_worker_is_taken_apart() -> None:
    killed = RuntimeError("the worker died")
    records = drive(Fake({4: [killed] * 9}), range(6), per_task=3)
    states = {r["block"]: (r["state"], r["tries"]) for r in records}
    assert states[4] == (FAILED, 3)
    assert states[3] == states[5] == (DONE, 2), "they were in one task with it once"
    assert "the worker died" in next(r["reason"] for r in records if r["block"] == 4)


def test_what_would_fail_every_block_ends_the_job_after_what_came_with_it() -> None:
    engine = Fake({1: [FATAL]})
    records: list[Any] = []
    with pytest.raises(JobError, match="1 says fatal"):
        Drive(
            engine, records.append, lambda: None, lambda: False, patience=QUICK, blocks_per_task=3
        ).run(range(3))  # fmt: skip
    assert [r["block"] for r in records] == [0, 2]
    changed = {"block": 0, "state": FAILED, "call": FATAL, "error": "PlanMismatchError", "reason": "changed"}
    with pytest.raises(PlanMismatchError, match="changed"):
        drive(SerialEngine(lambda task: [changed]), range(1))


def test_a_stop_lets_what_is_under_way_end() -> None:
    engine = Fake({7: [HALTED], 8: [AGAIN]})
    seen: list[int] = []

    def stopped() -> bool:
        return len(seen) >= 5

    Drive(engine, lambda r: seen.append(r["block"]), lambda: None, stopped, patience=QUICK).run(range(100))
    assert engine.halted
    assert engine.n_running == 0
    assert 5 <= len(seen) <= 5 + engine.window
    assert not {7, 8} & set(seen), "neither done nor failed: open for the next run"


def test_failures_that_wait_hold_back_new_blocks() -> None:
    engine = Fake({block: [AGAIN] * 9 for block in range(1000)})
    taken: list[int] = []
    failed: list[int] = []

    def blocks() -> Any:
        for block in range(60):
            taken.append(block)
            assert len(taken) - len(failed) <= 3 * engine.window
            yield block

    Drive(engine, lambda r: failed.append(r["block"]), lambda: None, lambda: False, patience=QUICK).run(blocks())
    assert sorted(failed) == list(range(60))


def test_waits_grow_and_are_spread() -> None:
    patience = Patience(backoff_s=1)
    for tries in range(1, 5):
        waits = [patience.wait_s(tries) for _ in range(200)]
        assert 0.5 * 2 ** (tries - 1) <= min(waits) < max(waits) <= 1.5 * 2 ** (tries - 1)
    assert patience.wait_s(60) <= 90


def test_the_serial_engine_takes_any_iterable() -> None:
    assert [r["block"] for r in drive(SerialEngine(lambda t: [{"block": t[0], "state": DONE}]), iter([5, 9]))] == [5, 9]


@pytest.mark.parametrize(
    ("error", "reading", "call"),
    [
        (OSError(errno.ENOSPC, "full"), False, FATAL),
        (OSError(errno.EDQUOT, "quota"), False, FATAL),
        (PermissionError("AccessDenied"), False, FATAL),
        (PermissionError(errno.EACCES, "one file"), True, AGAIN),
        (OSError(errno.EROFS, "read-only"), False, FATAL),
        (ConnectionError("reset"), False, AGAIN),
        (JobError("the store is away"), True, AGAIN),
        (MemoryError(), False, AGAIN),
        (SpecError("NaN"), False, POISONED),
        (FrameError("damaged"), True, POISONED),
        (VerifyError("short", chunks=[(0,)]), False, POISONED),
        (GuardError("cannot", asked=1, reached=0), False, POISONED),
        (ModelError("absent"), False, FATAL),
        (MissingExtraError("TIFF", extra="sources"), True, FATAL),
        (PlanMismatchError("changed"), True, FATAL),
    ],
)
def test_what_a_failure_calls_for(error: Exception, reading: bool, call: str) -> None:
    assert call_of(error, reading=reading) == call
    wrapped = JobError("at voxels 0:8")
    wrapped.__cause__ = error
    assert call_of(wrapped, reading=reading) == call


@pytest.mark.parametrize(
    ("block_bytes", "n_blocks", "threads", "expected"),
    [(1 << 26, 10**6, 2, 1), (1 << 20, 10**6, 2, 64), (1 << 20, 16, 2, 1), (1, 10**9, 4, 256), (1 << 30, 1, 9, 1)],
)
def test_tasks_are_worth_their_scheduling(block_bytes: int, n_blocks: int, threads: int, expected: int) -> None:
    assert blocks_per_task(block_bytes, n_blocks, threads) == expected
