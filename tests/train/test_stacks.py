"""Training of sections that refer to one another: which are drawn together, what they learn of each other, a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs the extra 'train'")
pytest.importorskip("onnx", reason="training needs the extra 'train'")

import torch

from tests.train.test_variable import CONFIGS, FLAT, advance, check_model, make_hasty
from tests.volumes import Array, fibsem
from zarr_emcodec.codecs.context_order import turns
from zarr_emcodec.runtime import check_onnx
from zarr_emcodec.runtime.session import OnnxRuntimeNetwork
from zarr_emcodec.train import export_variable
from zarr_emcodec.train.arch.context import GATE_START, REACHES, GroupNet
from zarr_emcodec.train.arch.variable import VariableVAE
from zarr_emcodec.train.cells import CellEncoder, CellHyper, CellPlaces
from zarr_emcodec.train.data import DISTANCES, Source, StackSampler
from zarr_emcodec.train.variable import VariableTrainer

pytestmark = pytest.mark.extra

MODEL = replace(FLAT, reaches=REACHES)
CONFIG = replace(CONFIGS[2], model=MODEL, batch=6)


@pytest.fixture(autouse=True)
def few_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    make_hasty(monkeypatch)


def source_of(volume: Array, folder: Path, **words: Any) -> Source:
    path = folder / "volume.npy"
    np.save(path, volume)
    return Source(path, **words)


def terraces(n: int = 40) -> Array:
    """The same texture in all sections, each three grey levels above the one before."""
    texture = np.random.default_rng(1).integers(0, 100, (1, 80, 72))
    return np.asarray(texture + 3 * np.arange(n)[:, None, None], np.uint8)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Tissue whose sections change slowly, as steps of 4 nm would: each is drawn three times, with other noise."""
    volume = np.repeat(fibsem()[:12, :96, :96], 3, axis=0).astype(np.int64)
    volume += np.random.default_rng(2).integers(-3, 4, volume.shape)
    return source_of(volume.clip(0, 255).astype(np.uint8), tmp_path_factory.mktemp("stacks"), held_out=7)


def test_stacks_are_sections_in_a_row_of_one_place(tmp_path: Path) -> None:
    sampler = StackSampler([source_of(terraces(), tmp_path)], 32, seed=4)
    drawn = [sampler._raw_stack(32) for _ in range(300)]
    seen: dict[int, set[int]] = {}
    for crops, distance in drawn:
        assert crops.shape == (3, 32, 32)
        steps = np.diff(crops, axis=0)
        assert np.abs(steps).max() == np.abs(steps).min() == 3 * distance
        assert steps.min() == steps.max()
        seen.setdefault(distance, set()).add(int(np.sign(steps[0, 0, 0])))
    assert seen == {distance: {-1, 1} for distance in DISTANCES}
    counts = [sum(distance == found for _, found in drawn) for distance in DISTANCES]
    assert counts == sorted(counts, reverse=True)  # near ones more often, as most sections of a chunk have


@pytest.mark.parametrize(("n", "distances"), [(1, {0}), (2, {0}), (3, {1}), (5, {1, 2}), (17, {1, 2, 4, 8})])
def test_what_is_thin_has_near_sections_only(n: int, distances: set[int], tmp_path: Path) -> None:
    sampler = StackSampler([source_of(terraces(n), tmp_path)], 32, seed=0)
    drawn = [sampler._raw_stack(32) for _ in range(100)]
    assert {distance for _, distance in drawn} == distances
    if n < 3:  # three places of single images: nothing follows from one to the next
        assert all(crops.shape == (3, 32, 32) for crops, _ in drawn)
        assert any((crops[0] != crops[1]).any() for crops, _ in drawn)
        assert not sampler.stacks(4).distance.any()


def test_sections_of_a_stack_are_augmented_alike(tmp_path: Path) -> None:
    volume = np.repeat(fibsem()[:1, :80, :72], 20, axis=0)
    sampler = StackSampler([source_of(volume, tmp_path)], 32, seed=1)
    stacks = sampler.stacks(60)
    assert stacks.grey.shape == (60, 3, 32, 32)
    assert stacks.grey.dtype == torch.float32
    assert 0 <= float(stacks.grey.min()) < float(stacks.grey.max()) <= 255
    apart = (stacks.grey[:, 0] - stacks.grey[:, 2]).flatten(1)
    alike = apart.abs().amax(1) == 0
    assert 0.5 < float(alike.float().mean()) < 0.95
    # what is left is noise of each section's own: no more than that, and without a mean
    assert float(apart.std(1).max()) < 16
    assert float(apart.mean(1).abs().max()) < 2
    assert (stacks.grey[~alike, 0] != stacks.grey[~alike, 1]).any()
    shown = stacks.grey[:, 0].reshape(60, -1)
    assert len({tuple(row.tolist()) for row in shown}) == 60  # flips, scales and contrasts differ from stack to stack
    again = StackSampler([source_of(volume, tmp_path)], 32, seed=1).stacks(60)
    assert torch.equal(again.grey, stacks.grey)
    assert np.array_equal(again.distance, stacks.distance)


def test_runs_and_held_out_sections_follow_one_another(tmp_path: Path) -> None:
    volume = terraces()
    sampler = StackSampler([source_of(volume, tmp_path, held_out=9)], 32, seed=2)
    (held,) = sampler.validation
    assert np.array_equal(held, volume[-9:])
    for depth in (1, 8, 31, 99):
        run = sampler.raw_run(depth, 24)
        assert run.shape == (min(depth, 31), 24, 24)
        assert (np.diff(run, axis=0) == 3).all()
        assert run.max() < volume[-9:].max()
    wide = StackSampler([source_of(volume.astype(np.uint16) * 200, tmp_path)], 32, seed=2)
    assert 0 < wide.raw_run(4, 24).mean() < 255  # grey levels, whatever the detector counted in


