"""Frames whole: ``pack`` and ``unpack``, a change of tier, and a look inside.

In: a ``Frame`` (description and opaque sections), or the bytes of one. Out: the other of the two, every checksum
written or proved. What the sections mean is the business of whoever packed them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from zarr_emcodec.errors import ChecksumError, SpecError, TruncatedFrameError
from zarr_emcodec.frame.description import Description, write_header
from zarr_emcodec.frame.fields import BITS, MODELLED, PLAIN_SECTIONS, Kind, Tier, fixed_size
from zarr_emcodec.frame.header import Header, check_crc, check_header_crc, parse_header, refuse
from zarr_emcodec.frame.limits import DEFAULT, Limits
from zarr_emcodec.frame.wire import as_view, crc32c

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr_emcodec._types import Buffer, Shape

_CRC_BYTES = fixed_size("crc")
_KIND_OFFSET = fixed_size("magic") + fixed_size("version")


@dataclass(frozen=True)
class Frame(Description):
    """One encoded chunk: what the header says, and the sections.

    Parameters
    ----------
    kind, shape, dtype, order, tier, window, model, setting
        As in ``Description``.
    sections : tuple of buffers
        constant: the value, itemsize bytes, little-endian. lossless: the compressed bytes. latent: side information,
        then one stream or more. masked: the mask, then as latent.
    """

    sections: tuple[Buffer, ...] = ()


@dataclass(frozen=True)
class FrameInfo:
    """What can be told of a frame without decoding it: plain data, ready for JSON.

    Sizes are in bytes. ``overhead_bytes`` is all that belongs to no section; ``crc_ok`` is False if any checksum is
    wrong.
    """

    kind: str
    shape: Shape
    dtype: str
    order: str
    tier: str
    window: tuple[float, float] | None
    model: str | None
    setting: int
    indexed: bool
    section_bytes: tuple[int, ...]
    overhead_bytes: int
    total_bytes: int
    decoded_bytes: int
    crc_ok: bool


def pack(frame: Frame, *, indexed: bool | None = None, limits: Limits = DEFAULT) -> bytes:
    """Write a frame; the same frame always gives the same bytes.

    Parameters
    ----------
    frame : Frame
        Description and sections.
    indexed : bool or None
        Whether every section gets a length and a CRC of its own (5 bytes or more each), so that ranges of the frame
        can be read. None: only if there are more sections than the un-indexed form carries.
    limits : Limits
        A chunk that readers with these limits would refuse is not written.

    Returns
    -------
    bytes
        As FORMAT.md says.

    Raises
    ------
    SpecError
        If the description or the sections do not fit the format.

    Examples
    --------
    >>> import numpy as np
    >>> pack(Frame(Kind.CONSTANT, (16, 512, 512), np.dtype("u1"), sections=(b"\\x7f",))).hex(" ")
    '8e 5a 01 01 61 10 80 04 80 04 77 de c5 54 7f'
    """
    sections = [as_view(section) for section in frame.sections]
    if indexed is None:
        indexed = frame.kind in MODELLED and len(sections) > PLAIN_SECTIONS[frame.kind]
    crcs = [crc32c([section]) for section in sections] if indexed else None
    header = write_header(frame, [len(section) for section in sections], crcs, limits=limits)
    if frame.kind == Kind.CONSTANT and len(sections[0]) != frame.dtype.itemsize:
        raise SpecError(
            f"frame sections: a constant {frame.dtype} is {frame.dtype.itemsize} bytes, not {len(sections[0])}.",
            name="sections",
            value=frame.sections,
        )
    crc = crc32c([header] if indexed else [header, *sections])
    return b"".join([header, crc.to_bytes(_CRC_BYTES, "little"), *sections])


def unpack(data: Buffer, *, limits: Limits = DEFAULT) -> Frame:
    """Read a frame, believing nothing: structure, claims and every checksum are verified.

    Parameters
    ----------
    data : buffer of bytes
        One whole frame and nothing after it.
    limits : Limits
        What the reader is willing to believe.

    Returns
    -------
    Frame
        Its sections are read-only views of ``data``, not copies.

    Raises
    ------
    TruncatedFrameError
        If the bytes end early.
    UnsupportedFrameError
        If the frame is of a newer format version.
    ChecksumError
        If a CRC32C differs.
    FrameError
        If the bytes are no frame, claim more than the limits, or go on after the frame.

    Examples
    --------
    >>> frame = unpack(bytes.fromhex("8e5a010161108004800477dec5547f"))
    >>> frame.kind.name, frame.shape, bytes(frame.sections[0])
    ('CONSTANT', (16, 512, 512), b'\\x7f')
    """
    view = as_view(data)
    header = parse_header(view, limits)
    if header.indexed:
        check_header_crc(header, view)  # before the lengths that it covers are used
    sections = _split(view, header)
    _check_crcs(view, header, sections)
    return frame_of(header, sections)


def frame_of(header: Header, sections: Sequence[memoryview]) -> Frame:
    """The frame of a header and as many of its sections as are at hand, from the first; nothing is checked."""
    return Frame(
        kind=header.kind,
        shape=header.shape,
        dtype=header.dtype,
        order=header.order,
        tier=header.tier,
        window=header.window,
        model=header.model,
        setting=header.setting,
        sections=tuple(sections),
    )


def replace_tier(data: Buffer, tier: Tier, *, limits: Limits = DEFAULT) -> bytes:
    """Rewrite a frame so that it decodes at another tier; only the tier's bits and the frame's CRC change.

    Constant and lossless frames have no tier and come back as they are.

    Parameters
    ----------
    data : buffer of bytes
        One whole frame. It is verified first: a damaged frame never gets a fresh CRC.
    tier : Tier
        The tier that readers will decode from now on.

    Raises
    ------
    SpecError
        If ``tier`` is none.
    FrameError
        As ``unpack``.
    """
    if tier not in BITS["tier"].allowed:
        raise SpecError(f"tier {tier!r}: not one of {', '.join(t.name for t in Tier)}.", name="tier", value=tier)
    frame = unpack(data, limits=limits)
    out = bytearray(as_view(data))
    if frame.kind not in MODELLED:
        return bytes(out)
    out[_KIND_OFFSET] ^= BITS["tier"].put(frame.tier) ^ BITS["tier"].put(tier)
    header = parse_header(memoryview(out), limits)
    stop = header.header_bytes
    covered = [out[: stop - _CRC_BYTES]] if header.indexed else [out[: stop - _CRC_BYTES], out[stop:]]
    out[stop - _CRC_BYTES : stop] = crc32c(covered).to_bytes(_CRC_BYTES, "little")
    return bytes(out)


def inspect(data: Buffer, *, limits: Limits = DEFAULT) -> FrameInfo:
    """Tell what a frame holds, even if its checksums are wrong.

    Raises
    ------
    FrameError
        If the structure cannot be read; a wrong checksum alone is reported as ``crc_ok=False``.

    Examples
    --------
    >>> info = inspect(bytes.fromhex("8e5a010161108004800477dec5547f"))
    >>> info.kind, info.overhead_bytes, info.total_bytes, info.decoded_bytes, info.crc_ok
    ('constant', 14, 15, 4194304, True)
    """
    view = as_view(data)
    header = parse_header(view, limits)
    sections = _split(view, header)
    try:
        if header.indexed:
            check_header_crc(header, view)
        _check_crcs(view, header, sections)
        crc_ok = True
    except ChecksumError:
        crc_ok = False
    section_bytes = tuple(len(section) for section in sections)
    return FrameInfo(
        kind=header.kind.name.lower(),
        shape=header.shape,
        dtype=header.dtype.str,
        order=header.order,
        tier=header.tier.name.lower(),
        window=header.window,
        model=None if header.model is None else header.model.hex(),
        setting=header.setting,
        indexed=header.indexed,
        section_bytes=section_bytes,
        overhead_bytes=len(view) - sum(section_bytes),
        total_bytes=len(view),
        decoded_bytes=header.decoded_bytes,
        crc_ok=crc_ok,
    )


def _split(view: memoryview, header: Header) -> list[memoryview]:
    """Cut the payload into its sections; they must fill it exactly."""
    known = header.header_bytes + sum(length or 0 for length in header.lengths)
    # a constant's value is as long as its dtype says, though no length is stored
    total = known + header.dtype.itemsize if header.kind == Kind.CONSTANT else known
    if len(view) < total:
        raise TruncatedFrameError(
            f"frame byte {header.header_bytes}: payload ended early ({total} bytes needed in all, {len(view)} found). "
            "Read the chunk again, or restore it from its source.",
            needed=total,
            found=len(view),
            offset=header.header_bytes,
            field="payload",
        )
    if len(view) > total and (header.indexed or header.kind == Kind.CONSTANT):
        refuse("payload", total, f"the frame ends here, but {len(view) - total} bytes follow")
    sections = []
    for i in range(header.n_sections):
        start, length = header.section_span(i)
        sections.append(view[start:] if length is None else view[start : start + length])
    return sections


def _check_crcs(view: memoryview, header: Header, sections: list[memoryview]) -> None:
    """Verify all that the header's own CRC does not cover."""
    if header.indexed:
        for i, (section, crc) in enumerate(zip(sections, header.crcs, strict=True)):
            check_crc(crc, [section], what=f"section {i}", offset=header.section_span(i)[0])
    else:
        covered = header.header_bytes - _CRC_BYTES
        check_crc(header.crc, [view[:covered], view[header.header_bytes :]], what="frame", offset=covered)
