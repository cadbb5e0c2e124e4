"""The operators a model may use, checked on the bytes of an ONNX file before any runtime sees them.

In: untrusted bytes. Out: nothing, or a ModelError that names what was found. The protobuf wire format is walked here,
without the ``onnx`` package: every field must be one that a plain feed-forward graph needs, so subgraphs, local
functions, training data and files outside the model are refused, known or not yet invented.

Message and field numbers are those of ``onnx.proto`` (ONNX IR version 8 to 13).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zarr_emcodec.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_ONNX_BYTES = 1 << 28
_MAX_FIELDS = 1 << 20  # of one file; keeps the walk of a hostile one under a few seconds
_MAX_ELEMENTS = 1 << 30

ALLOWED_OPERATORS = frozenset(
    {
        "Add",
        "Cast",
        "Clip",
        "Concat",
        "Constant",
        "Conv",
        "ConvTranspose",
        "DepthToSpace",
        "Div",
        "Exp",
        "Floor",
        "Gather",
        "Gemm",
        "Identity",
        "LeakyRelu",
        "MatMul",
        "Mul",
        "Pad",
        "Pow",
        "Relu",
        "Reshape",
        "Sigmoid",
        "Sin",  # element by element, as Tanh: the output is as large as the input
        "Slice",
        "SpaceToDepth",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Tanh",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators of the default domain whose output size follows from their inputs and constants, without control flow."""

_DOMAINS = frozenset({"", "ai.onnx"})
_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
_WIRE_NAMES = {_VARINT: "varint", _I64: "64-bit", _LEN: "length-prefixed", _I32: "32-bit"}

# field numbers that may appear, by message; those with a handler are looked into, the rest only have to be well-formed
_MODEL = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14})
_GRAPH = frozenset({1, 2, 5, 10, 11, 12, 13, 16})
_NODE = frozenset({1, 2, 3, 4, 5, 6, 7, 9})
_ATTRIBUTE = frozenset({1, 2, 3, 4, 5, 7, 8, 9, 13, 20})
_TENSOR = frozenset({1, 2, 4, 5, 7, 8, 9, 10, 11, 12, 14, 16})
# all other allowed fields are length-prefixed
_NUMERIC = {
    "ModelProto": {1: _VARINT, 5: _VARINT},
    "AttributeProto": {2: _I32, 3: _VARINT, 7: _I32, 8: _VARINT, 20: _VARINT},
    "TensorProto": {1: _VARINT, 2: _VARINT, 4: _I32, 5: _VARINT, 7: _VARINT, 10: _I64, 11: _VARINT, 14: _VARINT},
}
_PACKABLE = frozenset(
    {("AttributeProto", 7), ("AttributeProto", 8), *(("TensorProto", n) for n in (1, 4, 5, 7, 10, 11))}
)
_REASONS = {
    ("ModelProto", 20): "training data",
    ("ModelProto", 25): "a local function",
    ("GraphProto", 15): "a sparse tensor",
    ("AttributeProto", 6): "a subgraph",
    ("AttributeProto", 11): "subgraphs",
    ("AttributeProto", 22): "a sparse tensor",
    ("AttributeProto", 23): "sparse tensors",
    ("TensorProto", 3): "a segmented tensor",
    ("TensorProto", 6): "a tensor of strings",
    ("TensorProto", 13): "external data (it would read another file)",
}


def check_onnx(data: bytes, where: str = "model") -> None:
    """Refuse an ONNX file that is more than a plain graph of allowed operators.

    Parameters
    ----------
    data : bytes
        A serialised ``ModelProto``, at most 256 MiB.
    where : str
        What the message calls it.

    Raises
    ------
    ModelError
        On malformed bytes, an operator outside `ALLOWED_OPERATORS` or its domain, subgraphs, local functions, sparse,
        segmented or external tensors, tensors larger than the file could hold, or a field that `onnx.proto` lacks.
    """
    if len(data) > MAX_ONNX_BYTES:
        raise ModelError(f"{where}: {len(data)} bytes, an ONNX file may have {MAX_ONNX_BYTES}.")
    _Walk(memoryview(data), where).model()


