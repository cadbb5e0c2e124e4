"""Chunks to frames and back: frozen specs, and the chain that joins transform, runtime, entropy and frame."""

from __future__ import annotations

from zarr_emcodec.codecs.base import Spec
from zarr_emcodec.codecs.decode import decode_many, decode_sections
from zarr_emcodec.codecs.encode import encode_many
from zarr_emcodec.codecs.inr import INRSpec
from zarr_emcodec.codecs.vae import VAESpec
from zarr_emcodec.codecs.vqvae import VQVAESpec
from zarr_emcodec.codecs.vqvae_decode import leading_sections

__all__ = [
    "INRSpec",
    "Spec",
    "VAESpec",
    "VQVAESpec",
    "decode_many",
    "decode_sections",
    "encode_many",
    "leading_sections",
]
