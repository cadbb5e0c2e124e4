"""Latents under a learned entropy model to the sections of a frame, and back: symbols, streams, side information.

A float array of latents or byte strings in, byte strings or latents in steps out.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec._types import Buffer, Shape, Symbols
from zarr_emcodec.codecs import context_fast, context_steps
from zarr_emcodec.codecs.base import Mode
from zarr_emcodec.codecs.context import ContextModel, Sections
from zarr_emcodec.codecs.latents import group_starts
from zarr_emcodec.codecs.quantise import Ladder
from zarr_emcodec.entropy import coder
from zarr_emcodec.entropy.coder import Backend
from zarr_emcodec.errors import FrameError
from zarr_emcodec.frame.wire import Cursor, varint
from zarr_emcodec.runtime import Options

_STREAM_BYTES = 8192  # below it the index entry and the coder's states of four streams cost more than 0.3 %
_SAMPLE = 128  # cells that a rate search begins with
_SHARE, _FEWEST = 4, 3  # of so many sections one shows what all cost, if it is not alone
_WIDE = 8  # cells along both last axes of volumes whose middle shows what the whole costs
_PROBE_BITS = 0.5  # of a latent: where a chunk is compared with the training volumes
_STREAM_OVERHEAD = 5  # bytes: head, lane states, length


class ContextLatents:
    """The encoder's view of one chunk: its latents, and a guess of what they cost at each level.

    Sizes are guessed from a sample under fixed tables; what a part of the chunk costs under the networks corrects the
    guess, and then the real sizes of levels that are tried.

    Parameters
    ----------
    latents : ndarray, shape (n, Z + P * C, \\*grid), float32
        Hyper-latents and latents of each of the chunk's n sections or volumes, places in coding order.
    model : ContextModel
        Of the model that made them.
    extent : tuple of int
        Voxels of a section or volume along each axis.
    """

    def __init__(self, latents: NDArray[np.float32], model: ContextModel, extent: Shape) -> None:
        self.latents = latents
        self.model = model
        self.extent = extent
        self.ladder: Ladder = model.static
        card = model.card
        flat = latents.reshape(*latents.shape[:2], -1)[:, card.hyper :]
        n, _, cells = flat.shape
        chosen = np.unique(np.linspace(0, n * cells - 1, min(_SAMPLE, n * cells)).astype(np.int64))
        picked = flat[chosen // cells, :, chosen % cells].reshape(-1, card.channels)
        self._sample = np.ascontiguousarray(picked.T)
        self._n_places = n * places_of(model, extent)
        self._guess = self._first_shift()
        self._shifts: dict[int, float] = {}
        self._measured = latents

    def _first_shift(self) -> float:
        """Levels that this chunk lies beside the training volumes, by what fixed tables say of the sample."""
        counted = self.model.curves[1]
        level = round(counted.level(_PROBE_BITS * self.model.card.channels))
        level = min(max(level, 0), self.ladder.n_levels - 1)
        for _ in range(2):  # the second time at the level where this chunk has that rate
            bits = self.ladder.default_bits(self.ladder.quantise(self._sample, level), level) / self._sample.shape[1]
            shift = counted.level(bits) - level
            level = min(max(round(level - shift), 0), self.ladder.n_levels - 1)
        return shift

    def estimated_bytes(self, level: int, mode: Mode) -> float:
        """Size of side information and streams at a level."""
        shift = self._guess
        if self._shifts:  # between levels that were tried it changes evenly, as this chunk's curve has its own slope
            tried = sorted(self._shifts)
            shift = float(np.interp(level, tried, [self._shifts[i] for i in tried]))
        size = self.model.curves[0].bits(level + shift) * self._n_places / 8
        streams = len(self.model.card.groups) + 1
        return float(size + _STREAM_OVERHEAD * streams * self.n_streams(size))

    def refine_estimate(self, level: int) -> None:
        """Nothing more is known before a level is tried."""

    def part(self) -> tuple[NDArray[np.float32], Shape] | None:
        """Latents of about a quarter of the chunk with the extent they stand for; None of what is small already."""
        n, grid = len(self.latents), self.latents.shape[2:]
        if n >= 2 * _FEWEST:
            few = max(n // _SHARE, _FEWEST)
            return self.latents[(2 * np.arange(few) + 1) * n // (2 * few)], self.extent
        halves = [slice(size // 4, size // 4 + size // 2) for size in grid[-2:]]
        if min(grid[-2:]) < _WIDE:
            return None
        latents = self.latents[..., halves[0], halves[1]]
        cells = zip(latents.shape[2:], self.model.model.card.stride, strict=True)
        return np.ascontiguousarray(latents), tuple(size * stride for size, stride in cells)

    def correct(self, level: int, bits: float) -> None:
        """Make the guess agree with bits of a place at a level."""
        self._guess = self._shift_of(level, bits)

    def _shift_of(self, level: int, bits: float) -> float:
        return self.model.curves[0].level(bits) - level

    def calibrate(self, level: int, size_bytes: float, mode: Mode) -> None:
        """Make the estimate agree with a real size of side information and streams."""
        streams = len(self.model.card.groups) + 1
        latents = max(size_bytes - _STREAM_OVERHEAD * streams * self.n_streams(size_bytes), 1.0)
        if self._measured is not self.latents:  # sizes of other latents say nothing of these
            self._shifts, self._measured = {}, self.latents
        self._shifts[level] = self._shift_of(level, 8 * latents / max(self._n_places, 1))

    def estimated_squared_error(self, level: int) -> float:
        """Mean squared quantisation error per cell, grey levels squared (the transform is near orthonormal)."""
        symbols = self.ladder.quantise(self._sample, level)
        error = self._sample - symbols * self.ladder.gain[level][:, None]
        places = len(self.model.card.places)
        return float(np.square(error, out=error).sum() / self._sample.shape[1] * places)

    def n_streams(self, size_bytes: float) -> int:
        """How many parts the chunk's sections are coded in."""
        n = len(self.latents)
        per_section = max(size_bytes / n, 1e-6)
        return len(group_starts(n, -(-n // max(1, round(_STREAM_BYTES / per_section)))))


def places_of(model: ContextModel, extent: Shape) -> int:
    """Places that are stored of a section or volume."""
    return sum(math.prod(model.coded(place, extent)) for place in model.card.places)


def correct_by_parts(items: Sequence[ContextLatents], levels: Sequence[int], options: Options) -> None:
    """Correct the estimate of each item, near its level, by what the networks make of a part of it.

    A part costs a quarter of a try, and mostly saves one.
    """
    groups: dict[tuple[Shape, Shape], list[tuple[ContextLatents, int, NDArray[np.float32]]]] = {}
    for item, level in zip(items, levels, strict=True):
        if found := item.part():
            groups.setdefault((found[0].shape[2:], found[1]), []).append((item, level, found[0]))
    for (_, extent), group in groups.items():
        model = group[0][0].model
        coded = _symbols(model, [part for _, _, part in group], [level for _, level, _ in group], extent, options)
        at = 0
        for item, level, part in group:
            run = slice(at, at + len(part))
            flat = [(symbols[run].reshape(-1), table[run].reshape(-1)) for symbols, table in coded]
            bits = coder.cost_bits(flat, model.tables, backend=options.entropy_backend)
            item.correct(level, bits / (len(part) * places_of(model, extent)))
            at += len(part)


def encode_sections(
    items: Sequence[ContextLatents], levels: Sequence[int], options: Options
) -> list[tuple[bytes, list[bytes]]]:
    """Side information and parts of each item at its level; items share a model and a grid."""
    latents = [item.latents for item in items]
    coded = _symbols(items[0].model, latents, levels, items[0].extent, options)
    return _streams(items, levels, coded, options)


def _symbols(
    model: ContextModel,
    latents: Sequence[NDArray[np.float32]],
    levels: Sequence[int],
    extent: Shape,
    options: Options,
) -> list[tuple[Symbols, NDArray[np.uint8]]]:
    """Symbols and tables of hyper-latents and of each group, all latents one after the other."""
    card = model.card
    joined = latents[0] if len(latents) == 1 else np.concatenate(latents)
    each = np.repeat(np.asarray(levels, np.int64), [len(mine) for mine in latents])
    grid = joined.shape[2:]
    change = np.zeros((len(each), card.hyper + card.channels), np.int16)
    sections = Sections(model, each, change, grid, extent, options)
    hyper = sections.round_hyper(joined[:, : card.hyper])
    coded: list[tuple[Symbols, NDArray[np.uint8]]] = [(hyper, sections.hyper_table)]
    places = joined[:, card.hyper :].reshape(len(each), -1, card.channels, *grid)
    per_step = _over_grid(np.reciprocal(model.gain[each]), grid)[:, None]
    bounds = np.cumsum([0, *map(len, card.groups)])

    def decide(number: int, mean: NDArray[np.float32], table: NDArray[np.uint8]) -> Symbols:
        scaled = places[:, bounds[number] : bounds[number + 1]] * per_step
        symbols = quantise_in_context(scaled, mean, table, model, options.entropy_backend)
        coded.append((symbols, table))
        return symbols

    sections.walk(hyper, decide)
    return coded


def _over_grid(values: NDArray[np.float32], grid: Shape) -> NDArray[np.float32]:
    return values.reshape(*values.shape, *[1] * len(grid))


def quantise_in_context(
    scaled: NDArray[np.float32],
    mean: NDArray[np.float32],
    table: NDArray[np.uint8],
    model: ContextModel,
    backend: Backend | None = None,
) -> Symbols:
    """Rate-distortion optimal symbols of latents in steps; `scaled` is used up, `mean` is in 16ths."""
    quantise = context_fast.quantise if coder.is_fast(backend) else context_steps.quantise
    return quantise(scaled.astype(np.float32, copy=False), mean, table, *model.costs.thresholds)


def _streams(
    items: Sequence[ContextLatents],
    levels: Sequence[int],
    coded: Sequence[tuple[Symbols, NDArray[np.uint8]]],
    options: Options,
) -> list[tuple[bytes, list[bytes]]]:
    work = []
    parts_of = []
    at = 0
    for item, level in zip(items, levels, strict=True):
        count = len(item.latents)
        starts = group_starts(count, item.n_streams(item.estimated_bytes(level, "entropy")))
        parts_of.append(len(starts))
        for start, stop in zip(starts, [*starts[1:], count], strict=True):
            run = slice(at + start, at + stop)
            work += [(symbols[run].reshape(-1), table[run].reshape(-1)) for symbols, table in coded]
        at += count
    streams = iter(coder.encode_many(work, items[0].model.tables, backend=options.entropy_backend))
    n_groups = len(coded)
    return [(b"", [join_part([next(streams) for _ in range(n_groups)]) for _ in range(parts)]) for parts in parts_of]


def join_part(streams: Sequence[bytes]) -> bytes:
    """The streams of hyper-latents and groups of some sections: lengths of all but the last, then the streams."""
    return b"".join([*(varint(len(stream)) for stream in streams[:-1]), *streams])


def split_part(data: Buffer, n_streams: int) -> list[Buffer]:
    """Inverse of `join_part`.

    Raises
    ------
    FrameError
        If the bytes end before the streams do.
    """
    cursor = Cursor(memoryview(data))
    lengths = [cursor.take_varint("payload") for _ in range(n_streams - 1)]
    streams: list[Buffer] = [cursor.take(length, "payload") for length in lengths]
    return [*streams, cursor.view[cursor.offset :]]


def read_side(side: Buffer, level: int, model: ContextModel) -> NDArray[np.int16]:
    """What side information adds to the index of each channel's scale, shape (Z + C,).

    Raises
    ------
    FrameError
        If the level does not exist, or the side information is not one signed byte per channel.
    """
    channels = model.card.hyper + model.card.channels
    if level >= model.model.card.levels:
        raise FrameError(
            f"frame names level {level}, the model has 0 to {model.model.card.levels - 1}.", field="setting"
        )
    if not len(side):
        return np.zeros(channels, np.int16)
    engine = zlib.decompressobj(-15)
    try:
        raw = engine.decompress(side, channels + 1)
    except zlib.error as error:
        raise FrameError(f"side information is not deflate data: {error}.", field="side") from error
    if len(raw) != channels or not engine.eof or engine.unused_data:
        raise FrameError(f"side information does not hold {channels} channels.", field="side")
    return np.frombuffer(raw, np.int8).astype(np.int16)


def decode_parts(sections: Sections, parts: Sequence[tuple[Buffer, int]], options: Options) -> NDArray[np.float32]:
    """Latents in steps of the sections that some parts hold.

    Parameters
    ----------
    sections : Sections
        All that the parts hold, in order.
    parts : sequence of (data, count)
        Bytes of a part and how many sections it holds.
    options : Options

    Returns
    -------
    ndarray, shape (n, P * C, \\*grid), float32

    Raises
    ------
    FrameError
        If a part does not hold exactly the symbols that its tables mean.
    """
    model = sections.model
    n_streams = len(model.card.groups) + 1
    split = [split_part(data, n_streams) for data, _ in parts]
    bounds = np.cumsum([0, *(count for _, count in parts)])

    def read(number: int, table: NDArray[np.uint8]) -> Symbols:
        work = [
            (streams[number], table[start:stop].reshape(-1))
            for streams, start, stop in zip(split, bounds[:-1], bounds[1:], strict=True)
        ]
        decoded = coder.decode_many(work, model.tables, backend=options.entropy_backend)
        return np.concatenate(decoded).reshape(table.shape) if len(decoded) > 1 else decoded[0].reshape(table.shape)

    hyper = read(0, sections.hyper_table)
    return sections.walk(hyper, lambda number, mean, table: read(number + 1, table))
