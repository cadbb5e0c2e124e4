"""Whole frames under a learned entropy model for tests, the symbols inside them, and frames put together anew.

In: tissue and the small models. Out: frames as the package writes them, and, for what encoders do not do yet or on
larger chunks only (side information, escapes, many parts), frames from its public parts.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.models import CONTEXT_FOLDER
from tests.volumes import as_dtype, fibsem, padded
from zarr_emcodec import options
from zarr_emcodec._types import Buffer, Symbols
from zarr_emcodec.codecs import VAESpec, context_decode, decode_many, encode_many
from zarr_emcodec.codecs.context import ContextModel, Sections, context_model_of
from zarr_emcodec.codecs.context_parts import join_part, split_part
from zarr_emcodec.codecs.latents import group_starts
from zarr_emcodec.codecs.opened import open_frame
from zarr_emcodec.entropy import coder
from zarr_emcodec.frame import Kind, pack, unpack
from zarr_emcodec.runtime import Options, find_model

FLAT, DEEP = "tiny-context", "tiny-context3d"
RATIO = {FLAT: 24, DEEP: 16}

Edit = Callable[[list[Symbols]], None]
"""Changes symbols in place: hyper-latents (n, Z, \\*grid), then those of each group (n, places, C, \\*grid)."""


def encode(chunk: NDArray[Any], model: str = FLAT, **words: Any) -> bytes:
    """One chunk as `VAECodec(model=model, **words)` stores it."""
    if not words.keys() & {"ratio", "min_psnr", "max_error"}:
        words["ratio"] = RATIO[model]
    with options(model_path=CONTEXT_FOLDER):
        return encode_many(VAESpec(model=model, **words), [chunk])[0]


def decode(data: Buffer, planes: tuple[int, int] | None = None, **words: Any) -> NDArray[Any]:
    """The chunk of a frame, or some planes of it."""
    with options(model_path=CONTEXT_FOLDER):
        return decode_many([data], Options(**words), planes=[planes])[0]


def model(name: str = FLAT) -> ContextModel:
    """One of the small models."""
    with options(model_path=CONTEXT_FOLDER):
        return context_model_of(find_model(name))


class Walked:
    """A frame gone through: what its latents are made of.

    Attributes
    ----------
    symbols : list of ndarray
        As in `Edit`.
    latents : ndarray, shape (n, P * C, \\*grid), float32
        In steps.
    """

    def __init__(self, data: Buffer, **words: Any) -> None:
        settings = Options(**words)
        with options(model_path=CONTEXT_FOLDER):
            self.item = context_decode._open(open_frame(unpack(data), None, settings))
        parts = self.item.parts
        split = [split_part(part, len(self.item.model.card.groups) + 1) for part, _ in parts]
        bounds = np.cumsum([0, *(count for _, count in parts)])
        self.symbols: list[Symbols] = []

        def read(number: int, table: NDArray[np.uint8]) -> Symbols:
            work = [
                (streams[number], table[start:stop].reshape(-1))
                for streams, start, stop in zip(split, bounds[:-1], bounds[1:], strict=True)
            ]
            decoded = coder.decode_many(work, self.item.model.tables, backend=settings.entropy_backend)
            self.symbols.append(np.concatenate(decoded).reshape(table.shape).astype(np.int32))
            return self.symbols[-1]

        sections = self.sections(settings)
        hyper = read(0, sections.hyper_table)
        self.latents = sections.walk(hyper, lambda number, mean, table: read(number + 1, table))

    def sections(self, settings: Options, change: NDArray[np.int16] | None = None) -> Sections:
        """Before the first group, perhaps with other side information."""
        item = self.item
        change = item.change if change is None else change
        levels = np.full(item.n, item.opened.frame.setting, np.int64)
        return Sections(item.model, levels, np.tile(change, (item.n, 1)), item.grid, item.extent, settings)


def symbols_of(data: Buffer, backend: coder.Backend | None = None) -> Symbols:
    """All symbols of a frame, flat, int32."""
    return np.concatenate([part.reshape(-1) for part in Walked(data, entropy_backend=backend).symbols])


def recoded(
    data: bytes, *, change: NDArray[np.int16] | None = None, edit: Edit | None = None, n_parts: int | None = None
) -> bytes:
    """A frame's symbols coded anew, with other side information, edits, or in so many parts, as FORMAT.md allows."""
    walked = Walked(data)
    item, frame = walked.item, unpack(data)
    if edit:
        edit(walked.symbols)
    change = item.change if change is None else change
    coded: list[tuple[Symbols, NDArray[np.uint8]]] = []

    def keep(number: int, table: NDArray[np.uint8]) -> Symbols:
        coded.append((np.where(table > 0, walked.symbols[number], 0).astype(np.int32), table))
        return coded[-1][0]

    sections = walked.sections(Options(), change)
    hyper = keep(0, sections.hyper_table)
    sections.walk(hyper, lambda number, mean, table: keep(number + 1, table))
    starts = group_starts(item.n, n_parts or len(item.parts))
    parts = []
    for start, stop in zip(starts, [*starts[1:], item.n], strict=True):
        work = [(symbols[start:stop].reshape(-1), table[start:stop].reshape(-1)) for symbols, table in coded]
        parts.append(join_part(coder.encode_many(work, item.model.tables)))
    masks = frame.sections[:1] if frame.kind is Kind.MASKED else ()
    side = side_bytes(change) if change.any() else b""
    return pack(replace(frame, sections=(*masks, side, *parts)))


