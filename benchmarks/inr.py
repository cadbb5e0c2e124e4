#!/usr/bin/env python3
"""What is fitted to each chunk (fields of sines, latents) on a volume: quality over the ratio at stated efforts, beside
peers; what fits, decoding and single voxels cost.

    pip install 'zarr_emcodec[cpu,torch,bench]'
    python benchmarks/inr.py fib_medulla_64.tif --chunk 64 256 256 --efforts 3 5 --ratios 32 64 128 256 512
    python benchmarks/inr.py sstem_cremi_11.tif --chunk 1 625 625 --backbones latents --efforts 0 4 --tag sections
    python benchmarks/inr.py sample.tif --crop 8 64 64 --efforts 0 1 --ratios 16 32 --peers jpeg2k

A fit takes seconds to hours a chunk: `--time-limit` bounds each, and what that gives depends on the machine. Encoding
is given as seconds of CPU for a million voxels, decoding as 10^6 voxels a second of the wall clock, both of whole
chunks through Zarr. Random access is the median over random places, networks in memory: one voxel, a line, a box of
32 voxels on each axis (where the array has as many), and every eighth voxel of a plane, each beside decoding the whole
chunk that holds it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import figures
import numpy as np
import peers
import zarr
from common import (
    OURS,
    PEERS,
    RESULTS,
    Volume,
    clip_chunk,
    load_volume,
    machine,
    package_version,
    versions,
    voxels_sha256,
    write_json,
)
from metrics import psnr, ssim

import zarr_emcodec
from zarr_emcodec import INRField
from zarr_emcodec.codecs import decode_many
from zarr_emcodec.errors import SpecError
from zarr_emcodec.frame import unpack

if TYPE_CHECKING:
    from common import Shape3

RATIOS = (32.0, 64.0, 128.0, 256.0, 512.0)
STILLS = ("jpeg", "jpeg2k", "jpegxl", "avif", "hevc_intra")
STILL_AND_VIDEO = "jpeg2k,avif,hevc_intra,hevc_inter"
PLACES = 32
_EDGE = 32


def measure(volume: Volume, chunk: Shape3, ratio: float, words: dict[str, Any]) -> dict[str, Any]:
    """One point: the array on disk, read back as any reader does."""
    raw = volume.voxels
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fields.zarr"
        start = time.process_time()
        codec = zarr_emcodec.v3.INRCodec(ratio, **words)
        zarr_emcodec.create_array(str(path), data=raw, chunks=chunk, codec=codec)
        encode_s = time.process_time() - start
        array = zarr.open_array(str(path), mode="r")
        start = time.perf_counter()
        decoded = np.asarray(array[...])
        decode_s = time.perf_counter() - start
        files = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
        frames = [data for file, data in files.items() if file.name != "zarr.json"]
        access = random_access(array, frames[0])
    kinds = [zarr_emcodec.inspect(frame).kind.lower() for frame in frames]
    stored = sum(map(len, files.values()))
    return {
        "asked": ratio,
        "ratio": raw.nbytes / stored,
        "psnr": psnr(raw, decoded, peak=volume.peak),
        "ssim": ssim(raw, decoded, peak=volume.peak, offset=volume.window[0]),
        "stored_bytes": stored,
        "frame_bytes": sum(map(len, frames)),
        "kinds": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "setting": unpack(frames[0]).setting,  # layers, or the level of latents
        "encode_s_per_mvoxel": encode_s / (raw.size / 1e6),
        "decode_mvoxel_s": raw.size / 1e6 / decode_s,
        "access_ms": access,
    }


def random_access(array: zarr.Array[Any], frame: bytes) -> dict[str, float]:
    """Median milliseconds of single reads, and of decoding a whole chunk."""
    rng = np.random.default_rng(0)
    field = INRField(array)
    field[...]  # every chunk's network is in memory from here on
    corners = [tuple(int(rng.integers(0, n)) for n in array.shape) for _ in range(PLACES)]

    def box(corner: tuple[int, ...]) -> tuple[slice, ...]:
        starts = (min(c, max(n - _EDGE, 0)) for c, n in zip(corner, array.shape, strict=True))
        return tuple(slice(s, s + _EDGE) for s in starts)

    reads: dict[str, Callable[[tuple[int, ...]], Any]] = {
        "one voxel": lambda corner: field[corner],
        "a line": lambda corner: field[corner[0], corner[1]],
        "a box": lambda corner: field[box(corner)],
        "every eighth of a plane": lambda corner: field[corner[0], ::8, ::8],
        "a place between": lambda corner: field.at([np.minimum(np.add(corner, 0.3), np.subtract(array.shape, 1))]),
        "a whole chunk": lambda corner: decode_many([frame]),
    }
    return {name: _median_ms(read, corners) for name, read in reads.items()}


def _median_ms(read: Callable[[tuple[int, ...]], Any], places: list[tuple[int, ...]]) -> float:
    taken = []
    for place in places:
        start = time.perf_counter()
        read(place)
        taken.append(1e3 * (time.perf_counter() - start))
        if sum(taken) > 10_000:  # a large chunk is decoded a few times, not often
            break
    return statistics.median(taken)


def our_curves(volume: Volume, chunk: Shape3, args: argparse.Namespace) -> dict[str, Any]:
    """A curve for each backbone and effort."""
    curves = {}
    for backbone, effort in itertools.product(args.backbones, args.efforts):
        words = {"backbone": backbone, "effort": effort, "time_limit": args.time_limit}
        if backbone == "siren":
            words |= {"bits": args.bits, "layers": args.layers}
        points, refused = [], {}
        for ratio in args.ratios:
            try:
                points.append(measure(volume, chunk, ratio, words))
            except SpecError as error:
                refused[f"{ratio:g}"] = str(error)
                continue
            print(f"  {backbone}, effort {effort}, {ratio:g}x: {points[-1]['psnr']:.2f} dB", flush=True)
        curves[f"{backbone}_{effort}"] = {
            "label": f"{backbone}, effort {effort}",
            "ours": True,
            "words": words,
            "points": points,
            "refused": refused,
        }
    return curves


def peer_curves(volume: Volume, chunk: Shape3, names: list[str]) -> dict[str, Any]:
    """A curve for each peer; none where the volume is not uint8."""
    if volume.voxels.dtype != np.uint8:
        return {}
    return {
        name: {
            "label": peers.PEERS[name].label,
            "ours": False,
            "version": peers.PEERS[name].version,
            "points": peers.sweep(name, volume.voxels, chunk),
        }
        for name in names
    }


def known_curves(record: Path, volume: Volume) -> dict[str, Any]:
    """The peers' curves of an earlier record; still images are the same whatever the chunks' depth."""
    found = json.loads(record.read_text())
    if found["volume"]["voxels_sha256"] != voxels_sha256(volume.voxels):
        raise SystemExit(f"{record} is of other voxels.")
    stills = {name: curve for name, curve in found["curves"].items() if name in STILLS}
    return {name: {**curve, "from": record.name} for name, curve in stills.items()}


def cost_table(curves: dict[str, Any]) -> str:
    """What each point took to make and to read."""
    header = ["", "asked", "setting", "fit s/Mvoxel", "decode Mvoxel/s"]
    rows, names = [], []
    for curve in (curve for curve in curves.values() if curve["ours"]):
        for point in curve["points"]:
            names = list(point["access_ms"])
            times = [f"{ms:.2f}" for ms in point["access_ms"].values()]
            costs = [f"{point['encode_s_per_mvoxel']:.1f}", f"{point['decode_mvoxel_s']:.3f}"]
            rows.append([curve["label"], f"{point['asked']:g}x", str(point["setting"]), *costs, *times])
    return figures.table([*header, *(f"{name}, ms" for name in names)], rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", type=Path, help="TIFF stack or .npy, (z, y, x)")
    parser.add_argument("--chunk", nargs=3, type=int, default=(16, 512, 512), metavar=("Z", "Y", "X"))
    parser.add_argument("--crop", nargs=3, type=int, metavar=("Z", "Y", "X"), help="the corner of that size alone")
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS)
    parser.add_argument("--backbones", nargs="+", default=["siren"], choices=("siren", "latents"))
    parser.add_argument("--efforts", nargs="+", type=int, default=[4])
    parser.add_argument("--bits", type=int, default=6)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--time-limit", type=float, help="seconds for each chunk")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tag", default="", help="at the end of the record's name")
    parser.add_argument("--peers", default=STILL_AND_VIDEO, help="comma-separated, or '' for none")
    parser.add_argument("--stills-from", type=Path, help="record of these voxels whose still peers to take over")
    parser.add_argument("--out", type=Path, default=RESULTS / package_version(), help="folder of the JSON and PNG")
    return parser.parse_args()


def main() -> None:
    args = parse()
    volume = load_volume(args.volume)
    if args.crop:
        voxels = np.ascontiguousarray(volume.voxels[tuple(slice(n) for n in args.crop)])
        volume = Volume(f"{volume.name}_crop", voxels, voxels_sha256(voxels), volume.window)
    chunk = clip_chunk(args.chunk, volume.voxels.shape)
    with zarr_emcodec.options(threads=args.threads):
        curves = our_curves(volume, chunk, args)
    curves |= peer_curves(volume, chunk, [name for name in args.peers.split(",") if name])
    if args.stills_from:
        curves |= known_curves(args.stills_from, volume)
    record = {
        "benchmark": "inr",
        "protocol": f"chunks {' x '.join(map(str, chunk))}; ours: all stored bytes, peers: payload only; "
        f"PSNR peak {volume.peak:g}",
        "volume": volume.facts(),
        "chunk": list(chunk),
        "threads": args.threads,
        "machine": machine(),
        "versions": versions((*OURS, *PEERS, "torch")),
        "curves": curves,
        "bd_rate_percent": figures.bd_rates(curves),
        "bd_rate_ssim_percent": figures.bd_rates(curves, "ssim"),
    }
    name = "_".join(part for part in ("inr", volume.name, args.tag) if part)
    write_json(args.out / f"{name}.json", record)
    figures.rd_plot(record, args.out / f"{name}.png")
    print(figures.rd_report(record), cost_table(curves), sep="\n\n")


if __name__ == "__main__":
    main()
