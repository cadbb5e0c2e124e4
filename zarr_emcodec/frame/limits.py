"""What a frame may claim: bounds of the format, and bounds that a reader sets.

In: numbers that a header states. Out: nothing, or a ``FrameError`` before any memory is taken for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zarr_emcodec.errors import FrameError, SpecError

if TYPE_CHECKING:
    from zarr_emcodec._types import Shape

MAX_NDIM = 5
MAX_VARINT = 2**32 - 1
"""Largest extent and section length: the format's varints stop there, so five bytes always hold one."""


@dataclass(frozen=True)
class Limits:
    """How large a claim a reader believes.

    Parameters
    ----------
    max_chunk_bytes : int, bytes
        Largest decoded size of one chunk. A constant frame of 15 bytes may claim any size, so the frame's own length
        bounds nothing.
    max_sections : int
        Largest number of sections. Each costs the reader one small object (about 200 bytes) but its author only 5
        bytes of table.

    Raises
    ------
    SpecError
        If a limit is not a positive integer.
    """

    max_chunk_bytes: int = 2**31
    max_sections: int = 2**16

    def __post_init__(self) -> None:
        for name in ("max_chunk_bytes", "max_sections"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SpecError(f"{name} is {value!r}. Pass an integer of at least 1.", name=name, value=value)

    def check_chunk(self, shape: Shape, itemsize: int, *, offset: int) -> None:
        """Refuse a decoded size above the limit.

        Parameters
        ----------
        shape : tuple of int, voxels
            Extents as claimed; Python integers, so that their product cannot overflow.
        itemsize : int, bytes
            Size of one voxel.
        offset : int, bytes
            Where in the frame the shape stands, for the message.

        Raises
        ------
        FrameError
            If the chunk would be larger than ``max_chunk_bytes``.
        """
        size = math.prod(shape) * itemsize
        if size > self.max_chunk_bytes:
            raise FrameError(
                f"frame byte {offset}: shape {shape} decodes to {size} bytes, the limit is {self.max_chunk_bytes}. "
                "If the data are trusted, pass Limits(max_chunk_bytes=...).",
                offset=offset,
                field="shape",
            )

    def check_sections(self, count: int, *, offset: int) -> None:
        """Refuse a section count above the limit.

        Raises
        ------
        FrameError
            If ``count`` is above ``max_sections``.
        """
        if count > self.max_sections:
            raise FrameError(
                f"frame byte {offset}: table of {count} sections, the limit is {self.max_sections}. "
                "If the data are trusted, pass Limits(max_sections=...).",
                offset=offset,
                field="table",
            )


DEFAULT = Limits()
"""The limits that readers and writers use unless told otherwise."""
