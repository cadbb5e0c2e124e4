"""What each allowed ONNX operator does, in torch.

Tensors and attributes in, tensors out, as the operator's page in the ONNX specification says (opset 13 to 23). Forms
that no exported model has (automatic padding, negative steps) raise ModelError instead of guessing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zarr_emcodec.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Attributes = dict[str, Any]
Arguments = list[Any]  # Tensor, or None where an optional input is left out

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_DTYPES = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 6: torch.int32, 7: torch.int64, 9: torch.bool,
           10: torch.float16, 11: torch.float64}  # fmt: skip


def apply(operator: str, x: Arguments, a: Attributes, n_outputs: int) -> Sequence[Tensor]:
    """Outputs of one node.

    Parameters
    ----------
    operator : str
        One of `OPERATORS`, or "Split".
    x : list of Tensor or None
        Inputs in the node's order.
    a : dict
        Attributes.
    n_outputs : int
        Names that the node gives to its results.

    Raises
    ------
    ModelError
        If the operator, or this form of it, is not supported.
    """
    if operator == "Split":
        return _split(x, a, n_outputs)
    if operator not in OPERATORS:
        raise ModelError(f"the torch backend has no operator {operator!r}. Use backend='onnxruntime'.")
    return (OPERATORS[operator](x, a),)


def _ints(tensor: Tensor) -> list[int]:
    return [int(v) for v in tensor.reshape(-1).tolist()]


def _argument(x: Arguments, i: int) -> Any:
    return x[i] if i < len(x) else None


def _axes(x: Arguments, i: int, ndim: int) -> list[int]:
    axes = _argument(x, i)
    return list(range(ndim)) if axes is None else [axis % ndim for axis in _ints(axes)]


def _geometry(a: Attributes, ndim: int) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations and pads (begins, then ends) of a convolution."""
    if a.get("auto_pad", "NOTSET") != "NOTSET" or a.get("output_shape"):
        raise ModelError("the torch backend knows no automatic padding. Export the model with explicit pads.")
    return a.get("strides", [1] * ndim), a.get("dilations", [1] * ndim), a.get("pads", [0] * 2 * ndim)


