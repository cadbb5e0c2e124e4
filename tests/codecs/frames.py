"""Whole frames for tests of the chain: one of every kind and feature, small, and the symbols inside them.

In: tissue and the models on the search path. Out: frames as the package writes them, and, for features that an encoder
uses only on larger chunks, frames put together from its public parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from tests.codecs import context, fields, fitted, vq
from tests.volumes import as_dtype, fibsem, noise, padded
from zarr_emcodec import transform
from zarr_emcodec._types import Buffer, Symbols
from zarr_emcodec.codecs import VAESpec, encode_many, latents
from zarr_emcodec.codecs.latents import group_starts, join_streams, plan_streams
from zarr_emcodec.codecs.mask import unpack_mask
from zarr_emcodec.codecs.vae import DEFAULT_RATIO
from zarr_emcodec.codecs.vae_decode import ladder_of
from zarr_emcodec.entropy import coder
from zarr_emcodec.frame import Frame, Kind, pack, unpack
from zarr_emcodec.runtime import Model, find_model

Backend = coder.Backend


def encode(chunk: NDArray[np.generic], **words: object) -> bytes:
    """One chunk as `VAECodec(**words)` stores it, with a model of fixed tables unless one is named."""
    ratio = words.get("ratio", 0 if words.keys() & {"min_psnr", "max_error"} else DEFAULT_RATIO)
    words = {"model": name_for(ratio), **words}  # type: ignore[arg-type]
    return encode_many(VAESpec(**words), [chunk])[0]  # type: ignore[arg-type]


def name_for(ratio: float) -> str:
    """The shipped model of fixed tables that is made for a ratio."""
    return "vae-2d-s32" if ratio >= 32 else "vae-2d-s16"


def model_for(ratio: float = 16) -> Model:
    """The same, opened."""
    return find_model(name_for(ratio))


def symbols_of(data: Buffer, backend: Backend | None = None) -> Symbols:
    """Symbols of a latent or masked frame, shape (n, channels, h, w), int32; of all other models flat."""
    frame = unpack(data)
    assert frame.model is not None
    model = find_model(frame.model)
    if model.card.tokens is not None:
        return vq.tokens_of(data, backend)
    if model.card.inr is not None:
        return fitted.symbols_of(data, backend) if model.card.inr.grids else fields.symbols_of(data, backend)
    if model.card.context is not None:
        return context.symbols_of(data, backend)
    shape, sections = frame.shape, list(frame.sections)
    if frame.kind is Kind.MASKED:
        shape = unpack_mask(sections.pop(0), shape, frame.dtype.newbyteorder("=")).shape
    n = transform.n_sections(shape)
    grid = transform.cells(transform.section_shape(shape), (model.card.stride[0], model.card.stride[1]))
    plan = plan_streams(ladder_of(model), frame.setting, sections, n, 0, n)
    work = [(part, plan.stream_index(last - first, grid[0] * grid[1])) for part, first, last in plan.parts]
    decoded = coder.decode_many(work, ladder_of(model).tables, backend=backend)
    return join_streams(plan, decoded, grid, 0, n).astype(np.int32)


def with_streams(data: Buffer, index: NDArray[np.uint8] | None = None, *, n_streams: int = 1) -> bytes:
    """A latent frame's symbols coded anew, with other tables and in so many streams, as FORMAT.md allows."""
    frame = unpack(data)
    assert frame.kind is Kind.LATENT
    assert frame.model is not None
    ladder = ladder_of(find_model(frame.model))
    symbols = symbols_of(data)
    own = ladder.table_index(frame.sections[0], frame.setting)
    index = own if index is None else index
    items = cut(symbols, index, n_streams)
    side = ladder.pack_side(index, frame.setting)
    return pack(replace(frame, sections=(side, *coder.encode_many(items, ladder.tables))))


