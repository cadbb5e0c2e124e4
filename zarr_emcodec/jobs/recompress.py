"""A planned recompression, done: on one process or on a cluster, as often interrupted as may be.

A `Plan` in; a `RecompressReport` out, and at the plan's destination an array in which every block was read back and
compared. The ledger beside the array knows which are done; running the same plan again goes on from there.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zarr_emcodec.errors import SpecError
from zarr_emcodec.jobs import block, cluster, destination, execute, store
from zarr_emcodec.jobs.examine import open_written
from zarr_emcodec.jobs.journal import Journal, Listener
from zarr_emcodec.jobs.ledger import DONE, Ledger
from zarr_emcodec.jobs.plan import Plan
from zarr_emcodec.jobs.plan_words import plan_facts, size
from zarr_emcodec.jobs.promised import ByPlan
from zarr_emcodec.jobs.recompressed import Failure, RecompressReport
from zarr_emcodec.jobs.report_page import check_report, is_page, worst_pictures, write_json, write_page
from zarr_emcodec.jobs.tally import Finding, Tally

if TYPE_CHECKING:
    from types import FrameType

    from zarr_emcodec.jobs.compare import Progress
    from zarr_emcodec.jobs.sources import Source

__all__ = ["Device", "EngineName", "Failure", "RecompressReport", "recompress"]

EngineName = Literal["dask", "serial"]
Device = Literal["auto", "cpu", "cuda"]
_LISTED = 1000  # failures that a report names; the ledger names all


def recompress(
    plan: Plan | Mapping[str, Any],
    *,
    engine: EngineName = "dask",
    scheduler: str | None = None,
    workers: int | None = None,
    device: Device = "auto",
    threads: int = 1,
    retries: int = 3,
    backoff_s: float = 1.0,
    blocks_per_task: int | None = None,
    overwrite: bool = False,
    embed_model: bool = False,
    progress: Progress | None = None,
    log: str | os.PathLike[str] | None = None,
    report: str | os.PathLike[str] | None = None,
    listener: Listener | None = None,
) -> RecompressReport:
    """Do what a plan says, or the rest of it.

    Parameters
    ----------
    plan : Plan or mapping
        From `plan`, or its plain data.
    engine : {"dask", "serial"}
        "serial": block after block in this process.
    scheduler : str, optional
        Address (or file) of a Dask scheduler that is running; a cluster on this machine when not given.
    workers : int, optional
        Processes of the cluster on this machine: one for each core when not given, fewer where memory would not do.
    device : {"auto", "cpu", "cuda"}
        What runs the networks. "cuda": on this machine one worker for each GPU, on another scheduler's cluster only
        workers that declare the resource "GPU"; the plan's threads are then chunks in one inference call.
    threads : int
        Of one inference call.
    retries : int
        After a block's first try, unless the block itself is at fault.
    backoff_s : float
        Before the first of them; see `Patience`.
    blocks_per_task : int, optional
        Chosen so that a task lasts when not given.
    overwrite : bool
        Whether a Zarr array that is there may be replaced, ledger and all.
    embed_model : bool
        Put the decoders into the array.
    progress : callable, optional
        Called with raw bytes done in this run, and to be done in it.
    log : path, optional
        Events are appended to it, one JSON object a line.
    report : path, optional
        Write what this returns to a file as well, with histograms of all done blocks: ``.html``, with pictures of the
        worst chunks, or ``.json``.
    listener : callable, optional
        Called with each event.

    Returns
    -------
    RecompressReport
        Also where blocks have failed or the run was stopped: look at `ok`.

    Raises
    ------
    PlanMismatchError
        If the ledger at the destination belongs to another plan, or the source has changed since this one was made.
    JobError
        If the destination cannot be used, somebody else is at work on it, its disk is full, or the engine is gone.
        What is done is on record.
    MissingExtraError
        If Dask is not installed.

    Notes
    -----
    The first Ctrl-C (or SIGTERM) lets the blocks under way come to their end and returns; the second raises
    KeyboardInterrupt at once.
    """
    made = _absolute(plan if isinstance(plan, Plan) else Plan.from_dict(plan))
    if engine not in ("dask", "serial"):
        raise SpecError(f"engine {engine!r}: needs 'dask' or 'serial'.", name="engine", value=engine)
    if report is not None:
        check_report(report)
    began, began_at = time.perf_counter(), time.time()
    settings = block.Settings(batched=device == "cuda", runtime={"provider": device, "threads": threads})
    with Journal(log, listener) as journal, block.open_planned(made) as volume:
        place = destination.claim(made, overwrite=overwrite)
        with closing(Ledger.begin(place, made.to_dict())) as ledger:
            destination.create(made, place, volume, embed_model=embed_model)
            run = _Run(made, ledger, journal, progress)
            journal.tell("begun", plan=made.digest, blocks=ledger.n_blocks, done=ledger.n_done, engine=engine)
            run.note(0)
            if ledger.n_done < ledger.n_blocks:
                start = functools.partial(_start, made, engine, scheduler, workers, settings, device)
                run.go(start, execute.Patience(retries, backoff_s), blocks_per_task)
            ledger.flush()
            if ledger.run:
                store.sweep(place, before=began_at)
            destination.sign(made, place, ledger.totals, complete=ledger.n_done == ledger.n_blocks)
            found = run.report(place, engine, time.perf_counter() - began)
            journal.tell("ended", **{k: v for k, v in found.to_dict().items() if k != "failed"})
        if report is not None:
            _write(report, found, made, ledger.totals.tally, volume)
    return found


@dataclass
class _Run:
    """What is known of a run while it goes on."""

    plan: Plan
    ledger: Ledger
    journal: Journal
    progress: Progress | None
    stopped: bool = False
    n_failed: int = 0
    failed: list[Failure] = field(default_factory=list)
    raw_bytes: int = 0
    threads: int = 0

    def go(self, start: Callable[[], execute.Engine], patience: execute.Patience, blocks_per_task: int | None) -> None:
        """Do what is pending, until it is done or somebody says stop."""
        remaining = self.ledger.n_blocks - self.ledger.n_done
        with closing(start()) as engine, _stop() as stopped:
            self.threads = getattr(engine, "threads", 1)
            self.journal.tell("workers", threads=self.threads, dashboard=getattr(engine, "dashboard", None))
            if advice := getattr(engine, "advice", None):
                self.journal.tell("advice", text=advice)
            block_bytes = self.plan.raw_bytes // self.plan.n_blocks
            drive = execute.Drive(
                engine,
                self.record,
                self.ledger.tick,
                stopped,
                patience=patience,
                blocks_per_task=blocks_per_task or execute.blocks_per_task(block_bytes, remaining, self.threads),
                on_retry=self.retried,
            )
            drive.run(self.ledger.pending())
            self.stopped = stopped()

    def record(self, result: Mapping[str, Any]) -> None:
        """Put a block's record where it belongs."""
        self.ledger.add(result)
        box = self.plan.box(result["block"])
        if result["state"] == DONE:
            self.note(result["raw_bytes"])
            facts = {
                name: result[name] for name in ("block", "raw_bytes", "stored_bytes", "seconds", "worker", "tries")
            }
            self.journal.tell("done", **facts)
            return
        failure = Failure(
            block=result["block"],
            coords=self.plan.coords(result["block"]),
            box=tuple((part.start, part.stop) for part in box),
            tries=result["tries"],
            reason=result["reason"],
        )
        self.n_failed += 1
        if len(self.failed) < _LISTED:
            self.failed.append(failure)
        self.journal.tell("failed", **failure.to_dict())

    def retried(self, result: Mapping[str, Any]) -> None:
        """Tell of a failure that will be tried again."""
        self.journal.tell("retry", **{name: result[name] for name in ("block", "tries", "wait_s", "reason")})

    def note(self, raw_bytes: int) -> None:
        """Count bytes that are done."""
        self.raw_bytes += raw_bytes
        if self.progress is not None:
            before = self.ledger.totals.raw_bytes - self.raw_bytes
            self.progress(self.raw_bytes, self.plan.raw_bytes - before)

    def report(self, place: store.Place, engine: str, seconds: float) -> RecompressReport:
        """What came of it."""
        plan, totals = self.plan, self.ledger.totals
        peak = totals.peak(plan.dtype, plan.codec.get("window"))
        other = destination.other_bytes(plan, place)
        stored = totals.stored_bytes + other
        return RecompressReport(
            ok=self.ledger.n_done == self.ledger.n_blocks,
            stopped=self.stopped and self.ledger.n_done < self.ledger.n_blocks,
            source=plan.source,
            destination=plan.destination,
            digest=plan.digest,
            n_blocks=self.ledger.n_blocks,
            n_done=self.ledger.n_done,
            n_before=self.ledger.n_before,
            n_empty=totals.n_empty,
            n_failed=self.n_failed,
            failed=tuple(self.failed),
            raw_bytes=totals.raw_bytes,
            stored_bytes=totals.stored_bytes,
            other_bytes=other,
            ratio=totals.raw_bytes / stored if totals.stored_bytes else None,
            frames=dict(sorted(totals.tally.kinds.items())),
            psnr_db=totals.psnr_db(peak),
            ssim=totals.ssim(),
            worst_error=totals.tally.worst if totals.n_blocks else None,
            lowest_chunk_db=totals.tally.worst_chunks[0][1] if totals.tally.worst_chunks else None,
            peak=peak,
            seconds=seconds,
            mb_s=self.raw_bytes / 1e6 / seconds,
            work_s={name: round(value, 3) for name, value in totals.seconds.items()},
            engine=engine,
            threads=self.threads,
        )


