"""States, words, escapes and fixed fields in, the bytes of a stream out, and back: the layout, and nothing coded.

The reader is told how many symbols there are; it believes nothing else, and checks lengths before it allocates. What
the parts mean for symbols is `coder`'s affair.

Layout of a stream
------------------
Numbers are little-endian. Symbols whose table index is 0 are zero and are not in the stream. The others, in order,
are the *coded* symbols, n of them. With n = 0 the stream is empty: zero bytes. Else::

    offset  size  field
    0       1     head: bits 0-3 log2 of the number of lanes L; bits 4-5 kind: 0 rANS, 1 fixed fields, 2 and 3
                  reserved (a reader rejects them); bit 6 has escapes; bit 7 reserved, zero
    1       E     kind 0 with bit 6 only: length of the escapes in bytes, at least 1, as a number (see below)
    1 + E   ...   kind 0: states, words, escapes.  kind 1 (bits 0-3 and 6 zero): fields

*Fixed fields.* Coded symbol ``s`` of table ``t`` is the unsigned field ``s - lows[t]`` of ``bits[t]`` bits, the
smallest width that holds ``sizes[t] - 2``. Fields follow each other without gaps, least significant bit first (bit b
is bit b % 8 of byte b // 8); padding bits of the last byte are zero. A field above ``sizes[t] - 2`` is an error.

*rANS.* L is a power of two, at most n, and n is at most 2**16 * L. Coded symbol i is for lane i % L. A lane's state x
is a 32-bit number. P is the tables' precision, f and c are a symbol's share and the sum of the shares before it in
its table. A symbol outside its table's range is coded as the table's escape. The decoder takes the coded symbols in
order, for each::

    slot = x mod 2**P          the symbol is the one with c <= slot < c + f
    x = f * (x >> P) + slot - c
    if x < 2**16: x = (x << 16) + next word

Words are 16-bit numbers, stored in the order in which the decoder reads them; lanes share them.

- L > 1: states of the lanes 0 to L - 1, 4 bytes each, all at least 2**16; then the words. In the end every state
  must be 2**16 and no word be left.
- L = 1: the step "if x < 2**16" is done only while words are left. In the end the state must be 0 and no word be left.
  (Each lane begins encoding at its final state; from 0 instead of 2**16 it saves about a byte, and in a stream of
  one lane, that is a small one, this counts. Only the end of the words tells when such a state may stay small, so
  lanes that share words cannot do it.) With b bytes of states and words, the state has b bytes if b <= 4, else 3 if b
  is odd and 4 if it is even; its last byte is not zero.

*Escapes.* One number per escaped symbol s, in order: ``2 * d`` for ``s = high + 1 + d`` above the table's range, or
``2 * d + 1`` for ``s = low - 1 - d`` below it. Numbers are LEB128: seven bits a byte, lowest first, top bit set on
all but the last byte, at most 5 bytes, not longer than needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from zarr_emcodec.entropy import bitpack
from zarr_emcodec.entropy.lanes import START
from zarr_emcodec.errors import FrameError, TruncatedFrameError, UnsupportedFrameError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_STEPS = 1 << 16
"""Most symbols that one lane may carry; keeps a hostile stream of one byte from buying a minute of a reader's time."""

_RANS, _FIELDS = 0, 1
_HAS_ESCAPES = 1 << 6


class RansParts(NamedTuple):
    """A rANS stream of `n_bytes` taken apart: lane states, uint32; words, uint16; the escapes' bytes."""

    states: NDArray[np.uint32]
    words: NDArray[np.uint16]
    escapes: memoryview
    n_bytes: int


