"""Which chunks decode at which tier: counted, mapped, and drawn over a section of the volume.

An array in; a `TierMap`, or a PNG, out. The map reads the first bytes of each frame; the picture decodes what it shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.errors import MissingExtraError, SpecError
from zarr_emcodec.frame import Tier
from zarr_emcodec.jobs.grid import box_of, chunk_indices, grid_shape, voxels
from zarr_emcodec.jobs.report import Record, plain
from zarr_emcodec.roi.fetch import Frames
from zarr_emcodec.roi.read import read_chunks
from zarr_emcodec.roi.tiers import RICHNESS, has_tier

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    import zarr
    from numpy.typing import NDArray

    from zarr_emcodec.frame import Header
    from zarr_emcodec.jobs.grid import Box

ABSENT, PLAIN = 0, 1
"""Entries of a map for chunks that are not stored, and for those without a tier (constant, lossless)."""
_CODES = {Tier.TOP: 2, Tier.PRIOR: 3, Tier.FULL: 4}
NAMES = ("absent", "plain", "top", "prior", "full")
"""What the entries of a map mean."""
_SHOWN = 2048  # voxels along an edge of the picture
_INK = "#222222"
_COLOURS = {"prior": "#ffd23f", "full": "#3fb6ff"}


@dataclass(frozen=True, kw_only=True)
class TierMap(Record):
    """The tier of every chunk.

    Parameters
    ----------
    array : str
    chunks : tuple of int, voxels
    n_chunks : int
    counts : mapping
        Chunks by `NAMES`, those that occur.
    rho : float
        Share of the chunks that are above the cheapest tier that occurs.
    cells : ndarray, uint8
        An index into `NAMES` for each cell of the chunk grid. Not part of the JSON.
    """

    array: str
    chunks: tuple[int, ...]
    n_chunks: int
    counts: Mapping[str, int]
    rho: float
    cells: NDArray[np.uint8]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, without the cells."""
        return {name: plain(getattr(self, name)) for name in self.__dataclass_fields__ if name != "cells"}

    @property
    def restored(self) -> NDArray[np.bool_]:
        """Cells above the cheapest tier that occurs."""
        tiered = self.cells[self.cells > PLAIN]
        return self.cells > (tiered.min() if tiered.size else PLAIN)


def tier_map(array: zarr.Array[Any], *, progress: Callable[[int, int], None] | None = None) -> TierMap:
    """Look up the tier of every chunk.

    Parameters
    ----------
    array : zarr.Array
        Written with a codec of this package.
    progress : callable, optional
        Called with raw bytes of the chunks looked at, and of all.

    Returns
    -------
    TierMap

    Raises
    ------
    SpecError
        If the array's chunks are not frames.
    FrameError
        If a frame cannot be read; the message names its chunk.
    JobError
        If the store cannot be read.
    """
    frames = Frames(array)
    layout = frames.layout
    cells = np.zeros(grid_shape(layout.shape, layout.chunks), np.uint8)
    itemsize = np.dtype(array.dtype).itemsize
    done, total = 0, itemsize * int(np.prod(layout.shape, dtype=np.int64))
    for batch in frames.batches(chunk_indices(layout.shape, layout.chunks)):
        for index, header in zip(batch, frames.headers(batch), strict=True):
            cells[index] = _code(header)
        done += itemsize * sum(voxels(box_of(index, layout.chunks, layout.shape)) for index in batch)
        if progress is not None:
            progress(done, total)
    found = Counter(cells.ravel().tolist())
    made = TierMap(
        array=str(array.store_path),
        chunks=layout.chunks,
        n_chunks=layout.n_chunks,
        counts={name: found[code] for code, name in enumerate(NAMES) if found[code]},
        rho=0.0,
        cells=cells,
    )
    return TierMap(**{**made.__dict__, "rho": float(made.restored.mean())})


def _code(header: Header | None) -> int:
    if header is None:
        return ABSENT
    return _CODES[header.tier] if has_tier(header) else PLAIN


