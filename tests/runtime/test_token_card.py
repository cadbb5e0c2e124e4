"""Cards of token models: grids, ratios and priors; what is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from tests.models import FOLDER
from zarr_emcodec.errors import ModelError
from zarr_emcodec.runtime import parse_card
from zarr_emcodec.runtime.card import Card

CARDS: dict[str, dict[str, Any]] = {
    name: json.loads((FOLDER / name / "card.json").read_text()) for name in ("tiny-vq", "tiny-vq16", "tiny-vq3d")
}


def card(name: str, path: str = "", value: Any = None) -> Card:
    data = copy.deepcopy(CARDS[name])
    if path:
        *parents, last = path.split(".")
        place = data
        for key in parents:
            place = place[key]
        if value is KeyError:
            del place[last]
        else:
            place[last] = value
    return parse_card(json.dumps(data), "card")


def test_a_card_of_two_levels() -> None:
    found = card("tiny-vq")
    tokens = found.tokens
    assert tokens is not None
    assert (found.codec, found.tiers, found.cell) == ("vqvae", ("top", "prior", "full"), (8, 8))
    assert (tokens.codes, tokens.bits, tokens.levels, tokens.refine) == (256, 8, ("top", "bottom"), (2, 2))
    assert tokens.tokens_per_cell("bottom") == (2, 2)
    assert (tokens.ratio(0), tokens.ratio(1)) == (64, 12.8)
    assert tokens.kept(64) == 0
    assert tokens.kept(12.8) == 1
    assert tokens.kept(32) == pytest.approx(0.25)
    assert tokens.kept(65) is None
    assert tokens.priors["bottom"].policy == "draw"
    assert hash(found) == hash(card("tiny-vq"))


def test_cards_of_one_level() -> None:
    assert card("tiny-vq16").tiers == ("full",)
    volumes = card("tiny-vq3d")
    assert volumes.tokens is not None
    assert (volumes.cell, volumes.tokens.lattice, volumes.tokens.price) == ((2, 8, 8), (1, 2, 2), 0.05)
    assert len(volumes.tokens.priors["top"].groups) == 8
    assert volumes.tokens.kept(32) == 0
    assert volumes.tokens.kept(16) is None


def test_without_a_prior_of_the_bottom_there_is_no_such_tier() -> None:
    assert card("tiny-vq", "decoder.prior", {}).tiers == ("top", "full")


GROUPS = CARDS["tiny-vq"]["decoder"]["prior"]["top"]["groups"]
WRONG: list[tuple[str, Any]] = [
    ("decoder.tokens", KeyError),
    ("decoder.tokens", []),
    ("decoder.tokens.codes", 1),
    ("decoder.tokens.codes", 5000),
    ("decoder.tokens.codes", True),
    ("decoder.tokens.levels", ["bottom"]),
    ("decoder.tokens.levels", "top"),
    ("decoder.tokens.refine", KeyError),
    ("decoder.tokens.refine", [2]),
    ("decoder.tokens.refine", [2, 0]),
    ("decoder.tokens.lattice", [1, 17]),
    ("decoder.halos", KeyError),
    ("decoder.halos", {"decoder-top": [1, 1]}),
    ("encoder.halos", {"encoder-bottom": [1]}),
    ("encoder.price", -1),
    ("encoder.price", "cheap"),
    ("decoder.prior", []),
    ("decoder.prior.top.tables", 0),
    ("decoder.prior.top.tables", 1024),
    ("decoder.prior.top.halo", None),
    ("decoder.prior.top.halo", [1]),
    ("decoder.prior.top.policy", "guess"),
    ("decoder.prior.top.groups", []),
    ("decoder.prior.top.groups", GROUPS[:3]),
    ("decoder.prior.top.groups", [*GROUPS, [[0, 0]]]),
    ("decoder.prior.top.groups", [*GROUPS[:3], []]),
    ("decoder.prior.top.groups", [*GROUPS[:3], [[1, 2]]]),
    ("decoder.prior.top.groups", [*GROUPS[:3], [[1, 0, 0]]]),
    ("decoder.prior.top.groups", 3),
]


@pytest.mark.parametrize(("path", "value"), WRONG, ids=str)
def test_what_makes_no_sense_is_refused_by_name(path: str, value: Any) -> None:
    with pytest.raises(ModelError, match=r"card: .*(decoder|encoder)\.") as caught:
        card("tiny-vq", path, value)
    assert path.split(".")[-1] in str(caught.value) or path == "decoder.halos"
