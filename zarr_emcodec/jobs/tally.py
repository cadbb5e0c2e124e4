"""What many blocks add up to: figures, histograms, the worst chunks, and everything that is wrong.

Measures and censuses in, one at a time, from a verification or from a ledger; plain data out. Memory does not grow with
the number of blocks.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from zarr_emcodec.jobs.measure import ERROR_EDGES, BlockMeasure, decibels
from zarr_emcodec.jobs.report import Record, plain

if TYPE_CHECKING:
    from zarr_emcodec._types import Shape
    from zarr_emcodec.jobs.census import Census

MAX_FINDINGS = 10_000
"""That are kept in words; all are counted."""
N_WORST = 12
"""Chunks that are remembered for pictures."""
Kind = Literal["frame", "missing", "decode", "guard", "source"]


@dataclass(frozen=True, kw_only=True)
class Finding(Record):
    """One thing that is wrong.

    Parameters
    ----------
    kind : {"frame", "missing", "decode", "guard", "source"}
        Stored bytes are damaged or cannot be read; there are none, where there should be; a chunk cannot be decoded;
        it breaks its promise; the source cannot be read there, so that nothing is known.
    chunk : tuple of int
        Its index.
    reason : str
    """

    kind: Kind
    chunk: Shape
    reason: str


@dataclass
class Tally:
    """Sums over blocks.

    Attributes
    ----------
    n_chunks : int
        Chunks compared.
    n_voxels, squared, worst, peak
        As in `BlockMeasure`; the peak is that of the first block.
    chunk_db : Counter
        Whole decibels, as text, to chunks.
    errors : list of int
        Voxels by absolute difference; the bins end at `ERROR_EDGES` and at infinity.
    kinds, digests, settings : Counter
        As in `Census`.
    frame_bytes : int
    worst_chunks : list of (chunk index, PSNR, largest difference)
        Lowest PSNR first.
    findings : list of Finding
        The first `MAX_FINDINGS`.
    n_findings : int
        All of them.
    """

    n_chunks: int = 0
    n_voxels: int = 0
    squared: float = 0.0
    worst: float = 0.0
    peak: float | None = None
    chunk_db: Counter[str] = field(default_factory=Counter)
    errors: list[int] = field(default_factory=lambda: [0] * (len(ERROR_EDGES) + 1))
    kinds: Counter[str] = field(default_factory=Counter)
    digests: Counter[str] = field(default_factory=Counter)
    settings: Counter[int] = field(default_factory=Counter)
    frame_bytes: int = 0
    worst_chunks: list[tuple[Shape, float, float]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    n_findings: int = 0
    _ssim_sum: float = 0.0
    _ssim_weight: int = 0

    @property
    def psnr_db(self) -> float:
        """Over all voxels compared; infinite where nothing differs, nan where nothing was compared."""
        if not self.n_voxels or self.peak is None:
            return math.nan
        return decibels(self.squared / self.n_voxels, self.peak)

    @property
    def ssim(self) -> float:
        """Mean over the sections looked at; nan where there are none."""
        return self._ssim_sum / self._ssim_weight if self._ssim_weight else math.nan

    @property
    def lowest_chunk_db(self) -> float:
        """PSNR of the worst chunk; nan where nothing was compared."""
        return self.worst_chunks[0][1] if self.worst_chunks else math.nan

    @property
    def sorted_db(self) -> dict[str, int]:
        """Chunks by whole decibel, lowest first."""
        return dict(sorted(self.chunk_db.items(), key=lambda item: float(item[0])))

    def add(self, block: BlockMeasure) -> None:
        """Take in what was measured of a block."""
        self.n_chunks += sum(block.chunk_db.values())
        self.n_voxels += block.n_voxels
        self.squared += block.squared
        self.worst = max(self.worst, block.worst)
        self.peak = block.peak if self.peak is None else self.peak
        self.chunk_db.update(block.chunk_db)
        self.errors = [ours + theirs for ours, theirs in zip(self.errors, block.errors, strict=True)]
        self._ssim_sum += block.ssim_sum
        self._ssim_weight += block.ssim_weight
        self.worst_chunks = sorted([*self.worst_chunks, *block.worst_chunks], key=lambda chunk: chunk[1])[:N_WORST]
        for index, reason in block.failures:
            self.find("guard", index, reason)

    def add_census(self, census: Census) -> None:
        """Take in what the frames of some chunks say of themselves."""
        self.kinds.update(census.kinds)
        self.digests.update(census.digests)
        self.settings.update(census.settings)
        self.frame_bytes += census.frame_bytes
        for index, reason in census.damaged:
            self.find("frame", index, reason)

    def find(self, kind: Kind, chunk: Shape, reason: str) -> None:
        """Note something that is wrong."""
        self.n_findings += 1
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(kind=kind, chunk=chunk, reason=reason))

    def to_dict(self) -> dict[str, Any]:
        """Figures and histograms in JSON's own types; what is not finite becomes None."""
        figures = {
            "chunks_compared": self.n_chunks,
            "psnr_db": self.psnr_db,
            "lowest_chunk_db": self.lowest_chunk_db,
            "ssim": self.ssim,
            "worst_error": self.worst if self.n_voxels else None,
            "peak": self.peak,
            "frames": dict(sorted(self.kinds.items())),
            "frame_bytes": self.frame_bytes,
            "models": dict(sorted(self.digests.items())),
            "levels": dict(sorted(self.settings.items())),
            "chunk_db": self.sorted_db,
            "errors": self.errors,
            "worst_chunks": self.worst_chunks,
            "n_findings": self.n_findings,
            "findings": self.findings,
        }
        return {name: plain(value) for name, value in figures.items()}
