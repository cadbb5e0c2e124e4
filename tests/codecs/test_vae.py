"""The spec: what a user may ask for, which model that means, and what the answer is where it cannot be."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from zarr_emcodec.codecs.vae import DEFAULT_RATIO, VAESpec
from zarr_emcodec.errors import ModelNotFoundError, SpecError
from zarr_emcodec.runtime import find_model, list_models

CARDS = [model.card for model in list_models() if model.card.codec == "vae"]
LOW = min(card.ratio_range[0] for card in CARDS)
HIGH = max(card.ratio_range[1] for card in CARDS)

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"ratio": 0}, "ratio"),
    ({"ratio": 0.99}, "ratio"),
    ({"ratio": -5}, "ratio"),
    ({"ratio": 65537}, "ratio"),
    ({"ratio": math.nan}, "ratio"),
    ({"ratio": math.inf}, "ratio"),
    ({"ratio": "32"}, "ratio"),
    ({"ratio": True}, "ratio"),
    ({"ratio": [32]}, "ratio"),
    ({"min_psnr": math.nan}, "min_psnr"),
    ({"min_psnr": "high"}, "min_psnr"),
    ({"max_error": -1}, "max_error"),
    ({"max_error": math.inf}, "max_error"),
    ({"max_error": None, "min_psnr": False}, "min_psnr"),
    ({"mode": "exact"}, "mode"),
    ({"mode": None}, "mode"),
    ({"mode": "nominal", "min_psnr": 30}, "mode"),
    ({"mode": "nominal", "max_error": 0}, "mode"),
    ({"window": (1, 1)}, "window"),
    ({"window": (2, 1)}, "window"),
    ({"window": (0, math.inf)}, "window"),
    ({"window": (math.nan, 1)}, "window"),
    ({"window": (0, 1, 2)}, "window"),
    ({"window": (0,)}, "window"),
    ({"window": 5}, "window"),
    ({"window": "ab"}, "window"),
    ({"window": (None, 1)}, "window"),
    ({"background": "zero"}, "background"),
    ({"background": math.nan}, "background"),
    ({"background": True}, "background"),
]


UNSTORABLE = [((0, 1e-60), "window"), ((1e300, 2e300), "window"), ((-3e38, 1e39), "window")]


@pytest.mark.parametrize(("window", "culprit"), UNSTORABLE, ids=str)
def test_a_window_that_float32_cannot_hold_is_refused(window: tuple[float, float], culprit: str) -> None:
    with pytest.raises(SpecError, match=culprit) as caught:
        VAESpec(window=window)
    assert caught.value.name == culprit


@pytest.mark.parametrize(("words", "culprit"), WRONG, ids=str)
def test_what_cannot_work_is_refused_by_name(words: dict[str, Any], culprit: str) -> None:
    with pytest.raises(SpecError, match=culprit) as caught:
        VAESpec(**words)
    assert caught.value.name == culprit


def test_a_ratio_is_the_default_unless_a_quality_is_asked_for() -> None:
    assert VAESpec().ratio == DEFAULT_RATIO
    assert VAESpec(min_psnr=30).ratio is None
    assert VAESpec(max_error=0).ratio is None
    assert VAESpec(max_error=3, ratio=20).ratio == 20
    assert not VAESpec().guarded
    assert VAESpec(max_error=0).guarded


@pytest.mark.parametrize("words", [{}, {"voxel_nm": (8, 8, 8)}, {"mode": "nominal"}], ids=["", "cubes", "nominal"])
def test_auto_takes_the_model_whose_range_holds_the_ratio(words: dict[str, Any]) -> None:
    cards = [card for card in CARDS if card.auto and (not words.get("mode") or card.context is None)]
    for ratio in np.geomspace(min(c.ratio_range[0] for c in cards), max(c.ratio_range[1] for c in cards), 25):
        ratio = min(float(ratio), max(c.ratio_range[1] for c in cards))
        spec = VAESpec(ratio=ratio, **words)
        card = find_model(spec.digest).card
        assert spec.model == card.id
        assert card.ratio_range[0] <= ratio <= card.ratio_range[1]
        rivals = [c for c in cards if c.auto and c.auto[0] <= ratio <= c.auto[1]]
        if "voxel_nm" not in words:
            rivals = [c for c in rivals if c.ndim == 2 and not (c.context and c.context.reaches)]
        rivals = [c for c in rivals if c.ndim == 3] or rivals
        assert card in rivals
        assert (card.context is not None) == any(c.context is not None for c in rivals)
        alike = [c for c in rivals if (c.context is None) == (card.context is None)]
        assert all(card.ratio_range[0] >= rival.ratio_range[0] for rival in alike)
        alike = [c for c in alike if c.ratio_range[0] == card.ratio_range[0]]
        assert all(card.mac_per_voxel["decode"] >= rival.mac_per_voxel["decode"] for rival in alike)


def test_sections_refer_to_one_another_where_they_are_alike() -> None:
    def refers(**words: Any) -> bool:
        context = find_model(VAESpec(**words).digest).card.context
        return context is not None and context.reaches > 0

    assert refers(ratio=8, voxel_nm=(8, 8, 8))
    assert not refers(ratio=64, voxel_nm=(8, 8, 8))  # volumes are
    assert not any(refers(ratio=8, **words) for words in ({}, {"voxel_nm": (40, 4, 4)}))


def test_a_quality_alone_takes_the_model_that_reaches_highest() -> None:
    card = find_model(VAESpec(min_psnr=40).digest).card
    assert card.ratio_range[0] == LOW


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.id)
def test_a_model_that_lacks_the_ratio_names_its_range_and_the_others(card: Any) -> None:
    low, high = card.ratio_range
    for ratio in (low / 2, high * 2):
        with pytest.raises(SpecError) as caught:
            VAESpec(ratio=ratio, model=card.id)
        text = str(caught.value)
        assert f"'{card.id}' covers ratios {low:g} to {high:g}, not {ratio:g}" in text
        for other in CARDS:
            assert f"'{other.id}' ({other.ratio_range[0]:g} to {other.ratio_range[1]:g})" in text
        assert (caught.value.name, caught.value.value) == ("ratio", ratio)
    for ratio in (low, high):
        assert VAESpec(ratio=ratio, model=card.id).model == card.id


def test_a_ratio_that_no_model_covers_names_what_there_is() -> None:
    for ratio in (1, LOW * 0.99, HIGH * 1.01, 65536):
        with pytest.raises(SpecError, match="no model covers ratio") as caught:
            VAESpec(ratio=ratio)
        assert caught.value.name == "ratio"
        assert all(f"'{card.id}'" in str(caught.value) for card in CARDS)


def test_models_are_named_in_four_ways() -> None:
    card = CARDS[0]
    ratio = card.ratio_range[0]
    by_id = VAESpec(ratio=ratio, model=card.id)
    digest = f"sha256:{card.digest.hex()}"
    for name in (card.name, card.id, digest, digest[: 7 + 16]):
        assert VAESpec(ratio=ratio, model=name) == by_id
    assert by_id.digest == digest
    assert by_id.model == card.id


@pytest.mark.parametrize("name", ["no-such-model", "no-such-model@3", "sha256:" + "0" * 64])
def test_a_model_that_is_not_there_is_named_with_the_folders_searched(name: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        VAESpec(model=name)
    assert name[:20] in str(caught.value)
    assert caught.value.searched


def test_a_name_that_is_none_is_refused() -> None:
    for name in ("", "a b", "../models", "sha256:12"):
        with pytest.raises(SpecError):
            VAESpec(model=name)


def test_json_gives_the_same_spec_back_without_a_model_at_hand() -> None:
    for words in ({}, {"ratio": 50, "window": (3, 700.5), "background": 7}, {"max_error": 2, "background": None}):
        spec = VAESpec(**words)
        config = json.loads(json.dumps(spec.to_config()))
        assert set(config) == {field.name for field in dataclasses.fields(VAESpec)}
        again = VAESpec.from_config(config, codec="emcodec_vae")
        assert again == spec
        assert hash(again) == hash(spec)
        elsewhere = VAESpec.from_config(config | {"model": "gone@9", "digest": "sha256:" + "7" * 64}, codec="x")
        assert elsewhere.model == "gone@9"  # looked for when a chunk is coded, not when metadata are read


def test_a_key_of_the_future_is_refused_with_codec_key_and_version() -> None:
    config = VAESpec().to_config() | {"zeal": 9}
    with pytest.raises(SpecError, match=r"codec 'emcodec\.vae'.*'zeal'.*zarr_emcodec \d") as caught:
        VAESpec.from_config(config, codec="emcodec.vae")
    assert (caught.value.name, caught.value.value) == ("zeal", 9)
    assert "upgrade" in str(caught.value)


def test_a_spec_cannot_be_changed() -> None:
    spec = VAESpec()
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.ratio = 3.0  # type: ignore[misc]
    assert spec.background_value == 0
    assert VAESpec(background=None).background_value is None
    assert VAESpec(background=9).background_value == 9


def test_models_made_for_speed_are_asked_for_by_name() -> None:
    fast = [card for card in CARDS if not card.auto]
    assert fast
    for card in fast:
        assert VAESpec(ratio=16, model=card.name).model == card.id
        assert all(VAESpec(ratio=ratio).model != card.id for ratio in (4, 16, 64, 256))
        assert VAESpec(min_psnr=36).model != card.id
