"""Sections and volumes through a model's networks, in pieces of bounded size.

Float arrays in, float arrays out. How they are cut into inference calls changes memory and speed, not results: every
piece carries the halo that its card states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec import transform
from zarr_emcodec._types import Shape
from zarr_emcodec.runtime import Model, Options
from zarr_emcodec.runtime.model import Part

VOLUME_BLOCKS = 4
"""Volumes fill up to so many times ``block_voxels``: chunks of 16 x 512 x 512 or 64 x 256 x 256 voxels are one call."""


class Feed(NamedTuple):
    """One input or output of a network over a grid of cells.

    ``array`` has one entry for each section or volume on its first axis; its last axes are those of the grid, with
    ``scale`` elements for each cell. Without a scale it holds one value for each section or volume and no more.
    """

    array: NDArray[Any]
    scale: Shape | None = None


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
        Without hyper-latents where `tell` finds them.
    """
    card = model.card
    grid = tuple(n // s for n, s in zip(grey.shape[1:], card.stride, strict=True))
    channels = card.channels - (card.context.hyper if card.context and card.context.reaches else 0)
    out = np.empty((len(grey), channels, *grid), np.float32)
    inputs = {"grey": Feed(transform.as_blocks(grey), card.stride)}
    _run(model, "encoder", inputs, Feed(out, (1,) * len(grid)), grid, card.encoder_halo, options)
    return out


def tell(
    model: Model, latents: NDArray[np.float32], left: NDArray[np.float32], options: Options
) -> NDArray[np.float32]:
    """Hyper-latents of sections that may refer to others.

    Parameters
    ----------
    model : Model
        With an encoder.
    latents, left : ndarray, shape (n, P * C, \\*grid), float32
        In grey levels, and what references leave over of them; 0 where a section is coded alone.
    options : Options
        ``block_voxels`` bounds one call.

    Returns
    -------
    ndarray, shape (n, Z, \\*grid), float32
    """
    card = model.card
    assert card.context is not None
    grid, one = latents.shape[2:], (1,) * card.ndim
    out = np.empty((len(latents), card.context.hyper, *grid), np.float32)
    inputs = {"latents": Feed(latents, one), "left": Feed(left, one)}
    _run(model, "hyper", inputs, Feed(out, one), grid, card.context.halo, options)
    return out


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
    card = model.card
    grid = symbols.shape[2:]
    out = np.empty((len(symbols), 1, *(n * s for n, s in zip(grid, card.stride, strict=True))), np.float32)
    inputs = {"symbols": Feed(symbols, (1,) * len(grid)), "level": Feed(levels)}
    _run(model, "decoder", inputs, Feed(out, card.stride), grid, card.decoder_halo, options)
    return out[:, 0]


def _run(
    model: Model, part: Part, inputs: Mapping[str, Feed], out: Feed, grid: Shape, halo: Shape, options: Options
) -> None:
    """`in_pieces` through a network of a model."""

    def call(piece: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        return model.run(part, piece, options)

    in_pieces(call, inputs, out, grid, halo, math.prod(model.card.stride), options)


def in_pieces(
    call: Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]],
    inputs: Mapping[str, Feed],
    out: Feed,
    grid: Shape,
    halo: Shape,
    cell_voxels: int,
    options: Options,
) -> None:
    """Fill `out`, whole sections or volumes at a time where they fit, tiles of one where they do not.

    Parameters
    ----------
    call : callable
        Inputs by name to the output, for a piece.
    inputs, out : Feed
        All of each; `out` is written to.
    grid : tuple of int
        Cells along each axis.
    halo : tuple of int
        Cells around a cell that its output depends on.
    cell_voxels : int
        What a cell counts towards ``block_voxels``.
    options : Options
        ``block_voxels`` bounds one call; see `call_voxels`.
    """
    n = len(out.array)
    if runs := whole_runs(n, grid, cell_voxels, options):
        for run in runs:
            out.array[run] = call({key: _contiguous(feed.array[run]) for key, feed in inputs.items()})
        return
    assert out.scale is not None
    edges = _tile_edges(grid, halo, cell_voxels, call_voxels(len(grid), options.block_voxels))
    for tile in transform.tiles(grid, edges, halo):
        inner: Any = (0, ..., *transform.scaled(tile.inner, out.scale))
        for i in range(n):
            piece = {key: _contiguous(_cut(feed, i, tile.outer)) for key, feed in inputs.items()}
            target: Any = (i, ..., *transform.scaled(tile.target, out.scale))
            out.array[target] = call(piece)[inner]


def call_voxels(ndim: int, block_voxels: int) -> int:
    """Most voxels in one call: more of volumes, as most of a small tile in three dimensions would be its halo."""
    return block_voxels * (VOLUME_BLOCKS if ndim == 3 else 1)


def run_voxels(voxels: int, ndim: int, block_voxels: int) -> int:
    """Voxels that go through a network at once, of sections or volumes of so many each.

    Half a block where several fit: what more sections hold within a network leaves the processor's caches.
    """
    limit = call_voxels(ndim, block_voxels)
    return limit if voxels > limit else voxels * max(1, block_voxels // (2 * voxels))


def whole_runs(n: int, grid: Shape, cell_voxels: int, options: Options) -> list[slice]:
    """Runs of n whole sections or volumes that go through a call together; none where not one fits.

    As of `in_pieces`; of volumes that fill ``block_voxels`` each is a call.
    """
    voxels = math.prod(grid) * cell_voxels
    many = run_voxels(voxels, len(grid), options.block_voxels) // voxels
    if not many:
        return []
    return [slice(i, min(i + many, n)) for i in range(0, n, many)]


def _contiguous(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array)


def _cut(feed: Feed, i: int, outer: tuple[slice, ...]) -> NDArray[Any]:
    """A tile of section or volume `i`, with the first axis kept."""
    if feed.scale is None:
        return feed.array[i : i + 1]
    place: Any = (slice(i, i + 1), ..., *transform.scaled(outer, feed.scale))
    part: NDArray[Any] = feed.array[place]
    return part


def _tile_edges(grid: Shape, halo: Shape, cell_voxels: int, limit: int) -> Shape:
    """Edges of tiles that fit with their halo, halved axis by axis: where the halo weighs least, first."""
    edges = list(grid)

    def outer(axis: int) -> int:
        return min(edges[axis] + 2 * halo[axis], grid[axis])

    while math.prod(map(outer, range(len(grid)))) * cell_voxels > limit and max(edges) > 1:
        axis = max((a for a in range(len(grid)) if edges[a] > 1), key=lambda a: edges[a] / (1 + 2 * halo[a]))
        edges[axis] = -(-edges[axis] // 2)
    return tuple(edges)
