"""What one worker of a recompression holds at most: every copy of a block on its way, as bytes.

Shapes and codec configurations in, a `Memory` out: pure arithmetic, told before anything runs. The figures per voxel
were measured as the resident set's peak of one call and rounded up; a test holds a real block against them. They
hold where freed memory goes back to the system, as Dask's nannies arrange for their workers (MALLOC_TRIM_THRESHOLD_);
glibc left to itself keeps some hundred MB more, since each of Zarr's threads has a heap of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from zarr_emcodec.jobs.report import Record

if TYPE_CHECKING:
    from zarr_emcodec._types import Shape
    from zarr_emcodec.runtime import Card

_PROCESS = (
    340_000_000  # interpreter, numpy, zarr, dask's worker, an inference runtime, the entropy coder's machine code
)
_NETWORK_PER_VOXEL = 100  # activations of one inference call; the runtime keeps them for the next
_LATENT_ENCODE, _LATENT_DECODE = 36, 26  # per latent: floats in two orders, symbols, table indices, coder's state
_GREY = 4  # float32 grey levels
_TISSUE_PER_VOXEL = 8  # of a chunk whose background is cleared: flags, and a padded copy
_DIFFERENCES = 32  # per voxel of a chunk: float64, or counts of integers
_SSIM = 112  # per voxel of a section: fourteen planes of float64
_AT_ONCE = 10  # source chunks that zarr decodes at a time
_CODED_COPIES = 3  # written: frames, the shard made of them, what was made; read: that, what came back, what is decoded
_LOSSLESS_BELOW = 5.0  # ratios under which the codec may choose a lossless frame


@dataclass(frozen=True, kw_only=True)
class Memory(Record):
    """A worker's projected peak, and what it is made of. A block is read, then written, then read back and compared.

    Parameters
    ----------
    held : mapping of str to int, bytes
        There at all times.
    reading, writing, comparing : mapping of str to int, bytes
        There besides, one of the three at a time.
    """

    held: Mapping[str, int]
    reading: Mapping[str, int]
    writing: Mapping[str, int]
    comparing: Mapping[str, int]

    @property
    def at_peak(self) -> list[tuple[str, int]]:
        """Everything that is there when most is, the largest first."""
        most = max((self.reading, self.writing, self.comparing), key=lambda phase: sum(phase.values()))
        return sorted([*self.held.items(), *most.items()], key=lambda term: -term[1])

    @property
    def peak_bytes(self) -> int:
        """The largest sum there can be."""
        return sum(n_bytes for _, n_bytes in self.at_peak)

    def to_dict(self) -> dict[str, Any]:
        """As of every record, with the peak."""
        return {"peak_bytes": self.peak_bytes, **super().to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        return cls(**{key: value for key, value in data.items() if key != "peak_bytes"})


def project(
    *,
    block: Shape,
    chunks: Shape,
    source_chunks: Shape | None,
    itemsize: int,
    configs: Sequence[Mapping[str, Any]],
    threads: int = 1,
    block_voxels: int = 2**20,
    mask_bytes: int | None = None,
    source_held: int = 0,
) -> Memory:
    """The memory that a worker needs for one block at a time.

    Parameters
    ----------
    block, chunks : tuple of int, voxels
        A whole output shard (or chunk); the unit that is coded.
    source_chunks : tuple of int, voxels, or None
        What the source decodes at once; None where it reads what it is asked for.
    itemsize : int, bytes
    configs : sequence of mapping
        Of the codecs that blocks may get.
    threads : int
        Chunks that are coded at a time.
    block_voxels : int
        Of one inference call; see `zarr_emcodec.options`.
    mask_bytes : int, optional
        Of the masks that regions and tissue need; None where no background is cleared.
    source_held : int
        What the source keeps between reads.

    Returns
    -------
    Memory
    """
    from zarr_emcodec.codecs.inference import run_voxels
    from zarr_emcodec.runtime import find_model

    raw, chunk_voxels = math.prod(block) * itemsize, math.prod(chunks)
    cards = [find_model(str(config["digest"])).card for config in configs]
    density = max(map(_latents_per_voxel, cards))
    run = max(run_voxels(math.prod(chunks[-card.ndim :]), card.ndim, block_voxels) for card in cards)
    encode = _GREY + 2 * itemsize + _LATENT_ENCODE * density
    decode = _GREY + itemsize + _LATENT_DECODE * density
    guarded = any(_is_guarded(config) for config in configs)
    coded = max(_coded_bytes(config, raw) for config in configs)
    held = {
        "process": _PROCESS,
        "networks": threads * _NETWORK_PER_VOXEL * min(run, 2 * chunk_voxels),
        "block": raw,
        "source's cache": source_held,
    }
    in_writing = {"edge block, padded": raw, "encoded": _CODED_COPIES * coded}
    if mask_bytes is not None:
        held |= {"masks": mask_bytes, "block, background cleared": raw}
        in_writing["tissue flags"] = threads * _TISSUE_PER_VOXEL * chunk_voxels
    in_writing["chunks being encoded"] = threads * round(chunk_voxels * (encode + (decode if guarded else 0)))
    return Memory(
        held=held,
        reading={"source chunks": _source_bytes(block, source_chunks, itemsize), "block, axes in order": raw},
        writing=in_writing,
        comparing={
            "block, decoded": raw,
            "encoded": _CODED_COPIES * coded,
            "chunks being decoded": threads * round(chunk_voxels * decode),
            "differences": max(_DIFFERENCES * chunk_voxels, _SSIM * math.prod(block[-2:])),
        },
    )


def read_amplification(block: Shape, source_chunks: Shape | None, shape: Shape) -> float:
    """Source voxels decoded per voxel wanted, over all blocks: 1 where blocks are made of whole source chunks.

    Examples
    --------
    >>> read_amplification((16, 512, 512), (64, 512, 512), (64, 512, 512))
    4.0
    """
    if source_chunks is None:
        return 1.0
    factor = 1.0
    for step, unit, n in zip(block, source_chunks, shape, strict=True):
        blocks = min(-(-n // step), math.lcm(step, unit) // step)  # from there on it repeats
        ends = ((start * step, min((start + 1) * step, n)) for start in range(blocks))
        touched = [min(-(-stop // unit) * unit, n) - start // unit * unit for start, stop in ends]
        factor *= sum(touched) / min(blocks * step, n)
    return factor


def _source_bytes(block: Shape, source_chunks: Shape | None, itemsize: int) -> int:
    """Decoded and encoded source chunks of one read, as many as are held at a time."""
    if source_chunks is None:
        return 0
    touched = math.prod(-(-b // s) + 1 for b, s in zip(block, source_chunks, strict=True))
    return 2 * min(touched, _AT_ONCE) * math.prod(source_chunks) * itemsize


def _latents_per_voxel(card: Card) -> float:
    """Of a codec's model; 1, the most there is, where its card does not tell."""
    channels = getattr(card, "channels", 0)
    return channels / math.prod(card.stride) if channels else 1.0


def _is_guarded(config: Mapping[str, Any]) -> bool:
    return config.get("min_psnr") is not None or config.get("max_error") is not None


def _coded_bytes(config: Mapping[str, Any], raw: int) -> int:
    """Bound of a block's encoded bytes: where lossless frames may occur, the voxels' own."""
    ratio = config.get("ratio") or 1.0
    return raw if _is_guarded(config) or ratio < _LOSSLESS_BELOW else round(1.1 * raw / ratio)
