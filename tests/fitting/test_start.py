"""Starts: one set of weights for every width, cut and scaled."""

from __future__ import annotations

import math

import numpy as np
import pytest

from zarr_emcodec.fitting import Architecture, Start
from zarr_emcodec.fitting.architecture import highest_frequency
from zarr_emcodec.fitting.start import unit_scales

WIDEST = Architecture(3, 32, 4)


def start() -> Start:
    rng = np.random.default_rng(0)
    return Start(WIDEST, tuple(rng.uniform(-1, 1, shape).astype("f4") for shape in WIDEST.shapes))


def test_which_networks_it_covers() -> None:
    covered = [
        start().covers(Architecture(*kind)) for kind in ((3, 32, 4), (3, 5, 4), (3, 33, 4), (2, 8, 4), (3, 8, 3))
    ]
    assert covered == [True, True, False, False, False]


@pytest.mark.parametrize("width", [5, 20, 32])
def test_a_narrow_network_has_the_first_units(width: int) -> None:
    architecture, extents = Architecture(3, width, 4), (16, 64, 64)
    weights = start().weights(architecture, extents)
    assert [w.shape for w in weights] == list(architecture.shapes)
    assert all(w.dtype == np.float32 for w in weights)
    assert np.allclose(weights[2], start().tensors[2][:width, :width] * math.sqrt(6 / width))
    assert np.array_equal(weights[1], start().tensors[1][:width])


def test_frequencies_follow_the_size_and_the_shape() -> None:
    architecture = Architecture(3, 20, 4)
    first = unit_scales(architecture, (16, 64, 64))[0]
    assert first.shape == (3, 1)
    assert np.allclose(first[:, 0] / first[0, 0], [1, 4, 4])
    mean = (16 * 64 * 64) ** (1 / 3)
    assert math.isclose(float(first[1, 0]), highest_frequency(architecture, mean) * 64 / mean, rel_tol=1e-6)
    # no axis has more than its voxels do
    assert highest_frequency(architecture, 4) == math.pi
    assert highest_frequency(architecture, 400) < 100
