"""Whatever bytes come in, only the FrameError family and little memory come out.

Lies are told with right checksums, so that they reach the parser: the frames here are put together by hand, with a
CRC written for this file, and so are also a second opinion on ``pack``.
"""

from __future__ import annotations

import random
import struct
import tracemalloc
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zarr_emcodec.errors import ChecksumError, FrameError, TruncatedFrameError, UnsupportedFrameError
from zarr_emcodec.frame import DEFAULT, Frame, Kind, Tier, inspect, pack, read_header, replace_tier, unpack
from zarr_emcodec.frame.header import parse_header
from zarr_emcodec.frame.wire import as_view, crc32c

MODEL = bytes(range(8))


@cache
def crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


def slow_crc(data: bytes) -> bytes:
    """CRC32C by the book, little-endian."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc_table()[(crc ^ byte) & 0xFF] ^ crc >> 8
    return (crc ^ 0xFFFFFFFF).to_bytes(4, "little")


def number(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value % 128 + 128])
        value //= 128
    return out + bytes([value])


def front(kind: int, array: int, *extents: int, version: int = 1) -> bytes:
    return b"\x8e\x5a" + bytes([version, kind, array]) + b"".join(number(extent) for extent in extents)


def plain(head: bytes, payload: bytes = b"") -> bytes:
    return head + slow_crc(head + payload) + payload


def indexed(head: bytes, sections: list[bytes], *, count: int | None = None, lengths: list[int] | None = None) -> bytes:
    lengths = [len(section) for section in sections] if lengths is None else lengths
    head += number(len(sections) if count is None else count)
    head += b"".join(number(n) + slow_crc(section) for n, section in zip(lengths, sections, strict=True))
    return head + slow_crc(head) + b"".join(sections)


LATENT = front(2, 0x41, 8, 8) + MODEL + b"\x05"
LATENT_INDEXED = front(0x22, 0x41, 8, 8) + MODEL + b"\x05"
MASKED = front(4, 0x41, 8, 8) + MODEL + b"\x05"

SAMPLES = {
    "constant": (
        plain(front(1, 0x61, 16, 512, 512), b"\x7f"),
        Frame(Kind.CONSTANT, (16, 512, 512), np.dtype("u1"), sections=(b"\x7f",)),
    ),
    "constant 0-D": (plain(front(1, 0x0C), bytes(4)), Frame(Kind.CONSTANT, (), np.dtype(">f4"), sections=(bytes(4),))),
    "lossless": (
        plain(front(3, 0x32, 300) + b"\x02", b"zipped"),
        Frame(Kind.LOSSLESS, (300,), np.dtype("<u2"), order="F", setting=2, sections=(b"zipped",)),
    ),
    "latent": (
        plain(LATENT + b"\x02", b"sistream"),
        Frame(Kind.LATENT, (8, 8), np.dtype("u1"), model=MODEL, setting=5, sections=(b"si", b"stream")),
    ),
    "latent, window": (
        plain(front(0x52, 0xAB, 2, 3, 4, 5, 200) + struct.pack("<2f", -2.5, 0.125) + MODEL + b"\x00\x00", b"x" * 40),
        Frame(
            Kind.LATENT,
            (2, 3, 4, 5, 200),
            np.dtype(">i2"),
            tier=Tier.PRIOR,
            window=(-2.5, 0.125),
            model=MODEL,
            sections=(b"", b"x" * 40),
        ),
    ),
    "latent, indexed": (
        indexed(LATENT_INDEXED, [b"s", b"one", b"", b"y" * 150]),
        Frame(Kind.LATENT, (8, 8), np.dtype("u1"), model=MODEL, setting=5, sections=(b"s", b"one", b"", b"y" * 150)),
    ),
    "masked": (
        plain(MASKED + b"\x03\x00", b"boxstream"),
        Frame(Kind.MASKED, (8, 8), np.dtype("u1"), model=MODEL, setting=5, sections=(b"box", b"", b"stream")),
    ),
    "masked, indexed": (
        indexed(front(0x2C, 0x43, 8, 8) + MODEL + b"\x05", [b"box", b"", b"1", b"2"]),
        Frame(
            Kind.MASKED,
            (8, 8),
            np.dtype("<i2"),
            tier=Tier.TOP,
            model=MODEL,
            setting=5,
            sections=(b"box", b"", b"1", b"2"),
        ),
    ),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_pack_agrees_with_frames_put_together_by_hand(name: str) -> None:
    data, frame = SAMPLES[name]
    assert pack(frame) == data
    assert unpack(data) == frame


def resign(data: bytes) -> bytes | None:
    """Make the frame's own CRC right again; None if the header cannot be parsed, so that no CRC has a place."""
    try:
        header = parse_header(as_view(data), DEFAULT)
    except FrameError:
        return None
    stop = header.header_bytes
    covered = [data[: stop - 4]] if header.indexed else [data[: stop - 4], data[stop:]]
    return data[: stop - 4] + crc32c(covered).to_bytes(4, "little") + data[stop:]