def side_bytes(change: NDArray[Any]) -> bytes:
    """Side information: one signed byte for each channel, as raw deflate data."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    return squeeze.compress(change.astype(np.int8).tobytes()) + squeeze.flush()


def some_change(name: str) -> NDArray[np.int16]:
    """Side information that widens, narrows, silences and revives channels."""
    card = model(name).card
    n = card.hyper + card.channels
    return np.resize(np.array([1, -1, 2, 0, -30], np.int16), n)


def outliers(symbols: list[Symbols]) -> None:
    """Symbols far outside every table, at either end, also beyond what counts."""
    symbols[0].reshape(-1)[0] = 40
    for part in symbols[1:]:
        nonzero = np.flatnonzero(part)
        part.reshape(-1)[nonzero[:3]] = 900, -33_000, 2**31 - 1


def holed(volume: NDArray[Any]) -> NDArray[Any]:
    """Tissue with a hole of zeros that touches no face."""
    out = volume.copy()
    out[..., 9:-9, 20:-20] = 0
    return out


@cache
def frames() -> dict[str, bytes]:
    """One small frame of every form, by name."""
    v = fibsem()
    flat, deep = encode(v[:3, :37, :53]), encode(v[:5, :21, :30], DEEP)
    many = encode(v[:6, :21, :30].reshape(3, 2, 21, 30), DEEP)
    return {
        "sections": flat,
        "2-D": encode(v[5, :37, :53]),
        "coarse": encode(v[:2, :48, :64], ratio=100),
        "side": recoded(flat, change=some_change(FLAT)),
        "escapes": recoded(flat, edit=outliers),
        "parts": recoded(flat, n_parts=3),
        "uint16": encode(as_dtype(v[:2, :40, :40], "uint16")),
        "float32": encode(as_dtype(v[:1, :40, :40], "float32").astype(">f4"), window=(-0.5, 0.5)),
        "fortran": encode(np.asfortranarray(v[:2, :33, :40])),
        "5-D": encode(v[:4, :20, :24].reshape(2, 1, 2, 20, 24)),
        "masked box": encode(padded(v[:2, :40, :48], (4, 64, 64))),
        "masked bitmap": encode(holed(v[:2, :48, :64])),
        "volume": deep,
        "volume 2-D": encode(v[3, :21, :30], DEEP),
        "volume side": recoded(deep, change=some_change(DEEP)),
        "volume escapes": recoded(deep, edit=outliers),
        "volumes": many,
        "volume parts": recoded(many, n_parts=2),
        "volume masked": encode(holed(v[:4, :32, :64]), DEEP),
    }
