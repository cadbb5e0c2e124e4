"""Arrays of fields read where they are asked: the bits of a whole read on every way, in every layout."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

pytest.importorskip("torch", reason="fitting a field needs torch")

import zarr_emcodec
from tests.codecs.fields import chunks, frames, tissue
from tests.volumes import Array, fibsem
from zarr_emcodec import INRField, VAECodec
from zarr_emcodec.codecs import decode_many
from zarr_emcodec.codecs.lazy import LazyChunk, resampled_axis
from zarr_emcodec.errors import JobError, SpecError
from zarr_emcodec.runtime import Model

LAYOUTS: dict[str, dict[str, Any]] = {
    "v2": {"zarr_format": 2},
    "v3": {},
    "sharded": {"shards": (8, 48, 96)},
}


def read(array: zarr.Array[Any]) -> Array:
    """All of it, the ordinary way."""
    return np.asarray(array[...])


_arrays: dict[str, zarr.Array[Any]] = {}


def volume() -> Array:
    """Ragged against the chunks; one chunk is constant, one holds a hole."""
    out = fibsem()[:8, :60, :90].copy()
    out[:4, :48, 48:] = 7
    out[5:7, 10:40, 10:40] = 0
    return out


@pytest.fixture(params=LAYOUTS)
def array(request: pytest.FixtureRequest) -> zarr.Array[Any]:
    name: str = request.param
    if name not in _arrays:
        _arrays[name] = zarr_emcodec.create_array(
            MemoryStore(),
            data=volume(),
            chunks=(4, 48, 48),
            codec=zarr_emcodec.INRCodec(ratio=24, effort=0),
            fill_value=3,
            **LAYOUTS[name],
        )
    return _arrays[name]


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Calls of the network, each of 1024 rows."""
    seen: list[int] = []
    original = Model.run

    def run(self: Model, part: Any, inputs: Any, *arguments: Any) -> Any:
        seen.append(len(inputs["coords"]))
        return original(self, part, inputs, *arguments)

    monkeypatch.setattr(Model, "run", run)
    return seen


SELECTIONS: list[Any] = [
    ...,
    (3, 20, 30),
    (-1, -1, -1),
    5,
    np.s_[2:6, ::7, 40:60],
    np.s_[::-1, 50, ..., ::3],
    np.s_[1:1, :, 3],
    np.s_[:, 47:49, 47:49],
]


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
def test_selections_have_the_bits_of_the_whole(array: zarr.Array[Any], selection: Any) -> None:
    field = INRField(array)
    assert (field.shape, field.dtype) == (array.shape, array.dtype)
    found = field[selection]
    expected = read(array)[selection]
    assert np.array_equal(found, expected)
    assert np.shape(found) == expected.shape
    assert found.dtype == expected.dtype


def test_zarr_itself_computes_what_is_selected_and_no_more(array: zarr.Array[Any], rows: list[int]) -> None:
    whole = read(array)
    index = ([1, 6, 6], [2, 33, 59], [88, 45, 46])
    for found, expected in (
        (array[5, 20, 30], whole[5, 20, 30]),
        (array[1:7:2, 30:55, 40:60], whole[1:7:2, 30:55, 40:60]),
        (array.oindex[np.array([0, 5]), :, np.array([3, 80])], whole[np.ix_([0, 5], range(60), [3, 80])]),
        (array.vindex[index], whole[index]),
    ):
        assert np.array_equal(found, expected)
    if array.metadata.zarr_format == 3:
        rows.clear()
        array[5, 5, 5]
        assert rows == [1024]


def test_places_at_voxels_are_voxels_and_between_them_lie_between(array: zarr.Array[Any]) -> None:
    field, whole = INRField(array), read(array)
    index = np.argwhere(np.random.default_rng(0).random(array.shape) < 0.01)
    assert np.array_equal(field.at(index), whole[tuple(index.T)])
    steps = np.linspace(20, 30, 41)
    line = field.at(np.stack([np.full(41, 1.0), np.full(41, 30.0), steps], 1)).astype(float)
    assert np.array_equal(line[::4], whole[1, 30, 20:31])
    assert np.abs(np.diff(line)).max() <= 0.6 * np.abs(np.diff(line[::4])).max() + 3
    assert field.at([[1, 10, 70.4]]) == 7
    assert field.at([[6.2, 25.3, 25.4]]) == 0
    assert len(field.at(np.zeros((0, 3)))) == 0


def test_other_resolutions(array: zarr.Array[Any]) -> None:
    field, whole = INRField(array), read(array)
    assert np.array_equal(field.resample(1), whole)
    assert field.resample(0.5).shape == (4, 30, 45)
    box = np.s_[1:3, 20:30, 20:32]
    fine = field.resample((1, 3, 3), box)
    assert fine.shape == (2, 30, 36)
    assert np.array_equal(fine[:, 1::3, 1::3], whole[box])  # the middle ones of three lie on old voxels
    assert np.array_equal(resampled_axis(5, 3)[1::3], np.arange(5))


