"""A field at work: coordinates to grey levels, as many at a time as the model's graph takes.

Positions in voxels in, grey levels out. Every call of the graph has the same number of rows, so that no value depends
on what is computed beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec._types import Shape
from zarr_emcodec.codecs.siren_frames import Field, coordinate_axes
from zarr_emcodec.runtime import Model, Options

Positions = Sequence[NDArray[np.floating] | NDArray[np.integer]]
"""One array (n,) for each axis of a chunk, in voxels from the centre of the first."""


class FieldNetwork:
    """One chunk's network, for any number of calls.

    Parameters
    ----------
    model : Model
        That says how it computes.
    field : Field
        Its weights.
    shape : tuple of int, voxels
        Of the box that it stands for.

    Attributes
    ----------
    field : Field
    """

    def __init__(self, model: Model, field: Field, shape: Shape) -> None:
        assert model.card.inr is not None
        self._model, self.field, self._shape = model, field, shape
        self._axes = coordinate_axes(shape)
        self._rows = model.card.inr.rows
        self._part: Any = model.card.inr.part(field.architecture.layers)
        names = (f"{kind}{i}" for i in range(1, field.architecture.layers + 1) for kind in "wb")
        self._inputs = dict(zip(names, field.weights, strict=True))

    def grey(self, n: int, positions: Callable[[int, int], Positions], options: Options) -> NDArray[np.float32]:
        """Grey levels (n,) at places.

        Parameters
        ----------
        n : int
            How many places there are.
        positions : callable
            Gives those from a first to before a last.
        options : Options
        """
        out = np.empty(n, np.float32)
        for start in range(0, n, self._rows):
            stop = min(start + self._rows, n)
            out[start:stop] = self._call(positions(start, stop), options)[: stop - start]
        return self.field.contrast.to_grey(out)

    def _call(self, positions: Positions, options: Options) -> NDArray[np.float32]:
        coords = np.zeros((self._rows, len(self._axes)), np.float32)
        for column, axis in zip(coords.T, self._axes, strict=True):
            column[: len(positions[axis])] = unit_coordinates(positions[axis], self._shape[axis])
        return self._model.run(self._part, {"coords": coords, **self._inputs}, options)[:, 0]


def unit_coordinates(positions: NDArray[np.floating] | NDArray[np.integer], extent: int) -> NDArray[np.float32]:
    """Coordinates of places on an axis of so many voxels: its ends are -1 and 1 (FORMAT.md, "Coordinates").

    Examples
    --------
    >>> unit_coordinates(np.arange(4), 4).tolist()
    [-0.75, -0.25, 0.25, 0.75]
    """
    # in float64 and then rounded once: the same bits for an index and for the same place given as a number
    return ((2 * positions.astype(np.float64) + 1) / extent - 1).astype(np.float32)
