"""How an array is read: at which tier, and which bytes of a frame that takes.

The process's options, or a tier that one array was opened at, in; byte ranges to fetch and frames to decode out. No
store is touched: `leading_part` says what it needs and is sent the bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import Any

import numpy as np

from zarr_emcodec._types import Shape
from zarr_emcodec.codecs import leading_sections
from zarr_emcodec.codecs.vqvae import VQVAESpec
from zarr_emcodec.errors import TruncatedFrameError
from zarr_emcodec.frame import Frame, Header, Kind, Limits, frame_of, read_header, verify_section
from zarr_emcodec.runtime import Options, current, find_model
from zarr_emcodec.runtime.options import TierName
from zarr_emcodec.transform import cells, n_sections, section_shape

Span = tuple[int, int]
_HEADER_BYTES = 96  # of an indexed frame with a window, and its side information


def options_at(tier: TierName | None) -> Options:
    """The options in force, at a tier of the array's own where it has one."""
    return current() if tier is None else dataclasses.replace(current(), tier=tier)


def first_bytes(spec: VQVAESpec, shape: Shape, options: Options) -> int | None:
    """How much of a chunk's frame to ask for first; None for all of it, where bottom tokens are wanted or not stored.

    Parameters
    ----------
    spec : VQVAESpec
        Of the array.
    shape : tuple of int, voxels
        Of its chunks.
    options : Options
        With the tier asked for, or none.
    """
    if not spec.keep or (options.tier or spec.tier) != "top":
        return None
    tokens = find_model(spec.digest).card.tokens
    assert tokens is not None
    grid = cells(section_shape(shape, len(tokens.stride)), tokens.cell)
    count = n_sections(shape, len(tokens.stride))
    for n, per_cell in zip(grid, tokens.lattice, strict=True):
        count *= n * per_cell
    return _HEADER_BYTES + -(-count * tokens.bits // 8)


def leading_part(first: int, options: Options) -> Generator[Span, bytes | None, Frame | bytes | None]:
    """Fetch as much of a frame as its tier needs.

    Yields byte ranges, one at a time, and is sent the bytes, which may end early where the frame does, or None where
    nothing is stored. Returns what `codecs.decode_many` takes.

    Raises
    ------
    FrameError
        If the bytes are not the front of a frame, or a section's checksum is wrong.
    """
    data = yield (0, first)
    if data is None:
        return None
    whole = len(data) < first
    limits = Limits(max_chunk_bytes=options.max_chunk_bytes)
    while True:
        try:
            header = read_header(data, limits=limits)
            break
        except TruncatedFrameError as error:
            if whole:
                raise
            data, whole = yield from _more(data, max(error.needed, 2 * len(data)))
    if not header.indexed:  # one checksum over all of it
        while not whole:
            data, whole = yield from _more(data, 2 * len(data) + (1 << 16))
        return data
    n = leading_sections(header, options.tier)
    offset, length = header.section_span(n - 1)
    assert length is not None
    if offset + length > len(data) and not whole:
        data, whole = yield from _more(data, offset + length)
    if n == header.n_sections:
        return data
    return _front(header, data, n)


def _more(data: bytes, stop: int) -> Generator[Span, bytes | None, tuple[bytes, bool]]:
    """The bytes up to `stop`, and whether the frame ends before."""
    more = (yield (len(data), stop)) or b""
    return data + more, len(data) + len(more) < stop


def _front(header: Header, data: bytes, n: int) -> Frame:
    """A frame of its first sections, each checked on its own."""
    view = memoryview(data)
    sections = []
    for i in range(n):
        offset, length = header.section_span(i)
        assert length is not None
        part = view[offset : offset + length]
        verify_section(header, i, part)
        sections.append(part)
    assert header.kind in (Kind.LATENT, Kind.MASKED)  # no other is indexed
    return frame_of(header, sections)


def planes_of(selection: Any, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The range of planes of the first axis that a selection needs; None where that is all of them."""
    if not isinstance(selection, tuple) or not selection or len(shape) < 3:
        return None
    first = selection[0]
    if isinstance(first, slice):
        start, stop, step = first.indices(shape[0])
        if step < 1 or stop <= start:
            return None
    else:  # one plane, or the index arrays of oindex and vindex
        index = np.asarray(first)
        if index.dtype.kind not in "iu" or index.size == 0 or index.min() < 0:
            return None
        start, stop = int(index.min()), int(index.max()) + 1
    return None if (start, stop) == (0, shape[0]) else (start, stop)


def shifted(first: Any, start: int) -> Any:
    """The selector of the first axis, counted from plane `start`."""
    return slice(None, None, first.step) if isinstance(first, slice) else first - start
