#!/usr/bin/env python3
"""The codecs that a user would pick instead, one call each: chunks in, packets out, and back.

    pip install 'zarr_emcodec[bench]'
    python benchmarks/peers.py VOLUME.tif [--chunk 16 512 512] [--peers jpeg2k,hevc_inter]

One chunk is coded on its own, as in Zarr. Still-image codecs code each section of the chunk on its own and the bytes
add up; video codecs take z as time. Every codec is held to one thread. Sizes are those of the payload: no container, no
index, no metadata is added. uint8 only.

x265 preset slow, SVT-AV1 preset 4, libaom speed 4 through Pillow (imagecodecs codes grey AVIF losslessly whatever the
level), JPEG XL effort 7, SPERR 3-D in PSNR mode. ``down4_av1``, ``down8_av1``: box downsampling in-plane, AV1 inter on
the small volume, cubic upsampling.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 writes its settings to stderr otherwise; read when the library loads
import av
import imagecodecs
import numpy as np
import PIL
from common import Chunk, Shape3, clip_chunk, grid, load_volume
from metrics import psnr, ssim
from PIL import AvifImagePlugin, Image, features
from scipy.ndimage import zoom

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

av.logging.set_level(av.logging.PANIC)
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # Pillow has no argument for the threads of its AVIF decoder

Packets: TypeAlias = list[bytes]

SETTINGS = 1  # one more whenever an encoder's options below change: earlier points are then not reused


@dataclass(frozen=True)
class Peer:
    """One codec at fixed effort.

    Attributes
    ----------
    label : str
        What tables and plots call it.
    encode : callable
        (uint8 chunk (z, y, x), quality) -> packets.
    decode : callable
        (packets, shape) -> uint8 chunk of that shape.
    qualities : tuple of float
        The sweep, coarse to fine; the codec's own scale.
    version : str
        Library and version: two runs with equal versions give equal points.
    """

    label: str
    encode: Callable[[Chunk, float], Packets]
    decode: Callable[[Packets, Shape3], Chunk]
    qualities: tuple[float, ...]
    version: str


def still(
    label: str,
    encode: Callable[[Chunk, float], bytes],
    decode: Callable[[bytes], Chunk],
    qualities: tuple[float, ...],
    version: str,
) -> Peer:
    """A still-image codec, one packet per section."""

    def encode_chunk(chunk: Chunk, quality: float) -> Packets:
        return [encode(np.ascontiguousarray(section), quality) for section in chunk]

    def decode_chunk(packets: Packets, shape: Shape3) -> Chunk:
        return np.stack([decode(packet).reshape(shape[1:]) for packet in packets])

    return Peer(label, encode_chunk, decode_chunk, qualities, version)


def _avif_encode(section: Chunk, quality: float) -> bytes:
    out = io.BytesIO()
    Image.fromarray(section).save(out, "AVIF", quality=int(quality), speed=4, subsampling="4:0:0", max_threads=1)
    return out.getvalue()


def _avif_decode(packet: bytes) -> Chunk:
    return np.asarray(Image.open(io.BytesIO(packet)).convert("L"))


@dataclass(frozen=True)
class Video:
    """An FFmpeg encoder and decoder that take z as time; option values may hold ``{q}``."""

    encoder: str
    decoder: str
    pix_fmt: str
    options: Mapping[str, str]

    def encode(self, chunk: Chunk, quality: float) -> Packets:
        """Packets of one sequence, padded to what the encoders accept."""
        z, (height, width) = len(chunk), self._padded(chunk.shape)
        padded = np.pad(chunk, ((0, 0), (0, height - chunk.shape[1]), (0, width - chunk.shape[2])), mode="edge")
        context = av.CodecContext.create(self.encoder, "w")
        context.width, context.height, context.pix_fmt = width, height, self.pix_fmt
        context.time_base, context.framerate = Fraction(1, 25), Fraction(25, 1)
        context.thread_count = 1
        context.options = {key: value.format(q=int(quality)) for key, value in self.options.items()}
        packets: Packets = []
        for i in range(z):
            frame = self._frame(padded[i])
            frame.pts = i
            packets += [bytes(packet) for packet in context.encode(frame)]
        return packets + [bytes(packet) for packet in context.encode(None)]

    def decode(self, packets: Packets, shape: Shape3) -> Chunk:
        """The sections of the sequence, cropped."""
        height, _ = self._padded(shape)
        context = av.CodecContext.create(self.decoder, "r")
        context.thread_count = 1
        frames = [frame for packet in packets for frame in context.decode(av.Packet(packet))]
        frames += context.decode(None)
        if len(frames) != shape[0]:
            raise RuntimeError(f"{self.decoder} gave {len(frames)} sections of {shape[0]}")
        # In yuv420p the luma rows come first.
        sections = np.stack([frame.to_ndarray()[:height] for frame in frames])
        return np.ascontiguousarray(sections[:, : shape[1], : shape[2]]).astype(np.uint8)

    def _padded(self, shape: Sequence[int]) -> tuple[int, int]:
        # 64: the smallest edge that SVT-AV1 accepts; 8: the smallest block of both
        return max(64, -(-shape[1] // 8) * 8), max(64, -(-shape[2] // 8) * 8)

    def _frame(self, section: Chunk) -> Any:
        if self.pix_fmt == "gray":
            return av.VideoFrame.from_ndarray(section, format="gray")
        chroma = np.full((section.shape[0] // 2, section.shape[1]), 128, np.uint8)
        return av.VideoFrame.from_ndarray(np.concatenate([section, chroma]), format="yuv420p")


def downsampled(video: Video, factor: int, qualities: tuple[float, ...]) -> Peer:
    """In-plane box downsampling, ``video`` on the small volume, cubic upsampling."""

    def small_shape(shape: Sequence[int]) -> Shape3:
        return shape[0], -(-shape[1] // factor), -(-shape[2] // factor)

    def encode(chunk: Chunk, quality: float) -> Packets:
        z, height, width = small_shape(chunk.shape)
        pad = ((0, 0), (0, height * factor - chunk.shape[1]), (0, width * factor - chunk.shape[2]))
        blocks = np.pad(chunk, pad, mode="edge").astype(np.float32).reshape(z, height, factor, width, factor)
        return video.encode(blocks.mean((2, 4)).round().astype(np.uint8), quality)

    def decode(packets: Packets, shape: Shape3) -> Chunk:
        small = video.decode(packets, small_shape(shape)).astype(np.float32)
        large: Chunk = zoom(small, (1, factor, factor), order=3, mode="nearest", grid_mode=True)
        return np.clip(np.round(large), 0, 255).astype(np.uint8)[:, : shape[1], : shape[2]]

    return Peer(f"AV1 inter, 1/{factor} size", encode, decode, qualities, FFMPEG)


def _sperr_encode(chunk: Chunk, quality: float) -> Packets:
    return [bytes(imagecodecs.sperr_encode(chunk.astype(np.float32), level=quality, mode="psnr"))]


def _sperr_decode(packets: Packets, shape: Shape3) -> Chunk:
    decoded: Chunk = imagecodecs.sperr_decode(packets[0])
    return np.clip(np.round(decoded), 0, 255).astype(np.uint8).reshape(shape)


FFMPEG = f"PyAV {av.__version__}, libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}"
X265 = "qp={q}:log-level=none:info=0:pools=1:frame-threads=1:aq-mode=0"
HEVC_INTRA = Video("libx265", "hevc", "gray", {"preset": "slow", "tune": "psnr", "x265-params": X265 + ":keyint=1"})
HEVC_INTER = Video(
    "libx265", "hevc", "gray", {"preset": "slow", "tune": "psnr", "x265-params": X265 + ":keyint=-1:bframes=8:ref=4"}
)
AV1_INTER = Video(
    "libsvtav1", "libdav1d", "yuv420p",
    {"preset": "4", "crf": "{q}", "g": "-1", "svtav1-params": "tune=1:lp=1:scm=0"},
)  # fmt: skip
QP = (51, 48, 45, 42, 39, 36, 33, 30, 27, 24, 20)

PEERS: dict[str, Peer] = {
    "jpeg": still(
        "JPEG",
        lambda section, q: bytes(imagecodecs.jpeg8_encode(section, level=int(q))),
        imagecodecs.jpeg8_decode,
        (2, 5, 10, 20, 35, 50, 65, 80, 90),
        imagecodecs.jpeg8_version(),
    ),
    "jpeg2k": still(
        "JPEG 2000",
        lambda section, q: bytes(
            imagecodecs.jpeg2k_encode(section, level=int(q), codecformat="j2k", reversible=False, numthreads=1)
        ),
        lambda packet: imagecodecs.jpeg2k_decode(packet, numthreads=1),
        (18, 19, 20, 21, 22, 23, 24, 26, 28, 30, 32, 35, 38),
        imagecodecs.jpeg2k_version(),
    ),
    "jpegxl": still(
        "JPEG XL",
        lambda section, q: bytes(imagecodecs.jpegxl_encode(section, distance=q, effort=7, numthreads=1)),
        lambda packet: imagecodecs.jpegxl_decode(packet, numthreads=1),
        (24, 16, 12, 8, 6, 4, 3, 2, 1),
        imagecodecs.jpegxl_version(),
    ),
    "avif": still(
        "AVIF", _avif_encode, _avif_decode, (0, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80),
        f"Pillow {PIL.__version__}, libavif {features.version('avif')}",
    ),
    "hevc_intra": Peer("HEVC intra", HEVC_INTRA.encode, HEVC_INTRA.decode, QP, FFMPEG),
    "hevc_inter": Peer("HEVC inter", HEVC_INTER.encode, HEVC_INTER.decode, QP, FFMPEG),
    "av1_inter": Peer(
        "AV1 inter", AV1_INTER.encode, AV1_INTER.decode, (63, 60, 56, 52, 47, 42, 37, 32, 27, 22, 16), FFMPEG
    ),
    "down4_av1": downsampled(AV1_INTER, 4, (63, 55, 45, 35, 25)),
    "down8_av1": downsampled(AV1_INTER, 8, (55, 40, 25)),
    "sperr3d": Peer(
        "SPERR 3-D", _sperr_encode, _sperr_decode, (18, 20, 22, 24, 26, 28, 30, 33, 36), imagecodecs.sperr_version()
    ),
}  # fmt: skip


def roundtrip(name: str, voxels: Chunk, chunk: Shape3, quality: float) -> tuple[int, Chunk, float, float]:
    """Code a volume chunk by chunk; payload bytes, what comes back, CPU seconds to encode and to decode."""
    peer, decoded = PEERS[name], np.empty_like(voxels)
    n_bytes, encode_s, decode_s = 0, 0.0, 0.0
    for box in grid(voxels.shape, chunk):
        start = time.process_time()
        packets = peer.encode(voxels[box], quality)
        middle = time.process_time()
        decoded[box] = peer.decode(packets, voxels[box].shape)
        encode_s, decode_s = encode_s + middle - start, decode_s + time.process_time() - middle
        n_bytes += sum(map(len, packets))
    return n_bytes, decoded, encode_s, decode_s


def measure(name: str, voxels: Chunk, chunk: Shape3, quality: float) -> dict[str, float] | None:
    """One point of a peer's curve; None where the codec refuses the quality."""
    try:
        n_bytes, decoded, encode_s, decode_s = roundtrip(name, voxels, chunk, quality)
    except Exception as error:  # each library has its own errors; a refused quality must not end the sweep
        print(f"  {name} at {quality}: {type(error).__name__}: {error}", file=sys.stderr)
        return None
    figures = {"ratio": voxels.nbytes / n_bytes, "psnr": psnr(voxels, decoded), "ssim": ssim(voxels, decoded)}
    return {"quality": quality, **figures, "encode_s": encode_s, "decode_s": decode_s}


