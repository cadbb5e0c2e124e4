"""Frames that claim what they do not hold: boxes outside the chunk, bombs, terabytes, windows without a number.

All checksums are right here. The answer is an error of ours, in little memory and little time.
"""

from __future__ import annotations

import time
import tracemalloc
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest

from tests.codecs.frames import encode, frames, in_many_streams, model_for
from tests.corruption.attempt import attempt, attempt_all, resigned, sections_of
from tests.volumes import fibsem
from zarr_emcodec.codecs import decode_many, decode_sections
from zarr_emcodec.codecs.vae_decode import ladder_of
from zarr_emcodec.errors import FrameError, ModelNotFoundError, UnsupportedFrameError
from zarr_emcodec.frame import Frame, Kind, Tier, pack, unpack
from zarr_emcodec.frame.wire import varint
from zarr_emcodec.runtime import Options

DTYPES = ["u1", "<u2", ">i2", "<f4"]


def masks() -> Iterator[bytes]:
    box, bitmap = frames()["masked box"], frames()["masked bitmap"]
    ends = [0, 1, 2, 3, 4, 5, 63, 64, 65, 2**31, 2**32 - 1]
    for i in range(3):
        for start in ends:
            for stop in ends:
                spans = [(0, 2), (0, 40), (0, 48)]
                spans[i] = (start, stop)
                yield resigned(box, 0, b"\0\0" + b"".join(varint(a) + varint(b) for a, b in spans))
    for mode in range(256):
        yield resigned(box, 0, b"\0" + bytes([mode]) + bytes(unpack(box).sections[0])[2:])
    whole = b"\0\1" + b"".join(varint(0) + varint(n) for n in (2, 48, 64))
    for n in (0, 1, 767, 768, 769, 5000):
        for fill in (0, 1, 255):
            for level in (0, 9):
                squeezed = zlib.compress(bytes([fill]) * n, level)
                yield resigned(bitmap, 0, whole + squeezed)
                yield resigned(bitmap, 0, whole + squeezed + b"\0")
                yield resigned(bitmap, 0, whole + squeezed[:-1])
                yield resigned(bitmap, 0, whole + squeezed[2:-4])  # no zlib frame around it


@pytest.mark.usefixtures("no_network")
def test_masks_that_lie() -> None:
    ends = attempt_all(masks())
    assert ends.total() >= 750, ends
    assert ends["UnsupportedFrameError"] == 254, ends


@pytest.mark.parametrize("kind", [Kind.LATENT, Kind.MASKED])
@pytest.mark.parametrize("shape", [(), (5,)])
def test_latents_without_two_axes_are_refused(kind: Kind, shape: tuple[int, ...]) -> None:
    digest = model_for().card.digest[:8]
    spans = b"".join(varint(0) + varint(n) for n in shape)
    for mask in (b"\0\0" + spans, b"\0\1" + spans + zlib.compress(b"\1")):
        sections = (mask, b"", b"") if kind is Kind.MASKED else (b"", b"")
        data = pack(Frame(kind, shape, np.dtype("u1"), model=digest, sections=sections))
        with pytest.raises(FrameError):
            decode_many([data])


@pytest.mark.parametrize("kind", [Kind.CONSTANT, Kind.LOSSLESS])
def test_single_voxels_keep_their_shape_in_either_order(kind: Kind) -> None:
    for order in ("C", "F"):
        frame = Frame(kind, (), np.dtype(">f4"), order=order, sections=(np.float32(1.5).tobytes(),))
        (voxel,) = decode_many([pack(frame)])
        assert voxel.shape == ()
        assert voxel == 1.5


@pytest.mark.parametrize("method", range(256))
def test_single_voxels_under_every_lossless_method(method: int) -> None:
    for payload in (b"\7", zlib.compress(b"\7"), b""):
        attempt(pack(Frame(Kind.LOSSLESS, (), np.dtype("u1"), setting=method, sections=(payload,))))


def peak_of(data: bytes, options: Options) -> int:
    """Bytes of memory that decoding takes at its worst, however it ends; and not for long."""
    attempt(frames()["latent"])  # model files and look-ups are read once per process
    tracemalloc.start()
    began = time.perf_counter()
    try:
        attempt(data, options)
        assert time.perf_counter() - began < 10
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_bombs_take_no_more_memory_than_the_chunk_has() -> None:
    bomb = zlib.compress(bytes(1 << 26), 9)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    side = deflate.compress(bytes(1 << 26)) + deflate.flush()
    small = Frame(Kind.LOSSLESS, (8, 8), np.dtype("u1"))
    attacks = {method: pack(replace(small, setting=method, sections=(bomb,))) for method in (1, 2, 3)}
    attacks[4] = resigned(frames()["masked bitmap"], 0, b"\0\1\0\2\0\x30\0\x40" + bomb)
    attacks[5] = resigned(frames()["latent"], 0, side)
    for name, data in attacks.items():
        assert attempt(data) == "FrameError", name
        assert peak_of(data, Options()) < 3 * len(data) + (1 << 20), name


