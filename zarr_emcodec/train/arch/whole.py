"""Weights and activations as whole multiples of powers of two while training: what is exported is what was trained.

Tensors of floats in, tensors of floats out that hold such multiples; gradients pass as if nothing was rounded.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ACTIVATION_MAX = 127
WEIGHT_MAX = 127
UNIT_SHIFT = 5  # an activation of 1.0 is the integer 32: inputs of unit variance use the range up to 4
WEIGHT_SHIFT = 8  # a weight of 0.5 is the integer 128: weights of some hundred inputs are about 0.05


def whole(value: Tensor, shift: int, bound: int | None) -> Tensor:
    """Rounded to multiples of ``2**-shift``, at most `bound` of them; the gradient is the identity's."""
    # the difference is zero, exactly: what is computed are the rounded numbers
    return _steps(value.detach(), shift, bound) * 2.0**-shift + (value - value.detach())


def _steps(value: Tensor, shift: int, bound: int | None) -> Tensor:
    steps = torch.floor(value * 2.0**shift + 0.5)
    return steps if bound is None else steps.clamp(-bound, bound)


def whole_weight(value: Tensor) -> Tensor:
    """A weight of a layer that is requantised."""
    return whole(value, WEIGHT_SHIFT, WEIGHT_MAX)


def whole_bias(value: Tensor) -> Tensor:
    """Its bias."""
    return whole(value, WEIGHT_SHIFT + UNIT_SHIFT, None)


def activation(sums: Tensor) -> Tensor:
    """`requantise` in units of activations; the gradient is that of clipping."""
    steps = torch.floor(sums.detach() * 2.0**UNIT_SHIFT + 0.5).clamp(0, ACTIVATION_MAX)
    clipped = sums.clamp(0, ACTIVATION_MAX * 2.0**-UNIT_SHIFT)
    return steps * 2.0**-UNIT_SHIFT + (clipped - clipped.detach())


def int8(value: Tensor, shift: int) -> NDArray[np.int8]:
    """How many multiples of ``2**-shift`` a weight is."""
    return _steps(value.detach(), shift, WEIGHT_MAX).cpu().numpy().astype(np.int8)


def int32(value: Tensor, shift: int) -> NDArray[np.int32]:
    """How many multiples of ``2**-shift`` a bias is."""
    return _steps(value.detach(), shift, None).cpu().numpy().astype(np.int32)
