"""What an array, or the file of one frame, is: layout, codec, model, sizes, frames by kind.

A path in, an `ArrayInfo` or a `FrameFacts` out. Nothing is decoded, so it works where the model is missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.errors import FrameError, JobError, ModelError
from zarr_emcodec.frame import inspect
from zarr_emcodec.jobs.census import Census, take_census
from zarr_emcodec.jobs.compress import ATTRIBUTE
from zarr_emcodec.jobs.frames import layout_of, stored_bytes
from zarr_emcodec.jobs.ome import pick_array
from zarr_emcodec.jobs.report import Record

if TYPE_CHECKING:
    from zarr_emcodec._types import Shape

_FRAME_FILE_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class ModelFacts(Record):
    """A model, as far as it is known here.

    Parameters
    ----------
    id, digest : str
        "name@version"; "sha256:<hex>", or its first 8 bytes where a frame says no more.
    found : str or None
        Folder that holds it; None: it is missing, and chunks that need it cannot be decoded.
    licence : str
    ratio_range : (float, float) or None
    frames : int or None
        How many frames need it, where that was counted.
    mend : str
        What to do if it is missing.
    """

    id: str
    digest: str
    found: str | None
    licence: str = ""
    ratio_range: tuple[float, float] | None = None
    frames: int | None = None
    mend: str = ""


@dataclass(frozen=True, kw_only=True)
class ArrayInfo(Record):
    """An array in its store.

    Parameters
    ----------
    array, note : str
    zarr_format : int
    shape, chunks : tuple of int, voxels
    shards : tuple of int, voxels, or None
    dtype : str
    codec : str
    is_emcodec : bool
        Whether this package wrote the chunks; of other arrays only layout and size are known.
    config : mapping
        The codec's configuration.
    raw_bytes, stored_bytes : int
    ratio, bits_per_voxel : float
    n_chunks : int
    models : tuple of ModelFacts
    census : Census or None
        None where stored chunks are not frames.
    measured : mapping
        What the writer left in the attributes: source, PSNR, SSIM, worst error.
    """

    array: str
    note: str
    zarr_format: int
    shape: Shape
    chunks: Shape
    shards: Shape | None
    dtype: str
    codec: str
    is_emcodec: bool
    config: Mapping[str, Any]
    raw_bytes: int
    stored_bytes: int
    ratio: float
    bits_per_voxel: float
    n_chunks: int
    models: tuple[ModelFacts, ...]
    census: Census | None
    measured: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class FrameFacts(Record):
    """One frame in a file of its own.

    Parameters
    ----------
    file : str
    frame : mapping
        As `zarr_emcodec.inspect` tells it.
    model : ModelFacts or None
    """

    file: str
    frame: Mapping[str, Any]
    model: ModelFacts | None


def describe(path: str | os.PathLike[str], *, tick: Callable[[int], None] | None = None) -> ArrayInfo | FrameFacts:
    """Tell what is stored at a path.

    Parameters
    ----------
    path : path or URL
        A Zarr array (of a multiscale group, level 0), or a file that holds one frame, such as a stored chunk.
    tick : callable, optional
        Called with the number of chunks looked at so far.

    Returns
    -------
    ArrayInfo or FrameFacts

    Raises
    ------
    JobError
        If there is nothing that can be described.
    SpecError
        If it is a group that holds several arrays; they are named.
    """
    where = os.fspath(path)
    if "://" not in where and Path(where).is_file() and not where.endswith(".zip"):
        return _describe_file(Path(where))
    array, note, _ = pick_array(where, models=False)
    layout = layout_of(array)
    census = take_census(array, layout, tick=tick) if layout.has_frames else None
    n_voxels = int(np.prod(array.shape, dtype=np.int64))
    raw, size = n_voxels * np.dtype(array.dtype).itemsize, stored_bytes(array)
    if layout.wrapped_by:
        note = "; ".join(filter(None, [note, f"chunks are wrapped by {', '.join(layout.wrapped_by)}"]))
    own = array.attrs.get(ATTRIBUTE)
    return ArrayInfo(
        array=where,
        note=note,
        zarr_format=array.metadata.zarr_format,
        shape=array.shape,
        chunks=array.chunks,
        shards=array.shards,
        dtype=str(array.dtype),
        codec=layout.codec,
        is_emcodec=layout.is_ours,
        config=layout.config,
        raw_bytes=raw,
        stored_bytes=size,
        ratio=raw / size,
        bits_per_voxel=8 * size / max(1, n_voxels),
        n_chunks=layout.n_chunks,
        models=_models(layout.config, census) if layout.is_ours else (),
        census=census,
        measured=own if isinstance(own, Mapping) else {},
    )


def model_facts(ref: str, *, name: str = "", frames: int | None = None) -> ModelFacts:
    """Look a model up.

    Parameters
    ----------
    ref : str
        Anything that `find_model` takes.
    name : str
        What the metadata call it, for a model that is missing.
    frames : int, optional
    """
    from zarr_emcodec.runtime import find_model

    try:
        model = find_model(ref)
    except ModelError as error:
        return ModelFacts(id=name or "unknown", digest=ref, found=None, frames=frames, mend=str(error))
    card = model.card
    return ModelFacts(
        id=card.id,
        digest=f"sha256:{card.digest.hex()}",
        found=str(model.directory),
        licence=card.licence,
        ratio_range=(float(card.ratio_range[0]), float(card.ratio_range[1])),
        frames=frames,
    )


def installed_models() -> tuple[ModelFacts, ...]:
    """Every model on the search path."""
    from zarr_emcodec.runtime import list_models

    return tuple(model_facts(f"sha256:{model.card.digest.hex()}") for model in list_models())


def _models(config: Mapping[str, Any], census: Census | None) -> tuple[ModelFacts, ...]:
    """The model that metadata name, and any other that frames need."""
    counts = dict(census.digests) if census else {}
    facts = []
    digest = str(config.get("digest", ""))
    if digest:
        used = sum(counts.pop(short) for short in list(counts) if digest.removeprefix("sha256:").startswith(short))
        facts.append(model_facts(digest, name=str(config.get("model", "")), frames=used if census else None))
    return (*facts, *(model_facts(f"sha256:{short}", frames=count) for short, count in counts.items()))


def _describe_file(path: Path) -> FrameFacts:
    if path.stat().st_size > _FRAME_FILE_BYTES:
        raise JobError(f"{path}: larger than any frame. Name a Zarr array, or the file of one chunk.")
    data = path.read_bytes()
    try:
        info = inspect(data)
    except FrameError as error:
        raise JobError(f"{path}: neither a Zarr array nor a frame of this package: {error}") from error
    model = None if info.model is None else model_facts(f"sha256:{info.model}", frames=1)
    return FrameFacts(file=str(path), frame=asdict(info), model=model)
