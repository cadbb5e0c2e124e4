#!/usr/bin/env python3
"""What tokens keep of a volume, by ratio and by tier, beside image and video codecs at the same ratios.

    pip install 'zarr_emcodec[cpu,bench]'
    python benchmarks/tiers.py fib_medulla_64.tif --voxel-nm 10 10 10
    python benchmarks/tiers.py sstem_vnc_20.tif --sections 11 20 --judge judge.onnx --labels sstem_vnc_20_membranes.tif
    python benchmarks/tiers.py fib_medulla_64.tif --label sweep --ratios --peers '' --sweep vqvae-3d-1024 vqvae-2d-1024

Each array is written once and read at every tier it has. PSNR and SSIM say how near the voxels are, the Fourier ring
correlation down to which size; slope and distance of spectra and texture say whether the picture has the grain of the
original, wherever its grains lie; the membranes' IoU and the objects between them (where a judge and labels are given:
see membranes.py) say what a segmentation still finds. No one of them alone is the truth about an output that is partly
synthesised. Synapses are not scored: no public volume named here has any labelled.

--fine-tuned takes directories of models that saw other sections of the same tissue; those weights are not part of this
repository. Made in minutes from a shipped network:

    python -m zarr_emcodec.train vqvae-2d-1024 --volume sections_0_to_8.npy --start vqvae-2d-1024 --fine-tune \\
        --minutes 6 --checkpoint vnc-1024.pt
    python -m zarr_emcodec.train.export_vq --checkpoint vnc-1024.pt --volume sections_0_to_8.npy --models tuned \\
        --name vqvae-2d-1024-vnc
    python benchmarks/tiers.py sstem_vnc_20.tif --sections 11 20 --judge judge.onnx \\
        --labels sstem_vnc_20_membranes.tif --ratios --peers '' --fine-tuned tuned/vqvae-2d-1024-vnc --label fine_tuned
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import figures
import numpy as np
import peers
import zarr
from common import OURS, PEERS, RESULTS, Volume, clip_chunk, load_volume, machine, package_version, versions, write_json
from membranes import Judge
from PIL import Image
from tier_points import Bench, our_points, peer_points, reused
from token_coding import price_sweep

import zarr_emcodec
from zarr_emcodec import roi

if TYPE_CHECKING:
    from common import Chunk, Shape3

RATIOS = (16.0, 64.0, 256.0, 204.8, 1024.0)
STILL_AND_VIDEO = "jpeg2k,avif,hevc_intra,hevc_inter,av1_inter,down4_av1,down8_av1"
PICTURE_EDGE = 320
NEAR_ISOTROPIC = 2.0  # section thickness over pixel size up to which "auto" takes 3-D models


def upgrade(volume: Volume, chunk: Shape3) -> dict[str, Any]:
    """Bytes on disk before and after a tenth of the sections' area is raised from `top` to `prior`."""
    raw = volume.voxels
    side = round(0.1**0.5 * raw.shape[1]), round(0.1**0.5 * raw.shape[2])
    small = tuple(min(n, 128) for n in chunk[1:])
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/tokens.zarr"
        codec = zarr_emcodec.v3.VQVAECodec(ratio=1024)
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
        "report": {key: value for key, value in vars(report).items() if isinstance(value, int | float)},
    }


