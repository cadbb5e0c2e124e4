"""Parts of sections that refer to one another under attack: counts, streams and parts that are not what they say."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from tests.codecs import context
from tests.codecs.context import STACK, Walked, frames, side_bytes
from tests.corruption.attempt import attempt, attempt_all, resigned, sections_of
from tests.corruption.test_context_corruption import peak_of, silent
from tests.models import CONTEXT_FOLDER
from tests.volumes import fibsem
from zarr_emcodec import options
from zarr_emcodec._types import Symbols
from zarr_emcodec.codecs import decode_many, decode_sections
from zarr_emcodec.errors import FrameError
from zarr_emcodec.frame import pack, unpack
from zarr_emcodec.frame.wire import Cursor, varint
from zarr_emcodec.runtime import Options

NAMES = ["stack", "stack of two", "stack parts", "stack escapes", "stack coarse", "stack masked"]
REFUSED = {"FrameError", "TruncatedFrameError"}


@pytest.fixture(autouse=True)
def context_models() -> Iterator[None]:
    with options(model_path=CONTEXT_FOLDER):
        yield


def part_of(name: str) -> tuple[int, int, bytes]:
    """Place, number of symbols and stream of the last part of a frame."""
    last, section = sections_of(frames()[name])[-1]
    cursor = Cursor(memoryview(section))
    return last, cursor.take_varint("payload"), section[cursor.offset :]


@pytest.mark.parametrize("name", NAMES)
def test_counts_other_than_those_that_tables_mean_are_refused(name: str) -> None:
    last, count, stream = part_of(name)
    walked = Walked(frames()[name])
    room = sum(part[0].size for part in walked.symbols) * walked.item.n
    for lie in {0, 1, count // 2, *range(count - 9, count), *range(count + 1, count + 9), 2 * count, room}:
        if lie != count:
            assert attempt(resigned(frames()[name], last, varint(lie) + stream)) in REFUSED, lie
    for lie in (room + 1, 1 << 24, 2**32 - 1):
        with pytest.raises(FrameError, match=f"states {lie} symbols") as caught:
            decode_many([resigned(frames()[name], last, varint(lie) + stream)])
        assert caught.value.field == "payload"
    for raw in (b"", b"\x80", b"\xff" * 5, b"\x80\x00", b"\xff\xff\xff\xff\x7f"):
        assert attempt(resigned(frames()[name], last, raw + stream[:3])) in REFUSED, raw


def damaged() -> Iterator[bytes]:
    rng = random.Random(7)
    for name in NAMES:
        last, count, stream = part_of(name)
        head = varint(count)
        yield from (resigned(frames()[name], last, head + stream[:n]) for n in range(0, len(stream), 3))
        yield from (resigned(frames()[name], last, head + stream + tail) for tail in (b"\0", b"\0\0", stream))
        for bit in rng.sample(range(8 * len(stream)), 60):
            wrong = bytearray(stream)
            wrong[bit // 8] ^= 1 << bit % 8
            yield resigned(frames()[name], last, head + bytes(wrong))
        for _ in range(15):
            yield resigned(frames()[name], last, varint(rng.randrange(2 * count)) + rng.randbytes(len(stream)))


@pytest.mark.usefixtures("no_network")
def test_damaged_streams_end_in_our_errors_or_in_other_voxels() -> None:
    ends = attempt_all(damaged())
    assert ends.total() >= 600, ends
    # a stream of one lane that is cut short goes on with the state 0, which any tables may follow
    assert ends["FrameError"] + ends["TruncatedFrameError"] >= 0.25 * ends.total(), ends


def test_parts_in_each_others_place() -> None:
    data = frames()["stack parts"]
    frame = unpack(data)
    side, first, second = frame.sections
    assert attempt(pack(replace(frame, sections=(side, second, first)))) in REFUSED
    assert attempt(pack(replace(frame, sections=(side, first, first)))) in REFUSED
    assert attempt(pack(replace(frame, sections=(side, first)))) in REFUSED
    # of two chunks: a part proves nothing of whose it is, as long as it holds what its tables mean
    other = unpack(context.encode(fibsem()[20:25, :21, :40], STACK))
    mine = unpack(frames()["stack"])
    found = pack(replace(mine, sections=other.sections, setting=other.setting))
    assert np.array_equal(decode_many([found])[0], decode_many([pack(other)])[0])
    level = (other.setting + 9) % 64
    assert attempt(pack(replace(mine, sections=other.sections, setting=level))) in REFUSED | {"decoded"}


def test_a_spoilt_part_spoils_no_other() -> None:
    data = frames()["stack parts"]
    whole = decode_many([data])[0]
    for part, planes, others in ((1, (0, 3), (3, 5)), (2, (3, 5), (0, 3))):
        wrong = resigned(data, part, b"\1")
        assert np.array_equal(decode_sections(wrong, *others), whole[slice(*others)])
        with pytest.raises(FrameError):
            decode_sections(wrong, *planes)
    # the first section of a part is all that a later one needs to be wrong
    edited = context.recoded(data, edit=lambda symbols: symbols[1][0].fill(30))
    changed = decode_many([edited])[0]
    assert (changed[:3] != whole[:3]).any(axis=(1, 2)).all()
    assert np.array_equal(changed[3:], whole[3:])


def test_values_that_grow_from_section_to_section_are_drawn_in() -> None:
    """The largest symbols in every section, each expected to be like those before: means end at their bounds."""
    data = context.encode(fibsem()[:16, :16, :16], STACK)

    def largest(symbols: list[Symbols]) -> None:
        for part in symbols:
            part[...] = 2**31 - 1

    wild = context.recoded(data, edit=largest)
    found = [Walked(wild, entropy_backend=backend).latents for backend in ("numpy", None)]
    assert np.array_equal(found[0], found[1])
    assert np.isfinite(found[0]).all()
    assert np.array_equal(found[0] * 16, np.rint(found[0] * 16))
    assert (1 << 15) < np.abs(found[0]).max() <= ((1 << 22) + (1 << 19)) / 16
    assert attempt(wild) == "decoded"


def test_memory_follows_the_sections_that_are_claimed() -> None:
    shape = (5000, 16, 16)
    assert attempt(silent(shape, STACK)) == "decoded"
    assert peak_of(silent(shape, STACK), Options()) < 64 * 5000 * 16 * 16
    frame = unpack(silent(shape, STACK))
    for part in (varint(5000 * 14) + b"\0", varint(5000 * 14) + b"\x0f" + bytes(9), b"\xff\xff\xff\xff\x0f"):
        lying = pack(replace(frame, sections=(b"", part)))
        assert attempt(lying) in REFUSED
        assert peak_of(lying, Options()) < 64 * 5000 * 16 * 16


def test_silent_channels_take_no_symbols() -> None:
    model = context.model(STACK)
    side = side_bytes(np.full(model.card.hyper + model.card.channels, -128))
    last, _, stream = part_of("stack")
    silenced = resigned(frames()["stack"], 0, side)
    assert attempt(resigned(silenced, last, b"\0")) == "decoded"
    for part in (b"\1" + stream, b"\0" + stream, b"\0\0", b"\1"):
        assert attempt(resigned(silenced, last, part)) in REFUSED, part
