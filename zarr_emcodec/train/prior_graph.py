"""The whole numbers of a parallel prior in, its network as ONNX bytes out; what float32 cannot hold is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zarr_emcodec.entropy.exact import check_exact
from zarr_emcodec.errors import MissingExtraError
from zarr_emcodec.train.arch.prior import IntegerPrior, PriorConfig
from zarr_emcodec.train.arch.whole import WEIGHT_SHIFT
from zarr_emcodec.train.whole_graph import END, HALF, WholeGraph


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
        from onnx import TensorProto
    except ImportError as error:
        raise MissingExtraError("exporting a model", extra="train") from error
    graph = WholeGraph(config.ndim)
    hidden = _window(graph, integers, config)
    places = len(config.places)
    for weight, bias in integers.hidden:
        sums = graph.matrix(hidden, weight, bias + HALF, places)
        path = graph.node("Mul", [hidden, graph.number(2.0**WEIGHT_SHIFT)])
        hidden = graph.requantise(graph.node("Add", [sums, path]))
    scores = graph.matrix(hidden, integers.choice, integers.choice_bias, places)
    if places > 1:
        parts = graph.nodes("Split", [scores], places, axis=1)
        scores = _interleave(graph, parts, config.cell)
    graph.node("Identity", [scores], output="table")
    axes = "zyx"[-config.ndim :]
    inputs = {"tokens": (TensorProto.INT64, ["n", *axes])}
    if config.conditional:
        inputs["top"] = (TensorProto.INT64, ["n", *(f"{a}_top" for a in axes)])
    return graph.to_bytes("prior", inputs, {"table": ["n", config.tables, *axes]})


def _window(graph: WholeGraph, integers: IntegerPrior, config: PriorConfig) -> str:
    """Activations of the first layer, ``(n, P * C, cells)``."""
    ndim, reach = config.ndim, config.reach
    parts = []
    for place, table in zip(config.places, integers.embedding, strict=True):
        own = "tokens" if config.cell == (1,) * ndim else graph.cut("tokens", place, [END] * ndim, config.cell, 1)
        parts.append(graph.node("Gather", [graph.as_float(table), own], axis=0))
    if integers.top is not None:
        parts.append(graph.node("Gather", [graph.as_float(integers.top), "top"], axis=0))
    cells = graph.node("Concat", parts, axis=ndim + 1) if len(parts) > 1 else parts[0]
    cells = graph.node("Transpose", [cells], perm=[0, ndim + 1, *range(1, ndim + 1)])
    beside = graph.views(cells, reach)
    # (P, C, F, *kernel) to rows that run over the kernel first, then the features, as the views do
    weight = np.moveaxis(integers.window, 2, -1).reshape(len(integers.window), integers.window.shape[1], -1)
    return graph.requantise(graph.matrix(beside, weight, integers.window_bias + HALF, 1))


def _interleave(graph: WholeGraph, parts: list[str], cell: Sequence[int]) -> str:
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
