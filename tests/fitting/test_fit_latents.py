"""The descent of latents: slopes by tiles are those of the whole, rounds never make it worse, time is kept."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="fitting needs torch")

from tests.volumes import Array, fibsem
from zarr_emcodec import transform
from zarr_emcodec.codecs.latents_context import latents_model_of
from zarr_emcodec.codecs.latents_decode import PARTS, analyse
from zarr_emcodec.fitting import latents as fitting
from zarr_emcodec.fitting.latents import Task, _Descent, fit_latents
from zarr_emcodec.runtime import current, find_model

LEVEL = 130


def task(ndim: int, chunk: Array) -> tuple[Task, Array]:
    """A chunk as latents are fitted to it, and where they start."""
    model = latents_model_of(find_model("inr-latents"), ndim)
    card = model.card
    grey = transform.pad_to_stride(transform.sections_of(chunk, ndim).astype(np.float32), card.stride)
    made = Task(
        decoder=model.model.file(f"{PARTS[ndim][1]}.onnx"),
        grey=grey,
        extent=transform.section_shape(chunk.shape, ndim),
        stride=card.stride,
        halo=card.halo,
        level=LEVEL,
        gain=model.gain[LEVEL],
        price=100.0,
        macs=1000.0,
    )
    return made, analyse(model, grey, current())


def rounded(targets: Array) -> tuple[Array, float]:
    symbols = np.rint(targets).astype(np.int32)
    return symbols, float(np.abs(symbols).sum())


def descent(ndim: int, chunk: Array, rounds: int = 1) -> _Descent:
    made, start = task(ndim, chunk)
    return _Descent(made, start, rounded, rounds, None, 1)


@pytest.mark.parametrize(("ndim", "shape"), [(2, (2, 100, 128)), (3, (20, 40, 61))])
def test_slopes_by_tiles_are_those_of_the_whole(
    ndim: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    moving = descent(ndim, fibsem()[tuple(slice(n) for n in shape)])
    symbols, _ = rounded(moving.target)
    error, slope = moving._slope(symbols)
    monkeypatch.setattr(fitting, "_TILE_VOXELS", 2 * 32 * 32)
    assert len(list(moving._tiles(symbols.shape[2:]))) > 1
    by_tiles, slopes = moving._slope(symbols)
    assert by_tiles == pytest.approx(error, rel=1e-4)
    assert np.allclose(slopes, slope, rtol=1e-3, atol=1e-3 * np.abs(slope).max())


def test_the_slope_is_that_of_the_error() -> None:
    moving = descent(2, fibsem()[:1, :64, :64])
    symbols = rounded(moving.target)[0]
    error, slope = moving._slope(symbols)
    place: Any = (0, 0, 1, 1)
    more: Any = symbols.astype(np.float32)  # the derivative is taken between symbols, too
    more[place] += 0.02
    assert (moving._slope(more)[0] - error) / 0.02 == pytest.approx(slope[place], rel=0.1)


def test_rounds_help_and_never_hurt() -> None:
    made, start = task(2, fibsem()[:1, :96, :96])
    costs = []
    for rounds in (1, 6):
        found = fit_latents(made, start, rounded, rounds, deadline=None, threads=1)
        moving = _Descent(made, found, rounded, 1, None, 1)
        symbols, bits = rounded(moving.target)
        costs.append(moving._slope(symbols)[0] + made.price * bits)
    symbols, bits = rounded(start / made.gain.reshape(1, -1, 1, 1))
    before = _Descent(made, start, rounded, 1, None, 1)._slope(symbols)[0] + made.price * bits
    assert costs[1] < costs[0] <= before


def test_no_round_is_begun_that_has_no_time() -> None:
    made, start = task(2, fibsem()[:1, :64, :64])
    called = []

    def choose(targets: Array) -> tuple[Array, float]:
        called.append(1)
        return rounded(targets)

    found = fit_latents(made, start, choose, 50, deadline=time.perf_counter(), threads=1)
    assert len(called) == 1
    assert np.allclose(found, start, rtol=1e-5, atol=1e-3)


def test_long_fits_are_announced_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(fitting, "_LONG_S", 0.0)
    monkeypatch.setattr(fitting, "_announced", set())
    made, start = task(2, fibsem()[:1, :64, :64])
    for _ in range(2):
        fit_latents(made, start, rounded, 1, deadline=None, threads=1)
    assert [record.getMessage()[:7] for record in caplog.records] == ["fitting"]
