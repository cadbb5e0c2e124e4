"""`VAECodec`, `VQVAECodec` and `INRCodec` for numcodecs: the compressor of a Zarr v2 array.

Chunks arrive with their real shape, dtype and memory order as long as no filter stands before the codec; bytes come
back. A codec holds a spec and nothing else that is stored, so it pickles, compares and prints by its configuration.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numcodecs.abc import Codec
from numcodecs.compat import ndarray_copy
from numcodecs.registry import register_codec

from zarr_emcodec import codecs
from zarr_emcodec._types import Buffer, Chunk
from zarr_emcodec.adapters.reading import options_at
from zarr_emcodec.codecs.base import Mode, Spec
from zarr_emcodec.codecs.inr import INRSpec
from zarr_emcodec.codecs.vae import VAESpec
from zarr_emcodec.codecs.vqvae import VQVAESpec
from zarr_emcodec.errors import SpecError
from zarr_emcodec.fitting import DEFAULT_EFFORT
from zarr_emcodec.runtime.options import TierName


class SpecCodec(Codec):  # type: ignore[misc]  # numcodecs does not annotate its registry metaclass
    """What the codecs of this package have in common: everything but the words of their configuration."""

    SPEC: ClassVar[type[Spec]]
    spec: Spec
    _tier: TierName | None = None

    def encode(self, buf: Any) -> bytes:
        """One chunk as a frame.

        Parameters
        ----------
        buf : array_like, 0-D or 2-D to 5-D
            uint8, uint16, int16 or float32, C or F order.

        Returns
        -------
        bytes

        Raises
        ------
        SpecError
            If the chunk cannot be encoded; see `zarr_emcodec.codecs.encode_many`.
        """
        return self.encode_many([buf])[0]

    def encode_many(self, bufs: Sequence[Any]) -> list[bytes]:
        """Several chunks as frames, through shared inference calls."""
        return codecs.encode_many(self.spec, [_as_chunk(buf) for buf in bufs])

    def decode(self, buf: Any, out: Any = None) -> Any:
        """The chunk of a frame, in its own shape, dtype and memory order.

        Parameters
        ----------
        buf : buffer
            A whole frame.
        out : buffer, optional
            Filled and returned when given.

        Returns
        -------
        ndarray

        Raises
        ------
        FrameError
            If the bytes are not a frame.
        """
        return ndarray_copy(self.decode_many([buf])[0], out)

    def decode_many(self, bufs: Sequence[Any]) -> list[Chunk]:
        """The chunks of several frames, through shared inference calls."""
        return codecs.decode_many([_as_buffer(buf) for buf in bufs], options_at(self._tier))

    def get_config(self) -> dict[str, Any]:
        """Plain JSON data, with the codec's id."""
        return {"id": self.codec_id, **self.spec.to_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Inverse of `get_config`; numcodecs has taken the id away, other callers may not have."""
        words = {key: value for key, value in config.items() if key != "id"}
        codec = cls.__new__(cls)
        codec.spec = cls.SPEC.from_config(words, codec=cls.codec_id)
        return codec

    def to_v3(self) -> Any:
        """The same codec as a Zarr v3 serializer."""
        from zarr_emcodec.adapters.zarr3 import codec_for

        return codec_for(self.spec)

    def reading_at(self, tier: TierName | None) -> Self:
        """A copy that decodes at a tier, whatever frames and options say; it encodes and is stored as before."""
        other = copy.copy(self)
        other._tier = tier
        return other

    def __repr__(self) -> str:
        words = ", ".join(f"{key}={value!r}" for key, value in self.spec.to_config().items())
        return f"{type(self).__name__}({words})"

    def __hash__(self) -> int:
        return hash(self.spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SpecCodec) and self.spec == other.spec


class VAECodec(SpecCodec):
    """Electron microscopy through a trained autoencoder, as a numcodecs codec.

    Parameters
    ----------
    ratio, model, mode, min_psnr, max_error, window, background, effort, voxel_nm
        As in `zarr_emcodec.codecs.VAESpec`, where each is explained.
    digest : str
        "sha256:<hex>" of the model; filled in from `model`, given only in stored metadata.

    Notes
    -----
    In Zarr v2: ``zarr.create_array(..., zarr_format=2, compressors=VAECodec(ratio=64))`` and no filters. A partial
    write decodes, merges and encodes its whole chunk again, so voxels beside it may change once more.

    Examples
    --------
    >>> codec = VAECodec(ratio=32)
    >>> section = np.tile(np.arange(64, dtype="u1"), (64, 1))
    >>> frame = codec.encode(section)
    >>> codec.decode(frame).shape
    (64, 64)
    >>> VAECodec.from_config(codec.get_config()) == codec
    True
    """

    codec_id: ClassVar[str] = "emcodec_vae"
    SPEC: ClassVar[type[Spec]] = VAESpec
    spec: VAESpec

    def __init__(
        self,
        ratio: float | None = None,
        *,
        model: str = "auto",
        mode: Mode = "entropy",
        min_psnr: float | None = None,
        max_error: float | None = None,
        window: Sequence[float] | None = None,
        background: float | Literal["auto"] | None = "auto",
        effort: int = 0,
        voxel_nm: Sequence[float] | None = None,
        digest: str = "",
    ) -> None:
        self.spec = VAESpec(
            ratio=ratio,
            model=model,
            mode=mode,
            min_psnr=min_psnr,
            max_error=max_error,
            window=window,  # type: ignore[arg-type]  # any sequence of two is taken, and stored as a tuple
            background=background,
            effort=effort,
            voxel_nm=voxel_nm,  # type: ignore[arg-type]  # likewise, of three
            digest=digest,
        )


class VQVAECodec(SpecCodec):
    """Electron microscopy as tokens of a trained codebook, at ratios up to 1024, as a numcodecs codec.

    Parameters
    ----------
    ratio, model, mode, min_psnr, max_error, window, background, tier, keep, price, effort, voxel_nm
        As in `zarr_emcodec.codecs.VQVAESpec`, where each is explained.
    digest : str
        "sha256:<hex>" of the model; filled in from `model`, given only in stored metadata.

    Notes
    -----
    In Zarr v2: ``zarr.create_array(..., zarr_format=2, compressors=VQVAECodec(ratio=1024))`` and no filters. What the
    tier "prior" shows between the tokens that are stored is synthesised texture, not what was there.
    """

    codec_id: ClassVar[str] = "emcodec_vqvae"
    SPEC: ClassVar[type[Spec]] = VQVAESpec
    spec: VQVAESpec

    def __init__(
        self,
        ratio: float | None = None,
        *,
        model: str = "auto",
        mode: Mode = "entropy",
        min_psnr: float | None = None,
        max_error: float | None = None,
        window: Sequence[float] | None = None,
        background: float | Literal["auto"] | None = "auto",
        tier: TierName | None = None,
        keep: float | None = None,
        price: float | None = None,
        effort: int = 0,
        voxel_nm: Sequence[float] | None = None,
        digest: str = "",
    ) -> None:
        self.spec = VQVAESpec(
            ratio=ratio,
            model=model,
            mode=mode,
            min_psnr=min_psnr,
            max_error=max_error,
            window=window,  # type: ignore[arg-type]  # any sequence of two is taken, and stored as a tuple
            background=background,
            tier=tier,
            keep=keep,
            price=price,
            effort=effort,
            voxel_nm=voxel_nm,  # type: ignore[arg-type]  # likewise, of three
            digest=digest,
        )


class INRCodec(SpecCodec):
    """Electron microscopy as a small network fitted to each chunk, which decodes at any voxel, as a numcodecs codec.

    Parameters
    ----------
    ratio, backbone, bits, layers, effort, seed, time_limit, model, mode, min_psnr, max_error, window, background
        As in `zarr_emcodec.codecs.INRSpec`, where each is explained.
    digest : str
        "sha256:<hex>" of the model; filled in from `model`, given only in stored metadata.

    Notes
    -----
    In Zarr v2: ``zarr.create_array(..., zarr_format=2, compressors=INRCodec(ratio=64))`` and no filters. Encoding fits
    a network for seconds to hours a chunk, and needs torch; decoding needs neither. `zarr_emcodec.INRField` reads
    single voxels, and places between them, without decoding chunks.
    """

    codec_id: ClassVar[str] = "emcodec_inr"
    SPEC: ClassVar[type[Spec]] = INRSpec
    spec: INRSpec

    def __init__(
        self,
        ratio: float | None = None,
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
        window: Sequence[float] | None = None,
        background: float | Literal["auto"] | None = "auto",
        prior_digest: str = "",
        digest: str = "",
    ) -> None:
        self.spec = INRSpec(
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
            window=window,  # type: ignore[arg-type]  # any sequence of two is taken, and stored as a tuple
            background=background,
            prior_digest=prior_digest,
            digest=digest,
        )


_KINDS: dict[str, type[SpecCodec]] = {kind.SPEC.CODEC: kind for kind in (VAECodec, VQVAECodec, INRCodec)}


def codec_for(spec: Spec) -> SpecCodec:
    """The numcodecs codec of a spec."""
    kind = _KINDS[spec.CODEC]
    return kind.from_config(spec.to_config())


def _as_chunk(buf: Any) -> Chunk:
    if isinstance(buf, bytes | bytearray):
        raise SpecError("raw bytes have no shape: pass the chunk as an ndarray.", name="buf", value=type(buf).__name__)
    return np.asarray(buf)


def _as_buffer(buf: Any) -> Buffer:
    return buf if isinstance(buf, bytes | bytearray) else np.ascontiguousarray(buf).data.cast("B")


for _kind in _KINDS.values():
    register_codec(_kind)
