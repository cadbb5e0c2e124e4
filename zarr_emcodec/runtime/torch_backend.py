"""The torch backend: an ONNX graph of the allowed operators, run step by step with torch.

In: checked ONNX bytes, named arrays. Out: the first output. Float32 without TF32, on the CPU or on CUDA; what depends
on constants alone is computed once. `guard` decides which operators there are, `torch_ops` what each does.
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.errors import MissingExtraError, ModelError, RuntimeUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

_MIN_OPSET = 13  # from here on the axes of Squeeze, Unsqueeze and Split are inputs


@dataclass(frozen=True)
class _Step:
    """One node: its function, arguments by name, results by name, and the names that nobody needs behind it."""

    operator: str
    attributes: dict[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last_use: tuple[str, ...] = ()


class TorchNetwork:
    """An ONNX graph run by torch; constants live on the device.

    Parameters
    ----------
    data : bytes
        ONNX file, opset 13 or later, that `check_onnx` has passed.
    provider : {"auto", "cpu", "cuda"}
        "auto" takes CUDA where torch finds a device.
    threads : int
        Within one operator, while a call lasts.

    Raises
    ------
    ModelError
        If the graph uses an operator in a form that no exported model has.
    RuntimeUnavailableError
        If "cuda" is asked for and absent.
    MissingExtraError
        If torch or onnx is not installed.
    """

    def __init__(self, data: bytes, provider: str, threads: int) -> None:
        try:
            import onnx
            import torch

            from zarr_emcodec.runtime.torch_ops import apply
        except ImportError as error:
            raise MissingExtraError("the torch backend", extra="torch") from error
        self._torch, self._apply, self._threads = torch, apply, threads
        has_cuda = bool(torch.cuda.is_available())
        if provider == "cuda" and not has_cuda:
            raise RuntimeUnavailableError(
                "provider 'cuda' asked for, torch finds no CUDA device. Install a CUDA build of torch on a machine "
                "with a driver, or use provider='auto'.",
                asked="cuda",
                available=["cpu"],
            )
        self.provider = "cuda" if has_cuda and provider != "cpu" else "cpu"
        self._constants: dict[str, Any] = {}
        try:
            self._load(onnx, data)
        except ModelError:
            raise
        except Exception as error:  # a constant part of the graph that does not compute
            raise ModelError(f"torch refuses the model: {error}") from error

    def _load(self, onnx: Any, data: bytes) -> None:
        model = onnx.load_model_from_string(data)
        opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
        if opset < _MIN_OPSET:
            raise ModelError(f"the torch backend needs opset {_MIN_OPSET} or later (found {opset}). Export it again.")
        graph = model.graph
        self._outputs = [output.name for output in graph.output]
        known = self._constants
        for tensor in graph.initializer:
            known[tensor.name] = self._tensor(onnx.numpy_helper.to_array(tensor))
        self._inputs = {value.name for value in graph.input} - known.keys()
        steps = []
        with self._torch.inference_mode():
            for node in graph.node:
                step = _Step(node.op_type, _attributes(onnx, node), tuple(node.input), tuple(node.output))
                if all(name in known for name in step.inputs if name):
                    known.update(self._compute(step, known))
                else:
                    steps.append(step)
        self._steps = _with_last_use(steps, {*self._outputs, *known})

    def _tensor(self, array: NDArray[Any]) -> Any:
        # torch has no read-only tensors, so arrays are copied rather than shared
        tensor = self._torch.from_numpy(np.array(array))
        # integers are shapes and axes, read on the host
        return tensor.to(self.provider) if tensor.is_floating_point() else tensor

    def _compute(self, step: _Step, known: Mapping[str, Any]) -> dict[str, Any]:
        arguments = [known[name] if name else None for name in step.inputs]
        results = self._apply(step.operator, arguments, step.attributes, len(step.outputs))
        return dict(zip(step.outputs, results, strict=True))

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """First output of the graph."""
        return self.run_all(inputs)[0]

    def run_all(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Every output of the graph, in its order."""
        if inputs.keys() != self._inputs:
            raise ModelError(f"the network takes {sorted(self._inputs)}, not {sorted(inputs)}.")
        torch = self._torch
        with torch.inference_mode(), limited_threads(torch, self._threads), full_precision(torch, self.provider):
            known = dict(self._constants)
            known.update({name: torch.from_numpy(np.array(value)).to(self.provider) for name, value in inputs.items()})
            for step in self._steps:
                known.update(self._compute(step, known))
                for name in step.last_use:
                    del known[name]
            return [known[name].cpu().numpy() for name in self._outputs]

    def differentiable(self, inputs: Mapping[str, Any]) -> Any:
        """First output of the graph as a tensor that knows its gradient, of inputs that are tensors.

        Parameters
        ----------
        inputs : mapping of str to Tensor
            All inputs of the network, on the CPU; the caller minds threads.
        """
        # what was computed in inference mode cannot be recorded: copies can
        known = {name: value.clone() for name, value in self._constants.items()}
        known.update({name: value.to(self.provider) for name, value in inputs.items()})
        for step in self._steps:
            known.update(self._compute(step, known))
        return known[self._outputs[0]].cpu()


def _attributes(onnx: Any, node: Any) -> dict[str, Any]:
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    for name, value in found.items():
        if isinstance(value, bytes):
            found[name] = value.decode()
        elif isinstance(value, onnx.TensorProto):
            found[name] = onnx.numpy_helper.to_array(value)
    return found


def _with_last_use(steps: list[_Step], keep: set[str]) -> list[_Step]:
    """Steps that know which tensors to drop, so that memory holds what is still needed and no more."""
    dropped = set(keep)
    out = []
    for step in reversed(steps):
        names = {name for name in (*step.inputs, *step.outputs) if name} - dropped
        dropped |= names
        out.append(_Step(step.operator, step.attributes, step.inputs, step.outputs, tuple(sorted(names))))
    return out[::-1]


_lock = threading.Lock()
_running = 0
_outer_threads = 1


@contextlib.contextmanager
def limited_threads(torch: Any, n: int) -> Iterator[None]:
    """Threads within one operator while a call lasts; torch keeps that number per process and per calling thread."""
    global _running, _outer_threads
    with _lock:
        if _running == 0:
            _outer_threads = torch.get_num_threads()
        _running += 1
        torch.set_num_threads(n)
    try:
        yield
    finally:
        with _lock:
            _running -= 1
            torch.set_num_threads(_outer_threads)


@contextlib.contextmanager
def full_precision(torch: Any, provider: str) -> Iterator[None]:
    """Float32 products on CUDA, and kernels that give the same sums every time."""
    if provider != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul
    outer = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        matmul.allow_tf32 = outer


def _after_fork() -> None:
    global _lock, _running
    _lock, _running = threading.Lock(), 0  # the parent's calls do not go on here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
