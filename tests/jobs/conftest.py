"""Compressed arrays that many tests look at: made once, copied for tests that damage them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from zarr_emcodec.jobs.compress import compress
from zarr_emcodec.jobs.demo import SAMPLE

CHUNKS = (16, 64, 64)
LAYOUTS: dict[str, dict[str, Any]] = {"v2": {"zarr_format": 2}, "v3": {}, "sharded": {"shards": (32, 64, 128)}}


@pytest.fixture(scope="session")
def masters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("masters")
    for name, words in LAYOUTS.items():
        compress(SAMPLE, folder / name, ratio=8, model="vae-2d-s16", chunks=CHUNKS, verify=False, **words)
    return {name: folder / name for name in LAYOUTS}


@pytest.fixture(params=LAYOUTS)
def stored(request: pytest.FixtureRequest, masters: dict[str, Path], tmp_path: Path) -> Path:
    """The sample at ratio 8 in each layout."""
    return Path(shutil.copytree(masters[request.param], tmp_path / "a.zarr"))


@pytest.fixture
def stored_v3(masters: dict[str, Path], tmp_path: Path) -> Path:
    """The sample at ratio 8, each chunk an object of its own."""
    return Path(shutil.copytree(masters["v3"], tmp_path / "a.zarr"))


@pytest.fixture
def stored_sharded(masters: dict[str, Path], tmp_path: Path) -> Path:
    """The sample at ratio 8, four chunks in each shard."""
    return Path(shutil.copytree(masters["sharded"], tmp_path / "a.zarr"))
