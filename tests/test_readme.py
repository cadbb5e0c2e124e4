"""What the README tells people to type works as it stands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.volumes import fibsem

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the volumes that the README speaks of."""
    np.save(tmp_path / "volume.npy", fibsem())
    tifffile.imwrite(tmp_path / "volume.tif", fibsem(), compression="zlib")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_blocks_run_in_order(desk: Path) -> None:
    assert len(PYTHON) >= 4
    names: dict[str, object] = {}
    for block in PYTHON:
        exec(compile(block, "README.md", "exec"), names)
    section = names["section"]
    assert isinstance(section, np.ndarray)
    assert section.shape == fibsem().shape[1:]
    assert np.abs(section.astype(int) - fibsem()[7]).mean() < 8


def test_commands_of_the_tool_run_in_order(desk: Path) -> None:
    lines = [line for line in SHELL if line.startswith("zarr-emcodec")]
    assert len(lines) >= 4
    tool = str(Path(sys.executable).with_name("zarr-emcodec"))
    command = [tool] if Path(tool).exists() else [sys.executable, "-m", "zarr_emcodec.cli.main"]
    for line in lines:
        words = shlex.split(line)[1:]
        run = subprocess.run([*command, *words], capture_output=True, text=True, check=False, env={**os.environ})
        assert run.returncode == 0, f"{line}\n{run.stdout}\n{run.stderr}"
    assert (desk / "look.png").stat().st_size > 10_000
    assert tifffile.imread(desk / "back.tif").shape == fibsem().shape


def test_training_commands_name_options_that_exist() -> None:
    pytest.importorskip("torch", reason="training needs the extra 'train'")
    for line in (line for line in SHELL if " -m zarr_emcodec.train" in line):
        module = re.search(r"-m (\S+)", line)
        assert module
        shown = subprocess.run([sys.executable, "-m", module[1], "--help"], capture_output=True, text=True, check=True)
        for option in re.findall(r"--[a-z0-9-]+", line):
            assert option in shown.stdout, option


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert target.startswith("https://") or (ROOT / target).exists(), target
