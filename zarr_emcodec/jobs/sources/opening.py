"""From a path or URL to the opener of its format."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr_emcodec.errors import EmCodecError, JobError, SpecError
from zarr_emcodec.jobs.sources import hdf5, n5, npy, precomputed, reduced, zarrs
from zarr_emcodec.jobs.sources.images import TIFF_SUFFIXES, open_tiff, open_tiff_folder
from zarr_emcodec.jobs.sources.opened import Opened
from zarr_emcodec.jobs.sources.place import Place, reason
from zarr_emcodec.jobs.sources.source import Missing, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from zarr.abc.store import Store
    from zarr.storage import StorePath

_GREY = ("u1", "u2", "i2", "f4")
_LABELS = ("b1", "u4", "u8", "i4", "i8")
_MOST_AXES = 5


def open_source(
    path: str | os.PathLike[str] | Store | StorePath,
    *,
    trust_embedded: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    missing: Missing = "fill",
) -> Source:
    """Open a volume for reading.

    Parameters
    ----------
    path : path, URL, or zarr store
        One of

        - a folder or URL that holds a Zarr v2 or v3 array, an N5 data set or a Neuroglancer precomputed volume (of a
          multiscale one its finest level; name the path of another level to get that). What it is, is told by its
          documents; ``zarr://``, ``n5://`` or ``precomputed://`` in front of the path or URL says it beforehand;
        - a TIFF or OME-TIFF file, or a folder of TIFF files, one section each, in the order of the numbers in their
          names;
        - an HDF5 file with its data set, ``file.h5::path/of/dataset``;
        - a .npy file;
        - ``mean-1x2x2://`` before any of these: the volume seen with coarser voxels, each the mean of 1 x 2 x 2;
        - a store object of zarr, which may wrap any fsspec file system or obstore store.
    trust_embedded : bool
        Use a model that travels with a Zarr array although its digest is not known here.
    storage_options : mapping, optional
        For the fsspec file system of a URL (as in `zarr.open`), or for obstore where fsspec lacks the protocol. What
        the environment says (``AWS_ENDPOINT_URL`` and the like) needs no option.
    missing : {"fill", "error"}
        Chunks that are not stored: read as the fill value, which is what their formats mean by it, or refused when a
        box touches one, where none should be missing.

    Returns
    -------
    Source
        Also a context manager that closes it. It pickles as its location.

    Raises
    ------
    JobError
        If there is nothing at the path, or it cannot be read.
    SpecError
        If it is of a kind that cannot be compressed here: another format, colour, labels, fewer than 2 axes.
    MissingExtraError
        If the format or protocol needs a library that is not installed.
    ModelError
        If a model travels with the array that is neither known here nor trusted.
    """
    if missing not in ("fill", "error"):
        raise SpecError(f"missing {missing!r}: 'fill' or 'error'.", name="missing", value=missing)
    if isinstance(path, str) and (coarser := reduced.split_location(path)) is not None:
        finer = open_source(coarser[1], trust_embedded=trust_embedded, storage_options=storage_options, missing=missing)
        return _reduced(path, finer, coarser[0])
    place, kind = _place(path, storage_options)
    try:
        source = _open(place, kind, trust_embedded, missing)
    except EmCodecError:
        raise
    except Exception as error:  # each format's library has its own errors
        raise JobError(f"{place.location}: cannot be opened: {reason(error)}") from error
    try:
        _check_grey(source)
    except SpecError:
        source.close()
        raise
    where = path if place.store is not None else f"{kind}://{place.location}" if kind else place.location
    again = (_reopen, (where, trust_embedded, storage_options, missing))
    stated = os.fspath(path) if isinstance(path, str | os.PathLike) else source.location
    return replace(source, location=stated, missing_is=missing, reopen=again)


def _reduced(path: str, finer: Source, factors: tuple[int, ...]) -> Source:
    assert finer.reopen is not None  # it comes from `open_source`
    reopen, (where, *options) = finer.reopen
    again = (reopen, (reduced.reduced_location(where, factors), *options))
    try:
        return replace(reduced.reduce_source(finer, factors), location=path, reopen=again)
    except SpecError:
        finer.close()
        raise


def _reopen(path: Any, trust_embedded: bool, storage_options: Any, missing: Missing) -> Source:
    return open_source(path, trust_embedded=trust_embedded, storage_options=storage_options, missing=missing)


def _absolute(location: str) -> str:
    """A local path that stays the same when the process, or another one, works in another folder."""
    return location if "://" in location else str(Path(location).absolute())


_SCHEMES = {"zarr": "zarr", "zarr2": "zarr", "zarr3": "zarr", "n5": "n5", "precomputed": "precomputed"}


def _place(path: Any, options: Mapping[str, Any] | None) -> tuple[Place, str]:
    """Where to look, and the kind where it was said beforehand."""
    if not isinstance(path, str | os.PathLike):
        return Place(str(path), None, path), ""
    location = os.fspath(path)
    scheme, _, rest = location.partition("://")
    kind = _SCHEMES.get(scheme, "") if rest else ""
    if kind:
        location = rest
    location = _absolute(location.removeprefix("file://"))
    return Place(location, options if "://" in location else None), kind


def _open(place: Place, kind: str, trust_embedded: bool, missing: Missing) -> Source:
    if not kind and place.store is None:
        source = _open_file(place)
        if source is not None:
            return source
    kind = kind or _sniff(place)
    if kind == "zarr":
        return zarrs.open_zarr(place, trust_embedded)
    if kind == "n5":
        return n5.open_n5(place, missing)
    if kind == "precomputed":
        return precomputed.open_precomputed(place, missing)
    return open_tiff_folder(place.location, place.path)


_FILES: tuple[tuple[tuple[str, ...], Callable[[str, Opened], Source]], ...] = (
    ((".npy",), npy.open_npy),
    ((".npz",), npy.refuse_npz),
    (TIFF_SUFFIXES, open_tiff),
)


def _open_file(place: Place) -> Source | None:
    """A format that is one file, told by its name; None where the place is something else."""
    location = place.location
    file, between, name = location.rpartition(hdf5.BETWEEN)
    if between and file.lower().endswith(hdf5.SUFFIXES):
        _check_file(location, file)
        return hdf5.open_hdf5(location, Opened(file, place.options), name)
    _check_file(location, location)
    if not place.is_remote and place.path.is_dir():
        return None
    if location.lower().endswith(hdf5.SUFFIXES):
        return hdf5.open_hdf5(location, Opened(location, place.options), "")
    for suffixes, opener in _FILES:
        if location.lower().endswith(suffixes):
            return opener(location, Opened(location, place.options))
    if place.is_remote or location.endswith(".zip"):
        return None
    raise SpecError(
        f"{location}: not a format read here. Known are TIFF (.tif, .tiff), HDF5 (.h5, .hdf5), .npy, and folders or "
        "URLs of Zarr v2 and v3, N5 and Neuroglancer precomputed.",
        name="source",
        value=location,
    )


def _check_file(location: str, path: str) -> None:
    if "://" not in path and not Path(path).exists():
        inside = next((str(p) for p in Path(path).parents if p.is_file()), None)
        mend = f" Of an HDF5 file, name the data set as {inside}{hdf5.BETWEEN}DATASET." if inside else ""
        raise JobError(f"{location}: no such file or folder.{mend}")


def _sniff(place: Place) -> str:
    """What a folder holds, from the documents in it."""
    names = (*zarrs.DOCUMENTS, n5.DOCUMENT, f"s0/{n5.DOCUMENT}", precomputed.DOCUMENT)
    found = {name for name, data in zip(names, place.get(*names), strict=True) if data is not None}
    if found & set(zarrs.DOCUMENTS):
        return "zarr"
    if n5.DOCUMENT in found or f"s0/{n5.DOCUMENT}" in found:
        return "n5"
    if precomputed.DOCUMENT in found or precomputed.is_scale(place):
        return "precomputed"
    if not place.is_remote and any(p.suffix.lower() in TIFF_SUFFIXES for p in place.path.iterdir()):
        return "tiff"
    raise JobError(
        f"{place.location}: no Zarr array or group, no N5, no precomputed volume and no TIFF files that can be opened."
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
    if not 2 <= len(source.shape) <= _MOST_AXES or 0 in source.shape:
        raise SpecError(f"{where}: shape {source.shape}; needed are 2 to 5 axes, none of them empty.", name="shape",
                        value=source.shape)  # fmt: skip
