"""The token codec's part of encoding: images to tokens of one level or two, to sections.

    grey levels -> image -> top tokens -> (top's image ->) bottom tokens -> sections -> frame

Tokens have a fixed rate. A frame that entropy coding leaves above its budget is coded again with a price on its bits;
a guard that the top misses is kept by the bottom tokens, or by a lossless frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec import transform
from zarr_emcodec._types import Shape
from zarr_emcodec.codecs.job import LEAST_BUDGET, LOSSLESS_FROM, ChunkJob
from zarr_emcodec.codecs.token_coding import LevelCoder
from zarr_emcodec.codecs.token_frames import (
    BLOCK,
    Mask,
    Setting,
    Storage,
    choose_blocks,
    pack_side,
    stored_tokens,
    summed,
)
from zarr_emcodec.codecs.token_rate import PriceSearch
from zarr_emcodec.codecs.token_search import refine
from zarr_emcodec.codecs.tokens import Candidates, Contrast, Image, TokenModel, Tokens, token_model_of
from zarr_emcodec.codecs.vqvae import VQVAESpec
from zarr_emcodec.errors import SpecError
from zarr_emcodec.frame import Tier
from zarr_emcodec.runtime import Options

S = TypeVar("S", bound=np.generic)
_PRICED = 32  # codes that are weighed against their bits, at least
_CANDIDATES = 1 << 18  # for each plane of voxels, unless that is fewer for each token
_AT_ONCE = 1 << 22  # candidates in memory, of more than one chunk
# squared deviations a bit, for each voxel of a token
_FIRST_PRICE, _LAST_PRICE = 0.02, 1.7  # below the first hardly a token changes; above the last nothing is left
_PRICE_OF_EXCESS = 1.0  # on top for a frame of twice its room: what most frames need
_CLOSE = 0.004  # of its room that a frame may leave: a further per cent would cost some 0.05 dB


@dataclass(eq=False)
class VQJob(ChunkJob[VQVAESpec]):
    """A chunk with its image, and what is to be stored of it.

    Attributes
    ----------
    region : ndarray of bool or None
        Of the chunk's shape: where bottom tokens are stored whatever the spec says.
    keep : float
        Share of bottom tokens to store where there is no region.
    kept : float
        Share that is stored.
    """

    region: NDArray[np.bool_] | None = None
    keep: float = field(init=False, default=0.0)
    kept: float = field(init=False, default=0.0)
    contrast: Contrast = field(init=False)
    image: Image = field(init=False)

    def __post_init__(self) -> None:
        if self.region is not None:
            self.region = np.asarray(self.region)
            if self.region.shape != self.chunk.shape or self.region.dtype != np.bool_:
                raise SpecError(
                    f"roi: {self.region.dtype} {self.region.shape} for a chunk of shape {self.chunk.shape}, needs a "
                    "bool for each voxel.",
                    name="roi",
                    value=self.region.shape,
                )
        super().__post_init__()

    def prepare(self, model: TokenModel) -> None:
        """Measure the contrast and make the image."""
        if self.region is not None and model.card.refine is None:
            raise SpecError(
                f"roi: model '{model.model.card.id}' has one level of tokens, so no region can have more.", name="roi"
            )
        self.keep = self.spec.keep or 0.0
        ndim = len(model.card.stride)
        grey = transform.to_grey(self.inner, self.window)
        tissue = self.background.tissue if self.background is not None else None
        self.contrast = Contrast.of_tissue(grey if tissue is None else grey[tissue])
        image = self.contrast.to_image(transform.sections_of(grey, ndim))
        self.image = transform.pad_to_stride(image, model.card.cell)

    def keep_all(self) -> None:
        """Store all bottom tokens."""
        self.region, self.keep = None, 1.0

    def blocks(self, model: TokenModel, decoded: Image) -> Mask:
        """Which blocks of bottom tokens to store, (n, \\*n_blocks), given what the top decodes to."""
        grid = model.grid(self.image.shape[1:], "bottom")
        fine = tuple(n // g for n, g in zip(self.image.shape[1:], grid, strict=True))  # voxels of a bottom token
        edges = tuple(BLOCK * f for f in fine)
        if self.region is not None:
            inner = self.region if self.background is None else self.region[self.background.box]
            pieces = transform.sections_of(inner, len(grid))
            grow = [(0, 0), *((0, n - m) for n, m in zip(self.image.shape[1:], pieces.shape[1:], strict=True))]
            return summed(np.pad(pieces, grow).astype(np.float32), edges) > 0
        missed = summed(np.square(self.image - decoded), edges)
        tokens = summed(np.ones((1, *grid), np.float32), (BLOCK,) * len(grid)).astype(np.int64)
        return choose_blocks(missed, np.broadcast_to(tokens, missed.shape), self.keep)

    def room(self, model: TokenModel) -> float:
        """Bytes that the ratio allows for what the frame stores."""
        if self.kept == self.spec.keep:
            return self.budget
        # another share than the spec's: by the arithmetic of fixed fields, with the spec's room for metadata
        ratio = (self.spec.ratio or 1.0) * model.card.ratio(self.kept) / model.card.ratio(self.spec.keep or 0.0)
        return max(self.tissue_of(self.native).nbytes / ratio, LEAST_BUDGET)


def encode(jobs: Sequence[VQJob], options: Options) -> None:
    """Bring jobs of one spec to their frames; chunks of one padded shape share their inference calls."""
    model = token_model_of(jobs[0].model)
    groups: dict[Shape, list[VQJob]] = {}
    for job in jobs:
        job.prepare(model)
        groups.setdefault(job.image.shape[1:], []).append(job)
    for group in groups.values():
        _settle(group, model, options)
        if jobs[0].spec.guarded:
            _settle_guard(group, model, options)
        for job in group:
            if job.spec.mode == "entropy" and len(job.frame) > LOSSLESS_FROM * job.native.nbytes:
                job.take_smaller(job.lossless())


def _settle(jobs: Sequence[VQJob], model: TokenModel, options: Options) -> None:
    """Frames within their budget, at about the lowest price on bits that gets there."""
    spec = jobs[0].spec
    coded = spec.mode == "entropy" and "top" in model.tables
    price = (model.card.price if spec.price is None else spec.price) if coded else 0.0
    near = _top_candidates(jobs, model, options, priced=price > 0)
    _code(jobs, near, [price] * len(jobs), model, coded, options)
    if coded:
        for some in _batches([job for job in jobs if len(job.frame) > job.room(model)], model):
            _squeeze(some, price, model, options)


def _squeeze(jobs: Sequence[VQJob], price: float, model: TokenModel, options: Options) -> None:
    """Raise the price on the bits of frames that are over their budget at `price`, each until it just fits."""
    near = _top_candidates(jobs, model, options, priced=True)
    ends = np.cumsum([len(job.image) for job in jobs])[:-1]
    parts = [Candidates(*both) for both in zip(*(np.split(values, ends) for values in near), strict=True)]
    searches = [_price_search(job, price, model) for job in jobs]
    kept = [(job.frame, job.kept) for job in jobs]
    while left := [i for i, search in enumerate(searches) if search.price is not None]:
        some = [jobs[i] for i in left]
        some_near = Candidates(_joined([parts[i].excess for i in left]), _joined([parts[i].code for i in left]))
        _code(some, some_near, [searches[i].price or 0.0 for i in left], model, True, options)
        for i in left:
            if searches[i].tell(len(jobs[i].frame) / jobs[i].room(model)):
                kept[i] = jobs[i].frame, jobs[i].kept
    for job, (frame, share) in zip(jobs, kept, strict=True):
        job.frame, job.kept = frame, share


def _price_search(job: VQJob, price: float, model: TokenModel) -> PriceSearch:
    """The search for a frame that is over its budget at a price."""
    room, voxels = job.room(model), math.prod(model.card.stride)
    fill = len(job.frame) / room
    guess = voxels * (_FIRST_PRICE + _PRICE_OF_EXCESS * (fill - 1))
    close = max(_CLOSE, 1 / room)  # small frames cannot come closer than a byte
    return PriceSearch(price, fill, guess=guess, ceiling=voxels * _LAST_PRICE, close=close)


def _settle_guard(jobs: Sequence[VQJob], model: TokenModel, options: Options) -> None:
    """Store the bottom tokens of chunks that miss the guard, and losslessly those that miss it even so."""
    left = [job for job in jobs if not job.keeps_guard(job.frame)]
    if model.card.refine is not None:
        again = [job for job in left if job.kept < 1]
        for job in again:
            job.keep_all()
        if again:
            _settle(again, model, options)
        left = [job for job in left if job not in again or not job.keeps_guard(job.frame)]
    for job in left:
        job.frame = job.lossless()


def _code(
    jobs: Sequence[VQJob],
    near: Candidates,
    prices: Sequence[float],
    model: TokenModel,
    coded: bool,
    options: Options,
) -> None:
    """Frames of jobs of one padded shape, each at its price, from the candidates of their top tokens."""
    counts = [len(job.image) for job in jobs]
    top = LevelCoder(model, "top", near, prices, counts, np.ones(near.code[:, 0].shape, bool))
    if coded:
        top.choose(None, options)
    tops = top.sections(options, coded=coded)
    richer = [i for i, job in enumerate(jobs) if job.keep or job.region is not None]
    bottoms = _bottoms(jobs, richer, model, top.tokens, prices, coded, options) if richer else {}
    for i, (job, (section, top_coded)) in enumerate(zip(jobs, tops, strict=True)):
        blocks, bottom = bottoms.get(i, (None, None))
        job.kept = 0.0 if bottom is None else bottom.kept
        storage = _storage(blocks)
        setting = Setting(storage, top_coded, bottom is not None and bottom.coded)
        side = pack_side(job.contrast, blocks if storage is Storage.MAPPED else None)
        sections = (side, section) if bottom is None else (side, section, bottom.section)
        job.frame = job.pack_latents(sections, setting.to_byte(), _tier(job, model, storage))


@dataclass(frozen=True)
class _Bottom:
    """The bottom section of one frame."""

    section: bytes
    coded: bool
    kept: float


def _bottoms(
    jobs: Sequence[VQJob],
    which: Sequence[int],
    model: TokenModel,
    top: Tokens,
    prices: Sequence[float],
    coded: bool,
    options: Options,
) -> dict[int, tuple[Mask, _Bottom | None]]:
    """Blocks and bottom section of some of the jobs, by their number; no section where no block is chosen."""
    ends = np.cumsum([len(job.image) for job in jobs])
    spans = {i: slice(int(ends[i]) - len(jobs[i].image), int(ends[i])) for i in which}
    decoded = {i: model.decode(top[spans[i]], options) for i in which}
    blocks = {i: jobs[i].blocks(model, decoded[i]) for i in which}
    out: dict[int, tuple[Mask, _Bottom | None]] = {i: (blocks[i], None) for i in which}
    there = [i for i in which if blocks[i].any()]
    if not there:
        return out
    image = _joined([jobs[i].image for i in there])
    grid = model.grid(image.shape[1:], "bottom")
    stored = _joined([stored_tokens(blocks[i], grid) for i in there])
    prices = [prices[i] for i in there]
    count = _weighed(model, image, "bottom") if any(prices) else 1
    near = model.nearest("bottom", image, _joined([decoded[i] for i in there]), count, options)
    level = LevelCoder(model, "bottom", near, prices, [len(jobs[i].image) for i in there], stored)
    coded = coded and "bottom" in model.tables
    if coded:
        level.choose(_joined([top[spans[i]] for i in there]), options)
    for i, (section, is_coded), mask in zip(
        there, level.sections(options, coded=coded), level.split(np.ones_like(stored), stored.reshape(-1)), strict=True
    ):
        out[i] = blocks[i], _Bottom(section, is_coded, float(mask.mean()))
    return out


def _top_candidates(jobs: Sequence[VQJob], model: TokenModel, options: Options, *, priced: bool) -> Candidates:
    """Codes near to the top's vectors: as many as are tried by decoding, or as are weighed against their bits."""
    image, effort = _joined([job.image for job in jobs]), jobs[0].spec.effort
    count = max(_weighed(model, image, "top"), 1 + effort) if priced else 1 + effort
    return refine(model, model.nearest("top", image, None, count, options), image, effort, options)