def _write(
    path: str | os.PathLike[str], found: RecompressReport, made: Plan, tally: Tally, volume: Source
) -> None:  # fmt: skip
    """The report as a file; blocks that failed are findings."""
    failed = [
        Finding(kind="missing", chunk=tuple(start // n for (start, _), n in zip(each.box, made.chunks, strict=True)),
                reason=each.reason)
        for each in found.failed
    ]  # fmt: skip
    tally = dataclasses.replace(tally, findings=failed, n_findings=found.n_failed)
    if not is_page(path):
        write_json(path, {**found.to_dict(), "measured": tally.to_dict()})
        return
    facts = [
        *plan_facts(made),
        ("destination", found.destination),
        ("done", f"{found.n_done:,} of {found.n_blocks:,} blocks, {found.n_empty:,} of them empty"),
        ("stored", f"{size(found.stored_bytes + found.other_bytes)} of {size(found.raw_bytes)}"
                   + (f", {found.ratio:.1f}x smaller" if found.ratio else "")),
        ("took", f"{found.seconds:.1f} s, this run"),
    ]  # fmt: skip
    array, promised = open_written(made.destination), ByPlan(made)
    write_page(
        path,
        f"Recompression of {made.source}",
        [(name, text) for name, text in facts if text],
        tally,
        worst_pictures(volume, array, tally, expected=promised.voxels),
    )


def _absolute(plan: Plan) -> Plan:
    """The same plan with local places that workers find wherever they were started; no part of its hash."""
    return dataclasses.replace(plan, source=_from_root(plan.source), destination=_from_root(plan.destination))


def _from_root(location: str) -> str:
    return location if "://" in location else str(Path(location).absolute())


def _start(
    plan: Plan,
    engine: EngineName,
    scheduler: str | None,
    workers: int | None,
    settings: block.Settings,
    device: Device,
) -> execute.Engine:
    job, text = f"emcodec-{plan.digest[:12]}-{secrets.token_hex(4)}", json.dumps(plan.to_dict())
    if engine == "serial":
        block.bring(job, text, settings)
        return execute.SerialEngine(
            functools.partial(block.work, job), functools.partial(block.halt, job), functools.partial(block.forget, job)
        )
    if scheduler is not None:
        return cluster.connected_engine(job, text, settings, scheduler=scheduler, on_gpus=device == "cuda")
    gpus = cluster.visible_gpus() if device == "cuda" else ()
    count = cluster.fitting_workers(workers, len(gpus), plan.memory.peak_bytes, plan.n_blocks)
    return cluster.local_engine(job, text, settings, workers=count, gpus=gpus[:count])


@contextmanager
def _stop() -> Iterator[Callable[[], bool]]:
    """Whether somebody has pressed Ctrl-C, or sent SIGTERM; the second time it is raised."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set  # signals are the main thread's business
        return

    def note(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
