"""The picture of a compression: original, decoded and difference of one section, with a part of it enlarged.

A source and arrays in, a PNG out. Only the section shown is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.errors import MissingExtraError
from zarr_emcodec.jobs.compare import read_box
from zarr_emcodec.jobs.frames import stored_bytes
from zarr_emcodec.jobs.measure import decibels
from zarr_emcodec.quality.measure import squared_error

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import zarr

    from zarr_emcodec._types import Chunk, Shape
    from zarr_emcodec.jobs.grid import Box
    from zarr_emcodec.jobs.sources import Source

_SHOWN = 1024  # voxels along an edge; of larger sections the middle is shown
_ZOOM = 0.18  # edge of the enlarged part, as a fraction of the shorter edge shown
_WIDE = 0.55  # edge of the inset, as a fraction of its panel
_INK, _MARK = "#222222", "#ffd23f"


def middle_section(shape: Shape) -> Box:
    """The section halfway along z, or the middle of it where it is larger than what a picture shows.

    Examples
    --------
    >>> middle_section((9, 100, 2048))
    (slice(4, 5, None), slice(0, 100, None), slice(512, 1536, None))
    """
    leading = tuple(slice(n // 2, n // 2 + 1) for n in shape[:-2])
    starts = (max(0, (n - _SHOWN) // 2) for n in shape[-2:])
    return leading + tuple(slice(a, min(a + _SHOWN, n)) for a, n in zip(starts, shape[-2:], strict=True))


def draw_rows(
    path: str | os.PathLike[str],
    source: Source,
    rows: Sequence[tuple[str, zarr.Array[Any]]],
    *,
    peak: float,
) -> None:
    """Draw one row of original, decoded and difference for each array.

    Parameters
    ----------
    path : path
        PNG to write.
    source : Source
    rows : sequence of (label, array)
        Of the source's shape.
    peak : float
        That PSNR refers to, in source units.

    Raises
    ------
    MissingExtraError
        If matplotlib is absent.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("drawing a picture", extra="viz") from error

    box = middle_section(source.shape)
    original = _flat(source.read(box))
    aspect = original.shape[0] / original.shape[1]
    figure = Figure(figsize=(13.5, len(rows) * (4.3 * aspect + 0.65)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), 3, squeeze=False)
    decoded = [_flat(read_box(array, box)) for _, array in rows]
    errors = [d.astype(np.float64) - original for d in decoded]
    bounds = _grey_bounds(original)
    reach = max([float(np.percentile(np.abs(e), 99.8)) for e in errors] + [1e-9])  # one scale for all rows
    for line, (label, array), values, off in zip(panels, rows, decoded, errors, strict=True):
        reached = decibels(squared_error(original, values) / original.size, peak)
        ratio = source.nbytes / stored_bytes(array)
        quality = "exact" if np.isinf(reached) else f"{reached:.2f} dB here"
        _panel(line[0], original, bounds, "gray", f"original   {source.dtype.name}")
        _panel(line[1], values, bounds, "gray", f"{label}   {ratio:.1f}x smaller   {quality}")
        shown = _panel(line[2], off, (-reach, reach), "RdBu_r", "decoded minus original")
        bar = figure.colorbar(shown, ax=line[2], shrink=0.9, pad=0.02, aspect=28)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, colors=_INK, length=0)
        bar.set_label("grey levels" if source.dtype == np.uint8 else "source units", size=8, color=_INK)
    place = ", ".join(f"{n}" if s.stop - s.start == 1 else f"{s.start}:{s.stop}" for s, n in
                      zip(box, (s.start for s in box), strict=True))  # fmt: skip
    figure.suptitle(f"{Path(source.location).name}  [{place}]", size=10, color=_INK, x=0.01, ha="left")
    figure.savefig(path, dpi=110, format="png")


def _flat(block: Chunk) -> Chunk:
    return block.reshape(block.shape[-2:])


def _grey_bounds(section: Chunk) -> tuple[float, float]:
    low, high = np.percentile(section, (0.2, 99.8))
    return float(low), float(max(high, low + 1e-9))


def _panel(axes: Any, image: Chunk, bounds: tuple[float, float], colours: str, title: str) -> Any:
    shown = axes.imshow(image, cmap=colours, vmin=bounds[0], vmax=bounds[1], interpolation="nearest")
    axes.set_title(title, size=10, color=_INK, loc="left", pad=5)
    axes.set_axis_off()
    rows, columns = image.shape
    edge = int(_ZOOM * min(rows, columns))
    if edge >= 8:
        top, left = int(0.3 * rows), int(0.22 * columns)
        part = image[top : top + edge, left : left + edge]
        width = _WIDE * min(rows, columns)
        inset = axes.inset_axes((columns - width, rows - width, width, width), transform=axes.transData)
        inset.imshow(part, cmap=colours, vmin=bounds[0], vmax=bounds[1], interpolation="nearest")
        inset.set_xticks([])
        inset.set_yticks([])
        for edge_line in inset.spines.values():
            edge_line.set(edgecolor=_MARK, linewidth=1.6)
        axes.add_patch(_outline(left, top, edge))
    return shown


def _outline(left: int, top: int, edge: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((left - 0.5, top - 0.5), edge, edge, fill=False, edgecolor=_MARK, linewidth=1.6)
