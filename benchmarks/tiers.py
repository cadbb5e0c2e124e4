#!/usr/bin/env python3
"""What tokens keep of a volume, by ratio and by tier, beside image and video codecs at the same ratios.

    pip install 'zarr_emcodec[cpu,bench]'
    python benchmarks/tiers.py fib_medulla_64.tif --voxel-nm 10 10 10
    python benchmarks/tiers.py sstem_vnc_20.tif --sections 11 20 --judge judge.onnx --labels sstem_vnc_20_membranes.tif

Each array is written once and read at every tier it has. PSNR and SSIM say how near the voxels are; the distances of
spectrum and texture say whether the picture has the grain of the original, wherever its grains lie; the membranes'
IoU (where a judge and labels are given: see membranes.py) says what a segmentation still finds. No one of them alone
is the truth about an output that is partly synthesised.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import figures
import numpy as np
import peers
import zarr
from common import OURS, PEERS, RESULTS, Volume, clip_chunk, load_volume, machine, package_version, versions, write_json
from membranes import Judge
from metrics import psnr, spectral_distance, ssim, texture_distance
from PIL import Image

import zarr_emcodec
from zarr_emcodec import roi

if TYPE_CHECKING:
    from common import Chunk, Shape3

RATIOS = (16.0, 64.0, 256.0, 204.8, 1024.0)
STILL_AND_VIDEO = "jpeg2k,avif,hevc_intra,hevc_inter,av1_inter,down4_av1,down8_av1"
LOWEST_RATIO = 40.0  # of the peers' points: finer ones are rd.py's
TIERS = ("top", "prior", "full")
PICTURE_EDGE = 320


def quality(raw: Chunk, decoded: Chunk, judge: Judge | None) -> dict[str, float]:
    """Every figure of one reconstruction."""
    row = {
        "psnr": psnr(raw, decoded),
        "ssim": ssim(raw, decoded),
        "spectral_db": spectral_distance(raw, decoded),
        "texture": texture_distance(raw, decoded),
    }
    return row | (judge.score(decoded) if judge else {})


def our_points(
    volume: Volume, chunk: Shape3, ratio: float, words: dict[str, Any], judge: Judge | None
) -> tuple[list[dict[str, Any]], dict[str, Chunk]]:
    """The points of one array at each tier of its model, and what each tier looks like."""
    raw, points, looks = volume.voxels, [], {}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/tokens.zarr"
        spec = zarr_emcodec.v3.VQVAECodec(ratio=ratio, **words)
        start = time.process_time()
        zarr_emcodec.create_array(path, data=raw, chunks=chunk, codec=spec)
        encode_s = time.process_time() - start
        stored = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
        frames = [file.read_bytes() for file in Path(path).rglob("*") if file.is_file() and file.name != "zarr.json"]
        model = zarr_emcodec.inspect(frames[0]).model
        for tier in TIERS:
            try:
                seconds = []
                for _ in range(3):
                    start = time.process_time()
                    decoded = np.asarray(zarr_emcodec.open(path, tier=tier)[...])
                    seconds.append(time.process_time() - start)
            except zarr_emcodec.EmCodecError as error:
                print(f"  {ratio:g} at {tier}: {error}", file=sys.stderr)
                continue
            looks[tier] = decoded
            points.append(
                {
                    "asked": ratio,
                    "tier": tier,
                    "model": model,
                    "ratio": raw.nbytes / stored,
                    "frames_ratio": raw.nbytes / sum(map(len, frames)),
                    **quality(raw, decoded, judge),
                    "encode_mb_s": raw.nbytes / 1e6 / encode_s,
                    "decode_mb_s": raw.nbytes / 1e6 / float(np.median(seconds)),
                }
            )
    return points, looks


def peer_points(volume: Volume, chunk: Shape3, name: str, judge: Judge | None) -> list[dict[str, Any]]:
    """A peer's points at ratios that tokens are for."""
    points = []
    for level in peers.PEERS[name].qualities:  # from coarse to fine
        n_bytes, decoded, _, decode_s = peers.roundtrip(name, volume.voxels, chunk, level)
        ratio = volume.voxels.nbytes / n_bytes
        if ratio < LOWEST_RATIO:
            break
        row = {"quality": level, "ratio": ratio, **quality(volume.voxels, decoded, judge)}
        points.append(row | {"decode_mb_s": volume.voxels.nbytes / 1e6 / max(decode_s, 1e-9)})
    return points


def upgrade(volume: Volume, chunk: Shape3, words: dict[str, Any]) -> dict[str, Any]:
    """Bytes on disk before and after a tenth of the sections' area is raised from `top` to `prior`."""
    raw = volume.voxels
    side = round(0.1**0.5 * raw.shape[1]), round(0.1**0.5 * raw.shape[2])
    small = tuple(min(n, 128) for n in chunk[1:])
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/tokens.zarr"
        codec = zarr_emcodec.v3.VQVAECodec(ratio=1024, **words)
        zarr_emcodec.create_array(path, data=raw, chunks=(chunk[0], *small), codec=codec)

        def files() -> dict[str, bytes]:
            return {str(f): f.read_bytes() for f in Path(path).rglob("*") if f.is_file() and f.name != "zarr.json"}

        before = files()
        box = (slice(0, raw.shape[0]), slice(0, side[0]), slice(0, side[1]))
        report = roi.upgrade_roi(zarr.open_array(path, mode="r+"), box, tier="prior")
        after = files()
    changed = [a != b for a, b in zip(before.values(), after.values(), strict=True)]
    return {
        "bytes_before": sum(map(len, before.values())),
        "bytes_after": sum(map(len, after.values())),
        "objects": len(before),
        "objects_changed": sum(changed),
        "report": {key: value for key, value in vars(report).items() if isinstance(value, int | float | str)},
    }


