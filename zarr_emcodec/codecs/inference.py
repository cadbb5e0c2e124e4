"""Sections through a model's networks, in pieces of bounded size.

Float arrays in, float arrays out. How sections are cut into inference calls changes memory and speed, not results:
every piece carries the halo that its card states.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec import transform
from zarr_emcodec._types import Shape
from zarr_emcodec.runtime import Model, Options


def analyse(model: Model, grey: NDArray[np.float32], options: Options) -> NDArray[np.float32]:
    """Latents of padded sections.

    Parameters
    ----------
    model : Model
        With an encoder.
    grey : ndarray, shape (n, y, x), float32
        Grey levels; y and x multiples of the model's stride.
    options : Options
        ``block_voxels`` bounds one call.

    Returns
    -------
    ndarray, shape (n, channels, y / stride, x / stride), float32
    """
    stride = _stride(model)
    grid = grey.shape[1] // stride[0], grey.shape[2] // stride[1]
    out = np.empty((len(grey), model.card.channels, *grid), np.float32)
    halo = max(model.card.encoder_halo)
    return _in_pieces(model, "encoder", transform.as_blocks(grey), out, (stride, (1, 1)), grid, halo, options, None)


def synthesise(
    model: Model, symbols: NDArray[np.float32], levels: NDArray[np.int64], options: Options
) -> NDArray[np.float32]:
    """Grey levels of quantised latents.

    Parameters
    ----------
    model : Model
        Only its decoder is used.
    symbols : ndarray, shape (n, channels, h, w), float32
        Integer-valued.
    levels : ndarray, shape (n,), int64
        Of each section on the model's quality ladder.
    options : Options
        ``block_voxels`` bounds one call.

    Returns
    -------
    ndarray, shape (n, h * stride, w * stride), float32
    """
    stride = _stride(model)
    grid = symbols.shape[2], symbols.shape[3]
    out = np.empty((len(symbols), 1, grid[0] * stride[0], grid[1] * stride[1]), np.float32)
    halo = max(model.card.decoder_halo)
    return _in_pieces(model, "decoder", symbols, out, ((1, 1), stride), grid, halo, options, levels)[:, 0]


def _stride(model: Model) -> tuple[int, int]:
    y, x = model.card.stride
    return y, x


def _in_pieces(
    model: Model,
    part: Literal["encoder", "decoder"],
    source: NDArray[np.float32],
    out: NDArray[np.float32],
    scales: tuple[tuple[int, int], tuple[int, int]],
    grid: Shape,
    halo: int,
    options: Options,
    levels: NDArray[np.int64] | None,
) -> NDArray[np.float32]:
    """Fill `out` from `source`, whole sections at a time where they fit, tiles of one section where they do not."""

    def run(block: NDArray[np.float32], sections: slice) -> NDArray[np.float32]:
        name = "grey" if part == "encoder" else "symbols"
        inputs: dict[str, NDArray[Any]] = {name: np.ascontiguousarray(block)}
        if levels is not None:
            inputs["level"] = np.ascontiguousarray(levels[sections], np.int64)
        return np.asarray(model.run(part, inputs, options))

    stride = _stride(model)
    section_voxels = grid[0] * grid[1] * stride[0] * stride[1]
    if section_voxels <= options.block_voxels:
        many = max(1, options.block_voxels // section_voxels)
        for i in range(0, len(source), many):
            out[i : i + many] = run(source[i : i + many], slice(i, i + many))
        return out
    edge = max(1, math.isqrt(options.block_voxels) // max(stride) - 2 * halo)
    source_scale, out_scale = scales
    for tile in transform.tiles((grid[0], grid[1]), edge, halo):
        outer, inner = transform.scaled(tile.outer, source_scale), transform.scaled(tile.inner, out_scale)
        target = transform.scaled(tile.target, out_scale)
        for i in range(len(source)):
            piece = run(source[(slice(i, i + 1), slice(None), *outer)], slice(i, i + 1))
            out[(i, slice(None), *target)] = piece[(0, slice(None), *inner)]
    return out
