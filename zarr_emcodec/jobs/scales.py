"""The levels of a multiscale image: where each lies, how large its voxels are, where the first of them is.

Plain records that every format's metadata are read into, and written from. Nothing here touches a store.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zarr_emcodec.jobs import axes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zarr_emcodec._types import Shape

_NM = {
    "angstrom": 0.1, "å": 0.1,
    "nanometer": 1.0, "nm": 1.0, "micrometer": 1e3, "micron": 1e3, "um": 1e3, "µm": 1e3, "μm": 1e3,
    "\\u00b5m": 1e3, "millimeter": 1e6, "mm": 1e6, "picometer": 1e-3, "pm": 1e-3, "meter": 1e9, "m": 1e9,
}  # fmt: skip


def to_nm(value: float, unit: str | None) -> float | None:
    """A length in nm, or None where the unit is not one of length.

    Examples
    --------
    >>> to_nm(0.008, "micrometer")
    8.0
    """
    factor = nm_per(unit)
    return None if factor is None or not value > 0 else value * factor


def nm_per(unit: str | None) -> float | None:
    """Nanometres in a unit, or None where it is not one of length."""
    return _NM.get((unit or "").strip().lower())


def spatial(n: int) -> int:
    """How many of an array's axes are of space: the last three, or all."""
    return min(3, n)


@dataclass(frozen=True)
class Axis:
    """One axis.

    Parameters
    ----------
    name, kind : str
        Kind is "space", "channel" or "time".
    unit : str or None
    """

    name: str
    kind: str
    unit: str | None = None


@dataclass(frozen=True)
class Level:
    """One resolution.

    Parameters
    ----------
    name : str
        Path inside the group.
    location : str
        What `open_source` opens it by.
    scale : tuple of float
        Extent of a voxel, one value per axis, in the unit of the axis.
    translation : tuple of float
        Centre of the first voxel, likewise.
    """

    name: str
    location: str
    scale: tuple[float, ...]
    translation: tuple[float, ...]


@dataclass(frozen=True)
class Multiscale:
    """Levels of one image, finest first.

    Parameters
    ----------
    axes : tuple of Axis
        In array order.
    levels : tuple of Level
        At least one.
    attributes : mapping
        Of the group, without those that say where its levels lie.
    image : mapping
        What the image's entry says beside that: name, kind of downsampling, and the like.
    """

    axes: tuple[Axis, ...]
    levels: tuple[Level, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    image: Mapping[str, Any] = field(default_factory=dict)

    def factors(self, level: int) -> tuple[float, ...]:
        """Voxels of the finest level per voxel of another, one value per axis."""
        return tuple(s / f for s, f in zip(self.levels[level].scale, self.levels[0].scale, strict=True))

    def voxel_nm(self, level: int) -> tuple[float, ...] | None:
        """Extent of a voxel along the axes of space, or None where a unit is missing."""
        n = spatial(len(self.axes))
        units = [axis.unit for axis in self.axes[-n:]]
        sizes = [to_nm(value, unit) for value, unit in zip(self.levels[level].scale[-n:], units, strict=True)]
        known = tuple(size for size in sizes if size is not None)
        return known if len(known) == n else None

    def offset(self, level: int) -> tuple[float, ...]:
        """Centre of the first voxel along the axes of space, in voxels of the level."""
        n, place = spatial(len(self.axes)), self.levels[level]
        return axes.to_voxels(place.translation[-n:], place.scale[-n:])


def axes_of(names: Sequence[str], unit: str | None) -> tuple[Axis, ...]:
    """Axes by name; those of space get the unit.

    Examples
    --------
    >>> axes_of(("c", "y", "x"), "nanometer")[0]
    Axis(name='c', kind='channel', unit=None)
    """
    kinds = {"t": "time", "c": "channel"}
    return tuple(Axis(n, kinds.get(n, "space"), None if n in kinds else unit) for n in names)


def in_nm(
    names: Sequence[str],
    voxel_nm: Sequence[float] | None,
    levels: Sequence[tuple[str, str, Sequence[float], Sequence[float]]],
    attributes: Mapping[str, Any] | None = None,
) -> Multiscale:
    """Levels that were described in voxels.

    Parameters
    ----------
    names : sequence of str
        Of the array's axes.
    voxel_nm : sequence of float or None
        Of the finest level, along the axes of space; None: lengths stay in voxels of it and have no unit.
    levels : sequence of (name, location, factors, offset)
        Factors and offset along the axes of space; the offset in voxels of the level.
    attributes : mapping, optional
    """
    n = spatial(len(names))
    leading = len(names) - n
    size = tuple(voxel_nm) if voxel_nm is not None else (1.0,) * n
    made = []
    for name, location, factors, offset in levels:
        scale = tuple(float(s * f) for s, f in zip(size, factors, strict=True))
        made.append(Level(name, location, (1.0,) * leading + scale, (0.0,) * leading + axes.to_nm(offset, scale)))
    unit = None if voxel_nm is None else "nanometer"
    return Multiscale(axes_of(names, unit), tuple(made), dict(attributes or {}))


def factors_between(fine: Shape, coarse: Shape) -> tuple[float, ...]:
    """How much coarser a level is, told from shapes alone: whole numbers, since edges are cut or rounded up.

    Examples
    --------
    >>> factors_between((101, 512, 511), (101, 256, 256))
    (1.0, 2.0, 2.0)
    """
    return tuple(float(max(1, round(f / c))) for f, c in zip(fine, coarse, strict=True))


def coarser_level(finer: Level, name: str, location: str, factors: Sequence[int]) -> Level:
    """The level whose voxels are means of `factors` voxels of another; a factor per axis.

    Its first voxel's centre is the mean of the centres that it covers.

    Examples
    --------
    >>> coarser_level(Level("s0", "", (40.0, 8.0, 8.0), (0.0, 0.0, 0.0)), "s1", "", (1, 2, 2))
    Level(name='s1', location='', scale=(40.0, 16.0, 16.0), translation=(0.0, 4.0, 4.0))
    """
    scale = tuple(s * f for s, f in zip(finer.scale, factors, strict=True))
    shift = tuple(t + s * (f - 1) / 2 for t, s, f in zip(finer.translation, finer.scale, factors, strict=True))
    return Level(name, location, scale, shift)
