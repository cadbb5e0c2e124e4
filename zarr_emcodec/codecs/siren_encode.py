"""The sinusoidal backbone's part of encoding: a network of the budget's size, fitted, rounded and coded.

    grey levels -> contrast, architecture -> fit -> steps, symbols -> frame

The width follows from the bytes that the ratio leaves and the bits that a weight is to have. The steps then use what
the weights' entropy left over, or give up what it took too much.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec import transform
from zarr_emcodec._types import Shape
from zarr_emcodec.codecs.inr import INRSpec
from zarr_emcodec.codecs.job import LEAST_BUDGET, LOSSLESS_FROM, ChunkJob
from zarr_emcodec.codecs.siren_field import unit_coordinates
from zarr_emcodec.codecs.siren_frames import (
    PRIOR,
    WeightCoder,
    coordinate_axes,
    most_weights,
    side_bytes,
    too_small,
    weight_coder_of,
)
from zarr_emcodec.codecs.siren_prior import decode_prior, encode_prior, grey_of
from zarr_emcodec.codecs.tokens import Contrast
from zarr_emcodec.errors import MissingExtraError
from zarr_emcodec.fitting import LAYERS, MAX_WIDTH, STEPS, Architecture, rows_per_step, widest
from zarr_emcodec.runtime import Options

Job = ChunkJob[INRSpec]
_LEAST_WIDTH = 4  # units: narrower networks give no more than a gradient
_STREAM_BYTES = 5  # of a stream's head and state
_FILLED = 0.985  # of the budget, while fitting: the spread of weights still changes a little
_USED = 0.955  # of the budget, at least: at most 5 % above the ratio
_BATCH_NUMBERS = 1 << 25  # signals of one step, of all layers and chunks at once
_TIME_SHARE = 0.94  # of the time limit: the rest is for coding
_DEPTHS = (4, 3)  # layers, by choice: at equal bytes 4 led 3, 5 and 7 by 0.2 to 1 dB after 400 steps
_NARROW = 12  # units: a network that would have fewer has fewer layers instead
_LANES = 1.006  # what a stream takes for the states of its lanes
_NOTCHES_PER_OCTAVE = 12  # one more takes 1 to 2 % more bytes
_TRIES, _LEAP, _FAR = 16, 24, 600
_FINER = 4  # notches beyond those that the weights were fitted for
_UNFELT = 1e-12  # sensitivity of a tensor that hardly counts


@dataclass(eq=False)
class _Plan:
    """A chunk on its way to a fitted network.

    Attributes
    ----------
    header, room : float, bytes
        Of the frame around its sections; for the sections.
    image : ndarray, float32
        Its voxels as the network is to give them, without axes that are no coordinates.
    prior : bytes
        The frame that the network corrects, if there is one; `room` is what it leaves.
    """

    job: Job
    architecture: Architecture
    contrast: Contrast
    header: int
    room: float
    image: NDArray[np.float32]
    prior: bytes = b""

    @property
    def setting(self) -> int:
        """Of the frame."""
        return self.architecture.layers | (PRIOR if self.prior else 0)

    @property
    def alike(self) -> tuple[object, ...]:
        """What chunks that are fitted together have in common."""
        return self.image.shape, self.architecture


def encode(jobs: Sequence[Job], options: Options) -> None:
    """Bring jobs of one spec to their frames.

    Raises
    ------
    SpecError
        If a chunk's budget holds no network.
    MissingExtraError
        If torch is not installed.
    """
    # what is refused is refused before any fit
    plans = [plan for job in jobs if (plan := _plan(job, options)) is not None]
    for batch in _batches(plans):
        _fit(batch, options)
    for plan in plans:
        _check(plan.job)


def _plan(job: Job, options: Options) -> _Plan | None:
    """The network that a chunk's budget holds; None where the chunk has become a lossless frame instead."""
    spec, shape = job.spec, job.inner.shape
    assert spec.ratio is not None
    axes = coordinate_axes(shape)
    layers = LAYERS[0] if spec.layers is None else spec.layers
    smallest = Architecture(len(axes), _LEAST_WIDTH, layers)
    header = len(job.pack_latents((bytes(1), b""), layers)) - 1  # the length of side information is one byte
    alone = least = header + side_bytes(smallest) + _STREAM_BYTES + math.ceil(smallest.n_weights * spec.bits / 8)
    if spec.prior:
        header += 2  # the prior makes side information long, and its length three bytes
        least = math.ceil((least + 2) / (1 - spec.prior_share))
    budget = job.budget
    if budget < least:
        exact = job.lossless()
        if len(exact) <= max(budget, LEAST_BUDGET):
            job.frame = exact
            return None
        if job.native.nbytes / spec.ratio < least:
            raise too_small(job.native.size, spec.ratio, least, job.native.dtype.itemsize)
        budget = least  # little tissue in a large chunk: still far below the chunk's own budget
    grey = transform.to_grey(job.inner, job.window)
    prior = encode_prior(job.inner, spec, budget, options) if spec.prior else b""
    if len(prior) > budget - alone - 2:
        prior = b""  # little tissue in a large chunk again: the model has no coarser level
    if prior:
        before = decode_prior(prior, shape, job.native.dtype, (0, shape[0]), options)
        grey -= grey_of(before, (job.window.offset, job.window.scale) if job.window else None).reshape(shape)
    room = budget - header - len(prior)
    contrast = Contrast.of_tissue(grey)
    image = contrast.to_image(grey).reshape([shape[i] for i in axes])
    return _Plan(job, _architecture(spec, room, job.inner.shape), contrast, header, room, image, prior)