def skipped(shape: tuple[int, ...]) -> bytes:
    """A frame of a few bytes for any shape: side information says that every channel is zero everywhere."""
    model = model_for()
    side = ladder_of(model).pack_side(np.zeros(model.card.channels, np.uint8), 0)
    return pack(Frame(Kind.LATENT, shape, np.dtype("u1"), model=model.card.digest[:8], sections=(side, b"")))


def test_a_claim_above_the_limit_takes_no_memory() -> None:
    options = Options(max_chunk_bytes=1 << 16)
    for kind_of_frame in (skipped((17, 64, 64)), pack(replace(unpack(frames()["constant"]), shape=(17, 64, 64)))):
        assert attempt(kind_of_frame, options) == "FrameError"
        assert peak_of(kind_of_frame, options) < 1 << 17


def test_latents_of_a_few_bytes_take_memory_in_proportion_to_the_chunk() -> None:
    shape = (16, 128, 128)
    # symbols and grey levels in float32, a symbol's table and place: about 30 bytes for each voxel
    assert peak_of(skipped(shape), Options()) < 64 * 16 * 128 * 128


def test_sections_thinner_than_a_cell_take_no_more_than_their_cells() -> None:
    stride = model_for().card.stride
    assert peak_of(skipped((8192, 1, 1)), Options(block_voxels=1 << 16)) < 16 * stride[0] * stride[1] * 8192


def test_a_frame_of_a_few_bytes_cannot_ask_for_terabytes() -> None:
    assert attempt(skipped((2**31, 1, 1))) == "FrameError"
    assert attempt(pack(replace(unpack(skipped((1, 1))), shape=(2**31, 1, 1), sections=(b"", b"")))) == "FrameError"


@pytest.mark.usefixtures("no_network")
def test_symbols_that_the_bytes_cannot_hold_cost_little_time() -> None:
    model = model_for()
    side = ladder_of(model).pack_side(np.ones(model.card.channels, np.uint8), 0)
    most = (1 << 16) // model.card.channels * model.card.stride[1]  # one lane may carry so many symbols
    backends: list[Literal["numpy"] | None] = ["numpy", None]
    for backend in backends:
        for stream in (b"", b"\0", b"\0\1", b"\x0f" + b"\xff" * 64, b"\x10", b"\x40\1\0"):
            for shape in ((1, most), (2, 1, most), (8, 512, 512)):
                data = pack(
                    Frame(Kind.LATENT, shape, np.dtype("u1"), model=model.card.digest[:8], sections=(side, stream))
                )
                began = time.perf_counter()
                end = attempt(data, Options(entropy_backend=backend))
                assert time.perf_counter() - began < 10
                assert end != "decoded" or shape == (1, most)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [(3e38, 3e38), (-3e38, 3e38), (0.0, 1e-45), (-3e38, 1e-45), (0.0, 3e38)])
def test_windows_at_the_ends_of_float32_decode_without_a_warning(dtype: str, window: tuple[float, float]) -> None:
    offset, scale = (float(np.float32(number)) for number in window)
    data = pack(replace(unpack(frames()["latent"]), dtype=np.dtype(dtype), window=(offset, scale)))
    assert attempt(data) in ("decoded", "FrameError")


def test_a_model_that_is_not_here_is_named() -> None:
    data = pack(replace(unpack(frames()["latent"]), model=b"\x12" * 8))
    with pytest.raises(ModelNotFoundError, match="12121212") as caught:
        decode_many([data])
    assert caught.value.searched


def test_a_tier_that_this_reader_lacks_is_named() -> None:
    with pytest.raises(UnsupportedFrameError, match="top"):
        decode_many([pack(replace(unpack(frames()["latent"]), tier=Tier.TOP))])


def test_one_bad_frame_in_a_batch_is_an_error_and_spoils_no_later_call() -> None:
    good = frames()["latent"]
    expected = decode_many([good])[0]
    bad = resigned(good, 0, b"\xff")
    with pytest.raises(FrameError):
        decode_many([good, bad, good])
    assert np.array_equal(decode_many([good])[0], expected)


def test_partial_decoding_is_as_careful() -> None:
    data = in_many_streams(fibsem()[:6, :40, :48], ratio=16)
    tried = 0
    for i, _ in sections_of(data)[1:]:
        wrong = resigned(data, i, b"")
        for start in range(6):
            tried += 1
            try:
                planes = decode_sections(wrong, start, start + 1)
            except FrameError:
                assert start == i - 1  # one section of the volume a stream: only its own is spoilt
            else:
                assert start != i - 1
                assert np.array_equal(planes, decode_sections(data, start, start + 1))
    assert tried == 36


def test_lossless_damage_under_a_right_checksum_is_other_voxels_and_no_more() -> None:
    array = fibsem()[:2, :8, :8]
    data = encode(array, max_error=0)
    assert np.array_equal(decode_many([data])[0], array)
    frame = unpack(data)
    raw = pack(replace(frame, setting=0, sections=(array.tobytes()[:-1] + b"\xaa",)))
    back = decode_many([raw])[0]
    assert back[-1, -1, -1] == 0xAA
    assert np.count_nonzero(back != array) <= 1
