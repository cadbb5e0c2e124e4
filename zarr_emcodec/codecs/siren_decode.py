"""The sinusoidal backbone's part of decoding: sections to a network to voxels.

sections -> symbols -> weights -> grey levels -> voxels

Of a chunk nothing is computed but the planes asked for; `field.LazyChunk` asks for single voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from zarr_emcodec import transform
from zarr_emcodec._types import Chunk
from zarr_emcodec.codecs.opened import Opened
from zarr_emcodec.codecs.siren_field import FieldNetwork, Positions
from zarr_emcodec.codecs.siren_frames import PRIOR, weight_coder_of
from zarr_emcodec.codecs.siren_prior import decode_prior, grey_of
from zarr_emcodec.runtime import Options


def decode(opened: Sequence[Opened], options: Options) -> list[Chunk]:
    """Voxels of frames, each by its own network."""
    return [_decode(item, options) for item in opened]


def is_field(opened: Opened) -> bool:
    """Whether a frame's voxels are those of its network alone, so that each can be asked for by itself."""
    return not opened.frame.setting & PRIOR


def network_of(opened: Opened, options: Options) -> FieldNetwork:
    """The network of a frame, ready to be asked; where there is a prior, what it gives is to be added to that.

    Raises
    ------
    FrameError
        If the frame's sections do not hold one.
    """
    card = opened.model.card
    assert card.inr is not None
    opened.check_only_full(options)
    weights = weight_coder_of(opened.model)
    field = weights.unpack(opened.sections, opened.shape, opened.frame.setting, card.inr.layers, options)
    return FieldNetwork(opened.model, field, opened.shape)


def _decode(opened: Opened, options: Options) -> Chunk:
    network = network_of(opened, options)
    shape = opened.shape
    plane = math.prod(shape[1:])
    first, last = (n * plane for n in opened.planes)

    def positions(start: int, stop: int) -> Positions:
        return np.unravel_index(np.arange(first + start, first + stop), shape)

    grey = network.grey(last - first, positions, options)
    if network.field.prior is not None:
        before = decode_prior(network.field.prior, shape, opened.frame.dtype, opened.planes, options)
        grey += grey_of(before, opened.frame.window)
    window = transform.Window(*opened.frame.window) if opened.frame.window else None
    return transform.from_grey(grey, window, opened.frame.dtype.newbyteorder("=")).reshape(opened.out_shape)
