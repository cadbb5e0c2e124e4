"""The spec of the token codec: which model a ratio means, and what the answer is where it cannot be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.models import FOLDER
from zarr_emcodec import options
from zarr_emcodec.codecs import VQVAESpec
from zarr_emcodec.errors import ModelNotFoundError, SpecError
from zarr_emcodec.runtime import find_model

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"ratio": 0}, "ratio"),
    ({"ratio": "64"}, "ratio"),
    ({"ratio": 100}, "ratio"),
    ({"ratio": 12.7}, "ratio"),
    ({"ratio": 16, "model": "tiny-vq16"}, "ratio"),
    ({"tier": "best"}, "tier"),
    ({"ratio": 64, "tier": "full"}, "tier"),
    ({"ratio": 256, "tier": "top"}, "tier"),
    ({"ratio": 32, "model": "tiny-vq3d", "tier": "prior"}, "tier"),
    ({"keep": 1.1}, "keep"),
    ({"keep": -0.1}, "keep"),
    ({"keep": True}, "keep"),
    ({"keep": 0.5, "model": "tiny-vq16"}, "keep"),
    ({"price": -1}, "price"),
    ({"price": float("nan")}, "price"),
    ({"effort": 10}, "effort"),
    ({"effort": 1.0}, "effort"),
    ({"effort": True}, "effort"),
    ({"voxel_nm": (8, 8)}, "voxel_nm"),
    ({"voxel_nm": (8, 0, 8)}, "voxel_nm"),
    ({"voxel_nm": 8}, "voxel_nm"),
    ({"mode": "nominal", "min_psnr": 30}, "mode"),
    ({"model": "vae-2d-s16"}, "model"),
]


@pytest.fixture(autouse=True)
def token_models() -> Iterator[None]:
    with options(model_path=FOLDER):
        yield


@pytest.mark.parametrize(("words", "culprit"), WRONG, ids=str)
def test_what_cannot_work_is_refused_by_name(words: dict[str, Any], culprit: str) -> None:
    with pytest.raises(SpecError, match=culprit) as caught:
        VQVAESpec(**{"model": "auto", **words})
    assert caught.value.name == culprit


def test_a_ratio_means_the_model_that_is_made_for_it() -> None:
    for ratio, model, kept in ((64, "tiny-vq@1", 0.0), (12.8, "tiny-vq@1", 1.0), (256, "tiny-vq16@1", 0.0)):
        spec = VQVAESpec(ratio=ratio)
        assert (spec.model, spec.ratio, spec.keep) == (model, ratio, kept)
        assert spec.digest == find_model(model).card.digest_hex


def test_ratios_between_keep_a_share_of_the_bottom() -> None:
    spec = VQVAESpec(ratio=32, model="tiny-vq")
    assert spec.keep == pytest.approx((64 / 32 - 1) / 4)
    again = VQVAESpec(keep=spec.keep, model="tiny-vq")
    assert again.ratio == pytest.approx(32)


@pytest.mark.parametrize(("voxel_nm", "model"), [((8, 8, 8), "tiny-vq3d"), ((50, 4, 4), "tiny-vq"), (None, "tiny-vq")])
def test_near_isotropic_voxels_are_coded_as_volumes(voxel_nm: Any, model: str) -> None:
    # both offer 32: the volumes' model as it is, the sections' with a quarter of the bottom
    assert VQVAESpec(ratio=32, voxel_nm=voxel_nm).model == f"{model}@1"


def test_without_a_ratio_it_is_the_models_or_the_highest_there_is() -> None:
    assert VQVAESpec(model="tiny-vq").ratio == 64
    assert VQVAESpec().ratio == 1024
    assert VQVAESpec(keep=0.5).model == "vqvae-2d-1024@1"  # of two levels, and of the highest ratio


def test_a_ratio_that_nobody_offers_names_what_there_is() -> None:
    with pytest.raises(SpecError) as caught:
        VQVAESpec(ratio=100)
    text = str(caught.value)
    assert "no token model stores ratio 100" in text
    for part in ("'tiny-vq@1' (2-D: 64, 12.8 and between)", "'tiny-vq16@1' (2-D: 256)", "'tiny-vq3d@1' (3-D: 32)"):
        assert part in text
    with pytest.raises(SpecError, match=r"'tiny-vq16@1' stores ratio 256, not 64\. Installed: "):
        VQVAESpec(ratio=64, model="tiny-vq16")


def test_a_tier_without_its_tokens_says_which_would_do() -> None:
    with pytest.raises(SpecError, match=r"tiers 'top' and 'prior', not 'full' \(its bottom tokens are not stored\)"):
        VQVAESpec(ratio=64, tier="full")
    assert VQVAESpec(ratio=64, tier="prior").tier == "prior"
    assert VQVAESpec(ratio=12.8, tier="top").tier == "top"


def test_without_any_token_model_the_folders_are_named() -> None:
    with options(model_path=()), pytest.raises(ModelNotFoundError) as caught:
        VQVAESpec(model="tiny-vq")
    assert caught.value.searched


def test_json_gives_the_same_spec_back_without_a_model_at_hand() -> None:
    words: dict[str, Any] = {"ratio": 32, "price": 1.5, "effort": 2, "voxel_nm": (8, 8, 8), "window": (0, 9)}
    spec = VQVAESpec(**words)
    config = json.loads(json.dumps(spec.to_config()))
    with options(model_path=()):
        again = VQVAESpec.from_config(config, codec="emcodec.vqvae")
    assert again == spec
    assert hash(again) == hash(spec)
    with pytest.raises(SpecError, match=r"'emcodec\.vqvae'.*'colour'"):
        VQVAESpec.from_config(config | {"colour": 1}, codec="emcodec.vqvae")
