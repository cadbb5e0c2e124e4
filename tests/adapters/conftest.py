"""Every test here has its own cache of embedded models, and forgets those that it took up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from zarr_emcodec.runtime import find


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ZARR_EMCODEC_CACHE", str(tmp_path / "cache"))
    find.registered.clear()
    yield
    find.registered.clear()
