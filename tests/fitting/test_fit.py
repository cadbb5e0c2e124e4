"""Fits: what they reach, that they repeat, that a neighbour in the batch changes nothing, that limits are kept."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="fits need torch")
import torch

from tests.volumes import fibsem
from zarr_emcodec.fitting import Architecture, watching
from zarr_emcodec.fitting import fit as fit_module
from zarr_emcodec.fitting.fit import FitSettings, Fitted, fit_fields
from zarr_emcodec.fitting.learned import shipped_update
from zarr_emcodec.fitting.siren import FREQUENCY, forward, initial, sensitivity

Floats = NDArray[np.float32]
SHAPE = (4, 24, 20)
AXES = [((2 * np.arange(n) + 1) / n - 1).astype(np.float32) for n in SHAPE]
NET = Architecture(3, 14, 4)
SETTINGS = FitSettings(steps=60, provider="cpu")


def target(n: int = 1) -> Floats:
    chunks = np.stack([fibsem()[4 * i : 4 * i + 4, 20:44, 30:50] for i in range(n)]).astype(np.float32)
    return np.asarray((chunks - 128) / 40, np.float32)


def choose(chunk: int, weights: list[Floats], felt: NDArray[np.float64]) -> Floats:
    """A fortieth of each tensor's spread."""
    return np.array([w.std() / 40 + 1e-4 for w in weights], np.float32)


def fit(targets: Floats | None = None, settings: FitSettings = SETTINGS) -> Fitted:
    return fit_fields(target() if targets is None else targets, AXES, NET, settings, choose)


def values(fitted: Fitted, i: int = 0, *, rounded: bool = True) -> Floats:
    weights = [w[i] for w in fitted.weights]
    if rounded:
        weights = [np.rint(w / s) * s for w, s in zip(weights, fitted.steps[i], strict=True)]
    signal = np.stack(np.meshgrid(*AXES, indexing="ij"), -1).reshape(-1, 3).astype(np.float64)
    for matrix, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        signal = np.sin(signal @ matrix + bias)
    out: Floats = (signal @ weights[-2] + weights[-1]).reshape(SHAPE)
    return out


def test_a_fit_explains_most_of_a_chunk_and_survives_rounding() -> None:
    chunk = target()
    fitted = fit(chunk, replace(SETTINGS, steps=250))
    error = np.square(values(fitted) - chunk[0]).mean()
    assert error < 0.35 * chunk.var()
    assert error < 1.1 * np.square(values(fitted, rounded=False) - chunk[0]).mean() + 0.01
    assert fitted.n_steps.tolist() == [250]
    assert [w.shape[1:] for w in fitted.weights] == list(NET.shapes)


def test_the_frequency_learns() -> None:
    fitted = fit()
    assert fitted.frequency.shape == (1,)
    assert fitted.frequency[0] != FREQUENCY


def test_equal_seeds_repeat_and_others_do_not() -> None:
    first, second, other = fit(), fit(), fit(settings=replace(SETTINGS, seed=1))
    for a, b in zip(first.weights, second.weights, strict=True):
        assert np.array_equal(a, b)
    assert not np.array_equal(first.weights[0], other.weights[0])


def test_neighbours_in_a_batch_change_no_bit() -> None:
    together = fit(target(3))
    for i in range(3):
        alone = fit(target(3)[i : i + 1])
        for a, b in zip(together.weights, alone.weights, strict=True):
            assert np.array_equal(a[i], b[0])


def test_the_time_limit_is_kept_and_the_schedule_ends() -> None:
    chosen = []

    def counted(chunk: int, weights: list[Floats], felt: NDArray[np.float64]) -> Floats:
        chosen.append(time.perf_counter())
        return choose(chunk, weights, felt)

    began = time.perf_counter()
    fitted = fit_fields(target(), AXES, NET, replace(SETTINGS, steps=10**6, time_limit=1.0), counted)
    assert 1 < fitted.n_steps[0] < 10**6
    assert 0.9 < time.perf_counter() - began < 1.5  # a step takes milliseconds; the rest is a busy machine's
    assert chosen[0] - began > 0.6  # weights are rounded only towards the end


