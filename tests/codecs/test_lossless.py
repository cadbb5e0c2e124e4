"""Lossless payloads: every bit of every dtype comes back, by every method; whatever else is in them is refused."""

from __future__ import annotations

import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.codecs.frames import encode as encode_frame
from tests.volumes import Array, as_dtype, fibsem, noise
from zarr_emcodec.codecs import decode_many
from zarr_emcodec.codecs.lossless import Method, decode, encode
from zarr_emcodec.errors import FrameError, TruncatedFrameError, UnsupportedFrameError

DTYPES = ["uint8", "uint16", "int16", "float32"]


def chunks(dtype: str) -> st.SearchStrategy[Array]:
    """Chunks of any bit patterns, NaN payloads, infinities and signed zeros included."""
    size = np.dtype(dtype).itemsize
    shapes = hnp.array_shapes(min_dims=1, max_dims=5, max_side=7)
    return shapes.flatmap(
        lambda shape: hnp.arrays(f"u{size}", shape).map(lambda bits: bits.view(dtype))  # drawn as bits
    )


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_every_bit_comes_back(dtype: str, data: st.DataObject) -> None:
    chunk = data.draw(chunks(dtype))
    method, payload = encode(chunk)
    back = decode(method, payload, chunk.shape, chunk.dtype)
    assert (back.shape, back.dtype) == (chunk.shape, chunk.dtype)
    assert back.tobytes() == chunk.tobytes()
    assert back.flags.writeable
    assert back.flags.c_contiguous


def forms(chunk: Array) -> dict[Method, bytes]:
    """Each method's bytes, written after FORMAT.md and not by the package."""
    little = chunk.astype(chunk.dtype.newbyteorder("<"))
    size = chunk.dtype.itemsize

    def planes(values: Array) -> bytes:
        return b"".join(values.tobytes()[i::size] for i in range(size))

    out = {
        Method.RAW: little.tobytes(),
        Method.ZLIB: zlib.compress(little.tobytes(), 1),
        Method.SHUFFLE_ZLIB: zlib.compress(planes(little), 9),
    }
    if chunk.dtype.kind in "iu":
        rows = np.diff(little, axis=-1, prepend=little.dtype.type(0)) if chunk.ndim else little
        out[Method.DELTA_ZLIB] = zlib.compress(planes(rows.astype(little.dtype)), 1)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (40,), (3, 5), (2, 16, 16), (2, 1, 3, 1, 9)])
def test_each_method_reads_what_the_document_says(dtype: str, shape: tuple[int, ...]) -> None:
    chunk = as_dtype(np.resize(fibsem()[0], shape), dtype)
    for method, payload in forms(chunk).items():
        assert np.array_equal(decode(method, payload, shape, chunk.dtype), chunk), method


def test_differences_wrap_around() -> None:
    for dtype in ("uint8", "uint16", "int16"):
        info = np.iinfo(dtype)
        chunk = np.array([[info.max, info.min] * 50, [info.min, info.max] * 50], dtype)
        payload = forms(chunk)[Method.DELTA_ZLIB]
        assert np.array_equal(decode(Method.DELTA_ZLIB, payload, chunk.shape, chunk.dtype), chunk)
        assert decode(*encode(chunk), chunk.shape, chunk.dtype).tobytes() == chunk.tobytes()


def test_the_smallest_form_is_chosen() -> None:
    for chunk, method in (
        (noise((4, 64)), Method.RAW),
        (fibsem()[:4], Method.DELTA_ZLIB),
        (np.tile(noise((1, 16)), (64, 4)), Method.ZLIB),
        (np.sin(np.arange(1000, dtype=np.float32)), Method.SHUFFLE_ZLIB),
    ):
        chosen, payload = encode(chunk)
        assert chosen is method
        # 2 %: an encoder need not squeeze as hard as zlib can
        assert len(payload) <= 1.02 * min(len(form) for form in forms(chunk).values())


def test_special_floats_pass_through_a_whole_frame() -> None:
    chunk = np.array([[0.0, -0.0, 1e-45, -1e-45], [3.4e38, -3.4e38, 1.0, 2.0]], np.float32)
    for order in (">f4", "<f4"):
        (back,) = decode_many([encode_frame(chunk.astype(order), max_error=0)])
        assert back.dtype == np.dtype(order)
        assert back.tobytes() == chunk.astype(order).tobytes()
    payloads = np.array([0x7FC00001, 0xFFC12345, 0x7F800001, 0x7F800000], np.uint32).view(np.float32)
    assert decode(*encode(payloads), (4,), payloads.dtype).tobytes() == payloads.tobytes()
    (back,) = decode_many([encode_frame(np.full((2, 3), np.uint32(0x7FC00ABC).view(np.float32)))])
    assert (back.view(np.uint32) == 0x7FC00ABC).all()  # a constant is any one bit pattern


@pytest.mark.parametrize("method", [4, 5, 100, 255])
def test_methods_of_the_future_are_refused_as_such(method: int) -> None:
    with pytest.raises(UnsupportedFrameError, match=f"method {method}") as caught:
        decode(method, b"", (1,), np.dtype("u1"))
    assert caught.value.field == "setting"


def test_differences_of_floats_are_refused() -> None:
    with pytest.raises(FrameError, match="integers"):
        decode(Method.DELTA_ZLIB, zlib.compress(bytes(16)), (4,), np.dtype("f4"))


@pytest.mark.parametrize("method", list(Method))
def test_every_prefix_and_every_longer_payload_is_refused(method: Method) -> None:
    chunk = fibsem()[:2, :9, :11]
    payload = forms(chunk)[method]
    for n in range(len(payload)):
        with pytest.raises(FrameError):
            decode(method, payload[:n], chunk.shape, chunk.dtype)
    with pytest.raises(FrameError):
        decode(method, payload + b"\0", chunk.shape, chunk.dtype)
    for shape in ((2, 9, 10), (2, 9, 12), (3, 9, 11)):
        with pytest.raises(FrameError):
            decode(method, payload, shape, chunk.dtype)


def test_a_short_payload_says_how_much_is_missing() -> None:
    with pytest.raises(TruncatedFrameError) as caught:
        decode(Method.RAW, b"123", (2, 2), np.dtype("u2"))
    assert (caught.value.needed, caught.value.found) == (8, 3)


@pytest.mark.parametrize("method", [Method.ZLIB, Method.DELTA_ZLIB, Method.SHUFFLE_ZLIB])
def test_bombs_are_let_grow_no_larger_than_the_chunk(method: Method) -> None:
    bomb = zlib.compress(bytes(1 << 26), 9)
    tracemalloc.start()
    try:
        with pytest.raises(FrameError):
            decode(method, bomb, (16, 16), np.dtype("u1"))
        assert tracemalloc.get_traced_memory()[1] < 2 * len(bomb)
    finally:
        tracemalloc.stop()
