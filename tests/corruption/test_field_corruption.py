"""Frames of neural fields under attack: damage is always seen, lies under right checksums end in an error of ours.

The frames are golden ones, so that this needs no torch.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.codecs.fields import digest, with_width
from tests.corruption.attempt import attempt, attempt_all, resigned, sections_of
from tests.golden.make import HERE
from zarr_emcodec.codecs.lazy import LazyChunk
from zarr_emcodec.codecs.siren_frames import PRIOR
from zarr_emcodec.errors import FrameError, SpecError, UnsupportedFrameError
from zarr_emcodec.frame import Frame, Kind, Tier, pack, replace_tier, unpack
from zarr_emcodec.frame.wire import varint
from zarr_emcodec.runtime import Model, Options

AT_LEAST = {"flips": 7_000, "sections": 1_000, "headers": 150}


@cache
def frames() -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted((HERE / "v1").glob("inr-*.frame"))}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of the right shape at no cost: what is under attack is the way up to the network."""

    def zeros(self: Model, part: Any, inputs: Any, options: Any) -> NDArray[np.float32]:
        return np.zeros(self._output_shape(part, next(iter(inputs.values())).shape), np.float32)

    monkeypatch.setattr(Model, "run", zeros)


def test_every_prefix_and_every_flipped_bit_is_seen() -> None:
    tried = 0
    for name, data in frames().items():
        for n in range(len(data)):
            assert attempt(data[:n]) != "decoded", (name, n)
        for bit in range(8 * len(data)):
            wrong = bytearray(data)
            wrong[bit // 8] ^= 1 << bit % 8
            tried += 1
            assert attempt(bytes(wrong)) != "decoded", (name, bit)
    assert tried >= AT_LEAST["flips"]


def changed_sections() -> Iterator[bytes]:
    rng = random.Random(1)
    for data in frames().values():
        for i, section in sections_of(data):
            for _ in range(60):
                wrong = bytearray(section)
                wrong[rng.randrange(len(wrong))] ^= 1 << rng.randrange(8)
                yield resigned(data, i, bytes(wrong))
            for n in sorted(rng.sample(range(len(section)), min(len(section), 25))):
                yield resigned(data, i, section[:n])
                yield resigned(data, i, section[n + 1 :])
            for n in (0, 1, 2, 5, len(section), 3 * len(section)):
                yield resigned(data, i, rng.randbytes(n))
            yield from (resigned(data, i, section + tail) for tail in (b"\0", b"\xff" * 5, section))
            yield from (resigned(data, i, bytes([fill]) * len(section)) for fill in (0, 255))


@pytest.mark.usefixtures("no_network")
def test_other_sections_under_right_checksums() -> None:
    ends = attempt_all(changed_sections())
    assert ends.total() >= AT_LEAST["sections"], ends
    assert ends["FrameError"] + ends["TruncatedFrameError"] >= ends.total() // 2, ends
    assert ends["decoded"] >= 30, ends


def headers() -> Iterator[bytes]:
    shapes = [(), (7,), (1, 1), (40, 45), (3, 45, 40), (1, 40, 45), (9, 1, 1), (2, 2, 40, 45), (600, 600)]
    for data in frames().values():
        frame = unpack(data)
        lies: list[dict[str, Any]] = [{"shape": shape} for shape in shapes]
        lies += [{"dtype": np.dtype(code)} for code in ("u1", "<u2", ">i2", "<f4")]
        lies += [{"setting": n} for n in (*range(12), 128, 255)]
        lies += [{"tier": tier} for tier in (Tier.TOP, Tier.PRIOR)]
        lies += [{"sections": (*frame.sections, b"")}, {"sections": (*frame.sections, b"x", b"")}]
        lies += [{"window": (0.0, 2.0**100)}]
        lies.append({"kind": Kind.LATENT if frame.kind is Kind.MASKED else Kind.MASKED})
        for lie in lies:
            try:
                yield pack(replace(frame, **lie))
            except SpecError:
                continue
        yield from (with_width(data, n) for n in (0, 1, 3, 4, 5, 9, 60, 4096, 4097, 2**32 - 1))


@pytest.mark.usefixtures("no_network")
def test_headers_that_lie_under_right_checksums() -> None:
    ends = attempt_all(headers())
    assert ends.total() >= AT_LEAST["headers"], ends
    assert ends["FrameError"] >= 80, ends
    assert ends["UnsupportedFrameError"] >= 8, ends


def test_any_weights_make_voxels() -> None:
    rng = random.Random(2)
    ends: set[str] = set()
    for data in frames().values():
        place = len(unpack(data).sections) - 2
        side = bytearray(unpack(data).sections[place])
        layers = unpack(data).setting & ~PRIOR
        for _ in range(3):
            side[3 : 3 + 2 * layers] = rng.randbytes(2 * layers)  # steps: all 256 are there
            ends.add(attempt(resigned(data, place, bytes(side))))
    assert ends == {"decoded"}


def test_a_lazy_chunk_refuses_what_decoding_refuses() -> None:
    data = frames()["inr-volume"]
    with pytest.raises(FrameError, match="weights for"):
        LazyChunk(with_width(data, 4000))[0, 0, 0]
    longer = pack(replace(unpack(data), sections=(*unpack(data).sections, b"")))
    with pytest.raises(FrameError, match="a field has 2"):
        LazyChunk(longer)[0, 0, 0]
    with pytest.raises(UnsupportedFrameError, match="tier 'top'"):
        LazyChunk(replace_tier(data, Tier.TOP)).at([[0, 0, 0]])


def claim(shape: tuple[int, ...], layers: int, width: int, table: int) -> bytes:
    side = bytes(2) + varint(width) + bytes(2 * layers) + bytes([table]) * (2 * layers)
    frame = Frame(Kind.LATENT, shape, np.dtype("u1"), model=digest(), setting=layers, sections=(side, b""))
    return pack(frame)


def test_a_frame_of_a_few_bytes_cannot_ask_for_much_memory_or_time() -> None:
    for shape in ((64, 64), (16, 1024, 1024), (4, 4)):
        for width, table in ((4096, 0), (4096, 7), (1000, 0), (700, 7), (300, 9)):
            began = time.perf_counter()
            assert attempt(claim(shape, 7, width, table)) in ("FrameError", "TruncatedFrameError"), (shape, width)
            assert time.perf_counter() - began < 2
    small = Options(max_chunk_bytes=1 << 20)
    assert attempt(claim((16, 1024, 1024), 3, 4, 0), small) == "FrameError"
    assert attempt(claim((16, 64, 64), 3, 4, 0)) == "decoded"  # zeros everywhere: the mean
