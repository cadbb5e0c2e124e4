"""In which order sections are coded: every one once, its references before it and in its own part."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.codecs.reference import turns_of
from zarr_emcodec.codecs.context_order import MOST_SECTIONS, Turn, part_counts, reach_of, turns
from zarr_emcodec.codecs.context_walk import rows_of

COUNTS = st.lists(st.integers(1, 40), min_size=1, max_size=6)
REACHES = st.integers(2, 16)


@given(COUNTS, REACHES)
def test_every_section_is_coded_once_and_knows_its_references(counts: list[int], reaches: int) -> None:
    part = np.repeat(np.arange(len(counts)), counts)
    known: set[int] = set()
    for turn in turns(counts, reaches):
        assert len({len(array) for array in turn}) == 1
        assert (np.diff(turn.sections) > 0).all()
        for section, reach, before, after in zip(*(array.tolist() for array in turn), strict=True):
            if reach:
                assert {before, after} <= known
                assert before < section
                assert after in (before, 2 * section - before)
                assert part[before] == part[section] == part[after]
            else:
                assert before == after
                assert part[section] not in part[list(known)]  # the first of its part
        assert not known & set(turn.sections.tolist())
        known |= set(turn.sections.tolist())
    assert known == set(range(sum(counts)))


@given(COUNTS, REACHES)
def test_parts_know_nothing_of_each_other(counts: list[int], reaches: int) -> None:
    """What a part's turns are does not depend on which parts are beside it."""
    starts = np.cumsum([0, *counts])
    together: list[list[Turn]] = [[] for _ in counts]
    for turn in turns(counts, reaches):
        rows = rows_of(turn, counts)
        assert [row.start for row in rows] == [0, *(row.stop for row in rows[:-1])]
        assert rows[-1].stop == len(turn.sections)
        for mine, row, start in zip(together, rows, starts, strict=False):
            if row.stop > row.start:
                sections, reach, before, after = (array[row] for array in turn)
                mine.append(Turn(sections - start, reach, before - start, after - start))
    for mine, count in zip(together, counts, strict=True):
        alone = turns([count], reaches)
        assert len(mine) == len(alone)
        for one, other in zip(mine, alone, strict=True):
            assert [array.tolist() for array in one] == [array.tolist() for array in other]


@given(st.integers(1, 300), REACHES)
def test_distances_halve_as_the_document_says(n: int, reaches: int) -> None:
    found = turns([n], reaches)
    expected = turns_of(n)
    assert [turn.sections.tolist() for turn in found] == [sections for _, sections in expected]
    for turn, (distance, sections) in zip(found, expected, strict=True):
        reach = min(distance.bit_length(), reaches - 1)
        assert turn.reach.tolist() == [reach] * len(sections)
        assert (turn.sections - turn.before).tolist() == [distance] * len(sections)


def test_most_sections_lie_between_two_that_are_near() -> None:
    found = turns([MOST_SECTIONS], 5)
    assert [len(turn.sections) for turn in found] == [1, 1, 2, 4, 8, 16]
    assert [int(turn.reach[0]) for turn in found] == [0, 4, 4, 3, 2, 1]
    # one section of the last turn has nothing behind it
    assert np.flatnonzero(found[-1].after == found[-1].before).tolist() == [15]


@pytest.mark.parametrize("counts", [[1], [5], [3, 1, 40]])
def test_sections_that_refer_to_none_are_one_turn(counts: list[int]) -> None:
    (turn,) = turns(counts, 0)
    every = list(range(sum(counts)))
    assert [array.tolist() for array in turn] == [every, [0] * len(every), every, every]


@given(st.integers(1, 5000))
def test_parts_are_even_and_not_too_long(n: int) -> None:
    counts = part_counts(n)
    assert sum(counts) == n
    assert max(counts) <= MOST_SECTIONS
    assert len(counts) == -(-n // counts[0])
    assert set(counts[:-1]) <= {counts[0]}  # each but the last alike, as the format has it
    assert 1 <= counts[-1] <= counts[0]


@pytest.mark.parametrize("reaches", [2, 5, 16])
def test_a_reach_grows_with_the_distance_up_to_the_last(reaches: int) -> None:
    distance = np.arange(1 << 12)
    reach = reach_of(distance, reaches)
    assert reach[0] == 0
    assert (reach[1:] == np.minimum([int(d).bit_length() for d in distance[1:]], reaches - 1)).all()
