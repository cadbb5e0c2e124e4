"""From a checkpoint to a model directory that the codec reads: tokens, priors, networks, card."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs the extra 'train'")
pytest.importorskip("onnx", reason="training needs the extra 'train'")

from tests.train.test_vq import ARCH, ONE
from tests.volumes import fibsem
from zarr_emcodec import VQVAECodec, options, psnr
from zarr_emcodec.runtime import find_model
from zarr_emcodec.train import prior
from zarr_emcodec.train.arch.vqvae import VQVAE, VQConfig
from zarr_emcodec.train.data import Source
from zarr_emcodec.train.export_vq import export_vq, save_tokens
from zarr_emcodec.train.vq import VQTrainer

pytestmark = pytest.mark.extra


def test_two_levels_and_their_priors_become_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "fibsem.npy", fibsem())
    source = Source(tmp_path / "fibsem.npy", isotropic=True, held_out=4)
    one = dataclasses.replace(ONE, model=VQConfig(ONE.model.arch), seeding=2000)  # codes are bytes
    first = VQTrainer(one, [source], tmp_path / "top.pt")
    assert isinstance(first.model, VQVAE)
    both = VQTrainer(dataclasses.replace(one, bottom=ARCH), [source], tmp_path / "two.pt", first.model)
    both.train_step()
    both.save()
    save_tokens(tmp_path / "two.pt", tmp_path / "tokens.npz", [source], views=2)
    words = ["tokens.npz", "--checkpoint", "prior.pt", "--minutes", "0.1", "--width", "16", "--tables", "8"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prior", *words])
    prior.main()
    card = export_vq(
        tmp_path / "two.pt",
        tmp_path / "models" / "both",
        name="both",
        version=1,
        sources=[source],
        prior=tmp_path / "prior.pt",
    )
    assert card["decoder"]["prior"]["bottom"]["policy"] == "mean"
    assert {row["mode"] for row in card["measured"]["held_out"]} == {"entropy", "nominal"}
    with options(model_path=(tmp_path / "models",)):
        assert find_model("both").card.tiers == ("top", "prior", "full")
        chunk = fibsem()[:8]
        reached = {}
        for ratio in (204.8, 1024):
            codec = VQVAECodec(ratio=ratio, model="both", mode="nominal")
            reached[ratio] = psnr(chunk, codec.decode(codec.encode(chunk)))
        assert reached[204.8] > reached[1024] + 0.5 > 15
        frame = VQVAECodec(ratio=1024, model="both", tier="prior").encode(chunk)
        assert np.array_equal(VQVAECodec(model="both").decode(frame), VQVAECodec(model="both").decode(frame))
