"""What an encoder tries on a part of each chunk before it looks for the level: costs, and what is worth telling.

Latents of chunks with a first guess of their level in; out, a better guess of their rates, the reaches at which
sections do without hyper-latents, and changes of channels' scales. Networks learn to use hyper-latents wherever they
help on the average; in tissue that is like the rest of its chunk, or far from what was trained on, they may cost more
than they save.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec._types import Shape
from zarr_emcodec.codecs.context import ContextModel
from zarr_emcodec.codecs.context_coding import ContextLatents, by_run, code_sections, flat, places_of
from zarr_emcodec.codecs.context_order import part_counts
from zarr_emcodec.codecs.context_side import Pair, best_change
from zarr_emcodec.entropy import coder
from zarr_emcodec.runtime import Options

_FAR = 5  # levels from the guess, a fifth of the bytes: what was probed there says little
EXCHANGE = 0.65
"""By how many per cent squared error falls for each per cent of rate along the ladder: seen on tissue, 16x to 256x."""


class _Probe(NamedTuple):
    item: ContextLatents
    level: int
    latents: NDArray[np.float32]
    extent: Shape
    is_rough: bool

    @property
    def places(self) -> int:
        return len(self.latents) * places_of(self.item.model, self.extent)


class _Cost(NamedTuple):
    bits: float
    squared_error: float  # of latents, in grey levels
    coded: list[Pair]


_Costs = dict[int, _Cost]
"""By reach."""


def probe(items: Sequence[ContextLatents], first_level: Callable[[int], int], options: Options) -> None:
    """Correct the estimate of each item, near its level; decide on its hyper-latents and scales.

    Parameters
    ----------
    items : sequence of ContextLatents
        Changed; of one model.
    first_level : callable
        Number of an item to the level where it will probably be coded, as its estimate stands.
    options : Options
    """
    # fixed tables, which guess first, do not know how alike sections are: a small part of each item says that
    _measure(items, first_level, options, rough=True)
    probes, told = _measure(items, first_level, options, rough=False)
    for one, with_hyper, without in zip(probes, told, _costs(probes, True, options), strict=True):
        silent = _not_worth_telling(with_hyper, without)
        costs = {**with_hyper, **{reach: without[reach] for reach in silent}}
        one.item.silent = frozenset(silent)
        coded = [pair for cost in costs.values() for pair in cost.coded]
        times = one.item.n_places / one.places
        one.item.change, saved = best_change(coded, _bits(costs), one.places, times, one.item.model)
        _tell(one, costs, saved)


def _measure(
    items: Sequence[ContextLatents], first_level: Callable[[int], int], options: Options, *, rough: bool
) -> tuple[list[_Probe], list[_Costs]]:
    """Correct estimates by a part of each item, again where its level turns out to be far off; what it cost there.

    Items that are too small for a `rough` part are left as they are.
    """
    parts = [(i, item, item.part(rough=rough) or (item.latents, item.extent)) for i, item in enumerate(items)]
    chosen = [(i, item, part) for i, item, part in parts if not rough or part[0] is not item.latents]
    probes = [_Probe(item, first_level(i), *part, rough) for i, item, part in chosen]
    told = _correct(probes, options)
    moved = [one._replace(level=first_level(i)) for (i, _, _), one in zip(chosen, probes, strict=True)]
    far = [k for k, one in enumerate(moved) if abs(one.level - probes[k].level) >= _FAR]
    for k, costs in zip(far, _correct([moved[k] for k in far], options), strict=True):
        probes[k], told[k] = moved[k], costs
    return probes, told


def _correct(probes: Sequence[_Probe], options: Options) -> list[_Costs]:
    """What the sections of each probe cost with hyper-latents; estimates are made to agree."""
    told = _costs(probes, False, options)
    for one, costs in zip(probes, told, strict=True):
        _tell(one, costs)
    return told


def _tell(one: _Probe, costs: _Costs, saved: float = 0.0) -> None:
    is_part = not one.is_rough and one.latents is not one.item.latents
    one.item.correct(one.level, (1 - saved) * _bits(costs) / one.places, one.latents if is_part else None)


def _bits(costs: _Costs) -> float:
    return sum(cost.bits for cost in costs.values())


def _not_worth_telling(told: _Costs, silent: _Costs) -> list[int]:
    """Reaches at which the hyper-latents' bits lower the error by less than so many bits elsewhere would."""
    bits = _bits(told)
    squared_error = sum(cost.squared_error for cost in told.values())
    return [
        reach
        for reach, with_hyper in told.items()
        if (with_hyper.bits - silent[reach].bits) * EXCHANGE / max(bits, 1.0)
        > (silent[reach].squared_error - with_hyper.squared_error) / max(squared_error, 1.0)
    ]


def _costs(probes: Sequence[_Probe], silent: bool, options: Options) -> list[_Costs]:
    """What the sections of each probe cost; those of one shape go through the networks together."""
    groups: dict[tuple[Shape, Shape], list[int]] = {}
    for i, one in enumerate(probes):
        groups.setdefault((one.latents.shape[2:], one.extent), []).append(i)
    out: list[_Costs] = [{} for _ in probes]
    for group in groups.values():
        found = _costs_of_group([probes[i] for i in group], silent, options)
        for i, costs in zip(group, found, strict=True):
            out[i] = costs
    return out


def _costs_of_group(group: Sequence[_Probe], silent: bool, options: Options) -> list[_Costs]:
    model = group[0].item.model
    every = range(max(model.card.reaches, 1))
    latents = [one.latents for one in group]
    coded = code_sections(
        model,
        latents,
        [one.level for one in group],
        [part_counts(len(part)) for part in latents],
        group[0].extent,
        options,
        [every if silent else ()] * len(group),
    )
    lengths = [len(part) for part in latents]
    bounds = np.cumsum([0, *lengths])
    errors = [
        np.square(coded.values[start : start + len(part)] * _gain(model, one) - part[:, model.first_latent :])
        .reshape(len(part), -1)
        .sum(1)
        for one, part, start in zip(group, latents, bounds[:-1], strict=True)
    ]
    out: list[_Costs] = [{} for _ in group]
    for reach in sorted({int(piece.turn.reach[0]) for piece in coded.pieces}):  # one for all sections of a turn
        pieces = [piece for piece in coded.pieces if piece.turn.reach[0] == reach]
        sections = np.unique(np.concatenate([piece.turn.sections for piece in pieces]))
        for i, mine in enumerate(by_run(pieces, lengths)):
            if mine:
                inside = sections[(sections >= bounds[i]) & (sections < bounds[i + 1])] - bounds[i]
                bits = coder.cost_bits(flat(mine), model.tables, backend=options.entropy_backend)
                out[i][reach] = _Cost(bits, float(errors[i][inside].sum()), mine)
    return out


def _gain(model: ContextModel, one: _Probe) -> NDArray[np.float32]:
    gain = np.tile(model.gain[one.level], len(model.card.places))
    return gain.reshape(-1, *[1] * (one.latents.ndim - 2))
