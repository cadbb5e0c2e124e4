"""Streams: sections are dealt out as FORMAT.md says, and what was cut is joined again."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from tests.codecs.frames import cut, frames, model_for, symbols_of
from zarr_emcodec.codecs.latents import ChunkLatents, group_starts, join_streams, plan_streams
from zarr_emcodec.codecs.vae_decode import ladder_of
from zarr_emcodec.errors import FrameError
from zarr_emcodec.frame import Kind, unpack


def test_streams_share_sections_as_the_document_says() -> None:
    for n in range(1, 65):
        for k in range(1, n + 1):
            starts = group_starts(n, k)
            size = math.ceil(n / k)
            assert starts[0] == 0
            assert all(b - a == size for a, b in pairwise(starts))
            assert 0 < n - starts[-1] <= size
            assert len(starts) <= k


def test_counts_that_leave_a_stream_empty_are_refused_and_all_others_planned() -> None:
    ladder = ladder_of(model_for())
    for n in range(1, 65):
        for k in range(1, 2 * n + 2):
            sections = [b""] * (k + 1)
            possible = k <= n and (k - 1) * math.ceil(n / k) < n
            if not possible:
                with pytest.raises(FrameError, match=f"{k} streams for {n}"):
                    plan_streams(ladder, 0, sections, n, 0, n)
                continue
            plan = plan_streams(ladder, 0, sections, n, 0, n)
            assert len(plan.parts) == k
            assert [(first, last) for _, first, last in plan.parts] == [
                (start, min(start + math.ceil(n / k), n)) for start in group_starts(n, k)
            ]


@pytest.mark.parametrize("n_streams", [1, 2, 3, 4, 5, 7])
def test_any_planes_come_back_from_the_streams_that_hold_them(n_streams: int) -> None:
    ladder, n, grid = ladder_of(model_for()), 7, (2, 3)
    n_streams = len(group_starts(n, n_streams))
    level = ladder.n_levels // 2
    index = ladder.index[level]
    rng = np.random.default_rng(n_streams)
    symbols = rng.integers(-4, 5, (n, len(index), *grid)).astype(np.int32)
    symbols[:, index == 0] = 0
    streams = [values for values, _ in cut(symbols, index, n_streams)]
    numbered = [bytes([i]) for i in range(n_streams)]
    for start in range(n):
        for stop in range(start + 1, n + 1):
            plan = plan_streams(ladder, level, [b"", *numbered], n, start, stop)
            wanted = [streams[data[0]] for data, _, _ in plan.parts]
            assert all(first < stop and last > start for _, first, last in plan.parts)
            back = join_streams(plan, wanted, grid, start, stop)
            assert back.dtype == np.float32
            assert np.array_equal(back, symbols[start:stop])


def test_cutting_is_undone_by_joining() -> None:
    model = model_for()
    ladder = ladder_of(model)
    rng = np.random.default_rng(5)
    level = ladder.n_levels // 3
    scale = ladder.gain[level][:, None, None] * 2
    latents = (rng.laplace(size=(12, model.card.channels, 3, 5)) * scale).astype(np.float32)
    chunk = ChunkLatents(latents, ladder)
    side, streams = chunk.streams(level, "entropy")
    index = ladder.table_index(side, level)
    sections = [side, *[b""] * len(streams)]
    plan = plan_streams(ladder, level, sections, 12, 0, 12)
    assert np.array_equal(plan.index, index)
    for stream, (_, first, last) in zip(streams, plan.parts, strict=True):
        assert np.array_equal(stream.index, plan.stream_index(last - first, 15))
        assert len(stream.symbols) == len(stream.index)
    joined = join_streams(plan, [stream.symbols for stream in streams], (3, 5), 0, 12)
    restored = joined * ladder.gain[level][:, None, None]
    # thresholds lie at most 1.2 steps from zero
    assert np.abs(restored - latents).max() <= 1.2 * ladder.gain[level].max()
    assert np.corrcoef(restored.ravel(), latents.ravel())[0, 1] > 0.9


def test_nominal_symbols_fit_their_fields() -> None:
    model = model_for()
    ladder = ladder_of(model)
    latents = np.random.default_rng(1).normal(0, 1e5, (2, model.card.channels, 2, 2)).astype(np.float32)
    for level in (0, ladder.n_levels // 2, ladder.n_levels - 1):
        side, streams = ChunkLatents(latents, ladder).streams(level, "nominal")
        assert side == b""
        assert len(streams) == 1
        (stream,) = streams
        low = ladder.tables.lows[stream.index].astype(int)
        assert (stream.symbols >= low).all()
        assert (stream.symbols <= low + ladder.tables.sizes[stream.index] - 2).all()


def test_frames_hold_the_symbols_in_the_documented_order() -> None:
    # many streams and one: the same latents, so what is read must not depend on the cut
    for name in ("latent", "latent streams", "masked streams"):
        data = frames()[name]
        frame = unpack(data)
        assert frame.model is not None
        sections = frame.sections[1:] if frame.kind is Kind.MASKED else frame.sections
        n_streams = len(sections) - 1
        assert (n_streams > 1) == name.endswith("streams")
        symbols = symbols_of(data)
        index = ladder_of(model_for()).table_index(sections[0], frame.setting)
        assert not symbols[:, index == 0].any()
        assert symbols.any()
