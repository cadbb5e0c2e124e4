#!/usr/bin/env python3
"""Does a reconstruction keep the membranes? A fixed segmentation network ("the judge") and a ground truth say.

    pip install 'zarr_emcodec[cpu,bench]'
    python benchmarks/membranes.py --judge judge.onnx --volume sstem_vnc_20.tif --labels sstem_vnc_20_membranes.tif

The scored sections are coded by each codec, segmented, and compared with the labels: IoU and Dice, and both as a
fraction of what the judge reaches on the uncompressed pixels; objects between the membranes, section by section, by
variation of information (what is cut, what is joined) and adapted Rand error (segmentation.py). The judge takes float32
grey values (1, 1, y, x) and gives logits of the same shape; it must have seen other sections only. Nothing is trained
against it.

Volume and labels: GitHub unidesigner/groundtruth-drosophila-vnc, stack1 (raw, membranes), central 832 x 832, CC
BY-NC-SA 3.0 (Gerhard, Funke, Martel, Cardona, Fetter, doi 10.6084/m9.figshare.856713). The judge was trained on its
sections 0-8, so its weights carry the same terms: neither is part of this repository.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import figures
import numpy as np
import onnxruntime
import ours
import peers
import segmentation
from common import OURS, PEERS, RESULTS, Chunk, Volume, clip_chunk, load_volume, machine, package_version, versions

from common import write_json  # isort: skip
from metrics import psnr

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from segmentation import Labels

THRESHOLD = 0.4  # chosen once on a section that is not scored (9 of the volume above)
RATIOS = (16, 32, 64, 96, 128, 192, 256)
STILL = "jpeg2k,avif,hevc_intra"
PANELS = {"iou_fraction": "membrane IoU / that of the uncompressed", "psnr": "PSNR in dB, peak 255"}


@dataclass(frozen=True)
class Judge:
    """The segmentation network, the labels, and what it reaches without compression.

    Attributes
    ----------
    session : onnxruntime.InferenceSession
    truth : ndarray, shape (z, y, x), bool
        Membranes of the scored sections.
    objects : ndarray, shape (z, y, x), int64
        What lies between them, numbered; 0 elsewhere.
    uncompressed : dict
        IoU, Dice, VI and adapted Rand error on the uncompressed sections.
    """

    session: Any
    truth: NDArray[np.bool_]
    objects: Labels
    uncompressed: dict[str, float]

    @classmethod
    def open(cls, path: Path, raw: Chunk, truth: NDArray[np.bool_]) -> Judge:
        """Load the network and score the uncompressed sections."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        objects = segmentation.true_objects(truth)
        return cls(session, truth, objects, judged(session, raw, truth, objects))

    def score(self, voxels: Chunk) -> dict[str, float]:
        """The figures of a reconstruction, IoU and Dice also as fractions of the uncompressed."""
        found = judged(self.session, voxels, self.truth, self.objects)
        return found | {f"{key}_fraction": found[key] / self.uncompressed[key] for key in ("iou", "dice")}


def judged(session: Any, voxels: Chunk, truth: NDArray[np.bool_], objects: Labels) -> dict[str, float]:
    """IoU and Dice of the membranes found in uint8 sections, VI and adapted Rand error of the objects between them."""
    logits = membrane_logits(session, voxels)
    iou, dice = overlap(logits > np.float32(np.log(THRESHOLD / (1 - THRESHOLD))), truth)
    found = segmentation.objects(logits)
    return {"iou": iou, "dice": dice, **segmentation.segmentation_error(found, objects)}


def membrane_logits(session: Any, voxels: Chunk) -> NDArray[np.float32]:
    """What the judge makes of uint8 sections, (z, y, x); in-plane sizes must be multiples of 8."""
    name = session.get_inputs()[0].name
    return np.stack([session.run(None, {name: s[None, None].astype(np.float32)})[0][0, 0] for s in voxels])


