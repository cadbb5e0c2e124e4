"""An optimiser for networks that are trained briefly: steps of convolutions made orthogonal, all others as Adam's.

A gradient of a convolution's weights is dominated by a few directions; a step of the same length in all of them gets
further in as many minutes (Muon: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; how long a step is for
Adam's learning rates to fit: Liu et al. 2025, arXiv 2502.16982, section 2.2).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)  # of Newton and Schulz: takes singular values from (0, 1] to 0.7 ... 1.2
_ITERATIONS = 5
_LENGTH = 0.2  # root mean square of a step, as of Adam's
_LEAST = 16  # rows or columns: directions of fewer are too few to tell apart


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix with the singular vectors of another, and singular values near 1."""
    a, b, c = _POLYNOMIAL
    x: Tensor = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    for _ in range(_ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x


def as_matrix(layer: nn.Module, weight: Tensor) -> Tensor:
    """A convolution's weights, or their gradient, ``(outputs, inputs * window)``."""
    if _is_transposed(layer):
        weight = weight.transpose(0, 1)
    return weight.reshape(len(weight), -1)


def as_weight(layer: nn.Module, matrix: Tensor, like: Tensor) -> Tensor:
    """Inverse of `as_matrix`."""
    if _is_transposed(layer):
        return matrix.reshape(like.shape[1], like.shape[0], *like.shape[2:]).transpose(0, 1)
    return matrix.reshape(like.shape)


def _is_transposed(layer: nn.Module) -> bool:
    return isinstance(layer, nn.ConvTranspose2d | nn.ConvTranspose3d)


def convolutions(*modules: nn.Module, without: Collection[Tensor] = ()) -> dict[Tensor, nn.Module]:
    """Weights that take orthogonal steps, with the layers that have them."""
    kinds = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    left_out = {id(weight) for weight in without}
    layers = (layer for module in modules for layer in module.modules() if isinstance(layer, kinds))
    return {
        layer.weight: layer
        for layer in layers
        if layer.weight.requires_grad
        and id(layer.weight) not in left_out
        and min(as_matrix(layer, layer.weight).shape) >= _LEAST
    }


class Muon(torch.optim.Optimizer):
    """Orthogonal steps for some parameters, Adam for the rest.

    Parameters
    ----------
    groups : sequence of dict
        Parameter groups; a step's length is the group's ``lr`` either way.
    layers : dict of Tensor to Module
        Weights that take orthogonal steps, as `convolutions` finds them.
    factor : float
        Of their learning rate.
    betas : (float, float)
        Of Adam.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        layers: dict[Tensor, nn.Module],
        factor: float,
        betas: tuple[float, float] = (0.9, 0.98),
    ) -> None:
        super().__init__(groups, {"lr": 1e-3, "betas": betas})
        self._layers, self._factor = layers, factor

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of all parameters that have a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, weight.grad, group["lr"], *group["betas"])

    def _move(self, weight: Tensor, gradient: Tensor, rate: float, first: float, second: float) -> None:
        state = self.state[weight]
        if not state:
            state["step"], state["mean"] = torch.zeros(()), torch.zeros_like(weight)
        state["step"] += 1
        layer = self._layers.get(weight)
        if layer is not None:
            state["mean"].lerp_(gradient, 1 - MOMENTUM)
            ahead = as_matrix(layer, gradient.lerp(state["mean"], MOMENTUM))
            step = orthogonal(ahead) * (_LENGTH * max(ahead.shape) ** 0.5)
            weight.sub_(as_weight(layer, step, weight), alpha=rate * self._factor)
            return
        square = state.setdefault("square", torch.zeros_like(weight))
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        state["mean"].lerp_(gradient, 1 - first)
        steps = float(state["step"])
        spread = (square / (1 - second**steps)).sqrt_().add_(1e-8)
        weight.addcdiv_(state["mean"] / (1 - first**steps), spread, value=-rate)
