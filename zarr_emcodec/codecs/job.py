"""One chunk on its way to a frame: what every codec does before and after its own part.

A spec and a chunk in. A chunk that is constant, or that must be exact, is a frame at once; of all others come out the
voxels to code, free of background, with the budget, the guard and the packing of the frame.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, Literal, TypeVar

import numpy as np

from zarr_emcodec import transform
from zarr_emcodec._types import Chunk
from zarr_emcodec.codecs import lossless, mask
from zarr_emcodec.codecs.base import Spec
from zarr_emcodec.errors import SpecError
from zarr_emcodec.frame import Frame, Kind, Limits, Tier, pack
from zarr_emcodec.quality import psnr, worst_error
from zarr_emcodec.runtime import Model, Options

DTYPES = ("uint8", "uint16", "int16", "float32")
LOSSLESS_FROM = 0.2
"""Share of the raw size from which a lossless frame may well be smaller."""
LEAST_BUDGET = 64  # bytes: below it a frame's header leaves no room for latents, so no ratio is promised
_GREY_PEAK = transform.GREY_PEAK

S = TypeVar("S", bound=Spec)


@dataclass(eq=False)
class ChunkJob(Generic[S]):
    """One chunk on its way through the chain; done when `frame` is not empty."""

    spec: S
    chunk: Chunk
    options: Options
    frame: bytes = b""
    native: Chunk = field(init=False)
    background: mask.Background | None = field(init=False, default=None)
    window: transform.Window | None = field(init=False, default=None)
    inner: Chunk = field(init=False)
    model: Model = field(init=False)

    def __post_init__(self) -> None:
        check_chunk(self.chunk, self.options)
        self.native = np.ascontiguousarray(self.chunk, self.chunk.dtype.newbyteorder("="))
        first = self.native.reshape(-1)[:1]
        # compared as bits: 0.0 and -0.0 are two values
        bits = self.native.reshape(-1).view(f"u{self.native.dtype.itemsize}")
        if (bits == bits[0]).all():
            value = first.astype(first.dtype.newbyteorder("<")).tobytes()
            self.frame = self.pack(Kind.CONSTANT, (value,))
            return
        if self.spec.background is not None:
            ratio = self.spec.ratio or 16.0
            self.background = mask.find_background(self.native, self.spec.background_value, ratio=ratio)
        self.inner = self.native if self.background is None else mask.fill_background(self.native, self.background)
        _check_finite(self.inner)  # what is padded with NaN is background by now
        if self.spec.max_error == 0:
            self.frame = self.lossless()
            return
        if self.native.dtype != np.uint8:
            stated = self.spec.window
            self.window = transform.Window.stated(*stated) if stated else transform.Window.of_chunk(self.inner)

    @property
    def budget(self) -> float:
        """Bytes that the frame may have: the tissue's share, so that padding buys nothing; no bound without a ratio."""
        if self.spec.ratio is None:
            return float("inf")
        return max(self.tissue_of(self.native).nbytes / self.spec.ratio, LEAST_BUDGET)

    def tissue_of(self, chunk: Chunk) -> Chunk:
        """What a promise is about: all voxels but the background's."""
        return chunk if self.background is None else self.background.tissue_of(chunk)

    def pack(self, kind: Kind, sections: tuple[bytes, ...], setting: int = 0, tier: Tier = Tier.FULL) -> bytes:
        """A frame of this chunk."""
        order: Literal["C", "F"] = "C"
        if self.chunk.ndim > 1 and self.chunk.flags.f_contiguous and not self.chunk.flags.c_contiguous:
            order = "F"
        modelled = kind in (Kind.LATENT, Kind.MASKED)
        window = (self.window.offset, self.window.scale) if modelled and self.window else None
        frame = Frame(
            kind=kind,
            shape=self.chunk.shape,
            dtype=self.chunk.dtype,
            order=order,
            tier=tier,
            window=window,
            model=self.model.card.digest[:8] if modelled else None,
            setting=setting,
            sections=sections,
        )
        return pack(frame, limits=Limits(max_chunk_bytes=self.options.max_chunk_bytes))

    def lossless(self) -> bytes:
        """The chunk as an exact frame."""
        method, data = lossless.encode(self.native)
        return self.pack(Kind.LOSSLESS, (data,), int(method))

    def pack_latents(self, sections: tuple[bytes, ...], setting: int, tier: Tier = Tier.FULL) -> bytes:
        """The frame of coded latents, with the mask in front where there is one."""
        if self.background is None:
            return self.pack(Kind.LATENT, sections, setting, tier)
        return self.pack(Kind.MASKED, (self.mask_section, *sections), setting, tier)

    @cached_property
    def mask_section(self) -> bytes:
        """Bytes of the mask; none without a background."""
        return mask.pack_mask(self.background) if self.background else b""

    def take_smaller(self, exact: bytes) -> None:
        """Store the chunk losslessly where that takes no more bytes."""
        self.frame = exact if not self.frame or len(exact) <= len(self.frame) else self.frame

    def keeps_guard(self, frame: bytes) -> bool:
        """Whether the decoder's output of a frame reaches what was promised."""
        from zarr_emcodec.codecs.decode import decode_within_slot  # which finds this room's chains by name

        options = dataclasses.replace(self.options, tier=None)  # a promise is about the frame's own tier
        (back,) = decode_within_slot([frame], options, [None])
        decoded = self.tissue_of(back.astype(self.native.dtype, copy=False))
        original = self.tissue_of(self.native)
        spec = self.spec
        if spec.max_error is not None and worst_error(original, decoded) > spec.max_error:
            return False
        peak = _GREY_PEAK * (self.window.scale if self.window else 1.0)
        return spec.min_psnr is None or psnr(original, decoded, peak=peak) >= spec.min_psnr