def _architecture(spec: INRSpec, room: float, shape: Shape) -> Architecture:
    """The widest network whose weights have room at the bits that the spec wants for each."""
    axes = len(coordinate_axes(shape))
    for layers in (spec.layers,) if spec.layers else _DEPTHS:
        stream = room - side_bytes(Architecture(axes, MAX_WIDTH, layers)) - _STREAM_BYTES
        width = widest(min(stream * 8 / (spec.bits * _LANES), most_weights(math.prod(shape))), axes, layers)
        if width >= _NARROW:
            break
    return Architecture(axes, max(width, _LEAST_WIDTH), layers)


def _batches(plans: Sequence[_Plan]) -> Iterator[list[_Plan]]:
    """Plans that may be fitted together, as many at once as memory allows."""
    groups: dict[tuple[object, ...], list[_Plan]] = {}
    for plan in plans:
        groups.setdefault(plan.alike, []).append(plan)
    for group in groups.values():
        architecture = group[0].architecture
        signals = rows_per_step(group[0].image.size) * architecture.width * architecture.layers
        many = max(1, _BATCH_NUMBERS // signals)
        yield from (group[i : i + many] for i in range(0, len(group), many))


def _fit(batch: Sequence[_Plan], options: Options) -> None:
    """Frames of chunks that are fitted together."""
    try:
        from zarr_emcodec.fitting.fit import FitSettings, fit_fields
    except ImportError as error:
        raise MissingExtraError("fitting neural fields", extra="torch") from error
    first = batch[0]
    spec = first.job.spec
    limit = None if spec.time_limit is None else spec.time_limit * _TIME_SHARE
    searches = [_StepSearch(weight_coder_of(plan.job.model), plan.room * _FILLED, plan.architecture) for plan in batch]

    def choose(i: int, weights: list[NDArray[np.float32]], felt: NDArray[np.float64]) -> NDArray[np.float32]:
        return searches[i].search(weights, felt)

    fitted = fit_fields(
        np.stack([plan.image for plan in batch]),
        [unit_coordinates(np.arange(n), n) for n in first.image.shape],
        first.architecture,
        FitSettings(STEPS[spec.effort], spec.seed, limit, options.threads, options.provider),
        choose,
        searches[0].coder.start(first.architecture, first.image.shape),
    )
    for i, (plan, search) in enumerate(zip(batch, searches, strict=True)):
        _code(plan, search, [w[i] for w in fitted.weights], options)


class _StepSearch:
    """Quantiser steps of one network: their ratios from what rounding each tensor does, their size from the budget.

    With squared error s per unit of noise on a weight, and a rate that falls by a bit as the step doubles, the least
    error for its bytes has steps proportional to s^(-1/2) (Gersho and Gray 1992, section 8.3). So one number is left to
    search, here called notch: one more makes every step a twelfth of an octave finer.
    """

    def __init__(self, coder: WeightCoder, room: float, architecture: Architecture) -> None:
        self.coder = coder
        self._room = room - side_bytes(architecture)
        self._bytes_per_notch = architecture.n_weights / 8 / _NOTCHES_PER_OCTAVE
        self._known = np.log2(coder.steps.astype(np.float64))
        self._octaves = np.zeros(2 * architecture.layers)
        self._notch = 0

    def numbers(self, finer: int = 0) -> list[int]:
        """The steps' numbers, so many notches finer than those that were searched for."""
        wanted = self._octaves - (self._notch + finer) / _NOTCHES_PER_OCTAVE
        return [int(n) for n in np.abs(self._known - wanted[:, None]).argmin(1)]

    def search(self, weights: Sequence[NDArray[np.float32]], felt: NDArray[np.float64]) -> NDArray[np.float32]:
        """The finest steps at which the weights have room, by tensor."""
        self._octaves = -np.log2(np.maximum(felt, _UNFELT)) / 2
        fits, over = -_FAR, _FAR  # the finest that is known to have room, the coarsest that is known to have none
        for _ in range(_TRIES):
            left = self._room - self.coder.estimated_bytes(weights, self.numbers())
            fits, over = (self._notch, over) if left >= 0 else (fits, self._notch)
            if over - fits <= 1:
                break
            # bytes grow with the notch nearly in a line; where they do not, halves of what is left lead on
            guess = self._notch + math.floor(left / self._bytes_per_notch)
            if not fits < guess < over:
                guess = fits + 1 if over == _FAR else over - _LEAP if fits == -_FAR else (fits + over) // 2
            self._notch = guess
        self._notch = fits if fits > -_FAR else over - 1
        return self.coder.steps[self.numbers()]


def _code(plan: _Plan, search: _StepSearch, weights: Sequence[NDArray[np.float32]], options: Options) -> None:
    """The frame, at the steps that the weights were fitted for, or as near to them as the budget asks."""

    def frame(finer: int) -> bytes:
        numbers = search.numbers(finer)
        sections = search.coder.pack(plan.architecture, plan.contrast, weights, numbers, options, plan.prior)
        return plan.job.pack_latents(sections, plan.setting)

    most = plan.room + plan.header + len(plan.prior)
    finer, data = 0, frame(0)
    while len(data) > most:
        finer -= 1
        data = frame(finer)
    while finer >= 0 and len(data) < _USED * most and finer < _FINER:
        finer += 1
        more = frame(finer)
        if len(more) > most:
            break
        data = more
    plan.job.frame = data


def _check(job: Job) -> None:
    """Store what misses the guard, or takes as much, losslessly."""
    if job.spec.guarded and not job.keeps_guard(job.frame):
        job.frame = job.lossless()
    elif len(job.frame) > LOSSLESS_FROM * job.native.nbytes:
        job.take_smaller(job.lossless())
