"""Unsigned integers in, bits side by side out, and back: fields of fixed widths, and LEB128 numbers of any size.

Vectorised over the fields; loops run over bit planes or bytes of a number, a few dozen at most. Knows no symbol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from zarr_emcodec.errors import FrameError, TruncatedFrameError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from zarr_emcodec._types import Buffer

MAX_NUMBER_BYTES = 5
"""Of a LEB128 number: 35 bits; a distance between two 32-bit symbols and its side need 34."""


def packed_bytes(widths: NDArray[np.uint8]) -> int:
    """Bytes that fields of these widths, in bits, take together."""
    return (int(widths.sum(dtype=np.int64)) + 7) // 8


def pack(values: NDArray[np.uint32], widths: NDArray[np.uint8]) -> bytes:
    """Write each value into as many bits as its width says.

    Parameters
    ----------
    values : ndarray, shape (n,), uint32
        ``values[i] < 2**widths[i]``; the caller sees to it.
    widths : ndarray, shape (n,), uint8
        0 to 32, in bits.

    Returns
    -------
    bytes
        Fields follow each other without gaps, least significant bit first; bit ``b`` of the stream is bit ``b % 8``
        of byte ``b // 8``. The last byte is filled up with zeros.

    Examples
    --------
    >>> pack(np.array([1, 6], "u4"), np.array([1, 3], "u1")).hex()
    '0d'
    """
    ends = np.cumsum(widths, dtype=np.int64)
    stream = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    for plane, (fields, places) in enumerate(_planes(widths, ends)):
        stream[places] = values[fields] >> np.uint32(plane) & np.uint32(1)
    return np.packbits(stream, bitorder="little").tobytes()


def unpack(data: Buffer, widths: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Read what `pack` wrote.

    Parameters
    ----------
    data : bytes-like
        All of it must belong to the fields.
    widths : ndarray, shape (n,), uint8
        0 to 32, in bits.

    Returns
    -------
    ndarray, shape (n,), uint32

    Raises
    ------
    FrameError
        If there are too few bytes (`TruncatedFrameError`), too many, or the bits behind the last field are not zero.
    """
    needed, found = packed_bytes(widths), len(data)
    if found < needed:
        message = f"fixed fields: {needed} bytes needed, {found} found. The stream was cut off."
        raise TruncatedFrameError(message, needed=needed, found=found)
    if found > needed:
        raise FrameError(f"fixed fields: {found - needed} bytes behind the last field.", offset=needed)
    stream = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    ends = np.cumsum(widths, dtype=np.int64)
    if len(ends) and stream[ends[-1] :].any():
        raise FrameError("fixed fields: the padding bits of the last byte are not zero.", offset=needed - 1)
    values = np.zeros(len(widths), np.uint32)
    for plane, (fields, places) in enumerate(_planes(widths, ends)):
        values[fields] |= stream[places].astype(np.uint32) << np.uint32(plane)
    return values


def _planes(widths: NDArray[np.uint8], ends: NDArray[np.int64]) -> list[tuple[NDArray[np.intp], NDArray[np.int64]]]:
    """Per bit plane: the fields that reach up to it, and where their bit lies in the stream."""
    starts = ends - widths
    planes = []
    for plane in range(int(widths.max(initial=0))):
        fields = np.flatnonzero(widths > plane)
        planes.append((fields, starts[fields] + plane))
    return planes


def pack_numbers(numbers: NDArray[np.uint64]) -> bytes:
    """Write numbers below 2**35 as LEB128: seven bits a byte, lowest first, the top bit set on all but the last.

    Examples
    --------
    >>> pack_numbers(np.array([5, 300], "u8")).hex()
    '05ac02'
    """
    lengths = np.ones(len(numbers), np.int64)
    for k in range(1, MAX_NUMBER_BYTES):
        lengths += numbers >= np.uint64(1 << 7 * k)
    ends = np.cumsum(lengths)
    stream = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    for k in range(MAX_NUMBER_BYTES):
        reaching = lengths > k
        more = (lengths[reaching] > k + 1).astype(np.uint64) << np.uint64(7)
        stream[(ends - lengths)[reaching] + k] = numbers[reaching] >> np.uint64(7 * k) & np.uint64(127) | more
    return stream.tobytes()


def unpack_numbers(data: Buffer) -> NDArray[np.uint64]:
    """Read every number that `pack_numbers` wrote.

    Returns
    -------
    ndarray, shape (n,), uint64

    Raises
    ------
    FrameError
        If the last number is cut off, or one is longer than five bytes or than it had to be.
    """
    stream = np.frombuffer(data, np.uint8)
    if not len(stream):
        return np.zeros(0, np.uint64)
    if stream[-1] >= 128:
        message = "numbers: the last one is cut off."
        raise TruncatedFrameError(message, needed=len(stream) + 1, found=len(stream), offset=len(stream))
    lasts = np.flatnonzero(stream < 128)
    starts = np.concatenate([[0], lasts[:-1] + 1])
    lengths = lasts - starts + 1
    wrong = np.flatnonzero((lengths > MAX_NUMBER_BYTES) | ((lengths > 1) & (stream[lasts] == 0)))
    if len(wrong):
        raise FrameError("numbers: one is longer than it may be.", offset=int(starts[wrong[0]]))
    place = np.arange(len(stream)) - np.repeat(starts, lengths)
    septets = (stream & np.uint8(127)).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.add.reduceat(septets, starts)
