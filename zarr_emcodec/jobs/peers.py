"""JPEG and JPEG 2000 at a given number of bytes, for the demonstration's table.

Sections and a byte count in, measured figures out. The full comparison, with more codecs, is benchmarks/rd.py.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.quality.measure import psnr, ssim, worst_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr_emcodec._types import Chunk


@dataclass(frozen=True)
class Figures:
    """One codec at one setting.

    Parameters
    ----------
    name : str
    stored_bytes : int
    psnr_db, ssim, worst_error : float
    write_mb_s, read_mb_s : float
        10^6 raw bytes a second, one thread.
    fits : bool
        Whether it got down to the bytes asked for.
    """

    name: str
    stored_bytes: int
    psnr_db: float
    ssim: float
    worst_error: float
    write_mb_s: float
    read_mb_s: float
    fits: bool


def at_bytes(sections: Chunk, n_bytes: int) -> list[Figures]:
    """The peers at the best quality that takes no more than `n_bytes`; none where imagecodecs is absent.

    Parameters
    ----------
    sections : ndarray, shape (z, y, x), uint8
        Each section is coded as an image of its own.
    n_bytes : int
        For all of them together.
    """
    try:
        import imagecodecs
    except ImportError:
        return []

    def jpeg2k(section: Chunk, level: float) -> bytes:
        # the stub says integer, the library takes fractions of a decibel
        options: dict[str, Any] = {"level": level, "codecformat": "j2k", "reversible": False, "numthreads": 1}
        return bytes(imagecodecs.jpeg2k_encode(section, **options))

    jpeg_levels = [float(q) for q in range(1, 101)]
    jpeg2k_levels = [float(q) for q in np.arange(14, 60, 0.5)]  # dB; finer steps give the same bytes
    return [
        _measure(
            "JPEG", sections, n_bytes, jpeg_levels,
            lambda section, q: bytes(imagecodecs.jpeg8_encode(section, level=int(q))), imagecodecs.jpeg8_decode,
        ),
        _measure(
            "JPEG 2000", sections, n_bytes, jpeg2k_levels,
            jpeg2k, lambda data: imagecodecs.jpeg2k_decode(data, numthreads=1),
        ),
    ]  # fmt: skip


def _measure(
    name: str,
    sections: Chunk,
    n_bytes: int,
    levels: list[float],
    encode: Callable[[Chunk, float], bytes],
    decode: Callable[[bytes], Any],
) -> Figures:
    def size(level: float) -> int:
        return sum(len(encode(section, level)) for section in sections)

    low, high = 0, len(levels)  # the coarsest level is taken even if it does not fit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(levels[middle]) <= n_bytes else (low, middle)
    started = time.perf_counter()
    packets = [encode(section, levels[low]) for section in sections]
    encoded = time.perf_counter()
    _spend(packets, sections, n_bytes, lambda section: encode(section, levels[min(low + 1, len(levels) - 1)]))
    finished = time.perf_counter()
    decoded = np.stack([np.asarray(decode(packet)) for packet in packets])
    done = time.perf_counter()
    stored = sum(map(len, packets))
    megabytes = math.prod(sections.shape) / 1e6
    return Figures(
        name=name,
        stored_bytes=stored,
        psnr_db=psnr(sections, decoded),
        ssim=ssim(sections, decoded),
        worst_error=worst_error(sections, decoded),
        write_mb_s=megabytes / (encoded - started),
        read_mb_s=megabytes / (done - finished),
        fits=stored <= n_bytes,
    )


def _spend(packets: list[bytes], sections: Chunk, n_bytes: int, finer: Callable[[Chunk], bytes]) -> None:
    """Replace sections by finer ones while they fit: a level's step would waste up to a tenth of the bytes."""
    stored = sum(map(len, packets))
    for i, section in enumerate(sections):
        packet = finer(section)
        if stored + len(packet) - len(packets[i]) > n_bytes:
            return
        stored += len(packet) - len(packets[i])
        packets[i] = packet
