"""The command itself, in a process of its own that is killed, or stopped, wherever it happens to be."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.recompressing import stored
from zarr_emcodec.jobs.demo import SAMPLE
from zarr_emcodec.jobs.plan import plan
from zarr_emcodec.jobs.recompress import recompress

pytest.importorskip("distributed", reason="Dask is not installed")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


class Command:
    """``zarr-emcodec recompress`` on 32 blocks that take a tenth of a second each."""

    def __init__(self, folder: Path) -> None:
        made = plan(SAMPLE, folder / "out.zarr", {"min_psnr": 30}, chunks=(8, 32, 32), shards=(8, 32, 64), samples=0)
        self.log, self.plan, self.n_blocks = folder / "log", folder / "plan.json", made.n_blocks
        self.plan.write_text(json.dumps(made.to_dict()))

    def start(self) -> subprocess.Popen[str]:
        """Begin, in a process group of its own as a terminal's foreground job is."""
        words = ["recompress", str(self.plan), "--workers", "2", "--json", "--log", str(self.log)]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        return subprocess.Popen(
            [sys.executable, "-m", "zarr_emcodec.cli.main", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )

    def events(self) -> list[dict[str, Any]]:
        """Of all runs so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def wait_for(self, process: subprocess.Popen[str], n_done: int) -> bool:
        """Until so many blocks are done in all; whether that came about before the process ended."""
        while sum(event["event"] == "done" for event in self.events()) < n_done:
            if process.poll() is not None:
                return False
            time.sleep(0.02)
        return True


@pytest.fixture
def reference(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "reference"
    folder.mkdir()
    command = Command(folder)
    assert recompress(json.loads(command.plan.read_text()), engine="serial").ok
    return stored(folder / "out.zarr")


def test_killed_again_and_again_it_ends_in_the_same_store(tmp_path: Path, reference: dict[str, str]) -> None:
    command, drawing = Command(tmp_path), random.Random(0)
    victims = []
    for n_done in (1, 7, 15, 22, 28):
        process = command.start()
        if command.wait_for(process, n_done):
            workers = [int(e["worker"].rpartition(":")[2]) for e in command.events() if e["event"] == "done"]
            victim = drawing.choice([process.pid, workers[-1]])
            victims.append(victim == process.pid)
            os.kill(victim, signal.SIGKILL)
            if victim != process.pid:
                continue_or_kill(process)
        process.communicate(timeout=120)
    assert victims
    process = command.start()
    report = json.loads(process.communicate(timeout=120)[0])
    assert process.returncode == 0
    assert report["ok"]
    assert stored(tmp_path / "out.zarr") == reference


def continue_or_kill(process: subprocess.Popen[str]) -> None:
    """After a worker the client dies too, a moment later, so that there is something left for the next run."""
    time.sleep(0.3)
    process.kill()


def test_ctrl_c_in_a_terminal_ends_what_is_under_way(tmp_path: Path, reference: dict[str, str]) -> None:
    command = Command(tmp_path)
    process = command.start()
    assert command.wait_for(process, 2)
    os.killpg(process.pid, signal.SIGINT)  # to the workers too, as a terminal sends it
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    report = json.loads(out)
    assert report["stopped"]
    assert not report["failed"]
    assert 2 <= report["n_done"] < command.n_blocks
    process = command.start()
    report = json.loads(process.communicate(timeout=120)[0])
    assert report["ok"]
    assert report["n_before"] >= 2
    assert stored(tmp_path / "out.zarr") == reference
