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

SHAPES = {"tiny-context": make_context.FLAT, "tiny-context3d": make_context.DEEP, "tiny-stack": make_context.STACK}
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
        self.reaches: int = self.card["context"].get("reaches", 0)
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
        if self.reaches:
            return self._part_of_turns(data, n)
        lengths = []
        for _ in self.groups:
            length, data = varint(data)
            lengths.append(length)
        streams = []
        for length in lengths:
            streams.append(Stream(self.tables, data[:length]))
            data = data[length:]
        streams.append(Stream(self.tables, data))
        latents = self._turn(streams, [0] * n, None)
        for stream in streams:
            stream.finish()
        return latents

    def _part_of_turns(self, data: bytes, n: int) -> Whole:
        stated, data = varint(data)
        stream = Stream(self.tables, data)
        found = np.zeros((n, 2 ** len(self.grid) * self.channels, *self.grid), np.int64)
        for distance, sections in turns_of(n):
            reach, total = 0, None
            if distance:
                reach = min(1 + distance.bit_length() - 1, self.reaches - 1)
                behind = [p + distance if p + distance < n else p - distance for p in sections]
                total = found[[p - distance for p in sections]] + found[behind]
                total = np.clip(total, -(2**23), 2**23)
            found[sections] = self._turn([stream] * (len(self.groups) + 1), [reach] * len(sections), total)
        stream.finish()
        assert stream.n_read == stated
        return found

    def _turn(self, streams: list[Stream], reach: list[int], total: Whole | None) -> Whole:
        hyper = np.zeros((len(reach), self.hyper, *self.grid), np.int64)
        for at in np.ndindex(hyper.shape):
            hyper[at] = streams[0].next(self._table(at[1], 0, reach[at[0]]))
        known = np.clip(4 * hyper, -127, 127)
        out = np.zeros((len(reach), 0, *self.grid), np.int64)
        for number, group in enumerate(self.groups):
            size = len(group) * self.channels
            expected = None if total is None else total[:, out.shape[1] : out.shape[1] + size]
            latents = self._group(number, group, known, reach, expected, streams[number + 1])
            out = np.concatenate([out, latents], 1)
            known = np.concatenate([known, self._as_known(latents)], 1)
        return out

    def _group(
        self, number: int, group: list[list[int]], known: Whole, reach: list[int], total: Whole | None, stream: Stream
    ) -> Whole:
        mean, change, gate = network(self.network, number, self.level, known, reach)
        latents = np.zeros((len(known), len(group), self.channels, *self.grid), np.int64)
        for at in np.ndindex(latents.shape):
            piece, i, c, *cell = at
            padding = self._is_padding(group[i], cell)
            table = 0 if padding else self._table(self.hyper + c, int(change[at]), reach[piece])
            symbol = min(max(stream.next(table), -(2**15)), 2**15)
            b = int(self.tables["shift"][self.level, c])
            sixteenths = int(np.floor(int(mean[at]) * 2.0 ** (b - 1) + 0.5))
            if total is not None:
                sixteenths += (int(gate[at]) * int(total[(piece, i * self.channels + c, *cell)]) + 64) >> 7
                sixteenths = min(max(sixteenths, -(2**22)), 2**22)
            latents[at] = 16 * symbol + sixteenths
        return latents.reshape(len(known), -1, *self.grid)

    def _is_padding(self, place: list[int], cell: list[int]) -> bool:
        axes = zip(place, cell, self.card["stride"], self.extent, strict=True)
        return any((2 * i + p) * s // 2 >= voxels for p, i, s, voxels in axes)

    def _table(self, channel: int, moved: int, reach: int) -> int:
        scales: int = self.card["context"]["scales"]
        e = int(self.tables["scale"][self.level, channel]) + self.change[channel] + moved
        if self.reaches:
            e += int(self.tables["reach"][reach, channel])
        return 1 + scales * int(self.tables["shape"][self.level, channel]) + min(e, scales) - 1 if e > 0 else 0

    def _as_known(self, latents: Whole) -> Whole:
        out = np.zeros_like(latents)
        for at in np.ndindex(latents.shape):
            b = int(self.tables["shift"][self.level, at[1] % self.channels])
            out[at] = min(max(int(np.floor(int(latents[at]) * 2.0**-b + 0.5)), -127), 127)
        return out


class Stream:
    """Symbols one after the other; tables may follow from the symbols before.

    Parameters
    ----------
    tables : mapping
        Members of the model's ``tables.npz``.
    data : bytes
    """

    def __init__(self, tables: dict[str, Any], data: bytes) -> None:
        self.tables = tables
        self.n_read = 0
        self.is_empty, self.is_fields = not data, data[:1] == b"\x10"
        self.bits = int.from_bytes(data[1:], "little")
        self.lanes, self.escapes = 0, b""
        self.states: list[int] = []
        self.words: list[int] = []
        if self.is_empty or self.is_fields:
            return
        self.lanes, n_escapes = 1 << (data[0] & 15), 0
        assert data[0] & 0b10110000 == 0
        has_escapes, data = data[0] & 64, data[1:]
        if has_escapes:
            n_escapes, data = varint(data)
        self.escapes, data = data[len(data) - n_escapes :], data[: len(data) - n_escapes]
        size = 4 if self.lanes > 1 or (len(data) > 4 and len(data) % 2 == 0) else 3 if len(data) > 4 else len(data)
        self.states = [int.from_bytes(data[size * lane : size * (lane + 1)], "little") for lane in range(self.lanes)]
        self.words = np.frombuffer(data[size * self.lanes :], "<u2").tolist()

    def next(self, table: int) -> int:
        """The next symbol; 0, and nothing is read, where the table is 0."""
        if not table:
            return 0
        assert not self.is_empty
        lane = self.n_read % max(self.lanes, 1)
        self.n_read += 1
        low, size = int(self.tables["lows"][table]), int(self.tables["sizes"][table])
        if self.is_fields:
            width = (size - 2).bit_length()
            column = self.bits % (1 << width)
            assert column <= size - 2
            self.bits >>= width
            return low + column
        column, state = self._step(self.states[lane], table)
        if state < 2**16 and (self.lanes > 1 or self.words):
            state = (state << 16) + self.words.pop(0)
        self.states[lane] = state
        if column < size - 1:
            return low + column
        number, self.escapes = varint(self.escapes)
        return low + size - 1 + number // 2 if number % 2 == 0 else low - number // 2 - 1

    def finish(self) -> None:
        """All that was there was read."""
        assert self.is_empty == (not self.n_read)
        assert self.states == ([2**16] * self.lanes if self.lanes > 1 else [0] * self.lanes)
        assert not self.words
        assert not self.escapes
        assert not self.is_fields or self.bits == 0

    def _step(self, x: int, table: int) -> tuple[int, int]:
        precision = int(self.tables["precision"])
        slot, below = x % 2**precision, 0
        for column, share in enumerate(self.tables["freqs"][table].tolist()):
            if slot < below + share:
                return column, share * (x >> precision) + slot - below
            below += share
        raise AssertionError(f"slot {slot} of table {table}")


def turns_of(n: int) -> list[tuple[int, list[int]]]:
    """Distance to references, 0 for none, and sections of each turn of a part of n."""
    found = [(0, [0])]
    distance = 1
    while 2 * distance < n:
        distance *= 2
    while distance and n > 1:
        found.append((distance, list(range(distance, n, 2 * distance))))
        distance //= 2
    return found


def varint(data: bytes) -> tuple[int, bytes]:
    """An unsigned LEB128 integer, and what follows it."""
    value = 0
    for i, byte in enumerate(data):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, data[i + 1 :]
    raise AssertionError("no end")


def network(
    shape: make_context.Shape, number: int, level: int, known: Whole, reach: list[int]
) -> tuple[Whole, Whole, Whole]:
    """What the network of a group says, means, changes and gates, each (n, places, C, \\*grid), from its weights."""
    window = list(itertools.product((-1, 0, 1), repeat=shape.ndim))
    rows, differ = (w.astype(np.int64) for w in make_context.rows(shape, number, window))
    places, grid = len(shape.groups[number]), known.shape[2:]
    mean = np.zeros((len(known), places, shape.channels, *grid), np.int64)
    change, gate = np.zeros_like(mean), np.zeros_like(mean)
    weight, bias = (w.astype(np.int64) for w in make_context.change_rows(shape, number))
    shares = [w.astype(np.int64) for w in make_context.gate_rows(shape, number)] if shape.reaches else []
    for piece, *cell in np.ndindex(len(known), *grid):
        seen = []
        for step in window:
            at = [i + s for i, s in zip(cell, step, strict=True)]
            inside = all(0 <= i < n for i, n in zip(at, grid, strict=True))
            seen.append(known[(piece, slice(None), *at)] if inside else np.zeros(known.shape[1], np.int64))
        around = np.concatenate(seen)
        here = (piece, slice(None), slice(None), *cell)
        sums, differing = rows @ around, weight @ np.clip(differ @ around, 0, 127)
        change[here] = np.clip((differing + bias[level] + 16) >> 5, -63, 63).reshape(places, -1)
        if not shape.reaches:
            mean[here] = np.clip((sums + 16) >> 5, -511, 511).reshape(places, -1)
            continue
        share, gates = (values[reach[piece]] for values in shares)
        mean[here] = np.clip((sums * share + 1024) >> 11, -511, 511).reshape(places, -1)
        gate[here] = np.clip(gates - ((differing + 16) >> 5), 0, 127).reshape(places, -1)
    return mean, change, gate
