"""The codecs as Zarr v3 serializers: ``zarr.create_array(..., serializer=v3.VAECodec(ratio=64), compressors=None)``."""

from __future__ import annotations

from zarr_emcodec.adapters.zarr3 import INRCodec, VAECodec, VQVAECodec

__all__ = ["INRCodec", "VAECodec", "VQVAECodec"]
