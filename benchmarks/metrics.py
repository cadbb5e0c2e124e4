"""Voxels and rate-distortion points in, figures out: PSNR, SSIM, resolution, grain, quality at a ratio, BD-rate.

One definition for this codec and for its peers. A point is a mapping with at least ``ratio`` (raw bytes / coded
bytes) and the quality it is asked for (``psnr`` in dB, ``ssim``). Knows no codec.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter, uniform_filter

Point: TypeAlias = Mapping[str, Any]
Floats: TypeAlias = NDArray[np.float64]

BD_RATIOS = (8.0, 256.0)  # the range over which two codecs are compared
TABLE_RATIOS = (8, 16, 32, 64, 128, 256, 512, 1024)


def psnr(a: NDArray[Any], b: NDArray[Any], *, peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB over all voxels; 10 log10(peak^2 / 1e-12) where they are equal."""
    error = np.mean([np.mean((x.astype(np.float64) - y.astype(np.float64)) ** 2) for x, y in zip(a, b, strict=True)])
    return float(10 * np.log10(peak**2 / max(float(error), 1e-12)))


def ssim(a: NDArray[Any], b: NDArray[Any], *, peak: float = 255.0, offset: float = 0.0) -> float:
    """Mean over sections of the structural similarity of Wang et al. 2004.

    Parameters
    ----------
    a, b : ndarray, shape (z, y, x)
        Grey values; every section at least 11 x 11.
    peak : float, grey levels
        The dynamic range L.
    offset : float, grey levels
        Grey value that counts as 0: SSIM compares means, so it depends on it.

    Notes
    -----
    11 x 11 Gaussian window with sigma 1.5, K1 = 0.01, K2 = 0.03; the 5-voxel border is left out (Wang, Bovik, Sheikh
    and Simoncelli, IEEE TIP 13 (4), 2004, section III-B and C).
    """
    return float(np.mean([_ssim_of_section(x - offset, y - offset, peak) for x, y in _float_sections(a, b)]))


def _float_sections(a: NDArray[Any], b: NDArray[Any]) -> list[tuple[Floats, Floats]]:
    return [(x.astype(np.float64), y.astype(np.float64)) for x, y in zip(a, b, strict=True)]


def _smooth(image: Floats) -> Floats:
    smoothed: Floats = gaussian_filter(image, 1.5, truncate=3.5)
    return smoothed


