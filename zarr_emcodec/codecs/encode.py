"""Chunks to frames: the chain that every learned codec shares, one batch at a time.

    chunk -> background? -> grey levels -> latents -> symbols at a level -> streams -> frame

A chunk that is constant, or that must be exact, leaves the chain early. Rate and quality are settled here: the level is
the finest that fits the ratio, and a guard is checked on what the decoder really returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from zarr_emcodec import transform
from zarr_emcodec._types import Chunk
from zarr_emcodec.codecs import inference, lossless, mask
from zarr_emcodec.codecs.decode import decode_within_slot, ladder_of
from zarr_emcodec.codecs.latents import ChunkLatents, Stream
from zarr_emcodec.codecs.slots import slot
from zarr_emcodec.codecs.vae import VAESpec
from zarr_emcodec.entropy import coder
from zarr_emcodec.errors import SpecError
from zarr_emcodec.frame import Frame, Kind, Limits, pack
from zarr_emcodec.quality import psnr, worst_error
from zarr_emcodec.quality.target import coarsest_level, finest_level
from zarr_emcodec.runtime import Model, Options, current, find_model

DTYPES = ("uint8", "uint16", "int16", "float32")
_LEAST_BUDGET = 64  # bytes: below it a frame's header leaves no room for latents, so no ratio is promised
_HEADER_BYTES = 33  # header of a latent frame with a window, and the count of its table
_GREY_PEAK = transform.GREY_PEAK
_WORTH_A_LEVEL = 1.035  # frames grow by 3 to 4 % from one level to the next finer one
_LOSSLESS_FROM = 0.2  # share of the raw size from which a lossless frame may well be smaller


def encode_many(spec: VAESpec, chunks: Sequence[Chunk], options: Options | None = None) -> list[bytes]:
    """Encode chunks, with one inference over all that need one.

    Parameters
    ----------
    spec : VAESpec
        What is asked for.
    chunks : sequence of ndarray
        0-D to 5-D; uint8, uint16, int16 or float32 of any byte order; any memory layout. Leading axes hold independent
        sections.
    options : Options, optional
        Runtime settings; those of the process when not given.

    Returns
    -------
    list of bytes
        One frame for each chunk.

    Raises
    ------
    SpecError
        If a chunk is of another dtype, empty, larger than ``max_chunk_bytes``, or holds NaN or infinity.
    """
    options = current() if options is None else options
    with slot():
        return _encode(spec, chunks, options)


def _encode(spec: VAESpec, chunks: Sequence[Chunk], options: Options) -> list[bytes]:
    jobs = [_Job(spec, np.asarray(chunk), options) for chunk in chunks]
    waiting = [job for job in jobs if not job.frame]
    if waiting:
        model = find_model(spec.digest)
        stride = (model.card.stride[0], model.card.stride[1])
        for job in waiting:
            if transform.padded_voxels(job.inner.shape, stride) > options.max_chunk_bytes:
                job.frame = job.lossless()  # sections so thin that readers refuse what they grow to
        waiting = [job for job in waiting if not job.frame]
        _analyse(waiting, model, options)
        _settle(waiting, options)
    return [job.frame for job in jobs]


@dataclass(eq=False)
class _Job:
    """One chunk on its way through the chain; done when `frame` is not empty."""

    spec: VAESpec
    chunk: Chunk
    options: Options
    frame: bytes = b""
    native: Chunk = field(init=False)
    background: mask.Background | None = field(init=False, default=None)
    window: transform.Window | None = field(init=False, default=None)
    inner: Chunk = field(init=False)
    model: Model = field(init=False)
    latents: ChunkLatents = field(init=False)
    tried: dict[int, bytes] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        check_chunk(self.chunk, self.options)
        self.native = np.ascontiguousarray(self.chunk, self.chunk.dtype.newbyteorder("="))
        first = self.native.reshape(-1)[:1]
        # compared as bits: 0.0 and -0.0 are two values
        bits = self.native.reshape(-1).view(f"u{self.native.dtype.itemsize}")
        if (bits == bits[0]).all():
            value = first.astype(first.dtype.newbyteorder("<")).tobytes()
            self.frame = self._pack(Kind.CONSTANT, (value,))
            return
        if self.spec.background is not None:
            ratio = self.spec.ratio or 16.0
            self.background = mask.find_background(self.native, self.spec.background_value, ratio=ratio)
        self.inner = self.native if self.background is None else mask.fill_background(self.native, self.background)
        _check_finite(self.inner)  # what is padded with NaN is background by now
        if self.spec.max_error == 0:
            self.frame = self.lossless()
            return
        if self.native.dtype != np.uint8:
            stated = self.spec.window
            self.window = transform.Window.stated(*stated) if stated else transform.Window.of_chunk(self.inner)

    @property
    def budget(self) -> float:
        """Bytes that the frame may have: the tissue's share, so that padding buys nothing; no bound without a ratio."""
        if self.spec.ratio is None:
            return float("inf")
        return max(self.tissue_of(self.native).nbytes / self.spec.ratio, _LEAST_BUDGET)

    def tissue_of(self, chunk: Chunk) -> Chunk:
        """What a promise is about: all voxels but the background's."""
        return chunk if self.background is None else self.background.tissue_of(chunk)

    def _pack(self, kind: Kind, sections: tuple[bytes, ...], setting: int = 0) -> bytes:
        order: Literal["C", "F"] = "C"
        if self.chunk.ndim > 1 and self.chunk.flags.f_contiguous and not self.chunk.flags.c_contiguous:
            order = "F"
        modelled = kind in (Kind.LATENT, Kind.MASKED)
        window = (self.window.offset, self.window.scale) if modelled and self.window else None
        frame = Frame(
            kind=kind,
            shape=self.chunk.shape,
            dtype=self.chunk.dtype,
            order=order,
            window=window,
            model=self.model.card.digest[:8] if modelled else None,
            setting=setting,
            sections=sections,
        )
        return pack(frame, limits=Limits(max_chunk_bytes=self.options.max_chunk_bytes))

    def lossless(self) -> bytes:
        """The chunk as an exact frame."""
        method, data = lossless.encode(self.native)
        return self._pack(Kind.LOSSLESS, (data,), int(method))

    def pack_latents(self, level: int, side: bytes, streams: list[bytes]) -> bytes:
        """The frame of coded latents, with the mask in front where there is one."""
        if self.background is None:
            return self._pack(Kind.LATENT, (side, *streams), level)
        return self._pack(Kind.MASKED, (self._mask_section, side, *streams), level)

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
        if self.budget < _WORTH_A_LEVEL * len(self.tried[best]) or floor == best:
            return best
        return min(max(self._finest(best), floor), best)

    @cached_property
    def _mask_section(self) -> bytes:
        return mask.pack_mask(self.background) if self.background else b""

    @property
    def _fixed_bytes(self) -> int:
        return _HEADER_BYTES + len(self._mask_section)

    def _finest(self, start: int) -> int:
        """The finest level that fits by the estimate as it stands."""
        room = self.budget - self._fixed_bytes
        levels = self.latents.ladder.n_levels
        found = finest_level(
            lambda level: self.latents.estimated_bytes(level, self.spec.mode) <= room, levels, min(start, levels - 1)
        )
        return levels - 1 if found is None else found

    def level_for_guard(self) -> int:
        """A first guess of the level at which `min_psnr` or `max_error` holds, from the error of the quantiser."""
        scale = self.window.scale if self.window else 1.0
        wanted = np.inf
        if self.spec.min_psnr is not None:
            wanted = min(wanted, _GREY_PEAK**2 / 10 ** (self.spec.min_psnr / 10))
        if self.spec.max_error is not None:
            # the largest of millions of errors is about five standard deviations
            wanted = min(wanted, (max(self.spec.max_error / scale, 0.5) / 5) ** 2)
        cell_voxels = float(np.prod(self.model.card.stride))
        levels = self.latents.ladder.n_levels
        found = coarsest_level(
            lambda level: self.latents.estimated_squared_error(level) / cell_voxels <= wanted, levels, levels // 2
        )
        return 0 if found is None else found

    def keeps_guard(self, frame: bytes) -> bool:
        """Whether the decoder's output of a frame reaches what was promised."""
        (back,) = decode_within_slot([frame], self.options, [None])
        decoded = self.tissue_of(back.astype(self.native.dtype, copy=False))
        original = self.tissue_of(self.native)
        spec = self.spec
        if spec.max_error is not None and worst_error(original, decoded) > spec.max_error:
            return False
        peak = _GREY_PEAK * (self.window.scale if self.window else 1.0)
        return spec.min_psnr is None or psnr(original, decoded, peak=peak) >= spec.min_psnr


