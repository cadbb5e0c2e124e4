"""The walk over an array that a verification is: frames looked at, voxels compared, box by box.

An open array, and its source where there is one, in; a `Tally` out. Memory follows one box. What cannot be read becomes
a finding, and the walk goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from zarr_emcodec.errors import JobError, SpecError
from zarr_emcodec.jobs import compare, grid
from zarr_emcodec.jobs.census import Census, take_census
from zarr_emcodec.jobs.compress import ATTRIBUTE
from zarr_emcodec.jobs.frames import Layout, layout_of
from zarr_emcodec.jobs.ome import pick_array
from zarr_emcodec.jobs.promised import ByMetadata, Promised
from zarr_emcodec.jobs.tally import Tally

if TYPE_CHECKING:
    import zarr

    from zarr_emcodec._types import Chunk, Shape
    from zarr_emcodec.jobs.sources import Source

Sample: TypeAlias = float | int | None
"""How much is compared: a fraction as a float, a number of chunks as an int, everything as None."""


def open_written(location: str, *, models: bool = True, trust_embedded: bool = False) -> zarr.Array[Any]:
    """An array that was written here: Zarr, or N5 with our blocks.

    Raises
    ------
    JobError
        If it is neither.
    """
    try:
        return pick_array(location, models=models, trust_embedded=trust_embedded)[0]
    except JobError as error:
        from zarr_emcodec.adapters import n5

        try:
            return n5.open(location, trust_embedded=trust_embedded)
        except JobError:
            raise error from None


def find_array(first: str, second: str) -> tuple[str, str]:
    """Tell the array from its source: of two places the one that holds our frames, the second where both do, or none.

    Returns
    -------
    array, source : str
    """
    for array, source in ((second, first), (first, second)):
        try:
            if layout_of(open_written(array, models=False)).is_ours:
                return array, source
        except (JobError, SpecError):
            continue
    return second, first


class Examination:
    """One run over an array; what it finds is in `tally`."""

    def __init__(
        self,
        array: zarr.Array[Any],
        layout: Layout,
        volume: Source | None,
        progress: compare.Progress | None,
        *,
        promised: Promised | None = None,
    ) -> None:
        self.array, self.layout, self.volume = array, layout, volume
        self.promised = promised or ByMetadata(layout)
        self.tally = Tally()
        self._progress, self._done, self._total = progress, 0, 0
        self._itemsize = np.dtype(array.dtype).itemsize

    def run(self, sample: Sample, only_sampled: bool) -> None:
        """Look at everything that was asked for."""
        raw = math.prod(self.layout.shape) * self._itemsize
        if sample is None:
            self._total = raw
            peak = None if self.volume is None else _peak(self.volume, self.array, self.layout, self._boxes)
            for box in self._boxes():
                census = self._check(box)
                if peak is not None:
                    self._compare(box, peak, census)
                self._tick(box)
            return
        drawn = self._drawn(sample)
        chosen = [box for boxes in drawn.values() for box in boxes]
        self._total = sum(map(grid.voxels, chosen)) * self._itemsize + (0 if only_sampled else raw)
        if not only_sampled:
            for box in self._boxes():
                self._check(box)
                self._tick(box)
        assert self.volume is not None
        peak = _peak(self.volume, self.array, self.layout, lambda: iter(chosen))
        for index, boxes in drawn.items():
            census = self._check(grid.box_of(index, self._object, self.layout.shape), count=only_sampled)
            for box in boxes:
                self._compare(box, peak, census)
                self._tick(box)

    @property
    def _object(self) -> Shape:
        """Extent of what is stored as one."""
        return self.layout.shards or self.layout.chunks

    def _boxes(self) -> Iterator[grid.Box]:
        if self.promised.by_block:
            return grid.boxes(self.layout.shape, self._object)
        return grid.boxes(self.layout.shape, grid.grow(self._object, self.layout.shape, self._itemsize))

    def _drawn(self, sample: int | float) -> dict[Shape, list[grid.Box]]:
        """Chunks drawn with a fixed seed, by the object that holds them, in store order."""
        chunks, shape, n = self.layout.chunks, self.layout.shape, self.layout.n_chunks
        count = min(n, sample if isinstance(sample, int) else math.ceil(sample * n))
        flat = np.random.default_rng(0).choice(n, count, replace=False)
        cells = grid.grid_shape(shape, chunks)
        drawn: dict[Shape, list[grid.Box]] = {}
        for index in zip(*np.unravel_index(np.sort(flat), cells), strict=True):
            box = grid.box_of(tuple(int(i) for i in index), chunks, shape)
            at = tuple(part.start // extent for part, extent in zip(box, self._object, strict=True))
            drawn.setdefault(at, []).append(box)
        return drawn

    def _check(self, box: grid.Box, *, count: bool = True) -> Census | None:
        """Look at the frames of whole objects."""
        if not self.layout.has_frames:
            return None
        census = take_census(self.array, self.layout, box)
        if count:
            self.tally.add_census(census)
        return census

    def _compare(self, box: grid.Box, peak: float, census: Census | None) -> None:
        damaged = {index for index, _ in census.damaged} if census else set()
        absent = census.absent if census else ()
        guard = self.promised.guard(box, peak)
        for part, original in self._read(box):
            self._miss(part, original, absent)
            scales = census.scales if census else None
            blocks, unread = compare.compare_box(original, self.array, part, guard, scales=scales)
            for block in blocks:
                self.tally.add(block)
            for index, reason in unread:
                if index not in damaged:  # a damaged frame cannot be decoded: one finding is enough
                    self.tally.find("decode", index, reason)

    def _miss(self, box: grid.Box, original: Chunk, absent: Sequence[Shape]) -> None:
        """Chunks that are not stored read as fill value; where the source is not, they are lost."""
        for index in absent:
            chunk = grid.box_of(index, self.layout.chunks, self.layout.shape)
            inside = tuple(slice(c.start - b.start, c.stop - b.start) for c, b in zip(chunk, box, strict=True))
            if any(part.start < 0 or part.stop > n for part, n in zip(inside, original.shape, strict=True)):
                continue  # another chunk of the shard than the sampled one
            values, fill = original[inside], self.array.fill_value
            if not ((values == fill) | ((values != values) & (fill != fill))).all():  # NaN differs from itself
                self.tally.find("missing", index, f"is not stored, and the source is not all {fill} there")

    def _read(self, box: grid.Box) -> Iterator[tuple[grid.Box, Chunk]]:
        """The source's voxels of a box, or of those of its chunks that it can give."""
        assert self.volume is not None
        try:
            yield box, self.promised.voxels(box, self.volume.read(box))
            return
        except JobError:
            pass  # found again below, chunk by chunk
        for index in grid.chunks_in(box, self.layout.chunks):
            part = grid.box_of(index, self.layout.chunks, self.layout.shape)
            try:
                original = self.volume.read(part)
            except JobError as error:
                self.tally.find("source", index, str(error))
                continue
            yield part, self.promised.voxels(part, original)

    def _tick(self, box: grid.Box) -> None:
        self._done += grid.voxels(box) * self._itemsize
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)


def _peak(volume: Source, array: zarr.Array[Any], layout: Layout, boxes: Callable[[], Iterator[grid.Box]]) -> float:
    """What PSNR refers to; where nothing states it, the range of the voxels that are compared."""
    window = layout.config.get("window")
    if volume.dtype == np.uint8 or window:
        return compare.peak_of(volume.dtype, window, (0, 0))
    own = array.attrs.get(ATTRIBUTE)
    stated = own.get("source_range") if isinstance(own, Mapping) else None
    if isinstance(stated, list) and len(stated) == 2 and all(isinstance(v, int | float) for v in stated):
        return compare.peak_of(volume.dtype, None, (float(stated[0]), float(stated[1])))
    low, high = math.inf, -math.inf
    for box in boxes():
        try:
            values = volume.read(box)
        except JobError:
            continue  # a finding, when it is compared
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    return compare.peak_of(volume.dtype, None, (low, high) if high >= low else (0.0, 1.0))