def accepted(data: bytes) -> bool:
    """Feed bytes to every reader; True if they are a frame, and then its only spelling."""
    try:
        frame = unpack(data)
    except FrameError:
        for reader in (read_header, inspect):
            try:
                reader(data)
            except FrameError:
                continue
        with pytest.raises(FrameError):
            replace_tier(data, Tier.FULL)
        return False
    assert pack(frame, indexed=read_header(data).indexed) == data
    assert inspect(data).crc_ok
    return True


def test_every_prefix_is_refused() -> None:
    tried = 0
    for data, _ in SAMPLES.values():
        header_bytes = read_header(data).header_bytes
        for stop in range(len(data)):
            tried += 1
            assert not accepted(data[:stop])
            if stop < header_bytes:
                with pytest.raises(TruncatedFrameError) as caught:
                    read_header(data[:stop])
                assert stop < caught.value.needed <= header_bytes
                assert caught.value.found == stop
    print(f"{tried} prefixes")
    assert tried == sum(len(data) for data, _ in SAMPLES.values())


def test_every_single_bit_flip_is_refused() -> None:
    tried = 0
    for data, _ in SAMPLES.values():
        for bit in range(8 * len(data)):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            assert not accepted(bytes(flipped))
            tried += 1
    print(f"{tried} bit flips")
    assert tried == 8 * sum(len(data) for data, _ in SAMPLES.values())


def test_every_value_of_every_header_byte_with_a_right_crc() -> None:
    tried = signed = passed = 0
    for data, _ in SAMPLES.values():
        for at in range(read_header(data).header_bytes - 4):
            for value in range(256):
                tried += 1
                lie = resign(data[:at] + bytes([value]) + data[at + 1 :])
                if lie is None:
                    assert not accepted(data[:at] + bytes([value]) + data[at + 1 :])
                    continue
                signed += 1
                passed += accepted(lie)
    print(f"{tried} header bytes, {signed} parsed and signed anew, {passed} of those are frames")
    # each sample has bytes that may be anything (model, setting) and bytes that may not: both sides were reached
    assert tried > 40_000
    assert 0 < passed < signed < tried


def test_random_damage_with_a_right_crc() -> None:
    rng = random.Random(20)
    samples = [data for data, _ in SAMPLES.values()]
    tried = passed = 0
    for _ in range(20_000):
        data = bytearray(rng.choice(samples))
        for _ in range(rng.randint(1, 4)):
            start = rng.randrange(3, len(data))
            stop = min(len(data), start + rng.randint(0, 6))
            data[start:stop] = rng.randbytes(rng.randint(0, 6))
            if len(data) < 4:
                data += bytes(4)
        tried += 1
        passed += accepted(resign(bytes(data)) or bytes(data))
    print(f"{tried} damaged frames, {passed} of them still frames")
    assert 0 < passed < tried == 20_000


