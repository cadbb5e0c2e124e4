"""Twenty steps on a small volume: the loss falls, a run resumes, and what is exported encodes and decodes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs the extra 'train'")
pytest.importorskip("onnx", reason="training needs the extra 'train'")

import torch

from tests.volumes import fibsem
from zarr_emcodec import VAECodec, options, psnr
from zarr_emcodec.runtime import find_model
from zarr_emcodec.train.arch.vae2d import ArchConfig, VAE2d, block_order
from zarr_emcodec.train.data import CropSampler, Source
from zarr_emcodec.train.export import export
from zarr_emcodec.train.klt import fit_klt
from zarr_emcodec.train.loop import Progress, TrainConfig, Trainer, load_checkpoint
from zarr_emcodec.train.losses import laplace_bits, quantise, rate_distortion, thresholds
from zarr_emcodec.train.start import model_from_directory

pytestmark = pytest.mark.extra

SMALL = ArchConfig(stride=16, channels=24, enc_widths=(8, 12), enc_blocks=(1, 1), dec_widths=(8, 16), dec_blocks=(1, 1))
CONFIG = TrainConfig(arch=SMALL, step_low=10, step_high=60, crop=64, batch=4, minutes=0.05)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = tmp_path_factory.mktemp("train") / "fibsem.npy"
    np.save(path, fibsem())
    return Source(path, held_out=4)


def steps(trainer: Trainer, n: int) -> list[float]:
    trainer._set_rate(0.0)
    return [trainer._train_step() for _ in range(n)]


def cost(trainer: Trainer) -> float:
    """Mean Lagrangian on crops that do not change, symbols really rounded."""
    grey = torch.from_numpy(fibsem()[:8, None, :64, :64].astype(np.float32))
    quantiser = torch.full((len(grey),), 25.0)
    with torch.inference_mode():
        bits, error = trainer.forward(grey, quantiser, hard=True)
        return float(rate_distortion(bits, error, quantiser)[1].mean())


def test_the_loss_falls_and_a_run_resumes_where_it_was(source: Source, tmp_path: Path) -> None:
    trainer = Trainer(dataclasses.replace(CONFIG, warm_up=1), [source], tmp_path / "a.pt")
    with torch.no_grad():  # a start that is wrong in both paths: priors too wide, a decoder that adds noise
        trainer.model.log_scale.add_(1.0)
        weight = trainer.model.synthesis.head.weight
        weight.add_(0.1 * torch.randn_like(weight))
    before = cost(trainer)
    steps(trainer, 40)
    assert cost(trainer) < 0.98 * before
    trainer.save()
    again = Trainer(CONFIG, [source], tmp_path / "a.pt")
    assert again.step == 40
    for a, b in zip(trainer.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_keeps_its_time_budget_and_reports(source: Source, tmp_path: Path) -> None:
    reports: list[Progress] = []
    Trainer(CONFIG, [source], tmp_path / "b.pt").run(reports.append, every_s=1.0)
    assert reports[-1].minutes == pytest.approx(CONFIG.minutes, rel=0.5)
    assert reports[-1].step > 0
    assert load_checkpoint(tmp_path / "b.pt")[2] == reports[-1].step


def test_the_same_seed_draws_the_same_crops(source: Source) -> None:
    a, b = (CropSampler([source], 48, seed=3).batch(6) for _ in range(2))
    assert torch.equal(a, b)
    assert a.min() >= 0
    assert a.max() <= 255


def test_training_starts_at_the_linear_transform(source: Source) -> None:
    sampler = CropSampler([source], 64, seed=0)
    basis, deviations = fit_klt((sampler.raw_crop(96) for _ in range(20)), 16, 256)
    assert np.allclose(basis @ basis.T, np.eye(256), atol=1e-8)
    model = VAE2d(dataclasses.replace(SMALL, channels=256)).eval()
    model.start_from_klt(basis, deviations)
    grey = sampler.batch(2)
    with torch.inference_mode():
        latents = model.analysis(grey)
        back = model.decode(latents, torch.tensor([10.0, 20.0]))
    assert torch.allclose(back, grey, atol=1e-2)
    assert sorted(block_order(16)) == list(range(256))


def test_the_rate_is_that_of_the_cells_of_a_laplace_density() -> None:
    scale = torch.tensor(1.7)
    whole = laplace_bits(torch.arange(-60.0, 61.0), scale)
    assert float((2.0**-whole).sum()) == pytest.approx(1, abs=1e-4)


def test_quantisation_minimises_distortion_plus_rate() -> None:
    scale = torch.tensor(0.6)
    values = torch.linspace(-4, 4, 4001)
    symbols = quantise(values, scale)
    assert torch.equal(symbols, symbols.round())
    cost = (values - symbols) ** 2 + 0.115 * laplace_bits(symbols, scale)
    for other in (symbols - symbols.sign(), symbols + symbols.sign()):
        assert ((values - other) ** 2 + 0.115 * laplace_bits(other, scale) >= cost - 1e-4).all()
    assert float(thresholds(scale)[0]) > 0.5


def test_an_exported_model_encodes_and_decodes(source: Source, tmp_path: Path) -> None:
    trainer = Trainer(CONFIG, [source], tmp_path / "c.pt")
    steps(trainer, 20)
    trainer.save()
    card = export(
        tmp_path / "c.pt", tmp_path / "models" / "tiny", name="tiny", version=1, ratio_range=(4, 64), sources=[source]
    )
    with options(model_path=(tmp_path / "models",)):
        model = find_model("tiny@1")
        assert f"sha256:{model.card.digest.hex()}" == card["digest"]
        grey = fibsem()[:2, None].astype(np.float32)
        with torch.inference_mode():
            expected = trainer.model.eval().analysis(torch.from_numpy(grey)).numpy()
        # weights travel as float16: eleven significant bits
        assert np.abs(model.run("encoder", {"grey": grey}) - expected).max() < 2e-3 * np.abs(expected).max()
        codec = VAECodec(ratio=12, model="tiny")
        frame = codec.encode(fibsem()[:4])
        assert len(frame) <= fibsem()[:4].nbytes / 12
        assert psnr(fibsem()[:4], codec.decode(frame)) > 26


def test_training_goes_on_from_an_exported_model(source: Source, tmp_path: Path) -> None:
    trainer = Trainer(CONFIG, [source], tmp_path / "d.pt")
    steps(trainer, 3)
    trainer.save()
    export(
        tmp_path / "d.pt", tmp_path / "models" / "tiny", name="tiny", version=1, ratio_range=(4, 64), sources=[source]
    )
    with options(model_path=(tmp_path / "models",)):
        start = model_from_directory(find_model("tiny@1"))
    for a, b in zip(trainer.model.state_dict().values(), start.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)
    again = Trainer(CONFIG, [source], tmp_path / "e.pt", start=start)
    assert cost(again) == pytest.approx(cost(trainer), rel=1e-3)


def test_reports_are_json_and_measure_held_out_sections(source: Source, tmp_path: Path) -> None:
    reports: list[Progress] = []
    Trainer(CONFIG, [source], tmp_path / "f.pt").run(reports.append, every_s=60)
    json.dumps([dataclasses.asdict(report) for report in reports], allow_nan=False)
    assert len(reports[-1].validation["psnr"]) == 5
    assert reports[-1].validation["bpp"][0] > reports[-1].validation["bpp"][-1]
