"""Points of one volume: an array of tokens at each tier, and peers, each with every figure of its reconstruction.

A volume, its chunk shape and perhaps a judge of membranes in; rows for JSON out. Knows no command line.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import peers
from metrics import frc_cutoffs, psnr, spectral_distance, spectrum_slope, ssim, texture_distance
from token_coding import perplexity

import zarr_emcodec

if TYPE_CHECKING:
    from common import Chunk, Shape3, Volume
    from membranes import Judge

LOWEST_RATIO, HIGHEST_RATIO = 40.0, 4000.0  # of the peers' points: finer ones are rd.py's
COARSER = {"jpeg2k": (15, 16, 17)}  # qualities beyond those of rd.py: noisy volumes reach 256x only with them
TIERS = ("top", "prior", "full")


@dataclass(frozen=True)
class Bench:
    """One volume and what its reconstructions are held against.

    Attributes
    ----------
    volume : Volume
    chunk : (int, int, int), voxels
    pixel_nm : float or None
        Edge of a pixel of a section.
    judge : Judge or None
    """

    volume: Volume
    chunk: Shape3
    pixel_nm: float | None
    judge: Judge | None

    def grey(self, voxels: Chunk) -> Chunk:
        """Voxels in grey levels of 0 to 255 over the volume's window; uint8 as it is."""
        low, high = self.volume.window
        return (
            voxels if voxels.dtype == np.uint8 else (voxels.astype(np.float32) - low) * np.float32(255 / (high - low))
        )

    def quality(self, decoded: Chunk) -> dict[str, float]:
        """Every figure of one reconstruction."""
        raw, grey = self.grey(self.volume.voxels), self.grey(decoded)
        row = {
            "psnr": psnr(raw, grey),
            "ssim": ssim(raw, grey),
            "spectral_db": spectral_distance(raw, grey),
            "texture": texture_distance(raw, grey),
            "spectrum_slope": spectrum_slope(grey),
            **frc_cutoffs(raw, grey, self.pixel_nm),
        }
        return row | (self.judge.score(decoded) if self.judge else {})

    def uncompressed(self) -> dict[str, float]:
        """What the figures that need no original say of it."""
        slope = {"spectrum_slope": spectrum_slope(self.grey(self.volume.voxels))}
        return slope | (self.judge.uncompressed if self.judge else {})


def our_points(
    bench: Bench, ratio: float | None, words: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Chunk]]:
    """The points of one array at each tier of its model, and what each tier looks like."""
    raw, points, looks = bench.volume.voxels, [], {}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/tokens.zarr"
        spec = zarr_emcodec.v3.VQVAECodec(ratio=ratio, **words)
        start = time.process_time()
        zarr_emcodec.create_array(path, data=raw, chunks=bench.chunk, codec=spec)
        encode_s = time.process_time() - start
        stored = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
        frames = [file.read_bytes() for file in Path(path).rglob("*") if file.is_file() and file.name != "zarr.json"]
        common = {
            "asked": ratio,
            "model": zarr_emcodec.inspect(frames[0]).model,
            "ratio": raw.nbytes / stored,
            "frames_ratio": raw.nbytes / sum(map(len, frames)),
            **perplexity(frames),
            "encode_mb_s": raw.nbytes / 1e6 / encode_s,
        }
        figures_of: dict[str, dict[str, float]] = {}
        for tier in TIERS:
            try:
                decoded, decode_s = read(path, tier)
            except zarr_emcodec.EmCodecError as error:
                print(f"  {ratio or words['model']} at {tier}: {error}", file=sys.stderr)
                continue
            same = [other for other, look in looks.items() if np.array_equal(look, decoded)]  # prior, where all is kept
            figures_of[tier] = figures_of[same[0]] if same else bench.quality(decoded)
            looks[tier] = decoded
            points.append({**common, "tier": tier, **figures_of[tier], "decode_mb_s": raw.nbytes / 1e6 / decode_s})
    return points, looks


def read(path: str, tier: str) -> tuple[Chunk, float]:
    """An array at a tier, and the median CPU seconds of three reads."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        decoded = np.asarray(zarr_emcodec.open(path, tier=tier)[...])
        seconds.append(time.process_time() - start)
    return decoded, float(np.median(seconds))


def reused(bench: Bench, path: Path | None) -> dict[str, list[dict[str, Any]]]:
    """Curves of peers in an earlier record of the very same voxels and chunks; they may lack figures of today."""
    if path is None:
        return {}
    earlier = json.loads(path.read_text(encoding="utf-8"))
    same = earlier["volume"]["voxels_sha256"] == bench.volume.facts()["voxels_sha256"]
    if not same or not earlier["protocol"].startswith(f"chunks {' x '.join(map(str, bench.chunk))};"):
        raise SystemExit(f"{path.name}: of other voxels or chunks. Name a record of this volume, or none.")
    return dict(earlier["peers"])


def peer_points(bench: Bench, name: str) -> list[dict[str, Any]]:
    """A peer's points at ratios that tokens are for."""
    points, raw = [], bench.volume.voxels
    for level in (*COARSER.get(name, ()), *peers.PEERS[name].qualities):  # from coarse to fine
        n_bytes, decoded, _, decode_s = peers.roundtrip(name, raw, bench.chunk, level)
        ratio = raw.nbytes / n_bytes
        if ratio < LOWEST_RATIO:
            break
        if ratio > HIGHEST_RATIO or any(ratio == point["ratio"] for point in points):
            continue  # beyond what is asked, or the codec's floor again
        row = {"quality": level, "ratio": ratio, **bench.quality(decoded)}
        points.append(row | {"decode_mb_s": raw.nbytes / 1e6 / max(decode_s, 1e-9)})
    return points
