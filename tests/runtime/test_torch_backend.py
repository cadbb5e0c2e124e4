"""The torch backend against ONNX Runtime: every allowed operator, in the forms that models have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="building models needs onnx")
pytest.importorskip("onnxruntime", reason="the reference is onnxruntime")
pytest.importorskip("torch", reason="the torch backend needs torch")
import onnx
import torch

from tests.runtime.tiny_model import build_graph, encoder_onnx, some_symbols, write_tiny_model
from zarr_emcodec.errors import MissingExtraError, ModelError, RuntimeUnavailableError
from zarr_emcodec.runtime import ALLOWED_OPERATORS, check_onnx, open_model, options
from zarr_emcodec.runtime.session import OnnxRuntimeNetwork
from zarr_emcodec.runtime.torch_backend import TorchNetwork

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(3)


def floats(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(values, np.int64)


X4, X5 = floats(2, 8, 12, 10), floats(1, 4, 6, 8, 10)
# operator, signal, constants behind it (None: left out), attributes
CASES: list[tuple[str, Any, list[Any], dict[str, Any]]] = [
    ("Add", X4, [floats(8, 1, 1)], {}),
    ("Sub", X4, [floats(8, 1, 1)], {}),
    ("Mul", X4, [floats(1)], {}),
    ("Div", X4, [np.abs(floats(8, 1, 1)) + 1], {}),
    ("Div", ints(-7, 7, 8), [ints(2)], {}),
    ("Relu", X4, [], {}),
    ("LeakyRelu", X4, [], {"alpha": 0.1}),
    ("LeakyRelu", X4, [], {}),
    ("Clip", X4, [np.float32(-0.5), np.float32(0.5)], {}),
    ("Clip", X4, [None, np.float32(0.5)], {}),
    ("Clip", X4, [], {}),
    ("Floor", X4, [], {}),
    ("Exp", X4, [], {}),
    ("Sigmoid", X4, [], {}),
    ("Tanh", X4, [], {}),
    ("Sin", 20 * X4, [], {}),
    ("Sqrt", np.abs(X4), [], {}),
    ("Pow", np.abs(X4), [np.float32(1.5)], {}),
    ("Pow", X4, [ints(2)], {}),
    ("Identity", X4, [], {}),
    ("Cast", X4, [], {"to": 6}),
    ("Cast", X4, [], {"to": 10}),
    ("Conv", X4, [floats(6, 8, 3, 3), floats(6)], {"pads": [1, 1, 1, 1]}),
    ("Conv", X4, [floats(6, 8, 3, 3)], {"pads": [0, 1, 2, 1], "strides": [2, 1]}),
    ("Conv", X4, [floats(8, 2, 3, 3)], {"group": 4, "dilations": [2, 1]}),
    ("Conv", X5, [floats(6, 4, 3, 3, 3), floats(6)], {"pads": [1] * 6, "strides": [1, 2, 2]}),
    ("ConvTranspose", X4, [floats(8, 3, 4, 4), floats(3)], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("ConvTranspose", X4, [floats(8, 3, 3, 3)], {"strides": [2, 3], "pads": [0, 1, 1, 0], "output_padding": [1, 0]}),
    ("ConvTranspose", X4, [floats(8, 2, 3, 3)], {"group": 4, "dilations": [2, 2]}),
    ("ConvTranspose", X5, [floats(4, 3, 2, 4, 4)], {"strides": [2, 2, 2], "pads": [0, 1, 1, 0, 1, 1]}),
    ("DepthToSpace", X4, [], {"blocksize": 2, "mode": "DCR"}),
    ("DepthToSpace", X4, [], {"blocksize": 2, "mode": "CRD"}),
    ("DepthToSpace", X4, [], {"blocksize": 2}),
    ("SpaceToDepth", X4, [], {"blocksize": 2}),
    ("Concat", X4, [floats(2, 3, 12, 10)], {"axis": 1}),
    ("Concat", X4, [floats(2, 8, 12, 3)], {"axis": -1}),
    ("Reshape", X4, [ints(0, 2, -1, 10)], {}),
    ("Transpose", X4, [], {"perm": [0, 2, 3, 1]}),
    ("Transpose", X4, [], {}),
    ("Gather", X4, [ints(3, -1)], {"axis": 1}),
    ("Gather", X4, [np.array([[0, 1], [1, 0]])], {}),
    ("Gather", X4, [np.array(2)], {"axis": 2}),
    ("Slice", X4, [ints(1, -4), ints(6, 2**40), ints(1, -1), ints(2, 1)], {}),
    ("Slice", X4, [ints(1), ints(2)], {}),
    ("Split", X4, [ints(3, 5)], {"axis": 1}),
    ("Split", X4, [], {"axis": -1}),
    ("Unsqueeze", X4, [ints(0, -1)], {}),
    ("Squeeze", floats(1, 3, 1, 2), [ints(0, 2)], {}),
    ("Squeeze", floats(1, 3, 1, 2), [], {}),
    ("Pad", X4, [ints(0, 0, 1, 2, 0, 1, 3, 0), np.float32(7)], {}),
    ("Pad", X4, [ints(1, 0, -1, 2, 0, 1, 3, 0)], {"mode": "constant"}),
    ("Pad", X4, [ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "reflect"}),
    ("Pad", X4, [ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "edge"}),
    ("MatMul", X4, [floats(10, 5)], {}),
    ("Gemm", floats(4, 6), [floats(6, 5), floats(5)], {"alpha": 0.5, "beta": 2.0}),
    ("Gemm", floats(6, 4), [floats(5, 6)], {"transA": 1, "transB": 1}),
]
TYPES = {"f": 1, "i": 7}


def graph_of(operator: str, signal: Any, constants: list[Any], attributes: dict[str, Any]) -> bytes:
    names = ["" if value is None else f"c{i}" for i, value in enumerate(constants)]
    outputs = ["y0", "y"] if operator == "Split" else ["y"]
    node = onnx.helper.make_node(operator, ["x", *names], outputs, **attributes)
    weights = {name: np.asarray(value) for name, value in zip(names, constants, strict=True) if name}
    result_type = attributes.get("to", TYPES[signal.dtype.kind])
    return build_graph([node], {"x": (TYPES[signal.dtype.kind], signal.shape)}, ("y", result_type, None), weights)


@pytest.mark.parametrize(("operator", "signal", "constants", "attributes"), CASES)
def test_operators_agree(operator: str, signal: Any, constants: list[Any], attributes: dict[str, Any]) -> None:
    data = graph_of(operator, signal, constants, attributes)
    check_onnx(data)
    expected = OnnxRuntimeNetwork(data, "cpu", 1).run({"x": signal})
    found = TorchNetwork(data, "cpu", 1).run({"x": signal})
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.astype(float), expected.astype(float), rtol=1e-4, atol=1e-4)


def test_every_allowed_operator_is_tried() -> None:
    assert {case[0] for case in CASES} | {"Constant"} == ALLOWED_OPERATORS


@pytest.mark.parametrize(
    "attributes",
    [{"value_float": 2.5}, {"value_floats": [1.0, 2.0]}, {"value_int": 3}, {"value_ints": [3, 4]},
     {"value": onnx.numpy_helper.from_array(np.arange(3, dtype=np.int64))}],
)  # fmt: skip
def test_constants_agree(attributes: dict[str, Any]) -> None:
    kind = 1 if "float" in next(iter(attributes)) else 7
    nodes = [
        onnx.helper.make_node("Constant", [], ["c"], **attributes),
        onnx.helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    data = build_graph(nodes, {"x": (kind, (1,))}, ("y", kind, None), {})
    inputs = {"x": np.ones(1, np.float32 if kind == 1 else np.int64)}
    expected = OnnxRuntimeNetwork(data, "cpu", 1).run(inputs)
    found = TorchNetwork(data, "cpu", 1).run(inputs)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


def test_the_tiny_model_agrees_through_options(alone: Path) -> None:
    model = open_model(write_tiny_model(alone))
    grey = (128 + 40 * floats(2, 1, 32, 40)).astype(np.float32)
    expected = model.run("encoder", {"grey": grey}), model.run("decoder", some_symbols(3, 9))
    with options(backend="torch"):
        found = model.run("encoder", {"grey": grey}), model.run("decoder", some_symbols(3, 9))
        with pytest.raises(ModelError, match="takes"):
            model.run("encoder", {"gray": grey})
        with pytest.raises(ModelError, match="failed"):
            model.run("decoder", {**some_symbols(1), "level": ints(1000)})
    for a, b in zip(expected, found, strict=True):
        assert b.dtype == np.float32
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_torchs_own_thread_count_is_given_back() -> None:
    outer = torch.get_num_threads()
    network = TorchNetwork(encoder_onnx(), "cpu", outer + 1)
    network.run({"grey": np.zeros((1, 1, 8, 8), np.float32)})
    assert torch.get_num_threads() == outer
    with pytest.raises(RuntimeError):
        network.run({"grey": np.zeros((1, 2, 8, 8), np.float32)})
    assert torch.get_num_threads() == outer


@pytest.mark.parametrize(
    ("operator", "signal", "constants", "attributes"),
    [("Conv", X4, [floats(6, 8, 3, 3)], {"auto_pad": "SAME_UPPER"}),
     ("Slice", X4, [ints(-1), ints(0), ints(1), ints(-1)], {}),
     ("Pad", X4, [ints(1, 0, 0, 0, 0, 0, 0, 0)], {"mode": "edge"}),
     ("Cast", X4, [], {"to": 8})],
)  # fmt: skip
def test_forms_that_are_not_supported_say_so(
    operator: str, signal: Any, constants: list[Any], attributes: dict[str, Any]
) -> None:
    network = TorchNetwork(graph_of(operator, signal, constants, attributes), "cpu", 1)
    with pytest.raises(ModelError, match="torch backend"):
        network.run({"x": signal})


def test_old_opsets_and_broken_constants_are_refused() -> None:
    model = onnx.load_model_from_string(encoder_onnx())
    model.opset_import[0].version = 11
    with pytest.raises(ModelError, match="opset"):
        TorchNetwork(model.SerializeToString(), "cpu", 1)
    node = onnx.helper.make_node("Add", ["a", "b"], ["y"])
    data = build_graph([node], {"x": (1, (1,))}, ("y", 1, None), {"a": floats(2), "b": floats(3)})
    with pytest.raises(ModelError, match="torch refuses"):
        TorchNetwork(data, "cpu", 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch has a CUDA device here")
def test_cuda_that_is_absent_is_a_clear_error() -> None:
    with pytest.raises(RuntimeUnavailableError, match="CUDA"):
        TorchNetwork(encoder_onnx(), "cuda", 1)
    assert TorchNetwork(encoder_onnx(), "auto", 1).provider == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_onnxruntime() -> None:
    network = TorchNetwork(encoder_onnx(), "cuda", 1)
    grey = (128 + 40 * floats(2, 1, 64, 64)).astype(np.float32)
    expected = OnnxRuntimeNetwork(encoder_onnx(), "cpu", 1).run({"grey": grey})
    np.testing.assert_allclose(network.run({"grey": grey}), expected, atol=1e-3)


def test_without_onnx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"zarr_emcodec\[torch\]"):
        TorchNetwork(encoder_onnx(), "cpu", 1)
