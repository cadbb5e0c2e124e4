"""A real model in a few kilobytes: a 4 x 4 block DCT with a small learned-looking convolution, as ONNX.

`write_tiny_model` gives other rooms' tests something that compresses; the rest serves the tests beside it. Needs the
``onnx`` package.
"""

from __future__ import annotations

import hashlib
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="building the tiny model needs onnx")  # skips whichever test module imports this
import onnx
from onnx import TensorProto, helper, numpy_helper

from zarr_emcodec.entropy.tables import build_tables
from zarr_emcodec.runtime import find_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from zarr_emcodec.runtime import Model

STRIDE = 4
CHANNELS = STRIDE**2
LEVELS = 16
GREY = 128.0
STEPS = np.geomspace(4.0, 400.0, LEVELS)
SCALES = np.geomspace(0.1, 64.0, 24)


def build_graph(
    nodes: Sequence[Any],
    inputs: Mapping[str, tuple[int, Sequence[Any]]],
    output: tuple[str, int, Sequence[Any] | None],
    weights: Mapping[str, NDArray[Any]],
) -> bytes:
    """A serialised model: inputs by name with type and shape, one output likewise, its shape perhaps unsaid."""
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(name, kind, list(shape)) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(*output)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    # versions that every supported ONNX Runtime reads
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def basis() -> NDArray[np.float64]:
    """Orthonormal 2-D DCT-II of a block, shape (CHANNELS, STRIDE * STRIDE)."""
    k, x = np.mgrid[:STRIDE, :STRIDE]
    line = np.cos(np.pi * (2 * x + 1) * k / (2 * STRIDE)) * np.where(k == 0, 1, 2**0.5) / STRIDE**0.5
    return np.kron(line, line)


