"""How a neural field is built, in numbers: its tensors, its weights, its work; and the largest that a budget holds.

Integers in, integers out. No array and no torch: decoders ask the same questions.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

LAYERS = (3, 7)
"""Fewest and most layers, the linear last one included."""
MAX_WIDTH = 4096
_BANDWIDTH = 0.33  # found on EM, in 2-D and 3-D: half or twice as much loses some 0.5 dB


@dataclass(frozen=True)
class Architecture:
    """A multilayer perceptron from coordinates to one value.

    Parameters
    ----------
    axes : int
        Coordinates of a voxel, 1 to 5.
    width : int
        Units of each layer but the last.
    layers : int
        With the first, which takes coordinates, and the last, which gives the value.
    """

    axes: int
    width: int
    layers: int

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the tensors in the order of storage: for each layer its matrix (in, out) and its bias (out,)."""
        sizes = (self.axes, *[self.width] * (self.layers - 1), 1)
        pairs = itertools.pairwise(sizes)
        return tuple(shape for into, out in pairs for shape in ((into, out), (out,)))

    @property
    def counts(self) -> tuple[int, ...]:
        """Weights of each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def n_weights(self) -> int:
        """Weights in all: (L - 2) W^2 + (d + L) W + 1; also, less the biases, the multiplications of a voxel."""
        inner = self.layers - 2
        return inner * self.width**2 + (self.axes + self.layers) * self.width + 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates that decoding one voxel takes."""
        return (self.layers - 2) * self.width**2 + (self.axes + 1) * self.width


def widest(n_weights: float, axes: int, layers: int) -> int:
    """The largest width at which a network of so many layers has at most `n_weights` weights; 0 where none has.

    Examples
    --------
    >>> width = widest(5000, 3, 7)
    >>> width, Architecture(3, width, 7).n_weights, Architecture(3, width + 1, 7).n_weights
    (30, 4801, 5116)
    """
    a, b, c = layers - 2, axes + layers, 1 - n_weights
    if c > 0:
        return 0
    width = int((math.sqrt(b * b - 4 * a * c) - b) / (2 * a))
    while Architecture(axes, width + 1, layers).n_weights <= n_weights:  # the root was rounded
        width += 1
    return min(width, MAX_WIDTH)


def highest_frequency(architecture: Architecture, extent: float) -> float:
    """Up to where the frequencies of a first layer go at the start, in radians for half an axis of so many voxels.

    What so many weights can resolve on each axis, P^(1/d); no axis can have more than its voxels do.
    """
    return min(_BANDWIDTH * math.pow(architecture.n_weights, 1 / architecture.axes), extent * math.pi / 4)
