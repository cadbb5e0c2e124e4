from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

from tests.roi.conftest import tiers_in, write
from zarr_emcodec.cli.app import app
from zarr_emcodec.errors import JobError, SpecError
from zarr_emcodec.roi.inputs import open_array, parse_box, region


def run(*words: object, status: int = 0) -> Any:
    result = CliRunner().invoke(app, ["roi", *(str(word) for word in words)])
    assert result.exit_code == status, result.output
    return result


@pytest.fixture
def all_tiers(monkeypatch: pytest.MonkeyPatch) -> None:
    from zarr_emcodec.roi import tiers

    monkeypatch.setattr(tiers, "tiers_of", lambda _model: ("top", "prior", "full"))


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    write(tmp_path / "a.zarr", "sharded")
    return tmp_path / "a.zarr"


@pytest.mark.usefixtures("all_tiers")
def test_the_whole_way_of_a_region(stored: Path, tmp_path: Path) -> None:
    shown = run("downgrade", stored, "--box", ":,:,:").stdout
    assert "46 chunks decode at 'top' now" in shown
    assert "1 without a tier, 1 not stored" in shown
    found = json.loads(run("upgrade", stored, "--box", "0:8,0:32,0:32", "--box", "9,40,70", "--json").stdout)
    assert (found["changed"], found["rho"]) == (2, 2 / 48)
    counts = json.loads(run("show", stored, "--json").stdout)["counts"]
    assert counts == {"absent": 1, "plain": 1, "top": 44, "prior": 2}
    assert "4.17 % of the chunks" in run("show", stored).stdout
    np.save(tmp_path / "mask.npy", np.ones((3, 13, 16), np.bool_))
    run("downgrade", stored, "--mask", tmp_path / "mask.npy", "--factor", 8)
    (tmp_path / "points.csv").write_text("19, 99, 127\n0 0 0\n\n")
    run("upgrade", stored, "--points", tmp_path / "points.csv", "--radius", 3, "--tier", "full")
    tiers = tiers_in(zarr.open_array(stored, mode="r"))
    assert np.argwhere(tiers == "full").tolist() == [[0, 0, 0], [2, 3, 3]]


def test_proposals_go_from_one_command_to_the_next(stored: Path, tmp_path: Path, monkeypatch: Any) -> None:
    shown = run("propose", stored, "--fraction", 0.8, "--by", "boundary").stdout
    assert "by boundary, the first 20 of" in shown
    proposed = run("propose", stored, "--fraction", 0.1, "--json").stdout
    (tmp_path / "boxes.json").write_text(proposed)
    from zarr_emcodec.roi import tiers

    monkeypatch.setattr(tiers, "tiers_of", lambda _model: ("top", "prior", "full"))
    found = json.loads(run("downgrade", stored, "--boxes", tmp_path / "boxes.json", "--json").stdout)
    assert found["changed"] == len(json.loads(proposed)["boxes"])


def test_a_picture_shows_the_section_and_what_is_restored(stored: Path, tmp_path: Path) -> None:
    from PIL import Image

    run("show", stored, "--picture", tmp_path / "a.png", "--section", 19)
    with Image.open(tmp_path / "a.png") as image:
        assert min(image.size) > 400
    assert "has none of that number" in run("show", stored, "--picture", tmp_path / "b.png", "--section", 20,
                                            status=2).stderr  # fmt: skip
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("upgrade", "a.zarr"), "one of --box, --boxes, --mask and --points says where; found none"),
        (("upgrade", "a.zarr", "--box", "0:1", "--mask", "m.npy"), "found --box and --mask"),
        (("upgrade", "a.zarr", "--box", "a:b"), "--box a:b: needs start:stop"),
        (("upgrade", "a.zarr", "--box", "0:1"), "box has 1 axes, the array 3"),
        (("upgrade", "a.zarr", "--box", "0:99,:,:", "--tier", "full"), "is not inside the array"),
        (("downgrade", "a.zarr", "--box", ":,:,:"), "has tier 'full', not 'top'"),
        (("upgrade", "a.zarr", "--points", "absent.csv"), "--points: cannot be read"),
        (("upgrade", "absent.zarr", "--box", ":,:,:"), "absent.zarr"),
        (("propose", "a.zarr", "--fraction", "2"), "fraction 2: needs"),
        (("propose", "a.zarr", "--block", "3,3,3"), "needs divisors of the chunk"),
        (("show", "plain.zarr"), "which has no tiers"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("a.zarr"))
    zarr.create_array("plain.zarr", data=np.zeros((4, 4, 4), "u1"))
    result = run(*words, status=2)
    assert told in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_regions_are_read_from_files(tmp_path: Path) -> None:
    mask = np.zeros((4, 4), np.bool_)
    zarr.create_array(tmp_path / "m.zarr", data=mask)
    assert region(mask=tmp_path / "m.zarr").shape == (4, 4)
    np.save(tmp_path / "p.npy", np.array([[1, 2, 3]]))
    assert region(points=tmp_path / "p.npy").tolist() == [[1, 2, 3]]
    (tmp_path / "b.json").write_text("[[[0, 4], [1, 2]]]")
    assert region(boxes=tmp_path / "b.json") == [(slice(0, 4), slice(1, 2))]
    assert parse_box("0:4,:7,2:") == (slice(0, 4), slice(None, 7), slice(2, None))
    for name, text in (("b.json", '{"boxes": 3}'), ("c.json", "no")):
        (tmp_path / name).write_text(text)
        with pytest.raises(SpecError, match="needs JSON as"):
            region(boxes=tmp_path / name)
    (tmp_path / "p.csv").write_text("1,2,3\n4,5\n")
    with pytest.raises(SpecError, match="one point a line"):
        region(points=tmp_path / "p.csv")
    (tmp_path / "m.npy").write_bytes(b"nothing")
    with pytest.raises(SpecError, match=r"not a \.npy file"):
        region(mask=tmp_path / "m.npy")


def test_arrays_open_for_writing_where_that_is_possible(stored: Path, tmp_path: Path) -> None:
    assert not open_array(stored, writable=True).read_only
    assert open_array(stored).read_only
    group = zarr.open_group(tmp_path / "g.zarr", mode="w")
    write(group.store_path / "s0")
    group.attrs["multiscales"] = [{"datasets": [{"path": "s0"}], "axes": []}]
    opened = open_array(tmp_path / "g.zarr", writable=True)
    assert opened.path == "s0"
    assert not opened.read_only
    with pytest.raises(JobError, match="absent"):
        open_array(tmp_path / "absent", writable=True)
