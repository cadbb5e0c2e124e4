"""What every format's opener returns: a volume that can be read box by box, and sent to a worker."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self, SupportsIndex, TypeAlias

import numpy as np

from zarr_emcodec.errors import JobError, ModelError
from zarr_emcodec.jobs import axes
from zarr_emcodec.jobs.scales import Multiscale, in_nm, spatial
from zarr_emcodec.jobs.sources.place import reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from zarr_emcodec._types import Chunk, Shape
    from zarr_emcodec.jobs.grid import Box
    from zarr_emcodec.jobs.scales import Level

Missing: TypeAlias = Literal["fill", "error"]

_ASKED_AT_MOST = 1024  # objects of a box whose existence is worth asking for


@dataclass(frozen=True)
class Source:
    """A volume that can be read box by box.

    One that came from `open_source` pickles as its location, and is opened again where it is unpickled.

    Parameters
    ----------
    location : str
        What the user gave.
    kind : str
        "tiff", "npy", "hdf5", "zarr", "n5", "precomputed", or of a coarser view "mean-1x2x2" and the like.
    shape : tuple of int, voxels
        At least 2-D; the last axes are (z, y, x).
    dtype : numpy.dtype
        uint8, uint16, int16 or float32, native byte order.
    reader : callable
        Box to array, in any memory order and byte order.
    chunks : tuple of int, voxels, or None
        What the source decodes at once.
    voxel_nm : tuple of float or None
        Extent of a voxel along the last axes, (z, y, x), where the file states it.
    offset : tuple of float, voxels
        Centre of the first voxel along the same axes; zeros where nothing is stated.
    note : str
        What was chosen on the user's behalf, in words; often empty.
    attributes : mapping
        User metadata worth carrying along.
    scales : Multiscale or None
        The image that the volume is a level of; None where the format states none.
    level : int
        Which level.
    fill : float
        Value of voxels that are not stored.
    held_bytes : int
        What reading keeps in memory between boxes, at most.
    absent : callable or None
        Box to how many of the stored objects it touches are not there, and of how many; None where that is unknown.
    marks : callable
        What tells this source from a changed one: digests of metadata documents, sizes, times, entity tags.
    close : callable
        Frees file handles.
    missing_is : {"fill", "error"}
        Whether voxels that are not stored are read as the fill value, as their formats define, or refused.
    reopen : (callable, arguments) or None
        Gives an equal source elsewhere.
    """

    location: str
    kind: str
    shape: Shape
    dtype: np.dtype[Any]
    reader: Callable[[Box], Chunk]
    chunks: Shape | None = None
    voxel_nm: tuple[float, ...] | None = None
    offset: tuple[float, ...] = ()
    note: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    scales: Multiscale | None = None
    level: int = 0
    fill: float = 0
    held_bytes: int = 0
    absent: Callable[[Box], tuple[int, int]] | None = None
    marks: Callable[[], Iterable[str]] = tuple
    close: Callable[[], None] = lambda: None
    missing_is: Missing = "fill"
    reopen: tuple[Callable[..., Source], tuple[Any, ...]] | None = None

    def __post_init__(self) -> None:
        if not self.offset:
            object.__setattr__(self, "offset", (0.0,) * spatial(len(self.shape)))

    @property
    def nbytes(self) -> int:
        """Raw size: voxels x itemsize."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes."""
        return axes.names_of(len(self.shape)) if self.scales is None else tuple(a.name for a in self.scales.axes)

    @property
    def image(self) -> Multiscale:
        """The multiscale image that the volume is a level of, made of it alone where the format states none."""
        if self.scales is not None:
            return self.scales
        n = spatial(len(self.shape))
        names = axes.names_of(len(self.shape))
        return in_nm(names, self.voxel_nm, [("", self.location, (1.0,) * n, self.offset)])

    @property
    def levels(self) -> tuple[Level, ...]:
        """The resolutions there are, finest first; this volume is one of them."""
        return self.image.levels

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
            If the file cannot be read there (the cause is the FrameError of a damaged chunk), gives something else than
            it announced, or lacks voxels and `missing_is` "error".
        ModelError
            If the model that a chunk needs is not here.
        """
        if self.missing_is == "error":
            self._refuse_missing(box)
        try:
            values = self.reader(box)
        except ModelError:
            raise  # the chunk is well; its message says what to install
        except Exception as error:  # each format's library has its own errors; the place is what the user needs
            raise JobError(f"{self.location}: cannot read voxels {_words(box)}: {reason(error)}") from error
        expected = tuple(part.stop - part.start for part in box)
        if values.shape != expected:
            raise JobError(f"{self.location}: voxels {_words(box)} came back as {values.shape}, not {expected}.")
        return np.ascontiguousarray(values, dtype=self.dtype)

    def missing(self, box: Box) -> bool | None:
        """Whether nothing of a box is stored, so that all of it reads as `fill`.

        Costs one small request for each stored object that the box touches.

        Returns
        -------
        bool or None
            None where the format cannot tell, or the box touches too many objects for asking to be cheap.

        Raises
        ------
        JobError
            If the store does not answer.
        """
        if self.absent is None:
            return None
        unit = self.chunks or (1,) * len(self.shape)
        touched = math.prod((part.stop - 1) // u - part.start // u + 1 for part, u in zip(box, unit, strict=True))
        if touched > _ASKED_AT_MOST:
            return None
        absent, count = self._ask(box)
        return absent == count

    def fingerprint(self) -> str:
        """Identity of the source, cheap to take: "sha256:" and 64 hex digits.

        Changes with location-independent facts: kind, shape, dtype, chunks, metadata documents, size and time (or
        entity tag) of the file, or of a few stored objects spread over the volume. A chunk rewritten elsewhere goes
        unseen; user attributes may change freely.

        Raises
        ------
        JobError
            If the source is no longer there.
        """
        try:
            marks = list(self.marks())
        except Exception as error:
            raise JobError(f"{self.location}: cannot be looked at: {reason(error)}") from error
        facts = [self.kind, self.shape, str(self.dtype), self.chunks, marks]
        return f"sha256:{hashlib.sha256(json.dumps(facts).encode()).hexdigest()}"

    def _ask(self, box: Box) -> tuple[int, int]:
        assert self.absent is not None
        try:
            return self.absent(box)
        except Exception as error:
            raise JobError(f"{self.location}: cannot look for voxels {_words(box)}: {reason(error)}") from error

    def _refuse_missing(self, box: Box) -> None:
        if self.absent is None:
            return  # the opener arranged that the reader itself refuses, or nothing can be missing
        absent, count = self._ask(box)
        if absent:
            raise JobError(
                f"{self.location}: {absent} of the {count} stored objects of voxels {_words(box)} are missing. Restore "
                f"them, or read them as {self.fill:g} with missing='fill'."
            )

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return super().__reduce_ex__(protocol) if self.reopen is None else self.reopen

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _words(box: Box) -> str:
    return ", ".join(f"{part.start}:{part.stop}" for part in box)
