"""`create_array` and `open`: one call for both formats, and models that travel with the data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore, MemoryStore, ZipStore

import zarr_emcodec
from tests.adapters.common import RATIO, fresh, keys, tissue
from tests.volumes import as_dtype
from zarr_emcodec.adapters.arrays import EMBEDDED
from zarr_emcodec.errors import ModelError, ModelMismatchError, ModelNotFoundError, SpecError
from zarr_emcodec.quality import psnr
from zarr_emcodec.runtime import find

CHUNKS = (2, 32, 32)
FORMATS: tuple[Literal[2, 3], ...] = (2, 3)


@pytest.fixture(params=FORMATS, ids=["v2", "v3"])
def zarr_format(request: pytest.FixtureRequest) -> Literal[2, 3]:
    chosen: Literal[2, 3] = request.param
    return chosen


# creating


def test_defaults_are_an_array_at_32x(zarr_format: Literal[2, 3]) -> None:
    data = tissue(20, 96, 96)
    stored = zarr_emcodec.create_array(MemoryStore(), data=data, zarr_format=zarr_format)
    assert isinstance(stored, zarr.Array)
    assert stored.metadata.zarr_format == zarr_format
    assert not stored.fill_value  # None in v2, 0 in v3: both read as 0
    assert psnr(data, np.asarray(stored[...])) > 22
    ratio = data.nbytes / stored.nbytes_stored()  # metadata included, and room for what is added to them later
    assert 32 <= ratio < 48


def test_default_chunks_follow_the_shape(zarr_format: Literal[2, 3]) -> None:
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {
        (): (),
        (40, 50): (40, 50),
        (64, 4096, 300): (16, 512, 300),
        (3, 16, 512, 512): (1, 16, 512, 512),
        (2, 3, 4, 20, 20): (1, 1, 4, 20, 20),
    }
    for shape, chunks in shapes.items():
        stored = zarr_emcodec.create_array(MemoryStore(), shape=shape, dtype="u1", zarr_format=zarr_format)
        assert stored.chunks == chunks


def test_ratio_codec_and_spec_mean_the_same(zarr_format: Literal[2, 3]) -> None:
    data = tissue(4, 32, 32)
    words: dict[str, Any] = {"data": data, "chunks": CHUNKS, "zarr_format": zarr_format}
    by_ratio = zarr_emcodec.create_array(MemoryStore(), ratio=RATIO, **words)
    for codec in (zarr_emcodec.VAECodec(RATIO), zarr_emcodec.v3.VAECodec(RATIO), zarr_emcodec.VAESpec(ratio=RATIO)):
        other = zarr_emcodec.create_array(MemoryStore(), codec=codec, **words)
        assert other.metadata == by_ratio.metadata
        assert np.array_equal(np.asarray(other[...]), np.asarray(by_ratio[...]))


def test_what_was_done_stands_beside_the_users_attributes(zarr_format: Literal[2, 3]) -> None:
    codec = zarr_emcodec.VAECodec(max_error=0)
    stored = zarr_emcodec.create_array(
        MemoryStore(),
        data=tissue(2, 32, 32),
        codec=codec,
        zarr_format=zarr_format,
        attributes={"voxel_nm": [8, 4, 4]},
        name="em/raw",
    )
    assert stored.name == "/em/raw"
    assert stored.attrs["voxel_nm"] == [8, 4, 4]
    note = stored.attrs["emcodec"]
    assert isinstance(note, dict)
    assert note["model"] == codec.spec.model
    assert note["digest"] == codec.spec.digest
    assert note["lossy"] is False
    assert np.array_equal(np.asarray(stored[...]), tissue(2, 32, 32))


def test_words_for_zarr_go_to_zarr() -> None:
    data = tissue(4, 64, 64)
    stored = zarr_emcodec.create_array(
        MemoryStore(),
        data=data,
        chunks=CHUNKS,
        shards=(4, 64, 64),
        dimension_names=["z", "y", "x"],
        fill_value=3,
    )
    assert stored.shards == (4, 64, 64)
    assert stored.fill_value == 3
    assert stored.metadata.dimension_names == ("z", "y", "x")  # type: ignore[union-attr]
    assert len(keys(stored)) == 1


def test_an_empty_array_is_filled_later(zarr_format: Literal[2, 3]) -> None:
    store = MemoryStore()
    stored = zarr_emcodec.create_array(store, shape=(4, 32, 32), dtype="u2", ratio=RATIO, zarr_format=zarr_format)
    assert keys(stored) == []
    data = as_dtype(tissue(4, 32, 32), "uint16")
    again = zarr_emcodec.open(store, mode="r+")
    assert isinstance(again, zarr.Array)
    again[...] = data
    assert psnr(data, np.asarray(stored[...]), peak=float(np.ptp(data))) > 20


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "both": ({"ratio": 8, "codec": zarr_emcodec.VAESpec(ratio=8)}, "not both"),
    "nothing": ({"data": None}, "data=, or shape="),
    "shards in v2": ({"shards": (4, 32, 32), "zarr_format": 2}, "zarr_format=3"),
    "serializer": ({"serializer": None}, "pass codec="),
    "compressors": ({"compressors": None}, "pass codec="),
    "filters": ({"filters": None}, "pass codec="),
    "flat": ({"data": np.arange(9, dtype="u1")}, "1 axes"),
    "flat in v2": ({"data": np.arange(9, dtype="u1"), "zarr_format": 2}, "1 axes"),
    "six axes": ({"data": np.ones((1,) * 6, "u1"), "zarr_format": 2}, "6 axes"),
    "float64": ({"data": np.ones((4, 4)), "zarr_format": 2}, "float64: convert"),
    "no such ratio": ({"ratio": 60000}, "Installed: 'vae"),
    "ratio of zero": ({"ratio": 0}, "from 1 to"),
    "NaN": ({"data": np.array([[[1, np.nan]]], "f4")}, r"chunk \(0, 0, 0\) holds NaN"),
    "NaN in v2": ({"data": np.array([[[1, np.inf]]], "f4"), "zarr_format": 2}, r"chunk \(0, 0, 0\) holds NaN"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_work_is_said_before_anything_is_written(name: str) -> None:
    words, message = WRONG[name]
    store = MemoryStore()
    with pytest.raises(SpecError, match=message):
        zarr_emcodec.create_array(store, **{"data": tissue(4, 32, 32), **words})
    assert not store._store_dict


def test_chunks_of_nothing_but_nan_are_constants() -> None:
    data = as_dtype(tissue(4, 32, 32), "float32")
    data[2:] = np.nan
    stored = zarr_emcodec.create_array(MemoryStore(), data=data, chunks=CHUNKS, ratio=RATIO, fill_value=np.nan)
    assert len(keys(stored)) == 1
    back = np.asarray(stored[...])
    assert np.isnan(back[2:]).all()
    assert np.isfinite(back[:2]).all()


@pytest.mark.parametrize("at", [0, 3])
def test_an_array_whose_writing_fails_is_gone(
    zarr_format: Literal[2, 3], at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "notes.txt").write_text("not ours")
    original, calls = LocalStore.set, []

    async def full(self: LocalStore, key: str, value: Any) -> None:
        if EMBEDDED not in key and not key.rsplit("/", 1)[-1].startswith((".z", "zarr.json")):
            calls.append(key)
            if len(calls) > at:
                raise OSError("disk full")
        await original(self, key, value)

    monkeypatch.setattr(LocalStore, "set", full)
    with zarr.config.set({"async.concurrency": 1}), pytest.raises(OSError, match="disk full"):
        zarr_emcodec.create_array(
            tmp_path / "a.zarr", data=tissue(4, 64, 64), chunks=CHUNKS, zarr_format=zarr_format, embed_model=True
        )
    assert [p.name for p in (tmp_path / "a.zarr").rglob("*") if p.is_file()] == ["notes.txt"]
    monkeypatch.undo()
    zarr_emcodec.create_array(tmp_path / "a.zarr", data=tissue(4, 64, 64), chunks=CHUNKS, zarr_format=zarr_format)


def test_an_array_that_exists_is_kept_unless_told_otherwise(zarr_format: Literal[2, 3]) -> None:
    store = MemoryStore()
    words: dict[str, Any] = {"data": tissue(2, 32, 32), "ratio": RATIO, "zarr_format": zarr_format}
    zarr_emcodec.create_array(store, **words)
    before = {key: value.to_bytes() for key, value in store._store_dict.items()}
    with pytest.raises(zarr.errors.ContainsArrayError):
        zarr_emcodec.create_array(store, **words)
    assert {key: value.to_bytes() for key, value in store._store_dict.items()} == before
    zarr_emcodec.create_array(store, overwrite=True, **words)


# stores


def test_stores_of_every_kind(zarr_format: Literal[2, 3], tmp_path: Path) -> None:
    data = tissue(4, 48, 48)
    words: dict[str, Any] = {"data": data, "chunks": (4, 32, 32), "zarr_format": zarr_format, "embed_model": True}
    expected = np.asarray(zarr_emcodec.create_array(MemoryStore(), **words)[...])
    zarr_emcodec.create_array(tmp_path / "path.zarr", **words)
    zarr_emcodec.create_array(str(tmp_path / "text.zarr"), **words)
    zarr_emcodec.create_array(LocalStore(tmp_path / "store.zarr"), **words)
    for name in ("path.zarr", "text.zarr", "store.zarr"):
        opened = zarr_emcodec.open(tmp_path / name)
        assert isinstance(opened, zarr.Array)
        assert np.array_equal(np.asarray(opened[...]), expected)
        with pytest.raises(ValueError, match=r"read.only"):
            opened[0] = 1
    with ZipStore(tmp_path / "a.zip", mode="w") as store:
        zarr_emcodec.create_array(store, **words)
    with ZipStore(tmp_path / "a.zip", mode="r") as store:
        opened = zarr_emcodec.open(store)
        assert isinstance(opened, zarr.Array)
        assert np.array_equal(np.asarray(opened[...]), expected)
        assert np.array_equal(np.asarray(opened[1]), expected[1])


def test_arrays_of_a_group_and_paths(zarr_format: Literal[2, 3], tmp_path: Path) -> None:
    for level, data in enumerate((tissue(4, 48, 48), tissue(4, 48, 48)[:, ::2, ::2])):
        zarr_emcodec.create_array(tmp_path, name=f"em/{level}", data=data, zarr_format=zarr_format, embed_model=True)
    group = zarr_emcodec.open(tmp_path, path="em")
    assert isinstance(group, zarr.Group)
    assert sorted(group.array_keys()) == ["0", "1"]
    one = zarr_emcodec.open(tmp_path, path="em/1")
    assert isinstance(one, zarr.Array)
    assert np.array_equal(np.asarray(one[...]), np.asarray(group["1"][...]))  # type: ignore[index]
    plain = zarr.open_array(str(tmp_path), path="em/1", mode="r")
    assert np.array_equal(np.asarray(plain[...]), np.asarray(one[...]))


def test_arrays_of_other_codecs_open_too(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=tissue(2, 16, 16))
    opened = zarr_emcodec.open(tmp_path / "a.zarr")
    assert isinstance(opened, zarr.Array)
    assert np.array_equal(np.asarray(opened[...]), tissue(2, 16, 16))


# models that travel


@pytest.fixture
def twin(tmp_path: Path) -> Path:
    """A folder with a model that no search path knows: a shipped one, but for the halo that its decoder claims."""
    shipped = zarr_emcodec.find_model(zarr_emcodec.VAESpec(ratio=RATIO).model)
    assert shipped.directory is not None
    place = tmp_path / "own" / "twin"
    shutil.copytree(shipped.directory, place)
    card = json.loads((place / "card.json").read_text())
    card["id"] = "twin@1"
    card["decoder"]["halo"] = [n + 1 for n in card["decoder"]["halo"]]
    card.pop("digest", None)
    (place / "card.json").write_text(json.dumps(card))
    return place.parent


@pytest.fixture(params=FORMATS, ids=["v2", "v3"])
def travelled(request: pytest.FixtureRequest, twin: Path, tmp_path: Path) -> tuple[Path, str]:
    """An array with its own model, where that model is known no longer; and the model's digest."""
    place = tmp_path / "a.zarr"
    with zarr_emcodec.options(model_path=twin):
        codec = zarr_emcodec.VAECodec(RATIO, model="twin")
        zarr_emcodec.create_array(
            place, data=tissue(4, 48, 48), codec=codec, embed_model=True, zarr_format=request.param
        )
        np.save(tmp_path / "expected.npy", np.asarray(zarr.open_array(str(place), mode="r")[...]))
    shutil.rmtree(twin)
    return place, codec.spec.digest


