"""The latents backbone's part of decoding: streams to symbols to grey levels to voxels.

    parts -> symbols, place by place and band by band -> grey levels -> voxels

Of a frame only those parts are read, and only those cells synthesised, that the planes or voxels asked for depend on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec import transform
from zarr_emcodec._types import Chunk, Shape, Symbols
from zarr_emcodec.codecs.inference import Feed, in_pieces
from zarr_emcodec.codecs.latents import group_starts
from zarr_emcodec.codecs.latents_coding import decode_part, read_side
from zarr_emcodec.codecs.latents_context import LatentsModel, latents_model_of
from zarr_emcodec.codecs.opened import Opened
from zarr_emcodec.errors import FrameError
from zarr_emcodec.runtime import Options
from zarr_emcodec.runtime.model import Part

PARTS: Mapping[int, tuple[Part, Part]] = {2: ("encoder", "decoder"), 3: ("encoder-3", "decoder-3")}
"""Networks of sections and of volumes."""


def is_field(opened: Opened) -> bool:
    """Whether voxels are computed one by one: latents stand for whole cells, and no value lies between voxels."""
    return False


def decode(opened: Sequence[Opened], options: Options) -> list[Chunk]:
    """Voxels of frames, each by its own latents."""
    return [_decode(item, options) for item in opened]


def _decode(opened: Opened, options: Options) -> Chunk:
    opened.check_only_full(options)
    model = _model_of(opened, options)
    symbols, first = _read(opened, model, options)
    ndim = model.card.ndim
    shape, (start, stop) = opened.shape, opened.planes
    cut = slice(None)
    if len(shape) > ndim:  # planes of the chunk are whole sections or volumes
        each = transform.n_sections(shape, ndim) // shape[0]
        symbols = symbols[start * each - first : stop * each - first]
    elif ndim == 3 and (start, stop) != (0, shape[0]):
        depth, halo = model.card.stride[0], model.card.halo[0]
        low, high = max(start // depth - halo, 0), min(-(-stop // depth) + halo, symbols.shape[2])
        symbols, cut = symbols[:, :, low:high], slice(start - low * depth, stop - low * depth)
    grey = synthesise(model, symbols, opened.frame.setting, options)
    if ndim == 3:
        grey = grey[:, cut]
    extent = transform.section_shape(opened.out_shape, ndim)
    grey = np.ascontiguousarray(grey[(slice(None), *(slice(n) for n in extent))])
    window = transform.Window(*opened.frame.window) if opened.frame.window else None
    return transform.from_grey(grey, window, opened.frame.dtype.newbyteorder("=")).reshape(opened.out_shape)


def _model_of(opened: Opened, options: Options) -> LatentsModel:
    """The tables of the frame's grid, once the frame is known to ask for no more than it may."""
    ndim = read_side(opened.sections, opened.model, opened.frame.setting)
    model = latents_model_of(opened.model, ndim)
    # thin sections are padded to whole cells: a few bytes could ask for hundreds of times the chunk's size
    if transform.padded_voxels(opened.shape, model.card.stride) > options.max_chunk_bytes:
        raise FrameError(
            f"latent frame of shape {opened.frame.shape} in cells of {model.card.stride} voxels is above the limit of "
            f"{options.max_chunk_bytes} once padded. If the data are trusted, raise options(max_chunk_bytes=...).",
            field="shape",
        )
    return model


def _read(opened: Opened, model: LatentsModel, options: Options) -> tuple[Symbols, int]:
    """Symbols of the parts that hold the planes asked for, and the number of their first section or volume."""
    ndim, shape = model.card.ndim, opened.shape
    n = transform.n_sections(shape, ndim)
    grid = transform.cells(transform.section_shape(shape, ndim), model.card.stride)
    data = opened.sections[1:]
    starts = group_starts(n, len(data)) if 0 < len(data) <= n else []
    if len(starts) != len(data) or not data:
        raise FrameError(f"frame holds {len(data)} parts for {n} sections.", field="table")
    low, high = 0, n
    if len(shape) > ndim:
        low, high = (plane * (n // shape[0]) for plane in opened.planes)
    spans = zip(data, starts, [*starts[1:], n], strict=True)
    wanted = [span for span in spans if span[1] < high and span[2] > low]
    level = opened.frame.setting
    parts = [decode_part(model, level, part, stop - start, grid, options) for part, start, stop in wanted]
    return parts[0] if len(parts) == 1 else np.concatenate(parts), wanted[0][1]


def synthesise(model: LatentsModel, symbols: Symbols, level: int, options: Options) -> NDArray[np.float32]:
    """Grey levels (n, \\*padded extent) of symbols (n, C, \\*grid)."""
    card = model.card
    grid: Shape = symbols.shape[2:]
    one = (1,) * card.ndim
    out = np.empty((len(symbols), 1, *(n * s for n, s in zip(grid, card.stride, strict=True))), np.float32)
    inputs = {
        "symbols": Feed(symbols.astype(np.float32), one),
        "level": Feed(np.full(len(symbols), level, np.int64)),
    }
    in_pieces(
        _caller(model, PARTS[card.ndim][1], options), inputs, Feed(out, card.stride), grid, card.halo,
        math.prod(card.stride), options,
    )  # fmt: skip
    return out[:, 0]


def analyse(model: LatentsModel, grey: NDArray[np.float32], options: Options) -> NDArray[np.float32]:
    """Latents (n, C, \\*grid) of padded sections or volumes (n, \\*extent): where a fit starts."""
    card = model.card
    grid = tuple(n // s for n, s in zip(grey.shape[1:], card.stride, strict=True))
    out = np.empty((len(grey), card.channels, *grid), np.float32)
    inputs = {"grey": Feed(transform.as_blocks(grey), card.stride)}
    in_pieces(
        _caller(model, PARTS[card.ndim][0], options), inputs, Feed(out, (1,) * card.ndim), grid, card.halo,
        math.prod(card.stride), options,
    )  # fmt: skip
    return out


def _caller(
    model: LatentsModel, part: Part, options: Options
) -> Callable[[Mapping[str, NDArray[Any]]], NDArray[np.float32]]:
    return lambda piece: model.model.run(part, piece, options)
