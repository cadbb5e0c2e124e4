"""Hostile ONNX: refused before a runtime sees it, quickly, always as a ModelError."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnx", reason="building models needs onnx")
import onnx

from tests.runtime.tiny_model import build_graph, check, decoder_onnx, encoder_onnx
from zarr_emcodec.errors import ModelError
from zarr_emcodec.runtime import ALLOWED_OPERATORS, check_onnx
from zarr_emcodec.runtime.guard import MAX_ONNX_BYTES

TINY = decoder_onnx(0)


def parsed() -> Any:
    return onnx.load_model_from_string(TINY)


def one_node(operator: str, **attributes: Any) -> bytes:
    node = onnx.helper.make_node(operator, ["x"], ["y"], **attributes)
    return build_graph([node], {"x": (1, ("n",))}, ("y", 1, None), {})


def test_real_models_pass() -> None:
    for data in (TINY, encoder_onnx()):
        check(data)
        check_onnx(data)


@pytest.mark.parametrize("operator", sorted(ALLOWED_OPERATORS))
def test_allowed_operators_exist_and_pass(operator: str) -> None:
    assert onnx.defs.has(operator)
    check_onnx(one_node(operator))


@pytest.mark.parametrize("operator", ["If", "Loop", "Scan", "ConstantOfShape", "Expand", "Einsum", "Shape", "", "conv"])
def test_other_operators_are_named(operator: str) -> None:
    with pytest.raises(ModelError, match=f"'{operator}'"):
        check_onnx(one_node(operator))


def test_other_domains_are_refused() -> None:
    model = parsed()
    model.graph.node[0].domain = "com.microsoft"
    with pytest.raises(ModelError, match=r"com\.microsoft"):
        check_onnx(model.SerializeToString())


def test_subgraphs_are_refused_even_in_allowed_operators() -> None:
    model = parsed()
    body = onnx.helper.make_graph([], "body", [], [])
    for attributes in (onnx.helper.make_attribute("body", body), onnx.helper.make_attribute("bodies", [body])):
        changed = parsed()
        changed.graph.node[0].attribute.append(attributes)
        with pytest.raises(ModelError, match="subgraph"):
            check_onnx(changed.SerializeToString())
    check_onnx(model.SerializeToString())


def test_local_functions_are_refused() -> None:
    model = parsed()
    node = onnx.helper.make_node("Relu", ["a"], ["b"])
    model.functions.append(
        onnx.helper.make_function("", "Conv", ["a"], ["b"], [node], [onnx.helper.make_opsetid("", 17)])
    )
    with pytest.raises(ModelError, match="local function"):
        check_onnx(model.SerializeToString())


def test_external_data_is_refused_in_weights_and_attributes() -> None:
    outside = onnx.TensorProto(name="w", dims=[2], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    entry = outside.external_data.add()
    entry.key, entry.value = "location", "../../../../etc/passwd"
    only_flag = onnx.TensorProto(name="w", dims=[2], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    for tensor in (outside, only_flag):
        model = parsed()
        model.graph.initializer.append(tensor)
        with pytest.raises(ModelError, match="external data"):
            check_onnx(model.SerializeToString())
        with pytest.raises(ModelError, match="external data"):
            check_onnx(one_node("Constant", value=tensor))


def test_training_sparse_and_unearned_tensors_are_refused() -> None:
    training, sparse, large, small = parsed(), parsed(), parsed(), parsed()
    training.training_info.add()
    sparse.graph.sparse_initializer.add()
    large.graph.initializer.append(onnx.TensorProto(name="w", dims=[2**20, 2**20], data_type=1, raw_data=b"1234"))
    small.graph.initializer.append(onnx.TensorProto(name="w", dims=[2**20], data_type=1, raw_data=b"1234"))
    for model, word in ((training, "training"), (sparse, "sparse"), (large, "claims"), (small, "claims")):
        with pytest.raises(ModelError, match=word):
            check_onnx(model.SerializeToString())


def field(number: int, payload: bytes) -> bytes:
    size = len(payload)
    length = bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2]) + bytes([*length, size]) + payload


def test_a_second_operator_name_in_one_node_is_looked_at() -> None:
    for names in (("Relu", "If"), ("If", "Relu")):
        node = b"".join(field(4, name.encode()) for name in names)
        with pytest.raises(ModelError, match="'If'"):
            check_onnx(field(7, field(1, node)))


def test_a_second_graph_is_refused() -> None:
    with pytest.raises(ModelError, match="graphs"):
        check_onnx(TINY + field(7, b""))
    with pytest.raises(ModelError, match="graphs"):
        check_onnx(b"")


def test_known_fields_of_another_wire_type_are_refused() -> None:
    # a parser would take such a field for an unknown one, and this walk must not read it differently
    with pytest.raises(ModelError, match="varint"):
        check_onnx(bytes([7 << 3 | 0, 1]))


@pytest.mark.parametrize("depth", [200, 100_000])
def test_deep_nesting_is_refused_flat(depth: int) -> None:
    data = b""
    for _ in range(min(depth, 200)):
        data = field(7, field(1, field(5, field(6, data))))
    data = data if depth == 200 else b"\x3a\xff\xff\x03" * depth
    with pytest.raises(ModelError):
        check_onnx(data)


def test_every_prefix_is_refused_or_plain() -> None:
    for stop in range(0, len(TINY), 7):
        try:
            check_onnx(TINY[:stop])
        except ModelError:
            continue
        assert onnx.load_model_from_string(TINY[:stop]).graph.node  # cut between whole fields behind the graph


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_random_bytes_raise_nothing_else(data: bytes) -> None:
    try:
        check_onnx(data)
    except ModelError:
        return
    onnx.load_model_from_string(data)


@given(st.integers(0, 8 * len(TINY) - 1))
@settings(max_examples=300, deadline=None)
def test_what_passes_with_a_flipped_bit_is_still_plain(bit: int) -> None:
    data = bytearray(TINY)
    data[bit // 8] ^= 1 << bit % 8
    try:
        check_onnx(bytes(data))
    except ModelError:
        return
    try:
        model = onnx.load_model_from_string(bytes(data))
    except Exception:  # a flip in the text of a name: each parser's own kind
        return
    assert {node.op_type for node in model.graph.node} <= ALLOWED_OPERATORS
    assert not model.functions
    assert not any(a.HasField("g") or a.graphs for node in model.graph.node for a in node.attribute)


def test_size_and_field_count_are_bounded() -> None:
    with pytest.raises(ModelError, match="bytes"):
        check_onnx(bytes(MAX_ONNX_BYTES + 1))
    started = time.perf_counter()
    with pytest.raises(ModelError, match="fields"):
        check_onnx(field(7, b"\x12\x00" * (1 << 21)))
    assert time.perf_counter() - started < 60  # two million fields; the walk stops at half


def test_a_large_plain_model_is_checked_in_no_time() -> None:
    data = build_graph(
        [onnx.helper.make_node("Mul", ["x", "w"], ["y"])],
        {"x": (1, (1,))},
        ("y", 1, None),
        {"w": np.zeros(2_000_000, np.float32)},
    )
    started = time.perf_counter()
    check_onnx(data)
    assert time.perf_counter() - started < 0.5
