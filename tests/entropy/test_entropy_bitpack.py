"""Bits side by side: fields of fixed widths and LEB128 numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zarr_emcodec.entropy.bitpack import pack, pack_numbers, packed_bytes, unpack, unpack_numbers
from zarr_emcodec.errors import FrameError, TruncatedFrameError

FIELDS = st.lists(st.integers(0, 32).flatmap(lambda w: st.tuples(st.integers(0, (1 << w) - 1), st.just(w))))


@given(FIELDS)
def test_fields_are_the_bits_of_one_large_integer(fields: list[tuple[int, int]]) -> None:
    values = np.array([value for value, _ in fields], np.uint32)
    widths = np.array([width for _, width in fields], np.uint8)
    total, place = 0, 0
    for value, width in fields:
        total |= value << place
        place += width
    data = pack(values, widths)
    assert data == total.to_bytes((place + 7) // 8, "little")
    assert len(data) == packed_bytes(widths)
    np.testing.assert_array_equal(unpack(data, widths), values)


def test_more_than_255_fields_do_not_overflow_their_offsets() -> None:
    widths = np.full(70_000, 7, np.uint8)
    values = np.random.default_rng(0).integers(0, 128, 70_000).astype(np.uint32)
    np.testing.assert_array_equal(unpack(pack(values, widths), widths), values)


def test_wrong_lengths_and_padding_are_refused() -> None:
    widths = np.array([3, 6], np.uint8)
    data = pack(np.array([5, 33], np.uint32), widths)
    with pytest.raises(TruncatedFrameError) as caught:
        unpack(data[:-1], widths)
    assert (caught.value.needed, caught.value.found) == (2, 1)
    with pytest.raises(FrameError, match="behind"):
        unpack(data + b"\0", widths)
    for bit in range(1, 8):
        with pytest.raises(FrameError, match="padding"):
            unpack(bytes([data[0], data[1] | 1 << bit]), widths)


@given(st.lists(st.integers(0, 2**35 - 1) | st.integers(0, 300)))
def test_numbers_invert_and_take_a_byte_per_seven_bits(numbers: list[int]) -> None:
    data = pack_numbers(np.array(numbers, np.uint64))
    assert len(data) == sum(max(1, -(-number.bit_length() // 7)) for number in numbers)
    assert unpack_numbers(data).tolist() == numbers


@given(st.binary(max_size=12))
def test_any_bytes_are_numbers_of_one_spelling_or_an_error(data: bytes) -> None:
    try:
        numbers = unpack_numbers(data)
    except FrameError:
        return
    assert pack_numbers(numbers) == data


@pytest.mark.parametrize("data", ["80", "8000", "808080808001", "0580", "ff80ff00"])
def test_malformed_numbers_are_refused(data: str) -> None:
    with pytest.raises(FrameError):
        unpack_numbers(bytes.fromhex(data))
