"""The network of one group of an entropy model as ONNX: whole numbers in, whole numbers out, proven exact."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from zarr_emcodec.entropy.exact import Layer, check_exact
from zarr_emcodec.train.arch.context import (
    GATE_MAX,
    GATE_SHIFT,
    MEAN_MAX,
    MEAN_SHIFT,
    SCALE_MAX,
    SCALE_SHIFT,
    GroupNet,
)
from zarr_emcodec.train.arch.whole import ACTIVATION_MAX, UNIT_SHIFT, WEIGHT_SHIFT, int8, int32
from zarr_emcodec.train.whole_graph import HALF, WholeGraph

_SUM_SHIFT = WEIGHT_SHIFT + UNIT_SHIFT  # fractional bits of sums of weights times activations
_OUTPUTS = ((MEAN_SHIFT, MEAN_MAX), (SCALE_SHIFT, SCALE_MAX), (GATE_SHIFT, GATE_MAX))


class IntegerGroup(NamedTuple):
    """Weights of a `GroupNet` as the whole numbers that they are; K latents known, W numbers, window k.

    Attributes
    ----------
    embed, embed_bias : ndarray, shape (W, K), int8, and (W,), int32
    window : ndarray, shape (W, W, *k), int8
    level_bias, reach_bias : ndarray, shapes (levels, W) and (reaches, W), int32
    hidden : tuple of (weight, bias)
        Shapes (W, W), int8, and (W,), int32.
    out, out_bias : ndarray, shape (places * outputs * C, W), int8, and (places * outputs * C,), int32
    places, outputs : int
        An output is a mean, a scale or, where there are reaches, a gate.
    """

    embed: NDArray[np.int8]
    embed_bias: NDArray[np.int32]
    window: NDArray[np.int8]
    level_bias: NDArray[np.int32]
    reach_bias: NDArray[np.int32]
    hidden: tuple[tuple[NDArray[np.int8], NDArray[np.int32]], ...]
    out: NDArray[np.int8]
    out_bias: NDArray[np.int32]
    places: int
    outputs: int

    def layers(self) -> list[Layer]:
        """What `check_exact` wants to know."""
        worst = np.abs(self.level_bias).max(0) + np.abs(self.reach_bias).max(0, initial=0)
        path = np.eye(len(self.embed), dtype=np.int64) << WEIGHT_SHIFT
        found = [
            Layer("embed", self.embed, self.embed_bias, ACTIVATION_MAX, WEIGHT_SHIFT),
            Layer("window", self.window, worst, ACTIVATION_MAX, WEIGHT_SHIFT),
        ]
        for i, (weight, bias) in enumerate(self.hidden):
            both = np.concatenate([weight.astype(np.int64), path], 1)
            found.append(Layer(f"hidden {i}", both, bias, ACTIVATION_MAX, WEIGHT_SHIFT))
        return [*found, Layer("out", self.out, self.out_bias, ACTIVATION_MAX, _SUM_SHIFT - SCALE_SHIFT)]


def integer_group(net: GroupNet, powers: torch.Tensor) -> IntegerGroup:
    """The weights that a group computes with.

    Parameters
    ----------
    net : GroupNet
    powers : Tensor, shape (levels, 3)
        What each level is told as.
    """
    return IntegerGroup(
        embed=int8(net.embed, WEIGHT_SHIFT),
        embed_bias=int32(net.embed_bias, _SUM_SHIFT),
        window=int8(net.window, WEIGHT_SHIFT),
        level_bias=int32(net.window_bias + powers @ net.level.T, _SUM_SHIFT),
        reach_bias=int32(net.reach.T, _SUM_SHIFT),
        hidden=tuple(
            (int8(weight, WEIGHT_SHIFT), int32(bias, _SUM_SHIFT))
            for weight, bias in zip(net.hidden, net.hidden_bias, strict=True)
        ),
        out=int8(net.out, WEIGHT_SHIFT),
        out_bias=int32(net.out_bias, _SUM_SHIFT),
        places=net.places,
        outputs=net.outputs,
    )


def out_halves() -> tuple[int, ...]:
    """Half a step of means, scales and gates, which the biases of the last layer hold."""
    return tuple(1 << (_SUM_SHIFT - shift) >> 1 for shift, _ in _OUTPUTS)


def group_onnx(group: IntegerGroup) -> bytes:
    """The network of a group.

    Returns
    -------
    bytes
        Inputs ``known``, float32 (n, K, [z,] y, x), whole numbers of at most 127, ``level``, int64 (n,), and where
        there are reaches ``reach``, int64 (n,); output ``context``, float32 (n, places * outputs * C, [z,] y, x): for
        each place C means in 64ths of a spread, then C shifts of the index of the scale, then C gates in 64ths.

    Raises
    ------
    ModelError
        If a float32 sum could depend on the order of summation.
    MissingExtraError
        Without the ``onnx`` package.
    """
    check_exact(group.layers())
    ndim = group.window.ndim - 2
    graph = WholeGraph(ndim)
    h = graph.whole(graph.product("known", group.embed, group.embed_bias + HALF, WEIGHT_SHIFT, called="embed"))
    # (W, F, *window) to rows that run over the window first, then the features, as the views do
    rows = np.moveaxis(group.window, 1, -1).reshape(len(group.window), -1)
    sums = graph.product(graph.views(h, 1), rows, None, WEIGHT_SHIFT, called="window")
    levels = group.level_bias.astype(np.float32) + np.float32(HALF)
    table = graph.constant(levels.reshape(*levels.shape, *[1] * ndim), "levels")
    scaled = graph.node("Mul", [table, graph.number(2.0**-WEIGHT_SHIFT)])
    bias = graph.node("Gather", [scaled, "level"], axis=0)
    if len(group.reach_bias):
        shared = group.reach_bias.astype(np.float32) * np.float32(2.0**-WEIGHT_SHIFT)
        reaches = graph.constant(shared.reshape(*shared.shape, *[1] * ndim), "reaches")
        # multiples of 2**-WEIGHT_SHIFT far below 2**16: any order of summation gives the same
        bias = graph.node("Add", [bias, graph.node("Gather", [reaches, "reach"], axis=0)])
    h = graph.whole(graph.node("Add", [sums, bias]))
    for i, (weight, offset) in enumerate(group.hidden):
        sums = graph.product(h, weight, offset + HALF, WEIGHT_SHIFT, called=f"hidden.{i}")
        h = graph.whole(graph.node("Add", [sums, h]))
    channels = len(group.out) // (group.outputs * group.places)
    parts = []
    for i in range(group.places * group.outputs):
        kind = i % group.outputs
        shift, bound = _OUTPUTS[kind]
        chosen = slice(i * channels, (i + 1) * channels)
        offset = group.out_bias[chosen] + out_halves()[kind]
        sums = graph.product(h, group.out[chosen], offset, _SUM_SHIFT - shift, called=f"out.{i}")
        parts.append(graph.whole(sums, -bound, bound))
    graph.node("Concat", parts, axis=1, output="context")
    return _finish(graph, group, ndim)


def _finish(graph: WholeGraph, group: IntegerGroup, ndim: int) -> bytes:
    from onnx import TensorProto

    axes: list[Any] = list("zyx"[-ndim:])
    inputs = {
        "known": (TensorProto.FLOAT, ["n", group.embed.shape[1], *axes]),
        "level": (TensorProto.INT64, ["n"]),
    }
    if len(group.reach_bias):
        inputs["reach"] = (TensorProto.INT64, ["n"])
    return graph.to_bytes("context", inputs, {"context": ["n", len(group.out), *axes]})
