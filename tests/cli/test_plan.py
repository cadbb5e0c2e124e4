from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from typer.testing import CliRunner

from zarr_emcodec.cli.app import app
from zarr_emcodec.jobs.demo import SAMPLE
from zarr_emcodec.jobs.plan import Plan, differences

if TYPE_CHECKING:
    from pathlib import Path


def run(*words: object, status: int = 0) -> Any:
    result = CliRunner().invoke(app, ["plan", *(str(word) for word in words)])
    assert result.exit_code == status, result.output
    return result


def test_a_plan_in_words(tmp_path: Path) -> None:
    page = tmp_path / "look.html"
    shown = run(SAMPLE, tmp_path / "out.zarr", "--ratio", 40, "--model", "vae-2d-s16", "--chunks", "16,64,64",
                "--region", "0:16,0:64,0:64=8", "--samples", 3, "--preview", page,
                "--max-memory", "2GB").stdout  # fmt: skip
    for words in ("x smaller", "PSNR", "core-hours", "per PB", "a worker at most", "vae-2d-s16@", "MB/s a core"):
        assert words in shown
    assert page.exists()
    assert list(tmp_path.iterdir()) == [page], "nothing else is written"


def test_json_is_the_plan_itself(tmp_path: Path) -> None:
    mask = tmp_path / "mask.npy"
    np.save(mask, np.ones((2, 8, 8), bool))
    done = run(SAMPLE, tmp_path / "out.zarr", "--min-psnr", 28, "--tissue", mask, "--shards", "none", "--samples", 0,
               "--zarr-format", 2, "--chunks", "16,64,64", "--json")  # fmt: skip
    made = Plan.from_dict(json.loads(done.stdout))
    assert (made.zarr_format, made.shards, made.codec["min_psnr"], made.estimate) == (2, None, 28, None)
    assert made.tissue is not None
    assert made.tissue["kind"] == "mask"
    assert done.stderr == ""


def test_thresholds_and_a_lossless_region(tmp_path: Path) -> None:
    done = run(SAMPLE, "out.zarr", "--background-below", 40, "--background-above", 250, "--samples", 0, "--json")
    assert json.loads(done.stdout)["tissue"] == {"kind": "threshold", "below": 40, "above": 250}


def test_effort_is_of_the_plan_and_what_the_array_promises_of_its_regions_too() -> None:
    words = (SAMPLE, "out.zarr", "--min-psnr", 28, "--model", "vae-2d-s16", "--samples", 0, "--json")
    plain, careful = (Plan.from_dict(json.loads(run(*words, *more).stdout)) for more in ((), ("--effort", 3)))
    assert (plain.codec["effort"], careful.codec["effort"]) == (0, 3)
    assert differences(plain, careful) == ("codec",)
    (region,) = Plan.from_dict(
        json.loads(run(*words, "--effort", 3, "--region", "0:16,0:64,0:64=8").stdout)
    ).regions  # fmt: skip
    assert [region["codec"][name] for name in ("effort", "min_psnr")] == [3, 28]
    assert region["ratio"] == 8


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("absent.tif", "out.zarr"), "absent.tif"),
        ((SAMPLE, "out.zarr", "--region", "0:5,3=7"), "--region 0:5,3=7: needs WHERE=RATIO"),
        ((SAMPLE, "out.zarr", "--region", "roi.npy"), "needs WHERE=RATIO"),
        ((SAMPLE, "out.zarr", "--region", "roi.npy=16"), "mask roi.npy: cannot be read"),
        ((SAMPLE, "out.zarr", "--region", "os:absent=16"), "function os:absent: cannot be imported"),
        ((SAMPLE, "out.zarr", "--max-memory", "much"), "--max-memory much: needs a size"),
        ((SAMPLE, "out.zarr", "--max-memory", "1MB"), "a worker would need"),
        ((SAMPLE, "out.zarr", "--shards", "a,b"), "--shards a,b: needs integers"),
        ((SAMPLE, "out.zarr", "--codec", "none"), "emcodec_none"),
        ((SAMPLE, "out.zarr", "--ratio", "9999"), "no model covers ratio 9999"),
        ((SAMPLE, "out.zarr", "--tissue", "a.npy", "--background-below", "3"), "not both"),
        ((SAMPLE, "out.zarr", "--preview", "look.gif"), "ends in .png or .html"),
        ((SAMPLE, "out.zarr", "--preview", "look.png", "--samples", "0"), "no samples"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(
    words: tuple[object, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*words, status=2)
    assert result.stderr.startswith("zarr-emcodec: ")
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_shows_an_example_and_loads_nothing_heavy() -> None:
    heavy = {"tensorstore", "dask", "torch"} & set(sys.modules)
    assert "Example: zarr-emcodec plan" in run("--help").stdout
    assert {"tensorstore", "dask", "torch"} & set(sys.modules) == heavy
