"""What an encoder tries on a part of each chunk before it looks for the level: costs, and what is worth telling.

Latents of chunks with a first guess of their level in; out, a better guess of their rates, and the reaches at which
sections do without hyper-latents. Networks learn to use those wherever they help on the average; in tissue that is like
the rest of its chunk, or far from what was trained on, they may cost more than they save.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec._types import Shape
from zarr_emcodec.codecs.context import ContextModel
from zarr_emcodec.codecs.context_coding import ContextLatents, by_run, code_sections, places_of
from zarr_emcodec.codecs.context_order import part_counts
from zarr_emcodec.entropy import coder
from zarr_emcodec.runtime import Options

EXCHANGE = 0.65
"""By how many per cent squared error falls for each per cent of rate along the ladder: seen on tissue, 16x to 256x."""


class _Probe(NamedTuple):
    item: ContextLatents
    level: int
    latents: NDArray[np.float32]
    extent: Shape


class _Cost(NamedTuple):
    bits: float
    squared_error: float  # of latents, in grey levels


def probe(items: Sequence[ContextLatents], levels: Sequence[int], options: Options) -> None:
    """Correct the estimate of each item, near its level, and decide which of its sections have hyper-latents.

    Parameters
    ----------
    items : sequence of ContextLatents
        Changed; of one model.
    levels : sequence of int
        Where each of them will probably be coded.
    options : Options
    """
    groups: dict[tuple[Shape, Shape], list[_Probe]] = {}
    for item, level in zip(items, levels, strict=True):
        latents, extent = item.part() or (item.latents, item.extent)
        groups.setdefault((latents.shape[2:], extent), []).append(_Probe(item, level, latents, extent))
    for group in groups.values():
        model = group[0].item.model
        told, mute = (_costs(model, group, silent, options) for silent in (False, True))
        for one, with_hyper, without in zip(group, told, mute, strict=True):
            one.item.silent = frozenset(_not_worth_telling(with_hyper, without))
            chosen = {**with_hyper, **{reach: without[reach] for reach in one.item.silent}}
            bits = sum(cost.bits for cost in chosen.values())
            one.item.correct(one.level, bits / (len(one.latents) * places_of(model, one.extent)))


def _not_worth_telling(told: Mapping[int, _Cost], silent: Mapping[int, _Cost]) -> list[int]:
    """Reaches at which the hyper-latents' bits lower the error by less than so many bits elsewhere would."""
    bits = sum(cost.bits for cost in told.values())
    squared_error = sum(cost.squared_error for cost in told.values())
    return [
        reach
        for reach, with_hyper in told.items()
        if (with_hyper.bits - silent[reach].bits) * EXCHANGE / max(bits, 1.0)
        > (silent[reach].squared_error - with_hyper.squared_error) / max(squared_error, 1.0)
    ]


def _costs(model: ContextModel, group: Sequence[_Probe], silent: bool, options: Options) -> list[dict[int, _Cost]]:
    """By reach, what the sections of each probe cost."""
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
    out: list[dict[int, _Cost]] = [{} for _ in group]
    for reach in sorted({int(piece.turn.reach[0]) for piece in coded.pieces}):  # one for all sections of a turn
        pieces = [piece for piece in coded.pieces if piece.turn.reach[0] == reach]
        sections = np.unique(np.concatenate([piece.turn.sections for piece in pieces]))
        for i, mine in enumerate(by_run(pieces, lengths)):
            if mine:
                inside = sections[(sections >= bounds[i]) & (sections < bounds[i + 1])] - bounds[i]
                bits = coder.cost_bits(mine, model.tables, backend=options.entropy_backend)
                out[i][reach] = _Cost(bits, float(errors[i][inside].sum()))
    return out


def _gain(model: ContextModel, one: _Probe) -> NDArray[np.float32]:
    gain = np.tile(model.gain[one.level], len(model.card.places))
    return gain.reshape(-1, *[1] * (one.latents.ndim - 2))
