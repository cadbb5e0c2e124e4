"""The benchmarks' own modules, by path: they are scripts beside the package, not part of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    """A module of the benchmarks that imports none of the others."""
    pytest.importorskip("scipy", reason="needs scipy")
    path = FOLDER / f"{name}.py"
    if not path.exists():
        pytest.skip("the benchmarks are not beside the tests")
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def metrics() -> ModuleType:
    return load("metrics")


@pytest.fixture(scope="session")
def segmentation() -> ModuleType:
    return load("segmentation")
