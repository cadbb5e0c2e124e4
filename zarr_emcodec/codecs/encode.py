"""Chunks to frames: the chain that every learned codec shares, one batch at a time.

    chunk -> background? -> grey levels -> the codec's own part -> frame

A chunk that is constant, or that must be exact, leaves the chain early.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec import transform
from zarr_emcodec._types import Chunk
from zarr_emcodec.codecs.base import Spec
from zarr_emcodec.codecs.job import DTYPES as DTYPES
from zarr_emcodec.codecs.job import check_chunk as check_chunk
from zarr_emcodec.codecs.job import check_dtype as check_dtype
from zarr_emcodec.codecs.registry import chain_of
from zarr_emcodec.codecs.slots import slot
from zarr_emcodec.errors import SpecError
from zarr_emcodec.runtime import Options, current, find_model

Regions = Sequence[NDArray[np.bool_] | None] | Callable[[Chunk], NDArray[np.bool_]]
"""Masks of what is to be stored more richly, one for each chunk, or what makes them."""


def encode_many(
    spec: Spec, chunks: Sequence[Chunk], options: Options | None = None, *, roi: Regions | None = None
) -> list[bytes]:
    """Encode chunks, with one inference over all that need one.

    Parameters
    ----------
    spec : VAESpec, VQVAESpec or INRSpec
        What is asked for.
    chunks : sequence of ndarray
        0-D to 5-D; uint8, uint16, int16 or float32 of any byte order; any memory layout. Leading axes hold independent
        sections.
    options : Options, optional
        Runtime settings; those of the process when not given.
    roi : sequence of (ndarray of bool or None), or callable
        For each chunk, or from each chunk, a mask of its shape: where bottom tokens are stored, whatever the spec's
        `keep` says. None stands for the spec's own choice. For specs of two-level token models only.

    Returns
    -------
    list of bytes
        One frame for each chunk.

    Raises
    ------
    SpecError
        If a chunk is of another dtype, empty, larger than ``max_chunk_bytes``, or holds NaN or infinity;
        if a mask is of another shape, or the model has no bottom tokens.
    """
    options = current() if options is None else options
    with slot():
        return encode_within_slot(spec, chunks, options, roi)


def encode_within_slot(
    spec: Spec, chunks: Sequence[Chunk], options: Options, roi: Regions | None = None
) -> list[bytes]:
    """`encode_many` for a caller that holds a slot already, as an encoder of frames within frames does."""
    chain = chain_of(spec.CODEC)
    words: list[dict[str, Any]] = [{}] * len(chunks)
    if roi is not None:
        if not chain.takes_roi:
            raise SpecError(f"codec '{spec.CODEC}' stores no region apart: roi= is for codec 'vqvae'.", name="roi")
        masks = [roi(chunk) for chunk in chunks] if callable(roi) else list(roi)
        words = [{"region": region} for region in masks]
    pairs = zip(chunks, words, strict=True)
    jobs = [chain.job(spec=spec, chunk=np.asarray(chunk), options=options, **extra) for chunk, extra in pairs]
    waiting = [job for job in jobs if not job.frame]
    if waiting:
        model = find_model(spec.digest)
        for job in waiting:
            job.model = model
            if transform.padded_voxels(job.inner.shape, model.card.cell) > options.max_chunk_bytes:
                job.frame = job.lossless()  # sections so thin that readers refuse what they grow to
        if left := [job for job in waiting if not job.frame]:
            chain.encode(left, options)
    return [job.frame for job in jobs]
