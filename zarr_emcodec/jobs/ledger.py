"""The durable record of a recompression, inside its destination: which blocks are done, and what each was worth.

A plan and a place in; records in, a bitmap and totals out. It knows no engine and no codec.

Every block is in one of three states:

======  ==============================================  ====================================================
state   the ledger holds                                the next run with the same plan
======  ==============================================  ====================================================
open    nothing of it (it was never begun, or was       does it: what may lie in the store under its key is
        under way when something died)                  replaced whole by one atomic write
failed  a record with state "failed" and the reason     tries it again
done    a record with state "done", made after the      leaves it alone
        block was read back and compared
======  ==============================================  ====================================================

``done`` is final; a block may have failed before it was done, never after. Two records of one block come about where
a run died between a block's last byte and its record: both then describe the same bytes, and the first counts.

On disk, under ``.emcodec/ledger/`` beside the array's metadata::

    plan.json              the plan, written before the array: it claims the destination
    lease.json             who is at work, with the time of the last sign of life
    run-0000/start.json    one folder for each run: when, where, with which versions
    run-0000/000000.jsonl  records, one a line; a part is closed at 1000 and never changes again

Runs and parts are counted, so nothing is ever listed. The open part is replaced by a longer one with every record, or
where that would take more than a twentieth of the time, with several, a second's at most: what a killed client knew and
had not written is done again.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.errors import JobError, PlanMismatchError
from zarr_emcodec.jobs import store
from zarr_emcodec.jobs.totals import Totals

if TYPE_CHECKING:
    from zarr_emcodec.jobs.store import Place

FOLDER = ".emcodec/ledger"
DONE, FAILED = "done", "failed"
_PART_RECORDS = 1000
_FLUSH_S = 1.0
_FLUSH_SHARE = 20  # of the time, one part
_BEAT_S = 15.0
_LEASE_S = 300.0  # a block may keep a serial run from giving a sign of life for minutes
_WINDOW = 1 << 16  # bytes of the bitmap unpacked at a time


class Ledger:
    """A run's hold on a destination: records are added, the bitmap tells what remains.

    Made by `begin`; `close` it, or its lease keeps others out for five minutes.

    Attributes
    ----------
    plan : mapping
        As it was first written.
    n_blocks, n_done, n_before : int
        In all; done by now; done when this run began.
    totals : Totals
        Over all done blocks, earlier runs' included.
    run : int
        Number of this run.
    """

    def __init__(self, place: Place, plan: Mapping[str, Any], *, flush_s: float = _FLUSH_S) -> None:
        self._place = place
        self.plan = plan
        self.n_blocks = int(plan["n_blocks"])
        self._bits = np.zeros(-(-self.n_blocks // 8), np.uint8)
        self.n_done = self.n_before = 0
        self.totals = Totals()
        self.run = 0
        self._id = secrets.token_hex(8)
        self._flush_s = flush_s
        self._flushed_at = self._beaten_at = self._flush_took = 0.0
        self._lines: list[str] = []
        self._part = 0
        self._dirty = False

    @classmethod
    def begin(cls, place: Place, plan: Mapping[str, Any], *, flush_s: float = _FLUSH_S) -> Ledger:
        """Take hold of a destination's ledger, or start one.

        Parameters
        ----------
        place : Place
            Of the destination.
        plan : mapping
            Plain data with "digest" and "n_blocks".
        flush_s : float
            Longest time between a record and its being durable, as long as `tick` is called; 0 for at once.

        Raises
        ------
        PlanMismatchError
            If the ledger belongs to another plan.
        JobError
            If another run is at work, or the store cannot be read or written.
        """
        stored = read_plan(place)
        if stored is not None and stored.get("digest") != plan["digest"]:
            raise PlanMismatchError(_mismatch(place, stored, plan))
        ledger = cls(place, stored or plan, flush_s=flush_s)
        ledger._take_lease()
        try:
            if stored is None:
                store.put(place, f"{FOLDER}/plan.json", _dump(plan))
            for record in _records_of_runs(place, ledger):
                ledger._count(record)
            ledger.n_before = ledger.n_done
            store.put(place, f"{FOLDER}/run-{ledger.run:04d}/start.json", _dump(_about_run(ledger._id)))
        except BaseException:
            ledger._give_lease_back()
            raise
        return ledger

    def is_done(self, index: int) -> bool:
        """Whether a block is done."""
        return bool(self._bits[index >> 3] >> (index & 7) & 1)

    def pending(self) -> Iterator[int]:
        """Blocks that were not done when this came to them, in order; memory does not follow their number."""
        for start in range(0, len(self._bits), _WINDOW):
            bits = np.unpackbits(self._bits[start : start + _WINDOW], bitorder="little")
            for offset in np.flatnonzero(bits == 0):
                index = 8 * start + int(offset)
                if index >= self.n_blocks:
                    return
                yield index

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in what became of a block.

        Parameters
        ----------
        record : mapping
            Plain data with "block" and "state"; of `Totals.add` where the state is "done".

        Raises
        ------
        JobError
            If the ledger cannot be written.
        """
        self._count(record)
        self._lines.append(json.dumps(record, separators=(",", ":"), allow_nan=False))
        self._dirty = True
        self.tick()
        if len(self._lines) >= _PART_RECORDS:
            self.flush()
            self._lines, self._part = [], self._part + 1

    def tick(self) -> None:
        """Write what is due: records, a sign of life. To be called now and then."""
        now = time.monotonic()
        if self._dirty and now - self._flushed_at >= min(self._flush_s, _FLUSH_SHARE * self._flush_took):
            self.flush()
        if now - self._beaten_at >= _BEAT_S:
            self._beat()

    def flush(self) -> None:
        """Make every record durable."""
        begun = time.monotonic()
        if self._dirty:
            name = f"{FOLDER}/run-{self.run:04d}/{self._part:06d}.jsonl"
            store.put(self._place, name, ("\n".join(self._lines) + "\n").encode())
            self._dirty = False
        self._flushed_at = time.monotonic()
        self._flush_took = self._flushed_at - begun

    def close(self) -> None:
        """Write what is left and let others in."""
        try:
            self.flush()
        finally:
            self._give_lease_back()

    def _count(self, record: Mapping[str, Any]) -> None:
        index = int(record["block"])
        if record["state"] != DONE or not 0 <= index < self.n_blocks or self.is_done(index):
            return
        self._bits[index >> 3] |= 1 << (index & 7)
        self.n_done += 1
        self.totals.add(record)

    def _take_lease(self) -> None:
        check_free(self._place)
        self._beat()
        if (now := _load(self._place, f"{FOLDER}/lease.json")) is None or now.get("id") != self._id:
            raise JobError(f"{self._place}: another run has just begun on it.")

    def _beat(self) -> None:
        lease = {"id": self._id, "host": platform.node(), "pid": os.getpid(), "beat": time.time()}
        store.put(self._place, f"{FOLDER}/lease.json", _dump(lease))
        self._beaten_at = time.monotonic()

    def _give_lease_back(self) -> None:
        held = _load(self._place, f"{FOLDER}/lease.json")
        if held is not None and held.get("id") == self._id:
            store.delete(self._place, f"{FOLDER}/lease.json")


