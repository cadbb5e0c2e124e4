"""The variational codec's part of encoding: latents to symbols at the level that rate and quality ask for.

    grey levels -> latents -> symbols at a level -> streams -> frame

The level is the finest that fits the ratio; a guard is checked on what the decoder really returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from zarr_emcodec import transform
from zarr_emcodec.codecs import context_coding, context_probe, inference
from zarr_emcodec.codecs.context import context_model_of
from zarr_emcodec.codecs.context_coding import ContextLatents
from zarr_emcodec.codecs.job import LOSSLESS_FROM, ChunkJob
from zarr_emcodec.codecs.latents import ChunkLatents
from zarr_emcodec.codecs.vae import VAESpec
from zarr_emcodec.codecs.vae_decode import ladder_of
from zarr_emcodec.entropy import coder
from zarr_emcodec.quality.target import coarsest_level, finest_level
from zarr_emcodec.runtime import Options

_HEADER_BYTES = 33  # header of a latent frame with a window, and the count of its table
_REFINED_LEVELS = 3  # a chunk whose latents were refined fits a finer level, which they are then refined for
_WORTH_A_LEVEL = 1.035  # frames grow by 3 to 4 % from one level to the next finer one
_MUCH = 1.07  # so much left after the first try, and a level that is said not to fit is worth a second one
_MAYBE = 1.04  # if it is said to miss by no more: so far are estimates off, where few bytes are spent
_WORTH_A_TRY = 1.05  # likewise where networks decide what a chunk costs: a try takes as long as the transforms


@dataclass(eq=False)
class VAEJob(ChunkJob[VAESpec]):
    """A chunk with its latents, and the levels that were tried."""

    latents: ChunkLatents | ContextLatents = field(init=False)
    tried: dict[int, bytes] = field(init=False, default_factory=dict)

    def level_for_ratio(self) -> int:
        """The level to try first: the finest whose estimated size fits the budget; the coarsest where none does."""
        level = self._finest(self.latents.ladder.n_levels // 2)
        if self.spec.mode == "entropy":
            self.latents.refine_estimate(level)
            level = self._finest(level)
        return level

    def next_level(self) -> int:
        """The level to try after those in `tried`, or the one of them to keep.

        The first level came from a sample of the latents; the sizes of real frames correct the estimate.
        """
        last = next(reversed(self.tried))
        self.latents.calibrate(last, len(self.tried[last]) - self._fixed_bytes, self.spec.mode)
        fitting = [level for level, frame in self.tried.items() if len(frame) <= self.budget]
        if not fitting:
            coarser = max(self.tried) + 1
            return min(max(self._finest(coarser - 1), coarser), self.latents.ladder.n_levels - 1)
        best = min(fitting)
        floor = max((level + 1 for level in self.tried if level < best), default=0)
        worth = _WORTH_A_TRY if self._in_haste else _WORTH_A_LEVEL
        if self.budget < worth * len(self.tried[best]) or floor == best:
            return best
        finer = min(max(self._finest(best), floor), best)
        much = len(self.tried) == 1 and self.budget > _MUCH * len(self.tried[best])
        return best - 1 if finer == best and much and self._estimate(best - 1) < _MAYBE * self.budget else finer

    @property
    def _fixed_bytes(self) -> int:
        return _HEADER_BYTES + len(self.mask_section)

    @property
    def _in_haste(self) -> bool:
        """Whether a frame a little smaller than it might be is better than a further try."""
        return isinstance(self.latents, ContextLatents) and not self.spec.effort

    def _finest(self, start: int) -> int:
        """The finest level that fits by the estimate as it stands."""
        levels = self.latents.ladder.n_levels
        found = finest_level(lambda level: self._estimate(level) <= self.budget, levels, min(start, levels - 1))
        return levels - 1 if found is None else found

    def _estimate(self, level: int) -> float:
        """Bytes of the frame."""
        return self._fixed_bytes + self.latents.estimated_bytes(level, self.spec.mode)

    def level_for_guard(self) -> int:
        """A first guess of the level at which `min_psnr` or `max_error` holds, from the error of the quantiser."""
        scale = self.window.scale if self.window else 1.0
        wanted = np.inf
        if self.spec.min_psnr is not None:
            wanted = min(wanted, transform.GREY_PEAK**2 / 10 ** (self.spec.min_psnr / 10))
        if self.spec.max_error is not None:
            # the largest of millions of errors is about five standard deviations
            wanted = min(wanted, (max(self.spec.max_error / scale, 0.5) / 5) ** 2)
        cell_voxels = float(np.prod(self.model.card.stride))
        levels = self.latents.ladder.n_levels
        found = coarsest_level(
            lambda level: self.latents.estimated_squared_error(level) / cell_voxels <= wanted, levels, levels // 2
        )
        return 0 if found is None else found


def encode(jobs: Sequence[VAEJob], options: Options) -> None:
    """Bring jobs of one spec to their frames."""
    _analyse(jobs, options)
    _probe(jobs, options)
    _settle(jobs, options)


def _analyse(jobs: Sequence[VAEJob], options: Options) -> None:
    """Latents of every job; chunks with sections of one shape share their inference calls."""
    model = jobs[0].model
    ndim = model.card.ndim
    groups: dict[tuple[int, ...], list[VAEJob]] = {}
    for job in jobs:
        groups.setdefault(transform.section_shape(job.inner.shape, ndim), []).append(job)
    for extent, group in groups.items():
        sections = [transform.to_grey(transform.sections_of(job.inner, ndim), job.window) for job in group]
        grey = [transform.pad_to_stride(part, model.card.stride) for part in sections]
        latents = inference.analyse(model, grey[0] if len(grey) == 1 else np.concatenate(grey), options)
        ends = np.cumsum([len(g) for g in grey])
        for job, stop, part in zip(group, ends, grey, strict=True):
            mine = latents[stop - len(part) : stop]
            job.latents = (
                ChunkLatents(mine, ladder_of(model))
                if model.card.context is None
                else ContextLatents(mine, context_model_of(model), extent)
            )


def _probe(jobs: Sequence[VAEJob], options: Options) -> None:
    """Try a part of each chunk, where networks decide what it costs."""
    learned = [(job, job.latents) for job in jobs if isinstance(job.latents, ContextLatents)]
    context_probe.probe([latents for _, latents in learned], lambda i: _first_level(learned[i][0]), options)


def _first_level(job: VAEJob) -> int:
    return job.level_for_ratio() if job.spec.ratio is not None else job.level_for_guard()


def _settle(jobs: Sequence[VAEJob], options: Options) -> None:
    """Bring every job to a frame that keeps what was asked."""
    plain = [job for job in jobs if job.spec.ratio is not None]
    levels = {id(job): job.level_for_ratio() for job in plain}
    while plain:
        frames = _code(plain, [levels[id(job)] for job in plain], options)
        for job, frame in zip(plain, frames, strict=True):
            job.tried[levels[id(job)]] = frame
            levels[id(job)] = job.next_level()
        plain = [job for job in plain if levels[id(job)] not in job.tried]
    for job in jobs:
        if job.spec.ratio is not None:
            if job.spec.effort and isinstance(job.latents, ContextLatents):
                levels[id(job)] = _refine(job, job.latents, levels[id(job)], options)
            job.frame = job.tried[levels[id(job)]]
    for job in jobs:
        if job.spec.guarded:
            _settle_guard(job, levels.get(id(job)), options)
        elif job.spec.mode == "entropy" and len(job.frame) > LOSSLESS_FROM * job.native.nbytes:
            job.take_smaller(job.lossless())


def _refine(job: VAEJob, latents: ContextLatents, level: int, options: Options) -> int:
    """Better latents for the level that fits, then for the finer one that fits them; the level of the frame to keep."""
    from zarr_emcodec.codecs.refine import refine

    model = job.model
    sections = transform.to_grey(transform.sections_of(job.inner, model.card.ndim), job.window)
    grey = transform.pad_to_stride(sections, model.card.stride)
    kept: dict[int, bytes] = {}
    for _ in range(_REFINED_LEVELS):
        refine(latents, grey, level, job.spec.effort, options)
        job.tried = {level: _code([job], [level], options)[0]}  # sizes of other latents say nothing of these
        if len(job.tried[level]) <= job.budget:
            kept |= job.tried
        following = job.next_level()
        if following == level:
            break
        level = following
    while not kept:
        level = job.next_level()
        if level not in job.tried:
            job.tried[level] = _code([job], [level], options)[0]
        if len(job.tried[level]) <= job.budget or level == latents.ladder.n_levels - 1:
            kept[level] = job.tried[level]
    job.tried = kept
    return min(kept)


def _settle_guard(job: VAEJob, level: int | None, options: Options) -> None:
    """The coarsest level, not above the ratio's, that keeps the guard; else the chunk losslessly."""

    def good(candidate: int) -> bool:
        if candidate not in job.tried:
            job.tried[candidate] = _code([job], [candidate], options)[0]
        return job.keeps_guard(job.tried[candidate])

    if level is None:
        level = coarsest_level(good, job.latents.ladder.n_levels, job.level_for_guard())
    elif not good(level):
        level = coarsest_level(good, level, min(job.level_for_guard(), level - 1)) if level else None
    job.frame = b"" if level is None else job.tried[level]
    if not job.frame or len(job.frame) > LOSSLESS_FROM * job.native.nbytes:
        job.take_smaller(job.lossless())


