"""The whole numbers of a parallel prior in, its network as ONNX bytes out; what float32 cannot hold is refused.

The window of cells is laid out by slices and multiplied as one matrix: a runtime may choose among algorithms for a
wide convolution (Winograd, Fourier) that are not exact for integers, and has none to choose for a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec.entropy.exact import check_exact
from zarr_emcodec.errors import MissingExtraError
from zarr_emcodec.train.arch.prior import IntegerPrior, PriorConfig
from zarr_emcodec.train.arch.whole import ACTIVATION_MAX, WEIGHT_SHIFT
from zarr_emcodec.train.graph import OPSET

_END = np.iinfo(np.int64).max


def prior_onnx(integers: IntegerPrior, config: PriorConfig) -> bytes:
    """The network of a prior.

    Parameters
    ----------
    integers : IntegerPrior
    config : PriorConfig
        Of the same prior.

    Returns
    -------
    bytes
        Inputs ``tokens``, int64 (n, [z,] y, x), K where not known yet, and for a conditional prior ``top``, int64
        (n, y / 2, x / 2); output ``table``, float32 (n, M, [z,] y, x): whole numbers, the score of each table.

    Raises
    ------
    ModelError
        If a float32 sum could depend on the order of summation.
    MissingExtraError
        Without the ``onnx`` package.
    """
    check_exact(integers.layers())
    try:
        from onnx import TensorProto, checker, helper
    except ImportError as error:
        raise MissingExtraError("exporting a model", extra="train") from error
    graph = _Graph(config.ndim)
    hidden = _window(graph, integers, config)
    places = len(config.places)
    for weight, bias in integers.hidden:
        sums = graph.matrix(hidden, weight, bias + _HALF, places)
        path = graph.node("Mul", [hidden, graph.number(2.0**WEIGHT_SHIFT)])
        hidden = graph.requantise(graph.node("Add", [sums, path]))
    scores = graph.matrix(hidden, integers.choice, integers.choice_bias, places)
    if places > 1:
        parts = graph.nodes("Split", [scores], places, axis=1)
        scores = _interleave(graph, parts, config.cell)
    graph.node("Identity", [scores], output="table")
    axes = "zyx"[-config.ndim :]
    inputs = [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["n", *axes])]
    if config.conditional:
        inputs.append(helper.make_tensor_value_info("top", TensorProto.INT64, ["n", *(f"{a}_top" for a in axes)]))
    output = helper.make_tensor_value_info("table", TensorProto.FLOAT, ["n", config.tables, *axes])
    model = helper.make_model(
        helper.make_graph(graph.made, "prior", inputs, [output], graph.weights),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,  # that every supported ONNX Runtime reads
    )
    checker.check_model(model)
    return bytes(model.SerializeToString())


_HALF = 1 << WEIGHT_SHIFT >> 1  # what `requantise` adds before it shifts, as part of the bias


class _Graph:
    """Nodes and weights so far; names are counted."""

    def __init__(self, ndim: int) -> None:
        self.ndim = ndim
        self.made: list[Any] = []
        self.weights: list[Any] = []

    def nodes(self, operator: str, inputs: Sequence[str], n: int, **attributes: Any) -> list[str]:
        from onnx import helper

        outputs = [f"v{len(self.made)}.{i}" for i in range(n)]
        self.made.append(helper.make_node(operator, list(inputs), outputs, **attributes))
        return outputs

    def node(self, operator: str, inputs: Sequence[str], *, output: str | None = None, **attributes: Any) -> str:
        name = self.nodes(operator, inputs, 1, **attributes)[0]
        if output:
            self.made[-1].output[0] = output
        return output or name

    def constant(self, value: NDArray[Any]) -> str:
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), f"w{len(self.weights)}"))
        return str(self.weights[-1].name)

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def as_float(self, value: NDArray[np.int8]) -> str:
        """Weights that are stored in a byte each."""
        from onnx import TensorProto

        return self.node("Cast", [self.constant(value)], to=TensorProto.FLOAT)

    def cut(self, name: str, starts: Sequence[int], ends: Sequence[int], steps: Sequence[int], first: int) -> str:
        """A slice of the axes from `first` on."""
        axes = range(first, first + len(starts))
        return self.node("Slice", [name, *(self.constant(np.array(v, np.int64)) for v in (starts, ends, axes, steps))])

    def matrix(self, name: str, weight: NDArray[np.int8], bias: NDArray[np.int32], groups: int) -> str:
        """Weights ``(P, out, in)`` for each cell; with one group all places see all channels."""
        shaped = weight.reshape(-1, weight.shape[-1], *[1] * self.ndim)
        offset = self.constant(bias.ravel().astype(np.float32))
        return self.node("Conv", [name, self.as_float(shaped), offset], group=groups)

    def requantise(self, sums: str) -> str:
        """Activations of sums that half a step was added to."""
        scaled = self.node("Mul", [sums, self.number(2.0**-WEIGHT_SHIFT)])
        return self.node("Clip", [self.node("Floor", [scaled]), self.number(0.0), self.number(ACTIVATION_MAX)])


def _window(graph: _Graph, integers: IntegerPrior, config: PriorConfig) -> str:
    """Activations of the first layer, ``(n, P * C, cells)``."""
    ndim, reach = config.ndim, config.reach
    parts = []
    for place, table in zip(config.places, integers.embedding, strict=True):
        own = "tokens" if config.cell == (1,) * ndim else graph.cut("tokens", place, [_END] * ndim, config.cell, 1)
        parts.append(graph.node("Gather", [graph.as_float(table), own], axis=0))
    if integers.top is not None:
        parts.append(graph.node("Gather", [graph.as_float(integers.top), "top"], axis=0))
    cells = graph.node("Concat", parts, axis=ndim + 1) if len(parts) > 1 else parts[0]
    cells = graph.node("Transpose", [cells], perm=[0, ndim + 1, *range(1, ndim + 1)])
    border = np.array([0, 0, *[reach] * ndim] * 2, np.int64)
    padded = graph.node("Pad", [cells, graph.constant(border)])
    views = []
    for offset in product(range(2 * reach + 1), repeat=ndim):
        ends = [o - 2 * reach or _END for o in offset]
        views.append(graph.cut(padded, offset, ends, [1] * ndim, 2))
    beside = graph.node("Concat", views, axis=1)
    # (P, C, F, *kernel) to rows that run over the kernel first, then the features, as the views do
    weight = np.moveaxis(integers.window, 2, -1).reshape(len(integers.window), integers.window.shape[1], -1)
    return graph.requantise(graph.matrix(beside, weight, integers.window_bias + _HALF, 1))


def _interleave(graph: _Graph, parts: list[str], cell: Sequence[int]) -> str:
    """One grid ``(n, M, tokens)`` from one for each place ``(n, M, cells)``, row-major."""
    ndim = len(cell)
    for axis in reversed(range(ndim)):
        if cell[axis] == 1:
            continue
        order = [*range(2 + axis), *range(3 + axis, 2 + ndim), 2 + axis]  # the axis last: only there sizes may merge
        back = np.argsort(order).tolist()
        merged = []
        for i in range(0, len(parts), cell[axis]):
            last = [graph.node("Transpose", [part], perm=order) for part in parts[i : i + cell[axis]]]
            new = graph.constant(np.array([2 + ndim], np.int64))
            side = graph.node("Concat", [graph.node("Unsqueeze", [part, new]) for part in last], axis=2 + ndim)
            shape = graph.constant(np.array([0] * (1 + ndim) + [-1], np.int64))
            merged.append(graph.node("Transpose", [graph.node("Reshape", [side, shape])], perm=back))
        parts = merged
    return parts[0]
