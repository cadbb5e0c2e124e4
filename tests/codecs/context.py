"""Whole frames under a learned entropy model for tests, the symbols inside them, and frames put together anew.

In: tissue and the small models. Out: frames as the package writes them, and, for what encoders do rarely or on larger
chunks only (side information, escapes, many parts), frames from its public parts.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.models import CONTEXT_FOLDER
from tests.volumes import as_dtype, fibsem, padded
from zarr_emcodec import options, transform
from zarr_emcodec._types import Buffer, Symbols
from zarr_emcodec.codecs import VAESpec, context_coding, context_decode, decode_many, encode_many, inference
from zarr_emcodec.codecs.context import ContextModel, References, Sections, context_model_of
from zarr_emcodec.codecs.context_coding import ContextLatents
from zarr_emcodec.codecs.context_order import Turn
from zarr_emcodec.codecs.context_parts import open_parts, write_parts
from zarr_emcodec.codecs.context_walk import Walk, rows_of
from zarr_emcodec.codecs.latents import group_starts
from zarr_emcodec.codecs.opened import open_frame
from zarr_emcodec.entropy import coder
from zarr_emcodec.frame import Kind, pack, unpack
from zarr_emcodec.runtime import Options, find_model

FLAT, DEEP, STACK = "tiny-context", "tiny-context3d", "tiny-stack"
RATIO = {FLAT: 24, DEEP: 16, STACK: 32}

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


def latents_of(chunk: NDArray[Any], name: str) -> ContextLatents:
    """What an encoder knows of a chunk before it codes anything."""
    found = model(name)
    card = found.model.card
    sections = transform.sections_of(chunk, card.ndim).astype(np.float32)
    grey = transform.pad_to_stride(sections, card.stride)
    return ContextLatents(inference.analyse(found.model, grey, Options()), found, sections.shape[1:])


def bytes_at(item: ContextLatents, level: int) -> int:
    """Of all parts at a level."""
    ((side, parts),) = context_coding.encode_sections([item], [level], Options())
    return len(side) + sum(map(len, parts))


class Walked:
    """A frame gone through: what its latents are made of.

    Attributes
    ----------
    symbols : list of ndarray
        As in `Edit`.
    latents : ndarray, shape (n, P * C, \\*grid), float32
        In steps.
    turns : list of Turn
        As they were gone through.
    """

    def __init__(self, data: Buffer, **words: Any) -> None:
        settings = Options(**words)
        with options(model_path=CONTEXT_FOLDER):
            self.item = context_decode._open(open_frame(unpack(data), None, settings))
        item, counts = self.item, [count for _, count in self.item.parts]
        self.symbols: list[Symbols] = []
        self.turns: list[Turn] = []
        reader = open_parts([part for part, _ in item.parts], counts, item.model, item.grid, settings)

        def code(turn: Turn, sections: Sections, references: References) -> NDArray[np.float32]:
            self.turns.append(turn)
            rows = rows_of(turn, counts)

            def take(number: int, table: NDArray[np.uint8]) -> Symbols:
                found = reader.take(table, rows)
                self._keep(number, turn, found)
                return found

            hyper = take(0, sections.hyper_table)
            return sections.walk(hyper, lambda number, mean, table: take(number + 1, table))

        self.latents = walk_of(item, item.change, counts, settings).run(code)
        reader.finish()

    def _keep(self, number: int, turn: Turn, found: Symbols) -> None:
        if number == len(self.symbols):
            self.symbols.append(np.zeros((self.item.n, *found.shape[1:]), np.int32))
        self.symbols[number][turn.sections] = found


def walk_of(item: context_decode._Item, change: NDArray[np.int16], counts: Sequence[int], settings: Options) -> Walk:
    """A frame's sections in so many parts, perhaps with other side information."""
    levels = np.full(item.n, item.opened.frame.setting, np.int64)
    return Walk(item.model, levels, np.tile(change, (item.n, 1)), counts, item.grid, item.extent, settings)


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
    starts = group_starts(item.n, n_parts or len(item.parts))
    counts = [stop - start for start, stop in zip(starts, [*starts[1:], item.n], strict=True)]
    pieces: list[list[tuple[Symbols, NDArray[np.uint8]]]] = [[] for _ in counts]

    def code(turn: Turn, sections: Sections, references: References) -> NDArray[np.float32]:
        def keep(number: int, table: NDArray[np.uint8]) -> Symbols:
            symbols = np.where(table > 0, walked.symbols[number][turn.sections], 0).astype(np.int32)
            for mine, run in zip(pieces, rows_of(turn, counts), strict=True):
                mine.append((symbols[run].reshape(-1), table[run].reshape(-1)))
            return symbols

        hyper = keep(0, sections.hyper_table)
        return sections.walk(hyper, lambda number, mean, table: keep(number + 1, table))

    walk_of(item, change, counts, Options()).run(code)
    parts = write_parts(pieces, item.model, Options())
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
    stack = encode(v[:5, :21, :40], STACK)
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
        "stack": stack,
        "stack 2-D": encode(v[5, :37, :40], STACK),
        "stack of two": encode(v[:2, :20, :40], STACK),
        "stack side": recoded(stack, change=some_change(STACK)),
        "stack escapes": recoded(stack, edit=outliers),
        "stack parts": recoded(stack, n_parts=2),
        "stack coarse": encode(v[:6, :32, :48], STACK, ratio=200),
        "stack float32": encode(as_dtype(v[:3, :20, :33], "float32"), STACK, window=(-0.5, 0.5)),
        "stack 4-D": encode(v[:4, :20, :24].reshape(2, 2, 20, 24), STACK),
        "stack masked": encode(holed(v[:3, :48, :64]), STACK),
    }
