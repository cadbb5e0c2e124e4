"""Kinds of codecs, by the name that model cards give them: what each adds to the chain that all share.

A name in, a `Chain` out. Modules are imported on first use: reading metadata needs none of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from zarr_emcodec.errors import ModelError

if TYPE_CHECKING:
    from zarr_emcodec._types import Chunk
    from zarr_emcodec.codecs.opened import Opened
    from zarr_emcodec.runtime import Options

_HOME = {
    "inr": "zarr_emcodec.codecs.inr_chain",
    "vae": "zarr_emcodec.codecs.vae_chain",
    "vqvae": "zarr_emcodec.codecs.vqvae_chain",
}


@dataclass(frozen=True)
class Chain:
    """One kind of codec.

    Attributes
    ----------
    job : callable
        Spec, chunk and options to a `ChunkJob` of its own.
    encode : callable
        Brings jobs of one spec, whose `model` is set, to their frames.
    decode : callable
        Opened frames and options to the voxels of each, of its `out_shape`, native byte order.
    takes_roi : bool
        Whether a chunk may come with a mask of what is to be stored more richly.
    """

    job: Callable[..., Any]
    encode: Callable[[Sequence[Any], Options], None]
    decode: Callable[[Sequence[Opened], Options], list[Chunk]]
    takes_roi: bool = False


@cache
def chain_of(codec: str, model_id: str = "") -> Chain:
    """The chain of a kind of codec.

    Raises
    ------
    ModelError
        If this version has none of that name; `model_id` is named then.
    """
    if codec not in _HOME:
        raise ModelError(f"model '{model_id}' is of codec '{codec}'. Upgrade zarr_emcodec to read it.")
    chain: Chain = importlib.import_module(_HOME[codec]).CHAIN
    return chain
