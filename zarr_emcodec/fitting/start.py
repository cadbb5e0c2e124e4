"""Learnt initial weights of fields: one set in units of the usual spread, cut and scaled for any width below its own.

Arrays of a model in, effective weights out; encoders start from them, decoders add them to what a frame stores.
No torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec.fitting.architecture import Architecture, highest_frequency


@dataclass(frozen=True)
class Start:
    """Initial weights of all fields of so many axes and layers that are no wider.

    Attributes
    ----------
    widest : Architecture
    tensors : tuple of ndarray
        Of the shapes of `widest`, in the units of `unit_scales`. A network of width W has the first W of its units.
    """

    widest: Architecture
    tensors: tuple[NDArray[np.float32], ...]

    def covers(self, architecture: Architecture) -> bool:
        """Whether a network has its start here."""
        widest = self.widest
        return (architecture.axes, architecture.layers) == (widest.axes, widest.layers) and (
            architecture.width <= widest.width
        )

    def weights(self, architecture: Architecture, extents: Sequence[int]) -> list[NDArray[np.float32]]:
        """Effective weights that a network for a box of so many voxels on each axis starts from."""
        scales = unit_scales(architecture, extents)
        parts = zip(self.tensors, architecture.shapes, scales, strict=True)
        return [tensor[tuple(map(slice, shape))] * scale for tensor, shape, scale in parts]


def unit_scales(architecture: Architecture, extents: Sequence[int]) -> list[NDArray[np.float32]]:
    """What the numbers of each tensor of a start are multiplied by (FORMAT.md, "Starts"); float64, rounded once.

    Examples
    --------
    >>> [round(float(scale.max()), 3) for scale in unit_scales(Architecture(2, 24, 3), (64, 64))]
    [8.712, 1.0, 0.5, 1.0, 0.5, 1.0]
    """
    mean = math.prod(extents) ** (1 / len(extents))
    first = highest_frequency(architecture, mean) * np.array([[extent / mean] for extent in extents])
    inner = math.sqrt(6 / architecture.width)
    scales = [first if i == 0 else np.array(1.0 if i % 2 else inner) for i in range(2 * architecture.layers)]
    return [scale.astype(np.float32) for scale in scales]