def ladder() -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Table index and quantiser step, both (LEVELS, CHANNELS), for spectra that fall as in micrographs."""
    row, column = np.divmod(np.arange(CHANNELS), STRIDE)
    spread = 150.0 / (1.0 + row + column) ** 1.5
    gain = np.repeat(STEPS[:, None], CHANNELS, 1).astype(np.float32)
    nearest = np.abs(np.log(spread / gain)[..., None] - np.log(SCALES)).argmin(-1)
    return (1 + nearest).astype(np.uint8), gain


def encoder_onnx() -> bytes:
    """``grey`` (n, 1, y, x) to latents (n, CHANNELS, y / 4, x / 4)."""
    weights: dict[str, NDArray[Any]] = {
        "basis": basis().reshape(CHANNELS, 1, STRIDE, STRIDE).astype(np.float32),
        "middle": np.array(GREY, np.float32),
    }
    nodes = [
        helper.make_node("Sub", ["grey", "middle"], ["centred"]),
        helper.make_node("Conv", ["centred", "basis"], ["latents"], strides=[STRIDE, STRIDE]),
    ]
    inputs = {"grey": (TensorProto.FLOAT, ("n", 1, "y", "x"))}
    return build_graph(nodes, inputs, ("latents", TensorProto.FLOAT, ("n", CHANNELS, "h", "w")), weights)


def decoder_onnx(seed: int) -> bytes:
    """``symbols`` (n, CHANNELS, h, w) and ``level`` (n) to grey levels (n, 1, 4 h, 4 w); sees one cell around."""
    rng = np.random.default_rng(seed)
    weights: dict[str, NDArray[Any]] = {
        "gain": ladder()[1],
        "ahead": np.array([2, 3], np.int64),
        # half precision is how trained weights are stored; small, so that the block DCT stays what reconstructs
        "soften": (1e-3 * rng.standard_normal((CHANNELS, CHANNELS, 3, 3))).astype(np.float16),
        "basis": basis().T.reshape(CHANNELS, CHANNELS, 1, 1).astype(np.float32),
        "middle": np.array(GREY, np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["gain", "level"], ["steps"]),
        helper.make_node("Unsqueeze", ["steps", "ahead"], ["steps4"]),
        helper.make_node("Mul", ["symbols", "steps4"], ["latents"]),
        helper.make_node("Cast", ["soften"], ["kernel"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["latents", "kernel"], ["blurred"], pads=[1, 1, 1, 1]),
        helper.make_node("LeakyRelu", ["blurred"], ["bent"], alpha=0.1),
        helper.make_node("Add", ["latents", "bent"], ["both"]),
        helper.make_node("Conv", ["both", "basis"], ["blocks"]),
        helper.make_node("DepthToSpace", ["blocks"], ["centred"], blocksize=STRIDE, mode="CRD"),
        helper.make_node("Add", ["centred", "middle"], ["grey"]),
    ]
    inputs = {"symbols": (TensorProto.FLOAT, ("n", CHANNELS, "h", "w")), "level": (TensorProto.INT64, ("n",))}
    return build_graph(nodes, inputs, ("grey", TensorProto.FLOAT, ("n", 1, "y", "x")), weights)


def tables_npz() -> bytes:
    """Frequency tables and the ladder."""
    index, gain = ladder()
    stream = io.BytesIO()
    arrays: dict[str, Any] = {**build_tables(list(SCALES), [1.0]).to_arrays(), "index": index, "gain": gain}
    np.savez(stream, **arrays)
    return stream.getvalue()


def card_of(files: dict[str, bytes], name: str = "tiny", version: int = 1) -> dict[str, Any]:
    """The card that these files make true."""

    def sha256(*names: str) -> dict[str, str]:
        return {n: hashlib.sha256(files[n]).hexdigest() for n in names if n in files}

    return {
        "format": 1,
        "id": f"{name}@{version}",
        "codec": "vae",
        "decoder": {
            "files": sha256("decoder.onnx", "tables.npz"),
            "ndim": 2,
            "stride": [STRIDE, STRIDE],
            "channels": CHANNELS,
            "levels": LEVELS,
            "halo": [1, 1],
        },
        "encoder": {"files": sha256("encoder.onnx"), "halo": [0, 0]},
        "ratio_range": [2, 200],
        "voxel_nm": {"y": [4, 8], "x": [4, 8]},
        "mac_per_voxel": {"encode": 16, "decode": 176},
        "training": {"data": "none"},
        "licence": "BSD-3-Clause",
        "measured": {},
    }


def tiny_files(name: str = "tiny", version: int = 1, seed: int = 0) -> dict[str, bytes]:
    """Every file of a tiny model by name."""
    files = {"encoder.onnx": encoder_onnx(), "decoder.onnx": decoder_onnx(seed), "tables.npz": tables_npz()}
    card = json.dumps(card_of(files, name, version), indent=1).encode()
    return {"card.json": card, "README.md": b"# A model for tests\n", **files}


def write_tiny_model(folder: Path, name: str = "tiny", version: int = 1, seed: int = 0) -> Path:
    """Write ``folder/<name>-<version>``, a whole model directory, and give its path."""
    directory = folder / f"{name}-{version}"
    directory.mkdir(parents=True)
    for file, data in tiny_files(name, version, seed).items():
        (directory / file).write_bytes(data)
    return directory


def some_symbols(n: int = 2, size: int = 6) -> dict[str, NDArray[Any]]:
    """Decoder inputs."""
    rng = np.random.default_rng(7)
    symbols = rng.integers(-3, 4, (n, CHANNELS, size, size)).astype(np.float32)
    return {"symbols": symbols, "level": np.arange(n, dtype=np.int64) % LEVELS}


def decode_in_worker(model: Model) -> bytes:
    """Grey levels of `some_symbols`, as bytes; top-level, so that worker processes can call it."""
    return model.run("decoder", some_symbols()).tobytes()


def decode_by_digest(digest: bytes) -> bytes:
    """The same, from nothing but a digest."""
    return decode_in_worker(find_model(digest))


def check(data: bytes) -> None:
    """Raise unless ONNX itself finds the model valid."""
    onnx.checker.check_model(onnx.load_model_from_string(data))