def _ssim_of_section(x: Floats, y: Floats, peak: float) -> float:
    mean_x, mean_y = _smooth(x), _smooth(y)
    var_x, var_y = _smooth(x * x) - mean_x**2, _smooth(y * y) - mean_y**2
    covariance = _smooth(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return float((luminance * structure)[5:-5, 5:-5].mean())


def at_ratio(points: Sequence[Point], ratio: float, key: str = "psnr") -> float:
    """Quality at a compression ratio, by PCHIP over log(ratio); nan outside the measured range."""
    curve = sorted({round(float(np.log(p["ratio"])), 9): float(p[key]) for p in points}.items())
    if len(curve) < 2 or not curve[0][0] <= np.log(ratio) <= curve[-1][0]:
        return float("nan")
    x, y = np.array(curve).T
    return float(PchipInterpolator(x, y)(np.log(ratio)))


def bd_rate(
    reference: Sequence[Point], other: Sequence[Point], key: str = "psnr", ratios: tuple[float, float] = BD_RATIOS
) -> float:
    """Mean rate difference of ``other`` to ``reference`` at equal quality, in percent; negative is fewer bytes.

    PCHIP of log(rate) over quality (Bjontegaard, VCEG-M33, 2001, with PCHIP for the cubic), over the overlap of both
    curves where the reference lies inside ``ratios``. nan where that overlap spans less than a factor of 3 in the
    reference's rate: a mean over a sliver says nothing.
    """
    if min(len(reference), len(other)) < 2:
        return float("nan")
    (quality_r, rate_r), (quality_o, rate_o) = _rate_curve(reference, key), _rate_curve(other, key)
    if min(len(quality_r), len(quality_o)) < 2:
        return float("nan")
    fit_r, fit_o = PchipInterpolator(quality_r, rate_r), PchipInterpolator(quality_o, rate_o)
    grid = np.linspace(max(quality_r[0], quality_o[0]), min(quality_r[-1], quality_o[-1]), 4000)
    grid = grid[(fit_r(grid) <= -np.log(ratios[0])) & (fit_r(grid) >= -np.log(ratios[1]))]
    if grid.size < 10 or grid[0] > grid[-1] or abs(fit_r(grid[-1]) - fit_r(grid[0])) < np.log(3):
        return float("nan")
    return float((np.exp(np.mean(fit_o(grid) - fit_r(grid))) - 1) * 100)


def _rate_curve(points: Sequence[Point], key: str) -> tuple[Floats, Floats]:
    """Quality, ascending and distinct, and log(rate) up to a constant, made monotone."""
    curve = np.array(sorted((float(p[key]), -np.log(p["ratio"])) for p in points))
    distinct = np.concatenate([[True], np.diff(curve[:, 0]) > 1e-6])
    return curve[distinct, 0], np.maximum.accumulate(curve[distinct, 1])


def spectral_distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """How far the power spectra of sections lie apart, in dB.

    Returns
    -------
    float
        Mean over sections and rings of frequency, from 1/64 to 1/2 cycles a voxel, of the absolute difference of the
        radially averaged, Hann-windowed power in dB; 1 is added to the power, that of noise of a grey level.
    """
    return float(np.mean([np.abs(_rings(x) - _rings(y)).mean() for x, y in zip(a, b, strict=True)]))


def _rings(section: NDArray[Any]) -> Floats:
    image = section.astype(np.float64)
    window = np.outer(np.hanning(image.shape[0]), np.hanning(image.shape[1]))
    power = np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2 / np.sum(window**2)
    ring = _ring_numbers(image.shape)
    total, count = np.bincount(ring, power.ravel()), np.bincount(ring)
    levels: Floats = 10 * np.log10(total[2:65] / np.maximum(count[2:65], 1) + 1)
    return levels


def spectrum_slope(volume: NDArray[Any]) -> float:
    """How fast the power of sections falls with frequency, in dB an octave; about -6 for 1/f amplitudes, 0 for noise.

    Least squares over the rings of `spectral_distance`, mean of the sections' dB, every octave with the same weight.
    """
    levels = np.mean([_rings(section) for section in volume], axis=0)
    octave = np.log2(np.arange(2, 65) / 128)
    return float(np.polyfit(octave, levels, 1, w=2 ** (-octave / 2))[0])


def frc_cutoffs(a: NDArray[Any], b: NDArray[Any], voxel_nm: float | None = None) -> dict[str, float]:
    """Up to which frequency two volumes agree: where their Fourier ring correlation falls below 1/7 and 1/2.

    Parameters
    ----------
    a, b : ndarray, shape (z, y, x)
        Original and reconstruction.
    voxel_nm : float, nanometres, optional
        Edge of a pixel of a section.

    Returns
    -------
    dict
        ``frc_7`` and ``frc_half`` in cycles a voxel, 0.5 (Nyquist) where it never falls so low; with `voxel_nm` also
        ``frc_7_nm`` and ``frc_half_nm``, one over those frequencies.

    Notes
    -----
    FRC(q) = Re sum A B* / sqrt(sum |A|^2 sum |B|^2) over the rings of width 1/128 of all Hann-windowed sections
    (Saxton and Baumeister 1982; 1/7: Rosenthal and Henderson 2003). Linear between the rings, 1 at frequency 0.
    """
    sums = np.sum([_ring_products(x, y) for x, y in zip(a, b, strict=True)], axis=0)
    power = np.sqrt(sums[1] * sums[2])
    curve = np.divide(sums[0], power, out=np.zeros_like(power), where=power > 0)
    curve[0] = 1.0
    cutoffs = {"frc_7": _falls_below(curve, 1 / 7), "frc_half": _falls_below(curve, 1 / 2)}
    if voxel_nm is None:
        return cutoffs
    return cutoffs | {f"{name}_nm": voxel_nm / frequency for name, frequency in cutoffs.items()}


def _ring_products(x: NDArray[Any], y: NDArray[Any]) -> Floats:
    """Re A B*, |A|^2 and |B|^2 of two sections, summed over the rings from 0 to 1/2: shape (3, 65)."""
    window = np.outer(np.hanning(x.shape[0]), np.hanning(x.shape[1]))
    one, other = (np.fft.fft2((s - s.mean()) * window) for s in (x.astype(np.float64), y.astype(np.float64)))
    ring = _ring_numbers(window.shape)
    products = ((one * other.conj()).real, np.abs(one) ** 2, np.abs(other) ** 2)
    return np.stack([np.bincount(ring, p.ravel(), minlength=65)[:65] for p in products])


def _falls_below(curve: Floats, level: float) -> float:
    """The first frequency at which a curve over rings of 1/128 is at most `level`."""
    below = np.flatnonzero(curve <= level)
    if not below.size:
        return 0.5
    k = int(below[0])
    return float((k - (level - curve[k]) / (curve[k - 1] - curve[k])) / 128)


def _ring_numbers(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Of each coefficient of a section's spectrum its frequency in 1/128 cycles a voxel, row-major."""
    y, x = (np.fft.fftfreq(n) for n in shape)
    return np.rint(np.hypot(y[:, None], x[None]) * 128).astype(np.int64).ravel()


def texture_distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """How differently the grain of two volumes is strong from place to place, whatever places those are.

    Returns
    -------
    float
        Wasserstein distance of the distributions of local contrast (standard deviation over 9 voxels) in three octave
        bands of differences of Gaussians, over the mean contrast of `a`; mean over the bands. 0 is alike, 1 as if one
        had no grain.
    """
    distances = []
    for sigma in (0.7, 1.4, 2.8):
        contrasts = []
        for volume in (a, b):
            bands = [
                gaussian_filter(s.astype(np.float64), sigma) - gaussian_filter(s.astype(np.float64), 2 * sigma)
                for s in volume
            ]
            contrasts.append(
                np.sort(np.concatenate([np.sqrt(np.maximum(uniform_filter(d * d, 9), 0)).ravel() for d in bands]))
            )
        distances.append(float(np.abs(contrasts[0] - contrasts[1]).mean() / contrasts[0].mean()))
    return float(np.mean(distances))
