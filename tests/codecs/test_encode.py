"""Encoding keeps its promises: the ratio, the floor, the ceiling, the exact size; and refuses what it cannot store."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
import zarr

import zarr_emcodec
from tests.codecs.frames import encode
from tests.volumes import Array, as_dtype, checkerboard, fibsem, noise
from zarr_emcodec import transform
from zarr_emcodec.codecs import VAESpec, decode_many, encode_many
from zarr_emcodec.codecs.vae_decode import ladder_of
from zarr_emcodec.errors import SpecError
from zarr_emcodec.frame import inspect
from zarr_emcodec.runtime import Model, Options, find_model, list_models

MODELS = [model for model in list_models() if model.card.codec == "vae"]
DTYPES = ["uint8", "uint16", "int16", "float32"]

every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.card.id)
PLAIN = [model for model in MODELS if model.card.context is None]
every_plain_model = pytest.mark.parametrize("model", PLAIN, ids=lambda model: model.card.id)


def within(model: Model, share: float) -> float:
    """A ratio of the model's range; share 0 is its low end, 1 its high end."""
    low, high = model.card.ratio_range
    return float(low * (high / low) ** share)


def decoded(data: bytes) -> Array:
    return decode_many([data])[0]


def psnr(a: Array, b: Array, peak: float) -> float:
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return math.inf if error == 0 else float(10 * np.log10(peak**2 / error))


@every_model
@pytest.mark.parametrize("share", [0, 0.15, 0.3, 0.5, 0.7, 0.85, 1])
@pytest.mark.parametrize("start", [0, 16])
def test_the_ratio_asked_for_is_the_ratio_on_disk(model: Model, share: float, start: int) -> None:
    chunk = fibsem()[start : start + 16]
    ratio = within(model, share)
    found = chunk.nbytes / len(encode(chunk, ratio=ratio, model=model.card.id))
    assert ratio <= found <= 1.1 * ratio


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ratio", [16, 100])
def test_the_ratio_counts_raw_bytes_of_the_dtype(dtype: str, ratio: float) -> None:
    chunk = as_dtype(fibsem()[:16], dtype)
    data = encode(chunk, ratio=ratio)
    assert inspect(data).kind == "latent"
    assert ratio <= chunk.nbytes / len(data) <= 1.1 * ratio


@pytest.mark.parametrize("name", ["noise", "checkerboard", "blurred", "faint"])
@pytest.mark.parametrize("ratio", [12, 40, 200])
def test_the_ratio_is_never_missed_on_unlikely_data(name: str, ratio: float) -> None:
    shape = (8, 96, 112)
    blurred = np.cumsum(np.cumsum(noise(shape).astype(np.float32) - 127.5, 1), 2)
    chunk = {
        "noise": noise(shape),
        "checkerboard": checkerboard(shape),
        "blurred": ((blurred - blurred.min()) / np.ptp(blurred) * 255).astype(np.uint8),
        "faint": np.uint8(100) + noise(shape) // np.uint8(128),
    }[name]
    assert chunk.nbytes / len(encode(chunk, ratio=ratio)) >= ratio


@pytest.mark.parametrize("floor", [24.0, 30.0, 36.0, 42.0, 60.0])
@pytest.mark.parametrize("name", ["tissue", "noise", "checkerboard"])
def test_the_floor_is_kept(floor: float, name: str) -> None:
    chunk = {"tissue": fibsem()[:4], "noise": noise((2, 64, 64)), "checkerboard": checkerboard((2, 64, 64))}[name]
    data = encode(chunk, min_psnr=floor)
    assert psnr(chunk, decoded(data), 255) >= floor
    assert len(data) <= chunk.nbytes + 32


@pytest.mark.parametrize("ceiling", [0, 0.5, 1, 3, 8, 30, 100])
@pytest.mark.parametrize("name", ["tissue", "noise", "checkerboard"])
def test_the_ceiling_is_kept(ceiling: float, name: str) -> None:
    chunk = {"tissue": fibsem()[:4], "noise": noise((2, 64, 64)), "checkerboard": checkerboard((2, 64, 64))}[name]
    data = encode(chunk, max_error=ceiling)
    assert np.abs(decoded(data).astype(int) - chunk.astype(int)).max() <= ceiling
    if ceiling < 1:
        assert inspect(data).kind == "lossless"


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_guards_are_in_the_units_of_the_source(dtype: str) -> None:
    chunk = as_dtype(fibsem()[:4], dtype)
    span = float(np.ptp(chunk.astype(np.float64)))
    data = encode(chunk, max_error=span / 10)
    assert inspect(data).kind == "latent"
    assert np.abs(decoded(data).astype(np.float64) - chunk).max() <= span / 10
    data = encode(chunk, min_psnr=33.0)
    window = inspect(data).window
    assert window is not None
    assert psnr(chunk, decoded(data), 255 * window[1]) >= 33.0


