"""Frames under a learned entropy model to voxels, sections and volumes alike.

parts -> latents in steps, group by group -> grey levels -> voxels
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec import transform
from zarr_emcodec._types import Buffer, Chunk, Shape
from zarr_emcodec.codecs import inference
from zarr_emcodec.codecs.context import ContextModel, context_model_of
from zarr_emcodec.codecs.context_coding import decode_parts
from zarr_emcodec.codecs.context_side import read_side
from zarr_emcodec.codecs.context_walk import Walk
from zarr_emcodec.codecs.latents import group_starts
from zarr_emcodec.codecs.opened import Opened
from zarr_emcodec.errors import FrameError
from zarr_emcodec.runtime import Options


@dataclass(eq=False)
class _Item:
    """A frame on its way to voxels.

    Attributes
    ----------
    parts : list of (data, count)
        Those that hold what is wanted, and how many sections each has.
    pieces : slice
        Sections or volumes wanted, counted from the first of `parts`.
    window : slice
        Cells along the first axis of a volume that are wanted, with what the decoder sees around them.
    planes : slice
        The planes wanted, counted from the window's first.
    """

    opened: Opened
    model: ContextModel
    change: NDArray[np.int16]
    parts: list[tuple[Buffer, int]]
    grid: Shape
    extent: Shape
    pieces: slice
    window: slice
    planes: slice
    latents: NDArray[np.float32] = field(init=False)
    voxels: Chunk = field(init=False)

    @property
    def n(self) -> int:
        """Sections or volumes that are decoded."""
        return sum(count for _, count in self.parts)


def decode(opened: Sequence[Opened], options: Options) -> list[Chunk]:
    """Voxels of frames; those of one model and one shape share entropy decoding and inference."""
    items = [_open(item) for item in opened]
    groups: dict[Hashable, list[_Item]] = {}
    for item in items:
        groups.setdefault((item.model.model, item.extent), []).append(item)
    for group in groups.values():
        for batch in _batches(group, options):
            _read(batch, options)
            _synthesise(batch, options)
    return [item.voxels.reshape(item.opened.out_shape) for item in items]


def _batches(items: Sequence[_Item], options: Options) -> list[list[_Item]]:
    """Frames that are worked on at once: as many as one inference call may hold, at least one."""
    out: list[list[_Item]] = []
    room = 0
    for item in items:
        voxels = item.n * math.prod(item.grid) * math.prod(item.model.model.card.stride)
        if not out or voxels > room:
            out.append([])
            room = options.block_voxels
        out[-1].append(item)
        room -= voxels
    return out


def _open(opened: Opened) -> _Item:
    card = opened.model.card
    model = context_model_of(opened.model)
    extent = transform.section_shape(opened.shape, card.ndim)
    n = transform.n_sections(opened.shape, card.ndim)
    grid = transform.cells(extent, card.stride)
    pieces, window, planes = _wanted(opened, n, grid)
    data = opened.sections[1:]
    starts = group_starts(n, len(data)) if 0 < len(data) <= n else []
    if len(starts) != len(data) or not data:
        raise FrameError(f"frame holds {len(data)} parts for {n} sections.", field="table")
    spans = list(zip(data, starts, [*starts[1:], n], strict=True))
    chosen = [span for span in spans if span[1] < pieces.stop and span[2] > pieces.start]
    first = chosen[0][1]
    return _Item(
        opened=opened,
        model=model,
        change=read_side(opened.sections[0], opened.frame.setting, model),
        parts=[(part, stop - start) for part, start, stop in chosen],
        grid=grid,
        extent=extent,
        pieces=slice(pieces.start - first, pieces.stop - first),
        window=window,
        planes=planes,
    )


def _wanted(opened: Opened, n: int, grid: Shape) -> tuple[slice, slice, slice]:
    """Sections or volumes, window of cells, and planes within it, that hold the planes asked for."""
    start, stop = opened.planes
    everything = slice(0, n), slice(0, grid[0]), slice(None)
    if len(opened.shape) > len(grid):
        per_plane = n // opened.shape[0]
        return slice(start * per_plane, stop * per_plane), *everything[1:]
    if len(grid) == 2 or len(opened.shape) == 2 or (start, stop) == (0, opened.shape[0]):
        return everything
    card = opened.model.card
    depth, halo = card.stride[0], card.decoder_halo[0]
    low, high = max(start // depth - halo, 0), min(-(-stop // depth) + halo, grid[0])
    return slice(0, n), slice(low, high), slice(start - low * depth, stop - low * depth)


def _read(items: Sequence[_Item], options: Options) -> None:
    """Latents of frames of one model and shape, cut to what is wanted."""
    first = items[0]
    counts = [item.n for item in items]
    levels = np.repeat(np.array([item.opened.frame.setting for item in items], np.int64), counts)
    change = np.repeat(np.stack([item.change for item in items]), counts, axis=0)
    parts = [part for item in items for part in item.parts]
    sizes = [count for _, count in parts]
    walk = Walk(first.model, levels, change, sizes, first.grid, first.extent, options)
    latents = decode_parts(walk, [data for data, _ in parts])
    for item, mine in zip(items, np.split(latents, np.cumsum(counts)[:-1]), strict=True):
        item.latents = mine[item.pieces, :, item.window]


def _synthesise(items: Sequence[_Item], options: Options) -> None:
    """Voxels of frames; those with windows of one size share inference."""
    groups: dict[Hashable, list[_Item]] = {}
    for item in items:
        groups.setdefault(item.latents.shape[1:], []).append(item)
    for group in groups.values():
        counts = [len(item.latents) for item in group]
        latents = group[0].latents if len(group) == 1 else np.concatenate([item.latents for item in group])
        levels = np.repeat(np.array([item.opened.frame.setting for item in group], np.int64), counts)
        grey = inference.synthesise(group[0].model.model, np.ascontiguousarray(latents), levels, options)
        for item, mine in zip(group, np.split(grey, np.cumsum(counts)[:-1]), strict=True):
            item.voxels = _voxels(mine, item)


def _voxels(grey: NDArray[np.float32], item: _Item) -> Chunk:
    if grey.ndim == 4:
        grey = grey[:, item.planes]
    extent = transform.section_shape(item.opened.out_shape, grey.ndim - 1)
    cut: tuple[Any, ...] = (slice(None), *(slice(n) for n in extent))
    frame = item.opened.frame
    window = transform.Window(*frame.window) if frame.window else None
    return transform.from_grey(np.ascontiguousarray(grey[cut]), window, frame.dtype.newbyteorder("="))
