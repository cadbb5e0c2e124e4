"""Blocks through an engine: a bounded number under way, failures tried again, a stop that loses nothing.

Block numbers in, one at a time; a record of each out. What an engine is and what a block is, this does not know; it
holds a window of tasks and no list of them, so that a million blocks cost what a hundred do.
"""

from __future__ import annotations

import heapq
import itertools
import queue
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from zarr_emcodec.errors import JobError, PlanMismatchError
from zarr_emcodec.jobs.failures import AGAIN, FATAL, HALTED, POISONED
from zarr_emcodec.jobs.ledger import DONE, FAILED

Task: TypeAlias = tuple[int, ...]
"""Numbers of the blocks of one task: whole objects, never a part of one."""
Outcome: TypeAlias = list[dict[str, Any]] | Exception
"""Records of a task's blocks; or what went wrong with the task as a whole, such as a worker that died of it."""
_TICK_S = 0.5
_LONGEST_WAIT_S = 60.0


class Engine(Protocol):
    """Runs tasks somewhere."""

    @property
    def window(self) -> int:
        """Tasks that may be under way at a time."""

    @property
    def n_running(self) -> int:
        """Tasks under way."""

    def submit(self, task: Task) -> None:
        """Begin a task."""

    def collect(self, timeout_s: float) -> list[tuple[Task, Outcome]]:
        """Tasks that have ended; after the time is up, maybe none.

        Raises
        ------
        JobError
            If the engine itself is gone.
        """

    def halt(self) -> None:
        """Let no block begin that has not begun."""

    def close(self) -> None:
        """End it; what is under way may be lost."""


@dataclass(frozen=True)
class Patience:
    """How often, and after what time, a block is tried again.

    Parameters
    ----------
    retries : int
        After the first try.
    backoff_s : float
        Before the first retry; doubled for each further one, up to a minute, and spread by a half to either side, so
        that a server that was overrun is not overrun again.
    """

    retries: int = 3
    backoff_s: float = 1.0

    def wait_s(self, tries: int) -> float:
        """Seconds to wait after so many tries."""
        return min(self.backoff_s * 2.0 ** (tries - 1), _LONGEST_WAIT_S) * random.uniform(0.5, 1.5)


