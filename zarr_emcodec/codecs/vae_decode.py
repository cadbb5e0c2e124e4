"""The variational codec's part of decoding: streams to symbols to grey levels to voxels.

streams -> symbols -> grey levels -> voxels
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec import transform
from zarr_emcodec._types import Chunk, Shape, Symbols
from zarr_emcodec.codecs import context_decode, inference
from zarr_emcodec.codecs.latents import StreamPlan, join_streams, plan_streams
from zarr_emcodec.codecs.opened import Opened
from zarr_emcodec.codecs.quantise import Ladder
from zarr_emcodec.entropy import coder
from zarr_emcodec.frame import Frame
from zarr_emcodec.runtime import Model, Options


@lru_cache(maxsize=16)
def ladder_of(model: Model) -> Ladder:
    """The quality ladder of a model, built once per process."""
    return Ladder(model.tables())


@dataclass(eq=False)
class _Latent:
    """A frame on its way: from a plan over symbols to the voxels of its box."""

    frame: Frame
    model: Model
    plan: StreamPlan
    grid: tuple[int, int]
    shape: Shape
    streams: list[Symbols] = field(default_factory=list)
    voxels: Chunk = field(init=False)

    @property
    def cells(self) -> int:
        """Latent cells of a section."""
        return self.grid[0] * self.grid[1]


def decode(opened: Sequence[Opened], options: Options) -> list[Chunk]:
    """Voxels of frames, with shared entropy decoding and inference where model and shape agree."""
    for item in opened:
        item.check_only_full(options)
    out: dict[int, Chunk] = {}
    learned = [i for i, item in enumerate(opened) if item.model.card.context is not None]
    plain = [i for i, item in enumerate(opened) if item.model.card.context is None]
    if learned:
        out.update(zip(learned, context_decode.decode([opened[i] for i in learned], options), strict=True))
    if plain:
        out.update(zip(plain, _decode_plain([opened[i] for i in plain], options), strict=True))
    return [out[i] for i in range(len(opened))]


def _decode_plain(opened: Sequence[Opened], options: Options) -> list[Chunk]:
    items = [_plan(item) for item in opened]
    _entropy_decode(items, options)
    for group in _alike(items):
        _synthesise(group, options)
    return [item.voxels.reshape(item.shape) for item in items]


def _plan(opened: Opened) -> _Latent:
    frame, model = opened.frame, opened.model
    n = transform.n_sections(opened.shape)
    per_plane = n // opened.shape[0] if len(opened.shape) > 2 else 1
    start, stop = (n_planes * per_plane for n_planes in opened.planes) if len(opened.shape) > 2 else (0, n)
    h, w = transform.cells(transform.section_shape(opened.shape), model.card.stride)
    plan = plan_streams(ladder_of(model), frame.setting, opened.sections, n, start, stop)
    return _Latent(frame, model, plan, (h, w), opened.out_shape)


def _entropy_decode(items: Sequence[_Latent], options: Options) -> None:
    """Symbols of every item; streams under one set of tables go through the coder together."""
    for model in {item.model for item in items}:
        mine = [item for item in items if item.model == model]
        work = [
            (data, item.plan.stream_index(last - first, item.cells))
            for item in mine
            for data, first, last in item.plan.parts
        ]
        decoded = iter(coder.decode_many(work, ladder_of(model).tables, backend=options.entropy_backend))
        for item in mine:
            item.streams = [next(decoded) for _ in item.plan.parts]


def _alike(items: Iterable[_Latent]) -> list[list[_Latent]]:
    """Which items may share an inference: same model and grid."""
    groups: dict[tuple[Any, ...], list[_Latent]] = {}
    for item in items:
        groups.setdefault((item.model.card.digest, item.grid), []).append(item)
    return list(groups.values())


def _synthesise(items: Sequence[_Latent], options: Options) -> None:
    """Voxels of items that may share an inference, as many sections at a time as one call may hold."""
    first = items[0]
    many = max(1, options.block_voxels // (first.cells * math.prod(first.model.card.stride)))
    for item in items:
        extent = transform.section_shape(item.shape)
        dtype = item.frame.dtype.newbyteorder("=")
        item.voxels = np.empty((item.plan.stop - item.plan.start, *extent), dtype)
    todo = [(item, section) for item in items for section in range(item.plan.start, item.plan.stop)]
    for i in range(0, len(todo), many):
        runs = _runs(todo[i : i + many])
        blocks = [join_streams(item.plan, item.streams, item.grid, start, stop) for item, start, stop in runs]
        symbols = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        levels = np.repeat([item.frame.setting for item, _, _ in runs], [stop - start for _, start, stop in runs])
        grey = inference.synthesise(first.model, symbols, levels, options)
        at = 0
        for item, start, stop in runs:
            _store(grey[at : at + stop - start], item, start, stop)
            at += stop - start


def _runs(todo: Sequence[tuple[_Latent, int]]) -> list[tuple[_Latent, int, int]]:
    """Single sections as ranges, one for each item."""
    runs = []
    for item, sections in itertools.groupby(todo, key=lambda pair: pair[0]):
        numbers = [section for _, section in sections]
        runs.append((item, numbers[0], numbers[-1] + 1))
    return runs


def _store(grey: NDArray[np.float32], item: _Latent, start: int, stop: int) -> None:
    y, x = transform.section_shape(item.shape)
    window = transform.Window(*item.frame.window) if item.frame.window else None
    cropped = np.ascontiguousarray(grey[:, :y, :x])
    offset = item.plan.start
    item.voxels[start - offset : stop - offset] = transform.from_grey(cropped, window, item.voxels.dtype)
