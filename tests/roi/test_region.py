from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from zarr_emcodec.errors import SpecError
from zarr_emcodec.roi.region import cells_of, normal_box

SHAPE, CHUNKS = (20, 37, 50), (8, 16, 10)


def by_hand(mask: Any) -> Any:
    """Cells with a true voxel, found chunk by chunk."""
    out = np.zeros([-(-n // c) for n, c in zip(SHAPE, CHUNKS, strict=True)], np.bool_)
    for index in np.ndindex(out.shape):
        out[index] = mask[tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, CHUNKS, strict=True))].any()
    return out


@st.composite
def some_box(draw: st.DrawFn) -> tuple[slice, ...]:
    starts = [draw(st.integers(0, n - 1)) for n in SHAPE]
    return tuple(slice(a, draw(st.integers(a + 1, n))) for a, n in zip(starts, SHAPE, strict=True))


@settings(max_examples=60, deadline=None)
@given(boxes=st.lists(some_box(), min_size=1, max_size=3))
def test_boxes_and_their_mask_mark_the_same_chunks(boxes: list[tuple[slice, ...]]) -> None:
    mask = np.zeros(SHAPE, np.bool_)
    for box in boxes:
        mask[box] = True
    expected = by_hand(mask)
    assert np.array_equal(cells_of(boxes, SHAPE, CHUNKS), expected)
    assert np.array_equal(cells_of(mask, SHAPE, CHUNKS), expected)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.tuples(*[st.integers(1, 23)] * 3), share=st.sampled_from([0.01, 0.1, 0.9]))
def test_a_coarse_mask_marks_what_its_voxels_cover(seed: int, factor: tuple[int, ...], share: float) -> None:
    coarse = np.random.default_rng(seed).random([-(-n // f) for n, f in zip(SHAPE, factor, strict=True)]) < share
    fine = coarse
    for axis, f in enumerate(factor):
        fine = fine.repeat(f, axis)
    assert np.array_equal(
        cells_of(coarse, SHAPE, CHUNKS, factor=factor), by_hand(fine[tuple(slice(0, n) for n in SHAPE)])
    )


@settings(max_examples=60, deadline=None)
@given(
    points=st.lists(st.tuples(*[st.integers(0, n - 1) for n in SHAPE]), min_size=1, max_size=5),
    radius=st.one_of(st.sampled_from([0, 1, 5, 12.5, 60]), st.tuples(*[st.sampled_from([0, 2.5, 11])] * 3)),
)
def test_points_mark_what_a_ball_around_them_touches(points: list[tuple[int, ...]], radius: Any) -> None:
    where = np.indices(SHAPE).reshape(3, -1).T
    mask = np.zeros(where.shape[0], np.bool_)
    reach = np.broadcast_to(np.asarray(radius, float), (3,))
    for point in points:
        away = np.abs(where - np.array(point))
        scaled = np.where(reach > 0, away / np.where(reach > 0, reach, 1), np.where(away > 0, np.inf, 0))
        mask |= (scaled**2).sum(axis=1) <= 1
    assert np.array_equal(cells_of(np.array(points), SHAPE, CHUNKS, radius=radius), by_hand(mask.reshape(SHAPE)))


def test_points_between_voxels_count_with_the_voxel_before_them() -> None:
    found = cells_of([[7.5, 0.0, 9.9]], SHAPE, CHUNKS)
    assert np.argwhere(found).tolist() == [[0, 0, 0]]


def test_a_mask_in_a_store_is_read_row_by_row() -> None:
    mask = np.random.default_rng(0).random(SHAPE) < 0.001
    stored: Any = zarr.create_array({}, data=mask, chunks=(5, 10, 10))
    asked: list[Any] = []

    class Watched:
        dtype, shape, ndim = stored.dtype, stored.shape, stored.ndim

        def __getitem__(self, part: slice) -> Any:
            asked.append(part.stop - part.start)
            return stored[part]

    assert np.array_equal(cells_of(Watched(), SHAPE, CHUNKS), by_hand(mask))
    assert asked == [8, 8, 4]


def test_two_axes_and_a_proposal() -> None:
    class Proposal:
        boxes = ((slice(0, 1), slice(5, 6)),)

    assert np.argwhere(cells_of(Proposal(), (10, 10), (5, 5))).tolist() == [[0, 1]]
    assert cells_of(np.array([[3, 4], [9, 9]]), (10, 10), (5, 5)).sum() == 2


@pytest.mark.parametrize(
    ("roi", "words", "told"),
    [
        (np.s_[0:21, 0:1, 0:1], {}, "axis 0: 0:21 is not inside the array, which has voxels 0:20"),
        (np.s_[-5:, 0:1, 0:1], {}, "axis 0: -5:20"),
        (np.s_[3:3, 0:1, 0:1], {}, "axis 0: 3:3"),
        (np.s_[0:4:2, 0:1, 0:1], {}, "a step of 2"),
        (np.s_[0:4, 0:1], {}, "box has 2 axes, the array 3"),
        ([np.s_[0:4, 0:1, 0:1], np.s_[0:4, 0:99, 0:1]], {}, "axis 1: 0:99"),
        (np.s_[0:4, 0:1, 0:1], {"radius": 3}, "a box has none"),
        (np.s_[0:4, 0:1, 0:1], {"factor": 3}, "a box has none"),
        (np.zeros((20, 37, 49), bool), {}, r"expected \(20, 37, 50\). Pass factor="),
        (np.zeros((10, 19, 24), bool), {"factor": 2}, r"expected \(10, 19, 25\)\.$"),
        (np.zeros(SHAPE, bool), {"radius": 2}, "a mask has none"),
        (np.zeros(SHAPE, bool), {"factor": 0}, "factor 0: needs a number of at least 1"),
        (np.zeros(SHAPE, "u1"), {}, "a mask is boolean"),
        (np.array([[0, 0, 50]]), {}, r"point 0, \[0.0, 0.0, 50.0\]: outside"),
        (np.array([[0, 0, 0], [0, -1, 0]]), {}, "point 1"),
        (np.array([[0, 0, np.nan]]), {}, "point 0"),
        (np.array([[0, 0, 0]]), {"radius": -1}, "radius -1: needs a number of at least 0"),
        (np.array([[0, 0, 0]]), {"radius": (1, 2)}, "or 3 of them"),
        (np.array([[0, 0, 0]]), {"factor": 2}, "points have none"),
        (np.array([[0, 0]]), {}, r"shape \(n, 3\)"),
        ("everywhere", {}, "a mask is boolean"),
        (None, {}, "a mask is boolean"),
        ([[1, 2, 3], [4, 5]], {}, "not a box, boxes, a mask or points"),
    ],
)
def test_what_is_no_region_of_the_array_is_refused(roi: Any, words: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        cells_of(roi, SHAPE, CHUNKS, **words)


def test_boxes_are_completed() -> None:
    assert normal_box(np.s_[..., 3], SHAPE) == (slice(0, 20), slice(0, 37), slice(3, 4))
    assert normal_box(np.s_[3:5], SHAPE) == (slice(3, 5), slice(0, 37), slice(0, 50))
    assert cells_of(np.s_[3:5], SHAPE, CHUNKS).sum() == 15
    assert cells_of(..., SHAPE, CHUNKS).all()
    assert normal_box(np.s_[:, 5:, :7], SHAPE) == (slice(0, 20), slice(5, 37), slice(0, 7))
