from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

from tests.volumes import fibsem
from zarr_emcodec.cli.app import app
from zarr_emcodec.errors import JobError
from zarr_emcodec.jobs import samples
from zarr_emcodec.jobs.demo import SAMPLE

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = ("compress", "decompress", "transcode", "info", "verify", "models", "demo")


def run(*words: object, status: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == status, result.output
    return result


def test_the_whole_way_of_a_stack(tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    picture = tmp_path / "look.png"
    shown = run("compress", SAMPLE, out, "--ratio", 16, "--model", "vae-2d-s16", "--chunks", "16,64,64",
                "--shards", "32,64,128", "--threads", 1, "--picture", picture).stdout  # fmt: skip
    for words in ("x smaller", "8 latent", "PSNR", "SSIM", "vae-2d-s16@", "MB/s"):
        assert words in shown
    assert picture.exists()
    assert "vae-2d-s16@" in run("info", out).stdout
    assert "all well" in run("verify", out, SAMPLE).stdout
    assert "128 x 128" in run("decompress", out, tmp_path / "back.npy").stdout
    np.testing.assert_array_equal(np.load(tmp_path / "back.npy"), zarr.open_array(out)[...])


def test_json_is_all_that_stands_on_stdout(tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    compressed = json.loads(run("compress", SAMPLE, out, "--min-psnr", 28, "--zarr-format", 2, "--json").stdout)
    assert compressed["zarr_format"] == 2
    assert compressed["psnr_db"] > 28
    described = json.loads(run("info", out, "--json").stdout)
    assert described["stored_bytes"] == compressed["stored_bytes"]
    assert described["config"]["min_psnr"] == 28
    assert json.loads(run("verify", out, SAMPLE, "--sample", 0.5, "--json").stdout)["ok"] is True
    assert json.loads(run("decompress", out, tmp_path / "b.tif", "--json").stdout)["format"] == "tiff"
    assert any(model["id"].startswith("vae-2d-s16@") for model in json.loads(run("models", "--json").stdout))
    frame = json.loads(run("info", out / "0.0.0", "--json").stdout)
    assert frame["frame"]["kind"] == "latent"


def test_a_failed_verification_leaves_with_1(tmp_path: Path) -> None:
    run("compress", SAMPLE, tmp_path / "a.zarr", "--ratio", 16)
    chunk = tmp_path / "a.zarr" / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    result = run("verify", tmp_path / "a.zarr", SAMPLE, "--json", status=1)
    assert json.loads(result.stdout)["chunks"] == [[0, 0, 0]]
    assert "1 chunks fail" in result.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("compress", "absent.tif", "out.zarr"), "no such file"),
        (("compress", SAMPLE, "out.zarr", "--chunks", "a,b"), "--chunks a,b: needs integers"),
        (("compress", SAMPLE, "out.zarr", "--window", "1"), "--window 1: needs two numbers"),
        (("compress", SAMPLE, "out.zarr", "--model", "nothing"), "nothing"),
        (("info", "absent.zarr"), "absent.zarr"),
        (("verify", SAMPLE.parent), "no Zarr array"),
        (("decompress", SAMPLE, "absent/out.tif"), "does not exist"),
    ],
)
def test_errors_are_one_line_and_leave_with_2(
    words: tuple[object, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*words, status=2)
    assert result.stderr.startswith("zarr-emcodec: ")
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--debug", "info", str(tmp_path / "absent.zarr")])
    assert isinstance(result.exception, JobError)


def test_demo_offline_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(requirement: str, folder: Path) -> None:
        raise JobError(f"{requirement}: no network")

    monkeypatch.setattr(samples, "_pip_download", offline)
    monkeypatch.setenv("ZARR_EMCODEC_CACHE", str(tmp_path / "cache"))
    shown = run("demo", tmp_path / "d", "--ratio", 16).stdout
    for words in ("could not be fetched", "no network", "JPEG 2000", "Next:", "FlyEM"):
        assert words in shown
    figures = json.loads(run("demo", tmp_path / "d", "--ratio", 16, "--json").stdout)
    assert figures["raw_bytes"] == fibsem().nbytes


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    assert f"Example: zarr-emcodec {command}" in run(command, "--help").stdout


def test_a_real_process_compresses_and_verifies(tmp_path: Path) -> None:
    def process(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-m", "zarr_emcodec.cli.main", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    done = process("compress", str(SAMPLE), str(tmp_path / "a.zarr"), "--ratio", "32", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ratio"] > 20
    assert done.stderr == ""
    assert process("verify", str(tmp_path / "a.zarr"), str(SAMPLE)).returncode == 0
    assert process("--version").stdout.startswith("zarr-emcodec ")
    usage = process("compress")
    assert usage.returncode == 2
    assert "Traceback" not in usage.stderr


def test_without_its_libraries_one_sentence_is_said() -> None:
    code = "import sys; sys.modules['typer'] = None\nfrom zarr_emcodec.cli.main import main\nmain(['info', 'x'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "zarr-emcodec needs typer and rich. Install them with: pip install 'zarr_emcodec[cli]'."
    )


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from zarr_emcodec.cli.main import main\n"
        "try: main(['compress', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'zarr', 'numcodecs', 'onnxruntime', 'torch', 'numba', 'matplotlib', 'tifffile', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
