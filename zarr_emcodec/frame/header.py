"""The front of a frame: bytes to a checked ``Header``.

In: the first bytes of a frame. Out: what kind of chunk it is and where each section lies, so that a reader of ranges
fetches only what it decodes. Section contents are never looked at here. The other direction is ``description.py``.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from zarr_emcodec.errors import ChecksumError, FrameError, SpecError, TruncatedFrameError, UnsupportedFrameError
from zarr_emcodec.frame.description import SHAPE_OFFSET, Description
from zarr_emcodec.frame.fields import BITS, DTYPES, FIELDS, MAGIC, MODELLED, PLAIN_SECTIONS, VERSION, Kind, Tier
from zarr_emcodec.frame.fields import fixed_size as size_of
from zarr_emcodec.frame.limits import DEFAULT, Limits
from zarr_emcodec.frame.wire import Cursor, as_view, crc32c

if TYPE_CHECKING:
    from zarr_emcodec._types import Buffer, Shape

_DAMAGED = "The frame is damaged, or is no frame of this package: restore the chunk from its source."
_LEAST_ENTRY_BYTES = 1 + size_of("crc")  # of an indexed table: the shortest varint and a CRC


@dataclass(frozen=True, kw_only=True)
class Header(Description):
    """A parsed header: a description, and where the sections are.

    Parameters
    ----------
    indexed : bool
        Whether sections can be fetched and verified one by one.
    lengths : tuple of (int or None), bytes
        Length of each section; the last is None without INDEXED, as it reaches to the end of the frame.
    crcs : tuple of int
        CRC32C of each section; empty without INDEXED.
    crc : int
        The frame's own CRC32C, as stored.
    header_bytes : int, bytes
        Length of the header, its CRC included: the offset of section 0.
    """

    indexed: bool
    lengths: tuple[int | None, ...]
    crcs: tuple[int, ...]
    crc: int
    header_bytes: int

    @cached_property
    def _starts(self) -> list[int]:
        return list(accumulate((length or 0 for length in self.lengths), initial=self.header_bytes))

    @property
    def n_sections(self) -> int:
        """How many sections the frame has."""
        return len(self.lengths)

    def section_span(self, index: int) -> tuple[int, int | None]:
        """Offset and length of a section in the frame, in bytes.

        The length is None for the last section of a frame without INDEXED: it reaches to the frame's end.

        Raises
        ------
        IndexError
            If ``index`` is not 0 to ``n_sections - 1``.
        """
        if not 0 <= index < self.n_sections:
            raise IndexError(f"section {index} of a frame that has {self.n_sections}")
        return self._starts[index], self.lengths[index]


def read_header(prefix: Buffer, *, limits: Limits = DEFAULT) -> Header:
    """Parse the header of a frame from its first bytes.

    Parameters
    ----------
    prefix : buffer of bytes
        The front of a frame, or all of it.
    limits : Limits
        What the reader is willing to believe.

    Returns
    -------
    Header
        Verified by its CRC if the frame is INDEXED; otherwise the CRC covers the whole frame, and only ``unpack`` can
        verify it.

    Raises
    ------
    TruncatedFrameError
        If the prefix is too short. ``needed`` is more than was given and never more than the header has: fetch that
        much and call again, a few times at worst.
    UnsupportedFrameError
        If the frame is of a newer format version.
    ChecksumError
        If the CRC of an INDEXED frame's header is wrong.
    FrameError
        If the bytes are no frame, or claim more than the limits.

    Examples
    --------
    >>> from zarr_emcodec.frame import Frame, pack
    >>> frame = Frame(Kind.LATENT, (64, 64), np.dtype("u1"), model=bytes(8), sections=(b"", b"abc", b"de"))
    >>> header = read_header(pack(frame)[:40])
    >>> [header.section_span(i) for i in range(3)]
    [(36, 0), (36, 3), (39, 2)]
    """
    view = as_view(prefix)
    header = parse_header(view, limits)
    if header.indexed:
        check_header_crc(header, view)
    return header


def verify_section(header: Header, index: int, data: Buffer) -> None:
    """Prove that bytes fetched by range are the section that the header names.

    Raises
    ------
    SpecError
        If the frame is not INDEXED: its sections have no CRCs of their own.
    TruncatedFrameError, FrameError
        If ``data`` is shorter or longer than the section.
    ChecksumError
        If its CRC differs.
    IndexError
        If there is no such section.
    """
    if not header.indexed:
        raise SpecError(
            "this frame is not INDEXED, so its sections cannot be verified one by one. Fetch it whole and unpack() it.",
            name="header",
            value=header,
        )
    offset, length = header.section_span(index)
    view = as_view(data)
    assert length is not None
    if len(view) < length:
        raise TruncatedFrameError(
            f"frame byte {offset}: section {index} ended early ({length} bytes needed, {len(view)} found). "
            "Read the chunk again, or restore it from its source.",
            needed=length,
            found=len(view),
            offset=offset,
            field="payload",
        )
    if len(view) > length:
        refuse("payload", offset, f"section {index} has {length} bytes, {len(view)} were given")
    check_crc(header.crcs[index], [view], what=f"section {index}", offset=offset)


def check_crc(expected: int, parts: list[Buffer], *, what: str, offset: int) -> None:
    """Raise ChecksumError unless the parts have the CRC32C that is stored for them."""
    found = crc32c(parts)
    if found != expected:
        raise ChecksumError(
            f"frame byte {offset}: CRC32C of the {what} is {found:08x}, stored is {expected:08x}. "
            "The frame is damaged: restore the chunk from its source.",
            expected=expected,
            found=found,
            offset=offset,
            field="crc",
        )


def check_header_crc(header: Header, view: memoryview) -> None:
    """Raise ChecksumError unless the header of an INDEXED frame has the CRC32C that it states."""
    covered = header.header_bytes - size_of("crc")
    check_crc(header.crc, [view[:covered]], what="header", offset=covered)


def refuse(field: str, offset: int, what: str) -> NoReturn:
    """Raise FrameError for bytes that no writer makes."""
    raise FrameError(f"frame byte {offset}: {what}. {_DAMAGED}", offset=offset, field=field)


def parse_header(view: memoryview, limits: Limits) -> Header:
    """Parse and check everything up to the payload, except the CRC."""
    cursor = Cursor(view)
    # what every frame has at least: the fixed front and the CRC
    cursor.least = SHAPE_OFFSET + size_of("crc")
    _parse_signature(cursor)
    bits = _parse_bits(cursor)
    kind, ndim, windowed = Kind(bits["kind"]), bits["ndim"], bool(bits["windowed"])
    dtype = np.dtype((">" if bits["big_endian"] else "<") + DTYPES[bits["dtype"]])
    present = [name for name, field in FIELDS.items() if field.is_present(kind, windowed=windowed)]
    cursor.least += ndim + sum(size_of(name) for name in ("window", "model", "setting") if name in present)
    shape = _parse_shape(cursor, ndim, dtype.itemsize, limits)
    window = _parse_window(cursor) if windowed else None
    model = bytes(cursor.take(size_of("model"), "model")) if "model" in present else None
    setting = cursor.take(size_of("setting"), "setting")[0] if "setting" in present else 0
    lengths, crcs = _parse_table(cursor, kind, indexed=bool(bits["indexed"]), limits=limits)
    crc = int.from_bytes(cursor.take(size_of("crc"), "crc"), "little")
    return Header(
        kind=kind,
        shape=shape,
        dtype=dtype,
        order="F" if bits["fortran"] else "C",
        tier=Tier(bits["tier"]),
        window=window,
        model=model,
        setting=setting,
        indexed=bool(bits["indexed"]),
        lengths=lengths,
        crcs=crcs,
        crc=crc,
        header_bytes=cursor.offset,
    )


def _parse_signature(cursor: Cursor) -> None:
    # of a prefix that ends inside the magic, what is there is judged first: bytes that can never be a frame are not
    # worth a second fetch
    front = bytes(cursor.view[: len(MAGIC)])
    if front != MAGIC[: len(front)]:
        refuse("magic", 0, f"starts with {front.hex(' ')}, a frame starts with {MAGIC.hex(' ')}")
    cursor.take(len(MAGIC), "magic")
    offset = cursor.offset
    version = cursor.take(size_of("version"), "version")[0]
    if version > VERSION:
        raise UnsupportedFrameError(
            f"frame byte {offset}: format {version}, this reader knows {VERSION}. Upgrade zarr_emcodec to read it.",
            version=version,
            offset=offset,
            field="version",
        )
    if version != VERSION:
        refuse("version", offset, f"format {version} was never written")


def _parse_bits(cursor: Cursor) -> dict[str, int]:
    """Read the bytes ``kind`` and ``array``; every bit field's value, checked, by name."""
    values: dict[str, int] = {}
    for field in ("kind", "array"):
        offset = cursor.offset
        byte = cursor.take(size_of(field), field)[0]
        for bits in (bits for bits in BITS.values() if bits.field == field):
            value = values[bits.name] = bits.get(byte)
            if value not in bits.allowed:
                known = ", ".join(str(int(v)) for v in bits.allowed)
                refuse(bits.name, offset, f"{bits.name} {value} is reserved (known: {known})")
        if field == "kind" and values["kind"] not in MODELLED:
            for name in ("tier", "indexed", "windowed"):
                if values[name]:
                    refuse(name, offset, f"{name} is {values[name]}, which a {Kind(values['kind']).name} frame lacks")
    if values["big_endian"] and DTYPES[values["dtype"]] == "u1":
        refuse("big_endian", offset, "uint8 with a byte order")
    return values


