"""The codec as numcodecs and its callers know it: by configuration, by entry point, by buffers."""

from __future__ import annotations

import json
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

import zarr_emcodec
from tests.adapters.common import RATIO, fresh, tissue
from tests.volumes import Array
from zarr_emcodec.errors import FrameError, SpecError


@pytest.fixture
def codec() -> zarr_emcodec.VAECodec:
    return zarr_emcodec.VAECodec(ratio=RATIO)


def test_configuration_makes_the_codec(codec: zarr_emcodec.VAECodec) -> None:
    config = json.loads(json.dumps(codec.get_config()))
    assert config["id"] == "emcodec_vae"
    assert set(config) == {
        "id", "ratio", "model", "mode", "min_psnr", "max_error", "window", "background", "effort", "voxel_nm", "digest"
    }  # fmt: skip
    assert numcodecs.get_codec(dict(config)) == codec
    assert numcodecs.get_codec({"id": "emcodec_vae"}) == zarr_emcodec.VAECodec()


def test_configuration_survives_a_machine_without_the_model(codec: zarr_emcodec.VAECodec) -> None:
    config = {**codec.get_config(), "model": "gone@7", "digest": f"sha256:{'ab' * 32}"}
    stranger = numcodecs.get_codec(dict(config))
    assert stranger.get_config() == config
    frame = codec.encode(tissue(2, 32, 32))
    assert np.array_equal(stranger.decode(frame), codec.decode(frame))  # the frame says which model it needs


def test_unknown_key_and_version_are_named(codec: zarr_emcodec.VAECodec) -> None:
    with pytest.raises(SpecError, match=rf"emcodec_vae.*'sharpness'.*{zarr_emcodec.__version__}") as error:
        numcodecs.get_codec({**codec.get_config(), "sharpness": 3})
    assert error.value.name == "sharpness"


def test_numcodecs_finds_the_codec_without_an_import(codec: zarr_emcodec.VAECodec) -> None:
    code = """
import json, sys
import numpy as np, numcodecs
config, frame = json.loads(sys.argv[1]), bytes.fromhex(sys.argv[2])
assert not [m for m in sys.modules if m.startswith("zarr_emcodec")]
print(numcodecs.get_codec(config).decode(frame).tobytes().hex())
assert not {"torch", "dask", "zarr"} & set(sys.modules)
"""
    chunk = tissue(2, 24, 24)
    frame = codec.encode(chunk)
    assert bytes.fromhex(fresh(code, json.dumps(codec.get_config()), frame.hex())) == codec.decode(frame).tobytes()


@pytest.mark.parametrize("form", [bytes, bytearray, lambda b: memoryview(b), lambda b: np.frombuffer(b, np.uint8)])
def test_input_without_a_shape_is_refused(codec: zarr_emcodec.VAECodec, form: Any) -> None:
    with pytest.raises(SpecError, match="shape"):
        codec.encode(form(tissue(2, 16, 16).tobytes()))


@pytest.mark.parametrize("order", ["C", "F"])
def test_out_is_filled(codec: zarr_emcodec.VAECodec, order: Any) -> None:
    chunk: Array = np.asarray(tissue(3, 24, 32), order=order)
    frame = codec.encode(chunk)
    expected = codec.decode(frame)
    assert expected.flags.f_contiguous == (order == "F")
    out = np.empty(chunk.shape, chunk.dtype, order=order)
    assert codec.decode(frame, out=out) is out
    assert np.array_equal(out, expected)
    buffer = bytearray(chunk.nbytes)
    codec.decode(frame, out=buffer)
    assert bytes(buffer) == expected.tobytes(order)
    with pytest.raises(ValueError, match="size"):
        codec.decode(frame, out=np.empty(5, np.uint8))


def test_bytes_that_are_no_frame(codec: zarr_emcodec.VAECodec) -> None:
    for data in (b"", b"\x00" * 64, np.zeros(64, np.uint8), numcodecs.Zstd().encode(tissue(2, 16, 16))):
        with pytest.raises(FrameError):
            codec.decode(data)


def test_a_filter_before_the_codec_is_refused_at_the_first_chunk(codec: zarr_emcodec.VAECodec) -> None:
    stored = zarr.create_array(
        MemoryStore(),
        shape=(4, 32, 32),
        chunks=(4, 32, 32),
        dtype="u1",
        zarr_format=2,
        filters=[numcodecs.Delta("u1")],
        compressors=codec,
    )
    with pytest.raises(SpecError, match="filter before the codec"):
        stored[...] = tissue(4, 32, 32)


def test_the_codec_as_a_filter_sees_the_whole_chunk(codec: zarr_emcodec.VAECodec) -> None:
    data = tissue(4, 32, 32)
    words: dict[str, Any] = {"data": data, "chunks": (4, 32, 32), "zarr_format": 2}
    as_filter = zarr.create_array(MemoryStore(), filters=[codec], compressors=None, **words)
    as_compressor = zarr.create_array(MemoryStore(), filters=None, compressors=codec, **words)
    assert np.array_equal(np.asarray(as_filter[...]), np.asarray(as_compressor[...]))


def test_other_ways_to_hand_it_to_zarr(codec: zarr_emcodec.VAECodec) -> None:
    data = tissue(4, 32, 32)
    expected = codec.decode(codec.encode(data))
    for compressor in (codec, codec.get_config()):
        stored = zarr.create_array(
            MemoryStore(), data=data, chunks=data.shape, zarr_format=2, compressors=compressor, filters=None
        )
        assert np.array_equal(np.asarray(stored[...]), expected)
    old: Any = zarr.create(
        store=MemoryStore(), shape=data.shape, chunks=data.shape, dtype="u1", zarr_format=2, compressor=codec
    )
    old[...] = data
    assert np.array_equal(old[...], expected)


def test_one_user_class_serves_both_formats(codec: zarr_emcodec.VAECodec) -> None:
    serializer = codec.to_v3()
    assert isinstance(serializer, zarr_emcodec.v3.VAECodec)
    assert serializer == zarr_emcodec.v3.VAECodec(RATIO)
    assert serializer.to_v2() == codec
    assert serializer.to_dict()["configuration"] == {k: v for k, v in codec.get_config().items() if k != "id"}