def _code(jobs: Sequence[VAEJob], levels: Sequence[int], options: Options) -> list[bytes]:
    """Frames of jobs at given levels; the streams of all go through the entropy coder together."""
    code = _code_plain if isinstance(jobs[0].latents, ChunkLatents) else _code_in_context
    return [
        job.pack_latents((side, *parts), level)
        for job, level, (side, parts) in zip(jobs, levels, code(jobs, levels, options), strict=True)
    ]


def _code_plain(jobs: Sequence[VAEJob], levels: Sequence[int], options: Options) -> list[tuple[bytes, list[bytes]]]:
    """Side information and streams of jobs whose channels have fixed tables."""
    mode = jobs[0].spec.mode
    latents = [job.latents for job in jobs if isinstance(job.latents, ChunkLatents)]
    coded = [mine.streams(level, mode) for mine, level in zip(latents, levels, strict=True)]
    flat = [(stream.symbols, stream.index) for _, streams in coded for stream in streams]
    data = iter(coder.encode_many(flat, latents[0].ladder.tables, mode=mode, backend=options.entropy_backend))
    return [(side, [next(data) for _ in streams]) for side, streams in coded]


def _code_in_context(
    jobs: Sequence[VAEJob], levels: Sequence[int], options: Options
) -> list[tuple[bytes, list[bytes]]]:
    """Side information and parts of jobs with a learned entropy model, those of one grid together."""
    latents = [job.latents for job in jobs if isinstance(job.latents, ContextLatents)]
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, mine in enumerate(latents):
        groups.setdefault(mine.extent, []).append(i)
    out: dict[int, tuple[bytes, list[bytes]]] = {}
    for group in groups.values():
        found = context_coding.encode_sections([latents[i] for i in group], [levels[i] for i in group], options)
        out.update(zip(group, found, strict=True))
    return [out[i] for i in range(len(jobs))]
