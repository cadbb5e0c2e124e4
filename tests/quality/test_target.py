"""The search finds the edge of any monotone ladder in few looks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zarr_emcodec.quality.target import coarsest_level, finest_level


@given(st.integers(1, 200), st.data())
def test_both_ends_of_a_ladder(n: int, data: st.DataObject) -> None:
    edge = data.draw(st.integers(0, n))
    start = data.draw(st.integers(0, n - 1))
    looks = 0

    def fits(level: int) -> bool:
        nonlocal looks
        looks += 1
        assert 0 <= level < n
        return level >= edge

    assert finest_level(fits, n, start) == (edge if edge < n else None)
    assert looks <= 2 * n.bit_length() + 1
    assert coarsest_level(lambda level: level < edge, n, start) == (edge - 1 if edge else None)