def overlap(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[float, float]:
    """IoU and Dice of two masks."""
    both, either = int((found & truth).sum()), int((found | truth).sum())
    return both / either, 2 * both / (either + both)


def our_curve(raw: Chunk, judge: Judge, model: str, args: argparse.Namespace) -> dict[str, Any]:
    """Our points with one model."""
    chunk, points, refused = clip_chunk(args.chunk, raw.shape), [], {}
    for ratio in args.ratios:
        try:
            stored = ours.store_and_read(raw, chunk=chunk, ratio=ratio, model=model)
        except ours.REFUSALS as error:
            refused[f"{ratio:g}"] = str(error)
            continue
        figure = {"asked": ratio, "ratio": raw.nbytes / stored.stored_bytes, "psnr": psnr(raw, stored.voxels)}
        points.append({**figure, **judge.score(stored.voxels)})
    label = "zarr_emcodec" if model == "auto" else f"zarr_emcodec, {model}"
    return {"label": label, "ours": True, "points": points, "refused": refused}


def peer_curve(raw: Chunk, judge: Judge, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The points of a peer that compress at least as far as the smallest ratio asked."""
    peer, points = peers.PEERS[name], []
    for quality in peer.qualities:
        n_bytes, decoded, _, _ = peers.roundtrip(name, raw, clip_chunk(args.chunk, raw.shape), quality)
        ratio = raw.nbytes / n_bytes
        if ratio < min(args.ratios) / 2:
            break  # qualities go from coarse to fine
        points.append({"quality": quality, "ratio": ratio, "psnr": psnr(raw, decoded), **judge.score(decoded)})
    return {"label": peer.label, "ours": False, "version": peer.version, "settings": peers.SETTINGS, "points": points}


def measure(volume: Volume, judge: Judge, args: argparse.Namespace) -> dict[str, Any]:
    """The record: curves of ours and of the peers on the scored sections."""
    raw = volume.voxels
    curves = {f"ours_{model}": our_curve(raw, judge, model, args) for model in args.models.split(",")}
    for name in filter(None, args.peers.split(",")):
        print(f"  {name}", file=sys.stderr, flush=True)
        curves[name] = peer_curve(raw, judge, name, args)
    first, last = args.sections
    chunk = " x ".join(map(str, clip_chunk(args.chunk, raw.shape)))
    return {
        "benchmark": "membranes",
        "protocol": f"sections {first}-{last - 1}, chunks {chunk}; ours: all stored bytes, peers: payload only",
        "volume": volume.facts(),
        "judge_sha256": hashlib.sha256(args.judge.read_bytes()).hexdigest(),
        "uncompressed": judge.uncompressed,
        "threads": 1,
        "machine": machine(),
        "versions": versions(OURS + PEERS),
        "curves": curves,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", type=Path, required=True, help="ONNX of the segmentation network")
    parser.add_argument("--volume", type=Path, required=True, help="uint8 stack that holds the scored sections")
    parser.add_argument("--labels", type=Path, required=True, help="stack of the same shape, above 127 is membrane")
    parser.add_argument("--sections", nargs=2, type=int, default=(11, 20), metavar=("FIRST", "LAST+1"))
    parser.add_argument("--chunk", nargs=3, type=int, default=(16, 512, 512), metavar=("Z", "Y", "X"))
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS)
    parser.add_argument("--models", default="auto", help="comma-separated; each gets a curve of its own")
    parser.add_argument("--peers", default=STILL, help=f"comma-separated, or '' for none: {', '.join(peers.PEERS)}")
    parser.add_argument("--out", type=Path, help="folder of the JSON and PNG; results/<version> beside this script")
    args = parser.parse_args()
    args.out = args.out or RESULTS / package_version()
    return args


def main() -> None:
    args = parse()
    whole, labels = load_volume(args.volume), load_volume(args.labels)
    if whole.voxels.dtype != np.uint8 or whole.voxels.shape != labels.voxels.shape:
        found = f"volume {whole.voxels.dtype} {whole.voxels.shape}, labels {labels.voxels.shape}"
        raise SystemExit(f"{found}; needed is a uint8 volume and labels of its shape.")
    scored = slice(*args.sections)
    volume = Volume(whole.name, whole.voxels[scored], whole.file_sha256, whole.window)
    judge = Judge.open(args.judge, volume.voxels, labels.voxels[scored] > 127)
    record = measure(volume, judge, args)
    write_json(args.out / f"membranes_{volume.name}.json", record)
    figures.plot(record, args.out / f"membranes_{volume.name}.png", PANELS)
    print("judge on the uncompressed:", ", ".join(f"{k} {v:.4f}" for k, v in judge.uncompressed.items()), end="\n\n")
    for key in ("iou_fraction", "dice_fraction", "vi_split", "vi_merge", "arand", "psnr"):
        print(figures.quality_table(record["curves"], key, 3), end="\n\n")


if __name__ == "__main__":
    main()
