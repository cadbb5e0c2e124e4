"""The small models are what `make` makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnx", reason="building models needs onnx")
from tests.models import CONTEXT_FOLDER, FOLDER, make, make_context
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
        "grey": 128 + 30 * image,
        "level": np.array([0, 40]),
        "reach": np.array([0, 2]),
        "image": image,
        "decoded": image / 2,
        "top": top,
        "bottom": np.minimum(bottom, 255),
        "tokens": bottom if "bottom" in file else top,
        "features": rng.normal(0, 1, (2, 3, *bottom.shape[1:])).astype(np.float32),
    }


def of_channels(n: int, ndim: int, bound: int) -> NDArray[np.float32]:
    """Whole numbers on a small grid."""
    shape = (2, n, *(2, 4, 5)[-ndim:])
    return np.random.default_rng(1).integers(-bound, bound + 1, shape).astype(np.float32)


MAKE = {
    **dict.fromkeys(make.MODELS, (FOLDER, make)),
    **dict.fromkeys(make_context.MODELS, (CONTEXT_FOLDER, make_context)),
}


@pytest.mark.parametrize("name", MAKE)
def test_what_is_stored_here_computes_what_make_writes(name: str) -> None:
    folder, maker = MAKE[name]
    card = find_model(f"{name}@1", folders=[folder]).card
    for file, data in maker.MODELS[name]().items():
        stored = (folder / name / file).read_bytes()
        if file.endswith(".npz"):
            ours, theirs = read_tables(stored, file), read_tables(data, file)
            assert ours.keys() == theirs.keys()
            # shares are frozen, gains follow the machine's logarithms
            assert all(np.allclose(ours[key], theirs[key], rtol=1e-6, atol=0) for key in ours)
        elif file.endswith(".onnx"):
            check_onnx(stored)
            networks = [OnnxRuntimeNetwork(content, "cpu", 1) for content in (stored, data)]
            inputs = inputs_for(file, card.ndim)
            if card.context is not None:
                inputs["symbols"] = of_channels(card.channels - card.context.hyper, card.ndim, 9)
                inputs |= {"latents": 40 * inputs["symbols"], "left": 10 * inputs["symbols"][::-1]}
                number = int(file[8]) if file.startswith("context") else 0
                inputs["known"] = of_channels(card.context.known(number), card.ndim, 127)
            taken = {entry.name for entry in networks[0]._session.get_inputs()}
            given = {key: value for key, value in inputs.items() if key in taken}
            for a, b in zip(*(network.run_all(given) for network in networks), strict=True):
                assert np.allclose(a, b, atol=1e-5 if card.context is None else 1e-3)
