"""Dask as an engine: tasks as futures on the workers of a cluster, however that came about.

A client, a job's name and plan in; an engine out whose workers know the job. The scheduling is Dask's: this holds the
futures of the tasks under way, and forgets each when its records have come.
"""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import logging
import os
import queue
import signal
import time
from typing import TYPE_CHECKING, Any

from zarr_emcodec.errors import JobError
from zarr_emcodec.jobs import block

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from zarr_emcodec.jobs.execute import Outcome, Task

GPU = "GPU"
"""Resource that workers with a GPU declare."""
TRIM = "MALLOC_TRIM_THRESHOLD_"
"""Set by Dask for its workers: the C library then gives every array of 128 KiB back at once, and page faults take half
as long again as coding does."""
PATIENCE_S = 60.0
"""Without any worker."""
START_S = 60.0
"""For a process to start, or to answer."""
_PER_THREAD = 3  # tasks handed out per thread: one at work, one waiting beside it, one on its way
_REFRESH_S = 5.0  # between looks at how many workers there are
_REST = 256  # tasks between two that share a key: long enough for every process to have forgotten the first


class DaskEngine:
    """Tasks on the workers of a Dask cluster.

    Made by `local_engine` or `connected_engine`.

    Parameters
    ----------
    client : distributed.Client
    job, plan : str
        Name of the job, and its plan as JSON.
    settings : Settings
    cluster : optional
        Closed together with the engine.
    on_gpus : bool
        Only on workers that declare the resource "GPU".
    patience_s : float
        How long the job waits for a first, or another, worker.

    Raises
    ------
    JobError
        If no worker comes.
    """

    def __init__(
        self,
        client: Any,
        job: str,
        plan: str,
        settings: block.Settings,
        *,
        cluster: Any = None,
        on_gpus: bool = False,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._client, self._cluster, self._job = client, cluster, job
        self._resources = {GPU: 1} if on_gpus else None
        self._patience_s = patience_s
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._running: dict[str, tuple[Any, Task]] = {}
        self._resting: collections.deque[str] = collections.deque()
        self._n_keys = 0
        self.threads = 0
        self._seen_at = self._alive_at = time.monotonic()
        with self._talking():
            client.register_plugin(_bringer(job, plan, settings, ours=cluster is not None))
            self._wait_for_workers()

    @property
    def dashboard(self) -> str | None:
        """Address of the scheduler's pages; None where it shows none."""
        if importlib.util.find_spec("bokeh") is None:  # without it the scheduler has no pages
            return None
        return str(self._client.dashboard_link)

    @property
    def advice(self) -> str | None:
        """What would make workers that somebody else has started faster."""
        with self._talking():
            trimmed = sum(self._client.run(_is_trimming).values())
        if not trimmed:
            return None
        return (
            f"{trimmed} workers were started with {TRIM} set, which costs a third of their speed. Start them with "
            f"DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON='{{\"{TRIM}\": None}}'."
        )

    @property
    def window(self) -> int:
        """Tasks that may be under way at a time."""
        return max(4, _PER_THREAD * self.threads)

    @property
    def n_running(self) -> int:
        """Tasks under way."""
        return len(self._running)

    def submit(self, task: Task) -> None:
        """Begin a task."""
        key = self._key()
        with self._talking():
            future = self._client.submit(
                block.work, self._job, task, key=key, pure=False, resources=self._resources
            )  # fmt: skip
            self._running[key] = (future, task)
            future.add_done_callback(self._ended.put)

    def collect(self, timeout_s: float) -> list[tuple[Task, Outcome]]:
        """Tasks that have ended; after the time is up, maybe none."""
        futures = list(self._wait(timeout_s))
        self._look_after_workers()
        with self._talking():
            good = [future for future in futures if future.status == "finished"]
            records = dict(zip((f.key for f in good), self._gather(good), strict=True))
            found: list[tuple[Task, Outcome]] = []
            for future in futures:
                held, task = self._running.get(future.key, (None, ()))
                if held is not future:
                    continue
                del self._running[future.key]
                outcome = records[future.key] if future.key in records else self._error_of(future)
                found.append((task, outcome))
                held.release()
                if not isinstance(outcome, Exception):
                    self._resting.append(future.key)
        return found

    def halt(self) -> None:
        """Let no block begin that has not begun."""
        with self._talking():
            self._client.run(block.halt, self._job, on_error="ignore")  # of a worker that ends at the same moment

    def close(self) -> None:
        """End it; a cluster of ours goes with it, on another the job's traces are removed."""
        futures = [future for future, _ in self._running.values()]
        self._running.clear()
        with contextlib.suppress(Exception):  # whatever is gone already need not be ended
            if self._client.status == "running":
                if futures:
                    self._client.cancel(futures)
                if self._cluster is None:
                    self._client.unregister_worker_plugin(self._job)
        with contextlib.suppress(Exception), quiet():
            self._client.close(timeout=5)
            if self._cluster is not None:
                self._cluster.close(timeout=10)

    def _key(self) -> str:
        """A name for the next task: one that has long been at rest, or a new one.

        Dask remembers the last 100,000 keys in each process, so that memory would grow with new ones. The key of a task
        that failed is not used again: a worker may be at it still.
        """
        if len(self._resting) > _REST:
            return self._resting.popleft()
        self._n_keys += 1
        return f"{self._job}-{self._n_keys}"

    def _wait(self, timeout_s: float) -> Iterator[Any]:
        try:
            yield self._ended.get(timeout=timeout_s)
            while True:
                yield self._ended.get_nowait()
        except queue.Empty:
            return

    def _gather(self, futures: Sequence[Any]) -> list[Outcome]:
        """Records of finished tasks, all in one message; one by one where a worker has gone in between."""
        if not futures:
            return []
        try:
            return list(self._client.gather(futures))
        except Exception:
            return [self._result_of(future) for future in futures]

    def _result_of(self, future: Any) -> Outcome:
        try:
            records: list[dict[str, Any]] = future.result(timeout=START_S)
        except Exception as error:  # of the task, or of the way to its records: it is done again
            return error
        return records

    def _error_of(self, future: Any) -> Outcome:
        if future.status == "cancelled":
            self._check_alive(lost=True)
            return JobError("the task was cancelled.")
        error = future.exception(timeout=START_S)
        return error if isinstance(error, Exception) else JobError(f"the task ended as {future.status}: {error!r}")

    def _wait_for_workers(self) -> None:
        try:
            self._client.wait_for_workers(1, timeout=self._patience_s)
        except TimeoutError as error:
            raise self._nobody() from error
        self._count_threads()
        if not self.threads:
            raise self._nobody()

    def _look_after_workers(self) -> None:
        """Notice that the scheduler is gone, or that there has been no worker for too long."""
        self._check_alive()
        now = time.monotonic()
        if now - self._seen_at < _REFRESH_S:
            return
        with self._talking():
            self._count_threads()
        self._seen_at = now
        if self.threads:
            self._alive_at = now
        elif now - self._alive_at > self._patience_s:
            raise self._nobody()

    def _count_threads(self) -> None:
        workers = self._client.scheduler_info()["workers"].values()
        able = [w for w in workers if self._resources is None or w.get("resources", {}).get(GPU, 0) >= 1]
        # a GPU takes one task at a time
        self.threads = len(able) if self._resources else sum(int(worker["nthreads"]) for worker in able)

    def _check_alive(self, *, lost: bool = False) -> None:
        if lost or self._client.status != "running":
            raise self._gone()

    def _gone(self) -> JobError:
        return JobError(
            f"the scheduler at {_address(self._client)} is gone. What is done is on record: run the same command "
            "again, with a scheduler that is there."
        )

    def _nobody(self) -> JobError:
        kind = f"worker that declares the resource {GPU}" if self._resources else "worker"
        return JobError(
            f"the scheduler at {_address(self._client)} has had no {kind} for {self._patience_s:.0f} s. Start some, "
            "and run the same command again."
        )

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        """What Dask raises when its scheduler goes away in the middle of a call, as one error."""
        try:
            yield
        except JobError:
            raise
        except Exception as error:  # CommClosedError, TimeoutError, CancelledError, AttributeError of a closed client
            if self._client.status != "running" or isinstance(error, OSError):
                raise self._gone() from error
            raise JobError(f"dask: {type(error).__name__}: {error}") from error


def _bringer(job: str, plan: str, settings: block.Settings, *, ours: bool) -> Any:
    """A plug-in that brings the job to every worker, those that join later or come back included."""
    from distributed import WorkerPlugin

    class Bringer(WorkerPlugin):  # type: ignore[misc]  # the library is not typed
        name = job

        def setup(self, worker: Any) -> None:
            block.bring(job, plan, settings)
            if ours:
                # a terminal's Ctrl-C reaches every process: what is under way is to come to its end
                with contextlib.suppress(ValueError):  # only the main thread may say so
                    signal.signal(signal.SIGINT, signal.SIG_IGN)

        def teardown(self, worker: Any) -> None:
            block.forget(job)

    return Bringer()


def _is_trimming() -> bool:
    return bool(os.environ.get(TRIM))


def _address(client: Any) -> str:
    scheduler = getattr(client, "scheduler", None)
    return str(getattr(scheduler, "address", "its address"))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Dask's own words about workers that come and go out of a user's terminal."""
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