def picture(raw: Chunk, looks: dict[str, Chunk], path: Path) -> None:
    """Original and tiers of one section beside each other."""
    z = raw.shape[0] // 2
    y, x = ((n - min(n, PICTURE_EDGE)) // 2 for n in raw.shape[1:])
    panels = [v[z, y : y + PICTURE_EDGE, x : x + PICTURE_EDGE] for v in (raw, *looks.values())]
    gap = np.full((panels[0].shape[0], 6), 255, np.uint8)
    strip = np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)
    Image.fromarray(strip).save(path, optimize=True)
    print(f"{path.name}: original | {' | '.join(looks)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", type=Path, help="uint8 stack (z, y, x)")
    parser.add_argument("--sections", nargs=2, type=int, metavar=("FIRST", "LAST+1"))
    parser.add_argument("--chunk", nargs=3, type=int, default=(16, 512, 512), metavar=("Z", "Y", "X"))
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS)
    parser.add_argument("--voxel-nm", nargs=3, type=float, metavar=("Z", "Y", "X"), help="also measure 3-D models")
    parser.add_argument("--models", nargs="*", default=[], help="further models by id, at their own ratios")
    parser.add_argument("--mode", default="entropy", choices=("entropy", "nominal"))
    parser.add_argument("--effort", type=int, default=0)
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--peers", default=STILL_AND_VIDEO, help="comma-separated, or '' for none")
    parser.add_argument("--label", default="", help="added to the names of the files written")
    parser.add_argument("--out", type=Path, help="folder of the JSON and PNG; results/<version> beside this script")
    args = parser.parse_args()
    args.out = args.out or RESULTS / package_version()
    return args


def cases(args: argparse.Namespace) -> list[tuple[float | None, dict[str, Any]]]:
    """Ratio and further words of each array to write."""
    common = {"mode": args.mode, "effort": args.effort}
    out: list[tuple[float | None, dict[str, Any]]] = [(ratio, dict(common)) for ratio in args.ratios]
    if args.voxel_nm:
        deep = {**common, "voxel_nm": tuple(args.voxel_nm)}
        out += [(ratio, deep) for ratio in args.ratios if ratio in (256.0, 1024.0)]
    return out + [(None, {**common, "model": model}) for model in args.models]


def main() -> None:
    args = parse()
    whole = load_volume(args.volume)
    scored = slice(*args.sections) if args.sections else slice(None)
    volume = Volume(whole.name, whole.voxels[scored], whole.file_sha256, whole.window)
    judge = None
    if args.judge:
        judge = Judge.open(args.judge, volume.voxels, load_volume(args.labels).voxels[scored] > 127)
    chunk = clip_chunk(args.chunk, volume.voxels.shape)
    name = f"{volume.name}{f'_{args.label}' if args.label else ''}"
    args.out.mkdir(parents=True, exist_ok=True)
    points: list[dict[str, Any]] = []
    for ratio, words in cases(args):
        rows, looks = our_points(volume, chunk, ratio, words, judge)
        points += rows
        if ratio in (204.8, 1024.0) and "prior" in looks:
            picture(volume.voxels, looks, args.out / f"tiers_{name}_{ratio:g}.png")
        print("\n".join(f"  {line(row)}" for row in rows), flush=True)
    curves = {}
    for peer in filter(None, args.peers.split(",")):
        curves[peer] = peer_points(volume, chunk, peer, judge)
        print(f"{peers.PEERS[peer].label}\n" + "\n".join(f"  {line(row)}" for row in curves[peer]), flush=True)
    record = {
        "benchmark": "tiers",
        "protocol": f"chunks {' x '.join(map(str, chunk))}; ours: all stored bytes, peers: payload only; PSNR peak 255",
        "volume": volume.facts(),
        "sections": args.sections,
        "threads": 1,
        "machine": machine(),
        "versions": versions(OURS + PEERS),
        "points": points,
        "peers": curves,
        "roi_upgrade": upgrade(volume, chunk, {}) if 1024.0 in args.ratios else None,
    }
    write_json(args.out / f"tiers_{name}.json", record)
    print(figures.table(*tier_table(points)))


def line(row: dict[str, Any]) -> str:
    """A point in one line of text."""
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())


def tier_table(points: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table that people read."""
    keys = ["psnr", "ssim", "spectral_db", "texture", "iou_fraction", "encode_mb_s", "decode_mb_s"]
    keys = [key for key in keys if any(key in point for point in points)]
    rows = [
        [f"{p['asked'] or 0:g}", p["tier"], p["model"][:8], f"{p['ratio']:.1f}", *(f"{p[k]:.3g}" for k in keys)]
        for p in points
    ]
    return ["asked", "tier", "model", "ratio", *keys], rows


if __name__ == "__main__":
    main()
