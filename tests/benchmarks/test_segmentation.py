"""Self-checks of the segmentation scores: known cuts and joins cost what theory says."""

from __future__ import annotations

import doctest
from types import ModuleType

import numpy as np
import pytest

HALVES = np.repeat([[1, 2]], 8, axis=1).reshape(1, 1, 16)


def test_identical_segmentations_cost_nothing_whatever_their_numbers(segmentation: ModuleType) -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 9, (2, 30, 30))
    renamed = np.array([5, 40, 3, 22, 1, 7, 90, 11, 2])[truth]
    error = segmentation.segmentation_error(renamed, truth)
    assert error == {"vi_split": pytest.approx(0, abs=1e-9), "vi_merge": pytest.approx(0, abs=1e-9), "arand": 0}


def test_two_equal_halves_joined_are_a_bit_of_merging(segmentation: ModuleType) -> None:
    error = segmentation.segmentation_error(np.ones_like(HALVES), HALVES)
    assert error["vi_merge"] == pytest.approx(1)
    assert error["vi_split"] == pytest.approx(0)
    assert error["arand"] == pytest.approx(1 - 2 * 0.5 / 1.5)  # sum p_ij^2 = 1/2, candidate 1, truth 1/2


def test_a_half_cut_in_the_middle_is_half_a_bit_of_splitting(segmentation: ModuleType) -> None:
    cut = np.where(np.arange(16) >= 12, 3, HALVES)
    error = segmentation.segmentation_error(cut, HALVES)
    assert error["vi_split"] == pytest.approx(0.5)
    assert error["vi_merge"] == pytest.approx(0)
    assert error["arand"] == pytest.approx(1 - 2 * 0.375 / (0.375 + 0.5))


def test_background_of_the_truth_is_left_out(segmentation: ModuleType) -> None:
    truth = np.concatenate([HALVES, np.zeros_like(HALVES)], axis=2)
    candidate = np.concatenate([HALVES, 7 + np.arange(16).reshape(1, 1, 16)], axis=2)
    assert segmentation.segmentation_error(candidate, truth)["vi_split"] == pytest.approx(0)


def test_a_membrane_with_a_gap_still_parts_two_objects(segmentation: ModuleType) -> None:
    logits = np.full((1, 60, 60), -6.0)
    logits[0, 29:32] = 6.0
    logits[0, 29:32, 30:32] = -6.0  # connected voxels alone would join both sides through it
    found = segmentation.objects(logits)[0]
    assert len(np.unique(found)) == 2
    assert found[5, 5] == found[20, 55] != found[55, 5]


def test_a_section_without_membranes_is_one_object(segmentation: ModuleType) -> None:
    found = segmentation.objects(np.full((2, 20, 20), -6.0))
    assert [len(np.unique(section)) for section in found] == [1, 1]
    assert found[0, 0, 0] != found[1, 0, 0]


def test_specks_between_drawn_membranes_are_background(segmentation: ModuleType) -> None:
    drawn = np.zeros((1, 40, 40), bool)
    drawn[0, 20] = drawn[0, 10:16, 10] = drawn[0, 10:16, 15] = drawn[0, 10, 10:16] = drawn[0, 15, 10:16] = True
    true = segmentation.true_objects(drawn)[0]
    assert true[12, 12] == true[20, 5] == 0
    assert len(np.unique(true[true > 0])) == 2


def test_examples_of_the_docstrings(segmentation: ModuleType) -> None:
    assert doctest.testmod(segmentation).failed == 0
    assert doctest.testmod(segmentation).attempted
