"""Token models in a few kilobytes, whole and valid: block means and slopes as codes, neighbours' means as context.

``python -m tests.models.make FOLDER`` writes them. The folders beside this file were written so, once, and are what
tests and golden frames use: their bytes, and so their digests, must not follow the version of ``onnx``.

    tiny-vq      two levels of 8 x 8 and 4 x 4 voxels, priors of both, bottom tokens drawn     64x, 12.8x
    tiny-vq16    one level of 16 x 16 voxels, no tables                                        256x
    tiny-vq3d    one level of 2 x 4 x 4 voxels on a lattice of 1 x 2 x 2, prior of 8 groups    32x
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec.entropy.tables import Tables

HERE = Path(__file__).parent
CODES = 256
N_MEANS = 16
FAR = 1000  # outweighs what any number of neighbours scores
Array = NDArray[Any]


def basis(edges: Sequence[int], n_slopes: int) -> Array:
    """Mean and slopes along the last axes of a block, orthonormal, shape (1 + n_slopes, \\*edges), float32."""
    rows = [np.ones(edges)]
    for axis in range(len(edges) - n_slopes, len(edges)):
        ramp = np.arange(edges[axis]) - (edges[axis] - 1) / 2
        rows.append(np.broadcast_to(np.expand_dims(ramp, [a for a in range(len(edges)) if a != axis]), edges))
    return np.stack([row / np.sqrt(np.square(row).sum()) for row in rows]).astype(np.float32)


def codebook(voxels: int, spread: float) -> Array:
    """16 means and 4 x 4 slopes, shape (256, 3), float32; code ``16 * mean + 4 * slope + slope``."""
    means = np.linspace(-spread, spread, N_MEANS) * voxels**0.5
    slopes = np.array([-0.7, -0.2, 0.2, 0.7]) * spread * voxels**0.5 / 2
    return np.array([(a, b, c) for a in means for b in slopes for c in slopes], np.float32)


class Graph:
    """Nodes and weights of a network that is being written down."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: dict[str, Array] = {}

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """A node with one output, whose name is given back."""
        from onnx import helper

        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def weight(self, name: str, values: Array) -> str:
        """A constant."""
        self.weights[name] = values
        return name

    def look_up(self, tokens: str, book: Array, ndim: int) -> str:
        """Tokens (n, \\*grid) to vectors (n, D, \\*grid)."""
        self.add("Gather", [self.weight(f"{tokens}_book", book), tokens], f"{tokens}_last")
        order = [0, ndim + 1, *range(1, ndim + 1)]
        return self.add("Transpose", [f"{tokens}_last"], f"{tokens}_vectors", perm=order)

    def around(self, x: str, kernel: Array, output: str) -> str:
        """A convolution that sees one cell around."""
        ndim = kernel.ndim - 2
        return self.add("Conv", [x, self.weight(f"{output}_kernel", kernel)], output, pads=[1] * (2 * ndim))

    def to_bytes(self, inputs: Mapping[str, tuple[int, int]], outputs: Mapping[str, int]) -> bytes:
        """The network; inputs by name as (element type, axes), outputs by name as axes."""
        import onnx
        from onnx import TensorProto, helper

        from tests.runtime.tiny_model import build_graph

        free = {name: (kind, [f"{name}{i}" for i in range(axes)]) for name, (kind, axes) in inputs.items()}
        (first, axes), *others = outputs.items()
        data = build_graph(self.nodes, free, (first, TensorProto.FLOAT, [f"o{i}" for i in range(axes)]), self.weights)
        model = onnx.load_model_from_string(data)
        for name, axes in others:
            more = helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}{i}" for i in range(axes)])
            model.graph.output.append(more)
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString())


def encoder(edges: Sequence[int], book: Array, n_slopes: int = 2, *, residual: bool = False) -> bytes:
    """``image`` (and ``decoded``, to be taken off) to ``distances``."""
    from onnx import TensorProto

    graph, ndim = Graph(), len(edges)
    x = graph.add("Sub", ["image", "decoded"], "left") if residual else "image"
    rows = basis(edges, n_slopes)[:, None]
    graph.add("Conv", [x, graph.weight("basis", rows)], "vectors", strides=list(edges))
    graph.weight("book", (-2 * book).reshape(*book.shape, *[1] * ndim))
    graph.add("Conv", ["vectors", "book", graph.weight("norm", np.square(book).sum(1))], "distances")
    inputs = {"image": (TensorProto.FLOAT, ndim + 2)}
    if residual:
        inputs["decoded"] = (TensorProto.FLOAT, ndim + 2)
    return graph.to_bytes(inputs, {"distances": ndim + 2})


def _smoothing(ndim: int, seed: int) -> Array:
    kernel = 0.02 * np.random.default_rng(seed).standard_normal((3, 3, *[3] * ndim))
    centre: Any = (range(3), range(3), *[1] * ndim)
    kernel[centre] += 1
    return kernel.astype(np.float32)