def test_only_the_decoder_travels(travelled: tuple[Path, str]) -> None:
    place, digest = travelled
    folder = place / EMBEDDED / digest.removeprefix("sha256:")
    names = {p.name for p in folder.iterdir()}
    card = json.loads((folder / "card.json").read_text())
    assert {"card.json", *card["decoder"]["files"]} == names
    assert {"decoder.onnx", "tables.npz"} <= names
    assert "encoder.onnx" not in names
    assert "encoder" not in card


def test_plain_zarr_names_the_model_and_the_mend(travelled: tuple[Path, str]) -> None:
    stored = zarr.open_array(str(travelled[0]), mode="r")
    with pytest.raises(ModelNotFoundError, match=r"zarr_emcodec\.open\(.*trust_embedded=True\)"):
        stored[...]


def test_an_embedded_model_is_refused_without_trust(travelled: tuple[Path, str], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="trust_embedded=True"):
        zarr_emcodec.open(travelled[0])
    assert not find.registered
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("how", ["trust_embedded", "trusted_digests"])
def test_an_embedded_model_reads_the_data_once_trusted(travelled: tuple[Path, str], tmp_path: Path, how: str) -> None:
    place, digest = travelled
    expected = np.load(tmp_path / "expected.npy")
    if how == "trust_embedded":
        stored = zarr_emcodec.open(place, trust_embedded=True)
    else:
        with zarr_emcodec.options(trusted_digests=digest):
            stored = zarr_emcodec.open(place)
    assert isinstance(stored, zarr.Array)
    assert np.array_equal(np.asarray(stored[...]), expected)
    assert np.array_equal(np.asarray(stored[1]), expected[1])
    # no encoder came with it: a write says so, and changes nothing
    writable = zarr_emcodec.open(place, mode="r+")
    with pytest.raises(ModelError, match="without its encoder"):
        writable[0] = 255 - expected[0]  # type: ignore[index]
    assert np.array_equal(np.asarray(stored[...]), expected)


