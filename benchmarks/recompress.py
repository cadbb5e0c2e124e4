#!/usr/bin/env python3
"""What recompressing at scale costs beside the coding itself, and what it survives.

    python benchmarks/recompress.py fib.tif                                  # all parts but the slow ones
    python benchmarks/recompress.py fib.tif --parts overhead,scaling
    python benchmarks/recompress.py fib.tif --parts tasks --tasks 1000,10000,100000
    python benchmarks/recompress.py fib.tif --parts kills --kills 50
    python benchmarks/recompress.py fib.tif --story                          # N5 -> sharded Zarr at 64x, killed twice
    python benchmarks/recompress.py fib.tif --parts petabyte --device cuda   # on a machine with a GPU

Parts: overhead (Dask with one worker against a plain loop of the same blocks), scaling (two workers against one), tasks
(memory and time per task, blocks that cost nothing), planning (a million blocks), kills, story, petabyte. The volume is
repeated until it is large enough. Rates are those of the steady state: starting processes and opening networks is told
apart. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from common import RESULTS, load_volume, machine, package_version, single_threaded_environment, versions, write_json
from figures import table
from planning import measure_planning
from recompress_kills import measure_kills
from recompress_story import tell_story

RATIO = 64
CHUNKS = (16, 512, 512)
BLOCKS = 32  # of 4 MiB: sixteen times less per task than a job would have, so that overheads show sixteen times more
PETABYTE = 10**15
PARTS = ("overhead", "scaling", "tasks", "planning", "kills", "story", "petabyte")
QUICK = ("overhead", "scaling", "planning", "petabyte")
DISTRIBUTIONS = ("zarr-emcodec", "numpy", "zarr", "numcodecs", "onnxruntime", "onnxruntime-gpu", "numba", "dask",
                 "distributed", "tensorstore")  # fmt: skip


def repeated(volume: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The volume, mirrored and repeated to a shape."""
    return np.pad(volume, [(0, max(0, n - m)) for n, m in zip(shape, volume.shape, strict=True)], mode="symmetric")[
        tuple(slice(0, n) for n in shape)
    ]