@settings(deadline=None, max_examples=300)
@given(tail=st.binary(max_size=80), head=st.sampled_from([b"", b"\x8e\x5a", b"\x8e\x5a\x01", LATENT, LATENT_INDEXED]))
@example(tail=b"", head=b"")
def test_random_bytes(tail: bytes, head: bytes) -> None:
    data = head + tail
    accepted(data)
    accepted(resign(data) or data)


LARGEST = 2**32 - 1
LIES = {
    # signature
    "empty": (b"", TruncatedFrameError, "magic"),
    "other magic": (b"\x89PNG\r\n\x1a\n", FrameError, "magic"),
    "half a magic": (b"\x8e", TruncatedFrameError, "magic"),
    "version 0": (plain(front(1, 1, version=0), b"\x00"), FrameError, "version"),
    "version 2": (plain(front(1, 1, version=2), b"\x00"), UnsupportedFrameError, "version"),
    "version 255": (plain(front(1, 1, version=255), b"\x00"), UnsupportedFrameError, "version"),
    # bits
    **{f"kind {k}": (plain(front(k, 1), b"\x00"), FrameError, "kind") for k in (0, 5, 6, 7)},
    "tier 3": (plain(front(0x1A, 0x41, 8, 8) + MODEL + b"\x00\x00"), FrameError, "tier"),
    "reserved bit": (plain(front(0x81, 1), b"\x00"), FrameError, "reserved"),
    "constant with a tier": (plain(front(0x09, 1), b"\x00"), FrameError, "tier"),
    "constant with an index": (indexed(front(0x21, 1), [b"\x00"]), FrameError, "indexed"),
    "lossless with a window": (plain(front(0x43, 1) + bytes(9), b""), FrameError, "windowed"),
    **{f"dtype {d}": (plain(front(1, d), bytes(4)), FrameError, "dtype") for d in (0, 5, 6, 7)},
    "big-endian uint8": (plain(front(1, 0x09), b"\x00"), FrameError, "big_endian"),
    "6 axes": (plain(front(1, 0xC1, *[1] * 6), b"\x00"), FrameError, "ndim"),
    "7 axes": (plain(front(1, 0xE1, *[1] * 7), b"\x00"), FrameError, "ndim"),
    # shape
    "extent 0": (plain(front(1, 0x41, 8, 0), b"\x00"), FrameError, "shape"),
    "long extent": (plain(front(1, 0x21) + b"\x88\x00", b"\x00"), FrameError, "shape"),
    "extent 2^32": (plain(front(1, 0x21, 2**32), b"\x00"), FrameError, "shape"),
    "extent 2^35 - 1": (plain(front(1, 0x21, 2**35 - 1), b"\x00"), FrameError, "shape"),
    "extent of 6 bytes": (plain(front(1, 0x21, 2**40), b"\x00"), FrameError, "shape"),
    "endless extent": (plain(front(1, 0x21) + b"\xff" * 40, b"\x00"), FrameError, "shape"),
    "10^48 bytes": (plain(front(1, 0xA4, *[LARGEST] * 5), bytes(4)), FrameError, "shape"),
    "one byte too large": (plain(front(1, 0x21, 2**31 + 1), b"\x00"), FrameError, "shape"),
    "product that wraps 64 bits to 0": (plain(front(1, 0x61, 2**31, 2**31, 4), b"\x00"), FrameError, "shape"),
    # window
    **{
        f"window {offset} {scale}": (
            plain(front(0x42, 0x41, 8, 8) + struct.pack("<2f", offset, scale) + MODEL + b"\x00\x00"),
            FrameError,
            "window",
        )
        for offset, scale in [
            (0, 0),
            (0, -0.0),
            (0, -1),
            (0, float("inf")),
            (0, float("nan")),
            (float("nan"), 1),
            (float("-inf"), 1),
        ]
    },
    # sections
    "constant without a value": (plain(front(1, 0x02)), TruncatedFrameError, "payload"),
    "constant with half a value": (plain(front(1, 0x02), b"\x00"), TruncatedFrameError, "payload"),
    "constant with two values": (plain(front(1, 0x02), bytes(4)), FrameError, "payload"),
    "section beyond the end": (plain(LATENT + b"\x03", b"ab"), TruncatedFrameError, "payload"),
    "section of 4 GiB": (plain(LATENT + number(LARGEST), b"ab"), TruncatedFrameError, "payload"),
    "section of 2^32 bytes": (plain(LATENT + number(2**32), b"ab"), FrameError, "table"),
    "long length": (plain(LATENT + b"\x80\x00", b"ab"), FrameError, "table"),
    "mask fits, side information does not": (plain(MASKED + b"\x01\x02", b"ab"), TruncatedFrameError, "payload"),
    "lengths that sum to 8 GiB": (plain(MASKED + number(LARGEST) * 2, b"ab"), TruncatedFrameError, "payload"),
    "no sections": (indexed(LATENT_INDEXED, []), FrameError, "table"),
    "one section": (indexed(LATENT_INDEXED, [b"a"]), FrameError, "table"),
    "masked with two sections": (indexed(front(0x24, 0x41, 8, 8) + MODEL + b"\x05", [b"", b""]), FrameError, "table"),
    "65,537 sections": (indexed(LATENT_INDEXED, [b"", b""], count=2**16 + 1), FrameError, "table"),
    "2^32 - 1 sections": (indexed(LATENT_INDEXED, [b"", b""], count=LARGEST), FrameError, "table"),
    "65,536 sections in 30 bytes": (indexed(LATENT_INDEXED, [b"", b""], count=2**16), TruncatedFrameError, "table"),
    "one section more than there is": (indexed(LATENT_INDEXED, [b"", b""], count=3), TruncatedFrameError, "table"),
    "indexed section too long": (indexed(LATENT_INDEXED, [b"a", b"b"], lengths=[1, 2]), TruncatedFrameError, "payload"),
    "indexed section too short": (indexed(LATENT_INDEXED, [b"a", b"b"], lengths=[1, 0]), FrameError, "payload"),
    "border between sections moved": (indexed(LATENT_INDEXED, [b"aa", b"b"], lengths=[1, 2]), ChecksumError, "crc"),
    "indexed sections of 4 GiB": (
        indexed(LATENT_INDEXED, [b"a", b"b"], lengths=[LARGEST] * 2),
        TruncatedFrameError,
        "payload",
    ),
    "bytes after an indexed frame": (indexed(LATENT_INDEXED, [b"a", b"b"]) + b"\x00", FrameError, "payload"),
    "bytes after a plain frame": (plain(LATENT + b"\x01", b"ab") + b"\x00", ChecksumError, "crc"),
}