def test_a_lower_floor_costs_no_more_and_both_guards_hold_together() -> None:
    chunk = fibsem()[:8]
    sizes = [len(encode(chunk, min_psnr=floor)) for floor in (26.0, 30.0, 34.0, 38.0)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] / 3
    data = encode(chunk, min_psnr=30.0, max_error=40, ratio=48)
    back = decoded(data)
    assert psnr(chunk, back, 255) >= 30
    assert np.abs(back.astype(int) - chunk.astype(int)).max() <= 40


def test_a_guard_takes_precedence_over_the_ratio_and_the_ratio_over_nothing() -> None:
    chunk = fibsem()[:8]
    easy = encode(chunk, ratio=64, min_psnr=10.0)
    assert easy == encode(chunk, ratio=64)
    hard = encode(chunk, ratio=64, min_psnr=38.0)
    assert psnr(chunk, decoded(hard), 255) >= 38 > psnr(chunk, decoded(easy), 255)
    assert len(hard) > chunk.nbytes / 64


def test_what_no_level_reaches_is_stored_exactly() -> None:
    chunk = noise((2, 64, 64))
    for words in ({"min_psnr": 55.0}, {"max_error": 2}, {"ratio": 16, "max_error": 2}):
        data = encode(chunk, **words)
        assert inspect(data).kind == "lossless"
        assert np.array_equal(decoded(data), chunk)


