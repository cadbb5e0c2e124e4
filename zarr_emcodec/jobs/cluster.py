"""Clusters to run jobs on: this machine's, started for the job, or one whose scheduler is there already.

How many workers, or an address, in; a `DaskEngine` out.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr_emcodec.errors import JobError, MissingExtraError, SpecError
from zarr_emcodec.jobs.dask_engine import GPU, PATIENCE_S, START_S, TRIM, DaskEngine, quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from zarr_emcodec.jobs.block import Settings

_CONFIG = {
    # of workers, before they start: Dask's own without TRIM
    "distributed.nanny.pre-spawn-environ": {
        f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMBA")
    },
    # call trees of every second would be kept for hours: the one thing in a worker that grows with a job's length
    "distributed.worker.profile.enabled": False,
    # kept for Dask's own developers, and full only after thousands of tasks: messages sent, transitions, events
    "distributed.admin.low-level-log-length": 100,
    # of loads, each half second: five minutes of them instead of an hour
    "distributed.admin.system-monitor.log-length": 600,
}


def local_engine(
    job: str,
    plan: str,
    settings: Settings,
    *,
    workers: int,
    gpus: Sequence[str] = (),
    dashboard: str = "127.0.0.1:0",
) -> DaskEngine:
    """A cluster on this machine, of processes with one thread each.

    Parameters
    ----------
    job, plan, settings
        As for `DaskEngine`.
    workers : int
        Processes; with `gpus`, there are as many as those instead.
    gpus : sequence of str
        Names of devices as CUDA knows them; each gets a worker that sees no other.
    dashboard : str
        Where the scheduler shows its pages; any free port when not given.

    Raises
    ------
    MissingExtraError
        If Dask is not installed.
    JobError
        If it does not start.
    """
    distributed = _import_distributed()
    import dask

    common: dict[str, Any] = {"nthreads": 1, "memory_limit": 0, "death_timeout": START_S, "dashboard": False}
    common |= {"silence_logs": logging.ERROR, "config": _CONFIG}
    names = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus] or [{} for _ in range(workers)]
    resources = {"resources": {GPU: 1}} if gpus else {}
    spec = {
        number: {"cls": distributed.Nanny, "options": {**common, **resources, "env": name}}
        for number, name in enumerate(names)
    }
    options = {"dashboard_address": dashboard, "host": "127.0.0.1", "extensions": _extensions()}
    scheduler = {"cls": distributed.Scheduler, "options": options}
    cluster = None
    try:
        with quiet(), _not_trimming(), dask.config.set(_CONFIG):
            cluster = distributed.SpecCluster(workers=spec, scheduler=scheduler, silence_logs=logging.CRITICAL)
            client = distributed.Client(cluster, timeout=START_S, set_as_default=False)
        return DaskEngine(client, job, plan, settings, cluster=cluster, on_gpus=bool(gpus))
    except Exception as error:
        if cluster is not None:
            with contextlib.suppress(Exception):
                cluster.close(timeout=5)
        if isinstance(error, JobError):
            raise
        raise JobError(f"dask cluster on this machine: does not start: {error}") from error


def connected_engine(
    job: str,
    plan: str,
    settings: Settings,
    *,
    scheduler: str,
    on_gpus: bool = False,
    patience_s: float = PATIENCE_S,
) -> DaskEngine:
    """The cluster of a scheduler that runs somewhere.

    Parameters
    ----------
    job, plan, settings, on_gpus, patience_s
        As for `DaskEngine`.
    scheduler : str
        Its address, such as "tcp://10.0.0.1:8786", or the path of its file.

    Raises
    ------
    MissingExtraError
        If Dask is not installed.
    JobError
        If it cannot be reached, or has no workers.
    """
    distributed = _import_distributed()
    words = {"scheduler_file": scheduler} if Path(scheduler).is_file() else {"address": scheduler}
    try:
        client = distributed.Client(**words, timeout=min(10.0, patience_s), set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise JobError(f"scheduler {scheduler}: cannot be reached: {error}. Is it running there?") from error
    try:
        return DaskEngine(client, job, plan, settings, on_gpus=on_gpus, patience_s=patience_s)
    except BaseException:
        with contextlib.suppress(Exception):
            client.close(timeout=5)
        raise


def fitting_workers(asked: int | None, gpus: int, peak_bytes: int, n_blocks: int) -> int:
    """Workers of a cluster on this machine: no more than memory and work are there for.

    Parameters
    ----------
    asked : int or None
        What the user wants; as many as there are cores, or GPUs, when None.
    gpus : int
        How many there are, where those are to be used; else 0.
    peak_bytes : int
        Of one worker, as projected.
    n_blocks : int
        To be done.

    Raises
    ------
    JobError
        If memory is too small for what was asked, or for one.
    """
    distributed = _import_distributed()
    import dask.system

    memory = int(distributed.system.MEMORY_LIMIT)  # of the container, where there is one
    fit = memory // peak_bytes
    count = asked if asked is not None else min(gpus or dask.system.CPU_COUNT, max(fit, 1))
    if count < 1:
        raise SpecError(f"workers {count}: needs at least 1.", name="workers", value=asked)
    if count > fit:
        raise JobError(
            f"{count} workers of {peak_bytes / 1e9:.2f} GB each do not fit into {memory / 1e9:.1f} GB of memory. "
            + (f"Ask for {fit}, or plan" if fit else "Plan")
            + " smaller shards (max_memory)."
        )
    return min(count, max(1, n_blocks))


def visible_gpus() -> tuple[str, ...]:
    """Names of this machine's CUDA devices, those alone that the environment lets be seen.

    Raises
    ------
    JobError
        If there are none.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        found = tuple(name.strip() for name in named.split(",") if name.strip())
    else:
        drivers = Path("/proc/driver/nvidia/gpus")
        found = tuple(str(i) for i in range(len(list(drivers.iterdir())))) if drivers.is_dir() else ()
    if not found:
        raise JobError("device 'cuda': this machine shows no GPU. Use device='auto', or another machine's scheduler.")
    return found


def _extensions() -> dict[str, Any]:
    """What a scheduler is made of: Dask's own, with spans that take no note of every task that was ever submitted."""
    from distributed.scheduler import DEFAULT_EXTENSIONS
    from distributed.spans import SpansSchedulerExtension

    class Spans(SpansSchedulerExtension):  # type: ignore[misc]  # the library is not typed
        def observe_tasks(self, tss: Any, code: Any, span_metadata: Any) -> Any:
            return super().observe_tasks(tss, code, None)  # the metadata: a list that each call makes longer

    return {**DEFAULT_EXTENSIONS, "spans": Spans}


@contextlib.contextmanager
def _not_trimming() -> Iterator[None]:
    """Without what an earlier cluster of this process left in its environment."""
    before = os.environ.pop(TRIM, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[TRIM] = before


def _import_distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise MissingExtraError("a Dask cluster", extra="dask") from error
    return distributed
