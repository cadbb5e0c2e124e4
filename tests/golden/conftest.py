"""Every test here finds the small models beside those that are shipped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.models import CONTEXT_FOLDER, FOLDER
from zarr_emcodec import options


@pytest.fixture(autouse=True)
def small_models() -> Iterator[None]:
    with options(model_path=(FOLDER, CONTEXT_FOLDER)):
        yield