def _parse_shape(cursor: Cursor, ndim: int, itemsize: int, limits: Limits) -> Shape:
    start = cursor.offset
    shape = tuple(cursor.take_varint("shape") for _ in range(ndim))
    if 0 in shape:
        refuse("shape", start, f"shape {shape} has an empty axis")
    limits.check_chunk(shape, itemsize, offset=start)
    return shape


def _parse_window(cursor: Cursor) -> tuple[float, float]:
    start = cursor.offset
    offset, scale = struct.unpack("<2f", cursor.take(size_of("window"), "window"))
    if not (math.isfinite(offset) and math.isfinite(scale) and scale > 0):
        refuse("window", start, f"window ({offset}, {scale}) is not finite with a scale above 0")
    return offset, scale


def _parse_table(
    cursor: Cursor, kind: Kind, *, indexed: bool, limits: Limits
) -> tuple[tuple[int | None, ...], tuple[int, ...]]:
    least = PLAIN_SECTIONS[kind]
    if not indexed:
        return (*(cursor.take_varint("table") for _ in range(least - 1)), None), ()
    start = cursor.offset
    count = cursor.take_varint("table")
    if count < least:
        refuse("table", start, f"table of {count} sections, a {kind.name} frame has at least {least}")
    limits.check_sections(count, offset=start)
    lengths, crcs = [], []
    for left in range(count, 0, -1):
        cursor.least = cursor.offset + left * _LEAST_ENTRY_BYTES + size_of("crc")
        lengths.append(cursor.take_varint("table"))
        crcs.append(int.from_bytes(cursor.take(size_of("crc"), "table"), "little"))
    return tuple(lengths), tuple(crcs)
