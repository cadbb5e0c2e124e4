"""How the encoder of a token model spends its bytes: quality over the price on bits, and use of the codebooks.

A volume, a chunk shape and a model in, points and figures out. The price sweep answers what a ratio *exactly* met would
give: asked for a ratio, the encoder raises the price of each frame until that just fits, with room for metadata.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
from common import grid
from metrics import at_ratio, psnr, ssim

from zarr_emcodec.codecs import VQVAESpec, decode_many, encode_many, vqvae_decode, vqvae_encode
from zarr_emcodec.codecs.opened import open_frame
from zarr_emcodec.frame import Kind, unpack
from zarr_emcodec.runtime import current, find_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from common import Shape3, Volume
    from numpy.typing import NDArray

PRICES = (0.0, 0.01, 0.025, 0.05, 0.09, 0.15, 0.25)


def price_sweep(volume: Volume, chunk: Shape3, model: str) -> dict[str, Any]:
    """Ratio and PSNR of a model's frames over the price that its encoder puts on a bit.

    Parameters
    ----------
    volume : Volume
    chunk : (int, int, int), voxels
    model : str
        Of one level, or of two, of which the top is stored.

    Returns
    -------
    dict
        ``points``: ``price`` in squared standard deviations a bit for each voxel of a token, the ratio of the frames,
        PSNR, SSIM and `perplexity`. ``asked``: the model's ratio; ``psnr_at_asked``: see there.
    """
    card = find_model(model).card.tokens
    assert card is not None
    low, high = volume.window
    points = []
    for price in PRICES:
        spec = VQVAESpec(model=model, price=price * math.prod(card.stride), window=_stated(volume))
        # the price asked for, even where a frame is over its budget
        with patch.object(vqvae_encode, "_squeeze", lambda *_: None):
            frames = encode_many(spec, [volume.voxels[box] for box in grid(volume.voxels.shape, chunk)])
        decoded = np.empty_like(volume.voxels)
        for box, part in zip(grid(volume.voxels.shape, chunk), decode_many(frames), strict=True):
            decoded[box] = part
        point = {"price": price, "ratio": volume.voxels.nbytes / sum(map(len, frames))}
        point["psnr"] = psnr(volume.voxels, decoded, peak=high - low)
        point["ssim"] = ssim(volume.voxels, decoded, peak=high - low, offset=low)
        points.append(point | perplexity(frames))
        print(f"  {model}, {chunk[0]} sections: " + "  ".join(f"{k} {v:.4g}" for k, v in point.items()), flush=True)
    asked = card.ratio(0.0)
    found = psnr_at_asked(points, asked)
    return {"model": model, "chunk": list(chunk), "asked": asked, "psnr_at_asked": found, "points": points}


def psnr_at_asked(points: Sequence[dict[str, float]], ratio: float) -> float:
    """PSNR of frames of exactly a ratio, by PCHIP over log(ratio); where bits without a price are fewer, with those."""
    return points[0]["psnr"] if points[0]["ratio"] >= ratio else at_ratio(points, ratio)


def _stated(volume: Volume) -> tuple[float, float] | None:
    """The window to state; none for uint8, whose window is its range."""
    return None if volume.voxels.dtype == np.uint8 else volume.window


def perplexity(frames: Sequence[bytes]) -> dict[str, float]:
    """How many codes of each codebook the frames of an array use as if equally often: 2 to the order-0 entropy.

    Parameters
    ----------
    frames : sequence of bytes
        Of one model.

    Returns
    -------
    dict
        ``perplexity_top`` and, where bottom tokens are stored, ``perplexity_bottom``; mean over the codebooks of a
        level, where a cell has several. Few tokens cannot use many codes, and a price on bits makes it use fewer.
    """
    counts: dict[str, list[NDArray[np.int64]]] = {}
    for data in frames:
        frame = unpack(data)
        if frame.kind in (Kind.LATENT, Kind.MASKED):
            item = vqvae_decode._open(open_frame(frame, None, current()), current())
            vqvae_decode._read([item], current())
            card = item.model.card
            counts.setdefault("top", []).append(_uses(item.top, card.lattice, card.codes))
            if item.bottom is not None:
                counts.setdefault("bottom", []).append(_uses(item.bottom, (1,) * len(card.lattice), card.codes))
    return {f"perplexity_{level}": _perplexity(np.sum(parts, axis=0)) for level, parts in counts.items()}


def _uses(tokens: NDArray[np.int64], lattice: tuple[int, ...], codes: int) -> NDArray[np.int64]:
    """Counts (codebooks, K) of the codes in grids (n, *grid): each place of a cell has a codebook of its own."""
    places = np.ndindex(*lattice)
    books = [
        tokens[(slice(None), *(slice(start, None, n) for start, n in zip(place, lattice, strict=True)))]
        for place in places
    ]
    return np.stack([np.bincount(book[book < codes], minlength=codes) for book in books])


def _perplexity(counts: NDArray[np.int64]) -> float:
    """Mean over the codebooks."""
    shares = counts / counts.sum(1, keepdims=True)
    bits = -np.sum(shares * np.log2(np.maximum(shares, 1e-300)), axis=1)
    return float(np.mean(2**bits))
