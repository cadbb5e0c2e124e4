"""What the stored frames of an array say of themselves: kinds, sizes, overhead, damage. No voxel is decoded.

An open array and its layout in, a `Census` out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zarr_emcodec.errors import FrameError, UnsupportedFrameError
from zarr_emcodec.frame import FrameInfo, inspect
from zarr_emcodec.jobs.frames import Layout, stored_chunks
from zarr_emcodec.jobs.report import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import zarr

    from zarr_emcodec._types import Shape
    from zarr_emcodec.jobs.grid import Box


@dataclass(frozen=True, kw_only=True)
class Census(Record):
    """Counts over all chunks of an array.

    Parameters
    ----------
    kinds : mapping
        Kind to count, "absent" (never written, or all fill value) and "damaged" included.
    frame_bytes, overhead_bytes : int
        Of all frames; and what of that is not coded voxels.
    largest, smallest : (chunk index, int) or None
        Of the frames, in bytes.
    digests : mapping
        First 8 bytes of a model's digest (hex) to the number of frames that need it.
    settings : mapping
        Quality level of a latent or masked frame to count.
    damaged : tuple of (chunk index, reason)
    scales : mapping
        Chunk index to source units per grey level, for frames that state a window.
    absent : tuple of chunk index
        Chunks that are not stored; of a whole array they are counted only.
    """

    kinds: Mapping[str, int]
    frame_bytes: int
    overhead_bytes: int
    largest: tuple[Shape, int] | None
    smallest: tuple[Shape, int] | None
    digests: Mapping[str, int]
    settings: Mapping[int, int]
    damaged: tuple[tuple[Shape, str], ...]
    scales: Mapping[Shape, float]
    absent: tuple[Shape, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As of every record, without what serves the comparison with a source alone."""
        return {name: value for name, value in super().to_dict().items() if name not in ("scales", "absent")}


def take_census(
    array: zarr.Array[Any], layout: Layout, box: Box | None = None, *, tick: Callable[[int], None] | None = None
) -> Census:
    """Look at every stored chunk.

    Parameters
    ----------
    array, layout
        An open array; `layout.has_frames` must hold.
    box : tuple of slice, optional
        Look only here; made of whole shards, or chunks where there are none. What cannot be read counts as damaged.
    tick : callable, optional
        Called with the number of chunks looked at so far.

    Returns
    -------
    Census

    Raises
    ------
    JobError
        If the store cannot be read, and no box was given.
    """
    kinds: Counter[str] = Counter()
    digests: Counter[str] = Counter()
    settings: Counter[int] = Counter()
    damaged: list[tuple[Shape, str]] = []
    scales: dict[Shape, float] = {}
    absent: list[Shape] = []
    sizes: list[tuple[int, Shape]] = []  # at most two: the smallest and the largest so far
    frame_bytes = overhead_bytes = 0
    for count, stored in enumerate(stored_chunks(array, layout, box), 1):
        info = _look(stored.data, stored.problem, layout)
        if isinstance(info, str):
            kinds["damaged"] += 1
            damaged.append((stored.chunk_index, info))
        elif info is None:
            kinds["absent"] += 1
            if box is not None:
                absent.append(stored.chunk_index)
        else:
            kinds[info.kind] += 1
            frame_bytes += info.total_bytes
            overhead_bytes += info.overhead_bytes
            everything = sorted([*sizes, (info.total_bytes, stored.chunk_index)])
            sizes = [everything[0], everything[-1]]
            if info.model is not None:
                digests[info.model] += 1
                settings[info.setting] += 1
            if info.window is not None:
                scales[stored.chunk_index] = info.window[1]
        if tick is not None:
            tick(count)
    return Census(
        kinds=dict(sorted(kinds.items())),
        frame_bytes=frame_bytes,
        overhead_bytes=overhead_bytes,
        largest=(sizes[-1][1], sizes[-1][0]) if sizes else None,
        smallest=(sizes[0][1], sizes[0][0]) if sizes else None,
        digests=dict(digests),
        settings=dict(sorted(settings.items())),
        damaged=tuple(damaged),
        scales=scales,
        absent=tuple(absent),
    )


def _look(data: bytes | None, problem: str, layout: Layout) -> FrameInfo | str | None:
    """The frame's facts, None where there is none, or what is wrong with it."""
    if problem or data is None:
        return problem or None
    try:
        info = inspect(data)
    except UnsupportedFrameError as error:
        return f"cannot be read here: {error}"
    except FrameError as error:
        return str(error)
    if not info.crc_ok:
        return "the frame does not match its checksum"
    if info.shape != layout.chunks:
        return f"the frame holds shape {info.shape}, the array's chunks are {layout.chunks}"
    return info
