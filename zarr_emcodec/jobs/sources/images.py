"""TIFF and OME-TIFF: one file of many pages, or a folder of files of one section each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zarr_emcodec.errors import JobError, MissingExtraError, SpecError
from zarr_emcodec.jobs.sources.opened import Opened
from zarr_emcodec.jobs.sources.place import reason, stat_mark
from zarr_emcodec.jobs.sources.source import Source

if TYPE_CHECKING:
    from pathlib import Path

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")


def open_tiff(location: str, file: Opened) -> Source:
    """The first series of a file.

    Raises
    ------
    JobError
        If the file ends before its pages do.
    SpecError
        If it is no TIFF file, or holds colour.
    """
    from zarr_emcodec.jobs.tiff import KEPT_BYTES, Stack

    stack = _made(location, lambda: Stack(file.for_library(), location))

    def close() -> None:
        stack.close()
        file.close()

    return Source(
        location,
        "tiff",
        stack.shape,
        stack.dtype.newbyteorder("="),
        stack.read,
        chunks=(1,) * (len(stack.shape) - 2) + stack.shape[-2:],
        voxel_nm=stack.voxel_nm,
        note=stack.note,
        held_bytes=0 if stack.is_mapped else min(KEPT_BYTES, stack.nbytes),
        marks=lambda: [file.mark()],
        close=close,
    )


def open_tiff_folder(location: str, folder: Path) -> Source:
    """The sections of a folder, stacked along z.

    Raises
    ------
    SpecError
        If files hold more than a section, or differ.
    """
    _library()
    from zarr_emcodec.jobs.tiff import KEPT_BYTES, Sections

    files = [path for path in folder.iterdir() if path.suffix.lower() in TIFF_SUFFIXES and path.is_file()]
    sections = _made(location, lambda: Sections(location, files))
    return Source(
        location,
        "tiff",
        sections.shape,
        sections.dtype.newbyteorder("="),
        sections.read,
        chunks=(1, *sections.shape[1:]),
        note=f"took {len(files)} files as sections along z, {sections.files[0].name} first",
        held_bytes=min(KEPT_BYTES, sections.nbytes),
        marks=lambda: [f"{path.name} {stat_mark(path)}" for path in sections.files],
    )


def _library() -> Any:
    try:
        import tifffile
    except ImportError as error:
        raise MissingExtraError("reading TIFF", extra="sources") from error
    return tifffile


def _made(location: str, make: Any) -> Any:
    tifffile = _library()
    try:
        return make()
    except SpecError:
        raise
    except tifffile.TiffFileError as error:
        raise SpecError(f"{location}: not a TIFF file: {error}", name="source", value=location) from error
    except (ValueError, OSError, EOFError, IndexError) as error:
        raise JobError(f"{location}: damaged, or ends before its pages do: {reason(error)}") from error
