"""The latents backbone's part of encoding: latents of a chunk, fitted to its decoder, at the level that the ratio asks.

    grey levels -> latents, the grid that suits -> level -> fit -> level -> symbols -> frame

The shared encoder gives a start; the fit moves latents to what the decoder makes most of. Without steps no torch is
needed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec import transform
from zarr_emcodec._types import Symbols
from zarr_emcodec.codecs import context_steps
from zarr_emcodec.codecs.inr import INRSpec
from zarr_emcodec.codecs.job import LOSSLESS_FROM, ChunkJob
from zarr_emcodec.codecs.latents import group_starts
from zarr_emcodec.codecs.latents_coding import encode_part, n_parts, pack_side
from zarr_emcodec.codecs.latents_context import LatentsModel, Step, Walk, latents_model_of
from zarr_emcodec.codecs.latents_decode import PARTS, analyse, synthesise
from zarr_emcodec.codecs.quantise import HALF_WIDTH, PRICE
from zarr_emcodec.errors import MissingExtraError
from zarr_emcodec.fitting.watch import present
from zarr_emcodec.quality.target import coarsest_level, finest_level
from zarr_emcodec.runtime import Options

Job = ChunkJob[INRSpec]
ROUNDS = (0, 4, 8, 12, 16, 24, 32, 48, 64, 96)
"""Rounds of the fit by effort, 0 to 9; each costs about three decodings."""
_FIRST = 0.6  # of the rounds, at the level that the start has; the rest at that of what they made
_TIME_SHARE = 0.9  # of the time limit: the rest is for coding
_STREAM_BYTES = 6  # of a part: head and state, and half a percent of what it holds for the states of its lanes
_LANES = 1.004
_LEAST_STREAM = 8  # bytes of a stream that holds next to nothing
_THIN = 4  # planes of a chunk from which on it may be one volume
_DEAFEST = 1 << 10  # times the threshold of zero, at most


@dataclass(eq=False)
class _Fit:
    """A chunk's latents on one grid.

    Attributes
    ----------
    grey : ndarray, shape (n, \\*padded extent), float32
        Its sections or volumes in grey levels.
    latents : ndarray, shape (n, C, \\*grid), float32
        In grey levels of the transform.
    sizes : dict
        Bytes of a frame by level, as far as they are known, of the latents as they are.
    """

    job: Job
    model: LatentsModel
    options: Options
    grey: NDArray[np.float32] = field(init=False)
    latents: NDArray[np.float32] = field(init=False)
    sizes: dict[int, float] = field(init=False, default_factory=dict)
    fixed: int = field(init=False)
    round_s: float = 0.0  # at least, of those so far

    def __post_init__(self) -> None:
        card, job = self.model.card, self.job
        sections = transform.to_grey(transform.sections_of(job.inner, card.ndim), job.window)
        self.grey = transform.pad_to_stride(sections, card.stride)
        self.latents = analyse(self.model, self.grey, self.options)
        self.fixed = fixed_bytes(job, card.ndim)

    def quantise(self, level: int, targets: NDArray[np.float32], deaf: float = 1.0) -> tuple[Symbols, float]:
        """Symbols of targets in steps, best for rate and distortion under the tables that they lead to; their bits.

        `deaf` times the usual threshold is what a symbol needs so as not to be zero.
        """
        model = self.model
        first, further = model.costs.thresholds
        bits = 0.0

        def decide(step: Step, table: NDArray[np.uint8]) -> Symbols:
            nonlocal bits
            mine = np.ascontiguousarray(targets[(slice(None), step.channels, *step.cells)], np.float32).copy()
            symbols = context_steps.quantise(mine, np.zeros_like(mine), table, first * np.float32(deaf), further)
            column = np.clip(symbols, -HALF_WIDTH, HALF_WIDTH) + HALF_WIDTH
            bits += float(model.costs.bits[table, column].sum(dtype=np.float64))
            return symbols

        symbols = model.walk(level, Walk(model.card, len(targets), targets.shape[2:]), decide)
        return symbols, bits

    def in_steps(self, level: int) -> NDArray[np.float32]:
        """The latents in steps of a level."""
        gain = self.model.gain[level].reshape(1, -1, *[1] * self.model.card.ndim)
        steps: NDArray[np.float32] = self.latents / gain
        return steps

    def estimated_bytes(self, level: int) -> float:
        """About the size of the frame at a level."""
        if level not in self.sizes:
            _, bits = self.quantise(level, self.in_steps(level))
            size = _LANES * bits / 8
            parts = n_parts(len(self.latents), size)
            self.sizes[level] = self.fixed + size + _STREAM_BYTES * parts
        return self.sizes[level]

    def level_for(self, budget: float, start: int) -> int:
        """The finest level that fits by the estimate; the coarsest where none does."""
        levels = self.model.card.levels
        found = finest_level(lambda level: self.estimated_bytes(level) <= budget, levels, start)
        return levels - 1 if found is None else found

    def squared_error(self, level: int) -> float:
        """Of the chunk as it would be decoded at a level."""
        symbols, _ = self.quantise(level, self.in_steps(level))
        decoded = synthesise(self.model, symbols, level, self.options)
        inside = (slice(None), *(slice(n) for n in transform.section_shape(self.job.inner.shape, self.model.card.ndim)))
        return float(np.square(decoded[inside] - self.grey[inside], dtype=np.float64).sum())

    def improve(self, level: int, rounds: int, of_all: int, deadline: float | None) -> None:
        """Move the latents to what the decoder makes most of at a level, by some rounds of all that the chunk gets."""
        if not rounds:
            return
        try:
            from zarr_emcodec.fitting.latents import Task, fit_latents
        except ImportError as error:
            raise MissingExtraError("fitting latents (effort= above 0)", extra="torch") from error
        began = time.perf_counter()
        if deadline is not None and began + self.round_s > deadline:
            for watcher in present():
                watcher(self.job.inner.size * rounds / of_all)
            return
        card, model = self.model.card, self.model.model
        part = PARTS[card.ndim][1]
        gain = self.model.gain[level]
        task = Task(
            decoder=model.file(f"{part}.onnx"),
            grey=self.grey,
            extent=transform.section_shape(self.job.inner.shape, card.ndim),
            stride=card.stride,
            halo=card.halo,
            level=level,
            gain=gain,
            price=PRICE * float(np.median(gain)) ** 2,
            macs=float(model.card.mac_per_voxel.get(f"decode_{card.ndim}d", 0)),
            share=rounds / of_all,
        )
        self.latents = fit_latents(
            task,
            self.latents,
            lambda targets: self.quantise(level, targets),
            rounds,
            deadline=deadline,
            threads=self.options.threads,
        )
        self.round_s = (time.perf_counter() - began) / (rounds + 1)
        self.sizes = {}

    def frame(self, level: int, deaf: float = 1.0) -> bytes:
        """The chunk at a level."""
        symbols, bits = self.quantise(level, self.in_steps(level), deaf)
        n = len(symbols)
        starts = group_starts(n, n_parts(n, _LANES * bits / 8))
        parts = [
            encode_part(self.model, level, symbols[start:stop], self.options)
            for start, stop in zip(starts, [*starts[1:], n], strict=True)
        ]
        data = self.job.pack_latents((pack_side(self.model.card.ndim), *parts), level)
        self.sizes[level] = len(data)
        return data


def encode(jobs: Sequence[Job], options: Options) -> None:
    """Bring jobs of one spec to their frames.

    Raises
    ------
    MissingExtraError
        If torch is not installed and there is something to fit.
    """
    for job in jobs:
        _encode(job, options)


def fixed_bytes(job: Job, ndim: int) -> int:
    """What a chunk's frame has around its streams."""
    return len(job.pack_latents((pack_side(ndim), b""), 0))