def check_chunk(chunk: Chunk, options: Options) -> None:
    """Refuse what no frame can hold.

    Raises
    ------
    SpecError
        Naming what was given and what to do instead.
    """
    check_dtype(chunk.dtype)
    if chunk.ndim == 1:
        raise SpecError(
            "chunk is flat: a filter before the codec takes its shape away. Use the codec without filters, on "
            "arrays of 2 to 5 axes.",
            name="shape",
            value=chunk.shape,
        )
    if chunk.ndim > 5:
        raise SpecError(f"chunk has {chunk.ndim} axes, at most 5 are possible.", name="shape", value=chunk.shape)
    if chunk.size == 0:
        raise SpecError(f"chunk of shape {chunk.shape} holds no voxels.", name="shape", value=chunk.shape)
    if chunk.nbytes > options.max_chunk_bytes:
        raise SpecError(
            f"chunk of {chunk.nbytes} bytes exceeds the limit of {options.max_chunk_bytes}. Use smaller chunks, or "
            "options(max_chunk_bytes=...) on every machine that reads them.",
            name="shape",
            value=chunk.shape,
        )


def check_dtype(dtype: np.dtype[np.generic]) -> None:
    """Refuse dtypes that are not grey values, labels above all.

    Raises
    ------
    SpecError
        Naming a codec that fits.
    """
    if dtype.kind in "buiO" and dtype.name not in DTYPES:
        raise SpecError(
            f"dtype {dtype}: labels and masks must stay exact, a lossy codec would invent neurons. Use zstd or blosc "
            f"in Zarr, or crackle or compressed_segmentation in precomputed; grey values go in as {', '.join(DTYPES)}.",
            name="dtype",
            value=str(dtype),
        )
    if dtype.name not in DTYPES:
        raise SpecError(f"dtype {dtype}: convert to one of {', '.join(DTYPES)}.", name="dtype", value=str(dtype))