def picture(bench: Bench, looks: dict[str, Chunk], path: Path) -> None:
    """Original and tiers of one section beside each other."""
    raw = bench.volume.voxels
    z = raw.shape[0] // 2
    y, x = ((n - min(n, PICTURE_EDGE)) // 2 for n in raw.shape[1:])
    views = [v[z, y : y + PICTURE_EDGE, x : x + PICTURE_EDGE] for v in (raw, *looks.values())]
    panels = [np.clip(np.rint(bench.grey(view)), 0, 255).astype(np.uint8) for view in views]
    gap = np.full((panels[0].shape[0], 6), 255, np.uint8)
    strip = np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)
    Image.fromarray(strip).save(path, optimize=True)
    print(f"{path.name}: original | {' | '.join(looks)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", type=Path, help="stack (z, y, x), uint8 or uint16; peers take uint8")
    parser.add_argument("--sections", nargs=2, type=int, metavar=("FIRST", "LAST+1"))
    parser.add_argument("--chunk", nargs=3, type=int, default=(16, 512, 512), metavar=("Z", "Y", "X"))
    parser.add_argument("--ratios", nargs="*", type=float, default=RATIOS)
    parser.add_argument(
        "--voxel-nm", nargs=3, type=float, metavar=("Z", "Y", "X"), help="near-isotropic ones also have 3-D models"
    )
    parser.add_argument("--models", nargs="*", default=[], help="further models by id, at their own ratios")
    parser.add_argument("--fine-tuned", nargs="*", type=Path, default=[], metavar="FOLDER", help="model directories")
    parser.add_argument("--sweep", nargs="*", default=[], metavar="MODEL", help="PSNR over the price on bits")
    parser.add_argument("--sweep-depths", nargs="*", type=int, help="sections of a chunk in the sweep")
    parser.add_argument("--mode", default="entropy", choices=("entropy", "nominal"))
    parser.add_argument("--effort", type=int, default=0)
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--peers", default=STILL_AND_VIDEO, help="comma-separated, or '' for none")
    parser.add_argument("--reuse", type=Path, metavar="RECORD", help="take peers that are not asked for from there")
    parser.add_argument("--pictures", action="store_true", help="of tiers at 204.8x and 1024x")
    parser.add_argument("--label", default="", help="added to the names of the files written")
    parser.add_argument("--out", type=Path, help="folder of the JSON and PNG; results/<version> beside this script")
    args = parser.parse_args()
    args.out = args.out or RESULTS / package_version()
    return args


def cases(args: argparse.Namespace) -> list[tuple[float | None, dict[str, Any]]]:
    """Ratio and further words of each array to write."""
    common = {"mode": args.mode, "effort": args.effort}
    out: list[tuple[float | None, dict[str, Any]]] = [(ratio, dict(common)) for ratio in args.ratios]
    if args.voxel_nm and args.voxel_nm[0] <= NEAR_ISOTROPIC * min(args.voxel_nm[1:]):
        deep = {**common, "voxel_nm": tuple(args.voxel_nm)}
        out += [(ratio, deep) for ratio in args.ratios if ratio in (256.0, 1024.0)]
    return out + [(None, {**common, "model": model}) for model in [*args.models, *map(card_id, args.fine_tuned)]]


def card_id(folder: Path) -> str:
    """The id of the model in a directory."""
    return str(json.loads((folder / "card.json").read_text(encoding="utf-8"))["id"])


def training(folder: Path) -> dict[str, Any]:
    """How the model in a directory was fitted, as its card says."""
    told = json.loads((folder / "card.json").read_text(encoding="utf-8"))["training"]
    words = ("minutes", "rate", "rate_linear", "ssim", "structure", "seed")
    return {"steps": told["steps"], **{word: told["config"][word] for word in words}}


def open_bench(args: argparse.Namespace) -> Bench:
    """The volume, and the judge where there is one."""
    whole = load_volume(args.volume)
    scored = slice(*args.sections) if args.sections else slice(None)
    volume = Volume(whole.name, whole.voxels[scored], whole.file_sha256, whole.window)
    judge = None
    if args.judge:
        judge = Judge.open(args.judge, volume.voxels, load_volume(args.labels).voxels[scored] > 127)
    pixel_nm = float(np.mean(args.voxel_nm[1:])) if args.voxel_nm else None
    return Bench(volume, clip_chunk(args.chunk, volume.voxels.shape), pixel_nm, judge)