@pytest.mark.parametrize("name", LIES)
def test_lie_is_found_by_its_field_and_costs_nothing(name: str) -> None:
    data, error, field = LIES[name]
    tracemalloc.start()
    try:
        with pytest.raises(FrameError) as caught:
            unpack(data)
        assert not accepted(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert type(caught.value) is error
    assert caught.value.field == field
    assert caught.value.offset is not None
    assert 0 <= caught.value.offset <= len(data)
    assert peak < 1 << 20


def test_newer_version_says_so() -> None:
    with pytest.raises(
        UnsupportedFrameError, match=r"^frame byte 2: format 3, this reader knows 1\. Upgrade"
    ) as caught:
        unpack(b"\x8e\x5a\x03")
    assert caught.value.version == 3


def test_most_sections_that_are_believed_cost_bounded_memory() -> None:
    data = pack(Frame(Kind.LATENT, (8, 8), np.dtype("u1"), model=MODEL, sections=(b"",) * DEFAULT.max_sections))
    tracemalloc.start()
    try:
        assert len(unpack(data).sections) == DEFAULT.max_sections
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 400 * DEFAULT.max_sections


def test_checksum_of_a_large_frame_copies_little() -> None:
    data = pack(Frame(Kind.LOSSLESS, (2**25,), np.dtype("u1"), sections=(bytes(2**25),)))
    tracemalloc.start()
    try:
        unpack(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**22
