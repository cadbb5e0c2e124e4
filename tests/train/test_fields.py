"""What fits of fields learn from each other: tasks, starts, the learned optimiser, guidance."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch")
import torch

from tests.volumes import fibsem
from zarr_emcodec import options
from zarr_emcodec.codecs import INRSpec, decode_many, encode_many
from zarr_emcodec.fitting import Architecture, siren
from zarr_emcodec.fitting.learned import N_PARAMETERS, LearnedUpdate, first_parameters
from zarr_emcodec.frame import inspect
from zarr_emcodec.quality import psnr
from zarr_emcodec.runtime import find_model
from zarr_emcodec.train import guidance
from zarr_emcodec.train.data import Source
from zarr_emcodec.train.export_inr import export
from zarr_emcodec.train.field_start import AdamCosine, StartConfig, StartTrainer, describe_starts, load_starts
from zarr_emcodec.train.field_tasks import FieldTask, FieldTasks, fit_task, task_of
from zarr_emcodec.train.optimiser_search import Search, SearchConfig, load_optimiser

SMALL = StartConfig(minutes=0, kinds=((3, 4), (2, 3)), width=16, least=5, steps=4, rows=128)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    np.save(tmp_path / "deep.npy", fibsem()[:, :48, :48])
    np.save(tmp_path / "flat.npy", fibsem()[3:5, :90, :100])
    return [
        Source(tmp_path / "deep.npy", isotropic=True, held_out=16),
        Source(tmp_path / "flat.npy", held_out=1),
    ]


def task(n: int = 1) -> FieldTask:
    grey = np.stack([fibsem()[8 * i : 8 * i + 8, 20:44, 30:54] for i in range(n)]).astype("f4")
    return task_of(grey, Architecture(3, 12, 4))


def first(of: FieldTask, seed: int = 0) -> list[torch.Tensor]:
    return [w[None] for w in siren.initial(of.architecture, of.extents, torch.Generator().manual_seed(seed))]


def test_tasks_have_the_size_that_a_budget_gives_them(sources: list[Source]) -> None:
    tasks = FieldTasks(sources, 0)
    for axes, width in ((3, 8), (2, 8), (2, 16)):
        drawn = tasks.draw(axes, width, n=2)
        assert drawn.images.shape[0] == len(drawn.scale) == 2
        assert (len(drawn.extents), drawn.architecture.axes, drawn.architecture.width) == (axes, axes, width)
        assert min(drawn.extents) >= 16
        assert np.abs(drawn.images).max() < 8
    again = FieldTasks(sources, 0).draw(3, 8, n=2)
    assert np.array_equal(again.images, FieldTasks(sources, 0).draw(3, 8, n=2).images)


def test_held_out_sections_are_never_drawn_from(sources: list[Source]) -> None:
    volume = np.zeros((4, 40, 40), "u1")
    volume[3] = fibsem()[0, :40, :40]
    volume[:3] = 9
    np.save(sources[0].path, volume)
    held = [Source(sources[0].path, held_out=1)]
    assert FieldTasks(held, 0).draw(2, 4).images.std() == 0
    assert FieldTasks(held, 0, held_out=True).draw(2, 4).images.std() > 0.5


def test_a_fit_gets_closer_and_minds_what_is_added() -> None:
    of = task()
    start = first(of)
    plain = fit_task(of.problem(512, 0), start, 60, AdamCosine(1e-2))
    assert of.psnr(plain) > of.psnr(siren.effective(start, torch.full((1, 1, 1), siren.FREQUENCY))) + 3
    drawn = fit_task(of.problem(512, 0), start, 60, AdamCosine(1e-2), lambda w: 10 * w[-1].square().sum())
    assert abs(float(drawn[-1])) < abs(float(plain[-1]))


def test_starts_are_learnt_on_and_resumed(sources: list[Source], tmp_path: Path) -> None:
    trainer = StartTrainer(SMALL, sources, tmp_path / "starts.pt")
    before = [tensor.clone() for tensor in trainer.tensors["3_4"]]
    trainer.run()
    assert describe_starts(tmp_path / "starts.pt") == "starts are random draws, seed 0"
    trainer.advance(0.5)
    trainer.advance(0.5)
    after = trainer.tensors["3_4"]
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert all(moved)
    assert all(float((a - b).abs().max()) < 0.1 for a, b in zip(before, after, strict=True))
    trainer.tell()
    resumed = StartTrainer(SMALL, sources, tmp_path / "starts.pt")
    assert resumed.n_fits == 2
    assert all(torch.equal(a, b) for a, b in zip(after, resumed.tensors["3_4"], strict=True))
    assert describe_starts(tmp_path / "starts.pt").startswith("starts from 2 fits")


def test_exported_starts_serve_the_codec(sources: list[Source], tmp_path: Path) -> None:
    StartTrainer(SMALL, sources, tmp_path / "starts.pt").run()
    starts = load_starts(tmp_path / "starts.pt")
    export(tmp_path / "models" / "own", name="inr-own", version=1, starts=starts, made_from="draws")
    chunk = fibsem()[:4, :40, :44]
    with options(model_path=[tmp_path / "models"]):
        card = find_model("inr-own").card
        assert card.inr is not None
        assert card.inr.starts == ((2, 3, 16), (3, 4, 16))
        assert card.training["data"].startswith("draws")
        # the last is too wide for the start
        for pick, ratio in ((chunk, 30), (chunk[0], 12), (fibsem()[0, :60, :60], 30), (chunk, 5)):
            (frame,) = encode_many(INRSpec(ratio=ratio, effort=1, model="inr-own"), [pick])
            assert inspect(frame).total_bytes <= pick.nbytes / ratio
            (back,) = decode_many([frame])
            assert psnr(pick, back, peak=255) > psnr(pick, np.full_like(pick, round(float(pick.mean()))), peak=255) + 2


def test_the_learned_optimiser_begins_as_adam() -> None:
    of = task(2)
    parameters = first_parameters(torch.Generator().manual_seed(3))[None]
    assert parameters.shape == (1, N_PARAMETERS)
    ours = fit_task(of.problem(256, 0), first(of), 40, LearnedUpdate(parameters, 5e-3))
    adam = fit_task(of.problem(256, 0), first(of), 40, AdamCosine(5e-3))
    assert all(torch.allclose(a, b, atol=2e-3) for a, b in zip(ours, adam, strict=True))


def test_each_network_of_a_batch_may_have_its_own() -> None:
    of = task().repeated(2)
    parameters = first_parameters(torch.Generator().manual_seed(3)).repeat(2, 1)
    parameters[1] += 0.1 * torch.randn(N_PARAMETERS, generator=torch.Generator().manual_seed(4))
    weights = fit_task(of.problem(256, 0), first(of), 20, LearnedUpdate(parameters, 5e-3))
    alone = fit_task(task().problem(256, 0), first(of), 20, LearnedUpdate(parameters[1:], 5e-3))
    assert not torch.allclose(weights[2][0], weights[2][1], atol=1e-3)
    assert torch.allclose(weights[2][1], alone[2][0], atol=1e-3)


def test_a_search_moves_and_is_resumed(sources: list[Source], tmp_path: Path, capsys: Any) -> None:
    config = SearchConfig(pairs=2, widths=(6, 8), steps=(4, 9), window=3, rows=64)
    search = Search(config, sources, tmp_path / "optimiser.pt")
    before = search.parameters.clone()
    search.advance(0.0)
    search.advance(0.5)
    assert search.moves >= 2
    assert 0 < float((search.parameters - before).abs().max()) < 0.1
    search.tell()
    line = json.loads(capsys.readouterr().out)
    assert (line["fits"], line["moves"]) == (2, search.moves)
    resumed = Search(config, sources, tmp_path / "optimiser.pt")
    assert (resumed.n_fits, resumed.moves) == (2, search.moves)
    assert torch.equal(load_optimiser(tmp_path / "optimiser.pt")[0], search.parameters)


def test_a_search_goes_against_its_gradient(sources: list[Source], tmp_path: Path) -> None:
    search = Search(SearchConfig(), sources, tmp_path / "optimiser.pt")
    before = search.parameters.clone()
    gradient = torch.ones(N_PARAMETERS)
    gradient[::2] = -3
    search.move(gradient, 0.0)
    assert torch.equal(torch.sign(search.parameters - before), -torch.sign(gradient))


def test_dark_lines_are_membranes() -> None:
    image = torch.randn(2, 1, 40, 40, generator=torch.Generator().manual_seed(0)) * 0.2
    image[:, :, 18:21] -= 3
    labels = guidance.pseudo_labels(image)
    assert labels.shape == image.shape
    assert labels[:, :, 19].float().mean() > 0.95
    assert abs(float(labels.float().mean()) - guidance.MEMBRANE_SHARE) < 0.02


def test_the_membrane_network_learns_them(sources: list[Source], tmp_path: Path) -> None:
    torch.save(guidance.train_membranes(sources, 25).state_dict(), tmp_path / "membranes.pt")
    view = guidance.membrane_view(guidance.load_membranes(tmp_path / "membranes.pt"))
    image = torch.from_numpy(task().images[:, :1])
    found, truth = view(image), guidance.pseudo_labels(image)
    assert found.shape == image.shape
    assert found[truth].mean() > found[~truth].mean() + 0.05


@pytest.mark.parametrize("name", ["membrane", "perceptual"])
def test_guides_vanish_where_nothing_is_lost(name: str) -> None:
    view = guidance.membrane_view(guidance.MembraneNet()) if name == "membrane" else guidance.feature_view()
    of = task_of(fibsem()[None, :2, :64, :64].astype("f4"), Architecture(3, 12, 4))
    weights = [w.requires_grad_() for w in siren.effective(first(of), torch.full((1, 1, 1), siren.FREQUENCY))]
    perfect = FieldTask(of.decoded([w.detach() for w in weights]), of.architecture, of.scale)
    nothing = guidance.guide(perfect, view, 1.0, 0)(weights)
    something = guidance.guide(of, view, 1.0, 0)(weights)
    assert float(nothing.detach()) < 1e-3 * float(something.detach())
    assert all(bool(g.abs().sum() > 0) for g in torch.autograd.grad(something, weights[2:-1]))
    assert float(guidance.guide(of, view, 0.5, 0)(weights).detach()) == pytest.approx(float(something.detach()) / 2)
