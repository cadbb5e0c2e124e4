"""The learned entropy model at work: known latents in, mean and frequency table of each latent that comes next out.

Latents of a cell come in groups: hyper-latents under fixed tables, then the places of a lattice group by group, each
given everything before it. A section with references is expected to be like their mean, as far as a network lets it
(`context_order`). All numbers that decide what a bit means are whole: networks compute with integers below
2**24, means are 16ths of a step, so writer and reader agree on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec._types import Shape, Symbols
from zarr_emcodec.codecs import context_fast, context_steps
from zarr_emcodec.codecs.context_steps import ACTIVATION_MAX
from zarr_emcodec.codecs.context_steps import FRACTION as FRACTION
from zarr_emcodec.codecs.context_steps import SYMBOL_MAX as SYMBOL_MAX
from zarr_emcodec.codecs.inference import Feed, in_pieces, whole_runs
from zarr_emcodec.codecs.quantise import Ladder, SymbolCosts
from zarr_emcodec.entropy import coder
from zarr_emcodec.entropy.tables import Tables
from zarr_emcodec.errors import ModelError
from zarr_emcodec.runtime import Model, Options
from zarr_emcodec.runtime.context_card import PERIOD, ContextCard
from zarr_emcodec.runtime.model import Part

_HYPER_UNIT = 4  # a hyper-latent of 1 is the activation 4/32
_SCALE_MAX = 1 << 12  # far beyond any table, far within the 16 bits that sums of indices have
_SHIFT_MAX = 16

PARTS: tuple[Part, ...] = ("context-0", "context-1", "context-2", "context-3")
"""The network of each group."""

Decide = Callable[[int, NDArray[np.float32], NDArray[np.uint8]], Symbols]
"""Number of a group, its means in 16ths and tables, (n, places, C, \\*grid), to its symbols; 0 where the table is 0."""


class RateCurve:
    """Bits over levels, and back; beyond the ladder's ends it goes on as it ends.

    Chunks differ in contrast and noise, which moves this curve along the ladder more than it changes its shape.

    Parameters
    ----------
    bits : ndarray, shape (levels,)
        Falling, on the whole.
    """

    def __init__(self, bits: NDArray[np.float32]) -> None:
        n = len(bits)
        fall = 1e-3 * np.arange(n)  # strictly: the curve is read backwards too
        logs = np.minimum.accumulate(np.log(np.maximum(bits, 1e-6))) - fall
        few = min(16, n - 1)
        # a ladder of one level has no slope of its own
        first, last = ((logs[few] - logs[0]) / few, (logs[-1] - logs[-1 - few]) / few) if few else (-1e-3, -1e-3)
        self._levels = np.concatenate([[-n], np.arange(n), [2 * n]])
        self._logs = np.concatenate([[logs[0] - n * first], logs, [logs[-1] + (n + 1) * last]])

    def bits(self, level: float) -> float:
        """Bits at a level, which need not be whole or on the ladder."""
        return float(np.exp(np.interp(level, self._levels, self._logs)))

    def level(self, bits: float) -> float:
        """The level that costs so many bits."""
        return float(np.interp(-np.log(max(bits, 1e-9)), -self._logs, self._levels))


class ContextModel:
    """Tables of one model with a learned entropy model, and how its networks are asked.

    Parameters
    ----------
    model : Model
        Its card has a `ContextCard`.

    Attributes
    ----------
    scale : ndarray, shape (levels, Z + C), int16
        Index of each channel's scale before the networks move it; from 0 down nothing is stored.
    shape : ndarray, shape (levels, Z + C), uint8
        Which shape of table a channel uses.
    shift : ndarray, shape (levels, C), int8
        A channel's spread is about ``2 ** (shift + 1)`` steps.
    gain, hyper_gain : ndarray, shape (levels, C) and (levels, Z), float32
        Quantiser steps in grey levels; what hyper-latents are multiplied with. Decoders need neither.
    reach, reach_gain : ndarray, shape (reaches, Z + C), int16, and (reaches, Z), float32
        What the reach of a section adds to the index of each channel's scale; what it multiplies `hyper_gain` with.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        card = model.card.context
        assert card is not None
        self.card: ContextCard = card
        arrays = model.tables()
        self.tables = Tables.from_arrays(arrays)
        self.costs = SymbolCosts(self.tables)
        levels, every = model.card.levels, card.hyper + card.channels
        self.scale = self._member(arrays, "scale", (levels, every), np.int16)
        self.shape = self._member(arrays, "shape", (levels, every), np.uint8)
        self.shift = self._member(arrays, "shift", (levels, card.channels), np.int8)
        self.gain = self._member(arrays, "gain", (levels, card.channels), np.float32)
        self.hyper_gain = self._member(arrays, "hyper_gain", (levels, card.hyper), np.float32)
        self.reach, self.reach_gain = np.zeros((1, every), np.int16), np.ones((1, card.hyper), np.float32)
        if card.reaches:
            self.reach = self._member(arrays, "reach", (card.reaches, every), np.int16)
            self.reach_gain = self._member(arrays, "reach_gain", (card.reaches, card.hyper), np.float32)
        # numbers of tables are bytes
        if (int(self.shape.max()) + 1) * card.scales >= min(self.tables.n_tables, 256):
            raise self._wrong("shape", f"names tables that are not there, of {self.tables.n_tables}")
        bounds = {
            "scale": (self.scale, _SCALE_MAX),
            "reach": (self.reach, _SCALE_MAX),
            "shift": (self.shift, _SHIFT_MAX),
        }
        for name, (values, bound) in bounds.items():
            if max(-int(values.min()), int(values.max())) > bound:
                raise self._wrong(name, f"goes beyond {bound}")
        gains = {"gain": self.gain, "hyper_gain": self.hyper_gain, "reach_gain": self.reach_gain}
        for name, steps in gains.items():
            if not (np.isfinite(steps).all() and steps.min() > 0):
                raise self._wrong(name, "has steps that are not positive")

    @property
    def first_latent(self) -> int:
        """Where latents begin in what ``encoder.onnx`` gives: at once where ``hyper.onnx`` finds the hyper-latents."""
        return 0 if self.card.reaches else self.card.hyper

    def _wrong(self, name: str, what: str) -> ModelError:
        return ModelError(f"model '{self.model.card.id}': tables.npz, {name} {what}. Reinstall it.")

    def _member(self, arrays: Mapping[str, NDArray[Any]], name: str, shape: Shape, dtype: Any) -> NDArray[Any]:
        found = arrays.get(name)
        if found is None or found.shape != shape or found.dtype != dtype:
            what = "missing" if found is None else f"{found.dtype} {found.shape}"
            wanted = f"{np.dtype(dtype)} {shape}"
            raise self._wrong(name, f"is {what}, needs {wanted}")
        return found

    @cached_property
    def static(self) -> Ladder:
        """The ladder without networks: what an encoder guesses sizes by."""
        arrays = self.model.tables()
        index = self._member(arrays, "static", self.gain.shape, np.uint8)
        if int(index.max()) >= self.tables.n_tables:
            raise self._wrong("static", f"names tables that are not there, of {self.tables.n_tables}")
        return Ladder({**arrays, "index": index})

    @cached_property
    def curves(self) -> tuple[RateCurve, RateCurve]:
        """Bits of a place over the levels, of the training volumes: as coded, and as `static` counts them."""
        arrays, levels = self.model.tables(), (self.model.card.levels,)
        coded, counted = (self._member(arrays, name, levels, np.float32) for name in ("rate", "static_rate"))
        for name, bits in (("rate", coded), ("static_rate", counted)):
            if not (np.isfinite(bits).all() and bits.min() >= 0):
                raise self._wrong(name, "has rates that are not numbers of bits")
        return RateCurve(coded), RateCurve(counted)

    def tables_of(self, index: NDArray[np.int16], shape: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Numbers of tables, of indices of scales and numbers of shapes."""
        scales = self.card.scales
        table = np.minimum(index, scales) + shape * np.int16(scales)
        return np.where(index > 0, table, 0).astype(np.uint8)

    def coded(self, place: Shape, extent: Shape) -> Shape:
        """How many of a place's latents along each axis stand for voxels of a section or volume; the rest is padding.

        Examples
        --------
        With cells of 32 voxels, 40 of them have two cells, and of the places at 1 the first only.
        """
        counts = []
        for position, voxels, cell in zip(place, extent, self.model.card.stride, strict=True):
            step = cell // PERIOD
            counts.append(-(-max(-(-voxels // step) - position, 0) // PERIOD))
        return tuple(counts)


@lru_cache(maxsize=16)
def context_model_of(model: Model) -> ContextModel:
    """The entropy model of a model, built once per process."""
    return ContextModel(model)


class References(NamedTuple):
    """What sections of a turn know of others.

    Attributes
    ----------
    reach : ndarray, shape (n,), int64
        0 where a section is coded alone.
    total : ndarray, shape (n, P, C, \\*grid), float32
        Sum of the latents of both in 16ths of a step; 0 where a section is coded alone.
    """

    reach: NDArray[np.int64]
    total: NDArray[np.float32]


class Sections:
    """Sections or volumes of one grid on their way through the groups, in either direction.

    Parameters
    ----------
    model : ContextModel
    levels : ndarray, shape (n,), int64
        Of each section on the quality ladder.
    change : ndarray, shape (n, Z + C), int16
        What side information adds to the index of each channel's scale.
    grid : tuple of int
        Cells along each axis.
    extent : tuple of int
        Voxels along each axis.
    options : Options
    references : References, optional
        Of a model whose sections refer to others; without, they are coded alone.

    Attributes
    ----------
    change, first_table : ndarray, shape (n, C), int16
        What side information adds to the index of each channel's scale, and what index 0 of its tables would be.
    """

    def __init__(
        self,
        model: ContextModel,
        levels: NDArray[np.int64],
        change: NDArray[np.int16],
        grid: Shape,
        extent: Shape,
        options: Options,
        references: References | None = None,
    ) -> None:
        self.model = model
        self.levels = levels
        self.grid = grid
        self.extent = extent
        self.options = options
        card = model.card
        hyper = card.hyper
        self._reach = references.reach if references else np.zeros(len(levels), np.int64)
        self._references: NDArray[np.float32] | None = None
        if references and self._reach.any():
            self._references = references.total.reshape(*references.total.shape[:3], -1)
        scale, shape = model.scale[levels] + change + model.reach[self._reach], model.shape[levels]
        hyper_table = model.tables_of(scale[:, :hyper], shape[:, :hyper])
        self.hyper_table = np.broadcast_to(self._spread(hyper_table), (len(levels), hyper, *grid))
        self._hyper_rounding = self.hyper_table
        if change.any():
            unchanged = model.tables_of((scale - change)[:, :hyper], shape[:, :hyper])
            self._hyper_rounding = np.where(self.hyper_table, np.maximum(self._spread(unchanged), 1), np.uint8(0))
        self._scale = np.ascontiguousarray(scale[:, hyper:])
        self.first_table = shape[:, hyper:] * np.int16(card.scales)
        self.change = np.ascontiguousarray(change[:, hyper:])
        shift = model.shift[levels].astype(np.float32)
        # a mean is a 64th of a spread of 2**(shift + 1) steps: 2**(shift - 1) 16ths of a step; networks get 32nds
        self._unit, self._spread_out = np.exp2(shift - 1), np.exp2(-shift)
        self._stored = [self._stored_of(group) for group in card.groups]
        # of the last group nobody is told
        self._known = np.empty((len(levels), card.known(len(card.groups) - 1), math.prod(grid)), np.float32)
        self._fast = coder.is_fast(options.entropy_backend)

    def _spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """A value for each channel, to be broadcast over the grid."""
        return values.reshape(*values.shape, *[1] * len(self.grid))

    def round_hyper(self, latents: NDArray[np.float32]) -> Symbols:
        """Symbols (n, Z, \\*grid) of hyper-latents as an encoder gives them; 0 where none is stored.

        As of latents, zero draws more than its half: most hyper-latents are worth less than their bits.
        """
        gained = latents * self._spread(self.model.hyper_gain[self.levels] * self.model.reach_gain[self._reach])
        return context_steps.quantise(gained, np.zeros_like(gained), self._hyper_rounding, *self.model.costs.thresholds)

    def walk(self, hyper: Symbols, decide: Decide) -> NDArray[np.float32]:
        """Go through the groups in order.

        Parameters
        ----------
        hyper : ndarray, shape (n, Z, \\*grid), int32
        decide : callable
            Finds or reads the symbols of a group.

        Returns
        -------
        ndarray, shape (n, P * C, \\*grid), float32
            Latents in steps, exact 16ths, as ``decoder.onnx`` takes them.
        """
        card = self.model.card
        n, cells = self._known.shape[0], self._known.shape[2]
        flat = hyper.reshape(n, card.hyper, cells).astype(np.float32)
        np.clip(flat * _HYPER_UNIT, -ACTIVATION_MAX, ACTIVATION_MAX, out=self._known[:, : card.hyper])
        values = np.empty((n, len(card.places), card.channels, cells), np.float32)
        learn = context_fast.learn if self._fast else context_steps.learn
        first = 0
        for number, group in enumerate(card.groups):
            shape = (n, len(group), card.channels, cells)
            mean, table = self._predict(number, first)
            symbols = decide(number, mean.reshape(*shape[:3], *self.grid), table.reshape(*shape[:3], *self.grid))
            part = values[:, first : first + len(group)]
            first += len(group)
            known = None
            if number + 1 < len(card.groups):
                known = self._known[:, card.known(number) : card.known(number + 1)].reshape(shape)
            learn(symbols.reshape(shape), mean, self._spread_out, part, known)
        return values.reshape(n, -1, *self.grid)

    def _predict(self, number: int, first: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Means in 16ths of a step and tables of a group whose first place is given, each (n, places, C, cells)."""
        card = self.model.card
        shape = (len(self.levels), len(card.groups[number]), card.channels, self._known.shape[2])
        mean, table = np.empty(shape, np.float32), np.empty(shape, np.uint8)
        steps: Any = context_fast if self._fast else context_steps
        for run, out in self._ask(number):
            parts = out.reshape(-1, shape[1], card.outputs, *shape[2:])
            given = self._unit[run], self._scale[run], self.first_table[run], card.scales, self._stored[number]
            references = None if self._references is None else self._references[run]
            steps.predict(parts, *given, references, first, mean[run], table[run])
        return mean, table

    def _ask(self, number: int) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Runs of sections or volumes with what the network of a group says of them."""
        model, card = self.model.model, self.model.card
        n = len(self.levels)
        known = self._known[:, : card.known(number)].reshape(n, -1, *self.grid)
        part = PARTS[number]
        told = {"level": self.levels, "reach": self._reach} if card.reaches else {"level": self.levels}

        def call(piece: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
            return model.run(part, piece, self.options)

        voxels = math.prod(model.card.stride)
        for run in (runs := whole_runs(n, self.grid, voxels, self.options)):
            piece = {key: values[run] for key, values in told.items()}
            out = call({"known": np.ascontiguousarray(known[run]), **piece})
            yield run, np.ascontiguousarray(out)  # a runtime may leave axes as its last step turned them
        if not runs:
            one = (1,) * len(self.grid)
            out = np.empty((n, len(card.groups[number]) * card.outputs * card.channels, *self.grid), np.float32)
            inputs = {"known": Feed(known, one), **{key: Feed(values) for key, values in told.items()}}
            in_pieces(call, inputs, Feed(out, one), self.grid, card.halo, voxels, self.options)
            yield slice(0, n), out

    def _stored_of(self, group: Sequence[Shape]) -> NDArray[np.bool_]:
        """Which cells of each place of a group stand for voxels, (places, cells); the others are padding."""
        stored = np.zeros((len(group), *self.grid), bool)
        for mask, place in zip(stored, group, strict=True):
            mask[tuple(slice(count) for count in self.model.coded(place, self.extent))] = True
        return stored.reshape(len(group), -1)
