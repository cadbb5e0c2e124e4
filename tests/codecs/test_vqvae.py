"""The token codec keeps its arithmetic, its tiers and its promises."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.codecs.vq import corner, decode, encode, frames, levels_of
from tests.models import FOLDER
from tests.volumes import as_dtype, fibsem, noise, padded
from zarr_emcodec import inspect, options
from zarr_emcodec.codecs import VAESpec, VQVAESpec, decode_many, decode_sections, encode_many
from zarr_emcodec.errors import FrameError, SpecError, UnsupportedFrameError
from zarr_emcodec.frame import Tier, replace_tier, unpack
from zarr_emcodec.quality import psnr, worst_error
from zarr_emcodec.runtime import Options

TIERS = ("top", "prior", "full")


@pytest.fixture(autouse=True)
def token_models() -> Iterator[None]:
    with options(model_path=FOLDER):
        yield


def tissue(*shape: int) -> NDArray[np.uint8]:
    """The sample's beginning, tiled where more is asked for."""
    times = [-(-n // m) for n, m in zip(shape, fibsem().shape, strict=True)]
    return np.tile(fibsem(), times)[tuple(slice(n) for n in shape)]


@pytest.mark.parametrize(
    ("words", "sections"),
    [
        ({"ratio": 64}, [16 * 16 * 16]),
        ({"ratio": 12.8}, [16 * 16 * 16, 16 * 32 * 32]),
        ({"ratio": 256}, [16 * 8 * 8]),
        ({"ratio": 32, "model": "tiny-vq3d"}, [8 * 32 * 32]),
    ],
    ids=str,
)
def test_nominal_bytes_are_exactly_the_arithmetic(words: dict[str, Any], sections: list[int]) -> None:
    chunk = tissue(16, 128, 128)
    info = inspect(encode(chunk, mode="nominal", **words))
    assert list(info.section_bytes[1:]) == sections
    assert chunk.nbytes / sum(sections) == pytest.approx(words["ratio"])
    assert info.overhead_bytes + info.section_bytes[0] <= 50


@pytest.mark.parametrize("words", [{"ratio": 64}, {"ratio": 12.8}, {"ratio": 32, "model": "tiny-vq3d"}], ids=str)
def test_coding_keeps_the_tokens_and_saves_bytes(words: dict[str, Any]) -> None:
    chunk = tissue(16, 128, 128)
    plain, coded = (encode(chunk, mode=mode, price=0, **words) for mode in ("nominal", "entropy"))
    assert all(np.array_equal(a, b) for a, b in zip(levels_of(plain), levels_of(coded), strict=True))
    assert len(coded) < 0.95 * len(plain)
    assert np.array_equal(decode(plain), decode(coded))


def test_what_cannot_be_coded_shorter_is_stored_in_fields() -> None:
    # more bytes than the ratio allows, so the price rises; in the end fields are the worst that there is
    chunk = noise((4, 64, 64))
    data = encode(chunk, ratio=12.8, background=None)
    assert sum(inspect(data).section_bytes[1:]) <= chunk.nbytes / 12.8


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("ratio", [64, 12.8])
def test_the_ratio_asked_for_is_the_least(dtype: str, ratio: float) -> None:
    chunk = as_dtype(tissue(8, 128, 128), dtype)
    data = encode(chunk, ratio=ratio)
    assert chunk.nbytes / len(data) >= ratio * chunk.itemsize


@pytest.mark.parametrize("words", [{"ratio": 64}, {"ratio": 12.8}, {"ratio": 32, "model": "tiny-vq3d"}], ids=str)
def test_frames_over_their_budget_are_brought_just_under_it(words: dict[str, Any]) -> None:
    chunk = tissue(2, 192, 192)
    free = encode(chunk, price=0, **words)
    spec = VQVAESpec(**words)
    for share in (0.97, 0.9):  # as where metadata take the rest
        tight = replace(spec, ratio=chunk.nbytes / (share * len(free)))
        (data,) = encode_many(tight, [chunk])
        assert 0.985 * share <= len(data) / len(free) <= share


def test_what_a_frame_is_brought_to_does_not_depend_on_its_batch() -> None:
    chunks = [*np.split(tissue(8, 128, 128), 4), noise((2, 128, 128)), tissue(3, 128, 128)]
    spec = replace(VQVAESpec(ratio=64), ratio=80.0)
    assert encode_many(spec, chunks) == [encode_many(spec, [chunk])[0] for chunk in chunks]


def test_top_and_full_are_tiers_of_one_frame() -> None:
    chunk = tissue(4, 128, 128)
    full, top = encode(chunk, ratio=12.8), encode(chunk, ratio=64)
    assert inspect(full).tier == "full"
    assert inspect(top).tier == "top"
    assert bytes(unpack(full).sections[1]) == bytes(unpack(top).sections[1])
    assert np.array_equal(decode(full, "top"), decode(top))
    assert psnr(chunk, decode(full)) > psnr(chunk, decode(top)) + 2
    with pytest.raises(SpecError, match=r"'top' and 'prior', not 'full' \(its bottom tokens are not stored\)"):
        decode(top, "full")


@pytest.mark.parametrize("name", ["prior", "blocks", "none chosen", "top"])
def test_made_up_tokens_are_the_same_every_time_and_not_the_tops(name: str) -> None:
    data = frames()[name]
    made_up = decode(data, "prior")
    assert np.array_equal(decode(data, "prior"), made_up)
    assert np.array_equal(decode(replace_tier(data, Tier.PRIOR)), made_up)
    assert np.array_equal(decode(data, "prior", entropy_backend="numpy", block_voxels=1 << 10), made_up)
    assert not np.array_equal(made_up, decode(data, "top"))
    with options(model_path=FOLDER, tier="prior"):
        batch = decode_many([frames()["full"], data, frames()["prior"]])
    assert np.array_equal(batch[1], made_up)


def test_what_is_made_up_depends_on_the_chunk() -> None:
    first, second = (encode(tissue(2, 64, 64)[i : i + 1], ratio=64) for i in range(2))
    texture = [decode(data, "prior").astype(int) - decode(data, "top") for data in (first, second)]
    assert not np.array_equal(*texture)


def test_a_frame_decodes_at_the_tier_that_it_states_unless_asked_otherwise() -> None:
    data = frames()["full"]
    for tier in Tier:
        stated = replace_tier(data, tier)
        assert np.array_equal(decode(stated), decode(data, tier.name.lower()))
        assert np.array_equal(decode(stated, "top"), decode(data, "top"))


@pytest.mark.parametrize("tier", TIERS[:2])
def test_models_of_one_level_have_one_tier(tier: str) -> None:
    with pytest.raises(SpecError, match="has one tier, 'full'"):
        decode(frames()["one level"], tier)
    with pytest.raises(UnsupportedFrameError, match=f"at tier '{tier}'") as caught:
        decode(replace_tier(frames()["one level"], Tier[tier.upper()]))
    assert caught.value.field == "tier"


def test_constant_and_lossless_chunks_have_no_tier() -> None:
    chunk = noise((2, 16, 16))
    for tier in TIERS:
        assert np.array_equal(decode(encode(chunk, ratio=64, max_error=0), tier), chunk)
        assert (decode(encode(chunk * 0 + 9, ratio=64), tier) == 9).all()


@pytest.mark.parametrize("keep", [0.05, 0.1, 0.25, 0.5])
def test_stored_blocks_cost_what_their_share_says(keep: float) -> None:
    chunk = tissue(16, 512, 512)
    data = encode(chunk, model="tiny-vq", keep=keep, mode="nominal")
    expected = 64 / (1 + 4 * keep)
    assert VQVAESpec(model="tiny-vq", keep=keep).ratio == pytest.approx(expected)
    assert chunk.nbytes / len(data) == pytest.approx(expected, rel=0.02)


def test_blocks_are_kept_where_the_top_misses_most() -> None:
    chunk = tissue(2, 256, 256).copy()
    chunk[:, 128:] = 100 + chunk[:, 128:] // 8  # hardly any texture left
    data = encode(chunk, ratio=64 / 3, model="tiny-vq", mode="nominal")  # half of the blocks
    stored = levels_of(data)[1] < 256
    assert stored[:, :32].mean() > 0.8
    assert stored.mean() == pytest.approx(0.5, abs=0.1)


def test_a_region_gets_its_bottom_tokens_and_leaves_the_rest() -> None:
    chunk = tissue(2, 256, 256)
    region = corner(chunk.shape)
    data, top = encode(chunk, ratio=64, roi=region), encode(chunk, ratio=64)
    back, coarse = decode(data), decode(top)
    inside = (slice(None), slice(8, 120), slice(8, 120))
    outside = (slice(None), slice(140, None), slice(140, None))
    assert psnr(chunk[inside], back[inside]) > psnr(chunk[inside], coarse[inside]) + 2
    assert np.array_equal(back[outside], coarse[outside])
    assert np.array_equal(decode(data, "top"), coarse)
    rho = 0.25
    nominal = encode(chunk, ratio=64, roi=region, mode="nominal")
    assert chunk.nbytes / sum(inspect(nominal).section_bytes[1:]) == pytest.approx(64 / (1 + 4 * rho), rel=0.02)
    assert np.array_equal(back, encode_and_back(chunk, lambda _: region))


def encode_and_back(chunk: NDArray[Any], roi: Any) -> NDArray[Any]:
    return decode_many(encode_many(VQVAESpec(ratio=64), [chunk], roi=roi))[0]


def test_regions_may_be_all_nothing_or_left_to_the_spec() -> None:
    chunk = tissue(1, 128, 128)
    spec = VQVAESpec(ratio=64)
    everything, nothing = np.ones(chunk.shape, bool), np.zeros(chunk.shape, bool)
    all_of_it, none, own = encode_many(spec, [chunk] * 3, roi=[everything, nothing, None])
    assert np.array_equal(decode(all_of_it), decode(encode(chunk, ratio=12.8)))
    assert own == encode(chunk, ratio=64)
    assert np.array_equal(decode(none, "full"), decode(own))  # bottom tokens might have been there
    assert len(none) == len(own)


def test_a_region_is_cut_with_its_masked_chunk() -> None:
    chunk = padded(tissue(2, 100, 120), (4, 160, 160))
    region = corner(chunk.shape)
    data = encode(chunk, ratio=64, roi=region)
    back = decode(data)
    assert inspect(data).kind == "masked"
    assert (back[2:] == 0).all()
    assert psnr(chunk[:2, :60, :60], back[:2, :60, :60]) > psnr(chunk[:2, :60, :60], decode(data, "top")[:2, :60, :60])


@pytest.mark.parametrize(
    "region", [np.ones((1, 64, 65), bool), np.ones((1, 64, 64), np.uint8), np.ones((64, 64), bool)]
)
def test_a_region_of_another_shape_or_dtype_is_refused(region: Any) -> None:
    with pytest.raises(SpecError, match="needs a bool for each voxel") as caught:
        encode(tissue(1, 64, 64), ratio=64, roi=region)
    assert caught.value.name == "roi"


def test_models_without_a_second_level_take_no_region() -> None:
    chunk = tissue(1, 64, 64)
    with pytest.raises(SpecError, match="one level of tokens"):
        encode(chunk, ratio=256, roi=np.ones(chunk.shape, bool))
    with pytest.raises(SpecError, match="codec 'vae' stores no region apart"):
        encode_many(VAESpec(ratio=16), [chunk], roi=[np.ones(chunk.shape, bool)])


@pytest.mark.parametrize(
    ("floor", "kind", "section_count"), [(20, "latent", 2), (28, "latent", 3), (60, "lossless", 1)]
)
def test_a_floor_takes_the_bottom_and_then_all(floor: float, kind: str, section_count: int) -> None:
    chunk = tissue(2, 128, 128)
    data = encode(chunk, ratio=64, min_psnr=floor)
    assert inspect(data).kind == kind
    assert len(inspect(data).section_bytes) == section_count
    assert psnr(chunk, decode(data)) >= floor


@pytest.mark.parametrize("ceiling", [5, 60, 120])
def test_a_ceiling_holds(ceiling: float) -> None:
    chunk = tissue(2, 128, 128)
    assert worst_error(chunk, decode(encode(chunk, ratio=64, max_error=ceiling))) <= ceiling


def test_a_promise_does_not_depend_on_the_readers_options() -> None:
    chunk = tissue(2, 128, 128)
    with options(tier="top"):
        assert encode_many(VQVAESpec(ratio=64, min_psnr=28), [chunk])[0] == encode(chunk, ratio=64, min_psnr=28)


@pytest.mark.parametrize("ratio", [64, 12.8])
def test_a_price_on_bits_trades_quality_for_bytes(ratio: float) -> None:
    chunk = tissue(8, 128, 128)
    sizes, quality = [], []
    for price in (0, 0.5, 4):
        data = encode(chunk, ratio=ratio, price=price)
        sizes.append(len(data))
        quality.append(psnr(chunk, decode(data)))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] < 0.95 * sizes[0]
    assert quality[0] > quality[1] > quality[2]


def test_effort_buys_quality_at_no_bytes_of_fixed_fields() -> None:
    chunk = tissue(4, 128, 128)
    plain, tried = (encode(chunk, ratio=64, mode="nominal", effort=effort) for effort in (0, 3))
    assert len(plain) == len(tried)
    assert psnr(chunk, decode(tried)) > psnr(chunk, decode(plain)) + 0.1


@pytest.mark.parametrize("name", sorted(frames()))
@pytest.mark.parametrize("tier", [None, "top", "prior"])
def test_blocks_and_batches_change_nothing(name: str, tier: str | None) -> None:
    data = frames()[name]
    try:
        whole = decode(data, tier)
    except SpecError:
        assert "level" in name or "volume" in name  # models that have no such tier
        return
    assert np.abs(decode(data, tier, block_voxels=1 << 10).astype(float) - whole).max() <= 1e-2
    with options(model_path=FOLDER, tier=tier):
        assert np.array_equal(decode_many([data, frames()["top"], data])[2], whole)


@pytest.mark.parametrize("words", [{"ratio": 64}, {"ratio": 12.8}, {"ratio": 32, "model": "tiny-vq3d"}], ids=str)
def test_tokens_do_not_depend_on_blocks(words: dict[str, Any]) -> None:
    chunk = tissue(5, 100, 90)
    spec = VQVAESpec(**words)
    small = Options(model_path=(FOLDER,), block_voxels=1 << 11)
    assert encode_many(spec, [chunk], small) == [encode(chunk, **words)]


@pytest.mark.parametrize("name", ["full", "prior", "5-D", "blocks", "volume", "two volumes", "masked box", "uint16"])
@pytest.mark.parametrize("tier", [None, "prior"])
def test_planes_decode_as_in_the_whole(name: str, tier: Any) -> None:
    if tier and "volume" in name:
        pytest.skip("volumes have one tier")
    data = frames()[name]
    with options(model_path=FOLDER, tier=tier):
        whole = decode_many([data])[0]
        for start in range(len(whole)):
            for stop in range(start + 1, len(whole) + 1):
                assert np.array_equal(decode_sections(data, start, stop), whole[start:stop]), (start, stop)


def test_volumes_use_what_planes_have_in_common() -> None:
    chunk = tissue(16, 64, 64)
    deep = encode(chunk, ratio=32, model="tiny-vq3d", mode="nominal")
    flat = [encode(plane, ratio=32, model="tiny-vq3d", mode="nominal") for plane in chunk]
    assert psnr(chunk, decode(deep)) > 26
    assert len(deep) < sum(map(len, flat)) / 1.9  # a plane is padded to the depth of a token


def test_a_chunk_of_another_depth_than_its_cells_keeps_its_shape() -> None:
    for depth in (1, 2, 3, 7):
        chunk = tissue(depth, 30, 41)
        assert decode(encode(chunk, ratio=32, model="tiny-vq3d")).shape == chunk.shape


def test_contrast_is_taken_out_and_put_back() -> None:
    chunk = tissue(2, 128, 128)
    faint = (100 + chunk // 8).astype(np.uint8)
    errors = [float(np.square(c - decode(encode(c, ratio=64)).astype(float)).mean()) / c.var() for c in (chunk, faint)]
    assert errors[1] == pytest.approx(errors[0], rel=0.1)
    assert math.isclose(decode(encode(faint, ratio=64)).mean(), faint.mean(), abs_tol=1)


def test_a_missing_section_is_needed_above_the_top_only() -> None:
    frame = unpack(frames()["full"])
    front = type(frame)(**{**vars(frame), "sections": frame.sections[:2]})
    with options(model_path=FOLDER):
        with options(tier="top"):
            assert np.array_equal(decode_many([front])[0], decode(frames()["full"], "top"))
        with pytest.raises(FrameError, match="holds 2 sections, its setting means 3"):
            decode_many([front])
