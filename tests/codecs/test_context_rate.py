"""Levels for a ratio under a learned entropy model: guessed from a part of a chunk, corrected by what was tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.codecs.context import DEEP, FLAT, STACK, encode, model
from tests.volumes import fibsem
from zarr_emcodec import transform
from zarr_emcodec.codecs import context_coding, context_probe, inference, vae_encode
from zarr_emcodec.codecs.context_coding import ContextLatents
from zarr_emcodec.runtime import Options

EACH = pytest.mark.parametrize("name", [FLAT, DEEP, STACK])


def latents_of(chunk: NDArray[Any], name: str) -> ContextLatents:
    """What an encoder knows of a chunk before it codes anything."""
    found = model(name)
    card = found.model.card
    sections = transform.sections_of(chunk, card.ndim).astype(np.float32)
    grey = transform.pad_to_stride(sections, card.stride)
    return ContextLatents(inference.analyse(found.model, grey, Options()), found, sections.shape[1:])


def real_bytes(item: ContextLatents, level: int) -> int:
    """Of all parts at a level."""
    ((side, parts),) = context_coding.encode_sections([item], [level], Options())
    return len(side) + sum(map(len, parts))


@EACH
def test_a_part_tells_what_the_whole_costs(name: str) -> None:
    item = latents_of(fibsem(), name)
    found = item.part()
    assert found is not None
    assert found[0].size <= 0.26 * item.latents.size
    for level in (10, 30):
        item.correct(level, 1e-3)  # whatever was guessed before
        context_probe.probe([item], [level], Options())
        assert item.estimated_bytes(level, "entropy") == pytest.approx(real_bytes(item, level), rel=0.05)


def test_chunks_are_corrected_together_as_alone() -> None:
    volume = fibsem()
    shapes = [(32, 128, 128), (8, 128, 128), (1, 128, 128), (2, 40, 128)]  # many sections, few, one, and small ones
    together = [latents_of(volume[tuple(map(slice, shape))], FLAT) for shape in shapes]
    assert [item.part() is None for item in together] == [False, False, False, True]
    levels = [20, 25, 30, 20]
    context_probe.probe(together, levels, Options())
    for shape, item, level in zip(shapes, together, levels, strict=True):
        alone = latents_of(volume[tuple(map(slice, shape))], FLAT)
        context_probe.probe([alone], [level], Options())
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
