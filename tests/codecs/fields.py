"""Frames of neural fields for tests, made once: small networks, little fitted. Making one needs torch."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from tests.volumes import Array, as_dtype, fibsem, padded
from zarr_emcodec._types import Buffer, Symbols
from zarr_emcodec.codecs import INRSpec, encode_many
from zarr_emcodec.codecs.mask import unpack_mask
from zarr_emcodec.codecs.siren_frames import PRIOR, coordinate_axes, weight_coder_of
from zarr_emcodec.entropy import coder
from zarr_emcodec.fitting import Architecture
from zarr_emcodec.frame import Kind, pack, unpack
from zarr_emcodec.frame.wire import Cursor, varint
from zarr_emcodec.runtime import find_model


def spec(**words: Any) -> INRSpec:
    """A spec whose fits take a moment."""
    return INRSpec(**{"ratio": 32, "effort": 0} | words)


def encode(chunk: Array, **words: Any) -> bytes:
    return encode_many(spec(**words), [chunk])[0]


def tissue(n: int = 3, y: int = 40, x: int = 45) -> Array:
    return fibsem()[4 : 4 + n, 20 : 20 + y, 30 : 30 + x].copy()


def holed() -> Array:
    """Tissue with a hole of zeros that touches no face."""
    out = tissue(4, 60, 64)
    out[:, 9:39, 21:50] = 0
    return out


def digest() -> bytes:
    """Of the shipped model, as headers state it."""
    return find_model("inr-siren@1").card.digest[:8]


def symbols_of(data: Buffer, backend: coder.Backend | None = None) -> Symbols:
    """Symbols of all tensors of a frame, flat."""
    frame = unpack(data)
    layers = frame.setting & ~PRIOR
    shape, sections = frame.shape, list(frame.sections)
    if frame.kind is Kind.MASKED:
        shape = unpack_mask(sections.pop(0), shape, frame.dtype.newbyteorder("=")).shape
    cursor = Cursor(memoryview(sections[0]))
    cursor.take(2, "side")
    width = cursor.take_varint("side")
    cursor.take(2 * layers, "side")
    tables = np.frombuffer(cursor.take(2 * layers, "side"), np.uint8)
    counts = Architecture(len(coordinate_axes(shape)), width, layers).counts
    assert frame.model is not None
    index = np.repeat(tables, counts)
    return coder.decode(sections[1], index, weight_coder_of(find_model(frame.model)).tables, backend=backend)


def with_width(data: bytes, width: int) -> bytes:
    """The frame with another width stated, and nothing else changed."""
    frame = unpack(data)
    at = len(frame.sections) - 2
    cursor = Cursor(memoryview(frame.sections[at]))
    contrast = bytes(cursor.take(2, "side"))
    cursor.take_varint("side")
    side = contrast + varint(width) + bytes(cursor.view[cursor.offset :])
    sections = (*frame.sections[:at], side, frame.sections[at + 1])
    return pack(replace(frame, sections=sections))


@cache
def chunks() -> dict[str, tuple[Array, dict[str, Any]]]:
    """What is encoded, and how."""
    return {
        "volume": (tissue(), {}),
        "section": (tissue(1, 70, 80)[0], {"bits": 8}),
        "one plane": (tissue(1, 70, 80), {"layers": 3}),
        "deep": (tissue(4, 44, 40), {"layers": 7}),
        "5d": (tissue(4, 48, 46).reshape(2, 1, 2, 48, 46), {}),
        "u16 window": (as_dtype(tissue(), "uint16"), {"window": (7000, 14650)}),
        "f4 big-endian": (as_dtype(tissue(), "float32").astype(">f4"), {"ratio": 64}),
        "fortran": (np.asfortranarray(tissue()), {}),
        "hybrid": (tissue(3, 60, 64), {"prior": "vae-2d-s32"}),
        "hybrid u16 masked": (padded(as_dtype(tissue(3, 60, 64), "uint16"), (4, 80, 80)), {"prior": "vae-2d-s32"}),
        "masked box": (padded(tissue(), (4, 80, 80)), {}),
        "masked bitmap": (holed(), {}),
    }


@cache
def frames() -> dict[str, bytes]:
    """Every kind of frame that a field can be."""
    return {name: encode(chunk, **words) for name, (chunk, words) in chunks().items()}
