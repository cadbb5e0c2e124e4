"""A plan in words, for a terminal and for a page alike.

Records in, (name, text) pairs out; what there is nothing to say of has an empty text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from zarr_emcodec.jobs.measure import decibels

if TYPE_CHECKING:
    from zarr_emcodec.jobs.estimate import Estimate
    from zarr_emcodec.jobs.memory import Memory
    from zarr_emcodec.jobs.plan import Plan

Facts = list[tuple[str, str]]


def plan_facts(plan: Plan) -> Facts:
    """What will be done."""
    words = ", ".join(f"{k} {v}" for k, v in plan.codec.items() if v is not None and k not in ("id", "digest"))
    regions = []
    for region in plan.regions:
        where = region["where"]
        place = where.get("location") or where.get("name") or f"boxes ({len(where['boxes'])})"
        regions.append(f"{place}: {region['codec']['model']}, ratio {region['ratio']}")
    tissue = plan.tissue or {}
    return [
        ("plan", plan.digest),
        ("source", f"{plan.source}  {plan.dtype} {_crosses(plan.shape)}, {size(plan.raw_bytes)}"),
        ("note", plan.note),
        ("codec", words),
        ("regions", "; ".join(regions)),
        ("tissue", ", ".join(f"{k} {v}" for k, v in tissue.items() if v is not None and k not in ("sha256", "cells"))),
        ("blocks", f"{plan.n_blocks:,} of {_crosses(plan.block)}, each one object of a Zarr v{plan.zarr_format} array"),
        ("chunks", _crosses(plan.chunks)),
    ]


def estimate_facts(found: Estimate) -> Facts:
    """What it will cost and be worth."""
    shares = ", ".join(f"{share:.2%}" for share in found.codec_shares)
    several = found.empty_share or len(found.codec_shares) > 1
    spread = f"{size(found.stored_low)} to {size(found.stored_high)}"
    return [
        ("stored", f"about {size(found.stored_bytes)} ({spread}), {found.ratio:.1f}x smaller"),
        ("PSNR", f"about {_quality(found.psnr_db)}, worst sample {_quality(found.lowest_db)}  (peak {found.peak:g})"),
        ("worst error", f"{found.worst_error:g} in the samples"),
        ("shares", f"{shares} of the blocks by codec, {found.empty_share:.2%} empty" if several else ""),
        ("speed", f"{found.mb_s:.2f} MB/s a core: read {found.read_mb_s:.1f}, encode {found.encode_mb_s:.1f}, "
                  f"read back {found.decode_mb_s:.1f}  ({found.provider}; without the destination's store)"),
        ("time", f"{found.core_hours:,.3g} core-hours; {found.core_hours_per_pb:,.0f} per PB"),
        ("cost", f"{found.cost:,.2f}; {found.cost_per_pb:,.0f} per PB, at {found.price:g} a core-hour"),
        ("samples", f"{len(found.samples)} blocks, {size(sum(s.raw_bytes for s in found.samples))} of them"),
        ("unreadable", "; ".join(f"block {block}: {reason}" for block, reason in found.unreadable)),
    ]  # fmt: skip


def memory_facts(memory: Memory) -> Facts:
    """What a worker holds, phase by phase."""
    facts = [("peak", size(memory.peak_bytes))]
    for phase in ("held", "reading", "writing", "comparing"):
        terms = getattr(memory, phase)
        facts.append((phase, ", ".join(f"{name} {size(n_bytes)}" for name, n_bytes in terms.items())))
    return facts


def sample_facts(found: Estimate) -> Facts:
    """Each sample in a line."""
    facts = []
    for sample in found.samples:
        n_voxels = math.prod(stop - start for start, stop in sample.box)
        stored = f"{sample.raw_bytes / sample.stored_bytes:.2f}x" if sample.stored_bytes else "not stored"
        reached = _quality(decibels(sample.squared / n_voxels, found.peak))
        facts.append((f"block {sample.block}", f"{reached}, {stored}, codec {sample.codec_index}"))
    return facts


def size(n_bytes: float) -> str:
    """Bytes in words, powers of 1000.

    Examples
    --------
    >>> size(987), size(4296875)
    ('987 B', '4.30 MB')
    """
    unit = 0
    while n_bytes >= 1000 and unit < 6:
        n_bytes, unit = n_bytes / 1000, unit + 1
    return f"{n_bytes:.0f} B" if unit == 0 else f"{n_bytes:.2f} {'BkMGTPE'[unit]}B"


def _quality(db: float | None) -> str:
    return "exact" if db is None or math.isinf(db) else f"{db:.2f} dB"


def _crosses(extents: Sequence[int]) -> str:
    return " x ".join(map(str, extents))
