"""Latents under a learned entropy model to the sections of a frame, and back: symbols, parts, side information.

A float array of latents or byte strings in, byte strings or latents in steps out. How the bytes of a part are laid out
is for `context_parts`, which sections know which is for `context_order`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec._types import Buffer, Shape, Symbols
from zarr_emcodec.codecs import context_fast, context_parts, context_steps, inference
from zarr_emcodec.codecs.base import Mode
from zarr_emcodec.codecs.context import ContextModel, References, Sections
from zarr_emcodec.codecs.context_order import Turn, even_counts, part_counts
from zarr_emcodec.codecs.context_side import Pair, pack_side
from zarr_emcodec.codecs.context_walk import Walk, rows_of
from zarr_emcodec.codecs.quantise import Ladder
from zarr_emcodec.entropy import coder
from zarr_emcodec.runtime import Options

_STREAM_BYTES = 8192  # below it the index entry and the coder's states of four streams cost more than 0.3 %
_SAMPLE = 256  # cells that a rate search begins with
_NEARBY = 3  # levels, 7 to 15 % of the bytes
_CONTRAST = 1.7  # per cent of bits under networks for each per cent under fixed tables, between parts of a chunk
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

    Attributes
    ----------
    silent : frozenset of int
        Reaches of the sections that are coded without hyper-latents.
    change : ndarray, shape (Z + C,), int16
        What side information adds to the index of each channel's scale.
    """

    def __init__(self, latents: NDArray[np.float32], model: ContextModel, extent: Shape) -> None:
        self.latents = latents
        self.model = model
        self.extent = extent
        self.ladder: Ladder = model.static
        self._sample = self._sample_of(latents)
        self.n_places = len(latents) * places_of(model, extent)
        self._guess = self._first_shift()
        self.silent: frozenset[int] = frozenset()
        self.change = np.zeros(model.card.hyper + model.card.channels, np.int16)
        self._probed: dict[int, float] = {}  # levels: how many others to look beside the model's curve
        self._tried: dict[int, float] = {}  # likewise, on top of that
        self._busier: float | None = None  # than its part
        self._measured = latents

    def _sample_of(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """Latents of some cells, (C, places)."""
        flat = latents.reshape(*latents.shape[:2], -1)[:, self.model.first_latent :]
        n, _, cells = flat.shape
        chosen = np.unique(np.linspace(0, n * cells - 1, min(_SAMPLE, n * cells)).astype(np.int64))
        picked = flat[chosen // cells, :, chosen % cells].reshape(-1, self.model.card.channels)
        return np.ascontiguousarray(picked.T)

    def _counted(self, sample: NDArray[np.float32], level: int) -> float:
        """Bits of a place of a sample under fixed tables."""
        bits = self.ladder.default_bits(self.ladder.quantise(sample, level), level)
        return float(bits / sample.shape[1])

    def _first_shift(self) -> float:
        """Levels that this chunk lies beside the training volumes, by what fixed tables say of the sample."""
        counted = self.model.curves[1]
        level = round(counted.level(_PROBE_BITS * self.model.card.channels))
        level = min(max(level, 0), self.ladder.n_levels - 1)
        for _ in range(2):  # the second time at the level where this chunk has that rate
            shift = counted.level(self._counted(self._sample[:, ::4], level)) - level
            level = min(max(round(level - shift), 0), self.ladder.n_levels - 1)
        return shift

    def estimated_bytes(self, level: int, mode: Mode) -> float:
        """Size of side information and streams at a level."""
        shift = self._probed_shift(level) + _between(self._tried, level, 0.0)
        size = self.model.curves[0].bits(level + shift) * self.n_places / 8
        return float(size + self._overhead(size))

    def refine_estimate(self, level: int) -> None:
        """Nothing more is known before a level is tried."""

    def part(self, *, rough: bool = False) -> tuple[NDArray[np.float32], Shape] | None:
        """Latents of about a quarter of the chunk with the extent they stand for; None of what is small already.

        Sections that refer to one another are not separated. A `rough` part is a quarter of that.
        """
        n, grid = len(self.latents), self.latents.shape[2:]
        if n >= 2 * _FEWEST and not self.model.card.reaches:
            few = max(n // _SHARE, _FEWEST)
            return None if rough else (self.latents[(2 * np.arange(few) + 1) * n // (2 * few)], self.extent)
        share = 4 if rough else 2
        if min(grid[-2:]) < _WIDE * share // 2:
            return None
        middle = [slice((size - size // share) // 2, (size + size // share) // 2) for size in grid[-2:]]
        latents = self.latents[..., middle[0], middle[1]]
        cells = zip(latents.shape[2:], self.model.model.card.stride, strict=True)
        return np.ascontiguousarray(latents), tuple(size * stride for size, stride in cells)

    def correct(self, level: int, bits: float, part: NDArray[np.float32] | None = None) -> None:
        """Make the guess agree with bits of a place at a level, of the whole chunk or of its `part`.

        What was said of levels nearby is forgotten: parts grow from probe to probe.
        """
        if part is not None:
            bits *= self._contrast(part, level)
        apart = {known: shift for known, shift in self._probed.items() if abs(known - level) > _NEARBY}
        self._probed = {**apart, level: self._shift_of(level, bits)}

    def _contrast(self, part: NDArray[np.float32], level: int) -> float:
        """How many times the bits of a place of the part a place of the whole costs.

        The rest may be busier or calmer; fixed tables see that, less than networks do.
        """
        if self._busier is None:  # about the same at all levels
            counted = [self._counted(sample, level) for sample in (self._sample, self._sample_of(part))]
            self._busier = (max(counted[0], 1e-6) / max(counted[1], 1e-6)) ** _CONTRAST
        return self._busier

    def _probed_shift(self, level: int) -> float:
        return _between(self._probed, level, self._guess)

    def _shift_of(self, level: int, bits: float) -> float:
        return self.model.curves[0].level(bits) - level

    def calibrate(self, level: int, size_bytes: float, mode: Mode) -> None:
        """Make the estimate agree with a real size of side information and streams."""
        latents = max(size_bytes - self._overhead(size_bytes), 1.0)
        if self._measured is not self.latents:  # sizes of other latents say nothing of these
            self._tried, self._measured = {}, self.latents
        shift = self._shift_of(level, 8 * latents / max(self.n_places, 1))
        self._tried[level] = shift - self._probed_shift(level)

    def estimated_squared_error(self, level: int) -> float:
        """Mean squared quantisation error per cell, grey levels squared (the transform is near orthonormal)."""
        symbols = self.ladder.quantise(self._sample, level)
        error = self._sample - symbols * self.ladder.gain[level][:, None]
        places = len(self.model.card.places)
        return float(np.square(error, out=error).sum() / self._sample.shape[1] * places)

    def parts(self, size_bytes: float) -> list[int]:
        """Sections of each part that the chunk is coded in, when it takes so many bytes."""
        n = len(self.latents)
        if self.model.card.reaches:
            return part_counts(n)
        per_section = max(size_bytes / n, 1e-6)
        return even_counts(n, -(-n // max(1, round(_STREAM_BYTES / per_section))))

    def _overhead(self, size_bytes: float) -> int:
        streams = context_parts.streams_of(self.model.card) * len(self.parts(size_bytes))
        return _STREAM_OVERHEAD * streams + len(pack_side(self.change))


def _between(shifts: Mapping[int, float], level: int, otherwise: float) -> float:
    """Of a level between levels that are known: it changes evenly, as each chunk's curve has its own slope."""
    known = sorted(shifts)
    return float(np.interp(level, known, [shifts[i] for i in known])) if known else otherwise


def places_of(model: ContextModel, extent: Shape) -> int:
    """Places that are stored of a section or volume."""
    return sum(math.prod(model.coded(place, extent)) for place in model.card.places)


def encode_sections(
    items: Sequence[ContextLatents], levels: Sequence[int], options: Options
) -> list[tuple[bytes, list[bytes]]]:
    """Side information and parts of each item at its level; items share a model and a grid."""
    model = items[0].model
    counts = [item.parts(item.estimated_bytes(level, "entropy")) for item, level in zip(items, levels, strict=True)]
    latents, silent = [item.latents for item in items], [item.silent for item in items]
    changes = [item.change for item in items]
    coded = code_sections(model, latents, levels, counts, items[0].extent, options, silent, changes)
    runs = by_run(coded.pieces, [count for mine in counts for count in mine])
    parts = iter(context_parts.write_parts([flat(run) for run in runs], model, options))
    return [(pack_side(item.change), [next(parts) for _ in mine]) for item, mine in zip(items, counts, strict=True)]


class Piece(NamedTuple):
    """Symbols that are coded one after the other, (n, ..., \\*grid) each, of the n sections of a turn."""

    turn: Turn
    symbols: Symbols
    table: NDArray[np.uint8]


class Coded(NamedTuple):
    """Sections as they will be stored, and their latents in steps as decoders get them, (n, P * C, \\*grid)."""

    pieces: list[Piece]
    values: NDArray[np.float32]


def by_run(pieces: Sequence[Piece], counts: Sequence[int]) -> list[list[Pair]]:
    """Symbols and tables of runs of so many sections each, in coding order."""
    runs = [rows_of(piece.turn, counts) for piece in pieces]
    return [
        [
            (piece.symbols[rows[i]], piece.table[rows[i]])
            for piece, rows in zip(pieces, runs, strict=True)
            if rows[i].stop > rows[i].start
        ]
        for i in range(len(counts))
    ]


def flat(pairs: Sequence[Pair]) -> list[Pair]:
    """One axis each, as the entropy coder takes them."""
    return [(symbols.reshape(-1), table.reshape(-1)) for symbols, table in pairs]


def code_sections(
    model: ContextModel,
    latents: Sequence[NDArray[np.float32]],
    levels: Sequence[int],
    counts: Sequence[Sequence[int]],
    extent: Shape,
    options: Options,
    silent: Sequence[Collection[int]] | None = None,
    changes: Sequence[NDArray[np.int16]] | None = None,
) -> Coded:
    """Symbols and tables of hyper-latents and of each group, turn by turn; all latents one after the other.

    Parameters
    ----------
    model : ContextModel
    latents : sequence of ndarray, shape (n, Z + P * C, \\*grid), float32
        As the encoder gives them, all on one grid.
    levels : sequence of int
        Of each of them.
    counts : sequence of sequence of int
        Sections of each part of each.
    extent : tuple of int
        Voxels of a section or volume along each axis.
    options : Options
    silent : sequence of collection of int, optional
        Reaches of the sections whose hyper-latents are left out, for each of `latents`.
    changes : sequence of ndarray, shape (Z + C,), int16, optional
        What side information adds to the index of each channel's scale, for each of `latents`.

    Returns
    -------
    Coded
    """
    card = model.card
    joined = latents[0] if len(latents) == 1 else np.concatenate(latents)
    lengths = [len(mine) for mine in latents]
    each = np.repeat(np.asarray(levels, np.int64), lengths)
    owner = np.repeat(np.arange(len(latents)), lengths)
    grid = joined.shape[2:]
    change = np.zeros((len(each), card.hyper + card.channels), np.int16)
    if changes:
        change[:] = np.repeat(np.stack(changes), lengths, axis=0)
    places = np.ascontiguousarray(joined[:, model.first_latent :]).reshape(len(each), -1, card.channels, *grid)
    bounds = np.cumsum([0, *map(len, card.groups)])
    pieces: list[Piece] = []
    mute = np.zeros((len(latents), max(card.reaches, 1)), bool)
    for row, reaches in zip(mute, silent or (), strict=False):
        row[list(reaches)] = True

    def code(turn: Turn, sections: Sections, references: References) -> NDArray[np.float32]:
        mine = places[turn.sections] if len(turn.sections) < len(places) else places
        gain = model.gain[each[turn.sections]]
        per_step = np.reciprocal(gain)

        def decide(number: int, mean: NDArray[np.float32], table: NDArray[np.uint8]) -> Symbols:
            symbols = quantise_in_context(mine, bounds[number], per_step, mean, table, sections)
            pieces.append(Piece(turn, symbols, table))
            return symbols

        quiet = mute[owner[turn.sections], turn.reach]
        hyper = hyper_symbols(sections, mine, joined[:, : model.first_latent], references, gain, quiet, options)
        pieces.append(Piece(turn, hyper, sections.hyper_table))
        return sections.walk(hyper, decide)

    sizes = [count for mine in counts for count in mine]
    values = Walk(model, each, change, sizes, grid, extent, options).run(code)
    return Coded(pieces, values)


def hyper_symbols(
    sections: Sections,
    places: NDArray[np.float32],
    alone: NDArray[np.float32],
    references: References,
    gain: NDArray[np.float32],
    quiet: NDArray[np.bool_],
    options: Options,
) -> Symbols:
    """Hyper-latents of some sections as they are stored, (n, Z, \\*grid).

    Parameters
    ----------
    sections : Sections
    places, references, gain, options
        As of `hyper_latents`.
    alone : ndarray, shape (n, Z, \\*grid), float32
        Before a level's gain, of models whose sections know nothing of each other; of others it is not looked at.
    quiet : ndarray, shape (n,), bool
        Sections without any.
    """
    card = sections.model.card
    if quiet.all():  # what is not stored need not be known
        return np.zeros((len(quiet), card.hyper, *places.shape[3:]), np.int32)
    told = hyper_latents(sections.model, places, references, gain, options) if card.reaches else alone
    symbols = sections.round_hyper(told)
    symbols[quiet] = 0
    return symbols


def hyper_latents(
    model: ContextModel,
    places: NDArray[np.float32],
    references: References,
    gain: NDArray[np.float32],
    options: Options,
) -> NDArray[np.float32]:
    """What an encoder tells of sections, given what is known of others.

    Parameters
    ----------
    model : ContextModel
        Whose sections refer to others.
    places : ndarray, shape (n, P, C, \\*grid), float32
        Latents in grey levels.
    references : References
    gain : ndarray, shape (n, C), float32
        Quantiser steps.
    options : Options

    Returns
    -------
    ndarray, shape (n, Z, \\*grid), float32
        Before a level's gain.
    """
    n, grid = len(places), places.shape[3:]
    flat = places.reshape(*places.shape[:3], -1)
    if references.reach.any():  # those of a turn all have references, or none has
        leave = context_fast.leave if coder.is_fast(options.entropy_backend) else context_steps.leave
        left = leave(flat, references.total.reshape(flat.shape), gain)
    else:
        left = np.zeros_like(flat)
    return inference.tell(model.model, places.reshape(n, -1, *grid), left.reshape(n, -1, *grid), options)


def quantise_in_context(
    latents: NDArray[np.float32],
    first: int,
    per_step: NDArray[np.float32],
    mean: NDArray[np.float32],
    table: NDArray[np.uint8],
    sections: Sections,
) -> Symbols:
    """Rate-distortion optimal symbols of a group, (n, places, C, \\*grid).

    Parameters
    ----------
    latents : ndarray, shape (n, all places, C, \\*grid), float32
    first : int
        Which of all places is the group's first.
    per_step : ndarray, shape (n, C), float32
        What they are multiplied with to count in steps.
    mean : ndarray, shape (n, places, C, \\*grid), float32
        In 16ths of a step.
    table : ndarray, same shape, uint8
    sections : Sections
        Whose latents they are.
    """
    model = sections.model
    cells, shape = latents.reshape(*latents.shape[:3], -1), (*mean.shape[:3], -1)
    means, tables = mean.reshape(shape), table.reshape(shape)
    told = sections.change, sections.first_table, model.card.scales
    if coder.is_fast(sections.options.entropy_backend):
        symbols = context_fast.quantise(cells, first, per_step, means, tables, *told, *model.costs.thresholds)
    else:
        rounding = context_steps.unchanged(tables, *told) if sections.change.any() else tables
        scaled = cells[:, first : first + mean.shape[1]] * per_step[:, None, :, None]
        symbols = context_steps.quantise(scaled, means, rounding, *model.costs.thresholds)
    return symbols.reshape(mean.shape)


def decode_parts(walk: Walk, parts: Sequence[Buffer]) -> NDArray[np.float32]:
    """Latents in steps of the sections that some parts hold.

    Parameters
    ----------
    walk : Walk
        All that the parts hold, in order.
    parts : sequence of buffer
        Bytes of each part.

    Returns
    -------
    ndarray, shape (n, P * C, \\*grid), float32

    Raises
    ------
    FrameError
        If a part does not hold exactly the symbols that its tables mean.
    """
    reader = context_parts.open_parts(parts, walk.counts, walk.model, walk.grid, walk.options)

    def code(turn: Turn, sections: Sections, references: References) -> NDArray[np.float32]:
        rows = rows_of(turn, walk.counts)
        hyper = reader.take(sections.hyper_table, rows)
        return sections.walk(hyper, lambda number, mean, table: reader.take(table, rows))

    latents = walk.run(code)
    reader.finish()
    return latents
