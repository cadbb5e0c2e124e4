"""Sections that refer to one another: any number of them, in part as in whole, alone as among others; what it saves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.codecs.context import FLAT, STACK, Walked, bytes_at, decode, encode, latents_of, model
from tests.codecs.reference import Reference
from tests.models import CONTEXT_FOLDER
from tests.volumes import Array, as_dtype, fibsem
from zarr_emcodec import options, psnr
from zarr_emcodec.codecs import VAESpec, context_coding, context_decode, decode_many, encode_many, inference, vae_encode
from zarr_emcodec.codecs.context_order import part_counts
from zarr_emcodec.codecs.opened import open_frame
from zarr_emcodec.codecs.vae_encode import VAEJob
from zarr_emcodec.entropy import fast
from zarr_emcodec.frame import Kind, pack, unpack
from zarr_emcodec.runtime import Model, Options

COUNTS = pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 33])


@pytest.fixture(autouse=True)
def context_models() -> Iterator[None]:
    with options(model_path=CONTEXT_FOLDER):
        yield


def stack(n: int, y: int = 20, x: int = 30) -> Array:
    """Sections in a row; the last of more than there are turn back."""
    volume = fibsem()[:, :y, :x]
    return np.concatenate([volume, volume[::-1]])[:n]


@COUNTS
def test_any_number_of_sections(n: int) -> None:
    chunk = stack(n)
    data = encode(chunk, STACK)
    frame = unpack(data)
    assert len(frame.sections) == 1 + len(part_counts(n)) == (3 if n == 33 else 2)
    walked = Walked(data)
    assert np.array_equal(walked.latents * 16, Reference(data, STACK).sixteenths())
    assert sum(len(turn.sections) for turn in walked.turns) == n
    whole = decode(data)
    assert psnr(chunk, whole) > 18
    planes = {(0, 1), (n - 1, n), (n // 2, n), (0, n // 2 + 1), (n // 3, n // 3 + 1)}
    for start, stop in planes:
        assert np.array_equal(decode(data, (start, stop)), whole[start:stop])
        assert np.array_equal(decode(data, (start, stop), block_voxels=1024), whole[start:stop])


@COUNTS
def test_coders_and_threads_write_and_read_the_same(n: int) -> None:
    chunk = stack(n)
    data = encode(chunk, STACK)
    expected = Walked(data).latents
    backends = ["numpy", "numba"] if fast.is_available() else ["numpy"]
    ways: list[dict[str, Any]] = [{"threads": 3}, {"block_voxels": 2000}]
    ways += [{"entropy_backend": backend} for backend in backends]
    for way in ways:
        with options(**way):
            assert encode(chunk, STACK) == data, way
        assert Walked(data, **way).latents.tobytes() == expected.tobytes(), way


def test_axes_are_folded_into_one_stack() -> None:
    chunk = stack(12)
    parts = unpack(encode(chunk, STACK, min_psnr=21)).sections
    for shape in ((2, 6, 20, 30), (3, 1, 4, 20, 30)):
        data = encode(chunk.reshape(shape), STACK, min_psnr=21)
        assert unpack(data).sections == parts
        whole = decode(data)
        assert whole.shape == shape
        assert np.array_equal(decode(data, (1, 2)), whole[1:2])
    single = encode(chunk[0], STACK, min_psnr=21)
    assert unpack(single).sections == unpack(encode(chunk[:1], STACK, min_psnr=21)).sections
    assert decode(single).shape == (20, 30)


@pytest.mark.parametrize("kind", ["masked", "float32", "uint16"])
def test_other_chunks(kind: str) -> None:
    chunk = stack(5, 48, 64).copy()
    words = {}
    if kind == "masked":
        chunk[:, :, 40:] = 0
    else:
        chunk = as_dtype(chunk, kind)
        words = {"window": (-0.5, 0.9) if kind == "float32" else (7000.0, 14650.0)}
    data = encode(chunk, STACK, **words)
    frame = unpack(data)
    assert frame.kind is (Kind.MASKED if kind == "masked" else Kind.LATENT)
    assert np.array_equal(Walked(data).latents * 16, Reference(data, STACK).sixteenths())
    whole = decode(data)
    assert whole.dtype == chunk.dtype
    if kind == "masked":
        assert not whole[:, :, 40:].any()
    assert np.array_equal(decode(data, (2, 4)), whole[2:4])


def test_stacks_of_other_depths_change_nothing() -> None:
    chunks = [stack(n)[::step] for n, step in ((1, 1), (5, 1), (33, 1), (16, 2), (2, 1), (5, -1))]
    spec = VAESpec(model=STACK, ratio=32)
    alone = [encode(chunk, STACK) for chunk in chunks]
    assert encode_many(spec, chunks) == alone
    assert encode_many(spec, chunks[::-1]) == alone[::-1]
    voxels = [decode(data) for data in alone]
    for a, b in zip(decode_many(alone), voxels, strict=True):
        assert np.array_equal(a, b)
    windows = [(len(chunk) // 2, len(chunk)) for chunk in chunks]
    for found, whole, (start, stop) in zip(decode_many(alone, planes=windows), voxels, windows, strict=True):
        assert np.array_equal(found, whole[start:stop])


def test_a_part_that_is_not_wanted_is_not_read() -> None:
    frame = unpack(encode(stack(33), STACK))
    for planes, wanted in (((0, 17), [1]), ((17, 33), [2]), ((16, 18), [1, 2])):
        opened = context_decode._open(open_frame(frame, planes, Options()))
        assert [bytes(part) for part, _ in opened.parts] == [bytes(frame.sections[i]) for i in wanted]


@pytest.mark.parametrize("level", [9, 27, 45])
def test_a_stack_takes_fewer_bytes_than_its_sections(level: int) -> None:
    chunk = fibsem()[:16]
    together = bytes_at(latents_of(chunk, STACK), level)
    alone = sum(bytes_at(latents_of(section[None], STACK), level) for section in chunk)
    assert together < 0.85 * alone
    assert together < 0.9 * bytes_at(latents_of(chunk, FLAT), level)  # whose sections share a stream, and no more


@pytest.mark.parametrize("ratio", [30, 60, 150])
@pytest.mark.parametrize("n", [4, 32])
def test_a_ratio_is_kept_by_the_finest_level_that_keeps_it(
    n: int, ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: dict[int, int] = {}
    code = vae_encode._code

    def watched(jobs: Sequence[VAEJob], levels: Sequence[int], words: Options) -> list[bytes]:
        found = code(jobs, levels, words)
        tried.update(zip(levels, map(len, found), strict=True))
        return found

    chunk = fibsem()[:n]
    budget = chunk.nbytes / ratio
    monkeypatch.setattr(vae_encode, "_code", watched)
    data = encode(chunk, STACK, ratio=ratio)
    level = unpack(data).setting
    assert tried[level] == len(data) <= budget
    assert len(tried) <= 3
    assert all(size > budget for other, size in tried.items() if other < level)
    assert ratio <= chunk.nbytes / len(data) < 1.15 * ratio  # levels of this model are 8 to 12 % apart


def test_an_encoder_tells_of_what_references_leave_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hyper-latents follow from latents, and from those less the mean of the references as decoders have them."""
    seen: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    tell = inference.tell

    def watched(found: Model, latents: NDArray[np.float32], left: NDArray[np.float32], words: Options) -> Array:
        seen.append((latents, left))
        return tell(found, latents, left, words)

    frame = unpack(encode(chunk := stack(5, 32, 48), STACK))
    level, item = frame.setting, latents_of(chunk, STACK)
    monkeypatch.setattr(inference, "tell", watched)
    ((side, parts),) = context_coding.encode_sections([item], [level], Options())
    walked = Walked(pack(replace(frame, sections=(side, *parts))))
    gain = np.tile(model(STACK).gain[level], 4)[:, None, None]
    assert len(seen) == len(walked.turns) == 4
    for turn, (latents, left) in zip(walked.turns, seen, strict=True):
        assert np.array_equal(latents, item.latents[turn.sections])
        if turn.reach.any():
            mean = (walked.latents[turn.before] + walked.latents[turn.after]) / 2
            assert np.allclose(left, latents - mean * gain, rtol=0, atol=0.05)
            assert 0 < np.square(left).mean() < np.square(latents).mean()
        else:
            assert not left.any()


@pytest.mark.parametrize("silent", [{0, 1, 2, 3}, {1}, {0}])
def test_sections_may_do_without_hyper_latents(silent: set[int]) -> None:
    chunk = stack(9, 32, 48)
    frame = unpack(encode(chunk, STACK))
    item = latents_of(chunk, STACK)
    item.silent = frozenset(silent)
    ((side, parts),) = context_coding.encode_sections([item], [20], Options())
    data = pack(replace(frame, setting=20, sections=(side, *parts)))
    walked = Walked(data)
    for turn in walked.turns:
        told = walked.symbols[0][turn.sections]
        assert bool(told.any()) is (int(turn.reach[0]) not in silent), turn
    assert np.array_equal(walked.latents * 16, Reference(data, STACK).sixteenths())
    assert psnr(chunk, decode(data)) > 18
