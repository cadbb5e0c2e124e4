"""From a checkpoint to a model directory that the codec reads: tokens, priors, networks, card."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs the extra 'train'")
pytest.importorskip("onnx", reason="training needs the extra 'train'")

from tests.train.test_vq import ARCH, DEEP, FLAT, ONE
from tests.volumes import fibsem
from zarr_emcodec import VQVAECodec, options, psnr
from zarr_emcodec.errors import ModelError
from zarr_emcodec.runtime import find_model
from zarr_emcodec.train import __main__ as command
from zarr_emcodec.train import prior
from zarr_emcodec.train.arch.vae2d import ArchConfig
from zarr_emcodec.train.arch.vqvae import VQVAE, VQConfig
from zarr_emcodec.train.data import Source
from zarr_emcodec.train.export_vq import export_vq, save_tokens
from zarr_emcodec.train.start import tokens_from_directory
from zarr_emcodec.train.vq import VQTrainConfig, VQTrainer, load_checkpoint

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


def exported(config: VQTrainConfig, folder: Path, bottom: ArchConfig | None = None) -> VQTrainer:
    """A trainer of a few steps whose network stands as model "tiny" in a folder."""
    np.save(folder / "fibsem.npy", fibsem())
    sources = [Source(folder / "fibsem.npy", isotropic=True, held_out=8)]
    # codes are bytes; all weights have moved from their zeros after three steps
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, codes=256), seeding=2000)
    trainer = VQTrainer(config, sources, folder / "top.pt")
    for _ in range(3):
        trainer.train_step()
    if bottom:
        assert isinstance(trainer.model, VQVAE)
        trainer = VQTrainer(dataclasses.replace(config, bottom=bottom), sources, folder / "tiny.pt", trainer.model)
        for _ in range(3):
            trainer.train_step()
    trainer.checkpoint = folder / "tiny.pt"
    trainer.save()
    export_vq(folder / "tiny.pt", folder / "models" / "tiny", name="tiny", version=1, sources=sources)
    return trainer


@pytest.mark.parametrize(
    ("config", "bottom"), [(FLAT, None), (ONE, ARCH), (DEEP, None)], ids=["four tokens a cell", "two levels", "3-D"]
)
def test_a_model_directory_holds_the_network_that_was_trained(
    config: VQTrainConfig, bottom: ArchConfig | None, tmp_path: Path
) -> None:
    trainer = exported(config, tmp_path, bottom)
    with options(model_path=(tmp_path / "models",)):
        again, known = tokens_from_directory(find_model("tiny"))
    assert known == trainer.config
    stored = trainer.model.state_dict()
    for name, value in again.state_dict().items():
        if not name.endswith(("film.weight", ".count", ".total")):  # of these a directory does not tell
            assert float((value - stored[name]).abs().max()) <= 1e-3 * float(stored[name].abs().max()), name


def run_training(monkeypatch: pytest.MonkeyPatch, *words: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *map(str, words)])
    command.main()


def test_training_goes_on_from_an_installed_token_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = exported(FLAT, tmp_path)
    words = ["--volume", tmp_path / "fibsem.npy", "--isotropic", "--minutes", 0.001, "--fine-tune"]
    with options(model_path=(tmp_path / "models",)):
        run_training(monkeypatch, "vqvae-2d-16", "--start", "tiny", "--checkpoint", tmp_path / "more.pt", *words)
    model, config, _ = load_checkpoint(tmp_path / "more.pt")
    assert isinstance(model, VQVAE)
    assert config.model == trainer.config.model
    assert config.rate < FLAT.rate
    book = trainer.model.quantiser.codebook  # type: ignore[union-attr]
    assert float((model.quantiser.codebook - book).square().mean()) < 0.1 * float(book.square().mean())  # type: ignore[operator]

    folder = tmp_path / "models" / "tiny"  # with a card that is not its own, it is no start
    card = (folder / "card.json").read_text(encoding="utf-8")
    (folder / "card.json").write_text(card.replace('"channels": 24', '"channels": 25'), encoding="utf-8")
    with options(model_path=(tmp_path / "models",)), pytest.raises(ModelError, match="not those that its card"):
        tokens_from_directory(find_model("tiny"))
