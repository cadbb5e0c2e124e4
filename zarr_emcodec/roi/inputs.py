"""Arrays and regions as they are named on a command line: paths and words in, what `upgrade_roi` takes out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.errors import EmCodecError, JobError, SpecError
from zarr_emcodec.jobs.ome import pick_array

if TYPE_CHECKING:
    from collections.abc import Sequence

    import zarr

    from zarr_emcodec.jobs.grid import Box


def open_array(
    location: str | os.PathLike[str], *, writable: bool = False, trust_embedded: bool = False
) -> zarr.Array[Any]:
    """The array at a path; of a multiscale group its level 0.

    Parameters
    ----------
    location : path or URL
    writable : bool
    trust_embedded : bool
        As in `zarr_emcodec.open`.

    Raises
    ------
    JobError
        If there is none, or it cannot be opened for writing.
    SpecError, ModelError
        As `jobs.ome.pick_array`.
    """
    import zarr

    where = os.fspath(location)
    array, _, _ = pick_array(where, trust_embedded=trust_embedded)
    if not writable:
        return array
    try:
        return zarr.open_array(where, path=array.path, mode="r+")
    except Exception as error:  # stores raise whatever their transport does
        raise JobError(f"{where}: cannot be opened for writing: {error}") from error


def region(
    *,
    box: Sequence[str] = (),
    boxes: str | os.PathLike[str] | None = None,
    mask: str | os.PathLike[str] | None = None,
    points: str | os.PathLike[str] | None = None,
) -> Any:
    """A region from one of four kinds of words.

    Parameters
    ----------
    box : sequence of str
        Each as in ``0:16,100:612,:``.
    boxes : path, optional
        JSON as ``zarr-emcodec roi propose --json`` prints it.
    mask : path, optional
        Boolean .npy or Zarr array.
    points : path, optional
        .npy, or text with one point a line, coordinates separated by commas or spaces; z, y, x.

    Returns
    -------
    boxes, mask or points

    Raises
    ------
    SpecError
        If none or several are given, or one cannot be understood.
    JobError
        If a file cannot be read.
    """
    given = [name for name, value in (("box", box), ("boxes", boxes), ("mask", mask), ("points", points)) if value]
    if len(given) != 1:
        found = " and ".join(f"--{name}" for name in given) or "none"
        raise SpecError(f"one of --box, --boxes, --mask and --points says where; found {found}.", name="roi")
    try:
        if box:
            return [parse_box(text) for text in box]
        if boxes:
            return _read_boxes(Path(boxes))
        return _read_mask(os.fspath(mask)) if mask else _read_points(Path(os.fspath(points or "")))
    except EmCodecError:
        raise
    except OSError as error:
        raise JobError(f"--{given[0]}: cannot be read: {error}") from error


def parse_box(text: str) -> Box:
    """A box written as in indexing.

    Raises
    ------
    SpecError
        If it cannot be understood.

    Examples
    --------
    >>> parse_box("0:16, 5, :")
    (slice(0, 16, None), slice(5, 6, None), slice(None, None, None))
    """
    parts = []
    for part in text.split(","):
        start, colon, stop = part.strip().partition(":")
        try:
            first = int(start) if start.strip() else None
            if not colon and first is None:
                raise ValueError
            parts.append(slice(first, int(stop) if stop.strip() else None) if colon else slice(first, int(start) + 1))
        except ValueError:
            raise SpecError(
                f"--box {text}: needs start:stop for each axis, such as 0:16,100:612,0:512.", name="box", value=text
            ) from None
    return tuple(parts)


def _read_boxes(path: Path) -> list[Box]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        listed = data["boxes"] if isinstance(data, dict) else data
        return [tuple(slice(int(start), int(stop)) for start, stop in box) for box in listed]
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(
            f"--boxes {path}: needs JSON as `zarr-emcodec roi propose --json` prints it.", name="boxes", value=str(path)
        ) from error


def _read_mask(location: str) -> Any:
    if location.endswith(".npy"):
        return _read_npy(location)
    array, _, _ = pick_array(location)
    return array


def _read_points(path: Path) -> Any:
    if path.suffix == ".npy":
        return _read_npy(os.fspath(path))
    lines = path.read_text(encoding="utf-8").replace(",", " ").splitlines()
    try:
        return np.array([[float(word) for word in line.split()] for line in lines if line.strip()])
    except ValueError as error:
        raise SpecError(
            f"--points {path}: needs one point a line, as many numbers in each as the array has axes.",
            name="points",
            value=str(path),
        ) from error


def _read_npy(path: str) -> Any:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise SpecError(f"{path}: not a .npy file of numbers: {error}", name="roi", value=path) from error
