"""What a recompression leaves for people to look at, and what it does about a source with holes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.cli.test_cli import run
from tests.jobs.recompressing import small_plan
from tests.volumes import fibsem
from zarr_emcodec.errors import JobError, SpecError
from zarr_emcodec.jobs.plan import Plan, plan
from zarr_emcodec.jobs.pyramid import recompress_image
from zarr_emcodec.jobs.recompress import recompress
from zarr_emcodec.jobs.sources import open_source


def lossy_plan(folder: Path) -> Plan:
    np.save(folder / "in.npy", fibsem())
    return plan(folder / "in.npy", folder / "out.zarr", 16, chunks=(16, 64, 64), shards=None, samples=0)


def test_a_page_with_histograms_and_the_worst_chunks(tmp_path: Path) -> None:
    made = lossy_plan(tmp_path)
    found = recompress(made, engine="serial", report=tmp_path / "look.html")
    page = (tmp_path / "look.html").read_text()
    assert "Everything that was looked at is well." in page
    for words in (
        made.digest,
        "Chunks by PSNR",
        "Voxels by difference",
        f"{found.n_done:,} of {found.n_blocks:,} blocks",
    ):
        assert words in page
    assert page.count("<img") == 3 * min(8, found.n_blocks)
    told = recompress(made, engine="serial", report=tmp_path / "look.json")  # of a job that is done already
    data = json.loads((tmp_path / "look.json").read_text())
    assert data["n_before"] == data["n_done"] == told.n_blocks
    assert data["measured"]["psnr_db"] == pytest.approx(found.psnr_db)
    assert sum(data["measured"]["chunk_db"].values()) == data["measured"]["chunks_compared"] == found.n_blocks


def test_blocks_that_failed_are_findings(tmp_path: Path) -> None:
    made = small_plan(tmp_path)
    poison = tmp_path / "out.zarr" / "c" / "1" / "0" / "1"

    def poisoned(event: object) -> None:
        poison.mkdir(parents=True, exist_ok=True)  # a folder where an object is to be

    found = recompress(made, engine="serial", retries=0, listener=poisoned, report=tmp_path / "look.json")
    assert [failure.coords for failure in found.failed] == [(1, 0, 1)]
    (finding,) = json.loads((tmp_path / "look.json").read_text())["measured"]["findings"]
    assert finding["chunk"] == [1, 0, 2]
    assert finding["reason"] == found.failed[0].reason


def test_names_that_say_no_kind_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"ends in \.html or \.json"):
        recompress(small_plan(tmp_path), engine="serial", report=tmp_path / "look.pdf")
    assert not (tmp_path / "out.zarr").exists()
    with pytest.raises(JobError, match="cannot be written"):
        recompress(small_plan(tmp_path), engine="serial", report=tmp_path / "no" / "look.json")


@pytest.fixture
def holed(tmp_path: Path) -> Path:
    """16 x 64 x 64 in four chunks of which one was lost."""
    array = zarr.create_array(tmp_path / "in.zarr", shape=(16, 64, 64), chunks=(8, 32, 64), dtype="u1")
    array[:] = fibsem()[:16, :64, :64]
    (tmp_path / "in.zarr" / "c" / "1" / "0" / "0").unlink()
    return tmp_path / "in.zarr"


def test_chunks_that_the_source_lacks_are_fill_or_failures_as_asked(holed: Path, tmp_path: Path) -> None:
    words: dict[str, Any] = {"codec": {"max_error": 0}, "chunks": (8, 32, 64), "shards": None, "samples": 0}
    strict = plan(holed, tmp_path / "out.zarr", missing="error", **words)
    with open_source(holed, missing="error") as volume:
        assert plan(volume, tmp_path / "out.zarr", **words).missing == "error"
    report = recompress(Plan.from_dict(strict.to_dict()), engine="serial", retries=0)
    assert [failure.coords for failure in report.failed] == [(1, 0, 0)]
    assert report.n_done == 3
    lenient = plan(holed, tmp_path / "out.zarr", **words)
    assert lenient.digest == strict.digest, "what is stored is the same"
    again = recompress(lenient, engine="serial")
    assert again.ok
    assert (again.n_before, again.n_empty) == (3, 1)


def test_coarser_levels_are_made_of_what_is_there(tmp_path: Path) -> None:
    values = np.zeros((4, 384, 384), np.uint8)
    values[:, :128, :128] = fibsem()[:4]
    np.save(tmp_path / "in.npy", values)
    planning = {"missing": "error", "chunks": (4, 128, 128), "shards": None}
    found = recompress_image(
        tmp_path / "in.npy", tmp_path / "out.zarr", {"max_error": 0}, planning=planning, engine="serial"
    )
    assert found.ok
    assert [level.n_empty for level in found.levels.values()] == [8, 3]


def test_the_commands_say_so_too(holed: Path, tmp_path: Path) -> None:
    words = (holed, tmp_path / "out.zarr", "--max-error", 0, "--chunks", "8,32,64", "--shards", "none", "--missing",
             "error")  # fmt: skip
    assert json.loads(run("plan", *words, "--samples", 0, "--json").stdout)["missing"] == "error"
    more = ("--serial", "--retries", 0, "--report", tmp_path / "look.html")
    assert "3 done" in run("recompress", *words, *more, status=1).stdout
    assert "1 findings." in (tmp_path / "look.html").read_text()
    told = run("recompress", *words, *more, "--levels", "every", status=2).stderr
    assert "--report: is of one array" in told
