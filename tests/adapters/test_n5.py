from __future__ import annotations

import json
import pickle
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore, MemoryStore

from tests.adapters.common import alone, fresh
from tests.volumes import as_dtype, fibsem
from zarr_emcodec import VAECodec, n5
from zarr_emcodec.errors import FrameError, JobError, SpecError
from zarr_emcodec.frame import inspect

if TYPE_CHECKING:
    from pathlib import Path

CHUNKS = (16, 48, 64)


def container(place: Path, **words: Any) -> Path:
    """A container with the sample as volumes/raw: y is cut at its last block."""
    n5.create(place / "em.n5", "volumes/raw", data=fibsem(), chunks=CHUNKS, **{"ratio": 16, **words})
    return place / "em.n5"


def attributes_of(path: Path) -> dict[str, Any]:
    found = json.loads((path / "volumes/raw/attributes.json").read_text())
    assert isinstance(found, dict)
    return found


def values(array: Any) -> Any:
    return np.asarray(array[...])


def test_a_dataset_holds_what_a_zarr_array_would(tmp_path: Path) -> None:
    path = container(tmp_path, codec=VAECodec(ratio=16), ratio=None)
    array: Any = n5.open(path, "volumes/raw")
    assert (array.shape, array.chunks, array.dtype) == ((32, 128, 128), CHUNKS, np.uint8)
    # the header's 16 bytes a block come out of the frames' budget, so settings may differ by one
    np.testing.assert_allclose(values(array).mean(), alone(fibsem(), CHUNKS).mean(), atol=0.5)
    assert np.abs(values(array).astype(int) - fibsem()).mean() < 8
    np.testing.assert_array_equal(array[7, 3:50, 40:], values(array)[7, 3:50, 40:])
    # the root needs none of it
    np.testing.assert_array_equal(values(n5.open(path / "volumes" / "raw")), values(array))


def test_documents_are_those_of_n5(tmp_path: Path) -> None:
    path = container(tmp_path, attributes={"resolution": [4, 4, 40], "axes": ["x", "y", "z"]})
    found = attributes_of(path)
    assert (found["dimensions"], found["blockSize"], found["dataType"]) == ([128, 128, 32], [64, 48, 16], "uint8")
    assert found["compression"]["type"] == "emcodec_vae"
    assert found["compression"]["digest"].startswith("sha256:")
    assert found["resolution"] == [4, 4, 40]
    assert found["emcodec"]["ratio"] == 16
    assert json.loads((path / "attributes.json").read_text()) == {"n5": "4.0.0"}
    assert dict(n5.open(path, "volumes/raw").attrs)["axes"] == ["x", "y", "z"]
    names = sorted(
        str(p.relative_to(path / "volumes/raw")) for p in path.rglob("*") if p.name.isdigit() and p.is_file()
    )
    assert names == sorted(f"{x}/{y}/{z}" for x in range(2) for y in range(3) for z in range(2))


def test_headers_are_those_that_tensorstore_writes(tmp_path: Path) -> None:
    ts = pytest.importorskip("tensorstore", reason="the extra 'sources' is absent")
    path = container(tmp_path)
    place = str(tmp_path / "theirs")
    metadata = {"dimensions": [128, 128, 32], "blockSize": [64, 48, 16], "dataType": "uint8",
                "compression": {"type": "raw"}}  # fmt: skip
    kvstore = {"driver": "file", "path": place}
    theirs = ts.open({"driver": "n5", "kvstore": kvstore, "metadata": metadata}, create=True).result()
    theirs[...] = fibsem().T
    for key in ("0/0/0", "1/2/1"):
        ours = (path / "volumes/raw" / key).read_bytes()
        assert ours[:16] == (tmp_path / "theirs" / key).read_bytes()[:16]
        assert inspect(ours[16:]).shape == CHUNKS


def test_what_tensorstore_says_of_our_blocks(tmp_path: Path) -> None:
    ts = pytest.importorskip("tensorstore", reason="the extra 'sources' is absent")
    kvstore = {"driver": "file", "path": str(container(tmp_path) / "volumes" / "raw")}
    with pytest.raises(ValueError, match='"type": "emcodec_vae" is not registered'):
        ts.open({"driver": "n5", "kvstore": kvstore}).result()


@pytest.mark.parametrize("mode", [0, 1])
def test_blocks_cut_at_the_edge_are_read(tmp_path: Path, mode: int) -> None:
    path = container(tmp_path)
    piece = np.ascontiguousarray(fibsem()[16:, 96:, :64])  # 16 x 32 x 64: what is left of the block in y
    count = struct.pack(">I", piece.size) if mode else b""
    block = struct.pack(">HH3I", mode, 3, 64, 32, 16) + count + VAECodec(ratio=8).encode(piece)
    (path / "volumes/raw/0/2/1").write_bytes(block)
    array: Any = n5.open(path, "volumes/raw")
    np.testing.assert_array_equal(array[16:, 96:, :64], VAECodec().decode(block[16 + len(count) :]))
    assert inspect(frame_of(array, "c/1/2/0")).kind == "lossless"


def frame_of(array: Any, key: str) -> bytes:
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    data: bytes = sync(array.store.get(key, default_buffer_prototype())).to_bytes()
    return data


