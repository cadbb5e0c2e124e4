"""What a spec of fields takes and refuses, and how it finds its model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from zarr_emcodec.codecs import INRSpec
from zarr_emcodec.errors import ModelNotFoundError, SpecError
from zarr_emcodec.runtime import find_model


def test_defaults() -> None:
    spec = INRSpec()
    assert (spec.ratio, spec.backbone, spec.bits, spec.layers, spec.effort, spec.seed) == (64, "siren", 6, None, 4, 0)
    assert (spec.time_limit, spec.model, spec.mode) == (None, "inr-siren@2", "entropy")
    assert INRSpec(min_psnr=30).ratio == 64


def test_a_configuration_survives_json() -> None:
    spec = INRSpec(ratio=300, bits=8, layers=7, effort=9, seed=5, time_limit=2.5, window=(0, 4000), min_psnr=25)
    config = json.loads(json.dumps(spec.to_config()))
    assert INRSpec.from_config(config, codec="emcodec_inr") == spec
    with pytest.raises(SpecError, match="unknown configuration key 'tier'"):
        INRSpec.from_config({**config, "tier": "top"}, codec="emcodec_inr")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"backbone": "nerf"}, "backbone 'nerf': there is 'siren' or 'latents'"),
        ({"backbone": None}, "there is 'siren'"),
        ({"mode": "nominal"}, "stores weights of no fixed width"),
        ({"bits": 3}, "bits 3: needs an integer from 4 to 8"),
        ({"bits": 8.0}, "bits 8.0"),
        ({"layers": 2}, "layers 2: needs an integer from 3 to 7"),
        ({"layers": 8}, "layers 8"),
        ({"effort": 10}, "effort 10: needs an integer from 0 to 9"),
        ({"effort": True}, "effort True"),
        ({"seed": -1}, "seed -1"),
        ({"time_limit": 0}, "time_limit 0: needs a number above 0"),
        ({"time_limit": "an hour"}, "time_limit 'an hour'"),
        ({"ratio": 1.5}, "ratio 1.5: model 'inr-siren@2' covers 2 to 65536"),
        ({"model": "vae-2d-s16"}, "is for codec 'vae', not 'inr'"),
    ],
)
def test_what_is_refused(words: dict[str, Any], match: str) -> None:
    with pytest.raises(SpecError, match=match) as caught:
        INRSpec(**words)
    assert caught.value.name in words


def test_the_model_by_name_and_by_digest() -> None:
    card = find_model("inr-siren").card
    assert INRSpec(model="inr-siren").digest == INRSpec(model=card.digest_hex).digest == card.digest_hex
    with pytest.raises(ModelNotFoundError):
        INRSpec(model="inr-other")
