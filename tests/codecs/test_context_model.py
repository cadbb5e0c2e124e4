"""Tables of a learned entropy model: what is refused by name; and the curve that sizes are guessed by."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.models import CONTEXT_FOLDER
from zarr_emcodec.codecs.context import ContextModel, RateCurve
from zarr_emcodec.errors import ModelError
from zarr_emcodec.runtime import parse_card
from zarr_emcodec.runtime.model import Model, read_tables

ARRAYS, OF_STACKS = (
    read_tables((CONTEXT_FOLDER / name / "tables.npz").read_bytes(), "tables")
    for name in ("tiny-context", "tiny-stack")
)


def model_with(**arrays: NDArray[Any] | None) -> ContextModel:
    """The small model with some members replaced, or left out."""
    return with_members("tiny-context", arrays)


def with_members(place: str, arrays: Mapping[str, NDArray[Any] | None]) -> ContextModel:
    """The same of any small model."""
    own = ARRAYS if place == "tiny-context" else OF_STACKS
    members = {name: values for name, values in {**own, **arrays}.items() if values is not None}
    stream = io.BytesIO()
    np.savez(stream, **members)  # type: ignore[arg-type]  # numpy's stub takes these for flags
    files = {path.name: path.read_bytes() for path in (CONTEXT_FOLDER / place).iterdir()} | {
        "tables.npz": stream.getvalue()
    }
    card = json.loads(files["card.json"])
    card["decoder"]["files"]["tables.npz"] = hashlib.sha256(files["tables.npz"]).hexdigest()
    text = json.dumps(card).encode()
    return ContextModel(Model(parse_card(text, "card"), text, files=files))


def replaced(name: str, place: Any, value: Any) -> NDArray[Any]:
    """A member with one value changed."""
    out = ARRAYS[name].copy()
    out[place] = value
    return out


def read_everything(words: dict[str, NDArray[Any] | None]) -> None:
    """What encoders use as well."""
    model = model_with(**words)
    assert model.static.n_levels == model.model.card.levels
    assert len(model.curves) == 2


WRONG: list[tuple[str, NDArray[Any] | None]] = [
    *[(name, None) for name in ("scale", "shape", "shift", "gain", "hyper_gain", "static", "rate", "static_rate")],
    *[(name, ARRAYS[name][1:]) for name in ("scale", "shape", "shift", "gain", "hyper_gain", "static", "rate")],
    *[(name, ARRAYS[name].astype(np.float64)) for name in ("scale", "shape", "shift", "gain", "static", "static_rate")],
    ("scale", ARRAYS["scale"][:, 1:]),
    ("scale", replaced("scale", (3, 1), 32767)),
    ("scale", replaced("scale", (3, 1), -32768)),
    ("shape", replaced("shape", (3, 1), 1)),
    ("shape", replaced("shape", (3, 1), 255)),
    ("shift", replaced("shift", (3, 1), 17)),
    ("shift", replaced("shift", (3, 1), -128)),
    ("gain", replaced("gain", (3, 1), 0)),
    ("gain", replaced("gain", (3, 1), np.nan)),
    ("hyper_gain", replaced("hyper_gain", (3, 1), -1)),
    ("hyper_gain", replaced("hyper_gain", (3, 1), np.inf)),
    ("static", replaced("static", (3, 1), 25)),
    ("rate", replaced("rate", 3, np.nan)),
    ("static_rate", replaced("static_rate", 3, -1)),
    ("freqs", None),
    ("precision", np.array(3)),
]


@pytest.mark.parametrize(("name", "values"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_members_that_make_no_sense_are_refused_by_name(name: str, values: NDArray[Any] | None) -> None:
    with pytest.raises(ModelError, match=rf"\b{name}\b"):
        read_everything({name: values})


WRONG_REACHES: list[tuple[str, NDArray[Any] | None]] = [
    ("reach", None),
    ("reach", OF_STACKS["reach"][1:]),
    ("reach", OF_STACKS["reach"][:, 1:]),
    ("reach", OF_STACKS["reach"].astype(np.int8)),
    ("reach", np.full_like(OF_STACKS["reach"], 4097)),
    ("reach", np.full_like(OF_STACKS["reach"], -32768)),
    ("reach_gain", None),
    ("reach_gain", OF_STACKS["reach_gain"][:, :1]),
    ("reach_gain", OF_STACKS["reach_gain"].astype(np.float64)),
    ("reach_gain", 0 * OF_STACKS["reach_gain"]),
    ("reach_gain", np.nan * OF_STACKS["reach_gain"]),
    ("hyper_gain", None),
]


@pytest.mark.parametrize(("name", "values"), WRONG_REACHES, ids=lambda value: value if isinstance(value, str) else "")
def test_members_by_reach_are_checked_too(name: str, values: NDArray[Any] | None) -> None:
    assert with_members("tiny-stack", {}).reach.shape == (4, 5)
    with pytest.raises(ModelError, match=rf"\b{name}\b"):
        with_members("tiny-stack", {name: values})


def test_models_without_reaches_have_one_that_changes_nothing() -> None:
    model = model_with()
    assert not model.reach.any()
    assert (model.reach_gain == 1).all()
    assert model.first_latent == model.card.hyper
    assert with_members("tiny-stack", {}).first_latent == 0


def test_what_is_stored_here_passes() -> None:
    read_everything({})


def test_more_tables_than_a_byte_counts_are_refused() -> None:
    shares = np.repeat(ARRAYS["freqs"][1:2], 299, axis=0)
    many = {"freqs": np.concatenate([ARRAYS["freqs"][:1], shares])}
    for name in ("lows", "sizes"):
        many[name] = np.concatenate([ARRAYS[name][:1], np.repeat(ARRAYS[name][1:2], 299)])
    model_with(**many, shape=np.full_like(ARRAYS["shape"], 9))  # the last is table 240
    with pytest.raises(ModelError, match="shape names tables"):
        model_with(**many, shape=np.full_like(ARRAYS["shape"], 10))  # the last would be table 264


def falling(n: int) -> NDArray[np.float32]:
    return np.asarray(20 * np.exp(-0.05 * np.arange(n)) + 0.1, np.float32)


def test_a_rate_curve_is_read_both_ways_and_beyond_its_ends() -> None:
    curve = RateCurve(falling(64))
    levels = np.linspace(-60, 120, 361)
    bits = np.array([curve.bits(level) for level in levels])
    assert (np.diff(bits) < 0).all()
    assert [curve.level(b) for b in bits] == pytest.approx(levels, abs=1e-9)
    assert [curve.bits(level) for level in range(64)] == pytest.approx(falling(64), rel=0.07)
    # beyond its ends it goes on as it ends
    ahead, behind = (curve.bits(level - 1) / curve.bits(level) for level in (-5, 70))
    assert ahead == pytest.approx((curve.bits(0) / curve.bits(16)) ** (1 / 16), rel=1e-6)
    assert behind == pytest.approx((curve.bits(47) / curve.bits(63)) ** (1 / 16), rel=1e-6)
    assert curve.level(1e30) == -64
    assert curve.level(0) == 128


@pytest.mark.parametrize(
    "bits",
    [np.zeros(5), np.full(5, 3.0), np.array([5.0]), np.array([5.0, 2.0]), np.array([4.0, 5.0, 3.0, 3.5, 1.0])],
    ids=["none", "flat", "one level", "two levels", "bumps"],
)
def test_a_rate_curve_falls_whatever_it_is_made_of(bits: NDArray[np.float64]) -> None:
    curve = RateCurve(bits.astype(np.float32))
    n = len(bits)
    levels = np.linspace(-n, 2 * n, 50)
    found = np.array([curve.bits(level) for level in levels])
    assert np.isfinite(found).all()
    assert (np.diff(found) < 0).all()
    assert [curve.level(b) for b in found] == pytest.approx(levels, abs=1e-6)
