"""The exactness rule: the bound is reached, holds in any order, and fails just above."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zarr_emcodec.entropy.exact import LIMIT, Layer, check_exact, partial_sum_bound, requantise
from zarr_emcodec.errors import ModelError

RNG = np.random.default_rng(5)


def _orders(terms: np.ndarray[Any, Any]) -> set[float]:
    """Sums of the terms in float32, one by one in several orders, pairwise and in blocks."""
    orders = [terms, terms[::-1], np.sort(terms), np.sort(terms)[::-1], *(RNG.permutation(terms) for _ in range(20))]
    sums = {float(np.cumsum(order, dtype=np.float32)[-1]) for order in orders}
    sums |= {float(order.sum(dtype=np.float32)) for order in orders}
    return sums | {float(order.reshape(8, -1).cumsum(axis=1, dtype=np.float32)[:, -1].sum()) for order in orders}


@pytest.mark.parametrize("shape", [(3, 4), (5, 2, 3, 3), (2, 3, 2, 3, 3)])
def test_bound_is_reached_by_an_adversarial_input_and_not_passed(shape: tuple[int, ...]) -> None:
    weight = RNG.integers(-127, 128, shape)
    bias = RNG.integers(-5000, 5000, shape[0])
    bound = partial_sum_bound(weight, bias, 255)
    flat = weight.reshape(shape[0], -1)
    for channel in range(shape[0]):
        sign = 1 if bias[channel] >= 0 else -1
        worst = sign * 255 * np.sign(flat[channel])
        assert abs(int(flat[channel] @ worst) + int(bias[channel])) == bound[channel]
    anything = RNG.integers(-255, 256, (flat.shape[1], 500))
    assert (np.abs(flat @ anything + bias[:, None]).max(axis=1) <= bound).all()


def test_float32_sums_below_the_limit_are_exact_in_any_order_and_above_are_not() -> None:
    weight = RNG.integers(1, 128, (1, 1024)).astype(np.float32)
    bias = np.zeros(1, np.float32)
    within = int((LIMIT - 1) // weight.sum())
    check_exact([Layer("within", weight, bias, within)])
    for _ in range(20):
        terms = weight[0] * RNG.integers(-within, within + 1, 1024)
        assert _orders(terms.astype(np.float32)) == {float(terms.astype(np.int64).sum())}
    beyond = 32 * within + 1
    with pytest.raises(ModelError, match="beyond"):
        check_exact([Layer("beyond", weight, bias, beyond)])
    terms = (weight[0] * beyond).astype(np.float32)
    assert len(_orders(terms)) > 1


def test_refusal_names_layer_and_channel() -> None:
    good = Layer("first", np.ones((2, 3, 3, 3)), np.zeros(2), 100)
    weight = np.ones((4, 3, 3, 3), np.int8)
    weight[2] = 127
    bad = Layer("second", weight, np.zeros(4, np.int32), 5000)
    with pytest.raises(ModelError, match=r"'second'.*channel 2 can reach 17145000"):
        check_exact([good, bad])


def test_rounding_of_the_shift_is_held_to_the_limit_too() -> None:
    layer = Layer("edge", np.array([[1]]), np.array([0]), LIMIT - 8)
    check_exact([layer, layer._replace(shift=3)])
    with pytest.raises(ModelError, match="edge"):
        check_exact([layer._replace(shift=4)])


@pytest.mark.parametrize(
    ("weight", "bias"),
    [
        (np.array([[0.5]]), np.array([0])),
        (np.array([[np.nan]]), np.array([0])),
        (np.array([[np.inf]]), np.array([0])),
        (np.array([[1]]), np.array([0.25])),
        (np.array([[1]]), np.array([1e300])),
        (np.array([[1]]), np.array([0, 0])),
        (np.array([1]), np.array([0])),
        (np.array([["1"]]), np.array([0])),
    ],
)
def test_what_is_not_a_convolution_of_whole_numbers_is_refused(weight: Any, bias: Any) -> None:
    with pytest.raises(ModelError, match="'odd'"):
        check_exact([Layer("odd", weight, bias, 1)])


@given(st.lists(st.integers(-(2**23), 2**23), min_size=1), st.integers(0, 22))
def test_requantise_is_the_same_in_float32_and_integers(sums: list[int], shift: int) -> None:
    exact = [min(max((2 * s + (1 << shift)) // (2 << shift), -1000), 127) for s in sums]
    assert requantise(np.array(sums, np.int64), shift, -1000, 127).tolist() == exact
    as_float = requantise(np.array(sums, np.float32), shift, -1000, 127)
    assert as_float.dtype == np.float32
    assert as_float.tolist() == exact