def sweep(name: str, voxels: Chunk, chunk: Shape3, *, jobs: int = 1) -> list[dict[str, float]]:
    """The rate-distortion points of a peer, coarse to fine.

    Parameters
    ----------
    name : str
        Key of `PEERS`.
    voxels : ndarray, shape (z, y, x), uint8
    chunk : (int, int, int), voxels
    jobs : int
        Qualities measured at once, one process each.
    """
    qualities = PEERS[name].qualities
    if jobs == 1:
        points = [measure(name, voxels, chunk, q) for q in qualities]
    else:
        # spawn: forked children of a process that holds codec threads may hang
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            n = len(qualities)
            points = list(pool.map(measure, [name] * n, [voxels] * n, [chunk] * n, qualities))
    return [point for point in points if point is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", type=Path)
    parser.add_argument("--chunk", nargs=3, type=int, default=(16, 512, 512), metavar=("Z", "Y", "X"))
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--sections", type=int)
    args = parser.parse_args()
    voxels = load_volume(args.volume, sections=args.sections).voxels
    if voxels.dtype != np.uint8:
        raise SystemExit(f"{args.volume.name} is {voxels.dtype}; the peers take uint8.")
    for name in args.peers.split(","):
        points = sweep(name, voxels, clip_chunk(args.chunk, voxels.shape))
        line = "  ".join(f"{p['ratio']:.0f}x {p['psnr']:.2f}/{p['ssim']:.3f}" for p in points)
        print(f"{name:11s} {line}", flush=True)


if __name__ == "__main__":
    main()
