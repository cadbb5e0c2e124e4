"""Every test here finds the small token models beside those that are shipped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.models import FOLDER
from zarr_emcodec import options


@pytest.fixture(autouse=True)
def token_models() -> Iterator[None]:
    with options(model_path=FOLDER):
        yield
