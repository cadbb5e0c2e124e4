from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.cli.test_cli import run
from tests.jobs.recompressing import small_plan, source_of
from tests.volumes import fibsem
from zarr_emcodec.errors import JobError
from zarr_emcodec.jobs.sources import Source

LAYOUT = ("--chunks", "16,64,64", "--shards", "16,64,128", "--serial")


def test_a_volume_at_once_and_again(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", fibsem())
    words = ("recompress", tmp_path / "in.npy", tmp_path / "out.zarr", "--ratio", 16, *LAYOUT)
    shown = run(*words, "--embed-model", "--log", tmp_path / "log").stdout
    for expected in ("all blocks done and read back", "x smaller", "8 latent", "PSNR", "4 done, 0 of them before"):
        assert expected in shown
    again = run(*words)
    assert "4 done, 4 of them before" in again.stdout
    assert "going on: 4 of 4 blocks are done" in again.stderr
    assert (tmp_path / "out.zarr" / ".emcodec").is_dir()
    events = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
    assert events == ["begun", "workers", "done", "done", "done", "done", "ended"]
    assert "all well" in run("verify", tmp_path / "out.zarr", tmp_path / "in.npy").stdout


def test_a_plan_from_a_file(tmp_path: Path) -> None:
    source_of(tmp_path)
    planned = run("plan", tmp_path / "in.npy", tmp_path / "out.zarr", "--max-error", 0, "--chunks", "8,32,32",
                  "--samples", 0, "--json").stdout  # fmt: skip
    (tmp_path / "plan.json").write_text(planned)
    report = json.loads(run("recompress", tmp_path / "plan.json", "--serial", "--json").stdout)
    assert report["ok"] is True
    assert report["digest"] == json.loads(planned)["digest"]
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "out.zarr")[...], np.load(tmp_path / "in.npy"))
    changed = {**json.loads(planned), "zarr_format": 2}
    (tmp_path / "plan.json").write_text(json.dumps(changed))
    assert "changed by hand" in run("recompress", tmp_path / "plan.json", "--serial", status=2).stderr


def test_effort_goes_into_the_plan_and_the_array(tmp_path: Path) -> None:
    source_of(tmp_path)
    words = (tmp_path / "in.npy", tmp_path / "out.zarr", "--max-error", 0, "--chunks", "8,32,32", "--effort", 2)
    planned = json.loads(run("plan", *words, "--samples", 0, "--json").stdout)
    report = json.loads(run("recompress", *words, "--serial", "--json").stdout)
    assert report["digest"] == planned["digest"]
    told = json.loads((tmp_path / "out.zarr" / "zarr.json").read_text())
    assert '"effort": 2' in json.dumps(told["codecs"])


def test_a_pyramid_is_written_level_by_level(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.tile(fibsem()[:4], (1, 3, 3)))
    words = (
        "recompress",
        tmp_path / "in.npy",
        tmp_path / "out.zarr",
        "--levels",
        "rebuild",
        "--serial",
        "--max-error",
        0,
    )
    assert run(*words).stdout.count("all blocks done") == 2
    report = json.loads(run(*words, "--json").stdout)
    assert list(report["levels"]) == ["s0", "s1"]
    assert zarr.open_array(tmp_path / "out.zarr" / "s1").shape == (2, 192, 192)
    assert "a plan is of one array" in run("recompress", "plan.json", "--levels", "every", status=2).stderr


def test_failed_blocks_leave_with_1_and_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Source.read

    def read(self: Source, box: tuple[slice, ...]) -> object:
        if box[0].start == 8:
            raise JobError("the tape is torn")
        return original(self, box)

    monkeypatch.setattr(Source, "read", read)
    (tmp_path / "plan.json").write_text(json.dumps(small_plan(tmp_path).to_dict()))
    shown = run("recompress", tmp_path / "plan.json", "--serial", "--retries", 0, status=1).stdout
    assert "4 of 8 blocks are not done; run the same command again" in shown
    assert shown.count("the tape is torn (1 tries)") == 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("absent.json",), "is no plan"),
        (("in.npy", "--serial"), "is no plan"),
        (("plan.json", "--ratio", 3), "a plan decides on codec and layout"),
        (("in.npy", "no/such/folder", "--serial"), "does not exist"),
        (("in.npy", "out.zarr", "--max-memory", "1MB"), "a worker would need"),
    ],
)
def test_errors_are_one_line_and_leave_with_2(
    words: tuple[object, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps(small_plan(tmp_path).to_dict()))
    result = run("recompress", *words, status=2)
    assert told in result.stderr
    assert result.stderr.count("\n") == 1


def test_help_shows_an_example() -> None:
    assert "Example: zarr-emcodec recompress" in run("recompress", "--help").stdout
