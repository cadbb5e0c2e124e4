"""Decoding frames that somebody tampered with: how it ended, and how to tamper with right checksums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from tests.codecs.frames import frames
from zarr_emcodec.codecs import decode_many
from zarr_emcodec.errors import FrameError, ModelError
from zarr_emcodec.frame import Kind, pack, unpack
from zarr_emcodec.frame.fields import MODELLED
from zarr_emcodec.runtime import Options


def attempt(data: bytes, options: Options | None = None) -> str:
    """Decode; say how it ended. What is not ours to raise goes through and fails the test."""
    try:
        (chunk,) = decode_many([data], options)
    except (FrameError, ModelError) as error:
        return type(error).__name__ if str(error) else "an error without a word"
    frame = unpack(data)
    assert (chunk.shape, chunk.dtype) == (frame.shape, frame.dtype)
    return "decoded"


def attempt_all(mutants: Iterator[bytes]) -> Counter[str]:
    ends: Counter[str] = Counter()
    for data in mutants:
        ends[attempt(data)] += 1
    return ends


def resigned(data: bytes, position: int, section: bytes) -> bytes:
    """The frame with one section replaced and every checksum right."""
    frame = unpack(data)
    sections = list(frame.sections)
    sections[position] = section
    return pack(replace(frame, sections=tuple(sections)))


def sections_of(data: bytes) -> list[tuple[int, bytes]]:
    """Sections with their places; of a constant frame none, since its value cannot lie."""
    frame = unpack(data)
    return [] if frame.kind is Kind.CONSTANT else [(i, bytes(s)) for i, s in enumerate(frame.sections)]


def modelled_frames() -> list[bytes]:
    return [data for data in frames().values() if unpack(data).kind in MODELLED]
