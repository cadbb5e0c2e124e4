"""Recompressions that are killed, over and over, at random moments; and a count of what that did to the stored bytes.

Called by recompress.py. Every run is the command itself in a process of its own. Victims in turn: the client (with the
scheduler in it), a worker, and, with a cluster that stands apart, its scheduler.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

CHUNKS, SHARDS = (8, 64, 64), (8, 128, 128)
SHAPE = (64, 512, 512)  # 128 shards, of tenths of a second each
_LONGEST_S = 600.0

_APART = """
import sys, time
from distributed import LocalCluster
if __name__ == "__main__":
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50)
    print(cluster.scheduler_address, flush=True)
    time.sleep(3600)
"""


class Killed:
    """One plan, run and killed until all of it is done.

    Parameters
    ----------
    folder : Path
    source : Path
    drawing : Random
    """

    def __init__(self, folder: Path, source: Path, drawing: random.Random) -> None:
        from zarr_emcodec.jobs.plan import plan

        folder.mkdir()
        self.folder, self.drawing = folder, drawing
        made = plan(source, folder / "out.zarr", 64, chunks=CHUNKS, shards=SHARDS, samples=0)
        self.digest, self.n_blocks = made.digest, made.n_blocks
        (folder / "plan.json").write_text(json.dumps(made.to_dict()))

    def run(self, victim: str | None) -> str:
        """Run until the victim is killed, or to the end: what became of it, "done" or the victim."""
        apart = self._start_apart() if victim == "scheduler" else None
        words = ["--scheduler", apart[1]] if apart else ["--workers", "2"]
        log = self.folder / f"log-{time.time_ns()}"
        client = _process(
            "-m", "zarr_emcodec.cli.main", "recompress", str(self.folder / "plan.json"), *words, "--json",
            "--log", str(log),
        )  # fmt: skip
        try:
            worker = self._wait(client, log) if victim else None
            if worker is not None and victim:
                target = {"client": client.pid, "worker": worker, "scheduler": apart[0].pid if apart else 0}[victim]
                try:
                    os.kill(target, signal.SIGKILL)
                except ProcessLookupError:  # the run was at its end
                    worker = None
                else:
                    if victim == "worker":  # the job goes on; the client follows, so that the next run has work
                        time.sleep(self.drawing.uniform(0, 2))
                        client.kill()
            client.communicate(timeout=_LONGEST_S)
        finally:
            client.kill()
            if apart:
                apart[0].kill()
                apart[0].communicate()
        if worker is None and client.returncode:
            raise SystemExit(f"a run that nobody disturbed ended with {client.returncode}")
        return "done" if worker is None or not victim else victim

    def _wait(self, client: subprocess.Popen[str], log: Path) -> int | None:
        """A worker's process id, some moments after the first block of this run; None where it ended before."""
        while True:
            done = [
                line for line in (log.read_text() if log.exists() else "").splitlines() if '"event": "done"' in line
            ]
            if done:
                time.sleep(self.drawing.uniform(0, 1.0))
                worker = json.loads(done[-1])["worker"]
                return None if client.poll() is not None else int(worker.rpartition(":")[2])
            if client.poll() is not None:
                return None
            time.sleep(0.02)

    def _start_apart(self) -> tuple[subprocess.Popen[str], str]:
        path = self.folder / "apart.py"
        path.write_text(_APART)
        process = _process(str(path))
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    def shards(self) -> dict[str, str]:
        """SHA-256 of every stored shard."""
        root = self.folder / "out.zarr" / "c"
        return {
            str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()
        }

    def wrong_records(self) -> int:
        """Blocks whose last record says another checksum than the stored bytes have."""
        from zarr_emcodec.jobs.ledger import DONE, read_records
        from zarr_emcodec.jobs.store import get, place_at

        place = place_at(self.folder / "out.zarr")
        recorded = {r["block"]: r["crc32c"] for r in read_records(place) if r["state"] == DONE}
        grid = tuple(-(-n // s) for n, s in zip(SHAPE, SHARDS, strict=True))
        wrong = self.n_blocks - len(recorded)
        for block, crc in recorded.items():
            data = get(place, "c/" + "/".join(map(str, np.unravel_index(block, grid))))
            wrong += data is None or google_crc32c.value(data) != crc
        return int(wrong)


def measure_kills(volume: np.ndarray[Any, Any], folder: Path, kills: int) -> dict[str, Any]:
    """Kill so often, and compare with a job that nobody disturbed.

    Parameters
    ----------
    volume : ndarray, shape (z, y, x)
    folder : Path
        For everything that is written.
    kills : int

    Returns
    -------
    dict
        kills (by victim), jobs, runs, blocks (of all jobs), lost, differing, wrong_records, leftover_files.
    """
    from zarr_emcodec.jobs.recompress import recompress

    pads = [(0, max(0, n - m)) for n, m in zip(SHAPE, volume.shape, strict=True)]
    np.save(folder / "in.npy", np.pad(volume, pads, mode="symmetric")[tuple(slice(0, n) for n in SHAPE)])
    drawing = random.Random(0)
    reference = Killed(folder / "reference", folder / "in.npy", drawing)
    report = recompress(json.loads((folder / "reference" / "plan.json").read_text()), engine="serial")
    assert report.ok
    expected = reference.shards()
    counts: Counter[str] = Counter()
    found: Counter[str] = Counter()
    while sum(counts.values()) < kills:
        job = Killed(folder / f"job-{found['jobs']}", folder / "in.npy", drawing)
        while True:
            left = kills - sum(counts.values())
            became = job.run(drawing.choice(("client", "client", "worker", "scheduler")) if left else None)
            found["runs"] += 1
            if became == "done":
                break
            counts[became] += 1
            print(f"kill {sum(counts.values())} of {kills}: {became}", file=sys.stderr)
        stored = job.shards()
        found["jobs"] += 1
        found["blocks"] += job.n_blocks
        found["lost"] += len(expected.keys() - stored.keys())
        found["differing"] += sum(stored[key] != value for key, value in expected.items() if key in stored)
        found["wrong_records"] += job.wrong_records()
        found["leftover_files"] += sum(1 for _ in (folder / f"job-{found['jobs'] - 1}" / "out.zarr").rglob("*.partial"))
    names = ("jobs", "runs", "blocks", "lost", "differing", "wrong_records", "leftover_files")
    return {"kills": dict(counts), **{name: found[name] for name in names}}


def _process(*words: str) -> subprocess.Popen[str]:
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
