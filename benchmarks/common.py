"""What the benchmarks share: volumes from files, facts about the machine and the versions, and JSON on disk.

Nothing here knows a codec. What is written names files, never folders: a result is meant to be published.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Chunk: TypeAlias = NDArray[Any]
Shape3: TypeAlias = tuple[int, int, int]
Box: TypeAlias = tuple[slice, slice, slice]

RESULTS = Path(__file__).resolve().parent / "results"
OURS = ("zarr-emcodec", "numpy", "zarr", "numcodecs", "onnxruntime", "onnxruntime-gpu", "numba")
PEERS = ("imagecodecs", "av", "pillow", "scipy")


@dataclass(frozen=True)
class Volume:
    """A stack of sections and where it came from.

    Attributes
    ----------
    name : str
        File name without folder and suffix; says so where only the first sections were kept.
    voxels : ndarray, shape (z, y, x)
        Grey values as stored.
    file_sha256 : str
        SHA-256 of the file, hexadecimal.
    window : (float, float), grey levels
        (0, 255) for uint8; else the smallest and largest value, or what the caller stated.
    """

    name: str
    voxels: Chunk
    file_sha256: str
    window: tuple[float, float]

    @property
    def peak(self) -> float:
        """Grey levels between the ends of the window: the peak of every PSNR."""
        return self.window[1] - self.window[0]

    def facts(self) -> dict[str, Any]:
        """What a reader needs to know that he measures the same voxels."""
        return {
            "name": self.name,
            "shape": list(self.voxels.shape),
            "dtype": str(self.voxels.dtype),
            "file_sha256": self.file_sha256,
            "voxels_sha256": voxels_sha256(self.voxels),
            "window": list(self.window),
        }


def load_volume(path: Path, *, sections: int | None = None, window: Sequence[float] | None = None) -> Volume:
    """Read a TIFF stack or a .npy file as (z, y, x).

    Parameters
    ----------
    path : Path
        ``.npy``, or anything that tifffile reads.
    sections : int, optional
        Keep this many sections from the first on.
    window : (float, float), grey levels, optional
        Stated range of a volume that is not uint8.

    Raises
    ------
    SystemExit
        If the file does not hold a 2-D or 3-D array of grey values.
    """
    if path.suffix == ".npy":
        voxels = np.load(path, allow_pickle=False)
    else:
        import tifffile

        voxels = tifffile.imread(path)
    voxels = voxels[None] if voxels.ndim == 2 else voxels
    if voxels.ndim != 3 or voxels.dtype.kind not in "uif":
        raise SystemExit(f"{path.name}: shape {voxels.shape}, {voxels.dtype}; needed is a grey (z, y, x) stack.")
    name = path.stem if sections is None or sections >= len(voxels) else f"{path.stem}_first{sections}"
    voxels = np.ascontiguousarray(voxels[:sections])
    if window is None:
        window = (0, 255) if voxels.dtype == np.uint8 else (float(voxels.min()), float(voxels.max()))
    low, high = map(float, window)
    return Volume(name, voxels, hashlib.sha256(path.read_bytes()).hexdigest(), (low, high))


def voxels_sha256(voxels: Chunk) -> str:
    """SHA-256 over dtype, shape and the C-ordered voxels: equal for equal arrays, whatever file they came in."""
    digest = hashlib.sha256(f"{voxels.dtype.str} {voxels.shape} ".encode())
    digest.update(np.ascontiguousarray(voxels).data)
    return digest.hexdigest()


def clip_chunk(chunk: Sequence[int], shape: Sequence[int]) -> Shape3:
    """The chunk shape, no axis longer than the array's."""
    z, y, x = (min(c, s) for c, s in zip(chunk, shape, strict=True))
    return z, y, x


def grid(shape: Sequence[int], chunk: Sequence[int]) -> Iterator[Box]:
    """The boxes that Zarr would cut, edge chunks cropped to the array."""
    for z in range(0, shape[0], chunk[0]):
        for y in range(0, shape[1], chunk[1]):
            for x in range(0, shape[2], chunk[2]):
                yield np.s_[z : z + chunk[0], y : y + chunk[1], x : x + chunk[2]]


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system, interpreter, and how busy the machine was when the run began."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory_bytes"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if hasattr(os, "getloadavg"):
        facts["load_1min_at_start"] = round(os.getloadavg()[0], 2)
    return facts


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def versions(distributions: Sequence[str]) -> dict[str, str]:
    """Installed versions; what is absent is left out."""
    found = {}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def package_version() -> str:
    """Version of the codec under test; the results of one release share a folder of that name."""
    import zarr_emcodec

    return str(zarr_emcodec.__version__)


def single_threaded_environment() -> dict[str, str]:
    """The environment with every numerical library told to use one thread; for child processes."""
    libraries = ("OMP", "OPENBLAS", "MKL", "NUMBA")
    return {**os.environ, **{f"{library}_NUM_THREADS": "1" for library in libraries}}


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record, nan as null; a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".json.tmp")
    draft.write_text(json.dumps(_plain(record), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    draft.replace(path)
    print(f"wrote {path.name}", file=sys.stderr)


def _plain(value: Any) -> Any:
    """The value in JSON's own types."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
