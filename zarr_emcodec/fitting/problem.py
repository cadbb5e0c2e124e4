"""What a fit descends on: voxels of chunks of one shape in, losses of fields at random places of them out.

Fits and trainings of what fits start from share it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zarr_emcodec.fitting import siren


class Problem:
    """Chunks of one shape, looked at at the same random voxels.

    Parameters
    ----------
    targets : ndarray, shape (B, \\*extents), float32
        Voxels, standardised.
    coords : sequence of ndarray, float32
        Coordinates along each axis of `extents`.
    rows : int
        Voxels of a step.
    seed : int
        Of the voxels of each step.
    device : str

    Attributes
    ----------
    batch, n_voxels : int
        Chunks; voxels of each.
    random : torch.Generator
        On the CPU: one sequence for every device.
    """

    def __init__(
        self,
        targets: NDArray[np.float32],
        coords: Sequence[NDArray[np.float32]],
        rows: int,
        seed: int,
        device: str = "cpu",
    ) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.batch, self.rows = len(targets), rows
        self.targets = torch.from_numpy(targets.reshape(self.batch, -1)).to(device)  # (B, voxels)
        self.n_voxels = self.targets.shape[1]
        self.axes = [torch.from_numpy(axis).to(device) for axis in coords]

    def sample(self, rows: int) -> tuple[Tensor, Tensor]:
        """Coordinates (rows, axes) and values (B, rows) of random voxels."""
        place = torch.randint(self.n_voxels, (rows,), generator=self.random).to(self.targets.device)
        values = self.targets[:, place]
        coords = []
        for axis in reversed(self.axes):
            coords.append(axis[place % len(axis)])
            place = place // len(axis)
        return torch.stack(coords[::-1], 1), values

    def losses(self, weights: Sequence[Tensor]) -> Tensor:
        """Mean squared errors (B,) of effective weights on the voxels of one step."""
        coords, values = self.sample(self.rows)
        return (siren.forward(weights, coords) - values).square().sum(1) / self.rows
