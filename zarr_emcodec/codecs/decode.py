"""Frames to chunks: the chain backwards, one batch at a time.

    frame -> the codec's own part -> voxels -> background restored -> chunk

The frame alone decides: kind, shape, dtype, memory order, model and setting all stand in it. Whatever is wrong with its
bytes ends in a `FrameError`; a model that is not here ends in a `ModelNotFoundError`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zarr_emcodec._types import Buffer, Chunk
from zarr_emcodec.codecs import lossless, mask
from zarr_emcodec.codecs.opened import Opened, Planes, open_frame
from zarr_emcodec.codecs.registry import chain_of
from zarr_emcodec.codecs.slots import slot
from zarr_emcodec.frame import Frame, Kind, Limits, unpack
from zarr_emcodec.runtime import Options, current


def decode_many(
    frames: Sequence[Buffer | Frame], options: Options | None = None, *, planes: Sequence[Planes] | None = None
) -> list[Chunk]:
    """Decode frames, with shared entropy decoding and inference where model and shape agree.

    Parameters
    ----------
    frames : sequence of buffer or Frame
        Whole frames; or, unpacked and verified, as many of a frame's leading sections as the tier needs.
    options : Options, optional
        Runtime settings; those of the process when not given.
    planes : sequence of (start, stop) or None, optional
        For each frame the planes of its first axis that are wanted, ``0 <= start < stop <= shape[0]``, or None for all.
        The rest is not decoded where streams allow it.

    Returns
    -------
    list of ndarray
        Writable chunks, or the planes wanted of them, in the shape, dtype (byte order included) and memory order that
        were encoded.

    Raises
    ------
    FrameError
        If the bytes are not a frame, or not one that this version reads.
    ModelNotFoundError
        If a frame's model is not on the search path.
    """
    options = current() if options is None else options
    with slot():
        return decode_within_slot(frames, options, planes or [None] * len(frames))


def decode_sections(data: Buffer, start: int, stop: int, options: Options | None = None) -> Chunk:
    """Planes `start` to `stop` of the first axis of one chunk; see `decode_many`."""
    return decode_many([data], options, planes=[(start, stop)])[0]


def decode_within_slot(frames: Sequence[Buffer | Frame], options: Options, planes: Sequence[Planes]) -> list[Chunk]:
    """`decode_many` for a caller that holds a slot already, as an encoder that checks its own output does."""
    limits = Limits(max_chunk_bytes=options.max_chunk_bytes)
    out: list[Chunk | None] = [None] * len(frames)
    by_codec: dict[str, dict[int, Opened]] = {}
    for i, (data, wanted) in enumerate(zip(frames, planes, strict=True)):
        frame = data if isinstance(data, Frame) else unpack(data, limits=limits)
        if frame.kind in (Kind.LATENT, Kind.MASKED):
            item = open_frame(frame, wanted, options)
            card = item.model.card
            chain_of(card.codec, card.id)  # before other frames are worked on
            by_codec.setdefault(card.codec, {})[i] = item
        else:
            out[i] = _finish(_plain(frame), frame, wanted)
    for codec, items in by_codec.items():
        decoded = chain_of(codec).decode(list(items.values()), options)
        for (i, item), voxels in zip(items.items(), decoded, strict=True):
            if item.background is not None:
                voxels = mask.restore(voxels, item.background, item.frame.shape)
            out[i] = _finish(voxels, item.frame, planes[i])
    return [chunk for chunk in out if chunk is not None]


def _plain(frame: Frame) -> Chunk:
    native = frame.dtype.newbyteorder("=")
    if frame.kind is Kind.CONSTANT:
        value = np.frombuffer(frame.sections[0], frame.dtype.newbyteorder("<"))[0]
        return np.full(frame.shape, value, native)
    return lossless.decode(frame.setting, frame.sections[0], frame.shape, native)


def _finish(chunk: Chunk, frame: Frame, planes: Planes) -> Chunk:
    """Cut what was asked for and bring byte and memory order to those of the encoded chunk."""
    if planes is not None and len(chunk) != planes[1] - planes[0]:
        chunk = chunk[planes[0] : planes[1]]
    chunk = chunk.astype(frame.dtype, copy=False)
    return np.asfortranarray(chunk) if frame.order == "F" and chunk.ndim else chunk