def decoder(edges: Sequence[int], book: Array, name: str, *, features: bool = False) -> bytes:
    """Tokens to ``image``; with ``features``, codes at twice the grid."""
    from onnx import TensorProto

    graph, ndim = Graph(), len(edges)
    vectors = graph.look_up(name, book, ndim)
    smooth = graph.around(vectors, _smoothing(ndim, 1), "smooth")
    rows = basis(edges, 2)[:, None]
    graph.add("ConvTranspose", [smooth, graph.weight("basis", rows)], "image", strides=list(edges))
    outputs = {"image": ndim + 2}
    if features:
        twice = np.zeros((3, 3, 2, 2), np.float32)
        twice[range(3), range(3)] = 1
        graph.add("ConvTranspose", [smooth, graph.weight("twice", twice)], "features", strides=[2, 2])
        outputs["features"] = 4
    return graph.to_bytes({name: (TensorProto.INT64, ndim + 1)}, outputs)


def bottom_decoder(edges: Sequence[int], book: Array) -> bytes:
    """``bottom`` tokens and ``features`` to the ``image`` to add."""
    from onnx import TensorProto

    graph = Graph()
    vectors = graph.look_up("bottom", book, 2)
    kernel = (0.01 * np.random.default_rng(2).standard_normal((3, 3, 3, 3))).astype(np.float32)
    told = graph.around("features", kernel, "told")
    graph.add("Add", [vectors, told], "both")
    rows = basis(edges, 2)[:, None]
    graph.add("ConvTranspose", ["both", graph.weight("basis", rows)], "image", strides=list(edges))
    return graph.to_bytes({"bottom": (TensorProto.INT64, 3), "features": (TensorProto.FLOAT, 4)}, {"image": 4})