def cut(symbols: Symbols, index: NDArray[np.uint8], n_streams: int) -> list[tuple[Symbols, NDArray[np.uint8]]]:
    """Symbols of shape (n, channels, h, w) as the lists that streams hold, each with its tables."""
    n, _, h, w = symbols.shape
    active = np.flatnonzero(index)
    starts = group_starts(n, n_streams)
    items = []
    for start, stop in zip(starts, [*starts[1:], n], strict=True):
        part = np.ascontiguousarray(symbols[start:stop, active].transpose(1, 0, 2, 3)).reshape(-1)
        items.append((part, np.repeat(index[active], (stop - start) * h * w)))
    return items


def with_other_tables(data: Buffer) -> bytes:
    """A latent frame whose side information is not empty: every channel in use takes the next wider table."""
    frame = unpack(data)
    assert frame.model is not None
    ladder = ladder_of(find_model(frame.model))
    own = ladder.table_index(frame.sections[0], frame.setting)
    wider = np.where((own > 0) & (own < ladder.tables.n_tables - 1), own + 1, own).astype(np.uint8)
    return with_streams(data, wider)


def with_escapes(data: Buffer, values: Sequence[int]) -> bytes:
    """A latent frame in which the first symbols are far outside every table."""
    frame = unpack(data)
    assert frame.model is not None
    ladder = ladder_of(find_model(frame.model))
    index = ladder.table_index(frame.sections[0], frame.setting)
    symbols = symbols_of(data)
    symbols[0, np.flatnonzero(index)[: len(values)], 0, 0] = values
    (item,) = cut(symbols, index, 1)
    return pack(replace(frame, sections=(frame.sections[0], coder.encode(*item, ladder.tables))))


def in_many_streams(chunk: NDArray[np.generic], **words: object) -> bytes:
    """The frame of a chunk from an encoder that likes its streams short; their length is no part of the format."""
    with mock.patch.object(latents, "_STREAM_BYTES", 48):
        return encode(chunk, **words)


@cache
def frames() -> dict[str, bytes]:
    """One small frame of every kind and feature."""
    v = fibsem()
    latent = encode(v[:2, :40, :48], ratio=16)
    hole = v[:2, :48, :64].copy()
    hole[:, 10:40, 20:44] = 0
    raw = pack(Frame(Kind.LOSSLESS, (2, 5, 9), np.dtype("<i2"), sections=(noise((180,)).tobytes(),)))
    ramp = np.tile(np.arange(32, dtype=np.uint8), (4, 16, 1))
    return {
        "constant": encode(v[:2, :8, :8] * 0 + 7),
        "constant 0-D": encode(np.array(2.5, ">f4")),
        "lossless raw": raw,
        "lossless zlib": encode(as_dtype(noise((8, 8), 3), "uint16").repeat(8, 0), max_error=0),
        "lossless differences": encode(v[:2, :24, :32], max_error=0),
        "lossless ramp": encode(ramp, max_error=0),
        "lossless shuffled": encode(np.sin(np.arange(512, dtype=np.float32) / 99).reshape(2, 16, 16), max_error=0),
        "latent": latent,
        "latent 2-D": encode(v[5, :37, :53], ratio=24),
        "latent coarse": encode(v[:2, :64, :80], ratio=100),
        "latent nominal": encode(v[:2, :40, :48], ratio=24, mode="nominal"),
        "latent side": with_other_tables(latent),
        "latent escapes": with_escapes(latent, [5000, -70000, 2**31 - 1]),
        "latent streams": in_many_streams(v[:6, :40, :48], ratio=16),
        "latent uint16": encode(as_dtype(v[:2, :40, :40], "uint16"), ratio=32),
        "latent float32": encode(as_dtype(v[:1, :40, :40], "float32").astype(">f4"), ratio=64, window=(-0.5, 0.5)),
        "latent fortran": encode(np.asfortranarray(v[:2, :33, :40]), ratio=16),
        "latent 5-D": encode(v[:4, :20, :24].reshape(2, 1, 2, 20, 24), ratio=8),
        "masked box": encode(padded(v[:2, :40, :48], (4, 64, 64)), ratio=16),
        "masked bitmap": encode(hole, ratio=16),
        "masked streams": in_many_streams(padded(v[:6, :40, :48], (8, 64, 64)), ratio=16),
    }