def join_rans(states: NDArray[np.uint32], words: NDArray[np.uint16], escapes: bytes) -> bytes:
    """Lay out a rANS stream; the number of states is a power of two."""
    head = len(states).bit_length() - 1 | _RANS << 4 | (_HAS_ESCAPES if escapes else 0)
    length = bitpack.pack_numbers(np.array([len(escapes)], np.uint64)) if escapes else b""
    if len(states) == 1:
        state = int(states[0])
        state_bytes = state.to_bytes((state.bit_length() + 7) // 8, "little")
    else:
        state_bytes = states.astype("<u4").tobytes()
    return b"".join([bytes([head]), length, state_bytes, words.astype("<u2").tobytes(), escapes])


def join_fields(values: NDArray[np.uint32], widths: NDArray[np.uint8]) -> bytes:
    """Lay out a stream of fixed fields."""
    return bytes([_FIELDS << 4]) + bitpack.pack(values, widths)


def fields_bytes(bits: int) -> int:
    """Size of what `join_fields` returns for fields of so many bits together, in bytes."""
    return 1 + -(-bits // 8)


def split(data: memoryview, n_symbols: int) -> RansParts | memoryview:
    """Take a stream apart.

    Parameters
    ----------
    data : memoryview of bytes
        The whole stream.
    n_symbols : int
        Coded symbols, at least 1.

    Returns
    -------
    RansParts or memoryview
        The parts of a rANS stream, or the bytes of fixed fields, for `bitpack.unpack`.

    Raises
    ------
    FrameError
        If the bytes break a rule of the layout that needs no decoding to see.
    """
    if not len(data):
        raise truncated(1, 0, "head")
    head = data[0]
    kind = head >> 4 & 3
    if head >> 7 or kind not in (_RANS, _FIELDS):
        raise UnsupportedFrameError(f"entropy stream: head {head:#04x} is reserved.", offset=0, field="head")
    if kind == _RANS:
        return _split_rans(data, n_symbols)
    if head != _FIELDS << 4:
        raise FrameError(f"entropy stream: head {head:#04x} gives lanes to fixed fields.", offset=0, field="head")
    return data[1:]


def truncated(needed: int, found: int, field: str) -> TruncatedFrameError:
    """Make the error for a stream of `found` bytes that needs `needed` or more."""
    message = f"entropy stream: ended in its {field}, {needed} bytes or more needed, {found} found."
    return TruncatedFrameError(message, needed=needed, found=found, offset=found, field=field)


def _split_rans(data: memoryview, n_symbols: int) -> RansParts:
    n_lanes = 1 << (data[0] & 15)
    if n_lanes > n_symbols or n_symbols > n_lanes * MAX_STEPS:
        message = f"entropy stream: {n_lanes} lanes for {n_symbols} symbols."
        raise FrameError(message, offset=0, field="head")
    start, end = _find_escapes(data) if data[0] & _HAS_ESCAPES else (1, len(data))
    body = data[start:end]
    if n_lanes == 1:
        n_state_bytes = len(body) if len(body) <= 4 else 4 - len(body) % 2
        if n_state_bytes and not body[n_state_bytes - 1]:
            raise FrameError("entropy stream: the state's last byte is zero.", offset=start, field="states")
        states = np.array([int.from_bytes(body[:n_state_bytes], "little")], np.uint32)
    else:
        n_state_bytes = 4 * n_lanes
        if len(body) < n_state_bytes:
            raise truncated(len(data) + n_state_bytes - len(body), len(data), "states")
        states = np.frombuffer(body[:n_state_bytes], "<u4").astype(np.uint32)
        if (states < START).any():
            raise FrameError("entropy stream: a lane's state is below 2**16.", offset=start, field="states")
    if (len(body) - n_state_bytes) % 2:
        raise truncated(len(data) + 1, len(data), "words")
    words = np.frombuffer(body[n_state_bytes:], "<u2").astype(np.uint16)
    return RansParts(states, words, data[end:], len(data))


def _find_escapes(data: memoryview) -> tuple[int, int]:
    """Return where states begin and where words end in a stream with escapes."""
    start = 2
    while start < len(data) and start < 1 + bitpack.MAX_NUMBER_BYTES and data[start - 1] >= 128:
        start += 1
    number = bitpack.unpack_numbers(data[1:start])
    if not len(number):
        raise truncated(start + 1, len(data), "escapes")
    n_bytes = int(number[0])
    if not n_bytes:
        raise FrameError("entropy stream: escapes are announced, but none are there.", offset=1, field="escapes")
    if start + n_bytes > len(data):
        raise truncated(start + n_bytes, len(data), "escapes")
    return start, len(data) - n_bytes