def test_one_voxel_costs_one_call_and_frames_are_fetched_once(rows: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    array = zarr_emcodec.create_array(
        MemoryStore(), data=fibsem()[:4, :96, :96], chunks=(4, 48, 48), codec=zarr_emcodec.INRCodec(24, effort=0)
    )
    field = INRField(array)
    fetched = []
    assert field._frames is not None
    original = field._frames.fetch

    def fetch(indices: Any) -> Any:
        fetched.append(len(indices))
        return original(indices)

    monkeypatch.setattr(field._frames, "fetch", fetch)
    rows.clear()
    for x in (3, 4, 60):
        field[1, 2, x]
    assert (rows, fetched) == ([1024] * 3, [1, 1])
    field[1:3, :48, :48]
    assert rows == [1024] * (3 + 5)  # 2 x 48 x 48 voxels
    field[...]
    assert fetched == [1, 1, 2]


def test_many_threads_ask_at_once(array: zarr.Array[Any]) -> None:
    field, whole = INRField(array), read(array)
    places = [
        tuple(int(n) for n in place) for place in np.argwhere(np.random.default_rng(2).random(array.shape) < 4e-3)
    ]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(field.__getitem__, places)) == [whole[place] for place in places]


@pytest.mark.parametrize("name", chunks())
def test_a_single_frame(name: str) -> None:
    frame = frames()[name]
    whole = decode_many([frame])[0]
    field = INRField(frame)
    assert np.array_equal(field[...], whole)
    assert field[..., 5].dtype == whole.dtype
    assert np.array_equal(field[..., 3:9:2], whole[..., 3:9:2])
    index = np.argwhere(np.random.default_rng(1).random(whole.shape) < 0.02)
    assert np.array_equal(field.at(index), whole[tuple(index.T)])
    chunk = LazyChunk(frame)
    assert chunk.is_field == ("hybrid" not in name)
    bright = whole > np.median(whole)
    assert np.array_equal(chunk[bright], whole[bright])


def test_frames_of_other_kinds_answer_with_their_nearest_voxel() -> None:
    array = zarr_emcodec.create_array(MemoryStore(), data=fibsem()[:2, :64, :64], chunks=(2, 64, 32), codec="vae")
    field, whole = INRField(array), read(array)
    assert np.array_equal(field[...], whole)
    assert np.array_equal(field.at([[0.4, 9.6, 40.2], [1, 63.5, -0.5]]), whole[[0, 1], [10, 63], [40, 0]])
    assert not LazyChunk(VAECodec(ratio=16).encode(tissue())).is_field


def test_missing_chunks_are_fill_value() -> None:
    array = zarr_emcodec.create_array(
        MemoryStore(), shape=(4, 96, 96), dtype="u1", chunks=(4, 48, 48), fill_value=9,
        codec=zarr_emcodec.INRCodec(24, effort=0),
    )  # fmt: skip
    array[:, :48, :48] = fibsem()[:4, :48, :48]
    field = INRField(array)
    assert (field[:, 48:, :] == 9).all()
    assert field.at([[0, 0, 0], [0, 50, 0]]).tolist()[1] == 9
    assert np.array_equal(field[...], read(array))


def test_what_is_refused(array: zarr.Array[Any]) -> None:
    field = INRField(array)
    for selection in ([1, 2], (0, 0, 0, 0), (..., ...), (True, 0, 0), ("z",)):
        with pytest.raises(SpecError, match="selection"):
            field[selection]
    with pytest.raises(IndexError, match="out of bounds"):
        field[8]
    for positions in ([[0, 0]], [0, 0, 0], [[0, 0, 90]], [[0, -0.6, 0]], [[np.nan, 0, 0]]):
        with pytest.raises(SpecError, match="position"):
            field.at(positions)
    for scale in (0, -1, np.inf, (1, 2)):
        with pytest.raises(SpecError, match="scale"):
            field.resample(scale)
    with pytest.raises(SpecError, match="without strides"):
        field.resample(2, np.s_[::2])
    with pytest.raises(SpecError, match="of this package"):
        INRField(zarr.create_array(MemoryStore(), shape=(4, 4), dtype="u1"))


def test_damage_is_named() -> None:
    store = MemoryStore()
    array = zarr_emcodec.create_array(
        store, data=fibsem()[:4, :48, :48], chunks=(4, 48, 48), codec=zarr_emcodec.INRCodec(24, effort=0)
    )
    key = array.metadata.encode_chunk_key((0, 0, 0))
    data = bytearray(store._store_dict[key].to_bytes())
    data[-1] ^= 1
    store._store_dict[key] = type(store._store_dict[key]).from_bytes(bytes(data))
    with pytest.raises(JobError, match=r"chunk \(0, 0, 0\)"):
        INRField(array)[0, 0, 0]
