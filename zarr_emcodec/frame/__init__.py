"""Chunk frames: the bytes of one encoded chunk, from magic to last section.

In: a description of the chunk and opaque sections. Out: checked bytes, and back. FORMAT.md beside this file is the
byte layout; the room knows no model, no array and no entropy coder, and believes nothing that it reads.
"""

from __future__ import annotations

from zarr_emcodec.frame.fields import Kind, Tier
from zarr_emcodec.frame.frame import Frame, FrameInfo, frame_of, inspect, pack, replace_tier, unpack
from zarr_emcodec.frame.header import Header, read_header, verify_section
from zarr_emcodec.frame.limits import DEFAULT, Limits

__all__ = [
    "DEFAULT",
    "Frame",
    "FrameInfo",
    "Header",
    "Kind",
    "Limits",
    "Tier",
    "frame_of",
    "inspect",
    "pack",
    "read_header",
    "replace_tier",
    "unpack",
    "verify_section",
]
