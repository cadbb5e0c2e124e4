"""Training volumes and the augmented crops that are drawn from them.

TIFF stacks or .npy files come in as they are; batches of float32 crops in grey levels go out. Each source is held in
memory in its own dtype. Which sections are held out for validation is decided here, once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from zarr_emcodec.errors import MissingExtraError, SpecError

DISTANCES = (1, 2, 4, 8)
"""Sections from one to the next in stacks, the most frequent first: every second section of a chunk is coded between
its neighbours, every fourth between those two away."""


@dataclass(frozen=True)
class Source:
    """One volume to learn from.

    Attributes
    ----------
    path : Path
        TIFF stack or .npy, axes (z, y, x).
    weight : float
        Share of the crops drawn from it.
    isotropic : bool
        Whether xz and yz planes look like xy planes and may be drawn too.
    held_out : int
        Sections at the end that are kept for validation.
    """

    path: Path
    weight: float = 1.0
    isotropic: bool = False
    held_out: int = 0


def read_volume(path: Path) -> NDArray[np.generic]:
    """A TIFF stack or .npy file as an array with axes (z, y, x)."""
    if path.suffix == ".npy":
        volume = np.load(path, allow_pickle=False)
    else:
        try:
            import tifffile
        except ImportError as error:
            raise MissingExtraError("reading TIFF", extra="train") from error
        volume = tifffile.imread(path)
    if volume.ndim == 2:
        volume = volume[None]
    if volume.ndim != 3:
        raise SpecError(f"{path.name}: needs axes (z, y, x), has shape {volume.shape}.", name="path", value=str(path))
    return np.asarray(volume)


class CropSampler:
    """Draws augmented crops; the same seed draws the same crops.

    Flips, quarter turns, any plane of an isotropic volume, scale 0.7 to 1.4 (other voxel sizes), contrast, brightness
    and gamma (other stains and detectors), blur and noise (other optics and doses).

    Parameters
    ----------
    sources : sequence of Source
        At least one.
    crop : int
        Edge of a crop in voxels.
    seed : int
        Of the generator.
    """

    def __init__(self, sources: Sequence[Source], crop: int, seed: int) -> None:
        self.crop = crop
        self.random = np.random.default_rng(seed)
        self.planes: list[list[NDArray[np.generic]]] = []
        self.windows: list[tuple[float, float]] = []
        self.validation: list[NDArray[np.float32]] = []
        for source in sources:
            volume = read_volume(source.path)
            offset, scale = grey_window(volume)
            kept = volume[: len(volume) - source.held_out]
            views = [kept]
            if source.isotropic:
                views += [kept.transpose(1, 0, 2), kept.transpose(2, 0, 1)]
            self.planes.append(views)
            self.windows.append((offset, scale))
            for section in volume[len(volume) - source.held_out :][::4]:
                self.validation.append(((section.astype(np.float32) - offset) / scale).astype(np.float32))
        weights = np.array([s.weight for s in sources], float)
        self.weights = weights / weights.sum()

    def raw_crop(self, edge: int) -> NDArray[np.float32]:
        """A random square of at most `edge` voxels, in grey levels, not augmented."""
        which = int(self.random.choice(len(self.planes), p=self.weights))
        views = self.planes[which]
        view = views[int(self.random.integers(len(views)))]
        section = int(self.random.integers(len(view)))
        (crop,) = self._cut(view[section : section + 1], which, edge)
        return np.asarray(crop, np.float32)

    def _cut(self, sections: NDArray[np.generic], which: int, edge: int) -> NDArray[np.float32]:
        """The same random square of some sections of a source, in grey levels."""
        shape = sections.shape[1:]
        h, w = (min(edge, n) for n in shape)
        y, x = (int(self.random.integers(n - m + 1)) for n, m in zip(shape, (h, w), strict=True))
        offset, scale = self.windows[which]
        return np.asarray((sections[:, y : y + h, x : x + w].astype(np.float32) - offset) / scale, np.float32)

    def batch(self, size: int) -> Tensor:
        """Augmented crops ``[size, 1, crop, crop]`` float32, grey levels within 0 to 255."""
        return torch.stack([self._augmented(lambda edge: self.raw_crop(edge)[None]) for _ in range(size)])

    def _augmented(self, draw: Callable[[int], NDArray[np.float32]]) -> Tensor:
        """Sections ``[n, crop, crop]``, all augmented alike, but each with noise of its own."""
        rng = self.random
        zoom = float(np.exp(rng.uniform(np.log(0.7), np.log(1.4)))) if rng.random() < 0.5 else 1.0
        crop = torch.from_numpy(np.ascontiguousarray(draw(round(self.crop / zoom))))[None]
        if crop.shape[-2:] != (self.crop, self.crop):
            crop = F.interpolate(crop, (self.crop, self.crop), mode="bilinear", antialias=True, align_corners=False)
        x = crop[0]
        turns = int(rng.integers(4))
        x = torch.rot90(x, turns, (1, 2))
        if rng.random() < 0.5:
            x = x.flip(2)
        x = _other_grey(x, rng)
        if rng.random() < 0.1:
            x = _blurred(x, float(rng.uniform(0.4, 1.2)))
        if rng.random() < 0.25:
            x = x + torch.from_numpy(rng.normal(0, rng.uniform(1, 10), tuple(x.shape)).astype(np.float32))
        return x.clamp(0, 255).contiguous()


class Stacks(NamedTuple):
    """Sections that lie in a row, evenly spaced.

    Attributes
    ----------
    grey : Tensor, shape (n, 3, y, x)
    distance : ndarray, shape (n,), int64
        Sections from one to the next; 0 where they have nothing to do with each other.
    """

    grey: Tensor
    distance: NDArray[np.int64]


class StackSampler(CropSampler):
    """Draws crops of three sections in a row, as `CropSampler` draws them of one; held out are whole stacks."""

    def __init__(self, sources: Sequence[Source], crop: int, seed: int) -> None:
        super().__init__(sources, crop, seed)
        self.validation = []
        for source, (offset, scale) in zip(sources, self.windows, strict=True):
            if source.held_out:
                held = read_volume(source.path)[-source.held_out :].astype(np.float32)
                self.validation.append(((held - offset) / scale).astype(np.float32))

    def raw_run(self, depth: int, edge: int) -> NDArray[np.float32]:
        """Up to `depth` sections in a row of a random square of at most `edge` voxels, not augmented."""
        rng = self.random
        which = int(rng.choice(len(self.planes), p=self.weights))
        views = self.planes[which]
        view = views[int(rng.integers(len(views)))]
        first = int(rng.integers(max(len(view) - depth, 0) + 1))
        return self._cut(view[first : first + depth], which, edge)

    def stacks(self, size: int) -> Stacks:
        """Augmented crops, grey levels within 0 to 255."""
        distances: list[int] = []

        def draw(edge: int) -> NDArray[np.float32]:
            crops, distance = self._raw_stack(edge)
            distances.append(distance)
            return crops

        grey = torch.stack([self._augmented(draw) for _ in range(size)])
        return Stacks(grey, np.array(distances, np.int64))

    def _raw_stack(self, edge: int) -> tuple[NDArray[np.float32], int]:
        rng = self.random
        which = int(rng.choice(len(self.planes), p=self.weights))
        views = self.planes[which]
        view = views[int(rng.integers(len(views)))]
        if len(view) < 3:  # an image that stands alone
            return np.concatenate([self._cut(view[:1], which, edge) for _ in range(3)]), 0
        distances = [d for d in DISTANCES if 2 * d < len(view)]
        weights = np.arange(len(DISTANCES), 0, -1.0)[: len(distances)]
        distance = int(rng.choice(distances, p=weights / weights.sum()))
        first = int(rng.integers(len(view) - 2 * distance))
        chosen = view[first : first + 2 * distance + 1 : distance]
        return self._cut(chosen[:: 1 if rng.random() < 0.5 else -1], which, edge), distance


class StandardSampler:
    """Draws crops of sections or of volumes in standard grey levels: mean 128, standard deviation 32.

    Vector-quantised models see standardised chunks, so contrast and brightness vary little here: by as much as a crop
    differs from the chunk that it would be part of.

    Parameters
    ----------
    sources : sequence of Source
        At least one; crops of volumes come from the isotropic ones.
    crop : tuple of int
        Edges in voxels: (y, x) or (z, y, x).
    seed : int
        Of the generator.
    """

    def __init__(self, sources: Sequence[Source], crop: tuple[int, ...], seed: int) -> None:
        self.crop = crop
        self.random = np.random.default_rng(seed)
        self.volumes: list[NDArray[np.float16]] = []
        self.validation: list[NDArray[np.float32]] = []
        chosen = [s for s in sources if s.isotropic or len(crop) == 2]
        if not chosen:
            raise SpecError("crops of volumes need an isotropic source.", name="sources", value=len(sources))
        self.isotropic = [s.isotropic for s in chosen]
        for source in chosen:
            volume = read_volume(source.path).astype(np.float32)
            axes = None if source.isotropic else (1, 2)  # sections of unrelated images are standardised one by one
            mean, deviation = volume.mean(axes, keepdims=True), volume.std(axes, keepdims=True)
            volume = 128 + (volume - mean) * (32 / np.maximum(deviation, 1e-3))
            self.volumes.append(volume[: len(volume) - source.held_out].astype(np.float16))
            held = volume[len(volume) - source.held_out :]
            if source.held_out:
                self.validation += [held] if len(crop) == 3 else list(held[::4])
        weights = np.array([s.weight for s in chosen], float)
        self.weights = weights / weights.sum()

    def raw_crop(self, edges: tuple[int, ...]) -> NDArray[np.float32]:
        """A random crop of at most `edges` voxels, not augmented."""
        rng = self.random
        which = int(rng.choice(len(self.volumes), p=self.weights))
        volume = self.volumes[which]
        if len(edges) == 2:
            axis = int(rng.integers(3)) if self.isotropic[which] else 0
            volume = np.moveaxis(volume, axis, 0)
            volume = volume[int(rng.integers(len(volume)))]
        else:
            volume = volume.transpose(*rng.permutation(3))
        sizes = [min(n, m) for n, m in zip(volume.shape, edges, strict=True)]
        starts = [int(rng.integers(n - m + 1)) for n, m in zip(volume.shape, sizes, strict=True)]
        return volume[tuple(slice(a, a + m) for a, m in zip(starts, sizes, strict=True))].astype(np.float32)

    def batch(self, size: int) -> Tensor:
        """Augmented crops ``[size, 1, *crop]`` float32."""
        return torch.stack([self._augmented() for _ in range(size)])

    def _augmented(self) -> Tensor:
        rng = self.random
        zoom = float(np.exp(rng.uniform(np.log(0.6), np.log(1.6)))) if rng.random() < 0.4 else 1.0
        x = torch.from_numpy(self.raw_crop(tuple(round(n / zoom) for n in self.crop)))
        if len(self.crop) == 2 and rng.random() < 0.5:
            x = x.T
        x = x.flip([axis for axis in range(x.ndim) if rng.random() < 0.5])[None]
        if x.shape[1:] != self.crop:
            mode = "bilinear" if len(self.crop) == 2 else "trilinear"
            x = F.interpolate(x[None], self.crop, mode=mode, antialias=mode == "bilinear", align_corners=False)[0]
        if rng.random() < 0.6:
            x = (x - 128) * float(np.exp(rng.normal(0, 0.12))) + 128 + float(rng.normal(0, 5))
        if rng.random() < 0.15:
            x = x + torch.from_numpy(rng.normal(0, rng.uniform(2, 12), tuple(x.shape)).astype(np.float32))
        return x.contiguous()


class VolumeSampler:
    """Draws augmented crops of isotropic volumes in their own grey levels; the same seed draws the same crops.

    As `CropSampler` does for sections: any permutation of the axes, flips, scale, contrast, brightness, gamma, noise.

    Parameters
    ----------
    sources : sequence of Source
        Those that are isotropic are used; at least one must be.
    crop : tuple of int
        Edges (z, y, x) in voxels.
    seed : int
        Of the generator.
    """

    def __init__(self, sources: Sequence[Source], crop: tuple[int, ...], seed: int) -> None:
        self.crop = crop
        self.random = np.random.default_rng(seed)
        chosen = [s for s in sources if s.isotropic]
        if not chosen:
            raise SpecError("crops of volumes need an isotropic source.", name="sources", value=len(sources))
        self.volumes: list[NDArray[np.generic]] = []
        self.windows: list[tuple[float, float]] = []
        self.validation: list[NDArray[np.float32]] = []
        for source in chosen:
            volume = read_volume(source.path)
            offset, scale = grey_window(volume)
            self.volumes.append(volume[: len(volume) - source.held_out])
            self.windows.append((offset, scale))
            if source.held_out:
                held = volume[len(volume) - source.held_out :].astype(np.float32)
                self.validation.append(((held - offset) / scale).astype(np.float32))
        weights = np.array([s.weight for s in chosen], float)
        self.weights = weights / weights.sum()

    def raw_crop(self, edges: tuple[int, ...]) -> NDArray[np.float32]:
        """A random crop of at most `edges` voxels of a volume with its axes in any order, not augmented."""
        rng = self.random
        which = int(rng.choice(len(self.volumes), p=self.weights))
        volume = self.volumes[which].transpose(*rng.permutation(3))
        sizes = [min(n, m) for n, m in zip(volume.shape, edges, strict=True)]
        starts = [int(rng.integers(n - m + 1)) for n, m in zip(volume.shape, sizes, strict=True)]
        part = volume[tuple(slice(a, a + m) for a, m in zip(starts, sizes, strict=True))]
        offset, scale = self.windows[which]
        return np.asarray((part.astype(np.float32) - offset) / scale, np.float32)

    def batch(self, size: int) -> Tensor:
        """Augmented crops ``[size, 1, *crop]`` float32, grey levels within 0 to 255."""
        return torch.stack([self._augmented() for _ in range(size)])

    def _augmented(self) -> Tensor:
        rng = self.random
        zoom = float(np.exp(rng.uniform(np.log(0.7), np.log(1.4)))) if rng.random() < 0.4 else 1.0
        x = torch.from_numpy(np.ascontiguousarray(self.raw_crop(tuple(round(n / zoom) for n in self.crop))))
        x = x.flip([axis for axis in range(3) if rng.random() < 0.5])[None]
        if x.shape[1:] != self.crop:
            x = F.interpolate(x[None], self.crop, mode="trilinear", align_corners=False)[0]
        x = _other_grey(x, rng)
        if rng.random() < 0.15:
            x = x + torch.from_numpy(rng.normal(0, rng.uniform(1, 8), tuple(x.shape)).astype(np.float32))
        return x.clamp(0, 255).contiguous()


def another_crop(sampler: CropSampler | VolumeSampler, crop: tuple[int, ...], seed: int) -> CropSampler | VolumeSampler:
    """A sampler of crops of another shape from the same volumes, which are not read again."""
    other = copy.copy(sampler)
    if isinstance(other, VolumeSampler):
        other.crop = crop
    else:
        other.crop = crop[0]
    other.random = np.random.default_rng(seed)
    return other


def grey_window(volume: NDArray[np.generic]) -> tuple[float, float]:
    """Offset and scale that bring a volume to grey levels of 0 to 255: the identity for uint8."""
    if volume.dtype == np.uint8:
        return 0.0, 1.0
    low, high = np.percentile(volume[:: max(1, len(volume) // 8)].astype(np.float64), (0.1, 99.9))
    scale = max(float(high - low), 1e-6) / 224.0
    return float(low) - 16.0 * scale, scale


def _other_grey(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Another contrast, brightness and gamma, as other stains and detectors have."""
    if rng.random() < 0.7:
        mean = float(x.mean())
        contrast = float(np.exp(rng.uniform(np.log(0.5), np.log(2.0))))
        x = (x - mean) * contrast + mean + float(rng.uniform(-25, 25))
    if rng.random() < 0.3:
        x = 255 * (x.clamp(0, 255) / 255) ** float(np.exp(rng.uniform(-0.4, 0.4)))
    return x


def _blurred(x: Tensor, sigma: float) -> Tensor:
    taps = torch.arange(-3, 4, dtype=torch.float32)
    kernel = torch.exp(-(taps**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    x = F.pad(x[:, None], (3, 3, 3, 3), mode="reflect")
    x = F.conv2d(F.conv2d(x, kernel.view(1, 1, 7, 1)), kernel.view(1, 1, 1, 7))
    return x[:, 0]