def prior(ndim: int, *, bottom: bool = False) -> bytes:
    """``tokens`` to a score for each ``table``: the one whose mean is nearest to that of the tokens around.

    Whole numbers all through: with S the sum of the known neighbours' means and N their number, table c scores
    ``2 c S - c^2 N``; where there is none, the tables in front win, for the bottom by how steep the top is.
    """
    from onnx import TensorProto

    graph = Graph()
    code = np.arange(CODES)
    known = np.zeros((CODES + 1, 2), np.float32)
    known[:CODES] = np.stack([np.ones(CODES), code // 16], 1)
    graph.look_up("tokens", known, ndim)
    total = np.zeros((2, 2, *[3] * ndim), np.float32)
    total[range(2), range(2)] = 1
    graph.around("tokens_vectors", total, "sums")
    front = 2 if bottom else 1
    mean = np.arange(N_MEANS)
    weight = np.zeros((front + N_MEANS, 3 if bottom else 2), np.float32)
    weight[:front, 0] = -FAR
    weight[front:, 0], weight[front:, 1] = -np.square(mean), 2 * mean
    bias = np.zeros(len(weight), np.float32)
    bias[0] = 1
    x = "sums"
    inputs = {"tokens": (TensorProto.INT64, ndim + 1)}
    if bottom:
        slope = np.abs(2 * (code // 4 % 4) - 3) // 2 + np.abs(2 * (code % 4) - 3) // 2
        graph.look_up("top", slope[:, None].astype(np.float32), ndim)
        graph.add("ConvTranspose", ["top_vectors", graph.weight("spread", np.ones((1, 1, 2, 2), np.float32))], "steep",
                  strides=[2, 2])  # fmt: skip
        x = graph.add("Concat", ["sums", "steep"], "context", axis=1)
        weight[1, 2] = 1
        inputs["top"] = (TensorProto.INT64, 3)
    graph.weight("score", weight.reshape(*weight.shape, *[1] * ndim))
    graph.add("Conv", [x, "score", graph.weight("bias", bias)], "table")
    return graph.to_bytes(inputs, {"table": ndim + 2})


def tables(level: str, spreads: Sequence[float], *, places: int = 1) -> dict[str, Array]:
    """Tables of a level, for each place in a cell: some around the middle, of these spreads, then one for each mean."""
    code = np.arange(CODES)
    rows = [np.zeros(CODES + 1, np.uint16)]
    centres = [(7.5, spread) for spread in spreads] + [(float(c), 1.2) for c in range(N_MEANS)]
    for place, (centre, spread) in itertools.product(range(places), centres):
        rare = 0.1 + 0.02 * place  # no two places alike
        slope = np.array([rare, 0.5 - rare, 0.5 - rare, rare])
        mass = np.exp(-np.abs(code // 16 - centre) / spread) * slope[code // 4 % 4] * slope[code % 4]
        share = 1 + np.floor(mass / mass.sum() * ((1 << 14) - 1 - CODES)).astype(np.int64)
        share[mass.argmax()] += (1 << 14) - 1 - share.sum()
        rows.append(np.append(share, 1).astype(np.uint16))
    lows, sizes = np.zeros(len(rows), np.int16), np.full(len(rows), CODES + 1, np.int16)
    sizes[0] = 0
    arrays = Tables(np.stack(rows), lows, sizes, 14).to_arrays()
    return {f"{level}_{name}": values for name, values in arrays.items()}


def npz(arrays: Mapping[str, Array]) -> bytes:
    """An archive of arrays."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # numpy's stub takes these for flags
    return stream.getvalue()


def two_levels() -> dict[str, bytes]:
    """tiny-vq."""
    top, bottom = codebook(64, 2.4), codebook(16, 1.2)
    files = {
        "encoder.onnx": encoder((8, 8), top),
        "encoder-bottom.onnx": encoder((4, 4), bottom, residual=True),
        "decoder.onnx": decoder((8, 8), top, "top", features=True),
        "decoder-bottom.onnx": bottom_decoder((4, 4), bottom),
        "prior.onnx": prior(2),
        "prior-bottom.onnx": prior(2, bottom=True),
        "tables.npz": npz(tables("top", [4.0]) | tables("bottom", [1.5, 4.0])),
    }
    groups = [[[0, 0]], [[1, 1]], [[0, 1]], [[1, 0]]]
    own = {
        "ndim": 2,
        "stride": [8, 8],
        "tokens": {"codes": CODES, "levels": ["top", "bottom"], "refine": [2, 2], "lattice": [1, 1]},
        "halo": [1, 1],
        "halos": {"decoder-bottom": [1, 1]},
        "prior": {
            "top": {"tables": 17, "groups": groups, "halo": 1},
            "bottom": {"tables": 18, "groups": groups, "halo": 1, "policy": "draw"},
        },
    }
    return with_card("tiny-vq", files, own, {"halo": [0, 0], "halos": {"encoder-bottom": [0, 0]}}, [12.8, 64])


def one_level() -> dict[str, bytes]:
    """tiny-vq16."""
    book = codebook(256, 2.0)
    files = {"encoder.onnx": encoder((16, 16), book), "decoder.onnx": decoder((16, 16), book, "tokens")}
    own = {"ndim": 2, "stride": [16, 16], "tokens": {"codes": CODES, "levels": ["top"]}, "halo": [1, 1]}
    return with_card("tiny-vq16", files, own, {"halo": [0, 0]}, [256, 256])


def volumes() -> dict[str, bytes]:
    """tiny-vq3d."""
    book = codebook(32, 2.4)
    files = {
        "encoder.onnx": encoder((2, 4, 4), book),
        "decoder.onnx": decoder((2, 4, 4), book, "tokens"),
        "prior.onnx": prior(3),
        "tables.npz": npz(tables("top", [4.0], places=4)),
    }
    places = sorted(itertools.product(range(2), repeat=3), key=lambda place: (sum(place) % 2, place))
    own = {
        "ndim": 3,
        "stride": [2, 4, 4],
        "tokens": {"codes": CODES, "levels": ["top"], "lattice": [1, 2, 2]},
        "halo": [1, 1, 1],
        "prior": {"top": {"tables": 17, "groups": [[list(place)] for place in places], "halo": [1, 1, 1]}},
    }
    return with_card("tiny-vq3d", files, own, {"halo": [0, 0, 0], "price": 0.05}, [32, 32])


ENCODERS = ("encoder", "hyper")
"""How networks begin that a decoder has no use for."""


def with_card(
    name: str,
    files: dict[str, bytes],
    decoder: dict[str, Any],
    encoder: dict[str, Any],
    ratios: list[float],
    codec: str = "vqvae",
) -> dict[str, bytes]:
    """The files with the card that they make true."""
    hashes = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    card = {
        "format": 1,
        "id": f"{name}@1",
        "codec": codec,
        "decoder": {"files": {f: h for f, h in hashes.items() if not f.startswith(ENCODERS)}, **decoder},
        "encoder": {"files": {f: h for f, h in hashes.items() if f.startswith(ENCODERS)}, **encoder},
        "ratio_range": ratios,
        "training": {"data": "none"},
        "licence": "BSD-3-Clause",
    }
    return {**files, "card.json": (json.dumps(card, indent=1) + "\n").encode()}


MODELS: dict[str, Callable[[], dict[str, bytes]]] = {
    "tiny-vq": two_levels,
    "tiny-vq16": one_level,
    "tiny-vq3d": volumes,
}


def write(models: Mapping[str, Callable[[], dict[str, bytes]]], folder: Path) -> None:
    """Write every model; nothing that exists is written again."""
    for name, make in models.items():
        (folder / name).mkdir(parents=True)
        for file, data in make().items():
            (folder / name / file).write_bytes(data)


if __name__ == "__main__":
    write(MODELS, Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
