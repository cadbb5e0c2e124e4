"""The variational codec, for the registry."""

from __future__ import annotations

from zarr_emcodec.codecs.registry import Chain
from zarr_emcodec.codecs.vae_decode import decode
from zarr_emcodec.codecs.vae_encode import VAEJob, encode

CHAIN = Chain(job=VAEJob, encode=encode, decode=decode)
