"""`effort`: symbols moved along the decoder's gradient. Bytes stay the format's, quality rises, ratios hold."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from tests.codecs.context import DEEP, FLAT, RATIO, STACK, decode, encode
from tests.volumes import Array, as_dtype, fibsem
from zarr_emcodec.codecs import VAESpec
from zarr_emcodec.errors import MissingExtraError, SpecError
from zarr_emcodec.quality import psnr


@pytest.fixture
def torch() -> object:
    return pytest.importorskip("torch", reason="refining latents needs torch")


def tissue() -> Array:
    return fibsem()[:4, :90, :70]


@pytest.mark.parametrize("model", [FLAT, DEEP, STACK])
def test_effort_raises_quality_at_the_same_ratio(torch: object, model: str) -> None:
    chunk = tissue()
    plain, refined = (encode(chunk, model, effort=effort) for effort in (0, 3))
    assert plain != refined
    for frame in (plain, refined):
        assert chunk.nbytes / len(frame) >= RATIO[model]
    gain = psnr(chunk, decode(refined), peak=255.0) - psnr(chunk, decode(plain), peak=255.0)
    assert gain > 0.02


def test_effort_is_deterministic(torch: object) -> None:
    assert encode(tissue(), effort=2) == encode(tissue(), effort=2)


def test_other_dtypes_and_ragged_chunks_are_refined_too(torch: object) -> None:
    chunk = as_dtype(fibsem()[:2, :37, :53], "uint16")
    back = decode(encode(chunk, effort=1))
    assert back.dtype == chunk.dtype
    assert back.shape == chunk.shape


def test_frames_of_effort_decode_without_torch(torch: object, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = encode(tissue(), effort=1)
    before = decode(frame)
    monkeypatch.setitem(sys.modules, "torch", None)
    np.testing.assert_array_equal(decode(frame), before)


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"effort.*zarr_emcodec\[torch\]"):
        encode(tissue(), effort=1)


@pytest.mark.parametrize("effort", [-1, 10, 1.5, True, "high"])
def test_other_efforts_are_refused(effort: object) -> None:
    with pytest.raises(SpecError, match="effort") as caught:
        VAESpec(effort=effort)  # type: ignore[arg-type]
    assert caught.value.name == "effort"
