"""Frames of fitted latents under attack: damage is always seen, lies under right checksums end in an error of ours."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.codecs.fitted import encode
from tests.corruption.attempt import attempt
from tests.volumes import fibsem
from zarr_emcodec.codecs import decode_many
from zarr_emcodec.errors import FrameError
from zarr_emcodec.frame import Tier, pack, replace_tier, unpack
from zarr_emcodec.runtime import Model, Options


@cache
def frames() -> dict[str, bytes]:
    return {"volume": encode(fibsem()[:12, :48, :50], ratio=64), "section": encode(fibsem()[2, :64, :70], ratio=40)}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of the right shape at no cost: what is under attack is the way up to the network."""
    frames()  # made with it

    def zeros(self: Model, part: Any, inputs: Any, options: Any) -> NDArray[np.float32]:
        return np.zeros(self._output_shape(part, next(iter(inputs.values())).shape), np.float32)

    monkeypatch.setattr(Model, "run", zeros)


@pytest.mark.parametrize("name", ["volume", "section"])
def test_every_prefix_and_many_flipped_bits_are_seen(name: str) -> None:
    data = frames()[name]
    for n in range(len(data)):
        assert attempt(data[:n]) != "decoded", n
    for bit in range(0, 8 * len(data), 5):
        wrong = bytearray(data)
        wrong[bit // 8] ^= 1 << bit % 8
        assert attempt(bytes(wrong)) != "decoded", bit


@pytest.mark.parametrize("name", ["volume", "section"])
def test_lies_under_right_checksums_end_in_typed_errors(name: str) -> None:
    frame = unpack(frames()[name])
    rng = random.Random(name)
    outcomes = []
    side, part = (bytes(section) for section in frame.sections)
    for _ in range(150):
        wrong = bytearray(part)
        for _ in range(rng.choice((1, 1, 2, 8))):
            wrong[rng.randrange(len(wrong))] = rng.randrange(256)
        cut = bytes(wrong[: rng.randrange(len(wrong) + 1)] if rng.random() < 0.3 else wrong)
        outcomes.append(attempt(pack(replace(frame, sections=(side, cut)))))
    assert outcomes.count("decoded") < len(outcomes)  # attempt() lets no other error pass than ours
    for setting in (0, 1, 90, 255):
        attempt(pack(replace(frame, setting=setting)))


@pytest.mark.parametrize("side", [b"", b"\0", b"\x02\x02", b"\x04", b"\xff"])
def test_grids_that_are_not_there(side: bytes) -> None:
    frame = unpack(frames()["section"])
    with pytest.raises(FrameError, match="grids"):
        decode_many([pack(replace(frame, sections=(side, *frame.sections[1:])))])


def test_parts_tiers_and_sizes_that_are_not_there() -> None:
    frame = unpack(frames()["section"])
    side, part = frame.sections
    for sections in ((side, part, part), (side, part, part, part)):
        with pytest.raises(FrameError, match="parts"):
            decode_many([pack(replace(frame, sections=sections))])
    with pytest.raises(FrameError, match="tier"):
        decode_many([replace_tier(frames()["section"], Tier.TOP)])
    thin = replace(frame, shape=(70_000, 1, 1), sections=(side, part))
    with pytest.raises(FrameError, match="padded"):
        decode_many([pack(thin)], Options(max_chunk_bytes=1 << 20))
