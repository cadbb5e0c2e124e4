from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.volumes import as_dtype, fibsem
from zarr_emcodec.errors import JobError, PlanMismatchError, SpecError
from zarr_emcodec.jobs import regions, tissue
from zarr_emcodec.jobs.coding import array_with, codec_config, codec_from
from zarr_emcodec.jobs.grid import Box
from zarr_emcodec.jobs.regions import Boxes, Mask, describe_area, identity, mask_bytes, open_area
from zarr_emcodec.jobs.tissue import CELL, Threshold, clear_background, describe_tissue, may_hold_tissue

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from zarr_emcodec._types import Shape

SHAPE = (32, 128, 128)


def upper_half(box: Box) -> bool:
    """A user's function: blocks that begin above the middle."""
    return bool(box[1].start < SHAPE[1] // 2)


NO_FUNCTION = 3


@pytest.fixture(autouse=True)
def fresh() -> None:
    """As in another process: nothing is open."""
    regions._open_area.cache_clear()


def slices(draw: st.DrawFn, shape: Shape) -> Box:
    starts = [draw(st.integers(0, n - 1)) for n in shape]
    return tuple(slice(a, draw(st.integers(a + 1, n))) for a, n in zip(starts, shape, strict=True))


@settings(deadline=None)
@given(st.data())
def test_a_coarse_mask_marks_whole_cells(data: st.DataObject) -> None:
    scale = tuple(data.draw(st.integers(1, 5)) for _ in range(3))
    shape = tuple(data.draw(st.integers(1, 17)) for _ in range(3))
    cells = (
        np.random.default_rng(data.draw(st.integers(0, 99))).random(
            [-(-n // f) for n, f in zip(shape, scale, strict=True)]
        )
        < 0.2
    )
    fine = cells
    for axis, f in enumerate(scale):
        fine = np.repeat(fine, f, axis)
    fine = fine[tuple(slice(0, n) for n in shape)]
    box = data.draw(st.composite(slices)(shape))
    mask = Mask(cells, scale)
    np.testing.assert_array_equal(mask.inside(box), fine[box])
    assert mask.touches(box) == bool(fine[box].any())


@settings(deadline=None)
@given(st.data())
def test_boxes_mark_what_they_hold(data: st.DataObject) -> None:
    shape = (7, 9, 5)
    mine = [data.draw(st.composite(slices)(shape)) for _ in range(data.draw(st.integers(1, 3)))]
    fine = np.zeros(shape, bool)
    for box in mine:
        fine[box] = True
    box = data.draw(st.composite(slices)(shape))
    area = open_area(describe_area(mine, shape), shape)
    assert isinstance(area, Boxes)
    np.testing.assert_array_equal(area.inside(box), fine[box])
    assert area.touches(box) == bool(fine[box].any())


def test_boxes_are_written_in_several_ways() -> None:
    expected = {"kind": "boxes", "boxes": [[[0, 16], [64, 128], [0, 128]]]}
    for where in (np.s_[:16, 64:, :], [np.s_[:16, 64:, :]], [[(0, 16), (64, 128), (0, 999)]]):
        assert describe_area(where, SHAPE) == expected


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ([np.s_[:16, :64]], "for each of 3 axes"),
        ([3], "for each of 3 axes"),
        ([[("a", "b")] * 3], "for each of 3 axes"),
        ([np.s_[40:50, :, :]], "outside the array"),
        ([np.s_[5:5, :, :]], "or is empty"),
        ([np.s_[-5:5, :, :]], "outside the array"),
        ("tests.jobs.test_regions:nothing", "cannot be imported"),
        ("no_such_module:nothing", "cannot be imported"),
        ("tests.jobs.test_regions:NO_FUNCTION", "is a int, not a function"),
        ("math:floor", "no source text"),
    ],
)
def test_areas_that_cannot_be_are_refused(where: Any, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        describe_area(where, SHAPE)


def test_a_function_says_which_blocks() -> None:
    described = describe_area("tests.jobs.test_regions:upper_half", SHAPE)
    area = open_area(json.loads(json.dumps(described)), SHAPE)
    assert area.touches(np.s_[0:16, 0:64, 0:64])
    assert not area.touches(np.s_[0:16, 64:128, 0:64])
    assert area.inside(np.s_[0:2, 64:66, 0:2]).sum() == 0
    with pytest.raises(PlanMismatchError, match="upper_half has changed"):
        open_area({**described, "sha256": "0"}, SHAPE)


def save(cells: NDArray[Any], kind: str, folder: Path) -> str:
    path = folder / f"mask.{kind}"
    if kind == "npy":
        np.save(path, cells)
    elif kind == "tif":
        tifffile.imwrite(path, cells)
    else:
        zarr.create_array(path, data=cells)
    return str(path)


@pytest.mark.parametrize("kind", ["npy", "tif", "zarr"])
def test_masks_come_from_files(kind: str, tmp_path: Path) -> None:
    cells = np.zeros((2, 8, 8), "u1")
    cells[1, 2:5, 3] = 7
    location = save(cells, kind, tmp_path)
    described = describe_area(location, SHAPE)
    area = open_area(described, SHAPE)
    assert isinstance(area, Mask)
    assert area.scale == (16, 16, 16)
    np.testing.assert_array_equal(area.cells, cells > 0)
    assert mask_bytes([described, None]) == 128
    (tmp_path / "copy").mkdir()
    moved = describe_area(save((cells > 0).astype("u1") * 3, kind, tmp_path / "copy"), SHAPE)
    assert moved != described
    assert identity(moved) == identity(described)


def test_a_mask_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(np.ones((2, 8, 8), bool), "npy", tmp_path)
    monkeypatch.chdir(tmp_path)
    described = describe_area("mask.npy", SHAPE)
    monkeypatch.chdir("/")
    assert open_area(described, SHAPE).touches(np.s_[0:1, 0:1, 0:1])


def test_a_mask_that_changes_is_noticed(tmp_path: Path) -> None:
    cells = np.zeros((2, 8, 8), bool)
    described = describe_area(save(cells, "npy", tmp_path), SHAPE)
    cells[0, 0, 0] = True
    save(cells, "npy", tmp_path)
    with pytest.raises(PlanMismatchError, match=r"mask\.npy has changed since the plan was made"):
        open_area(described, SHAPE)


@pytest.mark.parametrize(
    ("cells", "array", "scale"),
    [
        ((32, 128, 128), SHAPE, (1, 1, 1)),
        ((1, 1, 1), SHAPE, (32, 128, 128)),
        ((63, 63), (1000, 1000), (16, 16)),
        ((62, 63), (1000, 1000), (16, 16)),
        ((2, 8), SHAPE, None),
        ((20, 128, 128), SHAPE, None),
        ((64, 128, 128), SHAPE, None),
    ],
)
def test_the_scale_of_a_mask_is_a_whole_factor(cells: Shape, array: Shape, scale: Shape | None, tmp_path: Path) -> None:
    location = save(np.ones(cells, bool), "npy", tmp_path)
    if scale is None:
        with pytest.raises(SpecError, match="Resample it"):
            describe_area(location, array)
        return
    area = open_area(describe_area(location, array), array)
    assert isinstance(area, Mask)
    assert area.scale == scale
    assert area.inside(tuple(slice(0, n) for n in array)).all()


def test_masks_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("absent.npy", "absent.tif", "absent.zarr"):
        with pytest.raises(JobError, match=r"absent\."):
            describe_area(str(tmp_path / name), SHAPE)
    (tmp_path / "text.npy").write_text("none")
    with pytest.raises(JobError, match=r"text\.npy: cannot be read"):
        describe_area(tmp_path / "text.npy", SHAPE)
    monkeypatch.setattr(regions, "_MAX_MASK_VOXELS", 100)
    with pytest.raises(SpecError, match="Give a coarser one"):
        describe_area(save(np.ones((2, 8, 8), bool), "npy", tmp_path), SHAPE)


def cleared(voxels: NDArray[Any], where: Any, config: dict[str, Any], chunks: Shape, fill: float = 0) -> NDArray[Any]:
    shape = voxels.shape
    return clear_background(
        voxels,
        tuple(slice(0, n) for n in shape),
        tissue=describe_tissue(where, shape),
        shape=shape,
        chunks=chunks,
        fill_value=fill,
        config=config,
    )


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_what_is_cleared_comes_back_exactly(data: st.DataObject) -> None:
    ratio = data.draw(st.sampled_from([16, 64, 300]))
    fill = data.draw(st.sampled_from([0, 17]))
    config = codec_config({"ratio": ratio, "background": fill})
    chunks, values = (8, 64, 64), fibsem()[:8, :96, :70].copy()
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    fraction = data.draw(st.sampled_from([0.02, 0.5, 0.98, 1.0]))
    cell = data.draw(st.sampled_from([1, 4, 16, 32]))
    inside = rng.random((1, -(-96 // cell), -(-70 // cell))) < fraction
    inside = np.repeat(np.repeat(np.repeat(inside, 8, 0), cell, 1), cell, 2)[:, :96, :70]
    box = np.s_[0:8, 0:96, 0:70]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tissue, "open_area", lambda *_: Mask(inside, (1, 1, 1)))
        out = tissue.clear_background(
            values,
            box,
            tissue={"kind": "mask"},
            shape=values.shape,
            chunks=chunks,
            fill_value=fill,
            config=config,
        )
    changed = out != values
    assert not (changed & inside).any()
    assert (out[changed] == fill).all()
    for y, x in ((0, 0), (0, 64), (64, 0), (64, 64)):
        place = np.s_[:, y : y + 64, x : x + 64]
        chunk = np.full(chunks, fill, "u1")
        chunk[tuple(slice(0, n) for n in out[place].shape)] = out[place]
        decoded = codec_from(config).decode(codec_from(config).encode(chunk))
        here = decoded[tuple(slice(0, n) for n in out[place].shape)]
        assert (here[changed[place]] == fill).all()


def test_without_tissue_a_chunk_is_all_fill_value() -> None:
    values = fibsem().copy()
    out = cleared(values, [np.s_[:, 64:, :]], codec_config(64), (16, 64, 64), fill=0)
    assert (out[:, :64] == 0).all()
    np.testing.assert_array_equal(out[:, 64:], values[:, 64:])


def test_what_changes_nothing_is_not_copied() -> None:
    values = fibsem()
    assert cleared(values, None, codec_config(64), (16, 64, 64)) is values
    assert cleared(values, [np.s_[:, :, :]], codec_config(64), (16, 64, 64)) is values


def test_too_little_background_keeps_its_voxels() -> None:
    values = fibsem().copy()
    out = cleared(values, [np.s_[1:, :, :]], codec_config(500), (32, 128, 128))
    np.testing.assert_array_equal(out[0] == 0, np.ones((128, 128), bool))  # a face costs a few bytes
    ragged = np.random.default_rng(0).random((1, 8, 8)) < 0.97
    ragged[0, 3, 3], ragged[0, 0, 0] = False, True
    boxes = [np.s_[:, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16] for y, x in zip(*np.nonzero(ragged[0]), strict=True)]
    assert cleared(values, boxes, codec_config(500), (32, 128, 128)) is values
    exact = cleared(values, boxes, codec_config({"max_error": 0}), (32, 128, 128))
    assert (exact[:, 48:64, 48:64] == 0).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_thresholds_take_whole_cells_only(dtype: str) -> None:
    values = as_dtype(fibsem()[:16], dtype)
    dark = values.min()
    values[:, :64, 64:] = dark  # resin
    values[:, 40, 100] = values.max()  # and one bright voxel in it
    values[3, 100, 20] = dark  # and a dark one in tissue
    below = float(dark)
    fill = float(values.dtype.type(below - 1)) if dtype != "uint8" else 0
    out = cleared(values, Threshold(below=below), codec_config({"ratio": 8, "background": fill}), (16, 128, 128), fill)
    changed = out != values
    expected = np.zeros_like(changed)
    expected[:, :64, 64:] = True
    expected[:, 32:48, 96:112] = False
    assert changed[expected].all()
    assert not changed[~expected & (values != dark)].any()
    assert (out[changed] == np.asarray(fill, values.dtype)).all()
    assert CELL == 16


def test_bright_background_is_found_too() -> None:
    values = fibsem()[:16].copy()
    values[:, :, :64] = 250
    out = cleared(values, Threshold(above=250), codec_config(16), (16, 128, 128))
    assert (out[:, :, :64] == 0).all()


@pytest.mark.parametrize("words", [{}, {"below": 5, "above": 5}, {"below": 9, "above": 3}, {"below": float("nan")}])
def test_thresholds_leave_something_between_them(words: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="below under above"):
        Threshold(**words)


def test_blocks_without_tissue_are_known_without_reading() -> None:
    known = describe_tissue([np.s_[:16, :, :]], SHAPE)
    assert may_hold_tissue(known, np.s_[0:16, 0:64, 0:64], SHAPE)
    assert not may_hold_tissue(known, np.s_[16:32, 0:64, 0:64], SHAPE)
    for unknown in (None, describe_tissue(Threshold(below=3), SHAPE)):
        assert may_hold_tissue(unknown, np.s_[16:32, 0:64, 0:64], SHAPE)


def test_arrays_of_others_are_not_written_to() -> None:
    for words in ({}, {"zarr_format": 2}, {"shards": (4, 8)}):
        plain: Any = zarr.create_array(zarr.storage.MemoryStore(), shape=(8, 8), chunks=(4, 4), dtype="u1", **words)
        with pytest.raises(SpecError, match="not by one of this package"):
            array_with(plain, codec_config(16))
