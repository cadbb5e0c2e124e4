"""The codec under test, measured as a user meets it: a volume goes into a Zarr array on disk and comes back.

In: voxels, a chunk shape, the codec's arguments. Out: what was read back, every byte that the store holds, and the
frames by kind. Knows no peer.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from metrics import psnr, ssim

import zarr_emcodec
from zarr_emcodec.errors import GuardError, ModelError, SpecError

if TYPE_CHECKING:
    from common import Chunk, Shape3, Volume

REFUSALS = (SpecError, ModelError, GuardError)  # a ratio that no model reaches is a result, not a failure


@dataclass(frozen=True)
class Stored:
    """A volume that went through a directory store.

    Attributes
    ----------
    voxels : ndarray, shape (z, y, x)
        What a reader gets.
    stored_bytes : int
        Every file of the store: frames, shard indices, metadata.
    frame_bytes : int
        The chunk files alone.
    kinds : dict
        Number of frames by kind.
    models : tuple of str
        Short digests (hexadecimal) of the models that the frames name.
    encode_s, decode_s : float, seconds of CPU
        Writing and reading the array, all threads of this process.
    """

    voxels: Chunk
    stored_bytes: int
    frame_bytes: int
    kinds: dict[str, int]
    models: tuple[str, ...]
    encode_s: float
    decode_s: float


def store_and_read(voxels: Chunk, *, chunk: Shape3, **codec: Any) -> Stored:
    """Write a volume as a Zarr v3 array into a directory and read it back.

    Parameters
    ----------
    voxels : ndarray, shape (z, y, x)
    chunk : (int, int, int), voxels
    **codec
        Arguments of `zarr_emcodec.v3.VAECodec`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.zarr"
        start = time.process_time()
        zarr_emcodec.create_array(str(path), data=voxels, chunks=chunk, codec=zarr_emcodec.v3.VAECodec(**codec))
        written = time.process_time()
        decoded = np.asarray(zarr.open_array(str(path), mode="r")[...])  # as any reader does
        read = time.process_time()
        files = {file: file.stat().st_size for file in path.rglob("*") if file.is_file()}
        frames = [zarr_emcodec.inspect(file.read_bytes()) for file in files if file.name != "zarr.json"]
    return Stored(
        voxels=decoded,
        stored_bytes=sum(files.values()),
        frame_bytes=sum(size for file, size in files.items() if file.name != "zarr.json"),
        kinds=dict(Counter(frame.kind.lower() for frame in frames)),
        models=tuple(sorted({frame.model for frame in frames if frame.model})),
        encode_s=written - start,
        decode_s=read - written,
    )


def measure(volume: Volume, chunk: Shape3, **codec: Any) -> dict[str, Any]:
    """One rate-distortion point: the ratio asked for and reached over all stored bytes, PSNR, SSIM, frames by kind."""
    stored = store_and_read(volume.voxels, chunk=chunk, **codec)
    return {
        "asked": codec["ratio"],
        "ratio": volume.voxels.nbytes / stored.stored_bytes,
        "psnr": psnr(volume.voxels, stored.voxels, peak=volume.peak),
        "ssim": ssim(volume.voxels, stored.voxels, peak=volume.peak, offset=volume.window[0]),
        "stored_bytes": stored.stored_bytes,
        "frame_bytes": stored.frame_bytes,
        "kinds": stored.kinds,
        "models": list(stored.models),
        "encode_s": stored.encode_s,
        "decode_s": stored.decode_s,
    }


def sweep(volume: Volume, chunk: Shape3, ratios: list[float], **codec: Any) -> dict[str, Any]:
    """The points over the ratios asked for; a ratio that the model refuses is kept with its reason."""
    points, refused = [], {}
    for ratio in ratios:
        try:
            points.append(measure(volume, chunk, ratio=ratio, **codec))
        except REFUSALS as error:
            print(f"  ratio {ratio:g}: {error}", file=sys.stderr)
            refused[f"{ratio:g}"] = str(error)
    return {"points": points, "refused": refused}
