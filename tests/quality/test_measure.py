"""Measures against values known by hand and against a second implementation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tests.volumes import fibsem
from zarr_emcodec.errors import SpecError
from zarr_emcodec.quality import peak_of, psnr, ssim, worst_error


def test_psnr_of_a_known_error() -> None:
    a = np.full((4, 4), 100, np.uint8)
    b = a + np.uint8(5)
    assert psnr(a, b) == pytest.approx(10 * np.log10(255**2 / 25))
    assert psnr(a, b, peak=100) == pytest.approx(10 * np.log10(100**2 / 25))
    assert psnr(a, a) == float("inf")


def test_differences_do_not_wrap() -> None:
    a, b = np.array([[0, 255]], np.uint8), np.array([[255, 0]], np.uint8)
    assert worst_error(a, b) == 255
    assert psnr(a, b) == 0
    c, d = np.array([[-32768]], np.int16), np.array([[32767]], np.int16)
    assert worst_error(c, d) == 65535


def test_peak_follows_the_dtype() -> None:
    assert peak_of(np.zeros(1, "u2")) == 65535
    assert peak_of(np.zeros(1, "i2")) == 65535
    assert peak_of(np.array([-1, 3], "f4")) == 4


def test_ssim_equals_that_of_filtered_images() -> None:
    a = fibsem()[:2]
    b = np.clip(a + np.random.default_rng(0).normal(0, 12, a.shape), 0, 255).astype(np.uint8)
    expected = []
    for p, q in zip(a.astype(float), b.astype(float), strict=True):
        mx, my = (gaussian_filter(v, 1.5, truncate=3.5) for v in (p, q))
        vx, vy, cov = (
            gaussian_filter(u * v, 1.5, truncate=3.5) - m * n
            for u, v, m, n in ((p, p, mx, mx), (q, q, my, my), (p, q, mx, my))
        )
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        s = ((2 * mx * my + c1) * (2 * cov + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))
        expected.append(s[5:-5, 5:-5].mean())
    assert ssim(a, b) == pytest.approx(np.mean(expected), abs=1e-9)
    assert ssim(a, a) == pytest.approx(1)


def test_sections_smaller_than_the_window_have_no_ssim() -> None:
    assert np.isnan(ssim(np.zeros((5, 5), "u1"), np.zeros((5, 5), "u1")))


def test_other_shapes_are_refused() -> None:
    for measure in (psnr, ssim, worst_error):
        with pytest.raises(SpecError, match="differ in shape"):
            measure(np.zeros((2, 3)), np.zeros((3, 2)))
