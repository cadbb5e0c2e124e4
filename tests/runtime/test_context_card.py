"""Cards of models with a learned entropy model: places, groups and channels; what is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from tests.models import CONTEXT_FOLDER
from zarr_emcodec.errors import ModelError
from zarr_emcodec.runtime import parse_card
from zarr_emcodec.runtime.card import Card

CARDS: dict[str, dict[str, Any]] = {
    name: json.loads((CONTEXT_FOLDER / name / "card.json").read_text())
    for name in ("tiny-context", "tiny-context3d", "tiny-stack")
}


def card(name: str, path: str = "", value: Any = None) -> Card:
    """One of the small models' cards, with a value replaced, or left out where it is KeyError."""
    data = copy.deepcopy(CARDS[name])
    if path:
        *parents, last = path.split("/")
        place = data
        for key in parents:
            place = place[key]
        if value is KeyError:
            del place[last]
        else:
            place[last] = value
    return parse_card(json.dumps(data), "card")


def test_a_card_of_sections() -> None:
    found = card("tiny-context")
    assert found.context is not None
    assert (found.codec, found.tiers, found.cell, found.levels) == ("vae", ("full",), (16, 16), 64)
    assert found.context.places == ((0, 0), (1, 1), (0, 1), (1, 0))
    assert (found.context.hyper, found.context.channels, found.context.scales) == (2, 3, 24)
    assert [found.context.known(group) for group in range(4)] == [2, 5, 8, 14]
    assert found.context.halo == (1, 1)
    assert hash(found) == hash(card("tiny-context"))


def test_a_card_of_volumes() -> None:
    found = card("tiny-context3d")
    assert found.context is not None
    assert (found.ndim, found.cell) == (3, (4, 8, 8))
    assert [len(group) for group in found.context.groups] == [1, 3, 4]
    assert (found.context.hyper, found.context.channels) == (1, 4)
    assert [found.context.known(group) for group in range(4)] == [1, 5, 17, 33]


def test_a_card_of_sections_that_refer_to_one_another() -> None:
    found = card("tiny-stack").context
    assert found is not None
    assert (found.reaches, found.outputs) == (4, 3)
    for name in ("tiny-context", "tiny-context3d"):  # the key is absent
        other = card(name).context
        assert other is not None
        assert (other.reaches, other.outputs) == (0, 2)
    for reaches in (0, 2, 16):
        other = card("tiny-stack", REACHES, reaches).context
        assert other is not None
        assert other.reaches == reaches
    assert card("tiny-stack", REACHES, KeyError).context == card("tiny-stack", REACHES, 0).context
    assert card("tiny-context3d", REACHES, 0).context == card("tiny-context3d").context


def test_a_decoder_alone_needs_no_network_of_the_encoder() -> None:
    assert card("tiny-stack", "encoder", KeyError).context == card("tiny-stack").context


REACHES = "decoder/context/reaches"
NO_REACHES: list[tuple[str, str, Any, str]] = [
    *[("tiny-stack", REACHES, value, REACHES) for value in (1, -1, 17, True, 2.0, "4", None)],
    *[("tiny-context3d", REACHES, value, REACHES) for value in (1, 2, 4, -1)],
    ("tiny-context", REACHES, 4, "encoder/files"),
    ("tiny-stack", "encoder/files", {"encoder.onnx": "0" * 64}, "encoder/files"),
    ("tiny-stack", "encoder/files", [], "encoder/files"),
]


@pytest.mark.parametrize(("name", "path", "value", "named"), NO_REACHES, ids=str)
def test_reaches_that_make_no_sense_are_refused_by_name(name: str, path: str, value: Any, named: str) -> None:
    with pytest.raises(ModelError, match=rf"card: {named.replace('/', '.')} (is|maps) "):
        card(name, path, value)


def test_without_an_entropy_model_it_is_a_card_of_fixed_tables() -> None:
    assert card("tiny-context", "decoder/context", KeyError).context is None
    assert card("tiny-context", "codec", "later").context is None


GROUPS = CARDS["tiny-context"]["decoder"]["context"]["groups"]
FILES = CARDS["tiny-context"]["decoder"]["files"]
CONTEXT = "decoder/context"
WRONG: list[tuple[str, Any]] = [
    (CONTEXT, []),
    (CONTEXT, None),
    (CONTEXT + "/hyper", KeyError),
    (CONTEXT + "/hyper", 0),
    (CONTEXT + "/hyper", 5000),
    (CONTEXT + "/hyper", True),
    (CONTEXT + "/groups", KeyError),
    (CONTEXT + "/groups", []),
    (CONTEXT + "/groups", {}),
    (CONTEXT + "/groups", GROUPS[:2]),
    (CONTEXT + "/groups", [*GROUPS, [[0, 0]]]),
    (CONTEXT + "/groups", [*GROUPS[:2], [[0, 1]], [[1, 0]], [[1, 0]]]),
    (CONTEXT + "/groups", [*GROUPS[:2], []]),
    (CONTEXT + "/groups", [*GROUPS[:2], [[0, 1], [1, 2]]]),
    (CONTEXT + "/groups", [*GROUPS[:2], [[0, 1], [1, 0, 0]]]),
    (CONTEXT + "/groups", [*GROUPS[:2], [0, 1]]),
    (CONTEXT + "/scales", KeyError),
    (CONTEXT + "/scales", 0),
    (CONTEXT + "/scales", 256),
    (CONTEXT + "/halo", KeyError),
    (CONTEXT + "/halo", 1),
    (CONTEXT + "/halo", [1]),
    (CONTEXT + "/halo", [1, -1]),
    (CONTEXT + "/halo", [1, 17]),
    ("decoder/channels", 2),
    ("decoder/channels", 13),
    ("decoder/channels", KeyError),
    ("decoder/stride", [16, 15]),
    ("decoder/stride", [16, 16, 16]),
    ("decoder/files", {name: digest for name, digest in FILES.items() if name != "context-1.onnx"}),
]


@pytest.mark.parametrize(("path", "value"), WRONG, ids=str)
def test_what_makes_no_sense_is_refused_by_name(path: str, value: Any) -> None:
    with pytest.raises(ModelError, match=rf"card: {path.replace('/', '.')} is .*needs"):
        card("tiny-context", path, value)


def test_volumes_need_an_entropy_model() -> None:
    with pytest.raises(ModelError, match=r"decoder\.context is None, needs an entropy model"):
        card("tiny-context3d", CONTEXT, KeyError)
