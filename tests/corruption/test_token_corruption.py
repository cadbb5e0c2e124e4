"""Frames of tokens under attack: plain damage is always seen, lies under right checksums end in an error of ours."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.codecs.vq import frames, model
from tests.corruption.attempt import attempt, attempt_all, resigned, sections_of
from tests.models import FOLDER
from zarr_emcodec import options
from zarr_emcodec.codecs.tokens import TokenModel
from zarr_emcodec.errors import SpecError
from zarr_emcodec.frame import Frame, Kind, Tier, pack, replace_tier, unpack
from zarr_emcodec.runtime import Options

AT_LEAST = {"flips": 30_000, "sections": 4_000, "headers": 2_000}


@pytest.fixture(autouse=True)
def token_models() -> Iterator[None]:
    with options(model_path=FOLDER):
        yield


@pytest.fixture
def no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of the right shape at no cost: what is under attack is the way up to the decoder."""

    def zeros(self: TokenModel, call: Any, inputs: Any, halo: Any, settings: Options) -> Any:
        tokens = next(iter(inputs.values())).array
        grid = zip(tokens.shape[1:], self.card.lattice, self.card.cell, strict=True)
        return np.zeros((len(tokens), *(n // p * c for n, p, c in grid)), np.float32)

    monkeypatch.setattr(TokenModel, "_decode", zeros)


def test_every_prefix_is_refused() -> None:
    for name, data in frames().items():
        for n in range(len(data)):
            assert attempt(data[:n]) != "decoded", (name, n)
        assert attempt(data + b"\0") != "decoded", name


def test_every_flipped_bit_is_seen() -> None:
    tried = 0
    for name, data in frames().items():
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
            for _ in range(40):
                wrong = bytearray(section)
                wrong[rng.randrange(len(wrong))] ^= 1 << rng.randrange(8)
                yield resigned(data, i, bytes(wrong))
            for n in sorted(rng.sample(range(len(section)), min(len(section), 25))):
                yield resigned(data, i, section[:n])
                yield resigned(data, i, section[n + 1 :])
            for n in (0, 1, 2, 5, len(section), len(section), 3 * len(section)):
                yield resigned(data, i, rng.randbytes(n))
            yield from (resigned(data, i, section + tail) for tail in (b"\0", b"\xff" * 5, section))
            yield from (resigned(data, i, bytes([fill]) * len(section)) for fill in (0, 255))


@pytest.mark.usefixtures("no_image")
def test_other_sections_under_right_checksums() -> None:
    ends = attempt_all(changed_sections())
    assert ends.total() >= AT_LEAST["sections"], ends
    assert ends["FrameError"] + ends["TruncatedFrameError"] >= ends.total() // 4, ends


def headers() -> Iterator[bytes]:
    shapes = [(), (7,), (1, 1), (37, 53), (53, 37), (1, 37, 53), (9, 37, 53), (2, 2, 37, 53), (9, 1, 1), (600, 600)]
    digests = [model(name).model.card.digest[:8] for name in ("tiny-vq", "tiny-vq16", "tiny-vq3d")]
    for data in frames().values():
        frame = unpack(data)
        lies: list[dict[str, Any]] = [{"shape": shape} for shape in shapes]
        lies += [{"dtype": np.dtype(code)} for code in ("u1", "<u2", ">i2", "<f4")]
        lies += [{"setting": byte} for byte in range(64)]
        lies += [{"tier": tier, "setting": byte} for tier in Tier for byte in (0, 3, 4, 7, 8, 12)]
        lies += [{"model": digest} for digest in digests]
        lies += [{"window": (0.0, 2.0**100)}]
        lies.append({"kind": Kind.LATENT if frame.kind is Kind.MASKED else Kind.MASKED})
        for lie in lies:
            try:
                yield pack(replace(frame, **lie))
            except SpecError:
                continue


@pytest.mark.usefixtures("no_image")
def test_headers_that_lie_under_right_checksums() -> None:
    ends = attempt_all(headers())
    assert ends.total() >= AT_LEAST["headers"], ends
    assert ends["FrameError"] >= 1000, ends
    assert ends["UnsupportedFrameError"] >= 20, ends


def test_the_real_networks_survive_any_tokens() -> None:
    rng = random.Random(3)
    ends: Counter[str] = Counter()
    for name in ("top nominal", "full nominal", "blocks", "prior", "volume nominal", "one level", "masked bitmap"):
        data = frames()[name]
        i, section = sections_of(data)[-1]
        for tier in Tier:
            for _ in range(4):
                ends[attempt(replace_tier(resigned(data, i, rng.randbytes(len(section))), tier))] += 1
    assert ends["decoded"] >= 40, ends


def test_numbers_of_sections_that_no_encoder_writes() -> None:
    for name, data in frames().items():
        frame = unpack(data)
        for n in (1, 2, 3, 4, 5, 9, 300):
            extra = (*frame.sections[:n], *[b""] * (n - len(frame.sections)))
            if n == len(frame.sections) or n < 2 + (frame.kind is Kind.MASKED):
                continue
            end = attempt(pack(replace(frame, sections=extra)))
            # the top alone is all that a frame at that tier is read for
            assert end == "FrameError" or (n == 2 and frame.tier is Tier.TOP), (name, n)


def test_a_frame_of_a_few_bytes_cannot_ask_for_terabytes() -> None:
    digest = model().model.card.digest[:8]
    for shape in ((2**31, 1, 1), (2**16, 2**14), (1, 2**30)):
        for setting in (0, 1, 4, 7, 8):
            sections = (bytes(2), b"") if setting < 4 else (bytes(2), b"", b"")
            data = pack(Frame(Kind.LATENT, shape, np.dtype("u1"), model=digest, setting=setting, sections=sections))
            began = time.perf_counter()
            assert attempt(data, Options(max_chunk_bytes=1 << 24)) == "FrameError"
            assert time.perf_counter() - began < 2


def test_what_claims_much_and_holds_nothing_ends_soon() -> None:
    digest = model().model.card.digest[:8]
    for setting in (0, 1):
        for stream in (b"", b"\0", b"\x0f" + b"\xff" * 64, b"\x80" * 40):
            data = pack(
                Frame(Kind.LATENT, (16, 1024, 1024), np.dtype("u1"), model=digest, setting=setting,
                      sections=(bytes(2), stream))
            )  # fmt: skip
            began = time.perf_counter()
            assert attempt(data) in ("FrameError", "TruncatedFrameError", "UnsupportedFrameError")
            assert time.perf_counter() - began < 10
