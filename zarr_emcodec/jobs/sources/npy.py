""".npy files: mapped where they are on disk, read row by row behind a URL."""

from __future__ import annotations

import itertools
import math
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.errors import JobError, SpecError
from zarr_emcodec.jobs.sources.source import Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr_emcodec._types import Chunk, Shape
    from zarr_emcodec.jobs.grid import Box
    from zarr_emcodec.jobs.sources.opened import Opened


def open_npy(location: str, file: Opened) -> Source:
    """The array of a file.

    Raises
    ------
    JobError
        If the file is shorter than its header says.
    SpecError
        If it holds no numbers, or is in Fortran order behind a URL.
    """
    try:
        shape, dtype, reader = _remote(location, file) if file.is_remote else _mapped(location)
    except (ValueError, EOFError) as error:
        if isinstance(error, SpecError):
            raise
        if "mmap length" in str(error):
            raise JobError(f"{location}: ends before its voxels do. Copy it again.") from error
        raise SpecError(f"{location}: not a .npy file of numbers: {error}", name="source", value=location) from error
    return Source(
        location, "npy", shape, dtype.newbyteorder("="), reader, marks=lambda: [file.mark()], close=file.close
    )


def refuse_npz(location: str, _file: Opened) -> Source:
    """Say why not."""
    raise SpecError(
        f"{location}: an .npz is a zip of arrays that cannot be read in part. Save the one you mean with numpy.save.",
        name="source",
        value=location,
    )


def _mapped(location: str) -> tuple[Shape, np.dtype[Any], Callable[[Box], Chunk]]:
    values: Chunk = np.load(location, mmap_mode="r", allow_pickle=False)
    return values.shape, values.dtype, lambda box: values[box]


def _remote(location: str, file: Opened) -> tuple[Shape, np.dtype[Any], Callable[[Box], Chunk]]:
    handle = file.for_library()
    version = np.lib.format.read_magic(handle)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(handle)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if fortran and len(shape) > 1:
        raise SpecError(
            f"{location}: is in Fortran order, where boxes lie scattered. Copy the file here first.", name="source"
        )
    start, lock = handle.tell(), Lock()

    def read(box: Box) -> Chunk:
        out = np.empty([part.stop - part.start for part in box], dtype)
        rows = out.shape[-2]
        for i, index in enumerate(itertools.product(*(range(p.start, p.stop) for p in box[:-2]))):
            first = int(np.ravel_multi_index((*index, box[-2].start), shape[:-1])) * shape[-1]
            with lock:
                handle.seek(start + first * dtype.itemsize)
                data = handle.read(rows * shape[-1] * dtype.itemsize)
            section = np.frombuffer(data, dtype, rows * shape[-1]).reshape(rows, shape[-1])
            out.reshape(math.prod(out.shape[:-2]), *out.shape[-2:])[i] = section[:, box[-1]]
        return out

    return shape, dtype, read
