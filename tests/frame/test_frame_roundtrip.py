"""Frames come back as they went in, cost what the format promises, and can be read by ranges."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zarr_emcodec.errors import ChecksumError, FrameError, SpecError, TruncatedFrameError
from zarr_emcodec.frame import (
    Frame,
    Header,
    Kind,
    Limits,
    Tier,
    inspect,
    pack,
    read_header,
    replace_tier,
    unpack,
    verify_section,
)
from zarr_emcodec.frame.fields import MODELLED, PLAIN_SECTIONS
from zarr_emcodec.frame.wire import Cursor, varint

if TYPE_CHECKING:
    from zarr_emcodec._types import Buffer

U1 = np.dtype("u1")
MODEL = bytes(range(8))
CHUNK = (16, 512, 512)
DTYPES = [np.dtype(name) for name in ("u1", "<u2", ">u2", "<i2", ">i2", "<f4", ">f4")]


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    kind = draw(st.sampled_from(Kind))
    dtype = draw(st.sampled_from(DTYPES))
    # extents up to 2**31 now and then: the frame's cost must not depend on them
    extents = st.one_of(st.integers(1, 600), st.integers(1, 2**31))
    shape = tuple(draw(st.lists(extents, max_size=5)))
    while math.prod(shape) * dtype.itemsize > 2**31:
        shape = shape[:-1]
    common: dict[str, Any] = {"order": draw(st.sampled_from(["C", "F"]))}
    least = PLAIN_SECTIONS[kind]
    section = st.binary(max_size=200)
    if kind == Kind.CONSTANT:
        return Frame(kind, shape, dtype, sections=(draw(st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize)),))
    common["setting"] = draw(st.integers(0, 255))
    if kind == Kind.LOSSLESS:
        return Frame(kind, shape, dtype, sections=(draw(section),), **common)
    floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
    window = st.tuples(floats, st.floats(width=32, min_value=0, exclude_min=True, allow_infinity=False))
    return Frame(
        kind,
        shape,
        dtype,
        tier=draw(st.sampled_from(Tier)),
        window=draw(st.none() | window),
        model=draw(st.binary(min_size=8, max_size=8)),
        sections=tuple(draw(st.lists(section, min_size=least, max_size=least + 6))),
        **common,
    )


@settings(deadline=None)
@given(frame=frames(), ask_index=st.booleans())
def test_unpack_inverts_pack(frame: Frame, ask_index: bool) -> None:
    indexed = True if ask_index and frame.kind in MODELLED else None
    data = pack(frame, indexed=indexed)
    back = unpack(data)
    assert back == frame
    assert back.dtype.str == frame.dtype.str
    assert pack(back, indexed=read_header(data).indexed) == data
    info = inspect(data)
    assert info.crc_ok
    assert info.section_bytes == tuple(len(section) for section in frame.sections)
    assert info.overhead_bytes + sum(info.section_bytes) == info.total_bytes == len(data)
    assert info.indexed == (bool(indexed) or len(frame.sections) > PLAIN_SECTIONS[frame.kind])


@settings(deadline=None)
@given(frame=frames(), tier=st.sampled_from(Tier))
def test_replace_tier_changes_the_tier_and_nothing_else(frame: Frame, tier: Tier) -> None:
    data = pack(frame)
    other = replace_tier(data, tier)
    if frame.kind not in MODELLED:
        assert other == data
        return
    assert unpack(other) == dataclasses.replace(frame, tier=tier)
    stop = read_header(data).header_bytes
    changed = {i for i, (a, b) in enumerate(zip(data, other, strict=True)) if a != b}
    assert changed <= {3, *range(stop - 4, stop)}
    assert replace_tier(other, frame.tier) == data


@settings(deadline=None)
@given(frame=frames())
def test_header_is_found_by_following_needed(frame: Frame) -> None:
    data = pack(frame)
    header = read_header(data)
    prefix, fetches = b"", 0
    while len(prefix) < header.header_bytes:
        with pytest.raises(TruncatedFrameError) as caught:
            read_header(prefix)
        assert len(prefix) < caught.value.needed <= header.header_bytes
        assert caught.value.found == len(prefix)
        prefix, fetches = data[: caught.value.needed], fetches + 1
    assert read_header(prefix) == header
    assert fetches <= 12
    for i, section in enumerate(frame.sections):
        start, length = header.section_span(i)
        assert data[start : len(data) if length is None else start + length] == section


@given(value=st.integers(0, 2**32 - 1))
def test_varint_round_trip(value: int) -> None:
    data = varint(value)
    cursor = Cursor(memoryview(data))
    assert cursor.take_varint("shape") == value
    assert cursor.offset == len(data) == max(1, -(-value.bit_length() // 7))


def latent(*sections: bytes, dtype: str = "u1", **more: Any) -> Frame:
    return Frame(Kind.LATENT, CHUNK, np.dtype(dtype), model=MODEL, sections=sections, **more)


@pytest.mark.parametrize(
    ("frame", "overhead"),
    [
        (Frame(Kind.CONSTANT, CHUNK, U1, sections=(b"\x00",)), 14),
        (Frame(Kind.CONSTANT, CHUNK, np.dtype("u2"), sections=(b"\x00\x00",)), 14),
        (Frame(Kind.LOSSLESS, CHUNK, U1, sections=(b"",)), 15),
        (latent(b"", b""), 24),
        (latent(bytes(127), bytes(5000)), 24),
        (latent(bytes(128), b""), 25),
        (latent(b"", b"", dtype="u2"), 24),
        (latent(b"", b"", window=(0.0, 1.0)), 32),
        (dataclasses.replace(latent(b"", b"", b""), kind=Kind.MASKED), 25),
        # 16 streams: one count, and per section 5 bytes or, from 128 bytes on, 6
        (latent(b"", *[bytes(100)] * 16), 23 + 1 + 17 * 5),
        (latent(b"", *[bytes(200)] * 16), 23 + 1 + 5 + 16 * 6),
    ],
)
def test_overhead_is_what_the_format_promises(frame: Frame, overhead: int) -> None:
    assert inspect(pack(frame)).overhead_bytes == overhead


def test_constant_chunk_costs_15_or_16_bytes() -> None:
    sizes = [
        len(pack(Frame(Kind.CONSTANT, CHUNK, np.dtype(name), sections=(bytes(np.dtype(name).itemsize),))))
        for name in ("u1", "u2")
    ]
    assert sizes == [15, 16]


# Written by the first release; never to be regenerated.
GOLDEN = {
    "constant u1": (
        "8e5a010161108004800477dec5547f",
        Frame(Kind.CONSTANT, CHUNK, U1, sections=(b"\x7f",)),
    ),
    "constant >f4": (
        "8e5a01014c040408236eed0000c03f",
        Frame(Kind.CONSTANT, (4, 4), np.dtype(">f4"), sections=(b"\x00\x00\xc0\x3f",)),
    ),
    "lossless <u2": (
        "8e5a0103420203002123a3ad000102030405060708090a0b",
        Frame(Kind.LOSSLESS, (2, 3), np.dtype("<u2"), sections=(bytes(range(12)),)),
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_frames_still_read_and_write(name: str) -> None:
    text, frame = GOLDEN[name]
    assert unpack(bytes.fromhex(text)) == frame
    assert pack(frame) == bytes.fromhex(text)


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview, lambda data: np.frombuffer(data, "u1")])
def test_any_buffer_is_read_without_copying_sections(make: Any) -> None:
    data = make(pack(latent(b"side", bytes(1000), b"tail")))
    frame = unpack(data)
    assert [bytes(section) for section in frame.sections] == [b"side", bytes(1000), b"tail"]
    assert np.shares_memory(np.frombuffer(frame.sections[1], "u1"), np.frombuffer(data, "u1"))
    assert all(isinstance(section, memoryview) and section.readonly for section in frame.sections)


def test_strided_bytes_are_read_too() -> None:
    data = pack(latent(b"side", b"stream"))
    doubled = np.repeat(np.frombuffer(data, "u1"), 2)
    assert unpack(doubled[::2].data) == unpack(data)


def ranged() -> tuple[bytes, Header]:
    data = pack(latent(b"side", b"first", b"", b"third"))
    return data, read_header(data)


def test_sections_are_verified_one_by_one() -> None:
    data, header = ranged()
    for i in range(header.n_sections):
        start, length = header.section_span(i)
        assert length is not None
        verify_section(header, i, data[start : start + length])


def test_wrong_section_bytes_are_found() -> None:
    _, header = ranged()
    with pytest.raises(ChecksumError) as checksum:
        verify_section(header, 1, b"First")
    assert checksum.value.expected != checksum.value.found
    with pytest.raises(TruncatedFrameError) as truncated:
        verify_section(header, 1, b"firs")
    assert (truncated.value.needed, truncated.value.found) == (5, 4)
    with pytest.raises(FrameError, match="5 bytes, 6 were given"):
        verify_section(header, 1, b"first!")
    for index in (-1, 4):
        with pytest.raises(IndexError):
            verify_section(header, index, b"")


def test_sections_of_a_plain_frame_cannot_be_verified_alone() -> None:
    with pytest.raises(SpecError, match="not INDEXED"):
        verify_section(read_header(pack(latent(b"", b"abc"))), 1, b"abc")


def test_damaged_frame_gets_no_fresh_crc() -> None:
    data = bytearray(pack(latent(b"", b"abc")))
    data[-1] ^= 1
    with pytest.raises(ChecksumError):
        replace_tier(data, Tier.TOP)
    assert not inspect(data).crc_ok


def test_replace_tier_refuses_what_is_no_tier() -> None:
    with pytest.raises(SpecError) as caught:
        replace_tier(pack(latent(b"", b"")), 3)  # type: ignore[arg-type]
    assert (caught.value.name, caught.value.value) == ("tier", 3)


def test_limits_bound_reading_and_writing() -> None:
    frame = Frame(Kind.CONSTANT, (2**16, 2**16), U1, sections=(b"\x00",))
    with pytest.raises(SpecError, match="limit"):
        pack(frame)
    generous = Limits(max_chunk_bytes=2**32)
    data = pack(frame, limits=generous)
    assert unpack(data, limits=generous) == frame
    assert replace_tier(data, Tier.TOP, limits=generous) == data
    for read in (unpack, read_header, inspect):
        with pytest.raises(FrameError, match="4294967296 bytes, the limit is 2147483648") as caught:
            read(data)
        assert (caught.value.field, caught.value.offset) == ("shape", 5)


def test_section_limit_bounds_reading_and_writing() -> None:
    frame = latent(*[b""] * 9)
    tight = Limits(max_sections=8)
    with pytest.raises(SpecError):
        pack(frame, limits=tight)
    with pytest.raises(FrameError, match="table of 9 sections, the limit is 8"):
        unpack(pack(frame), limits=tight)


@pytest.mark.parametrize("value", [0, -1, True, 2.0])
def test_limits_are_positive_integers(value: Any) -> None:
    with pytest.raises(SpecError):
        Limits(max_chunk_bytes=value)


CONSTANT = Frame(Kind.CONSTANT, (4, 4), U1, sections=(b"\x00",))
LATENT = latent(b"", b"")
NO_SECTIONS: tuple[Buffer, ...] = ()


@pytest.mark.parametrize(
    ("frame", "change", "name"),
    [
        (LATENT, {"kind": 5}, "kind"),
        (LATENT, {"shape": (4, 0)}, "shape"),
        (LATENT, {"shape": (2**32,)}, "shape"),
        (LATENT, {"shape": (1,) * 6}, "shape"),
        (LATENT, {"shape": (4.0, 4)}, "shape"),
        (LATENT, {"dtype": np.dtype("u4")}, "dtype"),
        (LATENT, {"dtype": np.dtype(bool)}, "dtype"),
        (LATENT, {"dtype": "u1"}, "dtype"),
        (LATENT, {"order": "K"}, "order"),
        (LATENT, {"tier": 3}, "tier"),
        (LATENT, {"window": (0.0, 0.0)}, "window"),
        (LATENT, {"window": (0.0, float("nan"))}, "window"),
        (LATENT, {"window": (0.1, 1.0)}, "window"),
        (LATENT, {"window": (0.0, 1e300)}, "window"),
        (LATENT, {"window": (0.0,)}, "window"),
        (LATENT, {"model": None}, "model"),
        (LATENT, {"model": b"short"}, "model"),
        (LATENT, {"setting": 256}, "setting"),
        (LATENT, {"setting": -1}, "setting"),
        (LATENT, {"sections": (b"",)}, "sections"),
        (LATENT, {"sections": NO_SECTIONS}, "sections"),
        (CONSTANT, {"tier": Tier.TOP}, "tier"),
        (CONSTANT, {"window": (0.0, 1.0)}, "window"),
        (CONSTANT, {"model": MODEL}, "model"),
        (CONSTANT, {"setting": 1}, "setting"),
        (CONSTANT, {"sections": (b"\x00\x00",)}, "sections"),
        (CONSTANT, {"sections": (b"\x00", b"")}, "sections"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(frame: Frame, change: dict[str, Any], name: str) -> None:
    with pytest.raises(SpecError) as caught:
        pack(dataclasses.replace(frame, **change))
    assert caught.value.name == name


@pytest.mark.parametrize(("frame", "indexed"), [(CONSTANT, True), (latent(b"", b"", b""), False)])
def test_index_is_refused_where_it_cannot_be(frame: Frame, indexed: bool) -> None:
    with pytest.raises(SpecError):
        pack(frame, indexed=indexed)


def test_numpy_integers_are_integers() -> None:
    frame = latent(b"", b"", setting=np.uint8(7))
    odd = dataclasses.replace(frame, shape=tuple(np.array(CHUNK)))
    assert pack(odd) == pack(frame)


def test_info_is_plain_data() -> None:
    info = inspect(pack(latent(b"a", b"bc", b"", window=(2.0, 0.5), tier=Tier.PRIOR, dtype=">u2")))
    told = json.loads(json.dumps(dataclasses.asdict(info)))
    assert told["kind"] == "latent"
    assert told["tier"] == "prior"
    assert told["dtype"] == ">u2"
    assert told["model"] == MODEL.hex()
    assert told["window"] == [2.0, 0.5]
    assert told["section_bytes"] == [1, 2, 0]


def test_headers_survive_pickle() -> None:
    _, header = ranged()
    assert pickle.loads(pickle.dumps(header)) == header


def test_import_is_light() -> None:
    code = (
        "import sys, zarr_emcodec.frame\n"
        "heavy = {'zarr', 'numcodecs', 'dask', 'torch', 'onnxruntime', 'scipy', 'zarr_emcodec.codecs'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
