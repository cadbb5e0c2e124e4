"""The field codec, for the registry: which files serve which backbone.

Jobs and opened frames in; they go to the files that the card's `backbone` names.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from zarr_emcodec._types import Chunk
from zarr_emcodec.codecs.inr import INRSpec
from zarr_emcodec.codecs.job import ChunkJob
from zarr_emcodec.codecs.opened import Opened
from zarr_emcodec.codecs.registry import Chain
from zarr_emcodec.runtime import Model, Options

INRJob = ChunkJob[INRSpec]


def home_of(model: Model, part: str) -> Any:
    """The module that encodes or decodes with a model, ``part`` "encode" or "decode"; imported on first use."""
    assert model.card.inr is not None  # the card's reader knows no backbone without files here
    return importlib.import_module(f"zarr_emcodec.codecs.{model.card.inr.backbone}_{part}")


def encode(jobs: Sequence[INRJob], options: Options) -> None:
    """Bring jobs of one spec to their frames."""
    home_of(jobs[0].model, "encode").encode(jobs, options)


def decode(opened: Sequence[Opened], options: Options) -> list[Chunk]:
    """Voxels of frames, model by model."""
    out: dict[int, Chunk] = {}
    for model in dict.fromkeys(item.model for item in opened):
        mine = [i for i, item in enumerate(opened) if item.model == model]
        out.update(zip(mine, home_of(model, "decode").decode([opened[i] for i in mine], options), strict=True))
    return [out[i] for i in range(len(opened))]


CHAIN = Chain(job=INRJob, encode=encode, decode=decode)
