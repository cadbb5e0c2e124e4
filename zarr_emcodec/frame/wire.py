"""The scraps that headers are made of: bounded reads, varints, CRC32C.

In: buffers, offsets. Out: integers and zero-copy views, or a typed error that names the field and its place. Knows
nothing of what the fields mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import google_crc32c

from zarr_emcodec.errors import FrameError, TruncatedFrameError
from zarr_emcodec.frame.limits import MAX_VARINT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zarr_emcodec._types import Buffer

_MAX_VARINT_BYTES = 5
# the CRC library takes bytes objects only: other buffers are copied in pieces, so that a frame of a gigabyte does not
# cost a second one
_CRC_PIECE_BYTES = 1 << 20


def as_view(data: Buffer) -> memoryview:
    """View any buffer as read-only bytes, copying only what is not contiguous."""
    view = memoryview(data)
    if not view.c_contiguous or view.nbytes == 0:  # a view with a zero extent cannot be cast
        return memoryview(view.tobytes())
    return view.cast("B").toreadonly()


def crc32c(parts: Iterable[Buffer]) -> int:
    """CRC32C (Castagnoli, RFC 3720) of buffers as if they were joined.

    Examples
    --------
    >>> hex(crc32c([b"1234", b"56789"]))
    '0xe3069283'
    """
    crc = 0
    for part in parts:
        view = as_view(part)
        for start in range(0, len(view), _CRC_PIECE_BYTES):
            crc = int(google_crc32c.extend(crc, bytes(view[start : start + _CRC_PIECE_BYTES])))
    return crc


def varint(value: int) -> bytes:
    """Write an integer of 0 to 2**32 - 1 as canonical unsigned LEB128.

    Examples
    --------
    >>> varint(127).hex(), varint(512).hex()
    ('7f', '8004')
    """
    assert 0 <= value <= MAX_VARINT
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class Cursor:
    """A place in a buffer that only moves forward and never past the end.

    Between calls ``offset`` is the next unread byte, and ``least`` the total that the header is already known to need:
    a reader that fetches ranges is then told of all of it at once, not of one field after the other.
    """

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.offset = 0
        self.least = 0

    def take(self, size: int, field: str) -> memoryview:
        """Read the next ``size`` bytes.

        Raises
        ------
        TruncatedFrameError
            If fewer are left; ``needed`` is a total that the frame has at least.
        """
        stop = self.offset + size
        if stop > len(self.view):
            needed = max(stop, self.least)
            raise TruncatedFrameError(
                f"frame byte {self.offset}: ended inside '{field}' (at least {needed} bytes needed, "
                f"{len(self.view)} found). Read the chunk again, or restore it from its source.",
                needed=needed,
                found=len(self.view),
                offset=self.offset,
                field=field,
            )
        piece = self.view[self.offset : stop]
        self.offset = stop
        return piece

    def take_varint(self, field: str) -> int:
        """Read a canonical unsigned LEB128 integer of at most 2**32 - 1.

        Raises
        ------
        FrameError
            If it is longer than it need be, or too large; TruncatedFrameError if the bytes end inside it.
        """
        start = self.offset
        value = 0
        for i in range(_MAX_VARINT_BYTES):
            byte = self.take(1, field)[0]
            value |= (byte & 0x7F) << 7 * i
            if byte < 0x80:
                if value > MAX_VARINT or (byte == 0 and i > 0):
                    break
                return value
        raise FrameError(
            f"frame byte {start}: '{field}' holds a varint that is not canonical or above {MAX_VARINT}. "
            "The frame is damaged: restore the chunk from its source.",
            offset=start,
            field=field,
        )
