"""Integer weights in, a proof or a ModelError out: which networks may choose a table index.

Float32 holds every integer up to 2**24, so a convolution of integers whose partial sums all stay below that is exact
in any order of summation: on any runtime, device, thread count and batch. This module computes the worst case from the
weights; knows no network beyond "weights, bias, largest activation".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zarr_emcodec.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

LIMIT = 1 << 24
"""Sums must stay below: 2**24 + 1 is the first integer that float32 cannot hold."""


class Layer(NamedTuple):
    """One convolution of integers with the requantisation behind it.

    ``weight`` has shape (out, in, ...) (transpose that of a transposed convolution), ``bias`` shape (out,), both
    whole numbers of any dtype; ``activation_max`` bounds the absolute value of the inputs; ``shift`` is that of the
    `requantise` that follows, 0 where there is none.
    """

    name: str
    weight: NDArray[Any]
    bias: NDArray[Any]
    activation_max: int
    shift: int = 0


def partial_sum_bound(weight: NDArray[Any], bias: NDArray[Any], activation_max: int) -> NDArray[np.int64]:
    """Largest absolute value that any partial sum can take, per output channel.

    Parameters
    ----------
    weight : ndarray, shape (out, in, ...), whole numbers
    bias : ndarray, shape (out,), whole numbers
    activation_max : int
        Bound of the absolute value of the inputs.

    Returns
    -------
    ndarray, shape (out,), int64
        ``sum(|w|) * activation_max + |b|``: an input of extreme values whose signs follow the weights' reaches it.

    Raises
    ------
    ModelError
        If a weight or bias is not a whole number, or the shapes do not fit.

    Examples
    --------
    >>> partial_sum_bound(np.array([[[2, -3]]]), np.array([-7]), 10).tolist()
    [57]
    """
    if weight.ndim < 2 or bias.shape != weight.shape[:1]:
        raise ModelError(f"exactness: weight {weight.shape} and bias {bias.shape} do not belong together.")
    sums = np.abs(_whole(weight)).reshape(len(weight), -1).sum(axis=1)
    bound: NDArray[np.int64] = sums * activation_max + np.abs(_whole(bias))
    return bound


def check_exact(layers: Iterable[Layer]) -> None:
    """Refuse a network whose float32 sums could depend on the order of summation.

    Raises
    ------
    ModelError
        Names the first layer and output channel whose worst case reaches 2**24, or whose numbers are not whole.

    Notes
    -----
    `requantise` adds half a step before it shifts; that sum is held to the same limit.
    """
    for layer in layers:
        try:
            bound = partial_sum_bound(layer.weight, layer.bias, layer.activation_max) + _half(layer.shift)
        except ModelError as error:
            raise ModelError(f"layer {layer.name!r}: {error}") from error
        worst = int(bound.argmax()) if len(bound) else 0
        if len(bound) and bound[worst] >= LIMIT:
            message = f"layer {layer.name!r}: sums of output channel {worst} can reach {bound[worst]}, limit {LIMIT}."
            raise ModelError(f"{message} Use smaller weights or activations, or fewer inputs.")


def requantise(sums: NDArray[Any], shift: int, low: int, high: int) -> NDArray[Any]:
    """Divide by ``2**shift``, round half up, clip: exact in float32 for what `check_exact` lets pass.

    Parameters
    ----------
    sums : ndarray, any shape, float or signed integer dtype
        Whole numbers.
    shift : int
        0 or more.
    low, high : int
        Range of the result.

    Returns
    -------
    ndarray, same shape and dtype
        ``clip(floor(sums / 2**shift + 1/2), low, high)``.

    Examples
    --------
    >>> requantise(np.array([-6, -5, 5, 6, 900], "f4"), 2, -8, 7)
    array([-1., -1.,  1.,  2.,  7.], dtype=float32)
    """
    if sums.dtype.kind == "f":
        halved = sums + sums.dtype.type(_half(shift))  # added before scaling: one rounding less to think about
        rounded: NDArray[Any] = np.floor(halved * sums.dtype.type(2.0**-shift))
    else:
        rounded = (sums + _half(shift)) >> shift
    return rounded.clip(low, high)


def _half(shift: int) -> int:
    """Half a step of a shift, in units of the sum; none where nothing is shifted."""
    return 1 << shift >> 1


def _whole(values: NDArray[Any]) -> NDArray[np.int64]:
    """As int64, or ModelError: NaN, fractions and numbers beyond 2**53 are refused."""
    if values.dtype.kind not in "iuf" or not np.all(np.abs(values.astype(np.float64)) < 2.0**53):
        raise ModelError("exactness: weights and biases must be finite whole numbers below 2**53.")
    whole = values.astype(np.int64)
    if not np.array_equal(whole, values):
        raise ModelError("exactness: weights and biases must be whole numbers. Round them before export.")
    return whole
