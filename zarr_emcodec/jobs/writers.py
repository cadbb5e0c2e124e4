"""What `transcode` writes: levels of an image as plain OME-Zarr, or as scales of a Neuroglancer precomputed volume.

An image's levels and an encoding in, a `Writer` for each level out, which puts boxes of voxels into place and reads
them back. Axis order and voxel offsets are those of ``axes``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from zarr_emcodec.errors import JobError, SpecError
from zarr_emcodec.jobs import axes, grid, ome
from zarr_emcodec.jobs.scales import Multiscale, spatial
from zarr_emcodec.jobs.sources import Source
from zarr_emcodec.jobs.sources.place import reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr_emcodec._types import Chunk, Shape
    from zarr_emcodec.jobs.grid import Box

ENCODINGS = {"zarr": ("zstd", "raw"), "precomputed": ("jpeg", "png", "raw")}
"""By target; the first is what is written when none is named, if the voxels allow it."""
DEFAULT_QUALITY = 90
_ZSTD_LEVEL = 5
_PRECOMPUTED_CHUNK = 64  # along x, y and z: what Neuroglancer's own tools write
_STORED = ("x", "y", "z", "channel")


class Writer(Protocol):
    """One level on its way.

    Attributes
    ----------
    chunks : tuple of int, voxels
        What is stored as one object; boxes are made of whole ones, so that none is written twice.
    note : str
        What could not be carried over as it was.
    """

    chunks: Shape
    note: str

    def write(self, box: Box, voxels: Chunk) -> None:
        """Put a box of whole chunks into place."""

    def read(self, box: Box) -> Chunk:
        """Read it back."""


class ZarrLevel:
    """A Zarr v3 array of an OME-Zarr 0.5 image.

    Parameters
    ----------
    folder : path
        Of the image.
    name : str
        Of the level in it.
    volume : Source
    encoding : {"zstd", "raw"}
    chunks, shards : sequence of int, voxels, optional
    """

    note = ""

    def __init__(
        self,
        folder: Path,
        name: str,
        volume: Source,
        encoding: str,
        chunks: Sequence[int] | None,
        shards: Sequence[int] | None,
    ) -> None:
        import zarr
        from zarr.codecs import ZstdCodec

        fitted = grid.fit_chunks(volume.shape, volume.chunks if chunks is None else chunks)
        self._array = zarr.create_array(
            folder / name,
            shape=volume.shape,
            dtype=volume.dtype,
            chunks=fitted,
            shards=None if shards is None else tuple(shards),
            compressors=ZstdCodec(level=_ZSTD_LEVEL) if encoding == "zstd" else None,
            fill_value=volume.dtype.type(volume.fill),
            attributes=dict(volume.attributes),
            dimension_names=volume.axes,
        )
        self.chunks = self._array.shards or self._array.chunks

    def write(self, box: Box, voxels: Chunk) -> None:
        """Put a box of whole chunks into place."""
        self._array[box] = voxels

    def read(self, box: Box) -> Chunk:
        """Read it back."""
        return np.asarray(self._array[box])


def write_group(folder: Path, image: Multiscale) -> None:
    """The group of an OME-Zarr 0.5 image, its levels to be named as in `image`."""
    import zarr

    zarr.create_group(folder, attributes=ome.write_multiscale(image, 3))


class PrecomputedLevel:
    """A scale of a precomputed volume, through TensorStore.

    Parameters
    ----------
    folder : path
        Of the volume.
    volume : Source
    image : Multiscale
        With the finest level that is written first: offsets count from its voxels' corners.
    level : int
        Which one this is.
    encoding : {"jpeg", "png", "raw"}
    quality : int
        Of JPEG, 1 to 100.
    chunks : sequence of int, voxels, optional
        (z, y, x).

    Raises
    ------
    SpecError
        If the volume has a time axis, or voxels that the encoding does not take.
    JobError
        If TensorStore refuses it.
    """

    def __init__(
        self,
        folder: Path,
        volume: Source,
        image: Multiscale,
        level: int,
        encoding: str,
        quality: int,
        chunks: Sequence[int] | None,
    ) -> None:
        import tensorstore

        _check_axes(volume, encoding)
        named = dict(zip(volume.axes, volume.shape, strict=True))
        channels = named.get("c", 1)
        size = [named.get(name, 1) for name in ("x", "y", "z")]
        origin, moved = _corner(image, level)
        resolution, guessed = _resolution(image, level)
        self.note = "; ".join(filter(None, [moved, guessed]))
        unit = _unit(volume, chunks)
        scale: dict[str, Any] = {
            "key": str(level),
            "size": size,
            "resolution": resolution,
            "voxel_offset": list(origin),
            "encoding": encoding,
            "chunk_size": [unit.get(name, 1) for name in ("x", "y", "z")],
        }
        if encoding == "jpeg":
            scale["jpeg_quality"] = quality
        spec = {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": f"{folder}/"},
            "multiscale_metadata": {"type": "image", "data_type": volume.dtype.name, "num_channels": channels},
            "scale_metadata": scale,
        }
        try:
            self._store = tensorstore.open(spec, create=True).result()
        except (ValueError, OSError) as error:
            raise JobError(f"level {level}: TensorStore does not write this: {reason(error)}") from error
        left_out = tuple(name for name in ("c", "z") if name not in named)
        self._view = axes.view_of(_STORED, (*size, channels), origin=(*origin, 0), drop=left_out)
        self.chunks = tuple(unit[name] for name in volume.axes)

    def write(self, box: Box, voxels: Chunk) -> None:
        """Put a box of whole chunks into place."""
        self._store[self._view.to_stored(box)].write(self._view.onto_stored(voxels)).result()

    def read(self, box: Box) -> Chunk:
        """Read it back."""
        return self._view.from_stored(np.asarray(self._store[self._view.to_stored(box)].read().result()))


def _unit(volume: Source, chunks: Sequence[int] | None) -> dict[str, int]:
    """Extent of a chunk by axis; channels stay together."""
    if chunks is not None:
        unit = dict(zip(volume.axes, grid.fit_chunks(volume.shape, chunks), strict=True))
    else:
        unit = dict.fromkeys(volume.axes, _PRECOMPUTED_CHUNK)
    return {name: extent if name == "c" else unit[name] for name, extent in zip(volume.axes, volume.shape, strict=True)}


def _check_axes(volume: Source, encoding: str) -> None:
    named = dict(zip(volume.axes, volume.shape, strict=True))
    if not {"y", "x"} <= set(named) <= {"c", "z", "y", "x"}:
        raise SpecError(
            f"{volume.location}: precomputed has channels, z, y and x, the volume {', '.join(named)}. "
            "Transcode one time point, or write Zarr.",
            name="shape",
            value=volume.shape,
        )
    if encoding != "raw" and not takes(encoding, volume):
        raise SpecError(
            f"{volume.location}: {encoding} holds {_TAKES[encoding]}, the volume is {volume.dtype} with "
            f"{named.get('c', 1)} channels. Pass encoding='raw'.",
            name="encoding",
            value=encoding,
        )


_TAKES = {"jpeg": "uint8 of 1 or 3 channels", "png": "uint8 or uint16 of 1 to 4 channels"}


def takes(encoding: str, volume: Source) -> bool:
    """Whether an encoding of precomputed chunks holds such voxels."""
    channels = dict(zip(volume.axes, volume.shape, strict=True)).get("c", 1)
    if encoding == "jpeg":
        return volume.dtype == np.uint8 and channels in (1, 3)
    return encoding == "raw" or (volume.dtype in (np.uint8, np.uint16) and channels <= 4)


def _corner(image: Multiscale, level: int) -> tuple[Shape, str]:
    """`voxel_offset` of a level, (x, y, z), and a word where it had to be rounded."""
    n = spatial(len(image.axes))
    exact = axes.to_corner(image.offset(level), image.factors(level)[-n:])
    whole = tuple(round(value) for value in exact)
    note = ""
    if not np.allclose(exact, whole, atol=1e-3):
        shown = ", ".join(f"{value:g}" for value in exact)
        note = f"level {level}: its first voxel lies at ({shown}), precomputed has whole numbers alone"
    return (*reversed(whole), *(0,) * (3 - n)), note


def _resolution(image: Multiscale, level: int) -> tuple[list[float], str]:
    """Voxel size in nm, (x, y, z), and a word where it is not known."""
    n = spatial(len(image.axes))
    stated = image.voxel_nm(level)
    sizes = image.factors(level)[-n:] if stated is None else stated
    note = "" if stated or level else "voxel size not stated: written as 1 nm"
    return [*(float(value) for value in reversed(sizes)), *(1.0,) * (3 - n)], note