def _weighed(model: TokenModel, image: Image, level: str) -> int:
    """How many codes of each token are weighed against their bits: all, where memory allows."""
    planes = image.shape[1] if image.ndim > 3 else 1
    # of the image alone, whatever is in the batch beside it
    return max(_PRICED, _CANDIDATES * planes // math.prod(model.grid(image.shape[1:], level)))


def _batches(jobs: Sequence[VQJob], model: TokenModel) -> Iterator[Sequence[VQJob]]:
    """Jobs of one padded shape in such numbers that their candidates fit in memory."""
    if not jobs:
        return
    image = jobs[0].image
    each = _weighed(model, image, "top") * math.prod(model.grid(image.shape[1:], "top"))
    some: list[VQJob] = []
    for job in jobs:
        if some and each * sum(len(other.image) for other in (*some, job)) > _AT_ONCE:
            yield some
            some = []
        some.append(job)
    yield some


def _joined(parts: Sequence[NDArray[S]]) -> NDArray[S]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _storage(blocks: Mask | None) -> Storage:
    if blocks is None:
        return Storage.TOP_ONLY
    if blocks.all():
        return Storage.ALL
    return Storage.MAPPED if blocks.any() else Storage.NONE_CHOSEN


def _tier(job: VQJob, model: TokenModel, storage: Storage) -> Tier:
    """The tier that the frame states: the spec's, or the richest that is stored."""
    if job.keep == 1.0 and job.spec.keep != 1.0:  # the guard asked for more
        return Tier.FULL
    if job.spec.tier is not None:
        return Tier[job.spec.tier.upper()]
    return Tier.TOP if model.card.refine is not None and storage is Storage.TOP_ONLY else Tier.FULL
