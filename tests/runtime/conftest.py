"""Every test here sees its own empty search path, cache and options."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from zarr_emcodec.runtime import find
from zarr_emcodec.runtime import options as options_class

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that ``ZARR_EMCODEC_MODELS`` names."""
    models = tmp_path / "models"
    models.mkdir()
    monkeypatch.setenv("ZARR_EMCODEC_MODELS", str(models))
    monkeypatch.setenv("ZARR_EMCODEC_CACHE", str(tmp_path / "cache"))
    find.registered.clear()
    with options_class(threads=1, provider="auto", backend="onnxruntime", model_path=(), trusted_digests=()):
        yield models
    find.registered.clear()
