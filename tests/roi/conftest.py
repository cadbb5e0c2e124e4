"""Small arrays in every layout, written by the package; their model is made to have all tiers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore, MemoryStore

import zarr_emcodec
from tests.volumes import fibsem
from zarr_emcodec.jobs.frames import layout_of, stored_chunks

SHAPE = (20, 100, 128)  # ragged in z and y
CHUNKS = (8, 32, 32)  # 3 x 4 x 4 chunks
LAYOUTS: dict[str, dict[str, Any]] = {
    "v2": {"zarr_format": 2},
    "v3": {},
    "sharded": {"shards": (16, 64, 64)},
}


def write(store: Any, layout: str = "v3", **words: Any) -> Any:
    """Tissue with one chunk of a single value and one that is not stored."""
    data = fibsem()[: SHAPE[0], : SHAPE[1], : SHAPE[2]].copy()
    data[:8, :32, 32:64] = 7
    data[:8, 32:64, 32:64] = 0
    words = {"chunks": CHUNKS, "ratio": 16, **LAYOUTS[layout], **words}
    return zarr_emcodec.create_array(store, data=data, **words)


def frames(array: zarr.Array[Any]) -> dict[tuple[int, ...], bytes]:
    """Stored frames by chunk index."""
    return {s.chunk_index: s.data for s in stored_chunks(array, layout_of(array)) if s.data is not None}


@pytest.fixture(scope="session")
def masters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The objects of an array in each layout."""
    made = {}
    for layout in LAYOUTS:
        folder = tmp_path_factory.mktemp(layout)
        write(folder, layout)
        made[layout] = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return made


def copy_to(store: Any, objects: dict[str, bytes]) -> Any:
    """A fresh array of these objects in a store of Zarr's."""
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    for key, data in objects.items():
        sync(store.set(key, default_buffer_prototype().buffer.from_bytes(data)))
    return zarr.open_array(store, mode="r+")


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def array(layout: str, masters: dict[str, dict[str, bytes]], tmp_path: Any) -> Any:
    """Writable, in a folder, in each layout."""
    return copy_to(LocalStore(tmp_path / "a.zarr"), masters[layout])


@pytest.fixture
def in_memory(layout: str, masters: dict[str, dict[str, bytes]]) -> Any:
    """Writable, in memory, in each layout."""
    return copy_to(MemoryStore(), masters[layout])


@pytest.fixture
def sharded(masters: dict[str, dict[str, bytes]], tmp_path: Any) -> Any:
    return copy_to(LocalStore(tmp_path / "a.zarr"), masters["sharded"])


@pytest.fixture
def all_tiers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model has every tier; nothing is decoded."""
    from zarr_emcodec.roi import tiers

    monkeypatch.setattr(tiers, "tiers_of", lambda _model: ("top", "prior", "full"))


def tiers_in(array: zarr.Array[Any]) -> np.typing.NDArray[np.object_]:
    """Name of each stored frame's tier; empty where there is none."""
    from zarr_emcodec.frame import inspect

    out = np.full(tuple(-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True)), "", object)
    for index, data in frames(array).items():
        found = inspect(data)
        assert found.crc_ok
        out[index] = found.tier if found.kind in ("latent", "masked") else ""
    return out
