"""Levels for a ratio under a learned entropy model: guessed from a part of a chunk, corrected by what was tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.codecs.context import DEEP, FLAT, STACK, bytes_at, encode, latents_of
from tests.volumes import fibsem
from zarr_emcodec.codecs import context_probe, vae_encode
from zarr_emcodec.codecs.context_coding import ContextLatents
from zarr_emcodec.frame import unpack
from zarr_emcodec.runtime import Options

EACH = pytest.mark.parametrize("name", [FLAT, DEEP, STACK])


@EACH
def test_a_part_tells_what_the_whole_costs(name: str) -> None:
    item = latents_of(fibsem(), name)
    found = item.part()
    assert found is not None
    assert found[0].size <= 0.26 * item.latents.size
    for level in (10, 30):
        item.correct(level, 1e-3)  # whatever was guessed before
        context_probe.probe([item], [level].__getitem__, Options())
        assert item.estimated_bytes(level, "entropy") == pytest.approx(bytes_at(item, level), rel=0.05)


def test_chunks_are_corrected_together_as_alone() -> None:
    volume = fibsem()
    shapes = [(32, 128, 128), (8, 128, 128), (1, 128, 128), (2, 40, 128)]  # many sections, few, one, and small ones
    together = [latents_of(volume[tuple(map(slice, shape))], FLAT) for shape in shapes]
    assert [item.part() is None for item in together] == [False, False, False, True]
    levels = [20, 25, 30, 20]
    context_probe.probe(together, levels.__getitem__, Options())
    for shape, item, level in zip(shapes, together, levels, strict=True):
        alone = latents_of(volume[tuple(map(slice, shape))], FLAT)
        context_probe.probe([alone], [level].__getitem__, Options())
        assert alone.estimated_bytes(level, "entropy") == item.estimated_bytes(level, "entropy")


def test_sizes_that_are_known_are_told_again_and_joined() -> None:
    item = latents_of(fibsem(), FLAT)
    sizes = {20: 9000.0, 30: 3000.0}  # steeper than the model's curve
    for level, size in sizes.items():
        item.calibrate(level, size, "entropy")
    for level, size in sizes.items():
        assert item.estimated_bytes(level, "entropy") == pytest.approx(size, rel=0.02)
    between = [item.estimated_bytes(level, "entropy") for level in range(20, 31)]
    assert all(np.diff(between) < 0)
    item.latents = item.latents.copy()  # better ones, of which nothing is known
    item.calibrate(20, 8000.0, "entropy")
    assert item.estimated_bytes(30, "entropy") > 1.2 * sizes[30]


@EACH
@pytest.mark.parametrize("ratio", [24, 100])
def test_two_tries_are_enough(name: str, ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    code = vae_encode._code

    def counting(jobs: Sequence[Any], levels: Sequence[int], options: Options) -> list[bytes]:
        tried.extend(levels)
        return code(jobs, levels, options)

    monkeypatch.setattr(vae_encode, "_code", counting)
    encode(fibsem(), name, ratio=ratio)
    assert 1 <= len(tried) <= 2


@EACH
def test_a_first_guess_far_off_costs_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    near = encode(fibsem(), name, ratio=40)
    monkeypatch.setattr(ContextLatents, "_first_shift", lambda self: 25.0)  # levels: thrice as many bytes
    far = encode(fibsem(), name, ratio=40)
    if name != STACK:
        assert far == near
    # probed a level beside, those that refer to others may leave out other hyper-latents, or nearly worthless ones
    assert unpack(far).setting == unpack(near).setting
    assert len(far) == pytest.approx(len(near), rel=0.005)
