"""Whole frames under attack: whatever their bytes say, decoding ends in a chunk or in an error of ours.

Two kinds of damage. Plain damage (a prefix, a flipped bit) must always be seen. Lies are told with right checksums, so
that they reach streams, side information, masks, lossless payloads and shapes; such a frame may well decode, to a chunk
of the shape and dtype that it claims. Never does anything else escape: no IndexError, no MemoryError, no warning (they
are errors here). Each test counts the frames that it tried and holds the count against `AT_LEAST`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.codecs.frames import frames, model_for, with_escapes
from tests.corruption.attempt import attempt, attempt_all, modelled_frames, resigned, sections_of
from zarr_emcodec.codecs import decode_many
from zarr_emcodec.codecs.vae_decode import ladder_of
from zarr_emcodec.entropy import coder
from zarr_emcodec.errors import FrameError, SpecError
from zarr_emcodec.frame import Frame, Kind, Tier, pack, unpack
from zarr_emcodec.frame.fields import MODELLED

AT_LEAST = {
    "prefixes": 6_000,
    "flips": 48_000,
    "section flips": 12_000,
    "section cuts": 5_000,
    "section noise": 2_500,
    "headers": 5_000,
    "streams": 250,
    "network": 350,
}
"""Frames that each test tries, at the least: more than 70,000 in all."""

SHAPES = [
    (),
    (1,),
    (7,),
    (1, 1),
    (2, 40),
    (40, 48),
    (48, 40),
    (41, 48),
    (1, 40, 48),
    (3, 40, 48),
    (2, 2, 40, 48),
    (9, 1, 1),
]
DTYPES = ["u1", "<u2", ">i2", "<f4"]


def test_every_prefix_is_refused() -> None:
    tried = 0
    for name, data in frames().items():
        for n in range(len(data)):
            tried += 1
            assert attempt(data[:n]) != "decoded", (name, n)
    assert tried >= AT_LEAST["prefixes"]


def test_every_flipped_bit_is_seen() -> None:
    tried = 0
    for name, data in frames().items():
        for bit in range(8 * len(data)):
            wrong = bytearray(data)
            wrong[bit // 8] ^= 1 << bit % 8
            tried += 1
            assert attempt(bytes(wrong)) != "decoded", (name, bit)
    assert tried >= AT_LEAST["flips"]


def test_bytes_after_a_frame_are_refused() -> None:
    for name, data in frames().items():
        assert attempt(data + b"\0") != "decoded", name


def flips() -> Iterator[bytes]:
    rng = random.Random(1)
    for data in frames().values():
        for i, section in sections_of(data):
            bits = range(8 * len(section))
            for bit in bits if len(bits) <= 500 else sorted(rng.sample(bits, 500)):
                wrong = bytearray(section)
                wrong[bit // 8] ^= 1 << bit % 8
                yield resigned(data, i, bytes(wrong))


@pytest.mark.usefixtures("no_network")
def test_flipped_bits_under_right_checksums() -> None:
    ends = attempt_all(flips())
    assert ends.total() >= AT_LEAST["section flips"], ends
    # a stream of one lane has hardly any redundancy: what guards it is the frame's checksum
    assert min(ends["decoded"], ends["FrameError"]) >= 500, ends


def cuts() -> Iterator[bytes]:
    for data in frames().values():
        for i, section in sections_of(data):
            for n in {
                *range(min(len(section), 80)),
                *range(0, len(section), 7),
                *range(len(section) - 40, len(section)),
            }:
                if 0 <= n < len(section):
                    yield resigned(data, i, section[:n])
                    yield resigned(data, i, section[n + 1 :])
            yield from (resigned(data, i, section + tail) for tail in (b"\0", b"\0\0", b"\1", b"\xff" * 5, section))


@pytest.mark.usefixtures("no_network")
def test_sections_cut_or_grown_under_right_checksums() -> None:
    ends = attempt_all(cuts())
    assert ends.total() >= AT_LEAST["section cuts"], ends
    assert ends["decoded"] <= ends.total() // 2, ends


@pytest.mark.usefixtures("no_network")
def test_all_but_streams_must_be_whole() -> None:
    for name, data in frames().items():
        frame = unpack(data)
        n_others = 2 if frame.kind is Kind.MASKED else 1
        for i, section in sections_of(data)[:n_others]:
            for n in range(1, len(section)):  # from 1: no side information at all is a level's own tables
                assert attempt(resigned(data, i, section[:n])) != "decoded", (name, i, n)
            assert attempt(resigned(data, i, section + b"\0")) != "decoded", (name, i)


def noises() -> Iterator[bytes]:
    rng = random.Random(2)
    for data in frames().values():
        for i, section in sections_of(data):
            for n in (0, 1, 2, 5, 17, len(section), len(section), 4 * len(section)):
                for _ in range(8):
                    yield resigned(data, i, rng.randbytes(n))
            for fill in (0, 255):
                yield resigned(data, i, bytes([fill]) * len(section))
            for _ in range(10):  # a piece of one section over a piece of another
                _, other = rng.choice(sections_of(rng.choice(modelled_frames())))
                at = rng.randrange(len(section) + 1)
                yield resigned(data, i, section[:at] + other[rng.randrange(len(other) + 1) :])


@pytest.mark.usefixtures("no_network")
def test_other_bytes_for_sections_under_right_checksums() -> None:
    ends = attempt_all(noises())
    assert ends.total() >= AT_LEAST["section noise"], ends
    assert ends["FrameError"] >= ends.total() // 4, ends


def headers() -> Iterator[bytes]:
    for data in frames().values():
        frame = unpack(data)
        modelled = frame.kind in MODELLED
        lies: list[dict[str, Any]] = [{"shape": shape} for shape in SHAPES]
        lies += [{"dtype": np.dtype(code)} for code in DTYPES]
        lies += [{"shape": shape, "dtype": np.dtype(code)} for shape in SHAPES for code in DTYPES]
        lies += [{"order": order} for order in "CF"]
        if frame.kind is not Kind.CONSTANT:
            lies += [{"setting": n} for n in range(256)]
        if modelled:
            lies += [{"tier": tier} for tier in Tier]
            lies += [{"model": model_for(ratio).card.digest[:8]} for ratio in (16, 100)]
            lies += [{"model": bytes([n]) * 8} for n in (0, 1, 255)]
            lies += [{"window": window} for window in (None, (0.0, 1.0), (-1e30, 2.0**-149), (0.0, 2.0**100))]
            lies[-2]["window"] = (float(np.float32(-1e30)), 2.0**-149)
            lies.append({"kind": Kind.LATENT if frame.kind is Kind.MASKED else Kind.MASKED})
        for lie in lies:
            try:
                yield pack(replace(frame, **lie))
            except SpecError:
                continue  # the format has no bytes for it, as for a constant of another itemsize


@pytest.mark.usefixtures("no_network")
def test_headers_that_lie_under_right_checksums() -> None:
    ends = attempt_all(headers())
    assert ends.total() >= AT_LEAST["headers"], ends
    assert ends["ModelNotFoundError"] == 3 * len(modelled_frames()), ends
    assert ends["UnsupportedFrameError"] >= 2 * len(modelled_frames()), ends


def stream_counts() -> Iterator[bytes]:
    for data in modelled_frames():
        frame = unpack(data)
        front = frame.sections[: 1 + (frame.kind is Kind.MASKED)]
        streams = frame.sections[len(front) :]
        for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 300):
            if n != len(streams):
                yield pack(replace(frame, sections=(*front, *(streams * n)[:n])))
                yield pack(replace(frame, sections=(*front, *streams[:1], *[b""] * (n - 1))))
        yield pack(replace(frame, sections=(*front, *streams[::-1], b"")))
    yield pack(replace(unpack(frames()["latent streams"]), sections=(b"",) * 65_536))


@pytest.mark.usefixtures("no_network")
def test_stream_counts_that_no_encoder_writes() -> None:
    ends = attempt_all(stream_counts())
    assert ends.total() >= AT_LEAST["streams"], ends
    assert ends["decoded"] <= 20, ends  # counts that an encoder might have chosen, with symbols that it did not
    twice = pack(replace(unpack(frames()["latent 2-D"]), sections=(b"", b"x", b"x")))
    with pytest.raises(FrameError, match="2 streams for 1 sections") as caught:
        decode_many([twice])
    assert caught.value.field == "table"


def test_the_real_network_survives_what_the_parsers_let_through() -> None:
    rng = random.Random(3)
    ends: Counter[str] = Counter()
    for name in ("latent 2-D", "latent coarse", "latent nominal", "latent uint16", "latent float32", "masked bitmap"):
        data = frames()[name]
        i, section = sections_of(data)[-1]
        for _ in range(60):
            wrong = bytearray(section)
            wrong[rng.randrange(len(wrong))] ^= 1 << rng.randrange(8)
            ends[attempt(resigned(data, i, bytes(wrong)))] += 1
        for setting in (0, 60, 120, 180, 255):
            ends[attempt(pack(replace(unpack(data), setting=setting)))] += 1
    latent = frames()["latent"]
    for size in (1 << 11, 1 << 20, 2**31 - 1):
        for sign in (1, -1):
            for setting in (0, 255):
                escaped = with_escapes(latent, [sign * size] * 8)
                ends[attempt(pack(replace(unpack(escaped), setting=setting)))] += 1
            ends[attempt(escaped_everywhere(sign * size))] += 1
    assert ends.total() >= AT_LEAST["network"], ends
    assert ends["decoded"] >= 50, ends


def escaped_everywhere(value: int) -> bytes:
    """Every symbol of a chunk as large as symbols get, at the coarsest level, in float32: the network's worst day."""
    model = model_for()
    index = np.ones(model.card.channels, np.uint8)
    symbols = np.full(4 * model.card.channels, value, np.int32)
    symbols[::2] *= -1
    level = model.card.levels - 1
    stream = coder.encode(symbols, np.repeat(index, 4), ladder_of(model).tables)
    side = ladder_of(model).pack_side(index, level)
    return pack(
        Frame(
            Kind.LATENT, (32, 32), np.dtype("f4"), window=(0.0, 1.0), model=model.card.digest[:8], setting=level,
            sections=(side, stream),
        )
    )  # fmt: skip
