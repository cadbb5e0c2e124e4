"""What a plan will cost and be worth, learnt from a few blocks that are coded on trial.

A plan and its open source in; an `Estimate` out: bytes, ratio, PSNR, hours and money, with the samples that they come
from. Each kind of block (by codec, and empty ones) weighs as much as there is of it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from zarr_emcodec.errors import JobError
from zarr_emcodec.jobs.compare import peak_of
from zarr_emcodec.jobs.grid import grid_shape, voxels
from zarr_emcodec.jobs.measure import decibels
from zarr_emcodec.jobs.memory import read_amplification
from zarr_emcodec.jobs.report import Record
from zarr_emcodec.jobs.trial import EMPTY, METADATA_BYTES, Sample, Trial, draw, part_of, survey
from zarr_emcodec.runtime import current, find_model
from zarr_emcodec.runtime.session import open_session

if TYPE_CHECKING:
    from zarr_emcodec.jobs.compare import Progress
    from zarr_emcodec.jobs.plan import Plan
    from zarr_emcodec.jobs.sources import Source

PETABYTE = 10**15
_INDEX_BYTES, _INDEX_CHECK_BYTES = 16, 4  # per inner chunk and per shard of a Zarr v3 shard index
_DOUBT = 1.96  # standard errors to either side that hold 95 % of a normal distribution


@dataclass(frozen=True, kw_only=True)
class Estimate(Record):
    """Figures of a whole job, from samples.

    Parameters
    ----------
    samples : tuple of Sample
    unreadable : tuple of (block, reason)
        Sampled blocks that the source could not give.
    empty_share : float
        Of the blocks: those that hold no tissue, as far as that is known without reading them.
    codec_shares : tuple of float
        Of the blocks: those that each codec gets.
    raw_bytes, stored_bytes : int
        Stored: frames, shard indices and metadata.
    stored_low, stored_high : int
        The 95 % confidence interval, as far as so few samples tell.
    ratio : float
    psnr_db : float or None
        Over all voxels; infinite (None in JSON) where nothing differs.
    lowest_db : float or None
        Of the worst sample.
    worst_error, peak : float
        In source units; what PSNR refers to.
    read_amplification : float
        Source voxels decoded per voxel wanted.
    read_mb_s, encode_mb_s, decode_mb_s, mb_s : float
        10^6 raw bytes a second and core: reading, encoding, reading back with the comparison, and all three one after
        the other. The destination's store and network are not in it.
    core_hours, core_hours_per_pb, price, cost, cost_per_pb : float
        Cost in the money of the price of a core-hour; per 10^15 raw bytes.
    provider, threads
        What ran the networks, "cpu" or "cuda", and on how many threads.
    """

    samples: tuple[Sample, ...]
    unreadable: tuple[tuple[int, str], ...]
    empty_share: float
    codec_shares: tuple[float, ...]
    raw_bytes: int
    stored_bytes: int
    stored_low: int
    stored_high: int
    ratio: float
    psnr_db: float | None
    lowest_db: float | None
    worst_error: float
    peak: float
    read_amplification: float
    read_mb_s: float
    encode_mb_s: float
    decode_mb_s: float
    mb_s: float
    core_hours: float
    core_hours_per_pb: float
    price: float
    cost: float
    cost_per_pb: float
    provider: str
    threads: int

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        words = dict(data)
        words["samples"] = tuple(map(Sample.from_dict, words["samples"]))
        words["unreadable"] = tuple((int(block), str(reason)) for block, reason in words["unreadable"])
        words["codec_shares"] = tuple(words["codec_shares"])
        return cls(**words)


def estimate(
    plan: Plan, volume: Source, *, samples: int, seed: int, price: float, progress: Progress | None = None
) -> Estimate:
    """Code parts of some blocks, and project.

    Parameters
    ----------
    plan : Plan
    volume : Source
        The plan's, open.
    samples : int
        Blocks; at least two are drawn of each kind.
    seed : int
        Which they are.
    price : float
        Of a core-hour.
    progress : callable, optional
        Called with raw bytes sampled and in all.

    Returns
    -------
    Estimate

    Raises
    ------
    JobError
        If the source can give none of the sampled blocks.
    """
    drawing = random.Random(seed)
    kinds = survey(plan, drawing)
    chosen = draw(kinds, samples, drawing)
    boxes = {block: part_of(plan, block, drawing) for block in chosen}
    total = sum(map(voxels, boxes.values())) * volume.dtype.itemsize
    trial = Trial(plan, volume)
    found: list[Sample] = []
    unreadable: list[tuple[int, str]] = []
    done = 0
    for block, box in boxes.items():
        try:
            found.append(trial.run(block, box, chosen[block]))
        except JobError as error:
            unreadable.append((block, str(error)))
        done += voxels(box) * volume.dtype.itemsize
        if progress is not None:
            progress(done, total)
    if unreadable and not found:
        raise JobError(f"none of {len(unreadable)} sampled blocks can be read. The first: {unreadable[0][1]}")
    surveyed = sum(map(len, kinds.values()))
    shares = {kind: len(blocks) / surveyed for kind, blocks in kinds.items()}
    amplification = read_amplification(plan.block, volume.chunks, plan.shape)
    return _project(plan, shares, found, unreadable, amplification, price)


def _project(
    plan: Plan,
    shares: Mapping[int, float],
    samples: Sequence[Sample],
    unreadable: Sequence[tuple[int, str]],
    amplification: float,
    price: float,
) -> Estimate:
    per_byte = _PerByte.of(shares, samples)
    empty = shares.get(EMPTY, 0.0)
    fixed = METADATA_BYTES + _index_bytes(plan) * plan.n_blocks * (1 - empty)
    raw = plan.raw_bytes
    frames, doubt = per_byte.stored * raw, _DOUBT * per_byte.deviation * raw
    low, high = min((s.low for s in samples), default=0.0), max((s.high for s in samples), default=0.0)
    peak = peak_of(np.dtype(plan.dtype), plan.codec.get("window"), (low, high))
    itemsize = np.dtype(plan.dtype).itemsize
    hours = (per_byte.read_s + per_byte.encode_s + per_byte.decode_s) * current().threads / 3600
    reached = [decibels(s.squared * itemsize / s.raw_bytes, peak) for s in samples]
    return Estimate(
        samples=tuple(samples),
        unreadable=tuple(unreadable),
        empty_share=empty,
        codec_shares=tuple(shares.get(index, 0.0) for index in range(1 + len(plan.regions))),
        raw_bytes=raw,
        stored_bytes=round(frames + fixed),
        stored_low=round(max(0.0, frames - doubt) + fixed),
        stored_high=round(frames + doubt + fixed),
        ratio=raw / (frames + fixed),
        psnr_db=decibels(per_byte.squared * itemsize, peak),
        lowest_db=min(reached, default=math.inf),
        worst_error=max((s.worst_error for s in samples), default=0.0),
        peak=peak,
        read_amplification=amplification,
        read_mb_s=_mb_s(per_byte.read_s),
        encode_mb_s=_mb_s(per_byte.encode_s),
        decode_mb_s=_mb_s(per_byte.decode_s),
        mb_s=_mb_s(hours * 3600),
        core_hours=hours * raw,
        core_hours_per_pb=hours * PETABYTE,
        price=price,
        cost=hours * raw * price,
        cost_per_pb=hours * PETABYTE * price,
        provider=_provider(plan),
        threads=current().threads,
    )


@dataclass(frozen=True)
class _PerByte:
    """Means per raw byte of the whole volume, empty blocks included."""

    stored: float
    deviation: float  # standard error of `stored`
    squared: float
    read_s: float
    encode_s: float
    decode_s: float

    @classmethod
    def of(cls, shares: Mapping[int, float], samples: Sequence[Sample]) -> Self:
        """From samples of each kind; a kind of which none could be read is taken to be like the others."""
        kinds = {s.codec_index: [other for other in samples if other.codec_index == s.codec_index] for s in samples}
        weight = (1 - shares.get(EMPTY, 0.0)) / (sum(shares[kind] for kind in kinds) or 1.0)

        def mean(name: str) -> float:
            return math.fsum(
                shares[kind] * weight * sum(getattr(s, name) for s in some) / sum(s.raw_bytes for s in some)
                for kind, some in kinds.items()
            )

        variance = 0.0
        for kind, some in kinds.items():
            if len(some) > 1:
                spread = float(np.var([s.stored_bytes / s.raw_bytes for s in some], ddof=1))
                variance += (shares[kind] * weight) ** 2 * spread / len(some)
        means = {name: mean(name) for name in ("squared", "read_s", "encode_s", "decode_s")}
        return cls(stored=mean("stored_bytes"), deviation=math.sqrt(variance), **means)


def _index_bytes(plan: Plan) -> int:
    """Of one shard's index."""
    if plan.shards is None:
        return 0
    return _INDEX_BYTES * math.prod(grid_shape(plan.shards, plan.chunks)) + _INDEX_CHECK_BYTES


def _mb_s(seconds_per_byte: float) -> float:
    return 1e-6 / seconds_per_byte if seconds_per_byte else math.inf


def _provider(plan: Plan) -> str:
    """What runs the networks here."""
    model = find_model(str(plan.codec["digest"]))
    files = model.card.encoder_files or model.card.decoder_files  # fields have no encoder
    name = "encoder.onnx" if "encoder.onnx" in files else "decoder.onnx"
    return open_session(model.file(name), files[name], current()).provider
