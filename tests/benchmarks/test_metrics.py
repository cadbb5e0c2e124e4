"""Self-checks of the resolution and spectrum figures on images of known spectrum."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray


def noise(power_of_frequency: float, *, sections: int = 4, edge: int = 256) -> NDArray[np.float64]:
    """Sections whose amplitude goes with a power of the frequency, standard deviation 30."""
    random = np.random.default_rng(7)
    y, x = np.fft.fftfreq(edge)[:, None], np.fft.fftfreq(edge)[None]
    shape = np.hypot(y, x).clip(min=1 / edge) ** power_of_frequency
    images = np.fft.ifft2(np.fft.fft2(random.normal(size=(sections, edge, edge))) * shape).real
    return np.asarray(30 * images / images.std() + 128)


def cut(images: NDArray[np.float64], frequency: float) -> NDArray[np.float64]:
    """Without what is finer than a frequency in cycles a voxel."""
    y, x = np.fft.fftfreq(images.shape[1])[:, None], np.fft.fftfreq(images.shape[2])[None]
    return np.asarray(np.fft.ifft2(np.fft.fft2(images) * (np.hypot(y, x) <= frequency)).real)


def test_equal_volumes_agree_up_to_nyquist(metrics: ModuleType) -> None:
    images = noise(-1)
    assert metrics.frc_cutoffs(images, images) == {"frc_7": 0.5, "frc_half": 0.5}
    assert metrics.frc_cutoffs(images, images, 8.0)["frc_7_nm"] == 16


@pytest.mark.parametrize("frequency", [0.1, 0.25])
def test_agreement_ends_where_frequencies_were_cut(metrics: ModuleType, frequency: float) -> None:
    images = noise(0)
    random = np.random.default_rng(1)
    rest = images - cut(images, frequency)
    other = cut(images, frequency) + random.permuted(rest, axis=1)  # its own fine grain, unlike the original's
    found = metrics.frc_cutoffs(images, other, 4.0)
    assert found["frc_half"] == pytest.approx(frequency, abs=0.01)
    assert found["frc_7"] == pytest.approx(frequency, abs=0.015)
    assert found["frc_half_nm"] == pytest.approx(4 / found["frc_half"])


def test_nothing_agrees_with_a_constant(metrics: ModuleType) -> None:
    images = noise(-1)
    assert metrics.frc_cutoffs(images, np.full_like(images, 128.0))["frc_half"] < 1 / 128


@pytest.mark.parametrize(("power", "slope"), [(0.0, 0.0), (-1.0, -6.02)])
def test_slope_of_known_spectra(metrics: ModuleType, power: float, slope: float) -> None:
    assert metrics.spectrum_slope(noise(power)) == pytest.approx(slope, abs=0.25)


def test_spectral_distance_of_a_brighter_copy_is_its_gain(metrics: ModuleType) -> None:
    images = noise(0)
    assert metrics.spectral_distance(images, 2 * images) == pytest.approx(6.02, abs=0.05)
