"""Background: found where it is, exact when it comes back, refused where its bytes lie."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

import zarr_emcodec
from tests.codecs.frames import encode
from tests.volumes import Array, as_dtype, fibsem, padded
from zarr_emcodec.codecs import decode_many
from zarr_emcodec.codecs.mask import (
    Background,
    fill_background,
    find_background,
    pack_mask,
    restore,
    unpack_mask,
)
from zarr_emcodec.errors import FrameError, SpecError, UnsupportedFrameError
from zarr_emcodec.frame import inspect
from zarr_emcodec.frame.wire import varint

U1 = np.dtype("u1")
DTYPES = ["uint8", "uint16", "int16", "float32"]


@st.composite
def backgrounds(draw: st.DrawFn) -> tuple[Background, tuple[int, ...]]:
    """Any background of any small chunk, whether an encoder would find it or not."""
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5).map(tuple))
    box = []
    for n in shape:
        start = draw(st.integers(0, n - 1))
        box.append(slice(start, draw(st.integers(start + 1, n))))
    extent = tuple(s.stop - s.start for s in box)
    tissue: NDArray[np.bool_] | None = draw(st.none() | hnp.arrays(np.bool_, extent))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    value = draw(hnp.from_dtype(dtype))
    return Background(np.asarray(value, dtype), tuple(box), tissue), shape


@given(backgrounds())
@settings(max_examples=300, deadline=None)
def test_packing_is_undone_by_unpacking(case: tuple[Background, tuple[int, ...]]) -> None:
    background, shape = case
    again = unpack_mask(pack_mask(background), shape, background.value.dtype)
    assert again.value.tobytes() == background.value.tobytes()
    assert again.value.dtype == background.value.dtype
    assert again.box == background.box
    if background.tissue is None:
        assert again.tissue is None
    else:
        assert again.tissue is not None
        assert np.array_equal(again.tissue, background.tissue)


@given(backgrounds())
@settings(max_examples=200, deadline=None)
def test_every_prefix_and_every_longer_section_is_refused(case: tuple[Background, tuple[int, ...]]) -> None:
    background, shape = case
    data = pack_mask(background)
    for n in range(len(data)):
        with pytest.raises(FrameError):
            unpack_mask(data[:n], shape, background.value.dtype)
    with pytest.raises(FrameError):
        unpack_mask(data + b"\0", shape, background.value.dtype)


@given(backgrounds())
@settings(max_examples=200, deadline=None)
def test_restoring_keeps_tissue_and_makes_the_rest_exact(case: tuple[Background, tuple[int, ...]]) -> None:
    background, shape = case
    dtype = background.value.dtype
    inner = np.arange(np.prod(background.shape)).reshape(background.shape).astype(dtype)
    whole = restore(inner, background, shape)
    assert whole.dtype == dtype
    is_tissue = np.zeros(shape, bool)
    is_tissue[background.box] = True if background.tissue is None else background.tissue
    kept = np.ones(background.shape, bool) if background.tissue is None else background.tissue
    assert np.array_equal(whole[background.box][kept], inner[kept])
    assert whole[~is_tissue].tobytes() == np.full(np.count_nonzero(~is_tissue), background.value).tobytes()


@pytest.mark.parametrize("fill", [0, 255])
def test_padding_is_a_box_whatever_its_value(fill: int) -> None:
    chunk = padded(fibsem()[:3, :50, :41], (8, 64, 64), fill)
    background = find_background(chunk, 0, ratio=16)
    assert background is not None
    assert background.box == (slice(0, 3), slice(0, 50), slice(0, 41))
    assert background.value == fill
    assert background.tissue is None


def test_padding_before_the_tissue_is_found_too() -> None:
    chunk = padded(fibsem()[:3, :50, :41], (8, 64, 64))[::-1, ::-1, ::-1]
    background = find_background(chunk, 0, ratio=16)
    assert background is not None
    assert background.shape == (3, 50, 41)


def test_a_hole_is_a_bitmap_only_if_it_was_asked_for_and_pays() -> None:
    chunk = fibsem()[:4].copy()
    chunk[:, 20:90, 33:111] = 0
    background = find_background(chunk, 0, ratio=16)
    assert background is not None
    assert background.tissue is not None
    assert np.array_equal(background.tissue, chunk != 0)
    assert find_background(chunk, None, ratio=16) is None
    assert find_background(chunk, 7, ratio=16) is None
    speckled = fibsem()[:4].copy()
    speckled[np.random.default_rng(0).random(speckled.shape) < 0.05] = 0  # a bit for each voxel buys nothing here
    assert find_background(speckled, 0, ratio=64) is None


def test_filling_leaves_tissue_alone_and_makes_no_step() -> None:
    chunk = fibsem()[:4].copy()
    chunk[:, 20:90, 33:111] = 0
    chunk[2, 5] = 0  # a row without tissue
    background = find_background(chunk, 0, ratio=16)
    assert background is not None
    assert background.tissue is not None
    filled = fill_background(chunk, background)
    assert np.array_equal(filled[background.tissue], chunk[background.tissue])
    assert np.array_equal(filled[0, 20:90, 33:111], np.repeat(chunk[0, 20:90, 32:33], 78, 1))
    assert (filled[2, 5] == np.uint8(chunk[background.tissue].mean())).all()
    assert np.array_equal(chunk[0, 50, 40:50], np.zeros(10))  # the caller's own voxels are not painted over


@pytest.mark.parametrize("dtype", DTYPES)
def test_background_survives_the_whole_chain_in_every_dtype(dtype: str) -> None:
    tissue = as_dtype(fibsem()[:3, :48, :64], dtype)
    edge, hole = padded(tissue, (4, 80, 80), 7), tissue.copy()
    hole[:, 9:40, 21:50] = 7
    for chunk in (edge, hole):
        data = encode(chunk, ratio=16, background=7)
        assert inspect(data).kind == "masked"
        (back,) = decode_many([data])
        assert (back[chunk == 7] == 7).all()


def test_zeros_of_both_signs_are_no_trap() -> None:
    chunk = np.zeros((2, 40, 40), np.float32)
    chunk[0, 3, 3] = -0.0
    (back,) = decode_many([encode(chunk, ratio=16)])
    assert np.abs(back).max() < 1e-3
    tissue = as_dtype(fibsem()[:2, :48, :64], "float32")
    mixed: Array = np.zeros((4, 64, 64), np.float32)
    mixed[:2, :48, :64] = tissue
    mixed[3, ::2] = -0.0
    (back,) = decode_many([encode(mixed, ratio=16)])
    assert (back[2:] == 0).all()


@pytest.mark.parametrize("value", [300, -1, 1e20, 1e300, 0.5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_background_that_the_dtype_lacks_is_simply_not_there(value: float, dtype: str) -> None:
    chunk = as_dtype(fibsem()[:2, :32, :32], dtype)
    found = find_background(chunk, value, ratio=16)
    assert found is None or float(found.value) == value


def test_boxes_outside_the_chunk_are_refused() -> None:
    for start, stop in ((0, 0), (1, 1), (2, 1), (0, 9), (8, 9), (2**32 - 1, 2**32 - 1), (0, 2**32 - 1)):
        with pytest.raises(FrameError, match="box") as caught:
            unpack_mask(b"\0\0" + varint(start) + varint(stop), (8,), U1)
        assert caught.value.field == "mask"


@pytest.mark.parametrize("mode", range(2, 256))
def test_modes_of_the_future_are_refused_as_such(mode: int) -> None:
    with pytest.raises(UnsupportedFrameError, match=f"mode {mode}"):
        unpack_mask(bytes([0, mode, 0, 8]), (8,), U1)


def test_bitmaps_of_another_size_or_with_fill_bits_are_refused() -> None:
    front = b"\0\1" + varint(0) + varint(12)
    assert unpack_mask(front + zlib.compress(b"\xff\x0f"), (12,), U1).tissue is not None
    for payload in (b"\xff", b"\xff\x0f\0", b"\xff\x1f", b"\0\x80", b""):
        with pytest.raises(FrameError):
            unpack_mask(front + zlib.compress(payload), (12,), U1)
    for junk in (b"", b"\xff\x0f", zlib.compress(b"\xff\x0f")[:-1], zlib.compress(b"\xff\x0f") + b"\0"):
        with pytest.raises(FrameError):
            unpack_mask(front + junk, (12,), U1)


def test_a_bitmap_for_no_axes_is_refused() -> None:
    with pytest.raises(FrameError):
        unpack_mask(b"\0\1" + zlib.compress(b"\1"), (), U1)


@pytest.mark.parametrize("words", [{"ratio": 16}, {"min_psnr": 30.0}], ids=str)
def test_padding_with_nan_is_background_and_nan_in_tissue_is_refused(words: dict[str, Any]) -> None:
    tissue = fibsem()[:3, :40, :50].astype(np.float32)
    chunk = np.full((4, 64, 64), np.nan, np.float32)
    chunk[:3, :40, :50] = tissue
    codec = zarr_emcodec.VAECodec(**words)
    back = codec.decode(codec.encode(chunk))
    assert np.array_equal(np.isnan(back), np.isnan(chunk))
    assert np.abs(back[:3, :40, :50] - tissue).mean() < 8
    chunk[1, 5, 5] = np.nan
    with pytest.raises(SpecError, match="NaN"):
        codec.encode(chunk)
