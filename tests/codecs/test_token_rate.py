"""The search for a price ends, close below the room, whatever the sizes do."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zarr_emcodec.codecs.token_rate import TRIES, PriceSearch

CLOSE = 0.004


def searched(
    fill_at: Callable[[float], float], *, guess: float = 0.1, ceiling: float = 2.0
) -> tuple[list[float], float]:
    """Prices that were tried, and how full the frame is that was kept."""
    search = PriceSearch(0.0, fill_at(0.0), guess=guess, ceiling=ceiling, close=CLOSE)
    tried, kept = [], math.nan
    while search.price is not None:
        tried.append(search.price)
        fill = fill_at(search.price)
        kept = fill if search.tell(fill) else kept
    return tried, kept


@given(st.floats(1.001, 1.6), st.floats(0.3, 1.0), st.floats(0.5, 2.0), st.floats(0.01, 1.0))
def test_a_falling_size_is_met_closely_from_below(over: float, slope: float, bend: float, guess: float) -> None:
    tried, kept = searched(lambda price: max(over - slope * (price / 2) ** bend, 0.2), guess=guess)
    if over - slope > 1:  # even the ceiling is not enough
        assert tried[-1] == 2.0
        return
    assert kept <= 1
    assert kept >= 1 - CLOSE or len(tried) == TRIES
    assert len(tried) <= TRIES


def test_what_frames_of_tissue_do_takes_a_handful_of_tries() -> None:
    for over in np.linspace(1.01, 1.15, 15):
        fills = partial(lambda over, price: over * (1 - 0.25 * (1 - math.exp(-3 * price))), float(over))
        tried, kept = searched(fills, guess=over - 0.98)
        assert 1 - CLOSE <= kept <= 1
        assert len(tried) <= 5


def test_sizes_in_steps_end_the_search_with_the_fullest_that_fits() -> None:
    sizes = np.array([64, 62, 59, 50, 41, 40]) / 60  # a token more or less is more than what is close
    tried, kept = searched(lambda price: sizes[min(int(price * 5), 5)])
    assert kept == pytest.approx(59 / 60)
    assert len(tried) <= TRIES


def test_sizes_that_rise_again_do_not_mislead_the_choice() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        wiggle = rng.normal(0, 0.01, 64)
        tried, kept = searched(partial(lambda wiggle, price: 1.06 - 0.2 * price + wiggle[int(price * 31)], wiggle))
        assert kept <= 1
        assert len(tried) <= TRIES


def test_what_never_fits_is_kept_at_the_highest_price() -> None:
    tried, kept = searched(lambda price: 1.5 - 0.1 * price, ceiling=2.0)
    assert tried == sorted(tried)
    assert tried[-1] == 2.0
    assert kept == pytest.approx(1.3)
