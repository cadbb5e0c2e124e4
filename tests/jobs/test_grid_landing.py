from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zarr

from zarr_emcodec.errors import JobError, SpecError
from zarr_emcodec.jobs import grid
from zarr_emcodec.jobs.landing import landing

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [
        ((25, 625, 625), (13, 625, 625)),
        ((100, 4000, 700), (16, 512, 700)),
        ((3, 10, 10), (3, 10, 10)),
        ((300, 40), (300, 40)),
        ((2, 3, 17, 600, 600), (1, 1, 17, 600, 600)),
    ],
)
def test_default_chunks_leave_no_thin_edge(shape: tuple[int, ...], chunks: tuple[int, ...]) -> None:
    assert grid.fit_chunks(shape) == chunks


def test_default_chunks_waste_at_most_a_quarter() -> None:
    for extent in range(1, 5000, 7):
        chunk = grid.fit_chunks((1, extent, 1))[1]
        padded = math.ceil(extent / chunk) * chunk
        assert padded <= 1.25 * extent + 3
        assert chunk <= 768


@pytest.mark.parametrize("chunks", [(1, 2), (1, 2, 0), (1, 2, 3, 4)])
def test_chunks_that_do_not_fit_the_array_are_refused(chunks: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match="3 axes") as caught:
        grid.fit_chunks((4, 4, 4), chunks)
    assert caught.value.name == "chunks"


@pytest.mark.parametrize("limit", [1, 5000, 100_000, 10**9])
def test_grown_boxes_are_whole_chunks_and_cover_every_voxel_once(limit: int) -> None:
    shape, unit = (37, 90, 70), (8, 32, 32)
    step = grid.grow(unit, shape, 2, limit=limit)
    assert all(s % u == 0 or s == n for s, u, n in zip(step, unit, shape, strict=True))
    assert math.prod(step) * 2 <= max(limit, math.prod(unit) * 2)
    seen = np.zeros(shape, int)
    for box in grid.boxes(shape, step):
        seen[box] += 1
    assert (seen == 1).all()


def test_a_failing_block_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with landing(tmp_path / "out", overwrite=False, keep=tmp_path / "in") as draft:
            draft.mkdir()
            (draft / "half").write_text("written")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_failing_block_keeps_what_was_there(tmp_path: Path) -> None:
    old = zarr.create_array(tmp_path / "out", shape=(4,), dtype="u1")
    old[:] = 7

    def fail() -> None:
        with landing(tmp_path / "out", overwrite=True, keep=tmp_path / "in") as draft:
            draft.mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "out")[:], np.full(4, 7))


def test_overwriting_replaces_a_zarr_and_leaves_no_litter(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "out", shape=(4,), dtype="u1")
    with landing(tmp_path / "out", overwrite=True, keep=tmp_path / "in") as draft:
        draft.write_text("new")
    assert (tmp_path / "out").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_places_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "thesis.tex").write_text("years of work")
    (tmp_path / "in.zarr").mkdir()
    cases: list[tuple[str | Path, str]] = [
        ("s3://bucket/out", "local paths only"),
        (tmp_path / "absent" / "out", "does not exist"),
        (tmp_path / "documents", "holds no Zarr"),
        (tmp_path / "in.zarr", "overlaps the source"),
        (tmp_path / "in.zarr" / "inside", "overlaps the source"),
        (tmp_path, "overlaps the source"),
    ]
    for place, words in cases:
        with pytest.raises(JobError, match=words), landing(place, overwrite=True, keep=tmp_path / "in.zarr"):
            pytest.fail("the block must not run")
    with (
        pytest.raises(JobError, match="exists already"),
        landing(tmp_path / "documents", overwrite=False, keep=tmp_path / "in.zarr"),
    ):
        pytest.fail("the block must not run")
    assert (tmp_path / "documents" / "thesis.tex").exists()
