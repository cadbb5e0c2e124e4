"""Networks of whole numbers as ONNX: nodes put together by hand, so that nothing but matrices is left to a runtime.

A window of cells is laid out by slices and multiplied as one matrix, a pointwise convolution: for a wide one a runtime
may choose among algorithms (Winograd, Fourier) that are not exact for integers, and for this there are none to choose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec.errors import MissingExtraError
from zarr_emcodec.train.arch.whole import ACTIVATION_MAX, WEIGHT_SHIFT
from zarr_emcodec.train.graph import OPSET

END = np.iinfo(np.int64).max
HALF = 1 << WEIGHT_SHIFT >> 1  # what `requantise` adds before it shifts, as part of the bias


class WholeGraph:
    """Nodes and weights so far; names are counted.

    Parameters
    ----------
    ndim : int
        Axes of the grid of cells.
    """

    def __init__(self, ndim: int) -> None:
        self.ndim = ndim
        self.made: list[Any] = []
        self.weights: list[Any] = []

    def nodes(self, operator: str, inputs: Sequence[str], n: int, **attributes: Any) -> list[str]:
        """A node with several outputs: their names."""
        from onnx import helper

        outputs = [f"v{len(self.made)}.{i}" for i in range(n)]
        self.made.append(helper.make_node(operator, list(inputs), outputs, **attributes))
        return outputs

    def node(self, operator: str, inputs: Sequence[str], *, output: str | None = None, **attributes: Any) -> str:
        """A node with one output: its name, which may be given."""
        name = self.nodes(operator, inputs, 1, **attributes)[0]
        if output:
            self.made[-1].output[0] = output
        return output or name

    def constant(self, value: NDArray[Any], called: str = "") -> str:
        """A stored array, with a name of its own where somebody will look for it."""
        from onnx import numpy_helper

        name = called or f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return str(self.weights[-1].name)

    def number(self, value: float) -> str:
        """A stored number."""
        return self.constant(np.array(value, np.float32))

    def as_float(self, value: NDArray[np.int8], called: str = "") -> str:
        """Weights that are stored in a byte each."""
        from onnx import TensorProto

        return self.node("Cast", [self.constant(value, called)], to=TensorProto.FLOAT)

    def cut(self, name: str, starts: Sequence[int], ends: Sequence[int], steps: Sequence[int], first: int) -> str:
        """A slice of the axes from `first` on."""
        axes = range(first, first + len(starts))
        return self.node("Slice", [name, *(self.constant(np.array(v, np.int64)) for v in (starts, ends, axes, steps))])

    def matrix(
        self, name: str, weight: NDArray[np.int8], bias: NDArray[np.int32], groups: int, *, called: str = ""
    ) -> str:
        """Weights ``(P, out, in)`` for each cell; with one group all places see all channels."""
        shaped = weight.reshape(-1, weight.shape[-1], *[1] * self.ndim)
        offset = self.constant(bias.ravel().astype(np.float32), called and f"{called}.bias")
        return self.node("Conv", [name, self.as_float(shaped, called), offset], group=groups)

    def requantise(self, sums: str, shift: int = WEIGHT_SHIFT, low: float = 0.0, high: float = ACTIVATION_MAX) -> str:
        """Whole numbers within bounds, of sums that half a step was added to."""
        scaled = self.node("Mul", [sums, self.number(2.0**-shift)])
        return self.node("Clip", [self.node("Floor", [scaled]), self.number(low), self.number(high)])

    def product(
        self, name: str, weight: NDArray[np.int8], bias: NDArray[np.int32] | None, shift: int, *, called: str = ""
    ) -> str:
        """Weights ``(out, in)`` for each cell, times ``2 ** -shift``.

        Both weights and bias are scaled, which a runtime does once: a power of two changes no digit of a sum.
        """
        scale = self.number(2.0**-shift)
        shaped = weight.reshape(*weight.shape, *[1] * self.ndim)
        given = [name, self.node("Mul", [self.as_float(shaped, called), scale])]
        if bias is not None:
            offset = self.constant(bias.astype(np.float32), called and f"{called}.bias")
            given.append(self.node("Mul", [offset, scale]))
        return self.node("Conv", given)

    def whole(self, sums: str, low: float = 0.0, high: float = ACTIVATION_MAX) -> str:
        """Whole numbers within bounds, of sums that are scaled already, half a step included."""
        return self.node("Clip", [self.node("Floor", [sums]), self.number(low), self.number(high)])

    def views(self, name: str, reach: int) -> str:
        """Features of the window around each cell, ``(n, F, *cells)`` to ``(n, window * F, *cells)``."""
        border = np.array([0, 0, *[reach] * self.ndim] * 2, np.int64)
        padded = self.node("Pad", [name, self.constant(border)])
        views = []
        for offset in product(range(2 * reach + 1), repeat=self.ndim):
            ends = [o - 2 * reach or END for o in offset]
            views.append(self.cut(padded, offset, ends, [1] * self.ndim, 2))
        return self.node("Concat", views, axis=1)

    def to_bytes(
        self, name: str, inputs: Mapping[str, tuple[Any, Sequence[Any]]], outputs: Mapping[str, Sequence[Any]]
    ) -> bytes:
        """The checked model: inputs by name with element type and shape, float32 outputs with theirs."""
        try:
            from onnx import TensorProto, checker, helper
        except ImportError as error:
            raise MissingExtraError("exporting a model", extra="train") from error
        taken = [helper.make_tensor_value_info(key, kind, shape) for key, (kind, shape) in inputs.items()]
        given = [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in outputs.items()]
        model = helper.make_model(
            helper.make_graph(self.made, name, taken, given, self.weights),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=8,  # that every supported ONNX Runtime reads
        )
        checker.check_model(model)
        return bytes(model.SerializeToString())
