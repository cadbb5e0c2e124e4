"""The model directory of neural fields: graphs without weights, and the tables that the weights of frames use.

A field's weights stand in its frame; the directory says, once and for all, how they compute and how they are coded:
networks of 3 to 7 layers as ONNX, the quantiser steps, the frequency tables; and, where there are any, the starts that
`field_start` made, to which frames store differences.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zarr_emcodec.entropy.tables import build_tables
from zarr_emcodec.errors import MissingExtraError
from zarr_emcodec.fitting import LAYERS, Start
from zarr_emcodec.runtime import canonical_digest
from zarr_emcodec.train.graph import OPSET

ROWS = 1024  # coordinates of a call: enough to keep a core busy, few enough that one voxel costs a millisecond
STEPS = 256
STEPS_PER_OCTAVE = 12
_SCALES = tuple(float(s) for s in np.geomspace(0.15, 180.0, 42))  # 19 % apart: a wrong neighbour costs under 0.5 %
_SHAPES = (1.0, 2.0, 5.0)  # peaked, Gaussian, near uniform as weights begin
_PRECISION = 15


def decoder_onnx(layers: int) -> bytes:
    """A network of so many layers as a graph: ``coords`` (rows, d), matrices ``w1``... and biases ``b1``... to values.

    Raises
    ------
    MissingExtraError
        Without the ``onnx`` package.
    """
    try:
        from onnx import TensorProto, checker, helper
    except ImportError as error:
        raise MissingExtraError("exporting a model", extra="train") from error

    def floats(name: str, shape: list[str | int]) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    sizes: list[str | int] = ["d", *["width"] * (layers - 1), 1]
    inputs, nodes, signal = [floats("coords", ["rows", "d"])], [], "coords"
    for i, (into, out) in enumerate(itertools.pairwise(sizes), 1):
        inputs += [floats(f"w{i}", [into, out]), floats(f"b{i}", [out])]
        if i == layers:
            nodes.append(helper.make_node("Gemm", [signal, f"w{i}", f"b{i}"], ["value"]))
            break
        nodes.append(helper.make_node("Gemm", [signal, f"w{i}", f"b{i}"], [f"z{i}"]))
        nodes.append(helper.make_node("Sin", [f"z{i}"], [f"h{i}"]))
        signal = f"h{i}"
    graph = helper.make_graph(nodes, "field", inputs, [floats("value", ["rows", 1])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    checker.check_model(model)
    return bytes(model.SerializeToString())


def tables_npz(starts: Sequence[Start] = ()) -> bytes:
    """Frequency tables of weights in steps, and ``steps`` (256,): float32, falling from 4 by 12 to the octave.

    Of a start ``start_<axes>_<layers>_<i>`` is tensor i, float16.
    """
    arrays: dict[str, Any] = build_tables(_SCALES, _SHAPES, precision=_PRECISION).to_arrays()
    arrays["steps"] = (2.0 ** (2 - np.arange(STEPS) / STEPS_PER_OCTAVE)).astype(np.float32)
    for start in starts:
        name = f"start_{start.widest.axes}_{start.widest.layers}"
        arrays |= {f"{name}_{i}": tensor.astype(np.float16) for i, tensor in enumerate(start.tensors)}
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def export(
    folder: Path, *, name: str, version: int, starts: Sequence[Start] = (), made_from: str = "none"
) -> dict[str, Any]:
    """Write a model directory and give its card; files of the same names are replaced.

    Parameters
    ----------
    folder : Path
    name, version : str, int
    starts : sequence of Start
        What frames store differences to.
    made_from : str
        What those were made from.
    """
    low, high = LAYERS
    files = {f"decoder-{n}.onnx": decoder_onnx(n) for n in range(low, high)}
    files |= {"decoder.onnx": decoder_onnx(high), "tables.npz": tables_npz(starts)}
    decoder: dict[str, Any] = {
        "files": {file: hashlib.sha256(data).hexdigest() for file, data in sorted(files.items())},
        "backbone": "siren",
        "layers": [low, high],
        "rows": ROWS,
    }
    if starts:
        decoder["starts"] = [[s.widest.axes, s.widest.layers, s.widest.width] for s in starts]
    card = {
        "format": 1,
        "id": f"{name}@{version}",
        "codec": "inr",
        "digest": f"sha256:{canonical_digest(decoder).hex()}",
        "decoder": decoder,
        "ratio_range": [2, 65536],
        "voxel_nm": {},
        "mac_per_voxel": {},
        "training": {"data": f"{made_from}: a field is fitted to each chunk"},
        "licence": "BSD-3-Clause",
        "measured": {},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        (folder / file).write_bytes(data)
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return card


def main() -> None:
    """``python -m zarr_emcodec.train.export_inr --models models``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder that gets <name>/")
    parser.add_argument("--name", default="inr-siren")
    parser.add_argument("--version", type=int, default=1, help="never reuse one that was released")
    parser.add_argument("--starts", type=Path, help="checkpoint of train.field_start (needs torch)")
    args = parser.parse_args()
    starts: list[Start] = []
    made_from = "none"
    if args.starts:
        from zarr_emcodec.train.field_start import describe_starts, load_starts

        starts, made_from = load_starts(args.starts), describe_starts(args.starts)
    card = export(args.models / args.name, name=args.name, version=args.version, starts=starts, made_from=made_from)
    print(json.dumps({key: card[key] for key in ("id", "digest", "ratio_range")}))


if __name__ == "__main__":
    main()