def test_what_is_like_its_references_costs_less_from_the_start(source: Source, tmp_path: Path) -> None:
    trainer = VariableTrainer(CONFIG, [source], tmp_path / "a.pt")
    grey = torch.from_numpy(fibsem()[:1, :64, :64].astype(np.float32)).repeat(5, 1, 1)[:, None]
    levels = torch.full((5,), int(trainer.levels[len(trainer.levels) // 3]))
    with torch.inference_mode():
        alone, _ = trainer.forward(grey, levels, hard=True)
        together, _ = trainer.forward(grey, levels, turns([5], REACHES), hard=True)
    assert torch.allclose(together[0], alone[0])
    assert (together[1:] < 0.95 * alone[1:]).all()
    assert 0 < GATE_START < 1


def test_networks_learn_of_references(source: Source, tmp_path: Path) -> None:
    trainer = VariableTrainer(CONFIG, [source], tmp_path / "b.pt")
    model = trainer.model
    with torch.no_grad():  # at the very start they say nothing yet, and nothing behind them gets a gradient
        for net in model.context.nets:
            net.out.copy_(0.05 * torch.randn_like(net.out))  # type: ignore[operator, arg-type]
    grey, order = trainer._draw_stacks(trainer.sampler, 4)  # type: ignore[arg-type]
    assert grey.shape == (12, 1, 64, 64)
    assert sorted(np.concatenate([turn.sections for turn in order]).tolist()) == list(range(12))
    assert all((order[2].reach > 0).tolist())
    bits, error = trainer.forward(grey, torch.full((12,), 100), order)
    (bits.mean() + 0.01 * error.mean()).backward()  # type: ignore[no-untyped-call]
    channels = MODEL.arch.channels
    for net in model.context.nets:
        assert isinstance(net, GroupNet)
        assert net.out_bias.grad is not None
        gates = net.out_bias.grad.reshape(net.places, 3, channels)[:, 2]
        assert float(gates.abs().max()) > 0
        assert net.reach.grad is not None
        told = net.reach.grad.abs().sum(0) > 0
        assert told[1:].any()
    assert model.hyper.left is not None
    for parameter in (model.context.reach, model.log_reach, model.hyper.left.weight):
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert float(parameter.grad.abs().max()) > 0


@pytest.mark.parametrize("reaches", [REACHES, 2])
def test_twenty_steps_on_slowly_changing_sections_lower_the_loss(source: Source, tmp_path: Path, reaches: int) -> None:
    config = replace(CONFIG, model=replace(MODEL, reaches=reaches))
    trainer = VariableTrainer(config, [source], tmp_path / "c.pt")
    before = trainer.validate(1)["cost"]
    assert len(before) == 6
    assert np.isfinite(advance(trainer, 20)).all()
    after = trainer.validate(1)["cost"]
    assert sum(after) < sum(before)
    trainer.save()
    again = VariableTrainer(config, [source], tmp_path / "c.pt")
    assert again.step == 20
    assert again.validate(1)["cost"] == after


def test_the_network_of_hyper_latents_is_that_which_was_trained() -> None:
    torch.manual_seed(3)
    model = VariableVAE(MODEL).eval()
    model.variance.copy_(torch.rand(MODEL.arch.channels) * 400)
    places = 20 * torch.randn(3, 4, MODEL.arch.channels, 3, 5)
    expected = places + 5 * torch.randn_like(places)
    reach = torch.tensor([0, 3, 1])
    networks, coding = CellPlaces(MODEL), [place for group in MODEL.context.groups for place in group]
    latents, left = (part[:, coding].flatten(1, 2) for part in (places, places - expected))
    left[0] = 0
    with torch.inference_mode():
        wanted = model.raw_hyper(places, reach, expected)
        assert torch.allclose(CellHyper(model)(latents, left), wanted, atol=1e-5)
        assert not torch.allclose(CellHyper(model)(latents, torch.zeros_like(left)), wanted, atol=1e-2)
        grey = torch.rand(1, 1, 48, 32) * 255
        assert torch.equal(CellEncoder(model)(grey), networks.split(model.analysis(grey)))
    files = export_variable._networks(model, CONFIG)
    data = files["hyper.onnx"]
    check_onnx(data)
    (found,) = OnnxRuntimeNetwork(data, "cpu", 1).run_all({"latents": latents.numpy(), "left": left.numpy()})
    assert np.allclose(found, wanted.numpy(), atol=0.02 * float(wanted.abs().max()))


def test_a_checkpoint_becomes_a_model_of_stacks(source: Source, tmp_path: Path) -> None:
    trainer = VariableTrainer(CONFIG, [source], tmp_path / "d.pt")
    with torch.no_grad():  # as training might leave them
        trainer.model.context.reach.copy_(-torch.arange(5.0)[:, None] * torch.rand(5, 8))
        trainer.model.log_reach.copy_(0.3 * torch.randn(5, 3))
    advance(trainer, 2)
    trainer.save()
    folder = tmp_path / "models"
    card = export_variable.export(
        tmp_path / "d.pt", folder / "tiny", name="tiny", version=1, ratio_range=(8, 128), sources=[source]
    )
    assert card["decoder"]["context"]["reaches"] == REACHES
    assert set(card["encoder"]["files"]) == {"encoder.onnx", "hyper.onnx"}
    check_model(trainer, folder, card, np.load(source.path)[:9, :75, :90])
