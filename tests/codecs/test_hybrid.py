"""Hybrids: fields that correct what a variational model gives, in one frame with it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="fits need torch")

import zarr_emcodec
from tests.codecs.fields import chunks, encode, frames, tissue
from tests.volumes import Array
from zarr_emcodec.codecs import INRSpec, VAESpec, decode_many, encode_many
from zarr_emcodec.codecs.lazy import LazyChunk
from zarr_emcodec.codecs.siren_frames import PRIOR
from zarr_emcodec.errors import ChecksumError, FrameError, ModelNotFoundError, SpecError
from zarr_emcodec.frame import Kind, pack, unpack
from zarr_emcodec.quality import psnr
from zarr_emcodec.runtime import find_model

MODEL = "vae-2d-s32@1"


def parts(data: bytes) -> tuple[bytes, bytes]:
    """Side information and prior of a frame without a mask, both from its first section."""
    side = bytes(unpack(data).sections[0])
    layers = unpack(data).setting & ~PRIOR
    n = 3 + 4 * layers  # a width below 128
    return side[:n], side[n:]


def with_prior(data: bytes, prior: bytes) -> bytes:
    """The frame with another prior, and every checksum right."""
    frame = unpack(data)
    return pack(replace(frame, sections=(parts(data)[0] + prior, frame.sections[1])))


def other(chunk: Array) -> bytes:
    return encode_many(VAESpec(ratio=48, model=MODEL), [chunk])[0]


def test_the_prior_is_a_frame_of_its_share() -> None:
    chunk, _ = chunks()["hybrid"]
    prior = parts(frames()["hybrid"])[1]
    frame = unpack(prior)
    assert (frame.kind, frame.shape, frame.dtype) == (Kind.LATENT, chunk.shape, chunk.dtype)
    assert frame.model == find_model(MODEL).card.digest[:8]
    assert 0.8 * chunk.nbytes / 64 < len(prior) <= chunk.nbytes / 64


def test_the_field_corrects_its_prior() -> None:
    chunk, _ = chunks()["hybrid"]
    data = encode(chunk, prior="vae", effort=2)
    alone, both = decode_many([parts(data)[1], data])
    assert psnr(chunk, both, peak=255) > psnr(chunk, alone, peak=255) + 0.1


def test_shares_divide_the_bytes() -> None:
    chunk = tissue(4, 64, 64)
    sizes = [len(parts(encode(chunk, prior=MODEL, prior_share=share))[1]) for share in (0.3, 0.7)]
    assert 1.8 < sizes[1] / sizes[0] < 2.6


def test_a_hybrid_is_decoded_whole_and_asked_like_any_chunk() -> None:
    for name in ("hybrid", "hybrid u16 masked"):
        whole = decode_many([frames()[name]])[0]
        lazy = LazyChunk(frames()[name])
        assert not lazy.is_field
        assert np.array_equal(lazy[1:, ::5, 7], whole[1:, ::5, 7])
        assert lazy.at([[1, 2.4, 3.6]])[0] == whole[1, 2, 4]


def test_decoding_loads_no_torch() -> None:
    code = (
        "import sys; from zarr_emcodec.codecs import decode_many\n"
        f"decode_many([bytes.fromhex('{frames()['hybrid'].hex()}')])\n"
        "assert not {'torch', 'onnx', 'zarr'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_priors_that_do_not_fit_are_refused() -> None:
    data = frames()["hybrid"]
    chunk, _ = chunks()["hybrid"]
    prior = parts(data)[1]
    assert np.array_equal(decode_many([with_prior(data, prior)])[0], decode_many([data])[0])
    for wrong, words in (
        (b"", "prior|frame"),
        (prior[:-1], "byte|frame"),
        (other(chunk[:2]), "its field stands for"),
        (other(chunk.astype("u2")), "its field stands for"),
        (frames()["volume"], "its field stands for"),
        (encode(chunk), "a frame of codec 'inr'"),
        (data, "a frame of codec 'inr'"),
    ):
        with pytest.raises(FrameError, match=words):
            decode_many([with_prior(data, wrong)])
    flipped = bytearray(prior)
    flipped[-3] ^= 1
    with pytest.raises(ChecksumError):
        decode_many([with_prior(data, bytes(flipped))])
    nameless = pack(replace(unpack(prior), model=bytes(range(8))))
    with pytest.raises(ModelNotFoundError):
        decode_many([with_prior(data, nameless)])


def test_any_frame_of_the_right_shape_will_do() -> None:
    data = frames()["hybrid"]
    chunk, _ = chunks()["hybrid"]
    exact = encode_many(VAESpec(max_error=0), [np.asfortranarray(chunk)])[0]
    flat = encode_many(VAESpec(), [np.full_like(chunk, 100)])[0]
    on_exact, on_flat = (decode_many([with_prior(data, prior)])[0].astype(int) for prior in (exact, flat))
    correction = on_flat - 100
    inside = (on_exact > 0) & (on_exact < 255)
    assert np.abs(on_exact - chunk - correction)[inside].max() <= 0  # whole grey levels plus the same numbers


def test_a_prior_of_float32_that_is_not_finite_is_refused() -> None:
    chunk = tissue(3, 60, 64).astype("f4")
    data = encode(chunk, prior=MODEL, ratio=64)
    flat = encode_many(VAESpec(), [np.full_like(chunk, np.nan)])[0]
    with pytest.raises(FrameError, match="NaN or infinity"):
        decode_many([with_prior(data, flat)])


def test_what_specs_say_of_priors() -> None:
    spec = INRSpec(ratio=64, prior="vae", prior_share=0.25)
    found = VAESpec(ratio=64)  # at the prior's share of the bytes
    assert (spec.prior, spec.prior_digest) == (found.model, find_model(found.model).card.digest_hex)
    assert spec.digests == (spec.digest, spec.prior_digest)
    assert INRSpec.from_config(spec.to_config(), codec="emcodec_inr") == spec
    assert (INRSpec().prior, INRSpec().digests) == (None, (INRSpec().digest,))


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"prior": "vae", "prior_share": 0}, "prior_share 0: needs a number between 0 and 1"),
        ({"prior": "vae", "prior_share": 1.0}, "VAECodec"),
        ({"prior": "vae", "prior_share": "half"}, "prior_share 'half'"),
        ({"prior": "inr-siren"}, "prior: at 0.5 of the bytes model 'inr-siren@"),
        ({"prior": "vae-2d-s32", "ratio": 400}, "prior: at 0.5 of the bytes model 'vae-2d-s32@1' covers"),
    ],
)
def test_what_is_refused(words: dict[str, Any], match: str) -> None:
    with pytest.raises(SpecError, match=match) as caught:
        INRSpec(**words)
    assert caught.value.name in words


def test_a_chunk_without_room_for_both_names_the_smallest_that_works() -> None:
    chunk = tissue(3, 34, 36)
    assert len(encode(chunk, ratio=32)) < chunk.nbytes / 32
    with pytest.raises(SpecError, match="smallest chunk that works"):
        encode(chunk, ratio=32, prior=MODEL)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_both_models_travel_with_an_array(tmp_path: Path, zarr_format: Any) -> None:
    chunk, _ = chunks()["hybrid"]
    codec = zarr_emcodec.v3.INRCodec(24, prior=MODEL, effort=0)
    array = zarr_emcodec.create_array(
        tmp_path / "a.zarr", data=chunk, codec=codec, zarr_format=zarr_format, embed_model=True
    )
    folders = {path.parent.name for path in tmp_path.rglob("card.json")}
    assert {f"sha256:{name}" for name in folders} == set(codec.spec.digests)
    assert [model["model"] for model in array.attrs["emcodec"]["models"]] == ["inr-siren@2", MODEL]  # type: ignore[index,call-overload,union-attr]
    again = zarr_emcodec.open(tmp_path / "a.zarr")
    assert psnr(chunk, np.asarray(again[...]), peak=255) > 20  # type: ignore[index]
