#!/usr/bin/env python3
"""MB/s of raw voxels per core, both ways, of this codec and of its peers on the same chunks in one run.

    pip install 'zarr_emcodec[cpu,fast,bench]'
    python benchmarks/speed.py VOLUME.tif [--ratios 16 64] [--models auto] [--peers jpeg,jpeg2k,hevc_intra]

Every case runs in a fresh process, one thread, through the codec's public call, entropy coding included. MB/s = raw
bytes / CPU seconds of the process, median of the repeats after one call that is not counted: a hidden thread costs
what it takes, a busy machine does not count (wall-clock seconds are in the JSON). A ratio between two rows of one run
means something; an absolute figure is this machine's. Peak memory is that of the whole process.

Parts: codecs (ours with and without numba, and the peers at about the first ratio), chunks (64 kvoxel to 16 Mvoxel),
batches (1, 4, 16 chunks in one call), start (imports and first calls in fresh interpreters). Chunks larger than the
volume are filled by mirroring it.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import (
    OURS,
    PEERS,
    RESULTS,
    Chunk,
    load_volume,
    machine,
    package_version,
    single_threaded_environment,
    versions,
    write_json,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STILL = "jpeg,jpeg2k,jpegxl,avif,hevc_intra"
CHUNK = (16, 512, 512)
CHUNK_SCAN = ((16, 64, 64), (16, 128, 128), (16, 256, 256), (16, 512, 512), (16, 1024, 1024))
BATCHES = (1, 4, 16)
BATCH_CHUNK = (16, 128, 128)  # small chunks are what a batch is for
PARTS = ("codecs", "chunks", "batches", "start")
SNIPPETS = {  # what is timed after what
    "numpy": ("", "import numpy"),
    "zarr_emcodec after numpy": ("import numpy", "import zarr_emcodec"),
    "zarr after numpy": ("import numpy", "import zarr"),
    "zarr_emcodec.v3 after zarr": ("import zarr", "import zarr_emcodec.v3"),
    "VAECodec(ratio=16) after zarr_emcodec": ("import zarr_emcodec", "zarr_emcodec.VAECodec(ratio=16)"),
}


def main() -> None:
    if sys.argv[1:] == ["--case"]:
        print(json.dumps(run_case(json.load(sys.stdin))))
        return
    args = parse()
    record = measure(args)
    write_json(args.out / f"speed_{record['volume']['name']}.json", record)
    import speed_figures  # only here: matplotlib would count in the memory of every case

    speed_figures.speed_plot(record, args.out / f"speed_{record['volume']['name']}.png")
    print(speed_figures.speed_report(record))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", type=Path, help="uint8 TIFF stack or .npy, (z, y, x)")
    parser.add_argument("--ratios", nargs="+", type=float, default=(16, 64))
    parser.add_argument("--models", default="auto", help="comma-separated")
    parser.add_argument("--peers", default=STILL, help="comma-separated, or '' for none")
    parser.add_argument("--chunk", nargs=3, type=int, default=CHUNK, metavar=("Z", "Y", "X"), help="of the part codecs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--out", type=Path, help="folder of the JSON and PNG; results/<version> beside this script")
    args = parser.parse_args()
    unknown = set(args.parts.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    args.out = args.out or RESULTS / package_version()
    return args


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The record: every part that was asked for."""
    volume, parts = load_volume(args.volume), args.parts.split(",")
    if volume.voxels.dtype != np.uint8:
        raise SystemExit(f"{args.volume.name} is {volume.voxels.dtype}; speeds are compared on uint8.")
    base = {"volume": str(args.volume.resolve()), "repeats": args.repeats, "batch": 1, "entropy": None}
    ours = {**base, "codec": "ours", "model": args.models.split(",")[0], "ratio": args.ratios[0]}
    record: dict[str, Any] = {
        "benchmark": "speed",
        "protocol": f"one thread, MB/s of raw voxels per CPU second, median of {args.repeats}",
        "volume": volume.facts(),
        "threads": 1,
        "machine": machine(),
        "versions": versions(OURS + PEERS),
    }
    if "codecs" in parts:
        record["codecs"] = [in_fresh_process(case) for case in codec_cases(args, base)]
    if "chunks" in parts:
        record["chunks"] = [in_fresh_process({**ours, "chunk": chunk}) for chunk in CHUNK_SCAN]
    if "batches" in parts:
        record["batches"] = [in_fresh_process({**ours, "chunk": BATCH_CHUNK, "batch": n}) for n in BATCHES]
    if "start" in parts:
        record["start"] = start_times(args.repeats, ours)
    return record


