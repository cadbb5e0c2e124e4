"""What Zarr users see when something is out of place: the codec, its metadata, a chunk's bytes, the dtype."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

import zarr_emcodec
from tests.adapters.common import RATIO, get, keys, put, tissue, write
from tests.volumes import as_dtype
from zarr_emcodec.errors import ChecksumError, FrameError, SpecError, TruncatedFrameError, UnsupportedFrameError

LAYOUTS = ("v2", "v3", "sharded")


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


# what a user sees who puts the codec in the wrong place


def test_a_serializer_among_compressors_is_refused_by_zarr() -> None:
    words: dict[str, Any] = {"shape": (4, 32, 32), "dtype": "u1"}
    compressor: Any = zarr_emcodec.v3.VAECodec(RATIO)
    with pytest.raises(TypeError, match="BytesBytesCodec"):
        zarr.create_array(MemoryStore(), compressors=compressor, **words)
    with pytest.raises(TypeError):
        zarr.create_array(MemoryStore(), compressors=[zarr_emcodec.VAECodec(RATIO)], **words)
    with pytest.raises(TypeError, match="ArrayBytesCodec"):
        zarr.create_array(MemoryStore(), serializer=zarr_emcodec.VAECodec(RATIO), **words)
    with pytest.raises(ValueError, match="Invalid compressor"):
        zarr.create_array(MemoryStore(), compressors=compressor, zarr_format=2, **words)


def test_a_forgotten_compressors_none_still_reads() -> None:
    data = tissue(4, 48, 48)
    stored = zarr.create_array(MemoryStore(), data=data, chunks=(4, 48, 48), serializer=zarr_emcodec.v3.VAECodec(RATIO))
    assert len(stored.metadata.codecs) == 2  # type: ignore[union-attr]
    assert np.array_equal(np.asarray(stored[1:3]), np.asarray(write(data, "v3", (4, 48, 48))[1:3]))


# metadata


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(plain(item) for item in value)
    return value is None or type(value) in (str, int, float, bool)


CODECS: dict[str, dict[str, Any]] = {
    "ratio": {"ratio": 24},
    "window": {"ratio": 8, "window": (-1000, 3000.5)},
    "guard": {"min_psnr": 35, "background": None},
    "exact": {"max_error": 0},
    "nominal": {"ratio": 16, "mode": "nominal", "background": 255},
}


@pytest.mark.parametrize("name", CODECS)
def test_metadata_are_plain_and_make_the_same_array_again(layout: str, name: str) -> None:
    codec = zarr_emcodec.VAECodec(**CODECS[name])
    data = as_dtype(tissue(4, 32, 32), "int16")
    stored = write(data, layout, (2, 32, 32), codec=codec)
    key = ".zarray" if layout == "v2" else "zarr.json"
    metadata = json.loads(get(stored, key))
    words = metadata["compressor"] if layout == "v2" else metadata["codecs"][0]
    if layout == "sharded":
        words = words["configuration"]["codecs"][0]
    config = words if layout == "v2" else words["configuration"]
    assert plain(config)
    assert config["digest"].startswith("sha256:")
    if layout == "v2":
        assert words["id"] == "emcodec_vae"
        again = zarr.create_array(
            MemoryStore(), data=data, chunks=(2, 32, 32), zarr_format=2, compressors=words, fill_value=0
        )
    else:
        assert words["name"] == "emcodec.vae"
        again = zarr.create_array(
            MemoryStore(), data=data, chunks=(2, 32, 32), shards=stored.shards, serializer=words, compressors=None
        )
    assert again.metadata == stored.metadata
    assert {key: get(again, key) for key in keys(again)} == {key: get(stored, key) for key in keys(stored)}


def test_an_unknown_configuration_key_names_itself_and_the_mend(layout: str) -> None:
    stored = write(tissue(4, 32, 32), layout, (2, 32, 32))
    key = ".zarray" if layout == "v2" else "zarr.json"
    text = get(stored, key).decode()
    put(stored, key, text.replace('"digest"', '"sharpness": 3, "digest"').encode())
    with pytest.raises(SpecError, match=r"emcodec.vae'.*unknown configuration key 'sharpness'.*upgrade") as error:
        zarr.open_array(stored.store, mode="r")
    assert error.value.name == "sharpness"
    assert error.value.value == 3


# chunks that are not what they should be


def chunk_key(layout: str) -> str:
    return "0.0.0" if layout == "v2" else "c/0/0/0"


def test_a_frame_of_a_newer_format_asks_for_an_upgrade() -> None:
    for layout in ("v2", "v3"):
        stored = write(tissue(2, 32, 32), layout, (2, 32, 32))
        frame = bytearray(get(stored, chunk_key(layout)))
        frame[2] = 99  # the version; FORMAT.md
        put(stored, chunk_key(layout), bytes(frame))
        with pytest.raises(UnsupportedFrameError, match="Upgrade") as error:
            stored[...]
        assert error.value.version == 99


def test_damaged_chunks_raise_and_do_not_become_zeros() -> None:
    for layout in ("v2", "v3"):
        stored = write(tissue(2, 32, 32), layout, (2, 32, 32))
        frame = get(stored, chunk_key(layout))
        flipped = frame[:-20] + bytes([frame[-20] ^ 4]) + frame[-19:]
        wrong = [
            (frame[:10], TruncatedFrameError),
            (frame[:-5], FrameError),
            (flipped, ChecksumError),
            (b"", FrameError),
        ]
        for data, error in wrong:
            put(stored, chunk_key(layout), data)
            with pytest.raises(error):
                stored[...]


def test_a_frame_of_another_array_is_refused() -> None:
    stored = write(tissue(2, 32, 32), "v3", (2, 32, 32))
    put(stored, "c/0/0/0", zarr_emcodec.VAECodec(RATIO).encode(tissue(4, 16, 32)))
    for selection in np.s_[1:3], np.s_[..., 17], np.s_[...]:
        with pytest.raises(FrameError, match="another array"):
            stored[selection]


# labels


@pytest.mark.parametrize("dtype", ["uint32", "uint64", "int32", "bool"])
def test_labels_are_refused_before_anything_is_written(dtype: str) -> None:
    store = MemoryStore()
    for version in (2, 3):
        with pytest.raises(SpecError, match=r"labels.*zstd"):
            zarr_emcodec.create_array(store, shape=(4, 32, 32), dtype=dtype, zarr_format=version)
    with pytest.raises(SpecError, match="labels"):
        write(np.ones((4, 32, 32), dtype), "v3", (4, 32, 32), store=store)
    assert not store._store_dict
    # in v2 Zarr asks nobody when an array is made, so the first chunk is refused
    with pytest.raises(SpecError, match="labels"):
        write(np.ones((4, 32, 32), dtype), "v2", (4, 32, 32), store=store)
