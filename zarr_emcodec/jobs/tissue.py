"""Background made exact: voxels outside the tissue become the fill value, so that they cost nothing.

A block's voxels and the plain data of `describe_tissue` in, voxels out. Only where the codec then really keeps the
background apart: elsewhere a step to the fill value would cost bits and come back inexact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.codecs import mask
from zarr_emcodec.errors import SpecError
from zarr_emcodec.jobs.coding import codec_config
from zarr_emcodec.jobs.grid import Box, box_of, chunk_indices
from zarr_emcodec.jobs.regions import Where, describe_area, identity, open_area

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from zarr_emcodec._types import Chunk, Shape

CELL = 16
"""Edge in y and x of the cells that thresholds judge: single dark voxels are membranes, whole dark cells are not."""
_DEFAULT_RATIO = 16.0  # what the codec assumes of chunks that are coded to a quality


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Background told by grey values: cells of 16 x 16 voxels whose every voxel is at or beyond a bound.

    Parameters
    ----------
    below, above : float, optional
        Background is at or below, at or above. No voxel moves further than from there to the fill value.

    Raises
    ------
    SpecError
        If neither is given, or they leave nothing between them.
    """

    below: float | None = None
    above: float | None = None

    def __post_init__(self) -> None:
        bounds = [bound for bound in (self.below, self.above) if bound is not None]
        if not bounds or not all(map(math.isfinite, bounds)) or bounds != sorted(set(bounds)):
            raise SpecError(
                f"tissue threshold below={self.below}, above={self.above}: needs one bound or two, below under above.",
                name="tissue",
                value=(self.below, self.above),
            )


def describe_tissue(tissue: Threshold | Where | None, shape: Shape) -> dict[str, Any] | None:
    """Where tissue is, as plain data.

    Parameters
    ----------
    tissue : Threshold, path, boxes or None
        A mask volume or boxes that hold all tissue, as for `describe_area`; bounds of the grey values of background;
        or None: only what already is the fill value is background.
    shape : tuple of int, voxels
        Of the array.

    Raises
    ------
    SpecError
        If it does not fit the array.
    """
    if tissue is None:
        return None
    if isinstance(tissue, Threshold):
        return {"kind": "threshold", "below": tissue.below, "above": tissue.above}
    area = describe_area(tissue, shape)
    if area["kind"] == "function":
        raise SpecError(
            "tissue: a function tells blocks, not voxels. Give a mask, boxes or a threshold.", name="tissue"
        )
    return area


def tissue_identity(tissue: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What of it decides the output."""
    return None if tissue is None else identity(tissue)


def may_hold_tissue(tissue: Mapping[str, Any] | None, box: Box, shape: Shape) -> bool:
    """Whether a box can hold tissue, as far as that is known without its voxels."""
    return tissue is None or tissue["kind"] == "threshold" or open_area(tissue, shape).touches(box)


def clear_background(
    voxels: Chunk,
    box: Box,
    *,
    tissue: Mapping[str, Any] | None,
    shape: Shape,
    chunks: Shape,
    fill_value: float,
    config: Mapping[str, Any],
) -> Chunk:
    """A block as it is to be coded: the fill value where there is no tissue.

    Parameters
    ----------
    voxels : ndarray
        Of `box`, which begins at a chunk's corner and ends at one or at the array's edge.
    box : tuple of slice, voxels
    tissue : mapping or None
        From `describe_tissue`.
    shape, chunks : tuple of int, voxels
        Of the array; of its (inner) chunks.
    fill_value : float
        What background becomes.
    config : mapping
        Of the codec that the block gets.

    Returns
    -------
    ndarray
        The input itself where nothing changes.

    Notes
    -----
    Chunks that hold no tissue become all fill value and are not stored. A chunk that holds some keeps its voxels as
    they are if its background is so little, or so ragged, that a mask would cost more than it saves at this ratio.
    """
    if tissue is None:
        return voxels
    area = None if tissue["kind"] == "threshold" else open_area(tissue, shape)
    out = voxels
    for index in chunk_indices(voxels.shape, chunks):
        local = box_of(index, chunks, voxels.shape)
        if area is None:
            inside = _between(voxels[local], tissue)
        else:
            inside = area.inside(
                tuple(slice(b.start + s.start, b.start + s.stop) for b, s in zip(box, local, strict=True))
            )
        if inside.all() or (inside.any() and not _stays_exact(voxels[local], inside, chunks, fill_value, config)):
            continue
        if out is voxels:
            out = voxels.copy()
        out[local][~inside] = fill_value
    return out


def fill_of(value: float, dtype: np.dtype[Any]) -> int | float:
    """The fill value in the dtype's own kind.

    Raises
    ------
    SpecError
        If the dtype does not hold it.
    """
    if math.isfinite(value):
        if dtype.kind == "f":
            return float(dtype.type(value))
        limits = np.iinfo(dtype)
        if value == int(value) and limits.min <= value <= limits.max:
            return int(value)
    raise SpecError(
        f"fill_value {value}: {dtype} does not hold it, or it is no number.", name="fill_value", value=value
    )


def looks_for(config: dict[str, Any], tissue: Mapping[str, Any] | None, fill: int | float) -> dict[str, Any]:
    """The configuration whose codec looks for the fill value, where background is to become that.

    Raises
    ------
    SpecError
        If it was told to look for something else.
    """
    if tissue is None or config.get("background") == fill or (config.get("background") == "auto" and fill == 0):
        return config
    if config.get("background") != "auto":
        raise SpecError(
            f"background {config.get('background')}: what is outside the tissue becomes the fill value {fill}, so the "
            f"codec has to look for that. Pass fill_value={config.get('background')}, or leave background out.",
            name="background",
            value=config.get("background"),
        )
    return codec_config({**config, "background": fill})


def _between(chunk: Chunk, bounds: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Voxels of cells that hold a value between the bounds."""
    tissue = np.ones(chunk.shape, np.bool_)
    if bounds["below"] is not None:
        tissue &= chunk > bounds["below"]
    if bounds["above"] is not None:
        tissue &= chunk < bounds["above"]
    for axis in (-2, -1):
        extent: int = tissue.shape[axis]
        cells = np.logical_or.reduceat(tissue, np.arange(0, extent, CELL), axis=axis)
        tissue = np.repeat(cells, CELL, axis=axis).take(range(extent), axis=axis)
    return tissue


def _stays_exact(
    chunk: Chunk, inside: NDArray[np.bool_], chunks: Shape, fill_value: float, config: Mapping[str, Any]
) -> bool:
    """Whether the codec would keep all of the background apart from the tissue."""
    if config.get("max_error") == 0:
        return True
    whole = np.full(chunks, fill_value, chunk.dtype)  # edge chunks are coded at full size
    corner = tuple(slice(0, n) for n in chunk.shape)
    whole[corner] = np.where(inside, chunk, whole[corner])
    if (whole == whole.flat[0]).all():
        return True
    # an array's metadata take at most half of its bytes: the codec's own ratio is at most twice the one asked for
    ratio = 2 * (config.get("ratio") or _DEFAULT_RATIO)
    background = mask.find_background(whole, fill_value, ratio=ratio)
    if background is None:
        return False
    coded = np.zeros(chunks, np.bool_)
    coded[background.box] = True if background.tissue is None else background.tissue
    return not (coded[corner] & ~inside).any()
