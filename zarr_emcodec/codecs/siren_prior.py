"""The frame inside the frame of a hybrid: what a variational model says of the chunk, which the field then corrects.

Voxels in, bytes of a frame out; bytes that claim to be such a frame in, grey levels out. FORMAT.md, "Prior", is the
layout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec import transform
from zarr_emcodec._types import Buffer, Chunk, Shape
from zarr_emcodec.codecs.inr import INRSpec
from zarr_emcodec.codecs.vae import VAESpec
from zarr_emcodec.errors import FrameError
from zarr_emcodec.frame import Kind, Limits, unpack
from zarr_emcodec.runtime import Options, find_model

_CODEC = "vae"


def encode_prior(chunk: Chunk, spec: INRSpec, budget: float, options: Options) -> bytes:
    """The frame of a chunk at its share of a budget, or as near to it as the prior's model can."""
    from zarr_emcodec.codecs.encode import encode_within_slot  # which finds this room's chains by name

    low, high = find_model(spec.prior_digest).card.ratio_range
    ratio = min(max(chunk.nbytes / (spec.prior_share * budget), low), high)
    prior = VAESpec(ratio=ratio, model=spec.prior or "auto", window=spec.window, background=None)
    return encode_within_slot(prior, [chunk], options)[0]


def decode_prior(data: Buffer, shape: Shape, dtype: np.dtype[Any], planes: tuple[int, int], options: Options) -> Chunk:
    """Voxels of the planes wanted, native byte order.

    Raises
    ------
    FrameError
        If the bytes are not a frame of a variational model, or not of this shape and dtype.
    """
    from zarr_emcodec.codecs.decode import decode_within_slot

    frame = unpack(data, limits=Limits(max_chunk_bytes=options.max_chunk_bytes))
    native = dtype.newbyteorder("=")
    if frame.shape != shape or frame.dtype.newbyteorder("=") != native:
        raise FrameError(
            f"prior: a frame of {frame.dtype} {frame.shape}, its field stands for {native} {shape}.", field="prior"
        )
    if frame.kind in (Kind.LATENT, Kind.MASKED):
        assert frame.model is not None  # the frame's reader has checked it
        codec = find_model(frame.model).card.codec
        if codec != _CODEC:  # a field with a prior of its own could nest without end
            raise FrameError(f"prior: a frame of codec '{codec}', possible is '{_CODEC}'.", field="prior")
    (chunk,) = decode_within_slot([frame], options, [planes if len(shape) >= 3 else None])
    if native.kind == "f" and not np.isfinite(chunk).all():
        raise FrameError("prior: holds NaN or infinity.", field="prior")
    return np.ascontiguousarray(chunk, native)


def grey_of(chunk: Chunk, window: Sequence[float] | None) -> NDArray[np.float32]:
    """A prior's voxels in the model units of the frame around it, flat."""
    grey = transform.to_grey(chunk, transform.Window(*window) if window else None)
    return grey.reshape(math.prod(chunk.shape))