def _pad_list(begins: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Pads as torch wants them: last axis first."""
    return [n for pair in zip(reversed(begins), reversed(ends), strict=True) for n in pair]


def _conv(x: Arguments, a: Attributes) -> Tensor:
    ndim = x[1].ndim - 2
    strides, dilations, pads = _geometry(a, ndim)
    begins, ends = pads[:ndim], pads[ndim:]
    signal = x[0]
    if begins != ends:
        signal, begins = F.pad(signal, _pad_list(begins, ends)), [0] * ndim
    result: Tensor = _CONV[ndim](signal, x[1], _argument(x, 2), strides, begins, dilations, a.get("group", 1))
    return result


def _conv_transpose(x: Arguments, a: Attributes) -> Tensor:
    ndim = x[1].ndim - 2
    strides, dilations, pads = _geometry(a, ndim)
    more = a.get("output_padding", [0] * ndim)
    full = _CONV_TRANSPOSE[ndim](x[0], x[1], _argument(x, 2), strides, 0, more, a.get("group", 1), dilations)
    crop = [slice(pads[i], full.shape[2 + i] - pads[ndim + i]) for i in range(ndim)]
    result: Tensor = full[(slice(None), slice(None), *crop)]
    return result


def _pad(x: Arguments, a: Attributes) -> Tensor:
    signal, mode = x[0], a.get("mode", "constant")
    axes, pads = _axes(x, 3, x[0].ndim), _ints(x[1])
    begins, ends = [0] * signal.ndim, [0] * signal.ndim
    for i, axis in enumerate(axes):
        begins[axis], ends[axis] = pads[i], pads[len(axes) + i]
    if mode == "constant":
        value = _argument(x, 2)
        return F.pad(signal, _pad_list(begins, ends), value=0.0 if value is None else float(value))
    if mode not in ("reflect", "edge") or any(begins[:2]) or any(ends[:2]):
        raise ModelError(f"the torch backend does not pad batch or channels by {mode!r}.")
    torch_mode = "replicate" if mode == "edge" else mode
    return F.pad(signal, _pad_list(begins[2:], ends[2:]), mode=torch_mode)


def _slice(x: Arguments, a: Attributes) -> Tensor:
    starts, ends = _ints(x[1]), _ints(x[2])
    axes = range(len(starts)) if _argument(x, 3) is None else _axes(x, 3, x[0].ndim)
    steps = [1] * len(starts) if _argument(x, 4) is None else _ints(x[4])
    if min(steps) < 1:
        raise ModelError("the torch backend knows no Slice with a negative step.")
    places = [slice(None)] * x[0].ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        places[axis] = slice(start, end, step)
    result: Tensor = x[0][tuple(places)]
    return result


def _split(x: Arguments, a: Attributes, n_outputs: int) -> Sequence[Tensor]:
    axis = a.get("axis", 0)
    if _argument(x, 1) is not None:
        given: Sequence[Tensor] = torch.split(x[0], _ints(x[1]), axis)
        return given
    size = x[0].shape[axis]
    parts: Sequence[Tensor] = torch.split(x[0], -(-size // n_outputs), axis)
    if len(parts) != n_outputs:
        raise ModelError(f"Split of {size} into {n_outputs} equal parts.")
    return parts


def _gather(x: Arguments, a: Attributes) -> Tensor:
    data, axis = x[0], a.get("axis", 0) % x[0].ndim
    index = x[1].to(data.device)
    index = torch.where(index < 0, index + data.shape[axis], index)
    shape = (*data.shape[:axis], *index.shape, *data.shape[axis + 1 :])
    result: Tensor = data.index_select(axis, index.reshape(-1)).reshape(shape)
    return result


def _reshape(x: Arguments, a: Attributes) -> Tensor:
    shape = _ints(x[1])
    if not a.get("allowzero", 0):
        shape = [x[0].shape[i] if n == 0 else n for i, n in enumerate(shape)]
    result: Tensor = x[0].reshape(shape)
    return result


def _squeeze(x: Arguments, a: Attributes) -> Tensor:
    axes = [i for i, n in enumerate(x[0].shape) if n == 1] if _argument(x, 1) is None else _axes(x, 1, x[0].ndim)
    result: Tensor = x[0].squeeze(tuple(axes))
    return result


def _unsqueeze(x: Arguments, a: Attributes) -> Tensor:
    result: Tensor = x[0]
    for axis in sorted(_axes(x, 1, x[0].ndim + x[1].numel())):
        result = result.unsqueeze(axis)
    return result


def _depth_to_space(x: Arguments, a: Attributes) -> Tensor:
    size = a["blocksize"]
    if a.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x[0], size)
    n, c, h, w = x[0].shape
    blocks = x[0].reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    result: Tensor = blocks.reshape(n, c // size**2, h * size, w * size)
    return result


def _space_to_depth(x: Arguments, a: Attributes) -> Tensor:
    size = a["blocksize"]
    n, c, h, w = x[0].shape
    blocks = x[0].reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
    result: Tensor = blocks.reshape(n, c * size**2, h // size, w // size)
    return result


def _gemm(x: Arguments, a: Attributes) -> Tensor:
    left = x[0].T if a.get("transA", 0) else x[0]
    right = x[1].T if a.get("transB", 0) else x[1]
    product: Tensor = a.get("alpha", 1.0) * (left @ right)
    return product if _argument(x, 2) is None else product + a.get("beta", 1.0) * x[2]


def _div(x: Arguments, a: Attributes) -> Tensor:
    whole = not (x[0].is_floating_point() or x[1].is_floating_point())
    return torch.div(x[0], x[1], rounding_mode="trunc" if whole else None)


def _clip(x: Arguments, a: Attributes) -> Tensor:
    low, high = _argument(x, 1), _argument(x, 2)
    return x[0] if low is None and high is None else torch.clamp(x[0], low, high)


def _cast(x: Arguments, a: Attributes) -> Tensor:
    if a["to"] not in _DTYPES:
        raise ModelError(f"the torch backend does not cast to ONNX type {a['to']}.")
    result: Tensor = x[0].to(_DTYPES[a["to"]])
    return result


def _constant(x: Arguments, a: Attributes) -> Tensor:
    ((name, value),) = a.items()
    kinds = {"value_float": torch.float32, "value_floats": torch.float32, "value_int": torch.int64,
             "value_ints": torch.int64}  # fmt: skip
    if name != "value" and name not in kinds:
        raise ModelError(f"the torch backend knows no Constant by {name!r}.")
    return torch.tensor(value, dtype=kinds.get(name))


OPERATORS: dict[str, Callable[[Arguments, Attributes], Tensor]] = {
    "Add": lambda x, a: x[0] + x[1],
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda x, a: torch.cat(x, a["axis"]),
    "Constant": _constant,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "Div": _div,
    "Exp": lambda x, a: torch.exp(x[0]),
    "Floor": lambda x, a: torch.floor(x[0]),
    "Gather": _gather,
    "Gemm": _gemm,
    "Identity": lambda x, a: x[0],
    "LeakyRelu": lambda x, a: F.leaky_relu(x[0], a.get("alpha", 0.01)),
    "MatMul": lambda x, a: torch.matmul(x[0], x[1]),
    "Mul": lambda x, a: x[0] * x[1],
    "Pad": _pad,
    "Pow": lambda x, a: torch.pow(x[0], x[1].to(x[0].device)).to(x[0].dtype),
    "Relu": lambda x, a: torch.relu(x[0]),
    "Reshape": _reshape,
    "Sigmoid": lambda x, a: torch.sigmoid(x[0]),
    "Sin": lambda x, a: torch.sin(x[0]),
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Sqrt": lambda x, a: torch.sqrt(x[0]),
    "Squeeze": _squeeze,
    "Sub": lambda x, a: x[0] - x[1],
    "Tanh": lambda x, a: torch.tanh(x[0]),
    "Transpose": lambda x, a: x[0].permute(a.get("perm", tuple(reversed(range(x[0].ndim))))),
    "Unsqueeze": _unsqueeze,
}
"""Single-output operators; with "Split" these are the ones that `guard` allows."""
