from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

import zarr_emcodec
from tests.volumes import noise
from zarr_emcodec.errors import MissingExtraError, SpecError
from zarr_emcodec.roi import Proposal, propose_roi
from zarr_emcodec.roi.region import cells_of
from zarr_emcodec.roi.scores import boundary, texture


def smooth(shape: tuple[int, ...]) -> Any:
    """Slow waves of grey."""
    z, y, x = np.indices(shape)
    return (128 + 30 * np.sin(y / 40) + 20 * np.sin(x / 50) + z).astype(np.uint8)


def grain(shape: tuple[int, int, int]) -> Any:
    """Noise in squares of 4 x 4."""
    z, y, x = shape
    return np.kron(noise((z, y // 4, x // 4)), np.ones((1, 4, 4), np.uint8))


@pytest.fixture(scope="module")
def planted() -> Any:
    """Smooth grey with one chunk of coarse texture at (1, 1, 2), one dark line in chunk (0, 2, 1)."""
    data = smooth((12, 128, 128))
    data[8:12, 32:64, 64:96] = grain((4, 32, 32))
    data[0:8, 70:90, 44:49] = 60
    made: Any = zarr_emcodec.create_array({}, data=data, chunks=(8, 32, 32), ratio=8)
    return made


def indices(array: Any, proposal: Proposal) -> list[list[int]]:
    return np.argwhere(cells_of(proposal, array.shape, array.chunks)).tolist()


def test_texture_and_boundaries_are_found_where_they_are(planted: Any) -> None:
    assert indices(planted, propose_roi(planted, by="texture", fraction=0.01))[0] == [1, 1, 2]
    lines = propose_roi(planted, by="boundary", fraction=0.1)
    assert [0, 2, 1] in indices(planted, lines)
    assert list(lines.scores) == sorted(lines.scores, reverse=True)
    assert lines.n_blocks == 32
    assert lines.tier == "full"  # the cheapest of a model that has one


def test_uncertainty_is_what_the_frames_cost() -> None:
    data = smooth((8, 64, 64))
    data[:, 32:, :32] = grain((8, 32, 32))
    codec = zarr_emcodec.VAECodec(min_psnr=26, model="vae-2d-s16")
    array: Any = zarr_emcodec.create_array({}, data=data, chunks=(8, 32, 32), codec=codec)
    found = propose_roi(array, by="uncertainty", fraction=0.25)
    assert indices(array, found) == [[0, 1, 0]]
    assert found.tier == ""
    assert found.scores[0] > 0.5
    fixed: Any = zarr_emcodec.create_array({}, data=data, codec=zarr_emcodec.VAECodec(ratio=16, mode="nominal"))
    with pytest.raises(SpecError, match="fixed width"):
        propose_roi(fixed, by="uncertainty")
    with pytest.raises(SpecError, match="whole chunks"):
        propose_roi(array, by="uncertainty", block=(8, 16, 16))


def test_a_detector_of_the_users_may_score_voxels_or_volumes(planted: Any) -> None:
    seen: list[tuple[int, ...]] = []

    def bright(volume: Any) -> Any:
        seen.append(volume.shape)
        return volume > 150

    def mean(volume: Any) -> float:
        return -float(volume.mean())

    by_voxel = propose_roi(planted, by=bright, fraction=0.2)
    assert by_voxel.by == "bright"
    assert set(seen) == {(8, 32, 32), (4, 32, 32)}  # padding is not shown
    decoded = np.asarray(planted[...])
    first = by_voxel.boxes[0]
    assert by_voxel.scores[0] == pytest.approx((decoded[first] > 150).mean())
    assert by_voxel.scores[0] == max(
        (decoded[b] > 150).mean() for b in propose_roi(planted, by=bright, fraction=1).boxes
    )
    darkest = propose_roi(planted, by=mean, fraction=0.01)
    assert len(darkest.boxes) == 1
    assert darkest.scores[0] == pytest.approx(-decoded[darkest.boxes[0]].mean())


def test_finer_blocks_are_scored_on_their_own(planted: Any) -> None:
    fine = propose_roi(planted, block=(4, 16, 16), fraction=0.02)
    decoded = np.asarray(planted[...])
    for box, score in zip(fine.boxes, fine.scores, strict=True):
        assert tuple(part.stop - part.start for part in box) == (4, 16, 16)
        chunk = tuple(
            slice(part.start // c * c, part.start // c * c + c) for part, c in zip(box, (8, 32, 32), strict=True)
        )
        inner = tuple(slice(p.start - c.start, p.stop - c.start) for p, c in zip(box, chunk, strict=True))
        assert score == pytest.approx(texture(decoded[chunk])[inner].mean(), rel=1e-5)
    assert fine.fraction == pytest.approx(len(fine.boxes) * 4 * 16 * 16 / decoded.size)
    assert fine.fraction <= 0.02
    assert fine.n_blocks == 3 * 8 * 8


def test_a_coarser_level_may_stand_for_the_array(planted: Any) -> None:
    coarse_data = np.asarray(planted[::2, ::4, ::4])
    coarse: Any = zarr_emcodec.create_array({}, data=coarse_data, chunks=(3, 16, 16), ratio=4)
    found = propose_roi(planted, level=coarse, fraction=0.1)
    assert found.block == (6, 64, 64)
    assert found.n_blocks == 8
    assert [1, 1, 2] in indices(planted, found)
    with pytest.raises(SpecError, match="no version of it coarser"):
        propose_roi(planted, level=zarr_emcodec.create_array({}, data=coarse_data[:, :20], chunks=(3, 16, 16)))


def test_chunks_that_decode_alike_at_every_tier_are_not_proposed(array: Any) -> None:
    found = propose_roi(array, fraction=1)
    assert found.n_blocks == 46
    marked = cells_of(found, array.shape, array.chunks)
    assert not marked[0, 0, 1]  # constant
    assert not marked[0, 1, 1]  # not stored
    assert marked.sum() == 46
    assert found.fraction < 1


def test_arrays_of_two_and_of_four_axes() -> None:
    flat: Any = zarr_emcodec.create_array({}, data=smooth((1, 64, 64))[0], chunks=(32, 32), ratio=8)
    assert propose_roi(flat, fraction=0.25).n_blocks == 4
    shapes: list[tuple[int, ...]] = []
    stack = np.stack([smooth((4, 64, 64))] * 2)
    deep: Any = zarr_emcodec.create_array({}, data=stack, chunks=(2, 4, 32, 32), ratio=8)

    def watch(volume: Any) -> float:
        shapes.append(volume.shape)
        return 0.0

    propose_roi(deep, by=watch)
    assert shapes == [(4, 32, 32)] * 8


def test_the_json_is_plain_and_progress_ends_at_all(planted: Any) -> None:
    told: list[Any] = []
    found = propose_roi(planted, fraction=0.05, progress=lambda *n: told.append(n))
    back = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert back["boxes"][0] == [[part.start, part.stop] for part in found.boxes[0]]
    assert told[-1] == (12 * 128 * 128, 12 * 128 * 128)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"fraction": 0}, "fraction 0: needs"),
        ({"fraction": 1.5}, "fraction 1.5"),
        ({"by": "beauty"}, "needs 'texture', 'boundary', 'uncertainty' or a callable"),
        ({"block": (3, 32, 32)}, "needs divisors of the chunk"),
        ({"block": (8, 32)}, "needs divisors of the chunk"),
        ({"by": lambda volume: volume[0]}, "one finite score, or one for each voxel"),
        ({"by": lambda volume: np.nan}, "with NaN"),
        ({"by": lambda volume: "much"}, "detector: failed"),
    ],
)
def test_what_cannot_be_scored_is_said(planted: Any, words: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        propose_roi(planted, **words)


def test_texture_is_the_variance_in_a_window() -> None:
    volume = noise((2, 24, 30), 3)
    window = np.ones((1, 9, 9)) / 81
    grey = volume.astype(float)
    mean = ndimage.convolve(grey, window, mode="nearest")
    expected = ndimage.convolve(grey**2, window, mode="nearest") - mean**2
    assert np.allclose(texture(volume), expected, rtol=1e-4, atol=1e-2)
    assert texture(np.full((1, 3, 3), 9)).max() == 0


def test_boundaries_are_dark_lines_of_any_direction_and_not_bright_ones() -> None:
    section = np.full((1, 64, 64), 150.0)
    section[0, :, 20:24] = 50
    section[0, :, 44:48] = 250
    found = boundary(section)
    assert found[0, 32, 20:24].min() > 5 * found[0, 32, 44:48].max()
    assert np.allclose(boundary(section.transpose(0, 2, 1)), found.transpose(0, 2, 1), atol=1e-3)


def test_boundaries_need_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "scipy.ndimage", None)
    with pytest.raises(MissingExtraError, match=r"zarr_emcodec\[roi\]"):
        boundary(np.zeros((1, 8, 8)))
