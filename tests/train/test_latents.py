"""From volumes to a directory of fitted latents: a few steps, an export that computes the same, a codec."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("onnx", reason="exporting needs onnx")

import torch

from tests.volumes import fibsem
from zarr_emcodec import options
from zarr_emcodec.codecs import INRSpec, decode_many, encode_many
from zarr_emcodec.errors import ModelError
from zarr_emcodec.quality import psnr
from zarr_emcodec.runtime.card import parse_card
from zarr_emcodec.runtime.model import open_model
from zarr_emcodec.train.arch.vae2d import ArchConfig, VAE2d
from zarr_emcodec.train.arch.vae3d import Arch3dConfig
from zarr_emcodec.train.data import Source
from zarr_emcodec.train.export_latents import export, steps_of
from zarr_emcodec.train.klt import fit_klt
from zarr_emcodec.train.latents import LatentsTrainConfig, LatentsTrainer, load_latents

ARCH = ArchConfig(stride=16, channels=24, enc_widths=(8, 8), enc_blocks=(0, 0), dec_widths=(8, 8), dec_blocks=(2, 1))
SECTIONS = LatentsTrainConfig(
    arch=ARCH,
    crop=(64, 64),
    batch=2,
    minutes=0.03,
)
VOLUMES = LatentsTrainConfig(
    arch=Arch3dConfig(
        strides=((4, 4, 4), (2, 2, 2)),
        channels=24,
        enc_widths=(4, 4),
        enc_blocks=(0, 0),
        dec_widths=(8, 8),
        dec_blocks=(1, 0),
    ),
    crop=(16, 32, 32),
    batch=2,
    minutes=0.03,
    rate=2e-3,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Source]]:
    """Checkpoints of sections and of volumes, and what they learned from."""
    folder = tmp_path_factory.mktemp("latents")
    tifffile.imwrite(folder / "volume.tif", fibsem())
    sources = [Source(folder / "volume.tif", held_out=8, isotropic=True)]
    network = VAE2d(replace(ARCH, channels=32, dec_blocks=(2, 2)))
    network.start_from_klt(*fit_klt([fibsem()[i].astype(np.float32) for i in range(0, 24, 6)], 16, 32))
    losses: list[float] = []
    for config, name, start in (
        (SECTIONS, "s.pt", (network, ((1,), (0, 1)))),
        (VOLUMES, "v.pt", None),
    ):
        trainer = LatentsTrainer(config, sources, folder / name, start)
        trainer.run(lambda progress: losses.append(progress.validation["psnr"][0]))
        assert trainer.step > 2
    assert min(losses) > 18  # of a KLT that is put in wrongly nothing comes back
    return folder / "s.pt", folder / "v.pt", sources


def test_what_is_kept_of_an_autoencoder(trained: tuple[Path, Path, list[Source]]) -> None:
    network = VAE2d(replace(ARCH, channels=32, dec_blocks=(2, 2)))
    network.start_from_klt(*fit_klt([fibsem()[0].astype(np.float32)], 16, 32))
    trainer = LatentsTrainer(SECTIONS, trained[2], trained[0].with_name("kept.pt"), (network, ((1,), (0, 1))))
    own, given = trainer.model.state_dict(), network.state_dict()
    for mine, theirs in (("0.2", "0.3"), ("1.2", "1.2"), ("1.3", "1.3")):
        name = "synthesis.stages.{}.wide.weight"
        assert torch.equal(own[name.format(mine)], given[name.format(theirs)])
    # components come by energy, so that the first are kept
    assert torch.equal(own["analysis.linear.weight"], given["analysis.linear.weight"][:24])
    assert torch.equal(own["synthesis.linear.weight"], given["synthesis.linear.weight"][:, :24])


def test_an_export_computes_what_was_trained(trained: tuple[Path, Path, list[Source]], tmp_path: Path) -> None:
    sections, volumes, sources = trained
    folder = tmp_path / "tiny-latents"
    card = export([sections, volumes], folder, name="tiny-latents", version=1, sources=sources, crops=2)
    assert {row["asked"] for row in card["measured"]["held_out"]} == {32.0, 64.0, 128.0, 256.0}
    assert "24 latents for each 16 x 16 voxels" in (folder / "README.md").read_text()
    model = open_model(folder)
    network, config, _ = load_latents(sections)
    with torch.inference_mode():
        grey = torch.from_numpy(fibsem()[None, :1, :64, :64].astype(np.float32))
        latents = network.analysis(grey)
        assert np.allclose(model.run("encoder", {"grey": grey.numpy()}), latents, atol=0.5)
        steps = steps_of(config)[[120]]
        symbols = network.quantise(latents, steps)
        given = {"symbols": symbols.numpy(), "level": np.array([120])}
        assert np.allclose(model.run("decoder", given), network.decode(symbols, steps), atol=0.5)
    with options(model_path=(tmp_path,)):
        for chunk, ratio in ((fibsem()[0], 32), (fibsem()[:16], 64)):
            spec = INRSpec(backbone="latents", ratio=ratio, model="tiny-latents", effort=0)
            (frame,) = encode_many(spec, [chunk])
            assert 0.93 * chunk.nbytes / ratio < len(frame) <= chunk.nbytes / ratio
            assert psnr(chunk, decode_many([frame])[0]) > 22


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ndim", 4), ("stride", [16]), ("channels", 0), ("levels", 257), ("halo", [1]), ("bands", []),
        ("bands", [24, 4]), ("bands", [4, 25]), ("scales", 0),
    ],
)  # fmt: skip
def test_cards_with_grids_that_cannot_be(key: str, value: object) -> None:
    card = json.loads((Path("models") / "inr-latents" / "card.json").read_text())
    card.pop("digest")
    parse_card(json.dumps(card), "card")
    card["decoder"]["grids"][0][key] = value
    with pytest.raises(ModelError, match="grids"):
        parse_card(json.dumps(card), "card")
    card["decoder"]["grids"] = []
    with pytest.raises(ModelError, match="grids"):
        parse_card(json.dumps(card), "card")
