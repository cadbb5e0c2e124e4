"""Pieces of an HTML page that needs no other file: tables, bar charts as SVG, pictures as PNG inside.

Plain values and arrays of pixels in, text out. Nothing here knows what the figures mean.
"""

from __future__ import annotations

import base64
import html
import struct
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from zarr_emcodec._types import Chunk

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse}td,th{padding:.15rem 1rem .15rem 0;text-align:left;vertical-align:top}
th{font-weight:normal;color:#666}.good{color:#19703a}.bad{color:#b3261e}
figure{margin:0 0 1.5rem}figcaption{color:#444;margin-bottom:.3rem}
.row{display:flex;gap:.6rem}.row img{width:33%;image-rendering:pixelated;background:#eee}
svg text{font:11px system-ui,sans-serif;fill:#444}
"""
# whatever a path or a message from elsewhere may hold, the page fetches and runs nothing
_ALLOWED = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_POLICY = f'<meta http-equiv="Content-Security-Policy" content="{_ALLOWED}">'
_BAR, _WIDE, _HIGH = "#3f6ea8", 720, 180
_RED, _BLUE = np.array([178, 24, 43.0]), np.array([33, 102, 172.0])


def document(title: str, body: Sequence[str]) -> str:
    """A whole page.

    Parameters
    ----------
    title : str
        Plain text.
    body : sequence of str
        HTML.
    """
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    top = f'<!doctype html>\n<html lang="en"><head>{_POLICY}{head}</head><body>'
    return "\n".join([top, *body, "</body></html>\n"])


def heading(text: str, level: int = 2) -> str:
    """A heading of plain text."""
    return f"<h{level}>{html.escape(text)}</h{level}>"


def paragraph(text: str, kind: str = "") -> str:
    """A line of plain text; `kind` is "good", "bad" or nothing."""
    return f'<p class="{kind}">{html.escape(text)}</p>' if kind else f"<p>{html.escape(text)}</p>"


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of plain text, the first cell of each its name; rows without a value are left out."""
    lines = [
        f"<tr><th>{html.escape(first)}</th>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
        if any(rest)
    ]
    return f"<table>{''.join(lines)}</table>"


def bars(labels: Sequence[str], counts: Sequence[int], *, unit: str, log: bool = False) -> str:
    """A bar chart as SVG, each bar with its count as a tooltip.

    Parameters
    ----------
    labels : sequence of str
        One for each bar; where there are many, some are left out.
    counts : sequence of int
    unit : str
        What the labels mean.
    log : bool
        Heights by logarithm, so that single voxels among millions show.
    """
    heights = np.log1p(np.asarray(counts, float)) if log else np.asarray(counts, float)
    top, n = max(float(heights.max(initial=0)), 1e-9), max(len(counts), 1)
    step = _WIDE / n
    every = max(1, -(-n // 24))
    parts = [f'<svg viewBox="0 0 {_WIDE} {_HIGH + 44}" width="100%" role="img" aria-label="{html.escape(unit)}">']
    for i, (label, count, height) in enumerate(zip(labels, counts, heights, strict=True)):
        tall = _HIGH * float(height) / top
        if count:
            tall = max(tall, 1.5)
        x, wide = i * step, max(step - 2, 1)
        parts.append(
            f'<rect x="{x:.1f}" y="{_HIGH - tall:.1f}" width="{wide:.1f}" height="{tall:.1f}" fill="{_BAR}">'
            f"<title>{html.escape(label)}: {count}</title></rect>"
        )
        if i % every == 0:
            parts.append(
                f'<text x="{x + wide / 2:.1f}" y="{_HIGH + 15}" text-anchor="middle">{html.escape(label)}</text>'
            )
    scale = ", logarithmic heights" if log else ""
    parts.append(
        f'<text x="{_WIDE / 2}" y="{_HIGH + 36}" text-anchor="middle">{html.escape(unit + scale)}</text></svg>'
    )
    return "".join(parts)


def pictures(caption: str, images: Sequence[tuple[str, NDArray[np.uint8]]]) -> str:
    """Images side by side under one caption.

    Parameters
    ----------
    caption : str
    images : sequence of (what it shows, pixels)
        Pixels of shape (y, x) or (y, x, 3).
    """
    row = "".join(
        f'<img alt="{html.escape(name)}" title="{html.escape(name)}" src="{_data_url(image)}">'
        for name, image in images
    )
    return f'<figure><figcaption>{html.escape(caption)}</figcaption><div class="row">{row}</div></figure>'


def triptych(caption: str, original: Chunk, decoded: Chunk) -> str:
    """Original, decoded and difference of one section, in the greys of the original.

    Parameters
    ----------
    caption : str
    original, decoded : ndarray, shape (y, x)
    """
    shown = np.nan_to_num(original.astype(np.float64))
    low, high = (float(v) for v in np.percentile(shown, (0.2, 99.8)))
    with np.errstate(invalid="ignore"):  # infinity less itself
        off = np.nan_to_num(decoded.astype(np.float64) - original)
    reach = float(np.percentile(np.abs(off), 99.8)) or float(np.abs(off).max()) or 1.0  # a single voxel shows too
    images = [("original", grey(shown, low, high)), ("decoded", grey(np.nan_to_num(decoded), low, high)),
              (f"decoded minus original, full red and blue at {reach:g}", diverging(off, reach))]  # fmt: skip
    return pictures(caption, images)


def grey(values: Chunk, low: float, high: float) -> NDArray[np.uint8]:
    """Values between two bounds as greys."""
    scaled = (values.astype(np.float64) - low) / max(high - low, 1e-9)
    return np.asarray(np.round(255 * np.clip(scaled, 0, 1)), np.uint8)


def diverging(values: Chunk, reach: float) -> NDArray[np.uint8]:
    """Signed values as colours: white is 0, red is `reach`, blue is minus that."""
    share = np.clip(np.asarray(values, np.float64) / reach, -1, 1)[..., None]
    colour = np.where(share > 0, _RED, _BLUE)
    return np.asarray(np.round(255 + (colour - 255) * np.abs(share)), np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels of shape (y, x) or (y, x, 3) as a PNG file (RFC 2083), with every row stored as it is."""
    rows, columns = pixels.shape[:2]
    raw = np.zeros((rows, 1 + pixels[0].size), np.uint8)  # each row begins with its filter: 0, none
    raw[:, 1:] = pixels.reshape(rows, -1)
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0 if pixels.ndim == 2 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw.tobytes(), 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _data_url(pixels: NDArray[Any]) -> str:
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()
