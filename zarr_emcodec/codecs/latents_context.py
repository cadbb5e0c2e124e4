"""What is known of latents beside and under a latent in, its frequency table out: whole numbers all the way.

A grid of cells has C latents in each, from coarse to fine, dealt out to *bands*. Cells come place by place of a lattice
of period 2, and within a place band by band, all its cells at once. How much goes on in a band of a cell is guessed
from what went on in it and in others around, and in the coarser bands of the cell itself; the guess moves the latent's
table to a wider or narrower one. No network, no float: tables and sums of small integers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec._types import Shape, Symbols
from zarr_emcodec.codecs.quantise import SymbolCosts
from zarr_emcodec.entropy.tables import Tables
from zarr_emcodec.errors import ModelError
from zarr_emcodec.runtime import Model
from zarr_emcodec.runtime.grid_card import GridCard

PERIOD = 2
SIZE_MAX = 7
"""Larger symbols count as much as this in what goes on around."""
OWN_MAX = 3
"""So much of a latent's own channel around it counts, and no more."""
_BASE_MAX, _WEIGHT_MAX = 255, 255

Decide = Callable[["Step", NDArray[np.uint8]], Symbols]
"""A step and the tables of its latents, (n, channels, *cells), to their symbols."""


class Step(NamedTuple):
    """One place of the lattice and one band: what is coded at once.

    ``cells``: slices of the grid; ``channels``: of the latents.
    """

    place: int
    band: int
    cells: tuple[slice, ...]
    channels: slice


def places(ndim: int) -> list[Shape]:
    """Positions of the lattice in coding order: the origin, the rest of its checkerboard, the other checkerboard.

    Examples
    --------
    >>> places(2)
    [(0, 0), (1, 1), (0, 1), (1, 0)]
    """
    found = itertools.product(range(PERIOD), repeat=ndim)
    return sorted(found, key=lambda place: (sum(place) % 2, place))


class Around(NamedTuple):
    """What is known where a step's latents are.

    ``activity``, (n, \\*cells), int64: of band and neighbourhood, weighted; ``own``, (n, channels, \\*cells), uint8: of
    the latent's own channel around it.
    """

    activity: NDArray[np.int64]
    own: NDArray[np.uint8]


class Walk:
    """Symbols of some sections or volumes of one grid, as they become known.

    Parameters
    ----------
    card : GridCard
    n : int
        Sections or volumes.
    grid : tuple of int
        Cells along each axis.
    """

    def __init__(self, card: GridCard, n: int, grid: Shape) -> None:
        self.card, self.n, self.grid = card, n, grid
        self.symbols: Symbols = np.zeros((n, card.channels, *grid), np.int32)
        # a border of cells where nothing goes on saves every case at the edge
        self._sizes = np.zeros((n, card.channels, *(size + 2 for size in grid)), np.uint8)
        self._totals = np.zeros((n, len(card.bands), *(size + 2 for size in grid)), np.int64)

    def steps(self) -> Iterator[Step]:
        """All steps in order; those without cells are left out."""
        bounds = (0, *self.card.bands)
        for number, place in enumerate(places(len(self.grid))):
            if all(at < size for at, size in zip(place, self.grid, strict=True)):
                cells = tuple(slice(at, None, PERIOD) for at in place)
                for band, channels in enumerate(itertools.pairwise(bounds)):
                    yield Step(number, band, cells, slice(*channels))

    def around(self, step: Step, weights: NDArray[np.int16]) -> Around:
        """What is known before a step.

        Parameters
        ----------
        step : Step
        weights : ndarray, shape (2, bands), int16
            Of the bands around the cell, and of those in it.
        """
        shifts = list(itertools.product((-1, 0, 1), repeat=len(self.grid)))
        own = np.zeros(self.symbols[self._at(step)].shape, np.uint8)
        activity = np.zeros((self.n, *own.shape[2:]), np.int64)
        for shift in shifts:
            cells = self._bordered(step, shift)
            here = not any(shift)
            if not here:
                own += self._sizes[(slice(None), step.channels, *cells)]
            for band, weight in enumerate(weights[1 if here else 0]):
                if weight:
                    place: Any = (slice(None), band, *cells)
                    activity += int(weight) * self._totals[place]
        return Around(activity, np.minimum(own, OWN_MAX))

    def totals(self, step: Step) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sums of each band around a step's cells and in them, as far as they are known, each (n, bands, \\*cells)."""
        ring = np.zeros((self.n, len(self.card.bands), *self.symbols[self._at(step)].shape[2:]), np.int64)
        for shift in itertools.product((-1, 0, 1), repeat=len(self.grid)):
            part = self._totals[(slice(None), slice(None), *self._bordered(step, shift))]
            if any(shift):
                ring += part
            else:
                inside = part
        return ring, inside

    def learn(self, step: Step, symbols: Symbols) -> None:
        """Take over the symbols of a step, (n, channels, \\*cells)."""
        self.symbols[self._at(step)] = symbols
        sizes = np.minimum(np.abs(symbols), SIZE_MAX).astype(np.uint8)
        cells = self._bordered(step, (0,) * len(self.grid))
        self._sizes[(slice(None), step.channels, *cells)] = sizes
        place: Any = (slice(None), step.band, *cells)
        self._totals[place] = sizes.sum(1, dtype=np.int64)

    def _at(self, step: Step) -> tuple[Any, ...]:
        return slice(None), step.channels, *step.cells

    def _bordered(self, step: Step, shift: Shape) -> tuple[slice, ...]:
        """A step's cells, moved by `shift`, in arrays with a border."""
        starts = (cells.start + 1 + move for cells, move in zip(step.cells, shift, strict=True))
        counts = (len(range(cells.start, size, PERIOD)) for cells, size in zip(step.cells, self.grid, strict=True))
        return tuple(
            slice(start, start + PERIOD * (count - 1) + 1, PERIOD) for start, count in zip(starts, counts, strict=True)
        )


