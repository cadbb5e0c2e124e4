"""Parallel priors compute the same whole numbers on every runtime, whatever the batch, the threads and the tile."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs the extra 'train'")
pytest.importorskip("onnx", reason="training needs the extra 'train'")
pytest.importorskip("onnxruntime", reason="training needs the extra 'train'")

import onnxruntime as ort
import torch
from numpy.typing import NDArray

from zarr_emcodec.entropy.exact import requantise
from zarr_emcodec.errors import ModelError
from zarr_emcodec.runtime.guard import check_onnx
from zarr_emcodec.runtime.torch_backend import TorchNetwork
from zarr_emcodec.train.arch.prior import IntegerPrior, ParallelPrior, PriorConfig
from zarr_emcodec.train.arch.whole import UNIT_SHIFT, WEIGHT_SHIFT
from zarr_emcodec.train.prior_graph import prior_onnx
from zarr_emcodec.train.tokens import CODES

pytestmark = pytest.mark.extra

RNG = np.random.default_rng(11)
Array = NDArray[Any]
SHAPES: list[tuple[PriorConfig, tuple[int, ...]]] = [
    (PriorConfig(tables=40, width=24), (3, 7, 6)),
    (PriorConfig(conditional=True, tables=30, width=16), (2, 6, 10)),
    (PriorConfig(lattice=(2, 2), tables=20, width=16, layers=2), (2, 6, 4)),
    (PriorConfig(lattice=(1, 1, 1), tables=20, width=16), (2, 3, 5, 4)),
    (PriorConfig(lattice=(1, 2, 2), tables=20, width=12, embedding=8), (2, 3, 4, 6)),
]
IDS = ["plain", "conditional", "lattice", "3d", "3d-lattice"]


def lively(config: PriorConfig) -> ParallelPrior:
    """An untrained prior whose activations and scores use their range, with some weights beyond theirs."""
    torch.manual_seed(3)
    model = ParallelPrior(config)
    with torch.no_grad():
        model.window.mul_(4)
        model.window_bias.normal_()
        for weight in model.hidden:
            weight.mul_(3)
        model.choice.normal_()
        model.choice_bias.normal_()
        model.choice_shift.fill_(5)
    return model


def example(config: PriorConfig, shape: tuple[int, ...]) -> tuple[Array, Array | None]:
    tokens = RNG.integers(0, CODES, shape)
    top = (shape[0], *(n // 2 for n in shape[1:]))
    return tokens, RNG.integers(0, CODES, top) if config.conditional else None


def feed(tokens: Array, top: Array | None) -> dict[str, Array]:
    return {"tokens": tokens} if top is None else {"tokens": tokens, "top": top}


def session(data: bytes, threads: int = 1) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def whole_numbers(w: IntegerPrior, config: PriorConfig, tokens: Array, top: Array | None) -> Array:
    """Scores in int64, cell by cell, from the definition: (n, M, tokens)."""
    ndim, reach = config.ndim, config.reach
    cells = [n // c for n, c in zip(tokens.shape[1:], config.cell, strict=True)]
    every: list[Any] = [(slice(None), *map(slice, q, [None] * ndim, config.cell)) for q in config.places]
    parts = [w.embedding[i][tokens[at]] for i, at in enumerate(every)]
    if w.top is not None:
        assert top is not None
        parts.append(w.top[top])
    features = np.moveaxis(np.concatenate(parts, -1), -1, 1).astype(np.int64)
    features = np.pad(features, [(0, 0), (0, 0), *[(reach, reach)] * ndim])
    out = np.zeros((len(tokens), config.tables, *tokens.shape[1:]), np.int64)
    for cell in itertools.product(*map(range, cells)):
        window = features[(slice(None), slice(None), *(slice(c, c + 2 * reach + 1) for c in cell))].reshape(
            len(out), -1
        )
        for p, place in enumerate(config.places):
            h = requantise(window @ w.window[p].reshape(config.width, -1).T + w.window_bias[p], WEIGHT_SHIFT, 0, 127)
            for weight, bias in w.hidden:
                h = requantise((h << WEIGHT_SHIFT) + h @ weight[p].T.astype(np.int64) + bias[p], WEIGHT_SHIFT, 0, 127)
            at: tuple[Any, ...] = tuple(c * n + o for c, n, o in zip(cell, config.cell, place, strict=True))
            out[(slice(None), slice(None), *at)] = h @ w.choice[p].T.astype(np.int64) + w.choice_bias[p]
    return out


@pytest.mark.parametrize(("config", "shape"), SHAPES, ids=IDS)
def test_onnx_torch_and_int64_agree_bit_for_bit(config: PriorConfig, shape: tuple[int, ...]) -> None:
    model = lively(config)
    integers = model.integers()
    graph = prior_onnx(integers, config)
    check_onnx(graph)
    tokens, top = example(config, shape)
    above = None if top is None else torch.from_numpy(top)
    for group in config.occupied(shape[1:]):
        known = model.hide(torch.from_numpy(tokens), group)
        expected = whole_numbers(integers, config, known.numpy(), top)
        assert expected.std() > 1000
        inputs = feed(known.numpy(), top)
        one = session(graph).run(None, inputs)[0]
        assert np.array_equal(one, expected)
        assert np.array_equal(session(graph, threads=3).run(None, inputs)[0], one)
        assert np.array_equal(TorchNetwork(graph, "cpu", 2).run(inputs), one)
        alone = {name: value[:1] for name, value in inputs.items()}
        assert np.array_equal(session(graph).run(None, alone)[0], one[:1])
        with torch.no_grad():  # in training: the same numbers, scaled by a power of two
            scores = model.scores(model.context(known, group, above), group).double()
        own = model.at(torch.from_numpy(np.moveaxis(expected, 1, -1)), group).reshape(-1, config.tables)
        assert torch.equal(scores * 2.0 ** (UNIT_SHIFT + int(model.choice_shift)), own.double())


@pytest.mark.parametrize(("config", "shape"), SHAPES, ids=IDS)
def test_a_tile_with_its_halo_gives_the_scores_of_the_whole(config: PriorConfig, shape: tuple[int, ...]) -> None:
    graph = session(prior_onnx(lively(config).integers(), config))
    tokens, top = example(config, (1, *(2 * n + n % 2 * 2 + 8 for n in shape[1:])))
    whole = graph.run(None, feed(tokens, top))[0]
    first = 2 + config.halo  # a tile from here on, to the same distance from the end
    outer = (slice(None), *(slice(2, -2) for _ in shape[1:]))
    upper = None if top is None else top[(slice(None), *(slice(1, -1) for _ in shape[1:]))]
    tile = graph.run(None, feed(np.ascontiguousarray(tokens[outer]), upper))[0]
    inner = (slice(None), slice(None), *(slice(config.halo, -config.halo) for _ in shape[1:]))
    target = (slice(None), slice(None), *(slice(first, -first) for _ in shape[1:]))
    assert tile[inner].size
    assert np.array_equal(tile[inner], whole[target])


@pytest.mark.parametrize("config", [c for c, _ in SHAPES], ids=IDS)
def test_groups_share_out_the_tokens_and_later_ones_stay_hidden(config: PriorConfig) -> None:
    tokens = torch.arange(8**config.ndim).reshape(1, *[8] * config.ndim) % CODES
    model = ParallelPrior(config)
    assert len(config.groups) == 2**config.ndim <= 8
    owner = torch.full_like(tokens, -1)
    for group, position in enumerate(config.groups):
        at = (slice(None), *(slice(p, None, 2) for p in position))
        assert (owner[at] == -1).all()
        owner[at] = group
        hidden = model.hide(tokens, group)
        assert torch.equal(hidden[at], torch.full_like(hidden[at], CODES))
        assert torch.equal(hidden == CODES, (owner == -1) | (owner == group))
        assert torch.equal(model.at(tokens, group), tokens[at])
    # the later half of the groups know each direct neighbour
    for position in config.groups[len(config.groups) // 2 :]:
        neighbours = [tuple((q + (a == i)) % 2 for i, q in enumerate(position)) for a in range(config.ndim)]
        assert all(config.groups.index(n) < config.groups.index(position) for n in neighbours)


def test_sums_that_float32_cannot_hold_are_refused() -> None:
    config = PriorConfig(embedding=64)
    model = ParallelPrior(config)
    with torch.no_grad():
        model.window.fill_(1.0)
    with pytest.raises(ModelError, match="window 0"):
        prior_onnx(model.integers(), config)
