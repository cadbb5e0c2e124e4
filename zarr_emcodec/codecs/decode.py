"""Frames to chunks: the chain backwards, one batch at a time.

    frame -> streams -> symbols -> grey levels -> voxels -> background restored -> chunk

The frame alone decides: kind, shape, dtype, memory order, model and level all stand in it. Whatever is wrong with its
bytes ends in a `FrameError`; a model that is not here ends in a `ModelNotFoundError`.
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
from zarr_emcodec._types import Buffer, Chunk, Shape, Symbols
from zarr_emcodec.codecs import inference, lossless, mask
from zarr_emcodec.codecs.latents import StreamPlan, join_streams, plan_streams
from zarr_emcodec.codecs.quantise import Ladder
from zarr_emcodec.codecs.slots import slot
from zarr_emcodec.entropy import coder
from zarr_emcodec.errors import FrameError, ModelError, SpecError, UnsupportedFrameError
from zarr_emcodec.frame import Frame, Kind, Limits, Tier, unpack
from zarr_emcodec.runtime import Model, Options, current, find_model


@lru_cache(maxsize=16)
def ladder_of(model: Model) -> Ladder:
    """The quality ladder of a model, built once per process."""
    return Ladder(model.tables())


Planes = tuple[int, int] | None
"""A range of planes of a chunk's first axis; None for all of it."""


def decode_many(
    frames: Sequence[Buffer], options: Options | None = None, *, planes: Sequence[Planes] | None = None
) -> list[Chunk]:
    """Decode frames, with shared entropy decoding and inference where model and shape agree.

    Parameters
    ----------
    frames : sequence of buffer
        Whole frames.
    options : Options, optional
        Runtime settings; those of the process when not given.
    planes : sequence of (start, stop) or None, optional
        For each frame the planes of its first axis that are wanted, ``0 <= start < stop <= shape[0]``, or None for all.
        The rest is not decoded where streams allow it.

    Returns
    -------
    list of ndarray
        Writable chunks, or the planes wanted of them, in the shape, dtype (byte order included) and memory order that
        were encoded.

    Raises
    ------
    FrameError
        If the bytes are not a frame, or not one that this version reads.
    ModelNotFoundError
        If a frame's model is not on the search path.
    """
    options = current() if options is None else options
    with slot():
        return decode_within_slot(frames, options, planes or [None] * len(frames))


def decode_sections(data: Buffer, start: int, stop: int, options: Options | None = None) -> Chunk:
    """Planes `start` to `stop` of the first axis of one chunk; see `decode_many`."""
    return decode_many([data], options, planes=[(start, stop)])[0]


@dataclass(eq=False)
class _Latent:
    """A latent or masked frame on its way: from a plan over symbols to the voxels of its box."""

    frame: Frame
    model: Model
    background: mask.Background | None
    plan: StreamPlan
    grid: tuple[int, int]
    shape: Shape  # of what comes out before the background is restored
    streams: list[Symbols] = field(default_factory=list)
    voxels: Chunk = field(init=False)

    @property
    def cells(self) -> int:
        """Latent cells of a section."""
        return self.grid[0] * self.grid[1]


def decode_within_slot(frames: Sequence[Buffer], options: Options, planes: Sequence[Planes]) -> list[Chunk]:
    """`decode_many` for a caller that holds a slot already, as an encoder that checks its own output does."""
    limits = Limits(max_chunk_bytes=options.max_chunk_bytes)
    out: list[Chunk | None] = [None] * len(frames)
    latent: dict[int, _Latent] = {}
    for i, (data, wanted) in enumerate(zip(frames, planes, strict=True)):
        frame = unpack(data, limits=limits)
        if frame.kind in (Kind.LATENT, Kind.MASKED):
            latent[i] = _open_latent(frame, wanted, options)
        else:
            out[i] = _finish(_plain(frame), frame, wanted)
    _entropy_decode(list(latent.values()), options)
    for group in _alike(latent.values()):
        _synthesise(group, options)
    for i, item in latent.items():
        voxels = item.voxels.reshape(item.shape)
        if item.background is not None:
            voxels = mask.restore(voxels, item.background, item.frame.shape)
        out[i] = _finish(voxels, item.frame, planes[i])
    return [chunk for chunk in out if chunk is not None]


def _plain(frame: Frame) -> Chunk:
    native = frame.dtype.newbyteorder("=")
    if frame.kind is Kind.CONSTANT:
        value = np.frombuffer(frame.sections[0], frame.dtype.newbyteorder("<"))[0]
        return np.full(frame.shape, value, native)
    return lossless.decode(frame.setting, frame.sections[0], frame.shape, native)


def _open_latent(frame: Frame, planes: Planes, options: Options) -> _Latent:
    if frame.tier is not Tier.FULL:
        raise UnsupportedFrameError(
            f"frame is at tier '{frame.tier.name.lower()}', this reader has only 'full'. Upgrade zarr_emcodec.",
            field="tier",
        )
    if len(frame.shape) < 2:
        raise FrameError(f"latent frame of shape {frame.shape}: latents need two axes or more.", field="shape")
    assert frame.model is not None  # the frame's reader has checked it
    model = find_model(frame.model)
    if model.card.codec != "vae":
        raise ModelError(f"model '{model.card.id}' is of codec '{model.card.codec}'. Upgrade zarr_emcodec to read it.")
    if options.tier not in (None, "full"):
        raise SpecError(
            f"model '{model.card.id}' has one tier, 'full', not '{options.tier}'. Leave options(tier=...) unset.",
            name="tier",
            value=options.tier,
        )
    native = frame.dtype.newbyteorder("=")
    sections = frame.sections
    background = None
    if frame.kind is Kind.MASKED:
        background = mask.unpack_mask(sections[0], frame.shape, native)
        sections = sections[1:]
    shape = frame.shape if background is None else background.shape
    n = transform.n_sections(shape)
    stride = (model.card.stride[0], model.card.stride[1])
    grid = transform.cells(transform.section_shape(shape), stride)
    if transform.padded_voxels(shape, stride) > options.max_chunk_bytes:
        # thin sections are padded to whole strides: a few bytes could ask for hundreds of times the chunk's size
        raise FrameError(
            f"latent frame of shape {frame.shape} stands for {n} x {grid} cells of {stride} voxels, above the limit "
            f"of {options.max_chunk_bytes}. If the data are trusted, raise options(max_chunk_bytes=...).",
            field="shape",
        )
    start, stop = 0, n
    if planes is not None and background is None and len(shape) >= 3:
        per_plane = n // shape[0]
        start, stop = planes[0] * per_plane, planes[1] * per_plane
        shape = (planes[1] - planes[0], *shape[1:])
    plan = plan_streams(ladder_of(model), frame.setting, sections, n, start, stop)
    return _Latent(frame, model, background, plan, grid, shape)


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


def _finish(chunk: Chunk, frame: Frame, planes: Planes) -> Chunk:
    """Cut what was asked for and bring byte and memory order to those of the encoded chunk."""
    if planes is not None and len(chunk) != planes[1] - planes[0]:
        chunk = chunk[planes[0] : planes[1]]
    chunk = chunk.astype(frame.dtype, copy=False)
    return np.asfortranarray(chunk) if frame.order == "F" and chunk.ndim else chunk
