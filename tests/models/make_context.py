"""Variable-rate models with a learned entropy model in a few kilobytes, whole and valid.

Latents are block means and slopes; the mean of a place is predicted from the means of the nearest places that are
known, its scale is moved by how much those differ. ``python -m tests.models.make_context FOLDER [NAME ...]`` writes
them; as with `make`, the folders in ``context`` were written so once, and their bytes stay. They have a folder of their
own, since ``model="auto"`` prefers such models where it finds them.

    tiny-context      places of 8 x 8 voxels, 2 hyper-latents, groups as a quadtree           20x to 200x
    tiny-context3d    places of 2 x 4 x 4 voxels, 1 hyper-latent, groups as ContextConfig's   10x to 200x
    tiny-stack        as tiny-context, but sections are expected to be like their references  20x to 300x
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tests.models import CONTEXT_FOLDER
from tests.models.make import Array, Graph, basis, npz, with_card, write
from zarr_emcodec.entropy.tables import build_tables

LEVELS = 64
SCALES = np.geomspace(0.08, 80.0, 24)
STEPS = np.geomspace(2.0, 250.0, LEVELS)
HYPER_DEVIATION = 25.0  # of a cell's mean, in grey levels
WEIGHT_SHIFT = 5
GATE_SHIFT = 6  # what references share out comes in 64ths
FAR = 1 << 30  # the end of any axis
Place = tuple[int, ...]


@dataclass(frozen=True)
class Shape:
    """What fixes a model: a place's edges, how many of its axes have slopes, hyper-latents, groups, deviations.

    ``rates`` are bits of a place, coded and under fixed tables, at every ninth level, as they were measured once.
    ``gates`` are 64ths of what references have that a channel is expected to have, by reach; none without reaches.
    ``reach`` is what a reach adds to the index of a channel's scale, hyper-latents first, and ``reach_gain`` what it
    multiplies hyper-latents with.
    """

    edges: tuple[int, ...]
    slopes: int
    hyper: int
    groups: tuple[tuple[Place, ...], ...]
    deviations: tuple[float, ...]
    rates: tuple[tuple[float, ...], tuple[float, ...]]
    gates: tuple[tuple[int, ...], ...] = ()
    reach: tuple[tuple[int, ...], ...] = ()
    reach_gain: tuple[float, ...] = ()

    @property
    def reaches(self) -> int:
        """Of the model's card."""
        return len(self.gates)

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return len(self.edges)

    @property
    def channels(self) -> int:
        """Latents of a place."""
        return 1 + self.slopes

    @property
    def places(self) -> list[Place]:
        """All places in coding order."""
        return [place for group in self.groups for place in group]


FLAT = Shape(
    (8, 8),
    2,
    2,
    (((0, 0),), ((1, 1),), ((0, 1), (1, 0))),
    (250.0, 78.0, 77.0),
    ((24.5, 21.7, 18.7, 15.8, 12.0, 9.0, 4.8, 2.0), (23.5, 20.2, 17.2, 14.2, 11.2, 8.1, 5.0, 2.4)),
)
DEEP = Shape(
    (2, 4, 4),
    3,
    1,
    (
        ((0, 0, 0),),
        ((0, 1, 1), (1, 0, 1), (1, 1, 0)),
        ((0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 1)),
    ),
    (190.0, 20.0, 37.0, 37.0),
    ((25.0, 20.9, 17.0, 13.2, 9.0, 5.4, 2.4, 0.85), (25.9, 21.8, 17.8, 13.7, 9.5, 5.7, 3.0, 1.6)),
)
STACK = replace(
    FLAT,
    rates=((20.4, 17.7, 14.6, 11.8, 8.2, 5.5, 2.1, 0.5), FLAT.rates[1]),
    gates=((0, 0, 0), (60, 52, 52), (56, 40, 40), (44, 20, 20)),
    reach=((0, 0, 0, 0, 0), (-2, -2, -4, -3, -3), (-2, -2, -3, -2, -2), (0, 0, -1, -1, -1)),
    reach_gain=(1.0, 0.5, 0.5, 1.0),
)