class LatentsModel:
    """Tables of the grids of one kind of a model, sections or volumes; read-only.

    Parameters
    ----------
    model : Model
    card : GridCard
        One of the model's.

    Attributes
    ----------
    base : ndarray, shape (levels, C), int16
        Index of each channel's scale before anything is known; from 0 down nothing is stored.
    shape : ndarray, shape (levels, C), uint8
        Which shape of table a channel uses.
    gain : ndarray, shape (levels, C), float32
        Quantiser steps in grey levels; decoders have their own.
    """

    def __init__(self, model: Model, card: GridCard) -> None:
        self.model, self.card = model, card
        arrays = model.tables()
        self.tables = Tables.from_arrays(arrays)
        self.costs = SymbolCosts(self.tables)
        levels, channels, bands = card.levels, card.channels, len(card.bands)
        kinds = PERIOD**card.ndim
        self.base = self._member(arrays, "base", (levels, channels), np.int16)
        self.shape = self._member(arrays, "shape", (levels, channels), np.uint8)
        self.gain = self._member(arrays, "gain", (levels, channels), np.float32)
        self._weights = self._member(arrays, "weights", (None, kinds, bands, 2, bands), np.int16)
        buckets = len(self._weights)
        self._edges = self._member(arrays, "edges", (buckets, kinds, bands, None), np.int32)
        classes = self._edges.shape[-1] + 1
        self._moves = self._member(arrays, "moves", (buckets, kinds, bands, classes, OWN_MAX + 1), np.int8)
        if not buckets or (int(self.shape.max()) + 1) * card.scales >= self.tables.n_tables:
            raise self._wrong("shape", "names tables that are not there")
        if (
            np.abs(self.base.astype(np.int64)).max() > _BASE_MAX
            or self._weights.min() < 0
            or (self._weights.max() > _WEIGHT_MAX)
        ):
            raise self._wrong("base", "or weights are out of bounds")
        if not (np.isfinite(self.gain).all() and self.gain.min() > 0):
            raise self._wrong("gain", "has steps that are not positive")

    def _wrong(self, name: str, what: str) -> ModelError:
        return ModelError(f"model '{self.model.card.id}': tables.npz, {name} {what}. Reinstall it.")

    def _member(
        self, arrays: Mapping[str, NDArray[Any]], name: str, shape: tuple[int | None, ...], dtype: Any
    ) -> NDArray[Any]:
        called = f"{name}_{self.card.ndim}d"
        found = arrays.get(called)
        if (
            found is None
            or found.dtype != dtype
            or found.ndim != len(shape)
            or any(want not in (None, size) for want, size in zip(shape, found.shape, strict=True))
        ):
            what = "missing" if found is None else f"{found.dtype} {found.shape}"
            raise self._wrong(called, f"is {what}, needs {np.dtype(dtype)} {shape}")
        return found

    def bucket(self, level: int) -> int:
        """Which set of weights and moves a level uses."""
        return level * len(self._weights) // self.card.levels

    def weights(self, level: int, step: Step) -> NDArray[np.int16]:
        """Of `Walk.around`."""
        chosen: NDArray[np.int16] = self._weights[self.bucket(level), step.place, step.band]
        return chosen

    def table(self, level: int, step: Step, around: Around) -> NDArray[np.uint8]:
        """Numbers of tables of a step's latents, (n, channels, \\*cells)."""
        bucket = self.bucket(level), step.place, step.band
        kind = np.searchsorted(self._edges[bucket], around.activity, side="right")
        move = self._moves[bucket][kind[:, None], around.own]
        one = (1, -1, *[1] * self.card.ndim)
        base = self.base[level, step.channels].reshape(one)
        first = self.shape[level, step.channels].astype(np.int16).reshape(one) * np.int16(self.card.scales)
        index = np.clip(base + move, 1, self.card.scales) + first
        return np.where(base > 0, index, 0).astype(np.uint8)

    def walk(self, level: int, walk: Walk, decide: Decide) -> Symbols:
        """Go through all steps; the symbols, (n, C, \\*grid)."""
        for step in walk.steps():
            table = self.table(level, step, walk.around(step, self.weights(level, step)))
            walk.learn(step, decide(step, table))
        return walk.symbols

    def n_coded(self, level: int, cells: int) -> int:
        """Latents that are stored of so many cells."""
        return int(np.count_nonzero(self.base[level] > 0)) * cells


@lru_cache(maxsize=16)
def latents_model_of(model: Model, ndim: int) -> LatentsModel:
    """The tables of a model's grids of so many axes, set up once per process."""
    assert model.card.inr is not None
    return LatentsModel(model, model.card.inr.grid(ndim))