def draw_tiers(
    path: str | os.PathLike[str], array: zarr.Array[Any], found: TierMap | None = None, *, section: int | None = None
) -> None:
    """Draw a section as it decodes now, with the chunks outlined that decode richly.

    Parameters
    ----------
    path : path
        PNG to write.
    array : zarr.Array
    found : TierMap, optional
        Of the array; made here when not given.
    section : int, optional
        Along z; the one with the most restored chunks when not given. Of sections above 2048 voxels along an edge, as
        much is shown, around what is restored.

    Raises
    ------
    SpecError
        If there is no such section.
    MissingExtraError
        If matplotlib is absent.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise MissingExtraError("drawing a picture", extra="viz") from error

    found = tier_map(array) if found is None else found
    box = _shown(array, found, section)
    values = read_chunks(Frames(array), box, None).reshape([part.stop - part.start for part in box[-2:]])
    aspect = values.shape[0] / values.shape[1]
    figure = Figure(figsize=(8.5, 8.5 * aspect + 0.7), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    low, high = (float(v) for v in np.percentile(values, (0.2, 99.8)))
    top, left = box[-2].start, box[-1].start
    extent = (left - 0.5, box[-1].stop - 0.5, box[-2].stop - 0.5, top - 0.5)
    axes.imshow(values, cmap="gray", vmin=low, vmax=max(high, low + 1e-9), interpolation="nearest", extent=extent)
    drawn = _outline(axes, box, found)
    axes.tick_params(labelsize=8, colors=_INK, length=2)
    place = ", ".join(f"{part.start}" for part in box[:-2])
    shares = "  ".join(f"{count} {name}" for name, count in found.counts.items())
    axes.set_title(f"[{place}, ...]   {found.n_chunks} chunks: {shares}", size=9, color=_INK, loc="left")
    if drawn:
        handles = [Patch(fill=False, edgecolor=_COLOURS[name], linewidth=1.6, label=name) for name in drawn]
        axes.legend(handles=handles, loc="upper right", fontsize=8, framealpha=0.8)
    figure.savefig(path, dpi=120, format="png")


def _shown(array: zarr.Array[Any], found: TierMap, section: int | None) -> Box:
    """A box of one section: what the picture shows."""
    restored = found.restored
    leading = array.ndim - 2
    if not restored.any():
        cell = tuple(n // 2 for n in restored.shape)
    elif leading:
        per_section = restored.reshape(*restored.shape[:leading], -1).sum(axis=-1)
        cell = tuple(int(i) for i in np.unravel_index(int(per_section.argmax()), per_section.shape))
    else:
        cell = ()
    middle = [min(i * c + c // 2, n - 1) for i, c, n in zip(cell[:leading], found.chunks, array.shape, strict=False)]
    if section is not None:
        if not leading or not 0 <= section < array.shape[leading - 1]:
            raise SpecError(
                f"section {section}: the array of shape {array.shape} has none of that number.",
                name="section",
                value=section,
            )
        middle[-1] = section
    here = restored[tuple(m // c for m, c in zip(middle, found.chunks, strict=False))]
    plane = []
    for axis in range(2):
        extent, chunk = array.shape[leading + axis], found.chunks[leading + axis]
        marked = np.flatnonzero(here.any(axis=1 - axis))
        centre = int(marked.mean() * chunk + chunk / 2) if marked.size else extent // 2
        start = min(max(0, centre - _SHOWN // 2), max(0, extent - _SHOWN))
        plane.append(slice(start, min(start + _SHOWN, extent)))
    return (*(slice(m, m + 1) for m in middle), *plane)


def _outline(axes: Any, box: Box, found: TierMap) -> list[str]:
    """Outline the restored chunks in view; names of the tiers that were drawn, richest first."""
    from matplotlib.patches import Rectangle

    rows, columns = (
        range(part.start // chunk, (part.stop - 1) // chunk + 1)
        for part, chunk in zip(box[-2:], found.chunks[-2:], strict=True)
    )
    leading = tuple(part.start // chunk for part, chunk in zip(box[:-2], found.chunks, strict=False))
    restored = found.restored
    drawn = set()
    for row in rows:
        for column in columns:
            name = NAMES[found.cells[(*leading, row, column)]]
            if not restored[(*leading, row, column)] or name not in _COLOURS:
                continue
            height, width = found.chunks[-2:]
            corner = (column * width - 0.5, row * height - 0.5)
            colour = _COLOURS[name]
            axes.add_patch(Rectangle(corner, width, height, facecolor=colour, alpha=0.07))
            axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=1.4))
            drawn.add(name)
    rank = {tier.name.lower(): level for tier, level in RICHNESS.items()}
    return sorted(drawn, key=lambda name: -rank[name])
