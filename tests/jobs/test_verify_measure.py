from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tests.volumes import as_dtype, fibsem
from zarr_emcodec.jobs.measure import ERROR_EDGES, BlockMeasure, Guard, compare_block
from zarr_emcodec.quality import psnr, ssim, worst_error

CHUNKS = (16, 64, 64)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_figures_are_those_of_the_quality_room(dtype: str) -> None:
    a = as_dtype(fibsem()[:20], dtype)
    b = a.copy()
    rng = np.random.default_rng(0)
    b[:] = np.clip(a.astype(float) + rng.normal(0, 3, a.shape) * np.ptp(a) / 255, a.min(), a.max()).astype(a.dtype)
    peak = float(np.ptp(a))
    found = compare_block(a, b, Guard(chunks=CHUNKS, peak=peak), ssim_every=1)
    assert found.psnr_db == pytest.approx(psnr(a, b, peak=peak))
    assert found.worst == pytest.approx(worst_error(a, b))
    assert found.ssim == pytest.approx(ssim(a, b, peak=peak))
    off = np.abs(b.astype(float) - a)
    expected = np.bincount(np.searchsorted(np.array(ERROR_EDGES) * peak / 255, off.ravel()), minlength=10)
    assert found.errors == tuple(expected)
    chunks = {(i, j, k): psnr(a[s], b[s], peak=peak) for i, j, k in np.ndindex(2, 2, 2)
              if (s := tuple(slice(n * c, (n + 1) * c) for n, c in zip((i, j, k), CHUNKS, strict=True)))}  # fmt: skip
    assert found.lowest_db == pytest.approx(min(chunks.values()))
    assert found.worst_chunks[0][0] == min(chunks, key=lambda index: chunks[index])
    assert sum(found.chunk_db.values()) == 8
    assert BlockMeasure.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


def test_ssim_of_some_sections_stands_for_all() -> None:
    a = fibsem()
    b = np.clip(a.astype(int) + np.random.default_rng(0).integers(-8, 9, a.shape), 0, 255).astype(np.uint8)
    some = compare_block(a, b, Guard(chunks=CHUNKS))
    every = compare_block(a, b, Guard(chunks=CHUNKS), ssim_every=1)
    assert some.ssim == pytest.approx(every.ssim, abs=0.02)
    assert some.ssim_weight == every.ssim_weight == 32 * 118 * 118
    assert math.isnan(compare_block(a[:, :9], b[:, :9], Guard(chunks=CHUNKS)).ssim)


def test_a_broken_guard_names_its_chunk() -> None:
    a = fibsem()
    b = a.copy()
    b[20, 70, 3] = a[20, 70, 3] + 9
    kept = compare_block(a, b, Guard(chunks=CHUNKS, max_error=9, min_psnr=60))
    assert kept.failures == ()
    assert (kept.worst_chunks[0][0], kept.chunk_db["inf"]) == ((1, 1, 0), 7)
    [(index, reason)] = compare_block(a, b, Guard(chunks=CHUNKS, max_error=7), first_chunk=(4, 0, 2)).failures
    assert (index, reason) == ((5, 1, 2), "a voxel is off by 9, 7 was promised")
    assert compare_block(a, b, Guard(chunks=CHUNKS, max_error=7), scales={(1, 1, 0): 2.0}).failures == ()
    [(_, reason)] = compare_block(a, b, Guard(chunks=CHUNKS, min_psnr=90)).failures
    assert "90 were promised" in reason


def test_edge_chunks_are_excused_by_their_padding() -> None:
    a = fibsem()[:4]  # a quarter of a chunk
    b = np.clip(a.astype(int) + 8, 0, 255).astype(np.uint8)
    found = compare_block(a, b, Guard(chunks=CHUNKS, min_psnr=35))
    assert found.lowest_db < 31
    assert found.failures == ()


def test_values_that_are_no_numbers_are_compared_too() -> None:
    a = np.zeros((2, 16, 16), np.float32)
    a[0], a[1, 0, 0] = np.nan, np.inf
    same = compare_block(a, a.copy(), Guard(chunks=(2, 16, 16), peak=1.0))
    assert (same.worst, same.psnr_db) == (0, math.inf)
    b = a.copy()
    b[0, 0, 0] = 1
    found = compare_block(a, b, Guard(chunks=(2, 16, 16), peak=1.0, max_error=5))
    assert (found.worst, found.lowest_db, len(found.failures)) == (math.inf, -math.inf, 1)
    assert BlockMeasure.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))).lowest_db == -math.inf


def test_what_cannot_be_compared_is_refused() -> None:
    for shape in ((2, 4, 5), (0, 4, 4)):
        with pytest.raises(ValueError, match="cannot be compared"):
            compare_block(np.zeros(shape), np.zeros((0, 4, 4)), Guard(chunks=(1, 4, 4)))