def check_free(place: Place) -> None:
    """Refuse a destination that a run is at work on.

    Raises
    ------
    JobError
        If one is, or that cannot be told.
    """
    held = _load(place, f"{FOLDER}/lease.json")
    if held is not None and _is_alive(held):
        raise JobError(
            f"{place}: process {held['pid']} on {held['host']} is at work on it (last sign of life "
            f"{time.time() - float(held['beat']):.0f} s ago). Wait for it, or stop it; if that machine is gone, this "
            f"command will do {_LEASE_S:.0f} s after its last sign."
        )


def read_plan(place: Place) -> Mapping[str, Any] | None:
    """The plan that a destination was written by, as plain data; None where there is no ledger.

    Raises
    ------
    JobError
        If it cannot be read.
    """
    return _load(place, f"{FOLDER}/plan.json")


def read_records(place: Place) -> Iterator[dict[str, Any]]:
    """Every record of every run, oldest first; a block may have several, see the table above.

    Raises
    ------
    JobError
        If the ledger cannot be read.
    """
    return _records_of_runs(place, None)


def _records_of_runs(place: Place, ledger: Ledger | None) -> Iterator[dict[str, Any]]:
    run = 0
    while store.get(place, f"{FOLDER}/run-{run:04d}/start.json") is not None:
        part = 0
        while (data := store.get(place, name := f"{FOLDER}/run-{run:04d}/{part:06d}.jsonl")) is not None:
            yield from _lines_of(data, f"{place}: {name}")
            part += 1
        run += 1
        if ledger is not None:
            ledger.run = run


def _lines_of(data: bytes, where: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(data.splitlines(), 1):
        try:
            record = json.loads(line)
            known = isinstance(record["block"], int) and record["state"] in (DONE, FAILED)
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise JobError(f"{where}, line {number}: is no record. Remove that part; its blocks will be done again.")
        yield record


def _load(place: Place, name: str) -> dict[str, Any] | None:
    data = store.get(place, name)
    if data is None:
        return None
    try:
        found = json.loads(data)
    except ValueError as error:
        raise JobError(f"{place}: {name} is not JSON ({error}). It was not written by this package.") from error
    if not isinstance(found, dict):
        raise JobError(f"{place}: {name} holds no JSON object. It was not written by this package.")
    return found


def _dump(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()


def _is_alive(lease: Mapping[str, Any]) -> bool:
    """Whether a lease still holds: young, and its process there as far as that can be seen from here."""
    try:
        host, pid, beat = lease["host"], int(lease["pid"]), float(lease["beat"])
    except (KeyError, TypeError, ValueError):
        return False
    if time.time() - beat > _LEASE_S:
        return False
    return host != platform.node() or _exists(pid)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # there, and somebody else's
        return True
    return True


def _about_run(run_id: str) -> dict[str, Any]:
    from zarr_emcodec import __version__

    return {
        "id": run_id,
        "host": platform.node(),
        "pid": os.getpid(),
        "began": time.time(),
        "versions": {"zarr_emcodec": __version__, "python": platform.python_version(), "numpy": np.__version__},
    }


def _mismatch(place: Place, stored: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    what = sorted(key for key in mine if key in stored and key not in _NOT_HASHED and stored[key] != mine[key])
    differ = f" ({', '.join(what)} differ)" if what else ""
    return (
        f"{place}: ledger belongs to plan {stored.get('digest')!s:.12}, this command makes plan "
        f"{mine['digest']:.12}{differ}. Rerun with the first options and the first source, or begin anew with "
        "overwrite=True (--overwrite)."
    )


_NOT_HASHED = ("digest", "estimate", "memory", "note", "source", "destination", "threads", "missing")