@dataclass
class Drive:
    """Takes blocks through an engine until there are none left, or somebody says stop.

    Parameters
    ----------
    engine : Engine
    record : callable
        Called with the record of each block that is done or has failed for good, on the caller's thread.
    tick : callable
        Called at least every half second.
    stopped : callable
        Whether to begin nothing more. Blocks that are under way then still come to their end.
    patience : Patience
    blocks_per_task : int
    on_retry : callable
        Called with the record of a failure that will be tried again, "wait_s" and "tries" added.
    """

    engine: Engine
    record: Callable[[Mapping[str, Any]], None]
    tick: Callable[[], None]
    stopped: Callable[[], bool]
    patience: Patience = field(default_factory=Patience)
    blocks_per_task: int = 1
    on_retry: Callable[[Mapping[str, Any]], None] = lambda record: None
    _waiting: list[tuple[float, int]] = field(default_factory=list)  # a heap: when it is due, which block
    _tries: dict[int, int] = field(default_factory=dict)  # of blocks that have failed and are not settled
    _halted: bool = False

    def run(self, blocks: Iterable[int]) -> None:
        """Go through all blocks.

        Raises
        ------
        JobError
            If something failed that would fail every block (PlanMismatchError where the source has changed), or the
            engine is gone.
        """
        tasks = _batched(blocks, self.blocks_per_task)
        while True:
            if self.stopped() and not self._halted:
                self._halted = True
                self.engine.halt()
            more = not self._halted and self._fill(tasks)
            if not self.engine.n_running:
                if self._halted or not (more or self._waiting):
                    return
                time.sleep(max(0.0, min(_TICK_S, self._waiting[0][0] - time.monotonic())))
            for task, outcome in self.engine.collect(_TICK_S) if self.engine.n_running else ():
                self._settle(task, outcome)
            self.tick()

    def _fill(self, tasks: Iterator[Task]) -> bool:
        """Hand out tasks until the window is full; whether there may be more."""
        while self.engine.n_running < self.engine.window:
            if self._waiting and self._waiting[0][0] <= time.monotonic():
                self.engine.submit((heapq.heappop(self._waiting)[1],))
            elif len(self._waiting) >= self.engine.window:
                return True  # nothing new until these are settled: what waits is bounded too
            else:
                task = next(tasks, None)
                if task is None:
                    return False
                self.engine.submit(task)
        return True

    def _settle(self, task: Task, outcome: Outcome) -> None:
        if isinstance(outcome, Exception):
            reason = f"{type(outcome).__name__}: {outcome}"[:2000]
            failed = {"state": FAILED, "call": AGAIN, "error": type(outcome).__name__, "reason": reason}
            outcome = [{"block": index, **failed} for index in task]
        fatal = None
        for result in outcome:
            if result["state"] == HALTED or (self._halted and result.get("call") == AGAIN):
                continue  # stays open: the next run does it
            if result["state"] == FAILED and result["call"] == FATAL:
                fatal = fatal or result
            elif result["state"] == FAILED and self._try_again(result):
                continue
            else:
                tries = self._tries.pop(result["block"], 0) + 1
                self.record({**{k: v for k, v in result.items() if k != "call"}, "tries": tries})
        if fatal is not None:
            kind = PlanMismatchError if fatal.get("error") == PlanMismatchError.__name__ else JobError
            raise kind(str(fatal["reason"]))

    def _try_again(self, result: Mapping[str, Any]) -> bool:
        index = result["block"]
        tries = self._tries.get(index, 0) + 1
        if result["call"] == POISONED or tries > self.patience.retries:
            return False
        self._tries[index] = tries
        wait = self.patience.wait_s(tries)
        heapq.heappush(self._waiting, (time.monotonic() + wait, index))
        self.on_retry({**result, "tries": tries, "wait_s": round(wait, 3)})
        return True


class SerialEngine:
    """Tasks one after another, in this process.

    Parameters
    ----------
    work : callable
        A task to its records.
    halt : callable
    close : callable
    """

    window = 1

    def __init__(
        self,
        work: Callable[[Task], list[dict[str, Any]]],
        halt: Callable[[], None] = lambda: None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._work = work
        self.halt = halt
        self.close = close
        self._tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()

    @property
    def n_running(self) -> int:
        """Tasks that wait for `collect`."""
        return self._tasks.qsize()

    def submit(self, task: Task) -> None:
        """Take a task."""
        self._tasks.put(task)

    def collect(self, timeout_s: float) -> list[tuple[Task, Outcome]]:
        """Do a task."""
        task = self._tasks.get(timeout=timeout_s)
        return [(task, self._work(task))]


def blocks_per_task(block_bytes: int, n_blocks: int, threads: int) -> int:
    """Blocks that make a task worth its scheduling, and yet leave every worker enough tasks.

    A scheduler takes some milliseconds for a task, whatever is in it; blocks of 64 MiB take seconds.

    Parameters
    ----------
    block_bytes : int
        Raw bytes of a block.
    n_blocks : int
        That remain.
    threads : int
        Of all workers together.

    Examples
    --------
    >>> blocks_per_task(1 << 26, 1000, 2), blocks_per_task(1 << 22, 10_000, 2), blocks_per_task(1 << 22, 64, 8)
    (1, 16, 1)
    """
    wanted = min(max(1, _TASK_BYTES // max(1, block_bytes)), _MOST_BLOCKS)
    return max(1, min(wanted, n_blocks // (8 * max(1, threads))))


_TASK_BYTES = 1 << 26
_MOST_BLOCKS = 256  # records of a task come in one message


def _batched(items: Iterable[int], size: int) -> Iterator[Task]:
    rest = iter(items)
    while batch := tuple(itertools.islice(rest, size)):
        yield batch


__all__ = [
    "DONE", "FAILED", "Drive", "Engine", "Outcome", "Patience", "SerialEngine", "Task", "blocks_per_task",
]  # fmt: skip