def test_workers_find_what_the_parent_trusted(travelled: tuple[Path, str], tmp_path: Path) -> None:
    zarr_emcodec.open(travelled[0], trust_embedded=True)
    code = """
import sys, numpy as np, zarr
assert np.array_equal(zarr.open_array(sys.argv[1], mode="r")[...], np.load(sys.argv[2]))
print("equal")
"""
    assert fresh(code, str(travelled[0]), str(tmp_path / "expected.npy")) == "equal"


@pytest.mark.parametrize("name", ["decoder.onnx", "tables.npz", "card.json"])
def test_a_tampered_embedded_decoder_is_refused(travelled: tuple[Path, str], tmp_path: Path, name: str) -> None:
    place, digest = travelled
    file = place / EMBEDDED / digest.removeprefix("sha256:") / name
    data = bytearray(file.read_bytes())
    if name == "card.json":
        data = bytearray(file.read_text().replace('"channels": ', '"channels": 1').encode())
    else:
        data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelMismatchError):
        zarr_emcodec.open(place, trust_embedded=True)
    assert not find.registered
    assert not list((tmp_path / "cache").glob("models/*"))


@pytest.mark.parametrize("name", ["decoder.onnx", "card.json"])
def test_an_embedded_model_with_files_missing(travelled: tuple[Path, str], name: str) -> None:
    place, digest = travelled
    folder = place / EMBEDDED / digest.removeprefix("sha256:")
    if name == "decoder.onnx":
        (folder / name).unlink()
        with pytest.raises(ModelError, match=r"decoder\.onnx is missing"):
            zarr_emcodec.open(place, trust_embedded=True)
        return
    (folder / "card.json").unlink()
    stored = zarr_emcodec.open(place, trust_embedded=True)
    with pytest.raises(ModelNotFoundError):
        stored[...]  # type: ignore[index]


def test_an_array_cannot_name_files_elsewhere(travelled: tuple[Path, str]) -> None:
    place, digest = travelled
    card = place / EMBEDDED / digest.removeprefix("sha256:") / "card.json"
    words = json.loads(card.read_text())
    words["decoder"]["files"] = {"../../zarr.json": "0" * 64}
    card.write_text(json.dumps(words))
    with pytest.raises(ModelError, match="none of a decoder's"):
        zarr_emcodec.open(place, trust_embedded=True)
