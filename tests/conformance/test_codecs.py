"""Every configuration through every array: what comes back, and what was promised of it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points

import numpy as np
import pytest

import zarr_emcodec
from tests.conformance.cases import CASES, KINDS, Case, arrays
from tests.volumes import Array, fibsem
from zarr_emcodec import options
from zarr_emcodec.adapters.numcodecs import SpecCodec
from zarr_emcodec.codecs import decode_sections
from zarr_emcodec.quality import psnr, worst_error

ARRAYS = arrays()
TISSUE = [name for name in ARRAYS if name not in ("constant", "noise", "checkerboard")]


CODECS: dict[str, type[SpecCodec]] = {
    "vae": zarr_emcodec.VAECodec,
    "vqvae": zarr_emcodec.VQVAECodec,
    "inr": zarr_emcodec.INRCodec,
}


def codec_of(case: Case, **others: object) -> SpecCodec:
    codec: SpecCodec = CODECS[case.codec](**case.words | others)
    return codec


def is_field(case: Case) -> bool:
    """Whether a network is fitted, which small chunks have no room for."""
    return case.codec == "inr" and case.words.get("backbone") != "latents"


def peak_of(array: Array, frame: bytes) -> float:
    window = zarr_emcodec.inspect(frame).window
    return 255 * window[1] if window else 255.0


@pytest.fixture(params=CASES, ids=lambda case: case.id)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    chosen: Case = request.param
    if is_field(chosen):
        pytest.importorskip("torch", reason="fitting a field needs torch")
    with options(model_path=chosen.models):
        yield chosen


@pytest.mark.parametrize("name", ARRAYS)
def test_round_trip_keeps_the_promise(case: Case, name: str) -> None:
    array = ARRAYS[name]
    codec = codec_of(case)
    if is_field(case) and not case.exact and name in ("2d-ragged", "3d-thin"):
        with pytest.raises(zarr_emcodec.errors.SpecError, match=r"smallest chunk that works has [0-9]+ voxels"):
            codec.encode(array)
        return
    frame = codec.encode(array)
    back = codec.decode(frame)
    assert back.shape == array.shape
    assert back.dtype == array.dtype
    if case.exact or name == "constant":
        assert np.array_equal(back, array)
    scale = peak_of(array, frame) / 255
    if case.worst is not None:
        assert worst_error(array, back) <= case.worst
    if case.floor_db is not None:
        assert psnr(array, back, peak=255 * scale) >= case.floor_db
    if case.codec == "vqvae" and name not in TISSUE:
        return  # so many bits a token is what the likeliest of a table takes
    if case.ratio is not None and array.nbytes / case.ratio >= 64 and case.floor_db is None:
        assert len(frame) <= array.nbytes / case.ratio


@pytest.mark.parametrize("name", ["3d", "4d", "edge-chunk", "uint16", "big-endian float32"])
def test_memory_layouts_hold_the_same_chunk(case: Case, name: str) -> None:
    array = ARRAYS[name]
    codec = codec_of(case)
    expected = codec.decode(codec.encode(array))
    fortran = np.asfortranarray(array)
    back = codec.decode(codec.encode(fortran))
    assert back.flags.f_contiguous
    assert np.array_equal(back, expected)
    spread = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    strided = spread[..., ::2]
    strided[...] = array
    assert codec.encode(strided) == codec.encode(array)
    assert np.array_equal(codec.decode(codec.encode(array[::-1])), codec.decode(codec.encode(array[::-1].copy())))


def test_any_buffer_is_decoded_and_out_is_filled(case: Case) -> None:
    array = ARRAYS["3d-ragged"]
    codec = codec_of(case)
    frame = codec.encode(array)
    expected = codec.decode(frame)
    for form in (bytearray(frame), memoryview(frame), np.frombuffer(frame, np.uint8)):
        assert np.array_equal(codec.decode(form), expected)
    out = np.empty_like(array)
    assert codec.decode(frame, out=out) is out
    assert np.array_equal(out, expected)
    assert expected.flags.writeable


def test_the_same_chunk_gives_the_same_bytes_alone_in_a_batch_and_in_threads(case: Case) -> None:
    codec = codec_of(case)
    chunks = [fibsem()[i : i + 2, :64, : 64 + 8 * (i % 2)] for i in range(0, 12, 2)]
    single = [codec.encode(chunk) for chunk in chunks]
    assert codec.encode_many(chunks) == single
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(codec.encode, chunks)) == single
    alone = [codec.decode(frame) for frame in single]
    for a, b in zip(codec.decode_many(single), alone, strict=True):
        assert np.array_equal(a, b)


def test_configuration_survives_json_pickle_and_comparison(case: Case) -> None:
    codec = codec_of(case)
    config = json.loads(json.dumps(codec.get_config()))
    again = CODECS[case.codec].from_config(config)
    assert again == codec
    assert hash(again) == hash(codec)
    assert pickle.loads(pickle.dumps(codec)) == codec
    assert repr(codec).startswith(f"{type(codec).__name__}(ratio=")
    assert codec != codec_of(case, background=99)
    assert codec.to_v3().to_v2() == codec
    assert config["digest"].startswith("sha256:")


@pytest.mark.parametrize("name", ["3d", "3d-deep", "4d", "5d", "edge-chunk", "hole", "constant", "noise", "uint16"])
def test_planes_of_a_chunk_decode_as_in_the_whole(case: Case, name: str) -> None:
    array = ARRAYS[name]
    codec = codec_of(case)
    frame = codec.encode(array)
    whole = codec.decode(frame)
    for start, stop in [(0, 1), (len(array) - 1, len(array)), (0, len(array)), (len(array) // 2, len(array))]:
        assert np.array_equal(decode_sections(frame, start, stop), whole[start:stop])


def test_background_is_exact() -> None:
    for name in ("edge-chunk", "edge-chunk-white", "hole", "one-section-left"):
        array = ARRAYS[name]
        value = array[-1, -1, -1] if name != "hole" else 0
        codec = zarr_emcodec.VAECodec(ratio=16)
        frame = codec.encode(array)
        assert zarr_emcodec.inspect(frame).kind == "masked"
        assert (codec.decode(frame)[array == value] == value).all(), name


def test_padding_to_the_fill_value_costs_almost_nothing() -> None:
    # the same tissue at the same floor, once alone and once as an edge chunk
    tissue = fibsem()[:8, :100, :90]
    codec = zarr_emcodec.VAECodec(min_psnr=33.0)
    alone = len(codec.encode(tissue))
    chunk = np.zeros((16, 128, 128), np.uint8)
    chunk[:8, :100, :90] = tissue
    background = zarr_emcodec.inspect(codec.encode(chunk))
    # the floor is over the whole chunk, so the padded one may even use a coarser level
    assert background.total_bytes <= alone * 1.02 + 32


def test_every_registered_codec_has_cases() -> None:
    registered = {point.name for point in entry_points(group="zarr.codecs") if point.value.startswith("zarr_emcodec.")}
    assert registered <= set(KINDS) == {f"emcodec.{codec}" for codec in CODECS}
    assert all(KINDS.values())


def test_a_tier_that_the_model_lacks_is_refused() -> None:
    codec = zarr_emcodec.VAECodec(ratio=16)
    frame = codec.encode(fibsem()[:1])
    with zarr_emcodec.options(tier="full"):
        codec.decode(frame)
    with zarr_emcodec.options(tier="top"), pytest.raises(zarr_emcodec.errors.SpecError, match="has one tier"):
        codec.decode(frame)
