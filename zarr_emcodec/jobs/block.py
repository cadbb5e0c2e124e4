"""One block of a recompression, done from end to end: read, code, write, read back, compare.

A plan and a block's number in; a ledger record out, also where something fails. It is the only thing that workers run,
and it may be run again at any time: a block is encoded in memory and lands by one atomic write, so that the store
never shows a part of it, nor a mixture with what lay there before.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from zarr_emcodec.errors import EmCodecError, JobError, PlanMismatchError
from zarr_emcodec.jobs import store
from zarr_emcodec.jobs.census import Census, take_census
from zarr_emcodec.jobs.coding import array_with
from zarr_emcodec.jobs.compare import peak_of, verify_error
from zarr_emcodec.jobs.failures import HALTED, call_of
from zarr_emcodec.jobs.frames import layout_of
from zarr_emcodec.jobs.grid import voxels
from zarr_emcodec.jobs.ledger import DONE, FAILED
from zarr_emcodec.jobs.measure import BlockMeasure, Guard, compare_block
from zarr_emcodec.jobs.plan import Plan
from zarr_emcodec.jobs.report import plain
from zarr_emcodec.jobs.sources import Source, open_source

if TYPE_CHECKING:
    import zarr

    from zarr_emcodec._types import Chunk
    from zarr_emcodec.jobs.grid import Box


@dataclass(frozen=True)
class Settings:
    """How a worker works; nothing of it changes what is stored.

    Parameters
    ----------
    batched : bool
        Whether the plan's threads are chunks in one call of the codec, as a GPU wants them, or calls at a time.
    runtime : mapping
        Options of `zarr_emcodec.options`, such as provider and threads, for the worker's process.
    """

    batched: bool = False
    runtime: Mapping[str, Any] | None = None


class Worker:
    """A plan, its source and its destination, open in this process.

    Parameters
    ----------
    plan : Plan
    settings : Settings

    Raises
    ------
    PlanMismatchError
        If the source that this machine sees is not the one that was planned for.
    JobError
        If source or destination cannot be opened.
    """

    def __init__(self, plan: Plan, settings: Settings) -> None:
        import zarr

        self.plan = plan
        self.settings = settings
        self.source = open_planned(plan)
        self.place = store.place_at(plan.destination)
        try:
            self.array: zarr.Array[Any] = zarr.open_array(self.place.store, path=self.place.path, mode="r+")
        except Exception as error:
            self.source.close()
            raise JobError(f"{plan.destination}: cannot be opened: {error}") from error
        self._writers: dict[int, zarr.Array[Any]] = {0: self.array}
        self.stage = "read"

    def run(self, index: int) -> dict[str, Any]:
        """Do a block.

        Returns
        -------
        dict
            A ledger record with state "done".

        Raises
        ------
        VerifyError
            If what was read back breaks the promise, or is not what was written.
        JobError, SpecError, ModelError
            If it cannot be read, coded or written.
        """
        plan, box, key = self.plan, self.plan.box(index), self._key(index)
        config, clock = plan.codec_of(index), _Clock()
        self.stage, wanted = "read", None
        if plan.may_hold_tissue(index):
            wanted = plan.prepare(box, self.source.read(box), config)
        clock.lap("read")
        self.stage = "write"
        frame_bytes = None if wanted is None else self._encode(index, box, wanted)
        if frame_bytes is None:
            store.delete(self.place, key)
        else:
            store.put(self.place, key, frame_bytes)
        clock.lap("write")
        if store.get(self.place, key) != frame_bytes:
            raise JobError(f"{self.place}/{key}: other bytes came back than were written.")
        measure, census = None, {"kinds": {"absent": self._cells(box)}, "digests": {}, "settings": {}, "frame_bytes": 0}
        if frame_bytes is not None and wanted is not None:
            measure, census = self._compare(box, key, frame_bytes, wanted, config)
        clock.lap("check")
        fill = float(plan.fill_value)
        return {
            "block": index,
            "state": DONE,
            "raw_bytes": voxels(box) * np.dtype(plan.dtype).itemsize,
            "n_voxels": voxels(box),
            "stored_bytes": 0 if frame_bytes is None else len(frame_bytes),
            "crc32c": None if frame_bytes is None else google_crc32c.value(frame_bytes),
            "codec": plan.codec_index(index),
            "range": plain([fill, fill] if wanted is None else [wanted.min(), wanted.max()]),
            "frames": census,
            "measure": measure,
            "seconds": clock.laps,
        }

    def _key(self, index: int) -> str:
        return self.array.metadata.encode_chunk_key(self.plan.coords(index))

    def _encode(self, index: int, box: Box, wanted: Chunk) -> bytes | None:
        """The object to be stored; None where it is all fill value."""
        if (wanted == self.plan.fill_value).all():
            return None
        which = self.plan.codec_index(index)
        if which not in self._writers:
            self._writers[which] = array_with(self.array, self.plan.configs[which])
        with _coding(self.plan.threads, batched=self.settings.batched):
            draft = _in_memory(self._writers[which])
            # an edge block is coded at full size: there is nothing below it to be merged with
            draft[box] = wanted
        return store.get(draft.store_path, self._key(index))

    def _compare(
        self, box: Box, key: str, data: bytes, wanted: Chunk, config: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Decode what came back from the store, and hold it against what was to be stored."""
        with _coding(self.plan.threads, batched=self.settings.batched):
            draft = _in_memory(self.array)
            store.put(draft.store_path, key, data)
            census = take_census(draft, layout_of(draft), box)
            decoded = np.asarray(draft[box])
        first = tuple(part.start // chunk for part, chunk in zip(box, self.plan.chunks, strict=True))
        guard = Guard.of(config, self.plan.chunks, _peak(self.plan))
        measure: BlockMeasure = compare_block(wanted, decoded, guard, first_chunk=first, scales=census.scales)
        if failures := [*census.damaged, *measure.failures]:
            raise verify_error("as read back", failures)
        return measure.to_dict(), _short(census)

    def _cells(self, box: Box) -> int:
        return int(np.prod([-(-(p.stop - p.start) // c) for p, c in zip(box, self.plan.chunks, strict=True)]))


def bring(job: str, plan: str, settings: Settings) -> None:
    """Tell this process of a job, by its name, before it is given blocks of it.

    Parameters
    ----------
    job : str
    plan : str
        JSON of `Plan.to_dict`.
    settings : Settings
    """
    with _lock:
        _jobs[job] = (plan, settings)
        _halted.discard(job)


def halt(job: str) -> None:
    """Begin no further block of a job in this process; the one under way is done to its end."""
    _halted.add(job)


def forget(job: str) -> None:
    """Close what a job holds open in this process."""
    with _lock:
        _jobs.pop(job, None)
        worker = _workers.pop(job, None)
    if worker is not None:
        worker.source.close()


def work(job: str, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Do some blocks of a job that was brought.

    Parameters
    ----------
    job : str
    indices : sequence of int

    Returns
    -------
    list of dict
        A record for each: done, failed (with "reason", the error's name as "error", and as "call" one of `AGAIN`,
        `POISONED`, `FATAL` of `failures`), or halted.
    """
    return [{**_work(job, index), "worker": f"{platform.node()}:{os.getpid()}", "at": time.time()} for index in indices]


def _work(job: str, index: int) -> dict[str, Any]:
    if job in _halted:
        return {"block": index, "state": HALTED}
    try:
        return _worker(job).run(index)
    except Exception as error:  # stores, formats and codecs raise whatever their libraries do; the job goes on
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, EmCodecError) else str(error)
        stage = _workers[job].stage if job in _workers else ""
        call = call_of(error, reading=stage == "read")
        return {
            "block": index,
            "state": FAILED,
            "call": call,
            "error": type(error).__name__,
            "reason": f"block {_place_of(job, index)}: {reason}"[:2000],
        }


_jobs: dict[str, tuple[str, Settings]] = {}
_workers: dict[str, Worker] = {}
_halted: set[str] = set()
_lock = threading.Lock()


def _worker(job: str) -> Worker:
    """The job's, opened on its first block."""
    with _lock:
        if job not in _workers:
            if job not in _jobs:
                raise JobError(f"job {job}: was never brought to this process.")
            plan, settings = _jobs[job]
            if settings.runtime:
                from zarr_emcodec.runtime import options

                options(**settings.runtime)
            _workers[job] = Worker(Plan.from_dict(json.loads(plan)), settings)
        return _workers[job]


def _place_of(job: str, index: int) -> str:
    """A block in words, also where the job could not be opened."""
    worker = _workers.get(job)
    if worker is None:
        return str(index)
    span = ", ".join(f"{part.start}:{part.stop}" for part in worker.plan.box(index))
    return f"{worker.plan.coords(index)}, voxels {span}"


def open_planned(plan: Plan) -> Source:
    """The source of a plan.

    Raises
    ------
    PlanMismatchError
        If it is no longer what the plan was made for.
    JobError
        If it cannot be opened.
    """
    source = open_source(plan.source, missing=plan.missing)
    if source.fingerprint() != plan.source_fingerprint:
        source.close()
        raise PlanMismatchError(
            f"{plan.source}: has changed since the plan was made. Make a new plan, for a new destination."
        )
    return source


def _in_memory(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """The same array, empty, in memory."""
    import zarr
    from zarr.storage import MemoryStore, StorePath

    inner = array._async_array
    return zarr.Array(type(inner)(array.metadata, StorePath(MemoryStore()), inner.config))


@contextmanager
def _coding(threads: int, *, batched: bool) -> Iterator[None]:
    """So many chunks at a time, in one call or in several; reading the source keeps zarr's own concurrency."""
    import zarr

    calls, batch = (1, threads) if batched else (threads, 1)
    with zarr.config.set({"async.concurrency": calls, "codec_pipeline.batch_size": batch}):
        yield


def _peak(plan: Plan) -> float | None:
    """One peak for all blocks, where it is known before they are read."""
    window = plan.codec.get("window")
    return peak_of(np.dtype(plan.dtype), window, (0, 0)) if plan.dtype == "uint8" or window else None


def _short(census: Census) -> dict[str, Any]:
    return {name: census.to_dict()[name] for name in ("kinds", "digests", "settings", "frame_bytes")}


class _Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 6), now
