"""`compress --codec inr`: progress between chunks, words of the command, what a cancelled fit leaves behind."""

from __future__ import annotations

import json
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

pytest.importorskip("torch", reason="fitting a field needs torch")

from tests.volumes import fibsem
from zarr_emcodec.cli.app import app
from zarr_emcodec.errors import SpecError
from zarr_emcodec.jobs.compress import compress

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    np.save(tmp_path / "source.npy", fibsem()[:8, :64, :96])
    return tmp_path / "source.npy"


def test_the_command(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    words = ["compress", source, out, "--codec", "inr", "--ratio", 16, "--effort", 0, "--time-limit", 30,
             "--chunks", "8,64,48", "--json"]  # fmt: skip
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["model"], report["frames"]) == ("inr-siren@2", {"latent": 2})
    assert 16 <= report["ratio"] < 18
    config: Any = zarr.open_array(out).metadata.to_dict()
    assert config["codecs"][0]["configuration"]["time_limit"] == 30


def test_the_command_fits_latents(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    words = ["compress", source, out, "--codec", "inr", "--backbone", "latents", "--ratio", 16, "--effort", 0, "--json"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["model"].startswith("inr-latents@")
    assert report["ratio"] >= 16
    config: Any = zarr.open_array(out).metadata.to_dict()
    assert config["codecs"][0]["configuration"]["backbone"] == "latents"
    refused = CliRunner().invoke(app, ["compress", str(source), str(tmp_path / "no.zarr"), "--backbone", "latents"])
    assert refused.exit_code != 0
    assert "backbone" in refused.output


def test_progress_goes_on_between_chunks_and_never_back(source: Path, tmp_path: Path) -> None:
    ticks: list[tuple[int, int]] = []
    words: dict[str, Any] = {"codec": "inr", "ratio": 16, "effort": 0, "chunks": (8, 64, 96)}
    compress(source, tmp_path / "out.zarr", progress=lambda *t: ticks.append(t), **words)
    done = [n for n, _ in ticks]
    assert done == sorted(done)
    assert ticks[-1] == (2 * 8 * 64 * 96,) * 2
    assert len(ticks) >= 30  # one chunk, written and read: every step of its fit is seen


def test_a_cancelled_fit_leaves_nothing(source: Path, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start its jobs without
    try:
        _cancel(source, tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)


def _cancel(source: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def cancel(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == 3:
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGINT)  # Ctrl-C; the fit runs in another thread

    words: dict[str, Any] = {"codec": "inr", "ratio": 16, "effort": 9, "chunks": (8, 64, 96)}
    with pytest.raises(KeyboardInterrupt):
        compress(source, tmp_path / "out.zarr", progress=cancel, **words)
    count = -1
    while count != len(seen):  # the step in work may go on to its end
        count = len(seen)
        time.sleep(0.3)
    assert count < 25000
    assert [path.name for path in tmp_path.iterdir()] == ["source.npy"]


def test_chunks_too_small_are_refused_and_nothing_is_left(source: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"voxels 0:8, .*smallest chunk that works has [0-9]+ voxels"):
        compress(source, tmp_path / "out.zarr", codec="inr", ratio=64, chunks=(1, 32, 32))
    with pytest.raises(SpecError, match="'time_limit'"):
        compress(source, tmp_path / "out.zarr", codec="vae", time_limit=3)
    assert [path.name for path in tmp_path.iterdir()] == ["source.npy"]