def sweeps(bench: Bench, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The price sweep of each model asked for, at each depth of chunks."""
    depths = args.sweep_depths or [bench.chunk[0]]
    shape = bench.volume.voxels.shape
    chunks = [clip_chunk((depth, *args.chunk[1:]), shape) for depth in depths]
    return [price_sweep(bench.volume, chunk, model) for model in args.sweep for chunk in chunks]


def measure(bench: Bench, args: argparse.Namespace, name: str) -> dict[str, Any]:
    """The record of one volume; pictures are written on the way."""
    points: list[dict[str, Any]] = []
    tuned = {card_id(folder) for folder in args.fine_tuned}
    for ratio, words in cases(args):
        rows, looks = our_points(bench, ratio, words)
        points += [{**row, "fine_tuned": words.get("model") in tuned} for row in rows]
        if args.pictures and ratio in (204.8, 1024.0) and "prior" in looks:
            picture(bench, looks, args.out / f"tiers_{name}_{ratio:g}.png")
        print("\n".join(f"  {line(row)}" for row in rows), flush=True)
    curves = reused(bench, args.reuse)
    asked = list(filter(None, args.peers.split(",")))
    if asked and bench.volume.voxels.dtype != np.uint8:
        print(f"{bench.volume.name} is {bench.volume.voxels.dtype}: peers take uint8", file=sys.stderr)
        asked = []
    for peer in asked:
        curves[peer] = peer_points(bench, peer)
        print(f"{peers.PEERS[peer].label}\n" + "\n".join(f"  {line(row)}" for row in curves[peer]), flush=True)
    chunk = " x ".join(map(str, bench.chunk))
    return {
        "benchmark": "tiers",
        "protocol": f"chunks {chunk}; ours: all stored bytes, peers: payload only; PSNR peak {bench.volume.peak:g}",
        "volume": bench.volume.facts(),
        "sections": args.sections,
        "voxel_nm": args.voxel_nm,
        "threads": 1,
        "machine": machine(),
        "versions": versions(OURS + PEERS),
        "uncompressed": bench.uncompressed(),
        "fine_tuned": {card_id(folder): training(folder) for folder in args.fine_tuned},
        "points": points,
        "peers": curves,
        "peers_reused": sorted(set(curves) - set(asked)),
        "price_sweep": sweeps(bench, args),
        "roi_upgrade": upgrade(bench.volume, bench.chunk) if 1024.0 in args.ratios else None,
    }


def main() -> None:
    args = parse()
    bench = open_bench(args)
    name = f"{bench.volume.name}{f'_{args.label}' if args.label else ''}"
    args.out.mkdir(parents=True, exist_ok=True)
    with zarr_emcodec.options(model_path=tuple({folder.resolve().parent for folder in args.fine_tuned})):
        record = measure(bench, args, name)
    write_json(args.out / f"tiers_{name}.json", record)
    if record["points"]:
        print(figures.table(*tier_table(record["points"])))
    if record["price_sweep"]:
        print(figures.table(*sweep_table(record["price_sweep"])))


def line(row: dict[str, Any]) -> str:
    """A point in one line of text."""
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())


def tier_table(points: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table that people read."""
    keys = ["psnr", "ssim", "spectral_db", "texture", "spectrum_slope", "frc_7", "frc_half", "frc_half_nm"]
    keys += ["iou_fraction", "vi_split", "vi_merge", "arand", "perplexity_top", "encode_mb_s", "decode_mb_s"]
    keys = [key for key in keys if any(key in point for point in points)]
    rows = [
        [f"{p['asked'] or 0:g}", p["tier"], p["model"][:8], f"{p['ratio']:.1f}", *(f"{p[k]:.3g}" for k in keys)]
        for p in points
    ]
    return ["asked", "tier", "model", "ratio", *keys], rows


def sweep_table(sweeps: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of PSNR at ratios exactly met."""
    rows = [[s["model"], f"{s['chunk'][0]}", f"{s['asked']:g}", figures.number(s["psnr_at_asked"])] for s in sweeps]
    return ["model", "sections", "ratio", "PSNR, dB"], rows


if __name__ == "__main__":
    main()
