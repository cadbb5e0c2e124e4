"""Torch modules to ONNX bytes as the runtime takes them: free batch and grid axes, large weights in float16."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zarr_emcodec.errors import MissingExtraError

OPSET = 17
_HALF_MIN = 2048  # elements: smaller tensors (biases, gains) stay float32, they weigh nothing


def to_onnx(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], *, byte_from: int | None = None
) -> bytes:
    """Trace a module.

    Parameters
    ----------
    module : nn.Module
        Called with the inputs in their order.
    inputs : mapping of str to Tensor
        Examples: images ``(B, C, ...)`` in floating point, tokens ``(B, ...)`` or levels ``(B,)`` as int64.
    outputs : sequence of str
        Names; each output is an image.
    byte_from : int, optional
        Weights of layers with at least so many are stored in a byte each, with a scale for each channel; all others of
        any size in float16.

    Returns
    -------
    bytes
        Opset 17. Axis 0 is free everywhere, and so are the grid's axes.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("exporting a model", extra="train") from error
    axes = {key: _free(value.ndim, whole=value.dtype == torch.int64) for key, value in inputs.items()}
    ndim = next(v.ndim for v in inputs.values() if v.ndim > 1) + (next(iter(inputs.values())).dtype == torch.int64)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # deprecated, but the newer exporter computes shapes inside the graph, which every reader would have to run
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            f"{folder}/network.onnx",
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={**axes, **{name: _free(ndim) for name in outputs}},
            opset_version=OPSET,
            dynamo=False,
        )
        graph = onnx.load(f"{folder}/network.onnx")
    if byte_from is not None:
        _weights_as_bytes(graph, byte_from)
    _halve_weights(graph)
    for node in graph.graph.node:  # names of the source tree say nothing to a reader and cost bytes
        node.doc_string = ""
    onnx.checker.check_model(graph)
    return bytes(graph.SerializeToString())


def _free(ndim: int, *, whole: bool = False) -> dict[int, str]:
    """Names of the free axes: all but the channels of an image."""
    grid = range(1 if whole else 2, ndim)
    return {0: "n", **{axis: "zyx"[axis - ndim] if len(grid) == 3 else "hw"[axis - ndim] for axis in grid}}


def _halve_weights(graph: Any) -> None:
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for i, tensor in enumerate(graph.graph.initializer):
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < _HALF_MIN or tensor.name.endswith("coarseness"):
            continue
        name = tensor.name
        graph.graph.initializer[i].CopyFrom(numpy_helper.from_array(values.astype(np.float16), name + ".half"))
        casts.append(helper.make_node("Cast", [name + ".half"], [name], to=TensorProto.FLOAT))
    for cast in reversed(casts):
        graph.graph.node.insert(0, cast)


def _weights_as_bytes(graph: Any, least: int) -> None:
    """Weights of large layers as int8 with a float32 scale for each channel, of the outputs or of the inputs."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = []
    for i, tensor in enumerate(graph.graph.initializer):
        values = numpy_helper.to_array(tensor)
        if not tensor.name.endswith(".weight") or values.size < least:
            continue
        name = tensor.name
        whole, scale = min((_as_bytes(values, axis) for axis in (0, 1)), key=lambda found: _loss(values, *found))
        graph.graph.initializer[i].CopyFrom(numpy_helper.from_array(whole, f"{name}.byte"))
        graph.graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
        nodes.append(helper.make_node("Cast", [f"{name}.byte"], [f"{name}.whole"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [f"{name}.whole", f"{name}.scale"], [name]))
    for node in reversed(nodes):
        graph.graph.node.insert(0, node)


def _as_bytes(values: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    others = tuple(n for n in range(values.ndim) if n != axis)
    scale = np.abs(values).max(axis=others, keepdims=True).astype(np.float32) / 127
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    return np.rint(values / scale).astype(np.int8), scale


def _loss(values: NDArray[np.float32], whole: NDArray[np.int8], scale: NDArray[np.float32]) -> float:
    return float(np.square(values - whole * scale).sum())


def macs(module: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Multiply-accumulates of all convolutions of one call."""
    total = 0

    def count(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.ConvTranspose3d):
            total += given[0].numel() * layer.out_channels // layer.groups * math.prod(layer.kernel_size)
        elif isinstance(layer, nn.Conv2d | nn.Conv3d):
            total += output.numel() * layer.in_channels // layer.groups * math.prod(layer.kernel_size)

    kinds = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose3d)
    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, kinds)]
    with torch.inference_mode():
        module(*inputs)
    for hook in hooks:
        hook.remove()
    return total