def _check_finite(chunk: Chunk) -> None:
    if chunk.dtype.kind == "f" and not np.isfinite(chunk).all():
        bad = int(np.size(chunk) - np.count_nonzero(np.isfinite(chunk)))
        raise SpecError(
            f"chunk holds {bad} NaN or infinite voxels. Replace them by a finite background value and pass it as "
            "background=, which keeps them exact.",
            name="chunk",
            value=bad,
        )


def _analyse(jobs: Sequence[_Job], model: Model, options: Options) -> None:
    """Latents of every job; chunks with sections of one shape share their inference calls."""
    groups: dict[tuple[int, ...], list[_Job]] = {}
    for job in jobs:
        job.model = model
        groups.setdefault(transform.section_shape(job.inner.shape), []).append(job)
    ladder = ladder_of(model)
    stride = (model.card.stride[0], model.card.stride[1])
    for group in groups.values():
        grey = [
            transform.pad_to_stride(transform.to_grey(transform.sections_of(job.inner), job.window), stride)
            for job in group
        ]
        latents = inference.analyse(model, grey[0] if len(grey) == 1 else np.concatenate(grey), options)
        ends = np.cumsum([len(g) for g in grey])
        for job, stop, part in zip(group, ends, grey, strict=True):
            job.latents = ChunkLatents(latents[stop - len(part) : stop], ladder)


def _settle(jobs: Sequence[_Job], options: Options) -> None:
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
            job.frame = job.tried[levels[id(job)]]
    for job in jobs:
        if job.spec.guarded:
            _settle_guard(job, levels.get(id(job)), options)
        elif job.spec.mode == "entropy" and len(job.frame) > _LOSSLESS_FROM * job.native.nbytes:
            exact = job.lossless()
            job.frame = exact if len(exact) <= len(job.frame) else job.frame


def _settle_guard(job: _Job, level: int | None, options: Options) -> None:
    """The coarsest level, not above the ratio's, that keeps the guard; else the chunk losslessly."""

    def good(candidate: int) -> bool:
        if candidate not in job.tried:
            job.tried[candidate] = _code([job], [candidate], options)[0]
        return job.keeps_guard(job.tried[candidate])

    if level is None:
        level = coarsest_level(good, job.latents.ladder.n_levels, job.level_for_guard())
    elif not good(level):
        level = coarsest_level(good, level, min(job.level_for_guard(), level - 1)) if level else None
    frame = b"" if level is None else job.tried[level]
    if not frame or len(frame) > _LOSSLESS_FROM * job.native.nbytes:
        exact = job.lossless()
        frame = exact if not frame or len(exact) <= len(frame) else frame
    job.frame = frame


def _code(jobs: Sequence[_Job], levels: Sequence[int], options: Options) -> list[bytes]:
    """Frames of jobs at given levels; the streams of all go through the entropy coder together."""
    coded: list[tuple[bytes, list[Stream]]] = [
        job.latents.streams(level, job.spec.mode) for job, level in zip(jobs, levels, strict=True)
    ]
    flat = [(stream.symbols, stream.index) for _, streams in coded for stream in streams]
    mode = jobs[0].spec.mode
    data = iter(coder.encode_many(flat, jobs[0].latents.ladder.tables, mode=mode, backend=options.entropy_backend))
    return [
        job.pack_latents(level, side, [next(data) for _ in streams])
        for job, level, (side, streams) in zip(jobs, levels, coded, strict=True)
    ]
