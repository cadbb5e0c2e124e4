"""How large the objects are that a job writes: large enough to be few, small enough for a worker's memory.

What is known of source and codecs in; shard shapes, a `Memory`, or an error that says what would fit, out. Arithmetic
alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from zarr_emcodec.errors import JobError, SpecError
from zarr_emcodec.jobs.grid import grid_shape
from zarr_emcodec.jobs.memory import Memory, project, read_amplification

if TYPE_CHECKING:
    from zarr_emcodec._types import Shape

SHARD_BYTES = 1 << 26
"""Raw voxels in a shard, at least: some seconds of work, beside which scheduling one costs nothing."""
_BLOCKS = 16  # that a small volume is cut into all the same, so that several workers have something to do
_LEAST_EDGE = 64  # of chunks in y and x; models see less than their surroundings below it
_WORTH_A_NOTE = 2.0  # source voxels decoded per voxel wanted


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """Layouts for one job, held against one worker's memory.

    Parameters
    ----------
    shape : tuple of int, voxels
        Of the array.
    itemsize : int, bytes
    source_chunks : tuple of int, voxels, or None
        What the source decodes at once.
    configs : tuple of mapping
        Of the codecs that blocks may get.
    threads, block_voxels, mask_bytes, source_held
        As for `project`.
    max_memory : float, bytes, or None
        What a worker may hold.
    """

    shape: Shape
    itemsize: int
    source_chunks: Shape | None
    configs: tuple[Mapping[str, Any], ...]
    threads: int
    block_voxels: int
    mask_bytes: int | None
    source_held: int
    max_memory: float | None

    def memory(self, shards: Shape | None, chunks: Shape) -> Memory:
        """What a worker holds with this layout."""
        return project(
            block=shards or chunks,
            chunks=chunks,
            source_chunks=self.source_chunks,
            itemsize=self.itemsize,
            configs=self.configs,
            threads=self.threads,
            block_voxels=self.block_voxels,
            mask_bytes=self.mask_bytes,
            source_held=self.source_held,
        )

    def fits(self, shards: Shape | None, chunks: Shape) -> bool:
        """Whether that is allowed."""
        return self.max_memory is None or self.memory(shards, chunks).peak_bytes <= self.max_memory

    def shards(
        self, asked: Sequence[int] | Literal["auto"] | None, chunks: Shape, zarr_format: Literal[2, 3]
    ) -> Shape | None:
        """The shard shape that was asked for, or a good one.

        Raises
        ------
        SpecError
            If it does not suit the chunks, or the format has no shards.
        """
        if asked is None or (asked == "auto" and zarr_format == 2):
            return None
        if asked == "auto":
            return choose_shards(
                self.shape,
                chunks,
                self.itemsize,
                source_chunks=self.source_chunks,
                fits=lambda shards: self.fits(shards, chunks),
            )
        if zarr_format == 2:
            raise SpecError("shards= needs zarr_format=3.", name="shards", value=asked)
        shards = tuple(int(n) for n in asked)
        if len(shards) != len(chunks) or any(s < 1 or s % c for s, c in zip(shards, chunks, strict=True)):
            raise SpecError(f"shards {shards}: need multiples of the chunks {chunks}.", name="shards", value=shards)
        return shards

    def check(self, shards: Shape | None, chunks: Shape) -> Memory:
        """The memory of a layout.

        Raises
        ------
        JobError
            If a worker may not hold as much; the message names the largest layout that fits.
        """
        memory = self.memory(shards, chunks)
        if self.max_memory is None or memory.peak_bytes <= self.max_memory:
            return memory
        mend = f"Allow {_mega(memory.peak_bytes)} (--max-memory)"
        for fewer, cells in _smaller(shards, chunks):
            if self.fits(fewer, cells):
                words = f"shards {_crosses(fewer)}" if fewer else f"chunks {_crosses(cells)} without shards"
                mend += f", or take {words}, which need {_mega(self.memory(fewer, cells).peak_bytes)}."
                break
        else:
            least = _mega(self.memory(fewer, cells).peak_bytes)
            mend += f"; no smaller layout fits, chunks {_crosses(cells)} without shards still need {least}."
        largest = ", ".join(f"{name} {_mega(n_bytes)}" for name, n_bytes in memory.at_peak[:4])
        raise JobError(
            f"a worker would need {_mega(memory.peak_bytes)} for blocks of {_crosses(shards or chunks)} voxels, "
            f"allowed are {_mega(self.max_memory)} (most of it: {largest}). {mend}"
        )

    def amplification(self, block: Shape) -> float:
        """Source voxels decoded per voxel wanted."""
        return read_amplification(block, self.source_chunks, self.shape)

    def note(self, block: Shape) -> str:
        """A word on blocks that cut source chunks, where that costs much."""
        factor = self.amplification(block)
        if factor < _WORTH_A_NOTE or self.source_chunks is None:
            return ""
        return (
            f"blocks cut the source's chunks of {_crosses(self.source_chunks)}, so that {factor:.1f} source voxels are "
            "decoded for each one: shards of whole source chunks would read faster"
        )


def choose_shards(
    shape: Shape,
    chunks: Shape,
    itemsize: int,
    *,
    source_chunks: Shape | None = None,
    fits: Callable[[Shape], bool] = lambda _: True,
) -> Shape | None:
    """A shard shape for an array, or None where single chunks are enough.

    Axes grow by doubling: first those along which a shard would be shorter than a source chunk, which would be read
    again for the next one, then the shortest.

    Parameters
    ----------
    shape, chunks : tuple of int, voxels
    itemsize : int, bytes
    source_chunks : tuple of int, voxels, optional
        What the source decodes at once.
    fits : callable, optional
        Whether a worker has the memory for a shard of this shape; where it does not, the largest that fits is taken.

    Examples
    --------
    >>> choose_shards((6400, 51200, 51200), (16, 512, 512), 1)
    (256, 512, 512)
    >>> choose_shards((6400, 51200, 51200), (16, 512, 512), 1, source_chunks=(64, 2048, 2048))
    (64, 1024, 1024)
    """
    counts = grid_shape(shape, chunks)
    units = source_chunks or (1,) * len(shape)
    wanted = min(SHARD_BYTES, math.prod(shape) * itemsize // _BLOCKS)
    factors = [1] * len(shape)
    while itemsize * math.prod(block := _times(chunks, factors)) < wanted:
        can_grow = [axis for axis, (f, n) in enumerate(zip(factors, counts, strict=True)) if f < n]
        if not can_grow:
            break
        axis = min(can_grow, key=lambda a: (block[a] >= units[a], block[a], a))
        grown = [min(2 * f, n) if a == axis else f for a, (f, n) in enumerate(zip(factors, counts, strict=True))]
        if not fits(_times(chunks, grown)):
            break
        factors = grown
    return None if all(f == 1 for f in factors) else _times(chunks, factors)


def _smaller(shards: Shape | None, chunks: Shape) -> Iterator[tuple[Shape | None, Shape]]:
    """Layouts that need less and less memory: fewer chunks in a shard, then none, then smaller chunks."""
    factors = [1] * len(chunks) if shards is None else [s // c for s, c in zip(shards, chunks, strict=True)]
    while any(f > 1 for f in factors):
        axis = max((a for a, f in enumerate(factors) if f > 1), key=lambda a: factors[a] * chunks[a])
        factors[axis] = -(-factors[axis] // 2)
        yield (None if all(f == 1 for f in factors) else _times(chunks, factors)), chunks
    least = [1] * (len(chunks) - 2) + [_LEAST_EDGE] * 2
    edges = list(chunks)
    yield None, chunks
    while any(edge > low for edge, low in zip(edges, least, strict=True)):
        axis = max((a for a, edge in enumerate(edges) if edge > least[a]), key=lambda a: edges[a] / least[a])
        edges[axis] = max(least[axis], -(-edges[axis] // 2))
        yield None, tuple(edges)


def _times(chunks: Shape, factors: Sequence[int]) -> Shape:
    return tuple(c * f for c, f in zip(chunks, factors, strict=True))


def _crosses(extents: Shape) -> str:
    return " x ".join(map(str, extents))


def _mega(n_bytes: float) -> str:
    # rounded up: what a message allows has to be enough
    return f"{math.ceil(n_bytes / 1e6):,} MB"
