"""`VAECodec`, `VQVAECodec` and `INRCodec` for Zarr v3: serializers (array to bytes), batched, decoding parts of chunks.

Both codec pipelines are served: the batched one calls ``encode``, ``decode`` and ``decode_partial`` with many chunks,
which share inference; the fused one calls the synchronous methods, one chunk at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

import numpy as np
from zarr.abc.codec import ArrayBytesCodec, ArrayBytesCodecPartialDecodeMixin
from zarr.abc.store import RangeByteRequest
from zarr.registry import register_codec
from zarr.storage import StorePath

from zarr_emcodec import codecs
from zarr_emcodec._types import Chunk
from zarr_emcodec.adapters.reading import first_bytes, leading_part, options_at, planes_of, shifted
from zarr_emcodec.codecs.base import Mode, Spec
from zarr_emcodec.codecs.encode import check_dtype
from zarr_emcodec.codecs.inr import INRSpec
from zarr_emcodec.codecs.lazy import LazyChunk
from zarr_emcodec.codecs.vae import VAESpec
from zarr_emcodec.codecs.vqvae import VQVAESpec
from zarr_emcodec.errors import FrameError, SpecError
from zarr_emcodec.fitting import DEFAULT_EFFORT
from zarr_emcodec.frame import Frame
from zarr_emcodec.runtime.options import TierName

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

T = TypeVar("T")
R = TypeVar("R")
Plan = Generator[tuple[int, int], bytes | None, Frame | bytes | None]


@dataclass(frozen=True, init=False)
class SpecSerializer(ArrayBytesCodec, ArrayBytesCodecPartialDecodeMixin):
    """What the serializers of this package have in common: everything but the words of their configuration.

    Parameters
    ----------
    spec : Spec
        What is asked for; all that is written to metadata.
    tier : {"top", "prior", "full"} or None
        Decode at this tier, whatever frames and options say.
    """

    NAME: ClassVar[str]
    SPEC: ClassVar[type[Spec]]
    is_fixed_size: ClassVar[bool] = False  # type: ignore[misc]  # the base declares an instance attribute

    spec: Spec = field()
    tier: TierName | None = field(default=None, compare=False, repr=False)

    def _hold(self, spec: Spec, tier: TierName | None = None) -> None:
        object.__setattr__(self, "spec", spec)
        object.__setattr__(self, "tier", tier)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """From metadata: ``{"name": ..., "configuration": {...}}``."""
        return cls._of(cls.SPEC.from_config(data.get("configuration") or {}, codec=cls.NAME))

    @classmethod
    def _of(cls, spec: Spec, tier: TierName | None = None) -> Self:
        codec = cls.__new__(cls)
        codec._hold(spec, tier)
        return codec

    def reading_at(self, tier: TierName | None) -> Self:
        """The same codec, but decoding at a tier; it encodes and is stored as before."""
        return self._of(self.spec, tier)

    def to_dict(self) -> dict[str, Any]:
        """What stands in ``zarr.json``."""
        return {"name": self.NAME, "configuration": self.spec.to_config()}

    def to_v2(self) -> Any:
        """The same codec for numcodecs and Zarr v2."""
        from zarr_emcodec.adapters import numcodecs

        return numcodecs.codec_for(self.spec)

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """Refuse arrays of labels and of too many axes when they are created, not at their first chunk."""
        check_array(shape, dtype.to_native_dtype())

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Not known beforehand: frames vary in size."""
        raise NotImplementedError

    async def encode(self, chunks_and_specs: Iterable[tuple[NDBuffer | None, ArraySpec]]) -> list[Buffer | None]:
        """Encode a batch; None (a chunk of fill value) passes through."""
        return await asyncio.to_thread(_present, self._encode_batch, list(chunks_and_specs))

    async def decode(self, chunks_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]) -> list[NDBuffer | None]:
        """Decode a batch; None (a missing chunk) passes through."""
        return await asyncio.to_thread(_present, self._decode_batch, list(chunks_and_specs))

    async def decode_partial(self, batch_info: Iterable[tuple[Any, Any, ArraySpec]]) -> list[NDBuffer | None]:
        """Decode selections of a batch of chunks; whole sections that are not selected are not decoded.

        Of frames that are decoded at a lower tier than they store only the leading part is fetched. All others are
        fetched whole: they are small, and one checksum covers all of it.
        """
        items = list(batch_info)
        data = await asyncio.gather(*(self._fetch(getter, spec) for getter, _, spec in items))
        work = [(d, (selection, spec)) for d, (_, selection, spec) in zip(data, items, strict=True)]
        return await asyncio.to_thread(_present, self._select_batch, work)

    async def _decode_partial_single(self, byte_getter: Any, selection: Any, chunk_spec: ArraySpec) -> NDBuffer | None:
        return (await self.decode_partial([(byte_getter, selection, chunk_spec)]))[0]

    def _decode_partial_sync(self, byte_getter: Any, selection: Any, chunk_spec: ArraySpec) -> NDBuffer | None:
        data = self._fetch_sync(byte_getter, chunk_spec)
        return _present(self._select_batch, [(data, (selection, chunk_spec))])[0]

    def _plan(self, byte_getter: Any, chunk_spec: ArraySpec) -> Plan | None:
        """Which byte ranges to fetch; None for the whole frame."""
        if not isinstance(self.spec, VQVAESpec) or not isinstance(byte_getter, StorePath):
            return None  # the chunks of a shard are in memory by now
        options = options_at(self.tier)
        first = first_bytes(self.spec, chunk_spec.shape, options)
        return None if first is None else leading_part(first, options)

    async def _fetch(self, byte_getter: Any, chunk_spec: ArraySpec) -> bytes | Frame | None:
        plan = self._plan(byte_getter, chunk_spec)
        if plan is None:
            return _as_bytes(await byte_getter.get(prototype=chunk_spec.prototype))
        try:
            span = next(plan)
            while True:
                part = RangeByteRequest(*span)
                span = plan.send(_as_bytes(await byte_getter.get(prototype=chunk_spec.prototype, byte_range=part)))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    def _fetch_sync(self, byte_getter: Any, chunk_spec: ArraySpec) -> bytes | Frame | None:
        plan = self._plan(byte_getter, chunk_spec)
        if plan is None:
            return _as_bytes(byte_getter.get_sync(prototype=chunk_spec.prototype))
        try:
            span = next(plan)
            while True:
                part = RangeByteRequest(*span)
                span = plan.send(_as_bytes(byte_getter.get_sync(prototype=chunk_spec.prototype, byte_range=part)))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        return await asyncio.to_thread(self._encode_sync, chunk_array, chunk_spec)

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return await asyncio.to_thread(self._decode_sync, chunk_bytes, chunk_spec)

    def _encode_sync(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        return self._encode_batch([(chunk_array, chunk_spec)])[0]

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return self._decode_batch([(chunk_bytes, chunk_spec)])[0]

    def _encode_batch(self, items: list[tuple[NDBuffer, ArraySpec]]) -> list[Buffer]:
        # chunks are views of the user's array: their memory order is not the stored array's business in v3
        arrays = [np.asarray(chunk.as_numpy_array(), order="C") for chunk, _ in items]  # keeps 0-D as it is
        frames = codecs.encode_many(self.spec, arrays)
        return [spec.prototype.buffer.from_bytes(frame) for frame, (_, spec) in zip(frames, items, strict=True)]

    def _decode_batch(self, items: list[tuple[Buffer, ArraySpec]]) -> list[NDBuffer]:
        chunks = codecs.decode_many([data.to_bytes() for data, _ in items], options_at(self.tier))
        return [_as_buffer(chunk, spec) for chunk, (_, spec) in zip(chunks, items, strict=True)]

    def _select_batch(self, items: list[tuple[bytes | Frame, tuple[Any, ArraySpec]]]) -> list[NDBuffer]:
        planes = [planes_of(selection, spec.shape) for _, (selection, spec) in items]
        chunks = codecs.decode_many([data for data, _ in items], options_at(self.tier), planes=planes)
        out = []
        for chunk, span, (_, (selection, spec)) in zip(chunks, planes, items, strict=True):
            _check_shape(chunk, spec, planes=None if span is None else span[1] - span[0])
            part = chunk[selection] if span is None else chunk[(shifted(selection[0], span[0]), *selection[1:])]
            out.append(spec.prototype.nd_buffer.from_numpy_array(np.asarray(part, order="C")))
        return out


@dataclass(frozen=True, init=False)
class VAECodec(SpecSerializer):
    """Electron microscopy through a trained autoencoder, as a Zarr v3 serializer.

    Parameters
    ----------
    ratio, model, mode, min_psnr, max_error, window, background, effort, voxel_nm, digest
        As in `zarr_emcodec.VAECodec`; a ready `VAESpec` may stand in place of `ratio`.

    Notes
    -----
    ``zarr.create_array(..., serializer=VAECodec(ratio=64), compressors=None)``. Anything after it, even a checksum,
    only costs: frames are dense and checked already.
    """

    NAME: ClassVar[str] = "emcodec.vae"
    SPEC: ClassVar[type[Spec]] = VAESpec

    spec: VAESpec = field()

    def __init__(
        self,
        ratio: float | VAESpec | None = None,
        *,
        model: str = "auto",
        mode: Mode = "entropy",
        min_psnr: float | None = None,
        max_error: float | None = None,
        window: tuple[float, float] | None = None,
        background: float | Literal["auto"] | None = "auto",
        effort: int = 0,
        voxel_nm: tuple[float, float, float] | None = None,
        digest: str = "",
    ) -> None:
        if not isinstance(ratio, VAESpec):
            ratio = VAESpec(
                ratio=ratio,
                model=model,
                mode=mode,
                min_psnr=min_psnr,
                max_error=max_error,
                window=window,
                background=background,
                effort=effort,
                voxel_nm=voxel_nm,
                digest=digest,
            )
        self._hold(ratio)


@dataclass(frozen=True, init=False)
class VQVAECodec(SpecSerializer):
    """Electron microscopy as tokens of a trained codebook, at ratios up to 1024, as a Zarr v3 serializer.

    Parameters
    ----------
    ratio, model, mode, min_psnr, max_error, window, background, tier, keep, price, effort, voxel_nm, digest
        As in `zarr_emcodec.VQVAECodec`; a ready `VQVAESpec` may stand in place of `ratio`.

    Notes
    -----
    ``zarr.create_array(..., serializer=VQVAECodec(ratio=1024), compressors=None)``. Read at the tier "top", only the
    leading part of frames is fetched, unless they lie in shards.
    """

    NAME: ClassVar[str] = "emcodec.vqvae"
    SPEC: ClassVar[type[Spec]] = VQVAESpec

    spec: VQVAESpec = field()

    def __init__(
        self,
        ratio: float | VQVAESpec | None = None,
        *,
        model: str = "auto",
        mode: Mode = "entropy",
        min_psnr: float | None = None,
        max_error: float | None = None,
        window: tuple[float, float] | None = None,
        background: float | Literal["auto"] | None = "auto",
        tier: TierName | None = None,
        keep: float | None = None,
        price: float | None = None,
        effort: int = 0,
        voxel_nm: tuple[float, float, float] | None = None,
        digest: str = "",
    ) -> None:
        if not isinstance(ratio, VQVAESpec):
            ratio = VQVAESpec(
                ratio=ratio,
                model=model,
                mode=mode,
                min_psnr=min_psnr,
                max_error=max_error,
                window=window,
                background=background,
                tier=tier,
                keep=keep,
                price=price,
                effort=effort,
                voxel_nm=voxel_nm,
                digest=digest,
            )
        self._hold(ratio)


@dataclass(frozen=True, init=False)
class INRCodec(SpecSerializer):
    """Electron microscopy as a small network fitted to each chunk, which decodes at any voxel, as a Zarr v3 serializer.

    Parameters
    ----------
    ratio, backbone, bits, layers, effort, seed, time_limit, ...
        As in `zarr_emcodec.INRCodec`; a ready `INRSpec` may stand in place of `ratio`.

    Notes
    -----
    ``zarr.create_array(..., serializer=INRCodec(ratio=64), compressors=None)``. Of a selection exactly its voxels are
    computed, whatever the chunks hold besides.
    """

    NAME: ClassVar[str] = "emcodec.inr"
    SPEC: ClassVar[type[Spec]] = INRSpec

    spec: INRSpec = field()

    def __init__(
        self,
        ratio: float | INRSpec | None = None,
        *,
        backbone: str = "siren",
        bits: int = 6,
        layers: int | None = None,
        effort: int = DEFAULT_EFFORT,
        seed: int = 0,
        time_limit: float | None = None,
        prior: str | None = None,
        prior_share: float = 0.5,
        model: str = "auto",
        mode: Mode = "entropy",
        min_psnr: float | None = None,
        max_error: float | None = None,
        window: tuple[float, float] | None = None,
        background: float | Literal["auto"] | None = "auto",
        prior_digest: str = "",
        digest: str = "",
    ) -> None:
        if not isinstance(ratio, INRSpec):
            ratio = INRSpec(
                ratio=ratio,
                backbone=backbone,
                bits=bits,
                layers=layers,
                effort=effort,
                seed=seed,
                time_limit=time_limit,
                prior=prior,
                prior_share=prior_share,
                model=model,
                mode=mode,
                min_psnr=min_psnr,
                max_error=max_error,
                window=window,
                background=background,
                prior_digest=prior_digest,
                digest=digest,
            )
        self._hold(ratio)

    def _select_batch(self, items: list[tuple[bytes | Frame, tuple[Any, ArraySpec]]]) -> list[NDBuffer]:
        out = []
        for data, (selection, spec) in items:
            chunk = LazyChunk(data, options_at(self.tier))
            _check_shape(chunk, spec)
            part = np.asarray(chunk[selection], order="C")
            out.append(spec.prototype.nd_buffer.from_numpy_array(part))
        return out


_KINDS: dict[str, type[SpecSerializer]] = {kind.SPEC.CODEC: kind for kind in (VAECodec, VQVAECodec, INRCodec)}


def codec_for(spec: Spec) -> SpecSerializer:
    """The serializer of a spec."""
    return _KINDS[spec.CODEC]._of(spec)


def _as_bytes(data: Buffer | None) -> bytes | None:
    return None if data is None else data.to_bytes()


def _present(function: Callable[[list[tuple[T, Any]]], list[R]], items: list[tuple[T | None, Any]]) -> list[R | None]:
    """Apply a batch function to the chunks that are there."""
    there = [(chunk, spec) for chunk, spec in items if chunk is not None]
    results = iter(function(there) if there else [])
    return [None if chunk is None else next(results) for chunk, _ in items]


def _as_buffer(chunk: Chunk, spec: ArraySpec) -> NDBuffer:
    _check_shape(chunk, spec)
    return spec.prototype.nd_buffer.from_numpy_array(chunk)


def _check_shape(chunk: Chunk | LazyChunk, spec: ArraySpec, planes: int | None = None) -> None:
    expected = spec.shape if planes is None else (planes, *spec.shape[1:])
    if chunk.shape != expected:
        raise FrameError(
            f"frame decodes to shape {chunk.shape}, the array's chunks are {expected}. It belongs to another array.",
            field="shape",
        )


def check_array(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
    """Refuse arrays whose chunks could not be encoded.

    Raises
    ------
    SpecError
        If the dtype is not one of grey values, or there are too few or too many axes.
    """
    check_dtype(dtype)
    if len(shape) == 1 or len(shape) > 5:
        raise SpecError(f"array has {len(shape)} axes, 2 to 5 are possible.", name="shape", value=shape)


for _kind in _KINDS.values():
    register_codec(_kind.NAME, _kind)