@pytest.mark.parametrize(
    ("block", "told"),
    [
        (b"\0\0\0", "begins with 16"),
        (struct.pack(">HH3I", 2, 3, 64, 48, 16), "mode 2"),
        (struct.pack(">HH2I", 0, 2, 64, 48) + bytes(8), "2 axes"),
        (struct.pack(">HH3I", 0, 3, 64, 49, 16), "in a dataset of blocks"),
        (struct.pack(">HH3I", 0, 3, 64, 0, 16), "in a dataset of blocks"),
        (struct.pack(">HH3I", 0, 3, 64, 48, 16) + b"no frame", "a frame starts with"),
        (struct.pack(">HH3I", 0, 3, 64, 8, 16) + VAECodec().encode(fibsem()[:16, :9, :64]), "its header says"),
        (struct.pack(">HH3I", 0, 3, 64, 48, 16) + VAECodec().encode(fibsem()[:16, :9, :64]), "belongs to another"),
    ],
)
def test_damaged_blocks_are_named(tmp_path: Path, block: bytes, told: str) -> None:
    path = container(tmp_path)
    (path / "volumes/raw/0/2/1").write_bytes(block)
    array: Any = n5.open(path, "volumes/raw")
    with pytest.raises(FrameError, match=told):
        array[20, 100, 0]
    assert array[0, 0, 0] > 0


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_other_dtypes_and_stores(dtype: str) -> None:
    data = as_dtype(fibsem(), dtype)
    store = MemoryStore()
    n5.create(store, data=data, chunks=CHUNKS, codec=VAECodec(max_error=0))
    np.testing.assert_array_equal(values(n5.open(store)), data)


def test_blocks_that_are_not_stored_are_zero(tmp_path: Path) -> None:
    array: Any = n5.create(tmp_path / "a.n5", shape=(32, 128, 128), dtype="u1", chunks=CHUNKS)
    array[:16, :48, :64] = fibsem()[:16, :48, :64]
    assert sorted(p.name for p in (tmp_path / "a.n5").rglob("*") if p.is_file()) == ["0", "attributes.json"]
    again: Any = n5.open(tmp_path / "a.n5", mode="r+")
    assert not again[16:].any()
    again[:] = 0  # nothing but fill value: the block goes
    assert sorted(p.name for p in (tmp_path / "a.n5").rglob("*") if p.is_file()) == ["attributes.json"]


def test_the_asked_ratio_is_that_on_disk(tmp_path: Path) -> None:
    data = np.tile(fibsem(), (2, 3, 3))
    path = tmp_path / "a.n5"
    n5.create(path, data=data, chunks=(16, 128, 128), ratio=64)
    stored = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    assert 64 <= data.nbytes / stored < 1.15 * 64
    assert n5.open(path).nbytes_stored() == stored


def test_arrays_pickle_and_list(tmp_path: Path) -> None:
    array: Any = n5.open(container(tmp_path), "volumes/raw")
    again = pickle.loads(pickle.dumps(array))
    np.testing.assert_array_equal(again[5], array[5])
    assert again.store == array.store
    assert again.store != n5.N5Store(LocalStore(tmp_path), "other")
    assert array.nchunks_initialized == 12


def test_a_model_travels_along(tmp_path: Path) -> None:
    path = container(tmp_path, embed_model=True)
    [folder] = (path / "volumes/raw/.emcodec").iterdir()
    assert (folder / "card.json").exists()
    code = "import sys\nfrom zarr_emcodec import n5\nprint(n5.open(sys.argv[1], 'volumes/raw')[7].mean())"
    assert float(fresh(code, str(path))) == pytest.approx(n5.open(path, "volumes/raw")[7].mean())  # type: ignore[union-attr]


def test_what_is_there_is_not_overwritten_unasked(tmp_path: Path) -> None:
    path = container(tmp_path)
    before = (path / "volumes/raw/0/0/0").read_bytes()
    with pytest.raises(zarr.errors.ContainsArrayError):
        container(tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        n5.open(path, "volumes/raw")[...] = 0
    assert (path / "volumes/raw/0/0/0").read_bytes() == before
    n5.create(path, "volumes/raw", shape=(8, 64, 64), dtype="u1", overwrite=True)
    assert attributes_of(path)["dimensions"] == [64, 64, 8]
    assert not (path / "volumes/raw/0/0/0").exists()


def test_what_is_no_dataset_of_ours_is_said(tmp_path: Path) -> None:
    path = container(tmp_path)
    for where in ("", "volumes", "absent"):
        with pytest.raises(JobError, match="no N5 dataset"):
            n5.open(path, where)
    document = path / "volumes/raw/attributes.json"
    for change, told in (
        ({"compression": {"type": "gzip"}}, "'gzip', not frames"),
        ({"compression": "raw"}, "'raw', not frames"),
        ({"blockSize": [1, 2]}, "differ in length"),
        ({"dimensions": None}, "not that of an N5 dataset"),
        ({"dataType": "object"}, "uint8, uint16, int16, float32"),
    ):
        document.write_text(json.dumps({**attributes_of(container(tmp_path / told[:3])), **change}))
        with pytest.raises(SpecError, match=told):
            n5.open(path, "volumes/raw")
    document.write_text("{")
    with pytest.raises(SpecError, match="not that of an N5 dataset"):
        n5.open(path, "volumes/raw")


def test_what_n5_cannot_say_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="'dimensions': N5 uses this name"):
        container(tmp_path, attributes={"dimensions": 3})
    store = n5.N5Store(MemoryStore())
    with pytest.raises(SpecError, match="blocks hold frames alone"):
        zarr.create_array(store, data=fibsem(), chunks=CHUNKS)
    from zarr_emcodec import create_array

    with pytest.raises(SpecError, match="fill_value 7"):
        create_array(store, data=fibsem(), chunks=CHUNKS, fill_value=7)
    with pytest.raises(SpecError, match="ratio= or codec="):
        n5.create(MemoryStore(), data=fibsem(), ratio=3, codec=VAECodec())
