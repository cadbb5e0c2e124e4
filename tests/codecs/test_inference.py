"""Networks in pieces: how a chunk is cut changes memory and time, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.codecs.frames import encode
from tests.volumes import fibsem
from zarr_emcodec.codecs import VAESpec, decode_many, encode_many, inference
from zarr_emcodec.runtime import Model, Options, list_models

VAES = [model for model in list_models() if model.card.codec == "vae"]
MODELS = [model for model in VAES if model.card.context is None]
LEARNED = [model for model in VAES if model.card.context is not None]
WHOLE = Options(block_voxels=2**24)

every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.card.id)


def sections(model: Model, cells: tuple[int, int], n: int = 2) -> NDArray[np.float32]:
    """Tissue of so many cells, n sections."""
    y, x = (count * stride for count, stride in zip(cells, model.card.stride, strict=True))
    tiled = np.tile(fibsem()[:n], (1, -(-y // 128), -(-x // 128)))
    return tiled[:, :y, :x].astype(np.float32)


def blocks(model: Model, edge: int) -> Options:
    """Options under which tiles keep `edge` cells after both halos of the decoder."""
    cells = edge + 2 * max(model.card.decoder_halo)
    return Options(block_voxels=(cells * max(model.card.stride)) ** 2)


@every_model
@pytest.mark.parametrize("edge", [1, 2, 5])
def test_latents_do_not_depend_on_tiles(model: Model, edge: int) -> None:
    grey = sections(model, (11, 14))
    whole = inference.analyse(model, grey, WHOLE)
    tiled = inference.analyse(model, grey, blocks(model, edge))
    assert whole.shape == (2, model.card.channels, 11, 14)
    assert np.abs(tiled - whole).max() <= 1e-3


@every_model
@pytest.mark.parametrize("edge", [1, 2, 5])
def test_voxels_do_not_depend_on_tiles(model: Model, edge: int) -> None:
    rng = np.random.default_rng(edge)
    symbols = rng.integers(-3, 4, (2, model.card.channels, 11, 14)).astype(np.float32)
    levels = np.array([40, model.card.levels - 1])
    whole = inference.synthesise(model, symbols, levels, WHOLE)
    tiled = inference.synthesise(model, symbols, levels, blocks(model, edge))
    assert whole.shape == (2, 11 * model.card.stride[0], 14 * model.card.stride[1])
    assert np.array_equal(np.rint(tiled), np.rint(whole))
    assert np.abs(tiled - whole).max() <= 1e-3


@pytest.mark.parametrize("model", LEARNED, ids=lambda model: model.card.id)
def test_pieces_of_models_with_an_entropy_model_fit_together(model: Model) -> None:
    card = model.card
    assert card.context is not None
    grid = (5, 6) if card.ndim == 2 else (2, 4, 3)
    extent = tuple(n * stride for n, stride in zip(grid, card.stride, strict=True))
    tiles = [-(-n // m) for n, m in zip(extent, fibsem().shape[-card.ndim :], strict=True)]
    grey = np.tile(fibsem() if card.ndim == 3 else fibsem()[0], tiles)[tuple(slice(n) for n in extent)]
    grey = grey[None].astype(np.float32)
    small = Options(block_voxels=int(np.prod([n * 3 for n in card.stride])))
    whole = inference.analyse(model, grey, WHOLE)
    told = 0 if card.context.reaches else card.context.hyper
    assert whole.shape == (1, card.channels - card.context.hyper + told, *grid)
    assert np.abs(inference.analyse(model, grey, small) - whole).max() <= 2e-3
    if card.context.reaches:
        hyper, tiled = (inference.tell(model, whole, whole[:, ::-1].copy(), how) for how in (WHOLE, small))
        assert hyper.shape == (1, card.context.hyper, *grid)
        assert np.abs(tiled - hyper).max() <= 1e-3
    steps = np.rint(whole[:, told:] / 40)
    levels = np.array([card.levels // 2])
    voxels = inference.synthesise(model, steps, levels, WHOLE)
    assert voxels.shape == (1, *extent)
    assert np.abs(inference.synthesise(model, steps, levels, small) - voxels).max() <= 2e-3


@every_model
def test_the_batch_does_not_matter(model: Model) -> None:
    grey = sections(model, (3, 4), 5)
    whole = inference.analyse(model, grey, WHOLE)
    alone = np.concatenate([inference.analyse(model, grey[i : i + 1], WHOLE) for i in range(5)])
    assert np.abs(whole - alone).max() <= 1e-3
    symbols = np.rint(whole / 40)
    levels = np.array([0, 100, 100, 200, model.card.levels - 1])
    together = inference.synthesise(model, symbols, levels, WHOLE)
    pairs = inference.synthesise(model, symbols, levels, Options(block_voxels=2 * grey[0].size))
    assert np.array_equal(together, pairs)
    alone = np.concatenate(
        [inference.synthesise(model, symbols[i : i + 1], levels[i : i + 1], WHOLE) for i in range(5)]
    )
    assert np.array_equal(together, alone)
    assert np.array_equal(together, inference.synthesise(model, symbols, levels, Options(threads=2)))


@every_model
def test_no_call_is_larger_than_was_allowed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    run = Model.run

    def watched(self: Model, part: Any, inputs: Any, options: Any = None) -> NDArray[np.float32]:
        n, _, *grid = inputs["grey" if part == "encoder" else "symbols"].shape
        voxels = 1 if part == "encoder" else model.card.stride[0] * model.card.stride[1]
        seen.append(n * grid[0] * grid[1] * voxels)
        return run(self, part, inputs, options)

    monkeypatch.setattr(Model, "run", watched)
    options = blocks(model, 4)
    grey = sections(model, (17, 18), 3)
    latents = inference.analyse(model, grey, options)
    inference.synthesise(model, np.rint(latents / 40), np.array([90, 91, 92]), options)
    assert len(seen) > 12
    assert max(seen) <= options.block_voxels


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (5, 3), (2, 129, 1), (1, 33, 257), (3, 100, 131)])
@pytest.mark.parametrize("ratio", [8, 64])
def test_whole_frames_of_odd_sizes_decode_alike_in_any_blocks(shape: tuple[int, ...], ratio: float) -> None:
    chunk = np.resize(np.tile(fibsem()[:3], (1, 2, 3)), shape)
    chunk.flat[0] ^= 1  # a single voxel is a constant chunk: still welcome here
    spec = VAESpec(ratio=ratio)
    small = Options(block_voxels=2**14)
    data = encode_many(spec, [chunk], WHOLE)[0]
    assert encode_many(spec, [chunk], small)[0] == data
    back = decode_many([data], WHOLE)[0]
    assert back.shape == shape
    assert np.array_equal(decode_many([data], small)[0], back)


def test_chunks_of_several_shapes_in_one_batch_come_back_in_order() -> None:
    v = fibsem()
    chunks = [v[:2, :40, :40], v[3, :40, :40], v[:1, :64, :33], v[4:6, :40, :40], v[:2, :40, :40] * 0]
    spec = VAESpec(ratio=16, model="vae-2d-s16")
    together = encode_many(spec, chunks)
    assert together == [encode(chunk, ratio=16) for chunk in chunks]
    for chunk, back, data in zip(chunks, decode_many(together), together, strict=True):
        assert back.shape == chunk.shape
        assert np.array_equal(back, decode_many([data])[0])
    assert encode_many(spec, []) == []
    assert decode_many([]) == []
