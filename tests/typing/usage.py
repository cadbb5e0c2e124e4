"""What users write, checked for types and never run."""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

import zarr_emcodec
from zarr_emcodec import INRCodec, INRField, VAECodec, VQVAECodec, errors, v3


def pipeline_engineer(volume: NDArray[np.uint8]) -> zarr.Array[Any]:
    with zarr_emcodec.options(threads=2, provider="cpu"):
        array = zarr_emcodec.create_array("em.zarr", data=volume, ratio=64, shards=(64, 512, 512))
    zarr.create_array(
        "plain.zarr", data=volume, chunks=(16, 512, 512), serializer=v3.VAECodec(ratio=64), compressors=None
    )
    zarr_emcodec.create_array("tokens.zarr", data=volume, codec="vqvae", ratio=1024)
    zarr_emcodec.create_array("both.zarr", data=volume, codec=VQVAECodec(204.8, tier="top", price=0.5))
    return array


def microscopist(volume: NDArray[np.uint8]) -> NDArray[Any]:
    array = zarr_emcodec.create_array("fields.zarr", data=volume, codec=INRCodec(256, effort=6, time_limit=600))
    field = INRField(array)
    print(field[3, 100, 200], field[..., ::8, ::8].shape, field.at([[3.5, 100.2, 200.7]]))
    return field.resample((1, 2, 2), np.s_[3:5, 100:200, 100:200])


def analyst(url: str) -> float:
    node = zarr_emcodec.open(url, trust_embedded=True, tier="top")
    assert isinstance(node, zarr.Array)
    section = np.asarray(node[0])
    return zarr_emcodec.psnr(section, section, peak=255)


def codec_author(chunk: NDArray[np.uint16]) -> bytes:
    codec = VAECodec(min_psnr=40, window=(0, 4095))
    try:
        frames: list[bytes] = codec.encode_many([chunk])
    except errors.SpecError as error:
        print(error.name, error.value)
        raise
    info = zarr_emcodec.inspect(frames[0])
    print(info.kind, info.overhead_bytes, zarr_emcodec.find_model(codec.spec.digest).card.ratio_range)
    return frames[0]