@every_plain_model
@pytest.mark.parametrize("share", [0.4, 0.6, 0.8, 1])
@pytest.mark.parametrize("shape", [(16, 128, 128), (3, 50, 77)])
def test_nominal_sizes_are_exact_arithmetic(model: Model, share: float, shape: tuple[int, ...]) -> None:
    chunk = fibsem()[tuple(slice(0, n) for n in shape)]
    ratio = within(model, share)
    data = encode(chunk, ratio=ratio, model=model.card.id, mode="nominal")
    info, ladder = inspect(data), ladder_of(model)
    widths = ladder.tables.bits[ladder.index[info.setting]].astype(int)
    cells = np.prod(transform.cells((shape[1], shape[2]), (model.card.stride[0], model.card.stride[1])))
    assert info.kind == "latent"
    assert info.section_bytes == (0, 1 + -(-int(widths.sum() * cells * shape[0]) // 8))
    others = [encode(other, ratio=ratio, model=model.card.id, mode="nominal") for other in (chunk[::-1], 255 - chunk)]
    assert {len(other) for other in others} == {len(data)}
    assert {inspect(other).setting for other in others} == {info.setting}
    if chunk.nbytes / ratio >= 64:
        assert len(data) <= chunk.nbytes / ratio


def test_nominal_and_entropy_decode_to_the_same_kind_of_thing() -> None:
    chunk = fibsem()[:8]
    nominal, entropy = encode(chunk, ratio=20, mode="nominal"), encode(chunk, ratio=20)
    assert psnr(chunk, decoded(entropy), 255) > psnr(chunk, decoded(nominal), 255) > 20


REFUSED: dict[str, tuple[Any, str, str]] = {
    "NaN": (np.where(np.arange(64) == 9, np.nan, np.arange(64)).astype("f4").reshape(8, 8), "chunk", "1 NaN"),
    "infinity": (np.where(np.arange(64) < 2, np.inf, np.arange(64)).astype(">f4").reshape(8, 8), "chunk", "2 NaN"),
    "minus infinity": (np.array([[1, -np.inf]], "f4"), "chunk", "background"),
    "empty": (np.zeros((0, 8, 8), "u1"), "shape", "no voxels"),
    "empty inside": (np.zeros((4, 8, 0), "u2"), "shape", "no voxels"),
    "one axis": (np.arange(9, dtype="u1"), "shape", "filter"),
    "six axes": (np.zeros((1, 1, 1, 2, 8, 8), "u1"), "shape", "at most 5"),
    "bool": (np.eye(8, dtype=bool), "dtype", "zstd"),
    "uint32": (np.eye(8, dtype="u4"), "dtype", "crackle"),
    "uint64": (np.eye(8, dtype="u8"), "dtype", "labels"),
    "int64": (np.eye(8, dtype="i8"), "dtype", "labels"),
    "int8": (np.eye(8, dtype="i1"), "dtype", "uint8"),
    "object": (np.eye(8).astype(object), "dtype", "labels"),
    "float64": (np.eye(8), "dtype", "float32"),
    "float16": (np.eye(8, dtype="f2"), "dtype", "float32"),
    "complex64": (np.eye(8, dtype="c8"), "dtype", "convert"),
    "structured": (np.zeros((8, 8), "u1,u1"), "dtype", "convert"),
    "text": (np.full((8, 8), "a"), "dtype", "convert"),
    "dates": (np.zeros((8, 8), "M8[s]"), "dtype", "convert"),
}


@pytest.mark.parametrize("words", [{"ratio": 16}, {"min_psnr": 30.0}, {"max_error": 0}], ids=str)
@pytest.mark.parametrize("name", REFUSED)
def test_what_no_frame_can_hold_is_refused_by_name(name: str, words: dict[str, Any]) -> None:
    chunk, culprit, word = REFUSED[name]
    with pytest.raises(SpecError, match=word) as caught:
        encode_many(VAESpec(**words), [fibsem()[:1, :8, :8], chunk])
    assert caught.value.name == culprit


def test_a_chunk_above_the_limit_is_refused_before_it_is_copied() -> None:
    huge = np.broadcast_to(np.uint8(3), (1 << 11, 1 << 11, 1 << 11))
    with pytest.raises(SpecError, match="smaller chunks") as caught:
        encode_many(VAESpec(ratio=16), [huge])
    assert caught.value.name == "shape"
    small = Options(max_chunk_bytes=1000)
    encode_many(VAESpec(ratio=16), [fibsem()[:1, :20, :50]], small)
    with pytest.raises(SpecError, match="1040 bytes exceeds the limit of 1000"):
        encode_many(VAESpec(ratio=16), [fibsem()[:1, :20, :52]], small)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_refused_chunk_leaves_nothing_behind(zarr_format: Literal[2, 3]) -> None:
    store: dict[str, Any] = {}
    memory = zarr.storage.MemoryStore(store)
    array = zarr_emcodec.create_array(
        memory, shape=(4, 32, 32), chunks=(4, 32, 32), dtype="float32", zarr_format=zarr_format, ratio=16
    )
    before = set(store)
    bad = as_dtype(fibsem()[:4, :32, :32], "float32")
    bad[1, 2, 3] = np.nan
    with pytest.raises(SpecError, match="NaN"):
        array[:] = bad
    assert set(store) == before
    array[:] = np.nan_to_num(bad)
    assert len(set(store) - before) == 1


@pytest.mark.parametrize("words", [{"ratio": 16}, {"ratio": 16, "window": (0, 1)}, {"min_psnr": 30.0}], ids=str)
@pytest.mark.parametrize("outlier", [1e6, 1e9, 1e12, -1e12, 1e30, 3.4e38, -3.4e38])
def test_one_wild_voxel_breaks_no_promise(outlier: float, words: dict[str, Any]) -> None:
    chunk = as_dtype(fibsem()[:2, :64, :64], "float32") + np.float32(0.5)
    chunk[0, 5, 5] = outlier
    data = encode(chunk, **words)
    back = decoded(data)
    assert np.isfinite(back).all()
    if "ratio" in words:
        assert chunk.nbytes / len(data) >= 16
    elif inspect(data).kind != "lossless":
        window = inspect(data).window
        assert window is not None
        assert psnr(chunk, back, 255 * window[1]) >= 30


@pytest.mark.parametrize("scale", [1e-44, 1e-40, 1e-30, 1e30, 2.6e36])
def test_floats_of_any_magnitude_are_grey_values(scale: float) -> None:
    grey = fibsem()[:4, :64, :64].astype(np.float64) - 128
    chunk = (grey * scale).astype(np.float32)
    back = decoded(encode(chunk, ratio=16))
    assert np.isfinite(back).all()
    if scale > 1e-37:  # below, float32 itself has few digits left
        assert np.corrcoef(back.ravel().astype(np.float64), chunk.ravel().astype(np.float64))[0, 1] > 0.8


def test_the_model_of_the_spec_is_the_model_in_the_frame() -> None:
    for model in MODELS:
        data = encode(fibsem()[:4], ratio=within(model, 0.5), model=model.card.id)
        assert inspect(data).model == model.card.digest[:8].hex()
        assert find_model(f"sha256:{inspect(data).model}") == model


@pytest.mark.parametrize("words", [{"ratio": 16}, {"min_psnr": 30.0}], ids=str)
@pytest.mark.parametrize(
    "shape",
    [(16, 16), (4, 64, 64), (2, 31, 33), (64, 1, 1), (1, 5, 200)],
    ids=str,
)
def test_what_is_written_under_a_limit_is_read_under_it(shape: tuple[int, ...], words: dict[str, Any]) -> None:
    chunk = np.resize(fibsem()[:4, :64, :64], shape)
    options = Options(max_chunk_bytes=chunk.nbytes)
    try:
        (data,) = encode_many(VAESpec(**words), [chunk], options)
    except SpecError:
        return  # a word in time is as good
    assert decode_many([data], options)[0].shape == shape


def test_nominal_storage_stays_nominal_whatever_is_in_the_chunk() -> None:
    simple = np.full((8, 128, 128), 100, np.uint8)
    simple[:, 3:20, 5:30] = fibsem()[:8, 3:20, 5:30]
    words = {"ratio": PLAIN[0].card.ratio_range[0], "model": PLAIN[0].card.id, "mode": "nominal", "background": None}
    sizes = [len(encode(chunk, **words)) for chunk in (fibsem()[:8], simple)]
    assert sizes[0] == sizes[1]
