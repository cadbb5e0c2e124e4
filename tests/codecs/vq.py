"""Whole frames of the token codec for tests, and the tokens inside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.models import FOLDER
from tests.volumes import as_dtype, fibsem, padded
from zarr_emcodec import options, transform
from zarr_emcodec._types import Buffer, Symbols
from zarr_emcodec.codecs import VQVAESpec, decode_many, encode_many
from zarr_emcodec.codecs.opened import open_frame
from zarr_emcodec.codecs.token_coding import StoredLevel, read_levels
from zarr_emcodec.codecs.token_frames import Setting, n_blocks, stored_tokens, unpack_side
from zarr_emcodec.codecs.tokens import TokenModel, token_model_of
from zarr_emcodec.entropy.coder import Backend
from zarr_emcodec.frame import unpack
from zarr_emcodec.runtime import Options, find_model


def encode(chunk: NDArray[Any], *, roi: NDArray[np.bool_] | None = None, **words: Any) -> bytes:
    """One chunk as `VQVAECodec(**words)` stores it, with the small models."""
    with options(model_path=FOLDER):
        return encode_many(VQVAESpec(**words), [chunk], roi=None if roi is None else [roi])[0]


def decode(data: Buffer, tier: Any = None, **words: Any) -> NDArray[Any]:
    """The chunk of a frame at a tier."""
    with options(model_path=FOLDER):
        return decode_many([data], Options(tier=tier, **words))[0]


def model(name: str = "tiny-vq") -> TokenModel:
    """One of the small models."""
    with options(model_path=FOLDER):
        return token_model_of(find_model(name))


def levels_of(data: Buffer, backend: Backend | None = None) -> list[NDArray[np.int64]]:
    """Token grids of a frame, (n, \\*grid) for each level that it stores; 256 where a token is not stored."""
    settings = Options(entropy_backend=backend)
    with options(model_path=FOLDER):
        opened = open_frame(unpack(data), None, settings)
    tokens = token_model_of(opened.model)
    card = tokens.card
    setting = Setting.from_byte(opened.frame.setting, two_levels=card.refine is not None)
    ndim = len(card.stride)
    extent = [n * c for n, c in zip(
        transform.cells(transform.section_shape(opened.shape, ndim), card.cell), card.cell, strict=True
    )]  # fmt: skip
    n = transform.n_sections(opened.shape, ndim)
    grid = tokens.grid(tuple(extent), "top")
    level = StoredLevel(opened.sections[1], setting.top_coded, np.ones((n, *grid), bool))
    out = read_levels(tokens, "top", [level], None, settings)
    if setting.has_bottom:
        fine = tokens.grid(tuple(extent), "bottom")
        _, blocks = unpack_side(opened.sections[0], setting.storage, (n, *n_blocks(fine)))
        stored = np.ones((n, *fine), bool) if blocks is None else stored_tokens(blocks, fine)
        level = StoredLevel(opened.sections[2], setting.bottom_coded, stored)
        out += read_levels(tokens, "bottom", [level], out, settings)
    return out


def tokens_of(data: Buffer, backend: Backend | None = None) -> Symbols:
    """All tokens of a frame, flat, int32."""
    return np.concatenate([level.reshape(-1) for level in levels_of(data, backend)]).astype(np.int32)


def corner(shape: Sequence[int]) -> NDArray[np.bool_]:
    """A region: the first quarter of each section."""
    out = np.zeros(shape, bool)
    out[..., : shape[-2] // 2, : shape[-1] // 2] = True
    return out


@cache
def frames() -> dict[str, bytes]:
    """One small frame of every form, by name."""
    v = fibsem()
    wide = v[:2, :128, :128]
    hole = v[:2, :48, :64].copy()
    hole[:, 10:40, 20:44] = 0
    full = encode(v[:3, :37, :53], ratio=12.8)
    return {
        "top": encode(v[:2, :64, :72], ratio=64),
        "top 2-D": encode(v[5, :37, :53], ratio=64),
        "top nominal": encode(v[:2, :37, :53], ratio=64, mode="nominal"),
        "prior": encode(v[:2, :37, :53], ratio=64, tier="prior"),
        "full": full,
        "full nominal": encode(v[:2, :37, :53], ratio=12.8, mode="nominal"),
        "full at top": encode(v[:2, :37, :53], ratio=12.8, tier="top"),
        "blocks": encode(wide, ratio=64, roi=corner(wide.shape)),
        "blocks at prior": encode(wide, ratio=24, model="tiny-vq", tier="prior"),
        "none chosen": encode(wide[:1], ratio=64, roi=np.zeros((1, 128, 128), bool)),
        "uint16": encode(as_dtype(v[:2, :40, :40], "uint16"), ratio=12.8),
        "float32": encode(as_dtype(v[:1, :40, :40], "float32").astype(">f4"), ratio=64, window=(-0.5, 0.5)),
        "fortran": encode(np.asfortranarray(v[:2, :33, :40]), ratio=64),
        "5-D": encode(v[:4, :20, :24].reshape(2, 1, 2, 20, 24), ratio=12.8),
        "masked box": encode(padded(v[:2, :40, :48], (4, 64, 64)), ratio=64),
        "masked bitmap": encode(hole, ratio=12.8),
        "one level": encode(v[:2, :37, :53], ratio=256),
        "volume": encode(v[:5, :21, :30], ratio=32, model="tiny-vq3d"),
        "volume nominal": encode(v[:4, :21, :30], ratio=32, model="tiny-vq3d", mode="nominal"),
        "volume 2-D": encode(v[3, :21, :30], ratio=32, model="tiny-vq3d"),
        "two volumes": encode(v[:6, :16, :24].reshape(2, 3, 16, 24), ratio=32, model="tiny-vq3d"),
    }


def with_setting(data: Buffer, byte: int) -> bytes:
    """The frame with another setting, checksums right."""
    from zarr_emcodec.frame import pack

    return pack(replace(unpack(data), setting=byte))
