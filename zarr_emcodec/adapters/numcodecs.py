"""`VAECodec` for numcodecs: the compressor of a Zarr v2 array.

Chunks arrive with their real shape, dtype and memory order as long as no filter stands before the codec; bytes come
back. The codec holds a spec and nothing else, so it pickles, compares and prints by its configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numcodecs.abc import Codec
from numcodecs.compat import ndarray_copy
from numcodecs.registry import register_codec

from zarr_emcodec import codecs
from zarr_emcodec._types import Buffer, Chunk
from zarr_emcodec.codecs.vae import Mode, VAESpec
from zarr_emcodec.errors import SpecError


class VAECodec(Codec):  # type: ignore[misc]  # numcodecs does not annotate its registry metaclass
    """Electron microscopy through a trained autoencoder, as a numcodecs codec.

    Parameters
    ----------
    ratio, model, mode, min_psnr, max_error, window, background
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
            digest=digest,
        )

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
        return codecs.decode_many([_as_buffer(buf) for buf in bufs])

    def get_config(self) -> dict[str, Any]:
        """Plain JSON data, with the codec's id."""
        return {"id": self.codec_id, **self.spec.to_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Inverse of `get_config`; numcodecs has taken the id away, other callers may not have."""
        words = {key: value for key, value in config.items() if key != "id"}
        codec = cls.__new__(cls)
        codec.spec = VAESpec.from_config(words, codec=cls.codec_id)
        return codec

    def to_v3(self) -> Any:
        """The same codec as a Zarr v3 serializer."""
        from zarr_emcodec.adapters.zarr3 import VAECodec as Serializer

        return Serializer(self.spec)

    def __repr__(self) -> str:
        words = ", ".join(f"{key}={value!r}" for key, value in self.spec.to_config().items())
        return f"{type(self).__name__}({words})"

    def __hash__(self) -> int:
        return hash(self.spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VAECodec) and self.spec == other.spec


def _as_chunk(buf: Any) -> Chunk:
    if isinstance(buf, bytes | bytearray):
        raise SpecError("raw bytes have no shape: pass the chunk as an ndarray.", name="buf", value=type(buf).__name__)
    return np.asarray(buf)


def _as_buffer(buf: Any) -> Buffer:
    return buf if isinstance(buf, bytes | bytearray) else np.ascontiguousarray(buf).data.cast("B")


register_codec(VAECodec)
