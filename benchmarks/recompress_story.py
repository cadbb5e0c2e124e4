"""One volume from N5 to sharded Zarr v3, by the command alone: planned, killed twice, resumed, verified.

Called by recompress.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

RATIO = 64
LARGEST_CHUNK = 512
SECTIONS = 16
N5_BLOCK = (64, 64, 64)
VOXEL_NM = (8.0, 8.0, 8.0)


def tell_story(path: Path, volume: np.ndarray[Any, Any], folder: Path) -> dict[str, Any]:
    """Do it, and tell what happened.

    Parameters
    ----------
    path : Path
        Of the volume, for its name.
    volume : ndarray, shape (z, y, x), uint8
    folder : Path
        For everything that is written.

    Returns
    -------
    dict
        Sizes, the plan's estimate beside what came of it, each run, and the verification.
    """
    n5_bytes = write_n5(folder / "volume.n5", volume)
    chunks, shards = layout(volume.shape)
    plan = _command(
        "plan", "volume.n5", "volume.zarr", "--ratio", str(RATIO), "--chunks", chunks, "--shards", shards,
        "--samples", "4", "--json", folder=folder,
    )[1]  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan))
    runs = [_killed_run(folder, number, plan["n_blocks"]) for number in (1, 2)]
    begun = time.perf_counter()
    status, report = _command("recompress", "plan.json", "--workers", "2", "--json", folder=folder)
    runs.append({"killed": None, "status": status, "seconds": time.perf_counter() - begun, "done": report["n_done"],
                 "done_before": report["n_before"]})  # fmt: skip
    status, verified = _command("verify", "volume.zarr", "volume.n5", "--json", folder=folder)
    keys = (
        "ok",
        "n_chunks",
        "frames_checked",
        "chunks_compared",
        "frames",
        "psnr_db",
        "ssim",
        "worst_error",
        "n_findings",
    )
    return {
        "volume": path.stem,
        "shape": list(volume.shape),
        "raw_bytes": volume.nbytes,
        "n5_bytes": n5_bytes,
        "chunks": plan["chunks"],
        "shards": plan["shards"],
        "n_blocks": plan["n_blocks"],
        "estimate": {key: plan["estimate"][key] for key in ("stored_bytes", "ratio", "psnr_db", "core_hours")},
        "runs": runs,
        "stored_bytes": report["stored_bytes"] + report["other_bytes"],
        "ratio": report["ratio"],
        "psnr_db": report["psnr_db"],
        "ssim": report["ssim"],
        "worst_error": report["worst_error"],
        "verified": {"status": status, **{key: verified[key] for key in keys}},
    }


def layout(shape: tuple[int, ...]) -> tuple[str, str]:
    """Chunks of at most 16 x 512 x 512, two of them to a shard: blocks enough to be killed between two."""
    edges = [-(-n // -(-n // min(LARGEST_CHUNK, -(-n // 2)))) for n in shape[1:]]
    return f"{SECTIONS},{edges[0]},{edges[1]}", f"{SECTIONS},{edges[0]},{2 * edges[1]}"


def write_n5(path: Path, volume: np.ndarray[Any, Any]) -> int:
    """As an N5 data set with a voxel size, gzip as its libraries write it; stored bytes."""
    import tensorstore

    spec = {
        "driver": "n5",
        "kvstore": {"driver": "file", "path": str(path)},
        "metadata": {
            "dimensions": list(volume.shape[::-1]),
            "blockSize": list(N5_BLOCK),
            "dataType": str(volume.dtype),
            "compression": {"type": "gzip", "level": 5},
            "resolution": list(VOXEL_NM[::-1]),
            "units": ["nm"] * 3,
        },
        "create": True,
    }
    tensorstore.open(spec).result().write(volume.transpose()).result()
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _killed_run(folder: Path, number: int, n_blocks: int) -> dict[str, Any]:
    """A run that is killed with a part of the blocks done: the client the first time, its whole group the second."""
    log = folder / f"log-{number}"
    begun = time.perf_counter()
    process = subprocess.Popen(
        [*_COMMAND, "recompress", "plan.json", "--workers", "2", "--json", "--log", str(log)],
        cwd=folder, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    wanted = max(1, n_blocks // 4)
    while process.poll() is None:
        done = log.read_text().count('"event": "done"') if log.exists() else 0
        if done >= wanted:
            if number == 1:
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.01)
    status = process.wait()
    done = log.read_text().count('"event": "done"')
    return {"killed": "client" if number == 1 else "client and workers", "status": status,
            "seconds": time.perf_counter() - begun, "done": done}  # fmt: skip


_COMMAND = (sys.executable, "-m", "zarr_emcodec.cli.main")


def _command(*words: str, folder: Path) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [*_COMMAND, *words], cwd=folder, env=_environment(), capture_output=True, text=True, check=False
    )
    if not done.stdout:
        raise SystemExit(f"{words[0]} failed: {done.stderr}")
    return done.returncode, json.loads(done.stdout)


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))}
