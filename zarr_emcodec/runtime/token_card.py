"""What the card of a token model (codec "vqvae") says beyond other cards: its grids, their priors, what it takes in.

Parts of the card's JSON in, a checked `TokenCard` out. Keys, all under ``decoder`` (what decoding depends on) unless
stated::

    stride      voxels of a top token on each axis
    tokens      {"codes": K, "levels": ["top"] or ["top", "bottom"],
                 "refine": bottom tokens for each top token, on each axis,      two levels only
                 "lattice": top tokens of one cell of the networks, on each axis}                 1 when not given
    halo        cells around a cell that ``decoder.onnx`` sees
    halos       {"decoder-bottom": the same of ``decoder-bottom.onnx``}; in ``encoder``: {"encoder-bottom": ...}
    prior       {level: {"tables": M, "groups": [...], "halo": tokens of that level,
                         "policy": "mode", "mean" or "draw"}}                    "mean" needs bottom_mean in the tables
    encoder     {"price": squared standard deviations that a bit is worth}                          0 when not given
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zarr_emcodec.runtime.card_values import CardReader

LEVELS = ("top", "bottom")
PRIOR_PARTS = {"top": "prior", "bottom": "prior-bottom"}
POLICIES = ("mode", "mean", "draw")
LATTICE = 2
"""Edge of the lattice cell in whose terms groups are stated."""
_MAX_CODES = 4096
_MAX_TABLES = 1023
_MAX_GROUPS = 8
_MAX_HALO = 1024
_MAX_FACTOR = 16

Shape = tuple[int, ...]
Groups = tuple[tuple[Shape, ...], ...]


@dataclass(frozen=True)
class PriorCard:
    """The context model of one level's tokens.

    Attributes
    ----------
    n_tables : int
        Frequency tables that its network chooses from.
    groups : tuple of tuple of position
        Positions in a lattice cell of 2 tokens on each axis; a group is coded at once, given all groups before it.
    halo : tuple of int
        Tokens of the level around a token that its table depends on.
    policy : {"mode", "mean", "draw"}
        How tokens that are not stored are made from the tables.
    """

    n_tables: int
    groups: Groups
    halo: Shape
    policy: str


@dataclass(frozen=True)
class TokenCard:
    """Grids of tokens, and the networks that go with them.

    Attributes
    ----------
    codes : int
        Size K of the codebooks; as a token, "not known".
    stride : tuple of int
        Voxels of a top token on each axis.
    lattice : tuple of int
        Top tokens of one cell of the networks, on each axis.
    refine : tuple of int or None
        Bottom tokens for each top token, on each axis; None where there is one level.
    halos : mapping of str to tuple of int
        Cells around a cell that a part's output depends on; an encoder's parts only where there is one.
    priors : mapping of str to PriorCard
        By level; none where tokens can only be stored in fixed fields.
    price : float
        Squared standard deviations of the tissue that the encoder gives for a bit.
    """

    codes: int
    stride: Shape
    lattice: Shape
    refine: Shape | None
    halos: Mapping[str, Shape] = field(hash=False)
    priors: Mapping[str, PriorCard] = field(hash=False)
    price: float

    @property
    def levels(self) -> tuple[str, ...]:
        """("top",) or ("top", "bottom")."""
        return LEVELS[: 1 if self.refine is None else 2]

    @property
    def tiers(self) -> tuple[str, ...]:
        """Tiers of frames that store everything, the cheapest first."""
        if self.refine is None:
            return ("full",)
        return ("top", "prior", "full") if "bottom" in self.priors else ("top", "full")

    @property
    def bits(self) -> int:
        """Width of a token's fixed field."""
        return (self.codes - 1).bit_length()

    @property
    def cell(self) -> Shape:
        """Voxels of a cell of the networks on each axis."""
        return tuple(s * n for s, n in zip(self.stride, self.lattice, strict=True))

    def tokens_per_cell(self, level: str) -> Shape:
        """Tokens of a level in a cell, on each axis."""
        if level == "top":
            return self.lattice
        assert self.refine is not None
        return tuple(n * r for n, r in zip(self.lattice, self.refine, strict=True))

    def ratio(self, kept: float) -> float:
        """Raw over stored bytes at 8 bits a voxel, with a share of the bottom tokens kept, all in fixed fields."""
        per_top = 1.0 if self.refine is None else 1.0 + kept * math.prod(self.refine)
        return 8 * math.prod(self.stride) / (self.bits * per_top)

    def kept(self, ratio: float) -> float | None:
        """Inverse of `ratio`: the share of bottom tokens to keep; None where no share makes that ratio."""
        most, least = self.ratio(0.0), self.ratio(1.0)
        if not least * (1 - 1e-9) <= ratio <= most * (1 + 1e-9):
            return None
        if self.refine is None:
            return 0.0
        return min(max((most / ratio - 1) / math.prod(self.refine), 0.0), 1.0)


