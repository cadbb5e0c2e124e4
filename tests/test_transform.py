"""Windows, padding and tiles invert, and cut nothing away."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zarr_emcodec import transform
from zarr_emcodec.transform import Window


@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([8, 16, 32]))
def test_padding_reaches_the_stride_and_keeps_the_section(y: int, x: int, stride: int) -> None:
    section = np.arange(y * x, dtype=np.float32).reshape(1, y, x)
    grown = transform.pad_to_stride(section, (stride, stride))
    assert grown.shape[1] % stride == grown.shape[2] % stride == 0
    assert grown.shape[1] - y < stride
    assert np.array_equal(grown[:, :y, :x], section)
    assert grown.min() == section.min()
    assert grown.max() == section.max()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_tiles_cover_every_cell_once_with_its_neighbourhood(h: int, w: int, edge: int, halo: int) -> None:
    seen = np.zeros((h, w), int)
    for tile in transform.tiles((h, w), edge, halo):
        seen[tile.target] += 1
        for outer, inner, target, n in zip(tile.outer, tile.inner, tile.target, (h, w), strict=True):
            assert outer.start + inner.start == target.start
            assert inner.stop - inner.start == target.stop - target.start <= edge
            assert outer.start == max(target.start - halo, 0)
            assert outer.stop == min(target.stop + halo, n)
    assert (seen == 1).all()


@pytest.mark.parametrize("dtype", ["uint16", "int16"])
def test_integers_survive_their_window(dtype: str) -> None:
    values = np.random.default_rng(0).integers(1000, 9000, (3, 20, 30)).astype(dtype)
    window = Window.of_chunk(values)
    back = transform.from_grey(transform.to_grey(values, window), window, values.dtype)
    assert np.array_equal(back, values)


def test_a_window_holds_most_of_a_chunk_within_the_grey_scale() -> None:
    values = np.random.default_rng(1).normal(-3.0, 0.02, (4, 64, 64)).astype(np.float32)
    grey = transform.to_grey(values, Window.of_chunk(values))
    inside = ((grey >= 0) & (grey <= 255)).mean()
    assert inside > 0.998
    assert 100 < grey.mean() < 156


def test_a_stated_window_maps_its_ends_to_0_and_255() -> None:
    window = Window.stated(-1.0, 3.0)
    assert transform.to_grey(np.array([-1.0, 3.0], np.float32), window) == pytest.approx([0, 255], abs=1e-4)


def test_values_are_rounded_half_to_even_and_clipped() -> None:
    grey = np.array([-3.0, 0.5, 1.5, 254.5, 300.0], np.float32)
    assert transform.from_grey(grey, None, np.dtype("u1")).tolist() == [0, 0, 2, 254, 255]


@pytest.mark.parametrize(
    ("shape", "sections"), [((5, 6), (1, 5, 6)), ((2, 5, 6), (2, 5, 6)), ((2, 3, 5, 6), (6, 5, 6))]
)
def test_leading_axes_become_sections(shape: tuple[int, ...], sections: tuple[int, ...]) -> None:
    chunk = np.zeros(shape, np.uint8)
    assert transform.sections_of(chunk).shape == sections
    assert (transform.n_sections(shape), *transform.section_shape(shape)) == sections


@pytest.mark.parametrize(
    ("shape", "volumes"),
    [((7, 9), (1, 1, 7, 9)), ((5, 7, 9), (1, 5, 7, 9)), ((2, 5, 7, 9), (2, 5, 7, 9)), ((2, 3, 5, 7, 9), (6, 5, 7, 9))],
)
def test_chunks_are_seen_as_volumes(shape: tuple[int, ...], volumes: tuple[int, ...]) -> None:
    assert transform.sections_of(np.zeros(shape), 3).shape == volumes
    assert (transform.n_sections(shape, 3), *transform.section_shape(shape, 3)) == volumes
    stride = (2, 4, 4)
    padded = transform.pad_to_stride(np.zeros(volumes, np.float32), stride)
    assert transform.padded_voxels(shape, stride) == padded.size
    assert padded.shape[1:] == tuple(c * s for c, s in zip(transform.cells(volumes[1:], stride), stride, strict=True))


def test_tiles_of_volumes_have_edges_and_halos_of_their_own_on_each_axis() -> None:
    grid, edges, halos = (5, 9, 4), (2, 9, 3), (1, 3, 0)
    seen = np.zeros(grid, int)
    for tile in transform.tiles(grid, edges, halos):
        seen[tile.target] += 1
        for outer, target, n, halo in zip(tile.outer, tile.target, grid, halos, strict=True):
            assert (outer.start, outer.stop) == (max(target.start - halo, 0), min(target.stop + halo, n))
    assert (seen == 1).all()
