"""Frames of fitted latents for tests: no steps of the fit, so that making one needs no torch."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from tests.volumes import Array, as_dtype, fibsem, padded
from zarr_emcodec import transform
from zarr_emcodec._types import Buffer, Symbols
from zarr_emcodec.codecs import INRSpec, encode_many
from zarr_emcodec.codecs.latents import group_starts
from zarr_emcodec.codecs.latents_coding import decode_part
from zarr_emcodec.codecs.latents_context import latents_model_of
from zarr_emcodec.codecs.mask import unpack_mask
from zarr_emcodec.entropy import coder
from zarr_emcodec.frame import Kind, unpack
from zarr_emcodec.runtime import current, find_model


def spec(**words: Any) -> INRSpec:
    """A spec without steps."""
    default: dict[str, Any] = {"backbone": "latents", "ratio": 32, "effort": 0}
    return INRSpec(**default | words)


def encode(chunk: Array, **words: Any) -> bytes:
    """One frame."""
    return encode_many(spec(**words), [chunk])[0]


def holed() -> Array:
    """Tissue with a hole of zeros that touches no face."""
    out = fibsem()[:4].copy()
    out[:, 40:90, 21:60] = 0
    return out


def symbols_of(data: Buffer, backend: coder.Backend | None = None) -> Symbols:
    """Symbols of a frame, (n, C, \\*grid)."""
    frame = unpack(data)
    assert frame.model is not None
    shape, sections = frame.shape, list(frame.sections)
    if frame.kind is Kind.MASKED:
        shape = unpack_mask(sections.pop(0), shape, frame.dtype.newbyteorder("=")).shape
    ndim = bytes(sections[0])[0]
    model = latents_model_of(find_model(frame.model), ndim)
    grid = transform.cells(transform.section_shape(shape, ndim), model.card.stride)
    starts = [*group_starts(n := transform.n_sections(shape, ndim), len(sections) - 1), n]
    options = replace(current(), entropy_backend=backend)
    parts = [
        decode_part(model, frame.setting, part, stop - start, grid, options)
        for part, (start, stop) in zip(sections[1:], pairwise(starts), strict=True)
    ]
    return np.concatenate(parts)


@cache
def chunks() -> dict[str, tuple[Array, dict[str, Any]]]:
    """What is encoded, and how."""
    v = fibsem()
    return {
        "volume": (v, {}),
        "section": (v[3], {"ratio": 20}),
        "ragged section": (v[5, :97, :115], {"ratio": 24}),
        "thin": (v[:3, :100, :90], {}),
        "ragged volume": (v[:21, :77, :120], {"ratio": 48}),
        "5d": (v[:8].reshape(2, 1, 4, 128, 128), {}),
        "u16 window": (as_dtype(v, "uint16"), {"window": (7000, 14650)}),
        "f4 big-endian": (as_dtype(v[:6], "float32").astype(">f4"), {"ratio": 90}),
        "fortran": (np.asfortranarray(v[:16]), {}),
        "masked box": (padded(v[:8], (12, 160, 150)), {}),
        "masked bitmap": (holed(), {}),
    }


@cache
def frames() -> dict[str, bytes]:
    """Every kind of frame that latents can be."""
    return {name: encode(chunk, **words) for name, (chunk, words) in chunks().items()}
