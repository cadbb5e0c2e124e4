"""Frames to chunks: the chain backwards, one batch at a time.

    frame -> streams -> symbols -> grey levels -> voxels -> background restored -> chunk

The frame alone decides: kind, shape, dtype, memory order, model and level all stand in it. Whatever is wrong with its
bytes ends in a `FrameError`; a model that is not here ends in a `ModelNotFoundError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec import transform
from zarr_emcodec._types import Buffer, Chunk, Shape
from zarr_emcodec.codecs import inference, lossless, mask
from zarr_emcodec.codecs.latents import StreamPlan, join_streams, plan_streams
from zarr_emcodec.codecs.quantise import Ladder
from zarr_emcodec.codecs.slots import slot
from zarr_emcodec.entropy import coder
from zarr_emcodec.errors import FrameError, ModelError, UnsupportedFrameError
from zarr_emcodec.frame import Frame, Kind, Limits, Tier, unpack
from zarr_emcodec.runtime import Model, Options, current, find_model


@lru_cache(maxsize=16)
def ladder_of(model: Model) -> Ladder:
    """The quality ladder of a model, built once per process."""
    return Ladder(model.tables())


def decode_many(frames: Sequence[Buffer], options: Options | None = None) -> list[Chunk]:
    """Decode frames, with shared entropy decoding and inference where model and shape agree.

    Parameters
    ----------
    frames : sequence of buffer
        Whole frames.
    options : Options, optional
        Runtime settings; those of the process when not given.

    Returns
    -------
    list of ndarray
        Writable chunks in the shape, dtype (byte order included) and memory order that were encoded.

    Raises
    ------
    FrameError
        If the bytes are not a frame, or not one that this version reads.
    ModelNotFoundError
        If a frame's model is not on the search path.
    """
    options = current() if options is None else options
    with slot():
        return decode_within_slot(frames, options)


def decode_within_slot(frames: Sequence[Buffer], options: Options) -> list[Chunk]:
    """`decode_many` for a caller that holds a slot already, as an encoder that checks its own output does."""
    return _decode(frames, None, options)


def decode_sections(data: Buffer, start: int, stop: int, options: Options | None = None) -> Chunk:
    """Planes `start` to `stop` of the first axis of one chunk, decoded without the rest where streams allow it.

    Parameters
    ----------
    data : buffer
        A whole frame of a chunk with at least one axis.
    start, stop : int
        ``0 <= start < stop <= shape[0]``.
    options : Options, optional
        Runtime settings; those of the process when not given.

    Returns
    -------
    ndarray, shape (stop - start, ...)
        Equal to the same planes of the whole chunk.
    """
    options = current() if options is None else options
    with slot():
        return _decode([data], (start, stop), options)[0]


@dataclass(eq=False)
class _Latent:
    """A latent or masked frame on its way."""

    frame: Frame
    model: Model
    background: mask.Background | None
    plan: StreamPlan
    grid: tuple[int, int]
    count: int  # sections wanted
    shape: Shape  # of what comes out before the background is restored
    symbols: NDArray[np.float32] | None = None


def _decode(frames: Sequence[Buffer], planes: tuple[int, int] | None, options: Options) -> list[Chunk]:
    limits = Limits(max_chunk_bytes=options.max_chunk_bytes)
    out: list[Chunk | None] = [None] * len(frames)
    latent: dict[int, _Latent] = {}
    for i, data in enumerate(frames):
        frame = unpack(data, limits=limits)
        if frame.kind in (Kind.LATENT, Kind.MASKED):
            latent[i] = _open_latent(frame, planes)
        else:
            out[i] = _finish(_plain(frame), frame, planes)
    _entropy_decode(list(latent.values()), options)
    for group in _alike(latent):
        for i, grey in zip(group, _synthesise([latent[i] for i in group], options), strict=True):
            item = latent[i]
            voxels = _voxels(grey, item)
            if item.background is not None:
                voxels = mask.restore(voxels, item.background, item.frame.shape)
            out[i] = _finish(voxels, item.frame, planes)
    return [chunk for chunk in out if chunk is not None]


def _plain(frame: Frame) -> Chunk:
    native = frame.dtype.newbyteorder("=")
    if frame.kind is Kind.CONSTANT:
        value = np.frombuffer(frame.sections[0], frame.dtype.newbyteorder("<"))[0]
        return np.full(frame.shape, value, native)
    return lossless.decode(frame.setting, frame.sections[0], frame.shape, native)


def _open_latent(frame: Frame, planes: tuple[int, int] | None) -> _Latent:
    if frame.tier is not Tier.FULL:
        raise UnsupportedFrameError(
            f"frame is at tier '{frame.tier.name.lower()}', this reader has only 'full'. Upgrade zarr_emcodec.",
            field="tier",
        )
    assert frame.model is not None  # the frame's reader has checked it
    model = find_model(frame.model)
    if model.card.codec != "vae":
        raise ModelError(f"model '{model.card.id}' is of codec '{model.card.codec}'. Upgrade zarr_emcodec to read it.")
    native = frame.dtype.newbyteorder("=")
    sections = frame.sections
    background = None
    if frame.kind is Kind.MASKED:
        background = mask.unpack_mask(sections[0], frame.shape, native)
        sections = sections[1:]
    shape = frame.shape if background is None else background.shape
    if len(shape) < 2:
        raise FrameError(f"latent frame of shape {shape}: latents need two axes or more.", field="shape")
    n = transform.n_sections(shape)
    start, stop = 0, n
    if planes is not None and background is None and len(shape) >= 3:
        per_plane = n // shape[0]
        start, stop = planes[0] * per_plane, planes[1] * per_plane
        shape = (planes[1] - planes[0], *shape[1:])
    stride = (model.card.stride[0], model.card.stride[1])
    grid = transform.cells(transform.section_shape(shape), stride)
    plan = plan_streams(ladder_of(model), frame.setting, sections[:], n, start, stop)
    return _Latent(frame, model, background, plan, grid, stop - start, shape)


def _entropy_decode(items: Sequence[_Latent], options: Options) -> None:
    """Symbols of every item; streams under one set of tables go through the coder together."""
    for model in {item.model for item in items}:
        mine = [item for item in items if item.model == model]
        work = [
            (data, item.plan.stream_index(n, item.grid[0] * item.grid[1]))
            for item in mine
            for data, n in item.plan.parts
        ]
        decoded = iter(coder.decode_many(work, ladder_of(model).tables, backend=options.entropy_backend))
        for item in mine:
            symbols = [next(decoded) for _ in item.plan.parts]
            item.symbols = join_streams(item.plan, symbols, item.grid, item.count)


def _alike(latent: dict[int, _Latent]) -> list[list[int]]:
    """Which items may share an inference: same model, level and grid."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, item in latent.items():
        groups.setdefault((item.model.card.digest, item.frame.setting, item.grid), []).append(i)
    return list(groups.values())


def _synthesise(items: Sequence[_Latent], options: Options) -> list[NDArray[np.float32]]:
    blocks = [item.symbols for item in items if item.symbols is not None]
    symbols = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    grey = inference.synthesise(items[0].model, symbols, items[0].frame.setting, options)
    ends = np.cumsum([item.count for item in items])
    return [grey[stop - item.count : stop] for item, stop in zip(items, ends, strict=True)]


def _voxels(grey: NDArray[np.float32], item: _Latent) -> Chunk:
    extent = transform.section_shape(item.shape)
    window = transform.Window(*item.frame.window) if item.frame.window else None
    cropped = np.ascontiguousarray(grey[:, : extent[0], : extent[1]])
    return transform.from_grey(cropped, window, item.frame.dtype.newbyteorder("=")).reshape(item.shape)


def _finish(chunk: Chunk, frame: Frame, planes: tuple[int, int] | None) -> Chunk:
    """Cut what was asked for and bring byte and memory order to those of the encoded chunk."""
    if planes is not None and len(chunk) != planes[1] - planes[0]:
        chunk = chunk[planes[0] : planes[1]]
    chunk = chunk.astype(frame.dtype, copy=False)
    return np.asfortranarray(chunk) if frame.order == "F" else chunk
