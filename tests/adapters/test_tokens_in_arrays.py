"""The token codec inside Zarr arrays: bytes on disk, tiers of one array, and which bytes a tier reads."""

from __future__ import annotations

import functools
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore, MemoryStore

import zarr_emcodec
from tests.adapters.common import fresh, get, keys, put, write
from tests.adapters.test_zarr import PIPELINES
from tests.models import FOLDER
from tests.volumes import Array, fibsem
from zarr_emcodec import VQVAECodec, v3
from zarr_emcodec.adapters.layout import fit_token_chunks
from zarr_emcodec.errors import FrameError, SpecError
from zarr_emcodec.frame import Tier, inspect, replace_tier
from zarr_emcodec.quality import psnr

LAYOUTS = ("v2", "v3", "sharded")
TIERS: tuple[Literal["top", "prior", "full"], ...] = ("top", "prior", "full")


@pytest.fixture(autouse=True)
def token_models() -> Iterator[None]:
    with zarr_emcodec.options(model_path=FOLDER):
        yield


@pytest.fixture(params=PIPELINES)
def pipeline(request: pytest.FixtureRequest) -> Any:
    with zarr.config.set({"codec_pipeline.path": request.param}):
        yield request.param


def volume(*shape: int) -> Array:
    times = [-(-n // m) for n, m in zip(shape, fibsem().shape, strict=True)]
    out: Array = np.tile(fibsem(), times)[tuple(slice(n) for n in shape)]
    return out


class Counting(MemoryStore):
    """Counts the bytes of chunks that are read, over all instances: a store opened for reading is another one."""

    bytes_read: ClassVar[int] = 0

    async def get(self, key: str, *arguments: Any, **words: Any) -> Any:
        return self.counted(key, await super().get(key, *arguments, **words))

    def get_sync(self, key: str, *arguments: Any, **words: Any) -> Any:
        synchronous: Any = super()  # newer versions of Zarr have it
        return self.counted(key, synchronous.get_sync(key, *arguments, **words))

    @staticmethod
    def counted(key: str, value: Any) -> Any:
        Counting.bytes_read += len(value) if value is not None and key.startswith("c/") else 0
        return value

    @staticmethod
    def of(read: Callable[[], object]) -> int:
        """What an action reads."""
        Counting.bytes_read = 0
        read()
        return Counting.bytes_read


def read_all(store: Any, tier: Any) -> None:
    opened(store, tier)[...]


def opened(store: Any, tier: Any, **words: Any) -> Any:
    """An array at a tier; typed loosely, as the union of all that indexing may give helps no test."""
    return zarr_emcodec.open(store, tier=tier, **words)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["numcodecs", "v3"])
def test_arrays_come_back_through_either_adapter(layout: str, name: str, pipeline: str) -> None:
    data = volume(10, 200, 150)
    codec: Any = VQVAECodec(64)
    stored = write(data, layout, (4, 128, 128), codec=codec if name == "numcodecs" else v3.VQVAECodec(64).to_v2())
    back = np.asarray(stored[...])
    assert psnr(data, back) > 23
    assert np.array_equal(stored[3:7, 20:150, 9], back[3:7, 20:150, 9])
    assert np.array_equal(stored[4], back[4])
    again = zarr.open_array(stored.store, mode="r")
    assert np.array_equal(again[...], back)


def test_both_adapters_share_one_configuration() -> None:
    codec = VQVAECodec(12.8, tier="top", price=0.5)
    assert codec.to_v3().to_v2() == codec
    assert v3.VQVAECodec(12.8, tier="top", price=0.5).spec == codec.spec
    assert numcodecs.get_codec(codec.get_config()) == codec
    assert v3.VQVAECodec.from_dict(json.loads(json.dumps(codec.to_v3().to_dict()))) == codec.to_v3()
    assert codec.to_v3().to_dict()["name"] == "emcodec.vqvae"
    assert pickle.loads(pickle.dumps(codec.to_v3().reading_at("top"))).tier == "top"
    assert codec.to_v3().reading_at("top") == codec.to_v3()


@pytest.mark.parametrize("ratio", [64, 12.8])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_the_ratio_holds_on_disk(tmp_path: Path, ratio: float, sharded: bool, zarr_format: Literal[2, 3]) -> None:
    if sharded and zarr_format == 2:
        pytest.skip("shards need Zarr v3")
    data = volume(32, 320, 320)
    words: dict[str, Any] = {"shards": (32, 320, 320)} if sharded else {}
    zarr_emcodec.create_array(tmp_path / "a", data=data, codec="vqvae", ratio=ratio, zarr_format=zarr_format, **words)
    stored = sum(path.stat().st_size for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert data.nbytes / stored >= ratio


def test_fixed_fields_lose_less_than_two_per_cent_to_all_else_in_shards(tmp_path: Path) -> None:
    data = volume(32, 1024, 1024)
    codec = VQVAECodec(64, mode="nominal")
    zarr_emcodec.create_array(tmp_path / "a", data=data, codec=codec, shards=(32, 1024, 1024))
    stored = sum(path.stat().st_size for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert data.nbytes / stored >= 0.98 * 64


@pytest.mark.parametrize(
    "shape",
    [(1, 4096, 4096), (3, 5000, 3000), (16, 512, 512), (20, 600, 700), (700, 900, 1100), (2048, 2048)],
)
def test_default_chunks_hold_1000x_in_fixed_fields(shape: tuple[int, ...]) -> None:
    chunks = fit_token_chunks(shape)
    count = np.prod([-(-n // c) for n, c in zip(shape, chunks, strict=True)])
    tokens = int(np.prod(chunks[:-2])) * -(-chunks[-2] // 32) * -(-chunks[-1] // 32)
    frame = 24 + 2 + tokens  # FORMAT.md: overhead of a latent frame, contrast, a byte a token
    assert np.prod(chunks) / (frame + 16) >= (1000 if all(c % 32 == 0 for c in chunks[-2:]) else 900)
    assert count * np.prod(chunks) <= 1.35 * np.prod(shape)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_array_is_read_at_every_tier(layout: str, pipeline: str) -> None:
    data = volume(8, 256, 256)
    stored = write(data, layout, (4, 128, 128), codec=VQVAECodec(64))
    top = np.asarray(stored[...])
    seen = {}
    for tier in ("top", "prior"):
        array = opened(stored.store, tier)
        assert isinstance(array, zarr.Array)
        seen[tier] = np.asarray(array[...])
        assert array.attrs.asdict().get("emcodec:synthesised", False) == (tier == "prior")
        assert np.array_equal(np.asarray(array[2:5, 100:150, 7]), seen[tier][2:5, 100:150, 7])
        assert np.array_equal(pickle.loads(pickle.dumps(array))[:2], seen[tier][:2])
    assert np.array_equal(seen["top"], top)
    assert not np.array_equal(seen["prior"], top)
    assert "emcodec:synthesised" not in zarr.open_array(stored.store).attrs  # nothing was written
    with pytest.raises(SpecError, match="bottom tokens are not stored"):
        opened(stored.store, "full")[...]


def test_the_arrays_tier_stands_above_the_processs() -> None:
    stored = write(volume(4, 128, 128), "v3", (4, 128, 128), codec=VQVAECodec(12.8))
    full = np.asarray(stored[...])
    with zarr_emcodec.options(tier="top"):
        assert not np.array_equal(stored[...], full)
        assert np.array_equal(opened(stored.store, "full")[...], full)


def test_tiers_are_for_reading_arrays_of_ours() -> None:
    tokens = write(volume(4, 128, 128), "v3", (4, 128, 128), codec=VQVAECodec(256))
    latents = write(volume(4, 64, 64), "v3", (4, 64, 64))
    plain = zarr.create_array(MemoryStore(), data=volume(2, 8, 8))
    group = zarr.create_group(MemoryStore())
    for store, words, told in (
        (tokens.store, {"tier": "top"}, "has 'full', not 'top'"),
        (latents.store, {"tier": "prior"}, "has 'full', not 'prior'"),
        (plain.store, {"tier": "top"}, "none of this package's"),
        (group.store, {"tier": "top"}, "needs an array"),
        (tokens.store, {"tier": "full", "mode": "r+"}, "is for reading"),
    ):
        with pytest.raises(SpecError, match=told):
            opened(store, **words)
    assert opened(latents.store, "full")[...].shape == (4, 64, 64)


def test_a_made_up_default_is_said_in_the_attributes() -> None:
    codec = VQVAECodec(64, tier="prior")
    for zarr_format in (2, 3):
        array = zarr_emcodec.create_array(MemoryStore(), data=volume(2, 128, 128), codec=codec, zarr_format=zarr_format)
        assert array.attrs["emcodec:synthesised"] is True
    assert (
        "emcodec:synthesised"
        not in zarr_emcodec.create_array(MemoryStore(), data=volume(2, 128, 128), codec=VQVAECodec(64)).attrs
    )


def test_the_top_is_read_without_the_bottoms_bytes(pipeline: str) -> None:
    store = Counting()
    codec = VQVAECodec(12.8, mode="nominal")
    array = zarr_emcodec.create_array(store, data=volume(16, 512, 512), codec=codec, chunks=(16, 256, 256))
    stored = sum(len(get(array, key)) for key in keys(array))
    read = {tier: Counting.of(functools.partial(read_all, store, tier)) for tier in TIERS}
    assert read["full"] == read["prior"] == stored
    assert 0.2 * stored <= read["top"] <= 0.21 * stored
    with zarr_emcodec.options(tier="top"):
        assert Counting.of(lambda: zarr.open_array(store)[3, :200, :200]) == read["top"] / 4


def test_frames_that_state_another_tier_than_the_arrays_are_fetched_whole(pipeline: str) -> None:
    data = volume(4, 256, 128)
    store = Counting()
    array = zarr_emcodec.create_array(store, data=data, codec=VQVAECodec(12.8, tier="top"), chunks=(4, 128, 128))
    top = np.asarray(array[...])
    first, second = keys(array)
    put(array, first, replace_tier(get(array, first), Tier.FULL))
    sizes = len(get(array, first)), len(get(array, second))
    both = np.asarray(array[...])
    assert np.array_equal(both[:, 128:], top[:, 128:])
    assert psnr(data[:, :128], both[:, :128]) > psnr(data[:, :128], top[:, :128]) + 2
    assert sizes[0] < Counting.of(lambda: array[...]) < sizes[0] + 0.5 * sizes[1]


@pytest.mark.parametrize("at", [3, 20, 70, 200])
def test_damage_is_seen_in_what_is_fetched(at: int, tmp_path: Path, pipeline: str) -> None:
    array = zarr_emcodec.create_array(
        LocalStore(tmp_path), data=volume(4, 128, 128), codec=VQVAECodec(12.8, tier="top")
    )
    (key,) = keys(array)
    data = bytearray(get(array, key))
    data[at] ^= 4
    put(array, key, bytes(data))
    with pytest.raises(FrameError):
        array[...]
    put(array, key, bytes(data[:at]))
    with pytest.raises(FrameError):
        array[...]


@pytest.mark.parametrize("name", ["constant", "lossless", "masked", "missing", "top only"])
def test_other_frames_are_read_by_the_same_road(name: str, pipeline: str) -> None:
    data = volume(4, 128, 128).copy()
    words: dict[str, Any] = {}
    if name == "constant":
        data[...] = 7
    elif name == "lossless":
        words["max_error"] = 0
    elif name == "masked":
        data[:, 100:] = 0
        data[:, 10:40, 10:40] = 0
    elif name == "missing":
        data[...] = 0
    codec = VQVAECodec(64 if name == "top only" else 12.8, tier="top", **words)
    store = Counting()
    array = zarr_emcodec.create_array(store, data=data, codec=codec)
    with zarr_emcodec.options(tier="prior"):
        expected = None if not keys(array) else inspect(get(array, keys(array)[0])).kind
    assert expected == {"missing": None, "top only": "latent"}.get(name, name)
    back = np.asarray(array[...])
    if name in ("constant", "lossless", "missing"):
        assert np.array_equal(back, data)
    else:
        assert psnr(data, back) > 22
        assert (back[data == 0] == 0).all()


def test_models_of_tokens_travel_with_the_data(tmp_path: Path) -> None:
    data = volume(4, 128, 128)
    array = zarr_emcodec.create_array(tmp_path / "a", data=data, codec=VQVAECodec(12.8), embed_model=True)
    expected = float(np.asarray(array[...]).mean())
    code = (
        "import sys, numpy as np, zarr_emcodec\n"
        "array = zarr_emcodec.open(sys.argv[1], trust_embedded=True)\n"
        "print(float(np.asarray(array[...]).mean()), array.metadata.codecs[0].NAME)"
    )
    root = str(Path(__file__).parents[2])
    printed = fresh(f"import sys; sys.path.insert(0, {root!r})\n{code}", str(tmp_path / "a"))
    assert printed == f"{expected} emcodec.vqvae"
