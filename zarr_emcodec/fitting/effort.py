"""What a fit will take: steps by effort, voxels of a step, multiply-accumulates.

Numbers in, numbers out.
"""

from __future__ import annotations

from dataclasses import dataclass

from zarr_emcodec.fitting.architecture import Architecture

STEPS = (30, 100, 200, 400, 800, 1500, 3000, 6000, 12000, 25000)
"""Steps of the optimiser by effort, 0 to 9."""
DEFAULT_EFFORT = 4
_ROWS = (1024, 8192)  # voxels of a step: enough for a steady gradient; more only cost time
_VOXELS_PER_ROW = 32
_PASSES = 3  # forwards, and backwards twice: to the signals and to the weights


@dataclass(frozen=True)
class Cost:
    """What fits of one batch will take.

    Attributes
    ----------
    n_chunks, steps, rows : int
        Chunks at once; steps, each on so many voxels of every chunk.
    macs : float
        Multiply-accumulates of all of it.
    seconds : float
        From the time that the first steps took.
    """

    n_chunks: int
    steps: int
    rows: int
    macs: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"fitting {self.n_chunks} chunk{'s' * (self.n_chunks > 1)}: {self.steps} steps of {self.rows} voxels, "
            f"{self.macs / 1e12:.3g} TMAC, about {self.seconds:.0f} s; as much for each that is like it"
        )


def rows_per_step(n_voxels: int) -> int:
    """Voxels of a chunk that one step looks at."""
    low, high = _ROWS
    return min(n_voxels, max(low, min(high, n_voxels // _VOXELS_PER_ROW)))


def fit_macs(architecture: Architecture, n_chunks: int, steps: int, rows: int) -> float:
    """Multiply-accumulates of a fit."""
    return float(_PASSES) * architecture.macs * n_chunks * steps * rows
