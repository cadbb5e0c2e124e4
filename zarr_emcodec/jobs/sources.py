"""One view of every volume a job can read: TIFF and OME-TIFF stacks, .npy files, Zarr v2 and v3.

A path or URL in, a `Source` out that reads boxes of voxels. It refuses what is not grey values before a job begins.
A further format is one opener in `_OPENERS`; nothing else knows formats.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from zarr_emcodec.errors import JobError, MissingExtraError, ModelError, SpecError
from zarr_emcodec.jobs import ome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from zarr_emcodec._types import Chunk, Shape
    from zarr_emcodec.jobs.grid import Box

_GREY = ("u1", "u2", "i2", "f4")
_LABELS = ("b1", "u4", "u8", "i4", "i8")


@dataclass(frozen=True)
class Source:
    """A volume that can be read box by box.

    Parameters
    ----------
    location : str
        What the user gave.
    kind : str
        "tiff", "npy" or "zarr".
    shape : tuple of int, voxels
        At least 2-D; the last axes are (z, y, x).
    dtype : numpy.dtype
        uint8, uint16, int16 or float32, native byte order.
    reader : callable
        Box to array, in any memory order and byte order.
    chunks : tuple of int, voxels, or None
        What the source reads at once.
    voxel_nm : tuple of float or None
        Extent of a voxel along the last axes, (z, y, x), where the file states it.
    note : str
        What was chosen on the user's behalf, in words; often empty.
    attributes : mapping
        User metadata worth carrying along.
    close : callable
        Frees file handles.
    """

    location: str
    kind: str
    shape: Shape
    dtype: np.dtype[Any]
    reader: Callable[[Box], Chunk]
    chunks: Shape | None = None
    voxel_nm: tuple[float, ...] | None = None
    note: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    close: Callable[[], None] = lambda: None

    @property
    def nbytes(self) -> int:
        """Raw size: voxels x itemsize."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def read(self, box: Box) -> Chunk:
        """The voxels of a box.

        Parameters
        ----------
        box : tuple of slice
            One per axis, with start and stop inside the array and no step.

        Returns
        -------
        ndarray, C-contiguous, native byte order

        Raises
        ------
        JobError
            If the file cannot be read there (the cause is the FrameError of a damaged chunk), or gives something else
            than it announced.
        ModelError
            If the model that a chunk needs is not here.
        """
        try:
            values = self.reader(box)
        except ModelError:
            raise  # the chunk is well; its message says what to install
        except Exception as error:  # each format's library has its own errors; the place is what the user needs
            raise JobError(f"{self.location}: cannot read voxels {_words(box)}: {error}") from error
        expected = tuple(part.stop - part.start for part in box)
        if values.shape != expected:
            raise JobError(f"{self.location}: voxels {_words(box)} came back as {values.shape}, not {expected}.")
        return np.ascontiguousarray(values, dtype=self.dtype)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _words(box: Box) -> str:
    return ", ".join(f"{part.start}:{part.stop}" for part in box)


def open_source(path: str | os.PathLike[str], *, trust_embedded: bool = False) -> Source:
    """Open a volume for reading.

    Parameters
    ----------
    path : path or URL
        A TIFF or OME-TIFF stack, a .npy file, or a Zarr v2/v3 array (of a multiscale group, level 0 is taken).
    trust_embedded : bool
        Use a model that travels with a Zarr array although its digest is not known here.

    Returns
    -------
    Source
        Also a context manager that closes it.

    Raises
    ------
    JobError
        If there is nothing at the path.
    SpecError
        If it is of a kind that cannot be compressed here: another format, colour, labels, fewer than 2 axes.
    MissingExtraError
        If the format needs a library that is not installed.
    """
    location = os.fspath(path)
    remote = "://" in location
    if not remote and not Path(location).exists():
        raise JobError(f"{location}: no such file or folder.")
    for matches, opener in _OPENERS:
        if matches(location, remote):
            source = opener(location, trust_embedded)
            try:
                _check_grey(source)
            except SpecError:
                source.close()
                raise
            return source
    raise SpecError(
        f"{location}: not a format read here. Known are TIFF (.tif, .tiff), .npy, and Zarr v2 and v3.",
        name="source",
        value=location,
    )


def _check_grey(source: Source) -> None:
    name = f"{source.dtype.kind}{source.dtype.itemsize}"
    where = source.location
    if name in _LABELS:
        raise SpecError(
            f"{where}: {source.dtype} looks like labels, which a lossy codec would destroy. "
            "Use compressed_segmentation, crackle or zstd for them.",
            name="dtype",
            value=str(source.dtype),
        )
    if name not in _GREY:
        raise SpecError(
            f"{where}: {source.dtype} is not coded; uint8, uint16, int16 and float32 are. Convert it first.",
            name="dtype",
            value=str(source.dtype),
        )
    if len(source.shape) < 2 or 0 in source.shape:
        raise SpecError(f"{where}: shape {source.shape}; needed are 2 to 5 axes, none of them empty.", name="shape",
                        value=source.shape)  # fmt: skip


def _open_npy(location: str, _trust: bool) -> Source:
    try:
        values = np.load(location, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise SpecError(f"{location}: not a .npy file of numbers: {error}", name="source", value=location) from error
    return Source(location, "npy", values.shape, values.dtype.newbyteorder("="), lambda box: values[box])


def _refuse_npz(location: str, _trust: bool) -> Source:
    raise SpecError(
        f"{location}: an .npz is a zip of arrays that cannot be read in part. Save the one you mean with numpy.save.",
        name="source",
        value=location,
    )


def _open_tiff(location: str, _trust: bool) -> Source:
    try:
        import tifffile
    except ImportError as error:
        raise MissingExtraError("reading TIFF", extra="sources") from error
    from zarr_emcodec.jobs.tiff import Stack

    try:
        stack = Stack(location)
    except tifffile.TiffFileError as error:
        raise SpecError(f"{location}: not a TIFF file: {error}", name="source", value=location) from error
    return Source(
        location,
        "tiff",
        stack.shape,
        stack.dtype.newbyteorder("="),
        stack.read,
        chunks=(1,) * (len(stack.shape) - 2) + stack.shape[-2:],
        voxel_nm=stack.voxel_nm,
        note=stack.note,
        close=stack.close,
    )


def _open_zarr(location: str, trust: bool) -> Source:
    array, note, voxel_nm = ome.pick_array(location, trust_embedded=trust)
    return Source(
        location,
        "zarr",
        array.shape,
        np.dtype(array.dtype).newbyteorder("="),
        lambda box: np.asarray(array[box]),
        chunks=array.shards or array.chunks,
        voxel_nm=voxel_nm,
        note=note,
        attributes=dict(array.attrs),
    )


def _has_suffix(*suffixes: str) -> Callable[[str, bool], bool]:
    return lambda location, remote: not remote and Path(location).is_file() and location.lower().endswith(suffixes)


_OPENERS: tuple[tuple[Callable[[str, bool], bool], Callable[[str, bool], Source]], ...] = (
    (_has_suffix(".npy"), _open_npy),
    (_has_suffix(".npz"), _refuse_npz),
    (_has_suffix(".tif", ".tiff", ".btf", ".tf8"), _open_tiff),
    (lambda location, remote: remote or Path(location).is_dir() or location.endswith(".zip"), _open_zarr),
)
