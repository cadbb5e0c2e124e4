"""Neural fields fitted to chunks: how large a budget's network is, what the fit costs, and the fit itself.

Standardised voxels in, float weights and the steps that they may be rounded to out. Knows no frame, no spec and no
byte of storage. Only `fit` and what it rests on load torch.
"""

from __future__ import annotations

from zarr_emcodec.fitting.architecture import LAYERS, MAX_WIDTH, Architecture, widest
from zarr_emcodec.fitting.effort import DEFAULT_EFFORT, STEPS, Cost, fit_macs, rows_per_step
from zarr_emcodec.fitting.start import Start
from zarr_emcodec.fitting.watch import Watcher, watching

__all__ = [
    "DEFAULT_EFFORT",
    "LAYERS",
    "MAX_WIDTH",
    "STEPS",
    "Architecture",
    "Cost",
    "Start",
    "Watcher",
    "fit_macs",
    "rows_per_step",
    "watching",
    "widest",
]