def codec_cases(args: argparse.Namespace, base: dict[str, Any]) -> list[dict[str, Any]]:
    """Ours with each model, ratio and entropy coder at hand; every peer at about the first ratio."""
    coders = ["numpy", "numba"] if versions(["numba"]) else ["numpy"]
    cases = [
        {**base, "codec": "ours", "model": model, "ratio": ratio, "entropy": coder}
        for model in args.models.split(",")
        for ratio in args.ratios
        for coder in coders
    ]
    names = filter(None, args.peers.split(","))
    cases += [{**base, "codec": "peer", "peer": name, "ratio": args.ratios[0]} for name in names]
    return [{**case, "chunk": list(args.chunk)} for case in cases]


def in_fresh_process(case: dict[str, Any]) -> dict[str, Any]:
    """Run one case in an interpreter of its own, so that memory and first calls are the case's."""
    shown = {key: value for key, value in case.items() if key not in ("volume", "frame")}
    print(f"  {shown}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, __file__, "--case"],
        input=json.dumps(case),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=single_threaded_environment(),
    )
    return {**shown, **json.loads(done.stdout.splitlines()[-1])}


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """Both ways of one case, in this process."""
    if case["codec"] == "start":
        return first_calls(case)
    chunks = cut(load_volume(Path(case["volume"])).voxels, case["chunk"], case["batch"])
    if case["codec"] == "peer":
        return time_peer(case, chunks)
    return time_ours(case, chunks)


def cut(voxels: Chunk, chunk: Sequence[int], n: int) -> list[Chunk]:
    """n chunks along z, from the volume and its mirror images."""
    need = (chunk[0] * n, *chunk[1:])
    pad = [(0, max(0, wanted - found)) for wanted, found in zip(need, voxels.shape, strict=True)]
    tall = np.pad(voxels, pad, mode="symmetric")[: need[0], : need[1], : need[2]]
    return [np.ascontiguousarray(part) for part in np.split(tall, n)]


def time_ours(case: dict[str, Any], chunks: list[Chunk]) -> dict[str, Any]:
    """Our codec through its public call: the single-chunk one for a batch of 1."""
    from stages import timed_stages

    import zarr_emcodec

    zarr_emcodec.options(threads=1, entropy_backend=case["entropy"])
    codec = zarr_emcodec.VAECodec(ratio=case["ratio"], model=case["model"])
    single = len(chunks) == 1
    encode: Callable[[], Any] = partial(codec.encode, chunks[0]) if single else partial(codec.encode_many, chunks)
    memory = peak_memory_bytes()
    frames: list[bytes] = [encode()] if single else encode()
    decode: Callable[[], Any] = partial(codec.decode, frames[0]) if single else partial(codec.decode_many, frames)
    decode()
    peak = peak_memory_bytes()
    with timed_stages() as clock:
        ways = {}
        for way, call in (("encode", encode), ("decode", decode)):
            clock.reset()
            ways[way] = timings(call, case["repeats"])
            busy = sum(ways[way]["cpu_s"])
            ways[way]["share"] = {stage: seconds / busy for stage, seconds in clock.seconds.items()}
    return {**speeds(ways, chunks, sum(map(len, frames))), "peak_bytes": peak, "before_bytes": memory}


