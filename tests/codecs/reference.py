"""Latents of a frame under a learned entropy model as FORMAT.md tells them: plain Python, one number at a time.

Nothing of the codec takes part but the frame's reader; the networks are those of `make_context`, computed from their
weights. Slow, and meant to be read beside the document.
"""

from __future__ import annotations

import itertools
import json
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.models import CONTEXT_FOLDER, make_context
from zarr_emcodec.codecs.mask import unpack_mask
from zarr_emcodec.frame import Kind, unpack

SHAPES = {"tiny-context": make_context.FLAT, "tiny-context3d": make_context.DEEP}
Whole = NDArray[np.int64]


class Reference:
    """The sections of one frame on their way to latents.

    Parameters
    ----------
    data : bytes
        Latent or masked, of one of the small models.
    name : str
        Of that model.
    """

    def __init__(self, data: bytes, name: str) -> None:
        frame = unpack(data)
        sections, shape = [bytes(s) for s in frame.sections], frame.shape
        if frame.kind is Kind.MASKED:
            shape = unpack_mask(sections.pop(0), shape, frame.dtype).shape
        self.card: dict[str, Any] = json.loads((CONTEXT_FOLDER / name / "card.json").read_text())["decoder"]
        with np.load(CONTEXT_FOLDER / name / "tables.npz") as members:
            self.tables = {key: members[key] for key in members}
        self.network = SHAPES[name]
        self.level = frame.setting
        d = self.card["ndim"]
        shape = (1,) * (d - len(shape)) + tuple(shape)
        self.extent = shape[-d:]
        self.n = int(np.prod(shape[:-d]))
        self.grid = tuple(-(-voxels // s) for voxels, s in zip(self.extent, self.card["stride"], strict=True))
        self.hyper: int = self.card["context"]["hyper"]
        self.groups: list[list[list[int]]] = self.card["context"]["groups"]
        self.channels = (self.card["channels"] - self.hyper) // 2**d
        self.change = [0] * (self.hyper + self.channels)
        if sections[0]:
            self.change = np.frombuffer(zlib.decompress(sections[0], -15), np.int8).tolist()
        self.parts = sections[1:]

    def sixteenths(self) -> Whole:
        """All latents in 16ths of a step, shape (n, P * C, \\*grid)."""
        each = -(-self.n // len(self.parts))
        found = [self._part(part, min(each, self.n - i * each)) for i, part in enumerate(self.parts)]
        return np.concatenate(found)

    def _part(self, data: bytes, n: int) -> Whole:
        lengths = []
        for _ in self.groups:
            length, data = varint(data)
            lengths.append(length)
        streams = []
        for length in lengths:
            streams.append(data[:length])
            data = data[length:]
        streams.append(data)
        hyper = np.zeros((n, self.hyper, *self.grid), np.int64)
        tables = [self._table(z, 0) for _, z, *_ in np.ndindex(hyper.shape)]
        self._fill(hyper, tables, streams[0])
        known = np.clip(4 * hyper, -127, 127)
        out = np.zeros((n, 0, *self.grid), np.int64)
        for number, group in enumerate(self.groups):
            latents = self._group(number, group, known, streams[number + 1])
            out = np.concatenate([out, latents], 1)
            known = np.concatenate([known, self._as_known(latents)], 1)
        return out

    def _group(self, number: int, group: list[list[int]], known: Whole, stream: bytes) -> Whole:
        mean, change = network(self.network, number, self.level, known)
        symbols = np.zeros((len(known), len(group), self.channels, *self.grid), np.int64)
        tables = [
            0 if self._is_padding(group[i], cell) else self._table(self.hyper + c, int(change[(piece, i, c, *cell)]))
            for piece, i, c, *cell in np.ndindex(symbols.shape)
        ]
        self._fill(symbols, tables, stream)
        latents = np.zeros_like(symbols)
        for at in np.ndindex(symbols.shape):
            b = int(self.tables["shift"][self.level, at[2]])
            sixteenths = int(np.floor(int(mean[at]) * 2.0 ** (b - 1) + 0.5))
            latents[at] = 16 * min(max(int(symbols[at]), -(2**15)), 2**15) + sixteenths
        return latents.reshape(len(known), -1, *self.grid)

    def _is_padding(self, place: list[int], cell: list[int]) -> bool:
        axes = zip(place, cell, self.card["stride"], self.extent, strict=True)
        return any((2 * i + p) * s // 2 >= voxels for p, i, s, voxels in axes)

    def _table(self, channel: int, moved: int) -> int:
        scales: int = self.card["context"]["scales"]
        e = int(self.tables["scale"][self.level, channel]) + self.change[channel] + moved
        return 1 + scales * int(self.tables["shape"][self.level, channel]) + min(e, scales) - 1 if e > 0 else 0

    def _as_known(self, latents: Whole) -> Whole:
        out = np.zeros_like(latents)
        for at in np.ndindex(latents.shape):
            b = int(self.tables["shift"][self.level, at[1] % self.channels])
            out[at] = min(max(int(np.floor(int(latents[at]) * 2.0**-b + 0.5)), -127), 127)
        return out

    def _fill(self, values: Whole, tables: list[int], stream: bytes) -> None:
        flat = values.reshape(-1)
        places = [i for i, table in enumerate(tables) if table]
        for i, symbol in zip(places, self._read([tables[i] for i in places], stream), strict=True):
            flat[i] = symbol

    def _read(self, tables: list[int], data: bytes) -> list[int]:
        if not tables:
            assert data == b""
            return []
        if data[0] == 16:
            return self._read_fields(tables, int.from_bytes(data[1:], "little"))
        lanes, n_escapes = 1 << (data[0] & 15), 0
        assert data[0] & 0b10110000 == 0
        has_escapes, data = data[0] & 64, data[1:]
        if has_escapes:
            n_escapes, data = varint(data)
        escapes, data = data[len(data) - n_escapes :], data[: len(data) - n_escapes]
        size = 4 if lanes > 1 or (len(data) > 4 and len(data) % 2 == 0) else 3 if len(data) > 4 else len(data)
        states = [int.from_bytes(data[size * lane : size * (lane + 1)], "little") for lane in range(lanes)]
        words = list(np.frombuffer(data[size * lanes :], "<u2").tolist())
        out = []
        for i, table in enumerate(tables):
            column, states[i % lanes] = self._step(states[i % lanes], table)
            if states[i % lanes] < 2**16 and (lanes > 1 or words):
                states[i % lanes] = (states[i % lanes] << 16) + words.pop(0)
            symbol = int(self.tables["lows"][table]) + column
            if column == self.tables["sizes"][table] - 1:
                number, escapes = varint(escapes)
                low, high = int(self.tables["lows"][table]), symbol - 1
                symbol = high + number // 2 + 1 if number % 2 == 0 else low - number // 2 - 1
            out.append(symbol)
        assert states == ([2**16] * lanes if lanes > 1 else [0])
        assert not words
        assert not escapes
        return out

    def _read_fields(self, tables: list[int], bits: int) -> list[int]:
        out = []
        for table in tables:
            largest = int(self.tables["sizes"][table]) - 2
            width = largest.bit_length()
            assert bits % 2**width <= largest
            out.append(int(self.tables["lows"][table]) + bits % 2**width)
            bits >>= width
        assert bits == 0
        return out

    def _step(self, x: int, table: int) -> tuple[int, int]:
        precision = int(self.tables["precision"])
        slot, below = x % 2**precision, 0
        for column, share in enumerate(self.tables["freqs"][table].tolist()):
            if slot < below + share:
                return column, share * (x >> precision) + slot - below
            below += share
        raise AssertionError(f"slot {slot} of table {table}")


def varint(data: bytes) -> tuple[int, bytes]:
    """An unsigned LEB128 integer, and what follows it."""
    value = 0
    for i, byte in enumerate(data):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, data[i + 1 :]
    raise AssertionError("no end")


def network(shape: make_context.Shape, number: int, level: int, known: Whole) -> tuple[Whole, Whole]:
    """What the network of a group says, means and changes, each (n, places, C, \\*grid), from its weights."""
    window = list(itertools.product((-1, 0, 1), repeat=shape.ndim))
    rows, differ = (w.astype(np.int64) for w in make_context.rows(shape, number, window))
    places, grid = len(shape.groups[number]), known.shape[2:]
    mean = np.zeros((len(known), places, shape.channels, *grid), np.int64)
    change = np.zeros_like(mean)
    weight, bias = make_context.change_rows(shape, number)
    for piece, *cell in np.ndindex(len(known), *grid):
        seen = []
        for step in window:
            at = [i + s for i, s in zip(cell, step, strict=True)]
            inside = all(0 <= i < n for i, n in zip(at, grid, strict=True))
            seen.append(known[(piece, slice(None), *at)] if inside else np.zeros(known.shape[1], np.int64))
        around = np.concatenate(seen)
        here = (piece, slice(None), slice(None), *cell)
        mean[here] = np.clip((rows @ around + 16) >> 5, -511, 511).reshape(places, -1)
        sums = weight.astype(np.int64) @ np.clip(differ @ around, 0, 127) + bias[level].astype(np.int64)
        change[here] = np.clip((sums + 16) >> 5, -63, 63).reshape(places, -1)
    return mean, change