def nearest(place: Place, known: Sequence[Place]) -> list[tuple[int, Place]]:
    """Known places nearest to a place: number among the known, and cells away from its own."""
    found = []
    for step in itertools.product((-1, 0, 1), repeat=len(place)):
        at = tuple(p + s for p, s in zip(place, step, strict=True))
        lattice = tuple(n % 2 for n in at)
        if lattice in known:
            found.append((sum(map(abs, step)), known.index(lattice), tuple(n // 2 for n in at)))
    least = min(distance for distance, _, _ in found)
    return [(number, cell) for distance, number, cell in found if distance == least]


def encoder(shape: Shape) -> bytes:
    """``grey`` to hyper-latents, unless `hyper` finds them, and latents of each cell."""
    from onnx import TensorProto

    graph, ndim = Graph(), shape.ndim
    graph.add("Sub", ["grey", graph.weight("middle", np.array(128, np.float32))], "centred")
    rows = basis(shape.edges, shape.slopes)[:, None]
    graph.add("Conv", ["centred", graph.weight("basis", rows)], "blocks", strides=list(shape.edges))
    parts = []
    if not shape.reaches:
        summary = graph.weight("summary", summaries(shape))
        parts.append(graph.add("Conv", ["blocks", summary], "hyper", strides=[2] * ndim))
    graph.weight("ends", np.full(ndim, FAR))
    graph.weight("axes", np.arange(2, 2 + ndim))
    graph.weight("twos", np.full(ndim, 2))
    for i, place in enumerate(shape.places):
        start = graph.weight(f"start{i}", np.array(place))
        parts.append(graph.add("Slice", ["blocks", start, "ends", "axes", "twos"], f"place{i}"))
    graph.add("Concat", parts, "latents", axis=1)
    return graph.to_bytes({"grey": (TensorProto.FLOAT, ndim + 2)}, {"latents": ndim + 2})


def summaries(shape: Shape) -> Array:
    """Weights of the blocks of a cell: its mean in grey levels, then half of what its right half has more."""
    ndim = shape.ndim
    summary = np.zeros((shape.hyper, shape.channels, *[2] * ndim), np.float32)
    summary[0, 0] = 1
    if shape.hyper > 1:
        summary[1, 0, ..., 0], summary[1, 0, ..., 1] = -1, 1
    return np.asarray(summary / (2**ndim * np.prod(shape.edges) ** 0.5), np.float32)


def hyper(shape: Shape) -> bytes:
    """``latents`` of each cell, and what references leave over (``left``, a little of it) to hyper-latents."""
    from onnx import TensorProto

    graph, ndim = Graph(), shape.ndim
    summary = np.moveaxis(summaries(shape), 1, -1)
    every = slice(None)
    rows = np.stack([summary[(every, *place)] for place in shape.places], 1)  # type: ignore[arg-type]
    rows = rows.reshape(shape.hyper, -1, *[1] * ndim)
    for name, share in (("latents", 1.0), ("left", 0.125)):
        graph.add("Conv", [name, graph.weight(f"{name}_rows", np.float32(share) * rows)], f"{name}_told")
    graph.add("Add", ["latents_told", "left_told"], "hyper")
    inputs = dict.fromkeys(("latents", "left"), (TensorProto.FLOAT, ndim + 2))
    return graph.to_bytes(inputs, {"hyper": ndim + 2})


def decoder(shape: Shape, gain: Array) -> bytes:
    """``symbols`` in steps and ``level`` to ``grey``; sees one cell around."""
    from onnx import TensorProto

    graph, ndim = Graph(), shape.ndim
    n_places, channels = len(shape.places), shape.channels
    graph.add("Gather", [graph.weight("gain", np.tile(gain, n_places)), "level"], "steps", axis=0)
    ahead = graph.weight("ahead", np.arange(2, 2 + ndim))
    graph.add("Unsqueeze", ["steps", ahead], "steps_over_grid")
    graph.add("Mul", ["symbols", "steps_over_grid"], "latents")
    kernel = 0.01 * np.random.default_rng(5).standard_normal((n_places * channels, 1, *[3] * ndim))
    kernel.reshape(len(kernel), -1)[:, 3**ndim // 2] += 1
    graph.weight("kernel", kernel.astype(np.float32))
    graph.add("Conv", ["latents", "kernel"], "smooth", pads=[1] * (2 * ndim), group=n_places * channels)
    spread = np.zeros((n_places * channels, channels, *[2] * ndim), np.float32)
    for i, place in enumerate(shape.places):
        for c in range(channels):
            spread[(i * channels + c, c, *place)] = 1
    graph.add("ConvTranspose", ["smooth", graph.weight("spread", spread)], "blocks", strides=[2] * ndim)
    rows = basis(shape.edges, shape.slopes)[:, None]
    graph.add("ConvTranspose", ["blocks", graph.weight("basis", rows)], "centred", strides=list(shape.edges))
    graph.add("Add", ["centred", graph.weight("middle", np.array(128, np.float32))], "grey")
    inputs = {"symbols": (TensorProto.FLOAT, ndim + 2), "level": (TensorProto.INT64, 1)}
    return graph.to_bytes(inputs, {"grey": ndim + 2})


class Cells(Graph):
    """Networks of whole numbers over a grid of cells; weights are stored in a byte each."""

    def __init__(self, ndim: int) -> None:
        super().__init__()
        self.one = [1] * ndim

    def views(self, x: str, window: Sequence[Place]) -> str:
        """The numbers of each cell of a window, one cell after the other; as a matrix they are exact on any runtime."""
        self.add("Pad", [x, self.weight("border", np.array([0, 0, *self.one] * 2))], "padded")
        axes = self.weight("axes", np.arange(2, 2 + len(self.one)))
        views = []
        for i, cell in enumerate(window):
            start = self.weight(f"start{i}", np.array([1 + n for n in cell]))
            end = self.weight(f"end{i}", np.array([n - 1 or FAR for n in cell]))
            views.append(self.add("Slice", ["padded", start, end, axes], f"view{i}"))
        return self.add("Concat", views, "views", axis=1)

    def matrix(self, x: str, rows: Array, name: str) -> str:
        """Weights (out, in) for each cell."""
        from onnx import TensorProto

        self.add("Cast", [self.weight(f"{name}_bytes", rows.reshape(*rows.shape, *self.one))], f"{name}_rows",
                 to=TensorProto.FLOAT)  # fmt: skip
        return self.add("Conv", [x, f"{name}_rows"], f"{name}_sums")

    def clip(self, x: str, low: float, high: float, name: str) -> str:
        """Within bounds, both included."""
        bounds = {"low": low, "high": high}
        ends = [self.weight(f"{name}_{end}", np.array(value, np.float32)) for end, value in bounds.items()]
        return self.add("Clip", [x, *ends], name)

    def of_reach(self, values: Array, name: str) -> str:
        """What numbers (reaches, channels) say of each section's reach, over the grid."""
        self.weight(f"{name}_values", values.reshape(*values.shape, *self.one).astype(np.float32))
        return self.add("Gather", [f"{name}_values", "reach"], name, axis=0)

    def requantise(self, sums: str, bound: int, name: str, shift: int = WEIGHT_SHIFT) -> str:
        """Divided by ``2 ** shift``, half up."""
        half, unit = (np.array(n, np.float32) for n in (1 << shift >> 1, 2.0**-shift))
        self.add("Add", [sums, self.weight(f"{name}_half", half)], f"{name}_raised")
        self.add("Mul", [f"{name}_raised", self.weight(f"{name}_unit", unit)], f"{name}_scaled")
        return self.clip(self.add("Floor", [f"{name}_scaled"], f"{name}_whole"), -bound, bound, name)


def context(shape: Shape, number: int) -> bytes:
    """``known``, ``level`` and perhaps ``reach`` to the ``context`` of a group: means, changes of scales, gates.

    Whole numbers all through: the mean of a place is that of its nearest known neighbours (of the hyper-latents, for
    the first group), each change is how much the first and the last of these differ, less what depends on the level.
    A gate is that of the reach, less where those neighbours differ; the mean gets what the gate leaves over.
    """
    from onnx import TensorProto

    graph, ndim = Cells(shape.ndim), shape.ndim
    group, channels = shape.groups[number], shape.channels
    window = list(itertools.product((-1, 0, 1), repeat=ndim))
    mean, differ = rows(shape, number, window)
    views = graph.views("known", window)
    sums, shift = graph.matrix(views, mean, "mean"), WEIGHT_SHIFT
    if shape.reaches:
        share, gates = gate_rows(shape, number)
        sums, shift = graph.add("Mul", [sums, graph.of_reach(share, "share")], "shared"), shift + GATE_SHIFT
    kinds = [graph.requantise(sums, 511, "means", shift)]
    graph.clip(graph.matrix(views, differ, "differ"), 0, 127, "differences")
    weight, bias = change_rows(shape, number)
    sums = graph.matrix("differences", weight, "moved")
    graph.weight("bias", bias.reshape(*bias.shape, *graph.one))
    graph.add("Gather", ["bias", "level"], "bias_of_level", axis=0)
    kinds.append(graph.requantise(graph.add("Add", [sums, "bias_of_level"], "changes_sums"), 63, "changes"))
    inputs = {"known": (TensorProto.FLOAT, ndim + 2), "level": (TensorProto.INT64, 1)}
    if shape.reaches:
        less = graph.requantise(graph.matrix("differences", weight, "differing"), 127, "less")
        graph.add("Sub", [graph.of_reach(gates, "gate"), less], "gates_left")
        kinds.append(graph.clip("gates_left", 0, 127, "gates"))
        inputs["reach"] = (TensorProto.INT64, 1)
    graph.add("Concat", kinds, "by_kind", axis=1)
    order = np.arange(len(kinds) * len(group) * channels).reshape(len(kinds), len(group), channels).transpose(1, 0, 2)
    graph.add("Gather", ["by_kind", graph.weight("order", order.reshape(-1))], "context", axis=1)
    return graph.to_bytes(inputs, {"context": ndim + 2})


def gate_rows(shape: Shape, number: int) -> tuple[Array, Array]:
    """Of a group's means, in 64ths, and its gates, each (reaches, places * C), by reach."""
    gates = np.tile(np.array(shape.gates), len(shape.groups[number]))
    share = 64 - gates
    if not number:  # hyper-latents are told in steps that differ from reach to reach
        share = share / np.array(shape.reach_gain)[:, None]
    return share, gates


def rows(shape: Shape, number: int, window: Sequence[Place]) -> tuple[Array, Array]:
    """Weights over a window of what a group is given: of its means, and of differences between neighbours."""
    group, before = shape.groups[number], [p for earlier in shape.groups[:number] for p in earlier]
    n_known = shape.hyper + shape.channels * len(before)
    mean = np.zeros((len(group), shape.channels, len(window), n_known), np.int8)
    differ = np.zeros((2, len(group), len(window), n_known), np.int8)
    here = (0,) * shape.ndim
    for i, place in enumerate(group):
        if before:
            seen = [(shape.hyper + shape.channels * k, cell) for k, cell in nearest(place, before)]
            ends = [seen[0], seen[-1]]
        else:
            seen, ends = [(0, here)], [(0, (*here[1:], -1)), (0, (*here[1:], 1))]
            if shape.hyper > 1:  # the place lies in the left half; its slope is about that of the cell
                mean[i, [0, -1], window.index(here), 1] = -64, 32
        for channel, cell in seen:
            mean[i, 0, window.index(cell), channel] = 64 // len(seen)  # a mean is in 64ths, what is known in 32nds
        for sign, (channel, cell) in zip((1, -1), ends, strict=True):
            differ[:, i, window.index(cell), channel] = sign, -sign
    return mean.reshape(-1, len(window) * n_known), differ.reshape(-1, len(window) * n_known)


def change_rows(shape: Shape, number: int) -> tuple[Array, Array]:
    """Weights of differences, and the bias of each level (levels, places * C), that a group's scales are moved by."""
    places = len(shape.groups[number])
    weight = np.zeros((places, shape.channels, 2, places), np.int8)
    for i in range(places):
        weight[i, 0, :, i], weight[i, 1:, :, i] = 2, 1
    less = (2 if number else 1) - (np.arange(LEVELS) >= LEVELS // 2)
    bias = np.zeros((LEVELS, places, shape.channels), np.float32)
    bias[:, :, 0] = -less[:, None] << WEIGHT_SHIFT
    return weight.reshape(places * shape.channels, -1), bias.reshape(LEVELS, -1)


def tables(shape: Shape) -> dict[str, Array]:
    """Members of ``tables.npz``."""
    deviations = np.array(shape.deviations)
    gain = STEPS[:, None] * np.where(np.arange(shape.channels) == 0, 1.0, 1.2)
    spread = deviations / gain
    shift = np.maximum(np.round(np.log2(np.sqrt(spread**2 + 1)) - 1), -1)
    # such that a hyper-latent's activation and the mean that follows from it have the same unit
    hyper_gain = 8 * np.prod(shape.edges) ** 0.5 / (2 ** (shift[:, :1] + 1) * gain[:, :1]) * np.ones(shape.hyper)
    ratio = SCALES[1] / SCALES[0]
    index = 1 + np.log(np.concatenate([HYPER_DEVIATION * hyper_gain, spread], 1) / SCALES[0]) / np.log(ratio)
    scale = np.floor(index + 0.5).clip(-64, len(SCALES))
    for i, last in zip(range(shape.hyper), (48, 36), strict=False):  # coarse levels cannot afford them
        scale[last:, i] = 0
    rate, static_rate = (
        np.exp(np.interp(np.arange(LEVELS), np.arange(0, LEVELS, 9), np.log(rates))) for rates in shape.rates
    )
    further: dict[str, Array] = {}
    if shape.reaches:
        further["reach"] = np.array(shape.reach, np.int16)
        further["reach_gain"] = np.tile(np.array(shape.reach_gain, np.float32)[:, None], shape.hyper)
    return {
        **build_tables(SCALES.tolist(), [1.0]).to_arrays(),
        **further,
        "scale": scale.astype(np.int16),
        "shape": np.zeros(scale.shape, np.uint8),
        "shift": shift.astype(np.int8),
        "gain": gain.astype(np.float32),
        "hyper_gain": hyper_gain.astype(np.float32),
        "static": scale[:, shape.hyper :].clip(1).astype(np.uint8),
        "rate": rate.astype(np.float32),
        "static_rate": static_rate.astype(np.float32),
    }


def model(name: str, shape: Shape, ratios: list[float]) -> dict[str, bytes]:
    """Every file of a model."""
    arrays = tables(shape)
    files = {
        "encoder.onnx": encoder(shape),
        "decoder.onnx": decoder(shape, arrays["gain"]),
        **{f"context-{i}.onnx": context(shape, i) for i in range(len(shape.groups))},
        "tables.npz": npz(arrays),
    }
    if shape.reaches:
        files["hyper.onnx"] = hyper(shape)
    own = {
        "ndim": shape.ndim,
        "stride": [2 * n for n in shape.edges],
        "channels": shape.hyper + len(shape.places) * shape.channels,
        "levels": LEVELS,
        "halo": [1] * shape.ndim,
        "context": {
            "hyper": shape.hyper,
            "groups": [[list(place) for place in group] for group in shape.groups],
            "scales": len(SCALES),
            "halo": [1] * shape.ndim,
            **({"reaches": shape.reaches} if shape.reaches else {}),
        },
    }
    return with_card(name, files, own, {"halo": [0] * shape.ndim}, ratios, codec="vae")


MODELS: dict[str, Callable[[], dict[str, bytes]]] = {
    "tiny-context": lambda: model("tiny-context", FLAT, [20, 200]),
    "tiny-context3d": lambda: model("tiny-context3d", DEEP, [10, 200]),
    "tiny-stack": lambda: model("tiny-stack", STACK, [20, 300]),
}


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else CONTEXT_FOLDER
    write({name: make for name, make in MODELS.items() if not sys.argv[2:] or name in sys.argv[2:]}, folder)