def time_peer(case: dict[str, Any], chunks: list[Chunk]) -> dict[str, Any]:
    """A peer on one chunk, at the quality whose ratio comes nearest to the one asked."""
    import peers

    peer, chunk = peers.PEERS[case["peer"]], chunks[0]
    sample = chunk[:2, :256, :256]  # enough to choose among a dozen qualities

    def distance(quality: float) -> float:
        return float(abs(np.log(sample.nbytes / sum(map(len, peer.encode(sample, quality))) / case["ratio"])))

    quality = min(peer.qualities, key=distance)
    memory = peak_memory_bytes()
    packets = peer.encode(chunk, quality)
    peer.decode(packets, chunk.shape)
    peak = peak_memory_bytes()
    ways = {
        "encode": timings(lambda: peer.encode(chunk, quality), case["repeats"]),
        "decode": timings(lambda: peer.decode(packets, chunk.shape), case["repeats"]),
    }
    figures = speeds(ways, chunks, sum(map(len, packets)))
    return {**figures, "label": peer.label, "quality": quality, "peak_bytes": peak, "before_bytes": memory}


def timings(call: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """CPU and wall-clock seconds of each repeat."""
    cpu, wall = [], []
    for _ in range(repeats):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        call()
        cpu.append(time.process_time() - cpu_start)
        wall.append(time.perf_counter() - wall_start)
    return {"cpu_s": cpu, "wall_s": wall}


def speeds(ways: dict[str, dict[str, Any]], chunks: list[Chunk], coded_bytes: int) -> dict[str, Any]:
    """Median, slowest and fastest MB/s (10^6 bytes) of both ways, beside the seconds they come from."""
    raw = sum(chunk.nbytes for chunk in chunks)
    for seconds in ways.values():
        rates = [raw / 1e6 / s for s in seconds["cpu_s"]]
        seconds.update(mb_s=statistics.median(rates), mb_s_range=[min(rates), max(rates)])
    return {"raw_bytes": raw, "reached": raw / coded_bytes, **ways}


def peak_memory_bytes() -> int:
    """Most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss survives exec on Linux: a child would start with its parent's peak
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def start_times(repeats: int, ours: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of imports and of the first calls in fresh interpreters, medians and ranges."""
    rows = {}
    for name, (before, statement) in SNIPPETS.items():
        code = f"{before}\nimport time\nt = time.perf_counter()\n{statement}\nprint(time.perf_counter() - t)"
        run = [sys.executable, "-c", code]
        seconds = [float(subprocess.run(run, stdout=subprocess.PIPE, check=True).stdout) for _ in range(repeats)]
        rows[name] = _milliseconds(seconds)
    case = {**ours, "codec": "start", "chunk": CHUNK_SCAN[0]}
    for coder in ["numpy", "numba"] if versions(["numba"]) else ["numpy"]:
        frame = in_fresh_process({**case, "entropy": coder, "frame": None})["frame"]
        for way, given in (("encode", None), ("decode", frame)):
            runs = [in_fresh_process({**case, "entropy": coder, "frame": given}) for _ in range(repeats)]
            rows[f"first {way}, {coder}"] = _milliseconds([run["first_s"] for run in runs])
            rows[f"second {way}, {coder}"] = _milliseconds([run["second_s"] for run in runs])
    return rows


def _milliseconds(seconds: list[float]) -> dict[str, float]:
    return {"median_ms": 1e3 * statistics.median(seconds), "min_ms": 1e3 * min(seconds), "max_ms": 1e3 * max(seconds)}


def first_calls(case: dict[str, Any]) -> dict[str, Any]:
    """First and second call of one way in this process, on a small chunk; the frame for the other way."""
    import zarr_emcodec

    chunk = cut(load_volume(Path(case["volume"])).voxels, case["chunk"], 1)[0]
    zarr_emcodec.options(threads=1, entropy_backend=case["entropy"])
    codec = zarr_emcodec.VAECodec(ratio=case["ratio"], model=case["model"])
    call = partial(codec.decode, bytes.fromhex(case["frame"])) if case["frame"] else partial(codec.encode, chunk)
    first_s, second_s = timings(call, 2)["wall_s"]
    return {"first_s": first_s, "second_s": second_s, "frame": None if case["frame"] else bytes(call()).hex()}


if __name__ == "__main__":
    main()
