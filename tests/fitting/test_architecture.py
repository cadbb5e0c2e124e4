"""Sizes of networks: the count of weights, the widest that a budget holds."""

from __future__ import annotations

import math
import random

from zarr_emcodec.fitting import LAYERS, MAX_WIDTH, Architecture, fit_macs, rows_per_step, widest


def test_weights_are_those_of_the_tensors() -> None:
    for axes in range(1, 6):
        for layers in range(LAYERS[0], LAYERS[1] + 1):
            for width in (1, 2, 13, 160):
                architecture = Architecture(axes, width, layers)
                assert architecture.n_weights == sum(map(math.prod, architecture.shapes)) == sum(architecture.counts)
                assert len(architecture.shapes) == 2 * layers
                matrices = architecture.shapes[::2]
                assert architecture.macs == sum(map(math.prod, matrices))


def test_no_wider_network_fits_in_a_thousand_random_budgets() -> None:
    rng = random.Random(0)
    for _ in range(1000):
        budget, axes, layers = 2 ** rng.uniform(3, 20), rng.randint(1, 5), rng.randint(*LAYERS)
        width = widest(budget, axes, layers)
        assert width == 0 or Architecture(axes, width, layers).n_weights <= budget
        assert Architecture(axes, width + 1, layers).n_weights > budget


def test_ends_of_the_range() -> None:
    assert widest(0, 3, 3) == widest(2, 3, 7) == 0
    assert widest(1e12, 2, 3) == MAX_WIDTH
    # as INIF counts them: 128 x 512 x 512 voxels at 64x, weights of 8 bits
    assert widest(128 * 512 * 512 / 64, 3, 7) == 322


def test_a_step_looks_at_no_more_voxels_than_there_are() -> None:
    assert [rows_per_step(n) for n in (5, 1024, 2000, 1 << 17, 1 << 30)] == [5, 1024, 1024, 4096, 8192]
    assert fit_macs(Architecture(3, 10, 3), 2, 5, 100) == 3 * 140 * 2 * 5 * 100