def _encode(job: Job, options: Options) -> None:
    spec = job.spec
    began = time.perf_counter()
    deadline = None if spec.time_limit is None else began + _TIME_SHARE * spec.time_limit
    budget = max(job.budget, fixed_bytes(job, 2) + _LEAST_STREAM)  # little tissue in a large chunk
    found = _best_grid(job, budget, options)
    if found is None:
        job.frame = job.lossless()
        return
    fit, level = found
    rounds = ROUNDS[spec.effort]
    first = math.ceil(_FIRST * rounds)
    halfway = None if deadline is None else began + _FIRST * (deadline - began)
    fit.improve(level, first, rounds, halfway)
    level = fit.level_for(budget, level)
    fit.improve(level, rounds - first, rounds, deadline)
    level = fit.level_for(budget, level)
    job.frame, level = _land(fit, level, budget)
    if spec.guarded:
        _settle_guard(job, fit, level)
    if not job.frame or len(job.frame) > LOSSLESS_FROM * job.native.nbytes:
        job.take_smaller(job.lossless())


def _best_grid(job: Job, budget: float, options: Options) -> tuple[_Fit, int] | None:
    """The grid that gives the smaller error within the budget, sections or volumes, and its level.

    None where sections are so thin that readers refuse what they grow to.
    """
    assert job.model.card.inr is not None
    shape = job.inner.shape
    grids = [
        grid
        for grid in job.model.card.inr.grids
        if transform.padded_voxels(shape, grid.stride) <= options.max_chunk_bytes
    ]
    if len(shape) < 3 or shape[-3] < _THIN:
        grids = [grid for grid in grids if grid.ndim == 2] or grids
    found = []
    for grid in grids:
        fit = _Fit(job, latents_model_of(job.model, grid.ndim), options)
        found.append((fit, fit.level_for(budget, grid.levels // 2)))
    if len(found) > 1:
        return min(found, key=lambda pair: pair[0].squared_error(pair[1]))
    return found[0] if found else None


def _land(fit: _Fit, level: int, budget: float) -> tuple[bytes, int]:
    """The finest frame that fits, near a level; where none does, the coarsest with fewer symbols."""
    frames = {level: fit.frame(level)}

    def fits(candidate: int) -> bool:
        if candidate not in frames:
            frames[candidate] = fit.frame(candidate)
        return len(frames[candidate]) <= budget

    found = finest_level(fits, fit.model.card.levels, level)
    if found is not None:
        return frames[found], found
    last = fit.model.card.levels - 1
    deaf = 1.0
    data = frames[last]
    while len(data) > budget and deaf < _DEAFEST:
        deaf *= 1.25
        data = fit.frame(last, deaf)
    return data, last


def _settle_guard(job: Job, fit: _Fit, level: int) -> None:
    """The coarsest level, not above the ratio's, that keeps the guard; no frame where none does."""
    frames = {level: job.frame}

    def good(candidate: int) -> bool:
        if candidate not in frames:
            frames[candidate] = fit.frame(candidate)
        return job.keeps_guard(frames[candidate])

    kept: int | None = level
    if not good(level):
        kept = coarsest_level(good, level, level - 1) if level else None
    job.frame = b"" if kept is None else frames[kept]