def read_tokens(reader: CardReader, decoder: Mapping[str, Any], encoder: Mapping[str, Any], ndim: int) -> TokenCard:
    """Check the token parts of a card.

    Raises
    ------
    ModelError
        If a value is missing or out of bounds.
    """
    tokens = reader.mapping(decoder.get("tokens"), "decoder.tokens")
    levels = tokens.get("levels")
    if levels not in (["top"], ["top", "bottom"]):
        raise reader.wrong("decoder.tokens.levels", levels, '["top"] or ["top", "bottom"]')
    two = len(levels) == 2
    lattice = tokens.get("lattice", [1] * ndim)
    halos = _halos(reader, decoder, "decoder", ndim, two)
    if encoder:
        halos |= _halos(reader, encoder, "encoder", ndim, two)
    return TokenCard(
        codes=reader.integer(tokens.get("codes"), "decoder.tokens.codes", 2, _MAX_CODES),
        stride=reader.per_axis(decoder.get("stride"), "decoder.stride", ndim, 1, 1024),
        lattice=reader.per_axis(lattice, "decoder.tokens.lattice", ndim, 1, _MAX_FACTOR),
        refine=reader.per_axis(tokens.get("refine"), "decoder.tokens.refine", ndim, 1, _MAX_FACTOR) if two else None,
        halos=halos,
        priors=_priors(reader, decoder.get("prior", {}), ndim, levels),
        price=reader.number(encoder.get("price", 0), "encoder.price", 0, 1e12),
    )


def _halos(reader: CardReader, part: Mapping[str, Any], name: str, ndim: int, two: bool) -> dict[str, Shape]:
    out = {name: reader.per_axis(part.get("halo"), f"{name}.halo", ndim, 0, _MAX_HALO)}
    if two:
        second = "decoder-bottom" if name == "decoder" else "encoder-bottom"
        halos = reader.mapping(part.get("halos"), f"{name}.halos")
        out[second] = reader.per_axis(halos.get(second), f"{name}.halos[{second!r}]", ndim, 0, _MAX_HALO)
    return out


def _priors(reader: CardReader, value: Any, ndim: int, levels: list[str]) -> dict[str, PriorCard]:
    priors = reader.mapping(value, "decoder.prior")
    out = {}
    for level in levels:
        if level not in priors:
            continue
        key = f"decoder.prior.{level}"
        prior = reader.mapping(priors[level], key)
        halo = prior.get("halo")
        halo = [halo] * ndim if isinstance(halo, int) else halo
        policy = prior.get("policy", "mode")
        if policy not in POLICIES:
            raise reader.wrong(f"{key}.policy", policy, " or ".join(map(repr, POLICIES)))
        out[level] = PriorCard(
            n_tables=reader.integer(prior.get("tables"), f"{key}.tables", 1, _MAX_TABLES),
            groups=_groups(reader, prior.get("groups"), f"{key}.groups", ndim),
            halo=reader.per_axis(halo, f"{key}.halo", ndim, 0, _MAX_HALO),
            policy=policy,
        )
    return out


def _groups(reader: CardReader, value: Any, key: str, ndim: int) -> Groups:
    """Groups of positions that share out the lattice cell."""
    if not isinstance(value, list) or not 1 <= len(value) <= _MAX_GROUPS or not all(isinstance(g, list) for g in value):
        raise reader.wrong(key, value, f"1 to {_MAX_GROUPS} lists of positions")
    groups = tuple(tuple(reader.per_axis(place, key, ndim, 0, LATTICE - 1) for place in group) for group in value)
    places = [place for group in groups for place in group]
    if not all(groups) or len(places) != LATTICE**ndim or len(set(places)) != len(places):
        raise reader.wrong(key, value, f"each of the {LATTICE**ndim} positions of a lattice cell once")
    return groups
