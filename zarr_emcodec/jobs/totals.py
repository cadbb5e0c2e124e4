"""What the done blocks of a job add up to: bytes, seconds, and the tally of frames and loss.

Ledger records in; sums and extremes out, in memory that does not follow their number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zarr_emcodec.jobs.compare import peak_of
from zarr_emcodec.jobs.measure import BlockMeasure, decibels
from zarr_emcodec.jobs.tally import Tally


@dataclass
class Totals:
    """Sums over done blocks.

    Attributes
    ----------
    n_blocks, n_empty : int
        Done; of these, not stored, since they hold nothing but fill value.
    raw_bytes, stored_bytes : int
        Voxels x itemsize; bytes of the stored objects.
    n_voxels : int
    seconds : Counter
        Of all workers together: "read", "write" (encoding included), "check" (decoding and comparing).
    low, high : float
        Extremes of what was to be stored.
    tally : Tally
        Of what is stored: frames, loss, worst chunks.
    """

    n_blocks: int = 0
    n_empty: int = 0
    raw_bytes: int = 0
    stored_bytes: int = 0
    n_voxels: int = 0
    seconds: Counter[str] = field(default_factory=Counter)
    low: float = math.inf
    high: float = -math.inf
    tally: Tally = field(default_factory=Tally)

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in the record of a done block."""
        self.n_blocks += 1
        self.raw_bytes += record["raw_bytes"]
        self.stored_bytes += record["stored_bytes"]
        self.n_voxels += record["n_voxels"]
        self.seconds.update(record["seconds"])
        low, high = record["range"]
        if low is not None and high is not None:  # a constant chunk of floats may be infinite
            self.low, self.high = min(self.low, low), max(self.high, high)
        frames = record["frames"]
        self.tally.kinds.update(frames["kinds"])
        self.tally.digests.update(frames["digests"])
        self.tally.settings.update({int(level): n for level, n in frames["settings"].items()})
        self.tally.frame_bytes += frames["frame_bytes"]
        if record["measure"] is None:
            self.n_empty += 1
        else:
            self.tally.add(BlockMeasure.from_dict(record["measure"]))

    @property
    def ratio(self) -> float | None:
        """Raw over stored bytes; None where nothing is stored."""
        return self.raw_bytes / self.stored_bytes if self.stored_bytes else None

    def peak(self, dtype: str, window: Any) -> float:
        """What `psnr_db` refers to: as of every other report, see `peak_of`."""
        extremes = (self.low, self.high) if self.low <= self.high else (0.0, 0.0)
        return peak_of(np.dtype(dtype), window, extremes)

    def psnr_db(self, peak: float) -> float | None:
        """Over all voxels, those of empty blocks included; infinite where nothing differs, None where none are done."""
        return decibels(self.tally.squared / self.n_voxels, peak) if self.n_voxels else None

    def ssim(self) -> float | None:
        """Mean over the stored sections looked at; None where there are none."""
        return None if math.isnan(self.tally.ssim) else self.tally.ssim