def write_source(folder: Path, volume: np.ndarray[Any, Any]) -> Path:
    """Blocks enough for the rates, as a .npy file: reading costs next to nothing."""
    path = folder / "in.npy"
    if not path.exists():
        np.save(path, repeated(volume, (CHUNKS[0] * BLOCKS // 4, 2 * CHUNKS[1], 2 * CHUNKS[2])))
    return path


_LOOP = """
import json, sys, time
from pathlib import Path
import numpy as np
import zarr
from zarr_emcodec import create_array
from zarr_emcodec.jobs.grid import boxes
from zarr_emcodec.jobs.measure import Guard, compare_block

source, destination, ratio, chunks = sys.argv[1], sys.argv[2], float(sys.argv[3]), json.loads(sys.argv[4])
values = np.load(source, mmap_mode="r")
array = create_array(destination, shape=values.shape, dtype=values.dtype, chunks=tuple(chunks), ratio=ratio)
times = []
for box in boxes(values.shape, tuple(chunks)):
    block = np.ascontiguousarray(values[box])
    array[box] = block
    compare_block(block, array[box], Guard(chunks=tuple(chunks), peak=255.0))
    times.append(time.time())
print(json.dumps(times))
"""

_JOB = """
import json, os, sys, time
from zarr_emcodec.jobs.plan import plan
from zarr_emcodec.jobs.recompress import recompress

def peak(pid):
    for line in open(f"/proc/{pid}/status"):
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])

def main():
    source, destination, words, running = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
    keep = running.pop("keep_times", True)
    times, workers, told = [], {}, {"first": None, "last": None, "begun": None}
    def listen(event):
        now = time.time()
        if event["event"] == "workers":
            told["begun"] = now
        if event["event"] == "done":
            told["first"], told["last"] = told["first"] or now, now
            workers[event["worker"]] = workers.get(event["worker"], 0) + 1
            if keep:
                times.append((now, event["worker"]))
            if event["block"] == made.n_blocks - 1:
                told["workers"] = [peak(int(name.rpartition(":")[2])) for name in workers]
    started = time.time()
    made = plan(source, destination, samples=0, **words)
    report = recompress(made, listener=listen, **running)
    assert report.ok, report
    told |= {"started": started, "ended": time.time(), "times": times, "n_blocks": report.n_blocks}
    told |= {"ratio": report.ratio, "psnr_db": report.psnr_db, "work_s": dict(report.work_s)}
    told["client"] = peak(os.getpid())  # not ru_maxrss, which starts with the parent's
    print(json.dumps(told))

if __name__ == "__main__":
    main()
"""


def in_process(script: str, *words: str) -> Any:
    """What a script prints, run in a fresh process: spawned workers import it, so it is a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.py"
        path.write_text(script)
        environment = single_threaded_environment()
        root = str(Path(__file__).resolve().parents[1])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH", "")]))
        command = [sys.executable, str(path), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise SystemExit(f"{' '.join(words[:2])} failed:\n{done.stderr}")
        return json.loads(done.stdout)


def job(source: Path, folder: Path, name: str, words: Mapping[str, Any], **running: Any) -> dict[str, Any]:
    """One recompression in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        found: dict[str, Any] = in_process(
            _JOB, str(source), f"{place}/{name}.zarr", json.dumps(words), json.dumps(running)
        )
    return found


def per_block(times: list[float]) -> float:
    """Seconds a block, the first left out: it opens networks and makes machine code."""
    return (times[-1] - times[0]) / (len(times) - 1)


def coding_words() -> dict[str, Any]:
    """Of a plan whose blocks are single chunks."""
    return {"codec": RATIO, "chunks": CHUNKS, "shards": None}


def measure_overhead(source: Path, folder: Path, repeats: int) -> dict[str, Any]:
    """Dask with one worker, and the serial engine, against a loop that anybody would write; in turns."""
    found: dict[str, list[float]] = {"loop": [], "serial": [], "dask": []}
    starts = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            times = in_process(_LOOP, str(source), f"{place}/loop.zarr", str(RATIO), json.dumps(CHUNKS))
        found["loop"].append(per_block(times))
        told = job(source, folder, "serial", coding_words(), engine="serial")
        found["serial"].append(per_block([t for t, _ in told["times"]]))
        told = job(source, folder, "dask", coding_words(), workers=1, blocks_per_task=1)
        found["dask"].append(per_block([t for t, _ in told["times"]]))
        starts.append(told["begun"] - told["started"])
    middle = {name: statistics.median(values) for name, values in found.items()}
    return {
        "blocks": BLOCKS,
        "block_bytes": int(np.prod(CHUNKS)),
        "seconds_per_block": found,
        "median_s": middle,
        "serial_overhead": middle["serial"] / middle["loop"] - 1,
        "dask_overhead": middle["dask"] / middle["loop"] - 1,
        "dask_start_s": statistics.median(starts),
    }


def measure_scaling(source: Path, folder: Path, repeats: int) -> dict[str, Any]:
    """Rates of one and of two workers, from when every worker has done a block."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeats):
        for workers, values in rates.items():
            times = job(source, folder, "scaling", coding_words(), workers=workers, blocks_per_task=1)["times"]
            seen: set[str] = set()
            ready = next(i for i, (_, name) in enumerate(times) if seen.add(name) or len(seen) == workers)
            values.append((len(times) - 1 - ready) / (times[-1][0] - times[ready][0]))
    middle = {workers: statistics.median(values) for workers, values in rates.items()}
    return {
        "blocks": BLOCKS,
        "block_bytes": int(np.prod(CHUNKS)),
        "blocks_per_s": {str(workers): values for workers, values in rates.items()},
        "mb_s": {str(workers): middle[workers] * float(np.prod(CHUNKS)) / 1e6 for workers in rates},
        "speed_up": middle[2] / middle[1],
    }


def measure_tasks(folder: Path, counts: list[int]) -> list[dict[str, Any]]:
    """Jobs of ever more blocks that cost nothing: no voxel is coded, nothing is stored; one block a task."""
    rows = []
    for count in counts:
        # nothing is stored: of a file that is mapped, every page that was read would count as memory
        source = folder / f"nothing_{count}.zarr"
        zarr.create_array(source, shape=(4 * count, 16, 16), chunks=(4, 16, 16), dtype="u1")
        words = {"codec": RATIO, "chunks": (4, 16, 16), "shards": None}
        told = job(source, folder, "tasks", words, workers=2, blocks_per_task=1, keep_times=False)
        seconds = told["last"] - told["first"]
        rows.append(
            {
                "tasks": count,
                "ms_per_task": 1e3 * seconds / (count - 1),
                "tasks_per_s": (count - 1) / seconds,
                "client_peak_bytes": told["client"],
                "worker_peak_bytes": max(told["workers"]),
            }
        )
        shutil.rmtree(source)
        held = [rows[-1][f"{who}_peak_bytes"] / 1e6 for who in ("client", "worker")]
        print(
            f"tasks {count}: {rows[-1]['ms_per_task']:.2f} ms each; client {held[0]:.1f} MB, worker {held[1]:.1f} MB",
            file=sys.stderr,
        )
    return rows


def measure_petabyte(source: Path, folder: Path, device: str, batch: int) -> dict[str, Any]:
    """The rate of one core, or of one GPU, and what it makes of a petabyte; shards of sixteen chunks."""
    shards = (CHUNKS[0] * 4, CHUNKS[1] * 2, CHUNKS[2] * 2)
    words = {"codec": RATIO, "chunks": CHUNKS, "shards": shards, "threads": batch}
    told = job(source, folder, "petabyte", words, engine="serial", device=device)
    times = [t for t, _ in told["times"]]
    mb_s = float(np.prod(shards)) / 1e6 / per_block(times) if len(times) > 1 else 0.0
    work = told["work_s"]
    return {
        "device": device,
        "chunks_per_call": batch if device == "cuda" else 1,
        "shard_bytes": int(np.prod(shards)),
        "ratio": told["ratio"],
        "psnr_db": told["psnr_db"],
        "mb_s": mb_s,
        "hours_per_pb": PETABYTE / 1e6 / mb_s / 3600,
        "share_of_time": {name: seconds / sum(work.values()) for name, seconds in work.items()},
        "machine": machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", type=Path, help="grey stack: TIFF or .npy")
    parser.add_argument("--parts", default=",".join(QUICK), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--story", action="store_true", help="short for --parts story")
    parser.add_argument("--tasks", default="1000,10000,100000")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the part petabyte")
    parser.add_argument("--batch", type=int, default=16, help="chunks in one call on a GPU")
    parser.add_argument("--out", type=Path, default=RESULTS / package_version())
    args = parser.parse_args()
    parts = ("story",) if args.story else tuple(args.parts.split(","))
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    volume = load_volume(args.volume)
    path = args.out / "recompress.json"
    record = json.loads(path.read_text()) if path.exists() else {"benchmark": "recompress"}
    for part in parts:
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as name:
            record[part] = _measure(part, Path(name), volume.voxels, args, record.get(part))
        facts = {"machine": machine(), "versions": versions(DISTRIBUTIONS), "volume": volume.facts()}
        record.setdefault("runs", {})[part] = {**facts, "seconds": round(time.perf_counter() - begun, 1)}
        write_json(path, record)  # a part that took an hour is not lost to the next one's failure
        show(part, record[part])


def _measure(part: str, folder: Path, volume: np.ndarray[Any, Any], args: argparse.Namespace, before: Any) -> Any:
    if part == "overhead":
        return measure_overhead(write_source(folder, volume), folder, args.repeats)
    if part == "scaling":
        return measure_scaling(write_source(folder, volume), folder, args.repeats)
    if part == "tasks":
        return measure_tasks(folder, [int(count) for count in args.tasks.split(",")])
    if part == "planning":
        return measure_planning(10**6)
    if part == "kills":
        return measure_kills(volume, folder, args.kills)
    if part == "story":
        return tell_story(args.volume, volume, folder)
    source = folder / "in.npy"
    np.save(source, repeated(volume, (CHUNKS[0] * 4 * 3, CHUNKS[1] * 4, CHUNKS[2] * 2)))
    batch = args.batch if args.device == "cuda" else 1
    return {**(before or {}), args.device: measure_petabyte(source, folder, args.device, batch)}


def show(part: str, found: Any) -> None:
    """A part's figures on the terminal."""
    rows = found if isinstance(found, list) else [{k: v for k, v in found.items() if not isinstance(v, list)}]
    print(f"\n{part}")
    print(
        table(list(rows[0]), [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows])
    )


if __name__ == "__main__":
    main()