def test_voxels_worked_through_add_up() -> None:
    seen: list[float] = []
    with watching(seen.append):
        fit()
    assert len(seen) == SETTINGS.steps
    assert sum(seen) == pytest.approx(target().size)
    with watching(seen.append):
        pass
    fit()
    assert len(seen) == SETTINGS.steps  # nobody watches any more


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_a_watcher_may_end_a_fit(kind: type[BaseException]) -> None:
    calls = []

    def enough(n_voxels: float) -> None:
        calls.append(n_voxels)
        if len(calls) == 3:
            raise kind

    with pytest.raises(kind), watching(enough):
        fit()
    assert len(calls) == 3


def test_a_long_fit_says_what_it_will_take(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    fit()
    assert not caplog.records
    monkeypatch.setattr(fit_module, "_LONG_S", 0.0)
    with caplog.at_level(logging.WARNING):
        fit()
        fit(target(2))  # alike, so nothing new to say
    (record,) = caplog.records
    assert "fitting 1 chunk: 60 steps of 1024 voxels" in record.getMessage()
    assert "TMAC, about" in record.getMessage()


def test_threads_are_those_stated_and_put_back() -> None:
    outer = torch.get_num_threads()
    seen = []
    with watching(lambda n: seen.append(torch.get_num_threads())):
        fit(settings=replace(SETTINGS, steps=5, threads=2))
    assert set(seen) == {2}
    assert torch.get_num_threads() == outer


def test_sensitivity_says_what_noise_does() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [w[None] * (FREQUENCY if i < 6 else 1) for i, w in enumerate(initial(NET, SHAPE, generator))]
    coords = torch.rand(2000, 3, generator=generator) * 2 - 1
    felt = sensitivity(weights, coords, generator)
    assert felt.shape == (8, 1)
    exact = forward(weights, coords)
    for i in range(8):
        ratios = []
        for _ in range(30):
            noise = 1e-3 * torch.randn(weights[i].shape, generator=generator)
            moved: list[Any] = [*weights]
            moved[i] = weights[i] + noise
            error = float((forward(moved, coords) - exact).square().mean())
            ratios.append(error / float(noise.square().sum()))
        assert 0.4 < float(felt[i, 0]) / np.mean(ratios) < 2.5


def test_which_fits_the_learned_optimiser_is_for() -> None:
    there = [
        shipped_update(Architecture(3, width, 4), steps, "cpu") is not None
        for width, steps in ((14, 30), (14, 50), (80, 200), (81, 200), (14, 400))
    ]
    assert there == [False, True, True, False, False]


def test_the_learned_optimiser_ends_lower_at_equal_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def error() -> float:
        chunks = target(3)
        fitted = fit(chunks, replace(SETTINGS, steps=100))
        return float(np.mean([np.square(values(fitted, i) - chunks[i]).mean() for i in range(3)]))

    learned = error()
    monkeypatch.setattr(fit_module, "shipped_update", lambda *_: None)
    assert learned < error()


def test_what_has_a_start_is_told_as_differences_to_it() -> None:
    first = initial(NET, SHAPE, torch.Generator().manual_seed(7))
    effective = [w * FREQUENCY for w in first[:-2]] + first[-2:]
    start = [w.numpy().reshape(shape) for w, shape in zip(effective, NET.shapes, strict=True)]
    seen: list[list[Floats]] = []

    def kept(chunk: int, weights: list[Floats], felt: NDArray[np.float64]) -> Floats:
        seen.append(weights)
        return choose(chunk, weights, felt)

    chunk = target()
    fitted = fit_fields(chunk, AXES, NET, replace(SETTINGS, steps=250), kept, start)
    moved = [w[0] for w in fitted.weights]
    assert all(np.abs(w).max() < 3 for w in moved)
    assert all(np.abs(w - m).max() < 3 for w, m in zip(seen[-1], moved, strict=True))
    assert moved[0].std() < start[0].std() / 2  # frequencies are nearly left alone, which is what saves bytes
    whole = replace(fitted, weights=[(w + s)[None] for w, s in zip(moved, start, strict=True)])
    assert np.square(values(whole, rounded=False) - chunk[0]).mean() < 0.35 * chunk.var()


@pytest.mark.gpu
def test_a_gpu_fits_as_well() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    chunk = target()
    fitted = fit(chunk, replace(SETTINGS, steps=250, provider="cuda"))
    assert np.square(values(fitted) - chunk[0]).mean() < 0.35 * chunk.var()