def check_chunk(chunk: Chunk, options: Options) -> None:
    """Refuse what no frame can hold.

    Raises
    ------
    SpecError
        Naming what was given and what to do instead.
    """
    check_dtype(chunk.dtype)
    if chunk.ndim == 1:
        raise SpecError(
            "chunk is flat: a filter before the codec takes its shape away. Use the codec without filters, on "
            "arrays of 2 to 5 axes.",
            name="shape",
            value=chunk.shape,
        )
    if chunk.ndim > 5:
        raise SpecError(f"chunk has {chunk.ndim} axes, at most 5 are possible.", name="shape", value=chunk.shape)
    if chunk.size == 0:
        raise SpecError(f"chunk of shape {chunk.shape} holds no voxels.", name="shape", value=chunk.shape)
    if chunk.nbytes > options.max_chunk_bytes:
        raise SpecError(
            f"chunk of {chunk.nbytes} bytes exceeds the limit of {options.max_chunk_bytes}. Use smaller chunks, or "
            "options(max_chunk_bytes=...) on every machine that reads them.",
            name="shape",
            value=chunk.shape,
        )


def check_dtype(dtype: np.dtype[np.generic]) -> None:
    """Refuse dtypes that are not grey values, labels above all.

    Raises
    ------
    SpecError
        Naming a codec that fits.
    """
    if dtype.kind in "buiO" and dtype.name not in DTYPES:
        raise SpecError(
            f"dtype {dtype}: labels and masks must stay exact, a lossy codec would invent neurons. Use zstd or blosc "
            f"in Zarr, or crackle or compressed_segmentation in precomputed; grey values go in as {', '.join(DTYPES)}.",
            name="dtype",
            value=str(dtype),
        )
    if dtype.name not in DTYPES:
        raise SpecError(f"dtype {dtype}: convert to one of {', '.join(DTYPES)}.", name="dtype", value=str(dtype))


def _check_finite(chunk: Chunk) -> None:
    if chunk.dtype.kind == "f" and not np.isfinite(chunk).all():
        bad = int(np.size(chunk) - np.count_nonzero(np.isfinite(chunk)))
        raise SpecError(
            f"chunk holds {bad} NaN or infinite voxels. Replace them by a finite background value and pass it as "
            "background=, which keeps them exact.",
            name="chunk",
            value=bad,
        )
