"""Adam, written so that a network's path does not depend on what is fitted beside it.

Only operations that every kernel rounds alike: additions, products, quotients and roots, one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_BETA1, _BETA2, _EPSILON = 0.9, 0.99, 1e-12


class Adam:
    """Moments of a list of tensors (Kingma and Ba 2015, algorithm 1)."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)
        self._mean = [torch.zeros_like(t) for t in tensors]
        self._square = [torch.zeros_like(t) for t in tensors]
        self._steps = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate: float) -> None:
        """Move the tensors, in place."""
        self._steps += 1
        # fused forms (addcmul, lerp) may round otherwise at the end of an array than inside it
        size = rate / (1 - _BETA1**self._steps)
        spread = (1 - _BETA2**self._steps) ** -0.5
        for tensor, gradient, mean, square in zip(self.tensors, gradients, self._mean, self._square, strict=True):
            mean.mul_(_BETA1).add_(gradient * (1 - _BETA1))
            square.mul_(_BETA2).add_((gradient * gradient).mul_(1 - _BETA2))
            tensor.sub_((mean * size).div_(square.sqrt().mul_(spread).add_(_EPSILON)))
