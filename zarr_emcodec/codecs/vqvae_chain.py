"""The token codec, for the registry."""

from __future__ import annotations

from zarr_emcodec.codecs.registry import Chain
from zarr_emcodec.codecs.vqvae_decode import decode
from zarr_emcodec.codecs.vqvae_encode import VQJob, encode

CHAIN = Chain(job=VQJob, encode=encode, decode=decode, takes_roi=True)