@dataclass
class _Walk:
    """One pass over one file; ``n_fields`` counts towards the bound."""

    data: memoryview
    where: str
    n_fields: int = 0

    def wrong(self, at: int, what: str) -> ModelError:
        return ModelError(f"{self.where} byte {at}: {what}. Only models that zarr_emcodec exported are loaded.")

    def model(self) -> None:
        graphs = 0
        for number, start, stop, _ in self.fields("ModelProto", _MODEL, 0, len(self.data)):
            if number == 7:
                graphs += 1
                self.graph(start, stop)
        if graphs != 1:
            raise self.wrong(0, f"{graphs} graphs, needs one")

    def graph(self, start: int, stop: int) -> None:
        for number, begin, end, _ in self.fields("GraphProto", _GRAPH, start, stop):
            if number == 1:
                self.node(begin, end)
            elif number == 5:
                self.tensor(begin, end)

    def node(self, start: int, stop: int) -> None:
        operators = []
        for number, begin, end, _ in self.fields("NodeProto", _NODE, start, stop):
            if number == 4:
                operators.append(self.text(begin, end))
            elif number == 5:
                self.attribute(begin, end)
            elif number == 7 and (domain := self.text(begin, end)) not in _DOMAINS:
                raise self.wrong(begin, f"operator of domain {domain!r:.80}")
        for operator in operators or [""]:  # protobuf takes the last of several; all must be good
            if operator not in ALLOWED_OPERATORS:
                raise self.wrong(start, f"operator {operator!r:.80} is not one of those allowed")

    def attribute(self, start: int, stop: int) -> None:
        for number, begin, end, _ in self.fields("AttributeProto", _ATTRIBUTE, start, stop):
            if number == 5:
                self.tensor(begin, end)

    def tensor(self, start: int, stop: int) -> None:
        dims: list[int] = []
        for number, begin, end, wire in self.fields("TensorProto", _TENSOR, start, stop):
            if number == 1:
                dims += self.varints(begin, end) if wire == _LEN else [self.varint(begin, end)[0]]
            elif number == 14 and (wire != _VARINT or self.varint(begin, end)[0] != 0):
                raise self.wrong(begin, "external data (it would read another file)")
        n_elements = math.prod(dims[:16])
        if len(dims) > 16 or n_elements > min(_MAX_ELEMENTS, 8 * (stop - start)):
            raise self.wrong(
                start, f"a tensor of {stop - start} bytes claims {len(dims)} axes, {n_elements:.3g} numbers"
            )

    def varints(self, start: int, stop: int) -> list[int]:
        values = []
        while start < stop:
            value, start = self.varint(start, stop)
            values.append(value)
            self.count(start)
        return values

    def text(self, start: int, stop: int) -> str:
        try:
            return str(self.data[start:stop], "utf-8")
        except UnicodeDecodeError as error:
            raise self.wrong(start, "a name is not UTF-8") from error

    def varint(self, start: int, stop: int) -> tuple[int, int]:
        """Value and the offset behind it; longer than 64 bits is malformed."""
        value = 0
        for i, byte in enumerate(self.data[start : min(stop, start + 10)]):
            value |= (byte & 0x7F) << 7 * i
            if byte < 0x80 and value < 1 << 64:
                return value, start + i + 1
        raise self.wrong(start, "a varint does not end")

    def count(self, at: int) -> None:
        self.n_fields += 1
        if self.n_fields > _MAX_FIELDS:
            raise self.wrong(at, f"more than {_MAX_FIELDS} fields")

    def fields(
        self, message: str, allowed: frozenset[int], start: int, stop: int
    ) -> Iterator[tuple[int, int, int, int]]:
        """Number, first byte, byte behind and wire type of each field's value; all of them checked to lie inside."""
        while start < stop:
            self.count(start)
            tag, begin = self.varint(start, stop)
            number, wire = tag >> 3, tag & 7
            if tag >= 1 << 32 or wire not in _WIRE_NAMES:
                raise self.wrong(start, f"not a field of a {message}")
            if number not in allowed:
                raise self.wrong(start, f"{_REASONS.get((message, number), f'field {number}')} in a {message}")
            if wire != _wire_of(message, number) and not (wire == _LEN and (message, number) in _PACKABLE):
                raise self.wrong(start, f"field {number} of a {message} is {_WIRE_NAMES[wire]}")
            if wire == _LEN:
                size, begin = self.varint(begin, stop)
                end = begin + size
            elif wire == _VARINT:
                end = self.varint(begin, stop)[1]
            else:
                end = begin + (8 if wire == _I64 else 4)
            if end > stop:
                raise self.wrong(start, f"a {message} ends inside its field {number}")
            yield number, begin, end, wire
            start = end


def _wire_of(message: str, number: int) -> int:
    return _NUMERIC.get(message, {}).get(number, _LEN)
