"""Vector-quantised training: the codebook finds clusters, losses fall, levels fit together, parts equal the whole."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs the extra 'train'")
pytest.importorskip("onnx", reason="training needs the extra 'train'")

import onnxruntime
import torch

from tests.volumes import fibsem
from zarr_emcodec.errors import SpecError
from zarr_emcodec.train import losses
from zarr_emcodec.train.arch.vae2d import ArchConfig
from zarr_emcodec.train.arch.vae3d import Arch3dConfig
from zarr_emcodec.train.arch.vqvae import VQVAE, Quantiser, TwoLevel, VQConfig, perplexity, share_channels
from zarr_emcodec.train.data import Source, StandardSampler
from zarr_emcodec.train.graph import to_onnx
from zarr_emcodec.train.vq import (
    VQTrainConfig,
    VQTrainer,
    build,
    flatten,
    interleave,
    load_checkpoint,
    prune,
    tokens_of,
)
from zarr_emcodec.train.vq_parts import BottomDecoder, BottomEncoder, Decoder, Encoder, TopDecoder

pytestmark = pytest.mark.extra

ARCH = ArchConfig(stride=16, channels=24, enc_widths=(8, 12), enc_blocks=(1, 1), dec_widths=(8, 16), dec_blocks=(1, 1))
ARCH32 = ArchConfig(
    stride=32, channels=24, enc_widths=(8, 8, 12), enc_blocks=(1, 1, 1), dec_widths=(8, 12, 16), dec_blocks=(1, 1, 1)
)
ARCH3 = Arch3dConfig(
    strides=((4, 4, 4), (1, 2, 2)), channels=16, enc_widths=(8, 12), enc_blocks=(1, 1), dec_widths=(8, 16)
)
FLAT = VQTrainConfig(
    model=VQConfig(ARCH, lattice=(2, 2), codes=32), crop=(64, 64), batch=3, warm_up=1, klt_crops=30, seeding=500
)
ONE = dataclasses.replace(FLAT, model=VQConfig(ARCH32, codes=32))
DEEP = dataclasses.replace(FLAT, model=VQConfig(ARCH3, lattice=(1, 2, 2), codes=32), crop=(8, 32, 32))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = tmp_path_factory.mktemp("vq") / "fibsem.npy"
    np.save(path, fibsem())
    return Source(path, isotropic=True, held_out=8)


def steps(trainer: VQTrainer, n: int) -> list[dict[str, float]]:
    return [trainer.train_step() for _ in range(n)]


def test_moving_averages_find_the_means_of_clusters() -> None:
    random = torch.Generator().manual_seed(0)
    centres = torch.tensor([[10.0, 0], [-10, 0], [0, 10], [0, -10]])
    quantiser = Quantiser(4, 2, decay=0.9)
    quantiser.codebook[0] = centres + torch.randn(4, 2, generator=random) * 3
    quantiser.total[0] = quantiser.codebook[0]
    for _ in range(200):
        vectors = centres.repeat(64, 1) + 0.3 * torch.randn(256, 2, generator=random)
        quantiser.follow(vectors, flatten(quantiser.choose(vectors[:, :, None, None])))
    assert torch.allclose(quantiser.codebook[0], centres, atol=0.1)


def test_a_code_that_nobody_chooses_is_seeded_anew() -> None:
    vectors = torch.randn(512, 3, generator=torch.Generator().manual_seed(1))
    quantiser = Quantiser(8, 3)
    quantiser.seed(vectors)
    quantiser.codebook[0, 5] = 1e3
    quantiser.count[0, 5] = 1e-4
    assert quantiser.restart(vectors) == 1
    assert (vectors == quantiser.codebook[0, 5]).all(1).any()
    assert len(torch.unique(quantiser.choose(vectors[:, :, None, None]))) == 8


def test_commitment_moves_the_encoder_and_not_the_codes(source: Source, tmp_path: Path) -> None:
    trainer = VQTrainer(FLAT, [source], tmp_path / "a.pt")
    model = trainer.model
    assert isinstance(model, VQVAE)
    before = model.quantiser.codebook.clone()
    _, vectors, _, codes = model(trainer.sampler.batch(2))
    (codes - vectors).square().mean().backward()
    pulled = [p.grad for p in model.analysis.parameters() if p.grad is not None]
    assert float(torch.stack([g.abs().sum() for g in pulled]).sum()) > 0
    assert not codes.requires_grad
    assert torch.equal(before, model.quantiser.codebook)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_every_channel_has_one_group_and_groups_have_alike_to_say(groups: int) -> None:
    deviations = torch.exp(torch.linspace(5, 0, 64))
    group = share_channels(deviations, groups, 8.0)
    assert torch.equal(group.sum(0), torch.ones(64))
    assert (group.sum(1) > 0).all()
    assert torch.equal(group[0].cummin(0).values, group[0])  # the first takes the largest


@pytest.mark.parametrize("config", [FLAT, ONE, DEEP], ids=["2-D, four tokens a cell", "2-D", "3-D"])
def test_the_loss_falls_and_a_run_resumes_where_it_was(config: VQTrainConfig, source: Source, tmp_path: Path) -> None:
    trainer = VQTrainer(config, [source], tmp_path / "a.pt")
    with torch.no_grad():  # a decoder that adds noise
        weight = trainer.model.synthesis.head.weight  # type: ignore[union-attr]
        weight.add_(0.2 * torch.randn_like(weight))  # type: ignore[operator,arg-type]
    before = trainer.validate()["psnr"][0]
    steps(trainer, 30)
    assert trainer.validate()["psnr"][0] > before + 0.1
    trainer.save()
    again = VQTrainer(config, [source], tmp_path / "a.pt")
    assert again.step == 30
    for a, b in zip(trainer.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    model, read, n = load_checkpoint(tmp_path / "a.pt")
    assert (read, n) == (config, 30)
    grids = tokens_of(model, trainer.sampler.validation[0])
    assert grids[0].ndim == config.model.ndim
    assert grids[0].max() < config.model.codes
    assert 1 < trainer.validate()["perplexity"][0] <= config.model.codes


def test_every_loss_can_be_left_out_or_taken_in(source: Source, tmp_path: Path) -> None:
    every = dataclasses.replace(FLAT, ssim=0.1, structure=0.1, adversarial=0.05)
    told = steps(VQTrainer(every, [source], tmp_path / "a.pt"), 2)[-1]
    assert set(told) == {"loss", "mse", "commitment", "ssim", "structure", "adversarial", "critic"}
    assert all(math.isfinite(value) for value in told.values())
    assert set(steps(VQTrainer(FLAT, [source], tmp_path / "b.pt"), 1)[-1]) == {"loss", "mse", "commitment"}


def test_the_second_level_starts_at_the_top_and_improves_on_it(source: Source, tmp_path: Path) -> None:
    first = VQTrainer(ONE, [source], tmp_path / "top.pt")
    top = first.model
    assert isinstance(top, VQVAE)
    with pytest.raises(SpecError, match="finished top"):
        VQTrainer(dataclasses.replace(ONE, bottom=ARCH), [source], tmp_path / "x.pt")
    config = dataclasses.replace(ONE, bottom=ARCH)
    trainer = VQTrainer(config, [source], tmp_path / "two.pt", top)
    model = trainer.model
    assert isinstance(model, TwoLevel)
    assert trainer.validate()["psnr"][0] > first.validate()["psnr"][0] + 0.3
    steps(trainer, 5)
    for name, value in top.state_dict().items():
        assert torch.equal(value, model.top.state_dict()[name]), name
    # without FiLM's scale and shift the bottom's latents pass as they are
    model.bottom.scale.weight.data.zero_()
    model.bottom.scale.bias.data.zero_()  # type: ignore[union-attr]
    model.bottom.shift.weight.data.zero_()
    model.bottom.shift.bias.data.zero_()  # type: ignore[union-attr]
    model.bottom.join.weight.data[:, ARCH.dec_widths[-1] :] = 0
    vectors = torch.randn(1, ARCH.channels, 4, 4) * 20
    features = torch.randn(2, 12, 4, 4)
    with torch.inference_mode():
        a, b = (model.bottom.decode(vectors, f[None]) for f in features)
    assert torch.equal(a, b)


def run(part: bytes, **feed: Any) -> list[Any]:
    session = onnxruntime.InferenceSession(part, providers=["CPUExecutionProvider"])
    return list(session.run(None, {k: np.asarray(v) for k, v in feed.items()}))


def randomised(config: VQTrainConfig) -> VQVAE | TwoLevel:
    torch.manual_seed(0)
    model = build(config).eval().requires_grad_(False)
    for quantiser in [m for m in model.modules() if isinstance(m, Quantiser)]:
        channels = quantiser.codebook.shape[2]
        quantiser.group.copy_(share_channels(torch.rand(channels) * 50 + 10, len(quantiser.group), 5.0))
        quantiser.codebook.copy_(torch.randn(quantiser.codebook.shape) * 20 * quantiser.group[:, None])
    return model


@pytest.mark.parametrize("config", [FLAT, ONE, DEEP], ids=["2-D, four tokens a cell", "2-D", "3-D"])
def test_exported_parts_give_the_tokens_and_voxels_of_the_network(config: VQTrainConfig) -> None:
    model = randomised(config)
    assert isinstance(model, VQVAE)
    cell = [s * n for s, n in zip(model.config.stride, model.config.lattice, strict=True)]
    image = torch.randn(2, 1, *[2 * c for c in cell])
    (distances,) = run(to_onnx(Encoder(model), {"image": torch.randn(1, 1, *cell)}, ["distances"]), image=image)
    tokens = model.quantiser.choose(model.vectors(image * 32 + 128))
    grid = np.stack([interleave(t.numpy(), model.config.lattice) for t in tokens])
    assert np.array_equal(distances.argmin(1), grid)
    (painted,) = run(to_onnx(Decoder(model), {"tokens": torch.from_numpy(grid[:1])}, ["image"]), tokens=grid)
    want = model.decode(model.quantiser.look_up(tokens))
    assert np.abs(painted * 32 + 128 - want.numpy()).max() < 0.1


def test_exported_levels_add_up(source: Source) -> None:
    model = randomised(dataclasses.replace(ONE, bottom=ARCH))
    assert isinstance(model, TwoLevel)
    torch.nn.init.normal_(model.bottom.scale.weight, std=0.1)
    top = torch.randint(32, (1, 2, 3))
    bottom = torch.randint(32, (1, 4, 6))
    decoded, features = run(to_onnx(TopDecoder(model), {"top": top}, ["image", "features"]), top=top)
    part = to_onnx(BottomDecoder(model.bottom), {"bottom": bottom, "features": torch.from_numpy(features)}, ["image"])
    (added,) = run(part, bottom=bottom, features=features)
    want = model.decode(model.top.quantiser.look_up(top[:, None]), model.bottom.quantiser.look_up(bottom[:, None]))
    assert np.abs((decoded + added) * 32 + 128 - want.numpy()).max() < 0.1
    image = torch.randn(1, 1, 64, 96)
    encoder = to_onnx(BottomEncoder(model.bottom), {"image": image, "decoded": image}, ["distances"])
    (distances,) = run(encoder, image=image, decoded=decoded)
    vectors = model.bottom.vectors(image * 32 + 128, torch.from_numpy(decoded) * 32 + 128)
    assert np.mean(distances.argmin(1) == model.bottom.quantiser.choose(vectors)[:, 0].numpy()) > 0.95


def test_pruning_keeps_the_channels_that_say_something() -> None:
    model = randomised(ONE)
    assert isinstance(model, VQVAE)
    model.quantiser.codebook[:, :, 10:] = 0
    small = prune(model, 10)
    tokens = torch.randint(32, (1, 1, 3, 2))
    a, b = (m.decode(m.quantiser.look_up(tokens)) for m in (model, small))
    assert torch.allclose(a, b, atol=1e-3)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_perplexity_counts_codes_in_use() -> None:
    assert perplexity(torch.arange(64)[:, None], 256) == pytest.approx(64)
    assert perplexity(torch.zeros(64, 1, dtype=torch.int64), 256) == pytest.approx(1)


def test_crops_of_volumes_need_an_isotropic_one(source: Source) -> None:
    with pytest.raises(SpecError, match="isotropic"):
        StandardSampler([dataclasses.replace(source, isotropic=False)], (8, 8, 8), 0)


def test_the_structure_loss_sees_a_lost_membrane_and_not_a_change_of_brightness() -> None:
    y = torch.arange(48.0)[:, None].expand(48, 48)
    membrane = -torch.exp(-((y - 24) ** 2) / 8)[None, None]
    gone, brighter = torch.zeros_like(membrane), membrane + 0.5
    assert float(losses.ridge_distance(gone, membrane)) > 100 * float(losses.ridge_distance(brighter, membrane))
    assert float(losses.ridge_response(membrane, 2.0)[0, 0, 24, 24]) > 0.3
    assert float(losses.ridge_response(-membrane, 2.0)[0, 0, 24, 24]) < 0.1
    assert float(losses.ssim_loss(membrane, membrane)) == pytest.approx(0, abs=1e-6)
    assert float(losses.ssim_loss(gone, membrane)) > 0.02
