"""The small models are what `make` makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnx", reason="building models needs onnx")
from tests.models import FOLDER, make
from zarr_emcodec.runtime import check_onnx, find_model
from zarr_emcodec.runtime.model import read_tables
from zarr_emcodec.runtime.session import OnnxRuntimeNetwork


def inputs_for(file: str, ndim: int) -> dict[str, NDArray[Any]]:
    """Something for every input that a network of that many axes may have."""
    rng = np.random.default_rng(0)
    image = rng.normal(0, 1, (2, 1, *(4, 16, 16)[-ndim:])).astype(np.float32)
    top = rng.integers(0, 256, (2, *(4, 6, 8)[-ndim:]))
    bottom = rng.integers(0, 257, (2, *(2 * n for n in top.shape[1:])))
    return {
        "image": image,
        "decoded": image / 2,
        "top": top,
        "bottom": np.minimum(bottom, 255),
        "tokens": bottom if "bottom" in file else top,
        "features": rng.normal(0, 1, (2, 3, *bottom.shape[1:])).astype(np.float32),
    }


@pytest.mark.parametrize("name", make.MODELS)
def test_what_is_stored_here_computes_what_make_writes(name: str) -> None:
    ndim = find_model(f"{name}@1", folders=[FOLDER]).card.ndim
    for file, data in make.MODELS[name]().items():
        stored = (FOLDER / name / file).read_bytes()
        if file.endswith(".npz"):
            ours, theirs = read_tables(stored, file), read_tables(data, file)
            assert ours.keys() == theirs.keys()
            assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
        elif file.endswith(".onnx"):
            check_onnx(stored)
            networks = [OnnxRuntimeNetwork(content, "cpu", 1) for content in (stored, data)]
            taken = {entry.name for entry in networks[0]._session.get_inputs()}
            inputs = {key: value for key, value in inputs_for(file, ndim).items() if key in taken}
            for a, b in zip(*(network.run_all(inputs) for network in networks), strict=True):
                assert np.allclose(a, b, atol=1e-5)
