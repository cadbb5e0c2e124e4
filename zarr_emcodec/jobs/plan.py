"""What a recompression will do, decided before anything is written: plain data with a hash.

A source, a destination and a codec in; a `Plan` out. Nothing in it grows with the volume: where block i lies, which
codec it gets and whether it can hold tissue is worked out when it is asked for, the same on every machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from zarr_emcodec.errors import PlanMismatchError
from zarr_emcodec.jobs import regions as areas
from zarr_emcodec.jobs import tissue as backgrounds
from zarr_emcodec.jobs.coding import Codec, check_promises, chunks_for, codec_config, with_share_of
from zarr_emcodec.jobs.estimate import Estimate, estimate
from zarr_emcodec.jobs.fitting import Fitting
from zarr_emcodec.jobs.grid import Box, box_of, grid_shape
from zarr_emcodec.jobs.memory import Memory
from zarr_emcodec.jobs.report import Record, plain
from zarr_emcodec.jobs.sources import Source, open_source
from zarr_emcodec.runtime import current

if TYPE_CHECKING:
    from zarr_emcodec._types import Chunk, Shape
    from zarr_emcodec.jobs.compare import Progress
    from zarr_emcodec.jobs.sources.source import Missing

FORMAT = 1
"""Of the hashed description; another meaning of its words needs another number."""
PRICE = 0.04
"""Of a core-hour, in whatever money: about what clouds ask in dollars for one on demand."""
_DERIVED = ("block", "grid", "n_blocks", "raw_bytes", "digest")


@dataclass(frozen=True, kw_only=True)
class Plan(Record):
    """A job, block by block. One block is one stored object: a whole shard, or a chunk where there are no shards.

    Parameters
    ----------
    source, source_fingerprint : str
        Where it is; what tells whether it is still the same.
    destination : str
    codec : mapping
        Configuration (with numcodecs id) of the array's codec, its ratio as asked for.
    shape, chunks : tuple of int, voxels
    shards : tuple of int, voxels, or None
    dtype : str
    zarr_format : int
    fill_value : int or float
        Of background, and of blocks that are not stored.
    regions : tuple of mapping
        "where" (see `describe_area`), "codec" (a configuration), "ratio" as asked for. The first that touches a block
        gives it its codec.
    tissue : mapping or None
        See `describe_tissue`.
    missing : {"fill", "error"}
        What source chunks are that are not there: fill value, or the failure of their block. No part of the hash.
    threads : int
        Chunks that a worker codes at a time.
    note : str
        What was chosen on the user's behalf.
    memory : Memory
        Of one worker.
    estimate : Estimate or None
        What was learnt from sampled blocks; no part of the hash.
    """

    source: str
    source_fingerprint: str
    destination: str
    codec: Mapping[str, Any]
    shape: Shape
    dtype: str
    chunks: Shape
    shards: Shape | None
    memory: Memory
    zarr_format: Literal[2, 3] = 3
    fill_value: int | float = 0
    regions: tuple[Mapping[str, Any], ...] = ()
    tissue: Mapping[str, Any] | None = None
    missing: Missing = "fill"
    threads: int = 1
    note: str = ""
    estimate: Estimate | None = None

    @property
    def block(self) -> Shape:
        """Extent of a block in voxels, the array's edges aside."""
        return self.shards or self.chunks

    @property
    def grid(self) -> Shape:
        """Blocks per axis."""
        return grid_shape(self.shape, self.block)

    @cached_property
    def n_blocks(self) -> int:
        """Blocks in all."""
        return math.prod(self.grid)

    @property
    def raw_bytes(self) -> int:
        """Voxels x itemsize."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def coords(self, index: int) -> Shape:
        """Where block `index` stands in the grid: C order, as the store's keys count."""
        if not 0 <= index < self.n_blocks:
            raise IndexError(f"block {index}: the plan has {self.n_blocks}")
        found = []
        for count in reversed(self.grid):
            index, along = divmod(index, count)
            found.append(along)
        return tuple(reversed(found))

    def box(self, index: int) -> Box:
        """The voxels of block `index`."""
        return box_of(self.coords(index), self.block, self.shape)

    def codec_index(self, index: int) -> int:
        """Which codec block `index` gets: 0 is the array's, k that of region k - 1."""
        if self.regions:
            box = self.box(index)
            for number, region in enumerate(self.regions, 1):
                if areas.open_area(region["where"], self.shape).touches(box):
                    return number
        return 0

    def codec_of(self, index: int) -> Mapping[str, Any]:
        """Configuration of the codec that block `index` gets; write others than the array's with `array_with`."""
        return self.configs[self.codec_index(index)]

    @property
    def configs(self) -> tuple[Mapping[str, Any], ...]:
        """The array's codec, then the regions'."""
        return (self.codec, *(region["codec"] for region in self.regions))

    def may_hold_tissue(self, index: int) -> bool:
        """Whether block `index` has to be read at all; where not, it is fill value and is not stored."""
        return self.tissue is None or backgrounds.may_hold_tissue(self.tissue, self.box(index), self.shape)

    def prepare(self, box: Box, voxels: Chunk, config: Mapping[str, Any]) -> Chunk:
        """Source voxels as they are to be coded: background exact, see `clear_background`.

        Parameters
        ----------
        box : tuple of slice
            Of a block, or of whole chunks in one.
        voxels : ndarray
            Of that box.
        config : mapping
            The codec that it gets.
        """
        return backgrounds.clear_background(
            voxels,
            box,
            tissue=self.tissue,
            shape=self.shape,
            chunks=self.chunks,
            fill_value=self.fill_value,
            config=config,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the stored bytes; neither places nor estimates do."""
        return {
            "format": FORMAT,
            "source": self.source_fingerprint,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "chunks": list(self.chunks),
            "shards": None if self.shards is None else list(self.shards),
            "zarr_format": self.zarr_format,
            "fill_value": self.fill_value,
            "codec": dict(self.codec),
            "regions": [[areas.identity(region["where"]), dict(region["codec"])] for region in self.regions],
            "tissue": backgrounds.tissue_identity(self.tissue),
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the identity's canonical JSON, hexadecimal."""
        text = json.dumps(self.identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def models(self) -> tuple[dict[str, Any], ...]:
        """Models that frames may name, for the array's attributes: id, digest, the ratio that they were asked for."""
        asked = (self.codec.get("ratio"), *(region.get("ratio") for region in self.regions))
        found = {
            config["digest"]: {"model": config["model"], "digest": config["digest"], "ratio": ratio}
            for config, ratio in reversed(list(zip(self.configs, asked, strict=True)))
        }
        priors = {
            config["prior_digest"]: {"model": config["prior"], "digest": config["prior_digest"], "ratio": None}
            for config in self.configs
            if config.get("prior_digest")
        }
        return (*reversed(found.values()), *priors.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, what follows from them included."""
        return {**super().to_dict(), **{name: plain(getattr(self, name)) for name in _DERIVED}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises
        ------
        PlanMismatchError
            If the data are not those that their digest was made of, or of another version.
        """
        words = {key: value for key, value in data.items() if key not in _DERIVED}
        try:
            for name in ("shape", "chunks", "shards", "regions"):
                words[name] = None if words[name] is None else tuple(words[name])
            words["memory"] = Memory.from_dict(words["memory"])
            words["estimate"] = None if words["estimate"] is None else Estimate.from_dict(words["estimate"])
            found = cls(**words)
        except (KeyError, TypeError) as error:
            raise PlanMismatchError(f"not a plan of this version: {error}. Make a new one.") from error
        if found.digest != data.get("digest"):
            raise PlanMismatchError(
                f"plan {data.get('digest', 'without a digest'):.12}: its fields make {found.digest[:12]}, so it was "
                "changed by hand. Make a new one."
            )
        return found


def differences(mine: Plan, theirs: Plan) -> tuple[str, ...]:
    """Names of what tells two plans apart; empty where they would store the same bytes."""
    a, b = mine.identity, theirs.identity
    return tuple(name for name in a if a[name] != b[name])


def plan(
    source: str | os.PathLike[str] | Source,
    destination: str | os.PathLike[str],
    codec: Codec = None,
    *,
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | Literal["auto"] | None = "auto",
    zarr_format: Literal[2, 3] = 3,
    fill_value: float = 0,
    regions: Sequence[tuple[areas.Where, Codec]] = (),
    tissue: backgrounds.Threshold | areas.Where | None = None,
    missing: Missing = "fill",
    max_memory: float | None = None,
    threads: int = 1,
    samples: int = 8,
    seed: int = 0,
    price: float = PRICE,
    progress: Progress | None = None,
) -> Plan:
    """Decide on a job and learn from a few blocks what it will cost. Nothing is written.

    Parameters
    ----------
    source : path, URL or Source
        Anything that `open_source` reads.
    destination : path or URL
        Of the Zarr array to be.
    codec : number, codec, spec or mapping
        A ratio, or any codec of this package.
    chunks : sequence of int, voxels, optional
        About 16 x 512 x 512 when not given, fitted to the array.
    shards : sequence of int (voxels), "auto" or None
        "auto": of 64 MiB of voxels or more, as memory allows; none in Zarr v2.
    zarr_format : {2, 3}
    fill_value : float
        What background is; voxels of a block that is all background are not stored.
    regions : sequence of (where, codec)
        Blocks that a mask volume marks, a box touches, or a function ("module:function") takes get this codec; the
        first that does decides. See `describe_area`.
    tissue : Threshold, path or boxes, optional
        What is outside becomes the fill value, exactly. See `describe_tissue` and `clear_background`.
    missing : {"fill", "error"}
        What chunks are that the source does not store: its fill value, as formats say, or an error that fails their
        block, where none should be missing. A source that is open already has its own word.
    max_memory : float, bytes, optional
        Of one worker.
    threads : int
        Chunks that a worker codes at a time.
    samples : int
        Blocks of which a part is coded on trial; 0 for none.
    seed : int
        Which blocks those are.
    price : float
        Of a core-hour.
    progress : callable, optional
        Called with raw bytes sampled and in all.

    Returns
    -------
    Plan

    Raises
    ------
    SpecError
        If source, codec, layout, regions or tissue cannot work (together).
    JobError
        If the source cannot be read, or a worker would need more than `max_memory`: the message says what would fit.
    """
    with nullcontext(source) if isinstance(source, Source) else open_source(source, missing=missing) as volume:
        shape, dtype = tuple(volume.shape), volume.dtype
        fill = backgrounds.fill_of(fill_value, dtype)
        background = backgrounds.describe_tissue(tissue, shape)
        wheres = [areas.describe_area(where, shape) for where, _ in regions]
        base, *others = (
            backgrounds.looks_for(codec_config(c, volume.voxel_nm), background, fill)
            for c in (codec, *(c for _, c in regions))
        )
        for other in others:
            check_promises(base, other)
        fitting = Fitting(
            shape=shape,
            itemsize=dtype.itemsize,
            source_chunks=volume.chunks,
            configs=(base, *others),
            threads=threads,
            block_voxels=current().block_voxels,
            mask_bytes=areas.mask_bytes((background, *wheres)) if background or wheres else None,
            source_held=volume.held_bytes,
            max_memory=max_memory,
        )
        cells = chunks_for(base, shape, chunks)
        objects = fitting.shards(shards, cells, zarr_format)
        share: dict[str, Any] = {"shape": shape, "itemsize": dtype.itemsize, "chunks": cells, "shards": objects}
        made = Plan(
            source=volume.location,
            source_fingerprint=volume.fingerprint(),
            destination=os.fspath(destination),
            codec=base,
            shape=shape,
            dtype=dtype.name,
            chunks=cells,
            shards=objects,
            memory=fitting.check(objects, cells),
            zarr_format=zarr_format,
            fill_value=fill,
            regions=tuple(
                {"where": where, "codec": with_share_of(config, **share), "ratio": config.get("ratio")}
                for where, config in zip(wheres, others, strict=True)
            ),
            tissue=background,
            missing=volume.missing_is,
            threads=threads,
            note="; ".join(filter(None, [volume.note, fitting.note(objects or cells)])),
        )
        if not samples:
            return made
        found = estimate(made, volume, samples=samples, seed=seed, price=price, progress=progress)
    return dataclasses.replace(made, estimate=found)
