"""Model cards: JSON text of a model directory in, a checked `Card` and its digest out.

The digest covers the card's ``decoder`` part, which names every file that decoding depends on by its SHA-256; so a
better encoder for the same decoder keeps it. No file but the card's own text is looked at here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

from zarr_emcodec.errors import ModelError, ModelMismatchError
from zarr_emcodec.runtime.card_values import NAME as NAME
from zarr_emcodec.runtime.card_values import CardReader
from zarr_emcodec.runtime.context_card import ContextCard, read_context
from zarr_emcodec.runtime.inr_card import PLACEHOLDERS, InrCard, read_inr
from zarr_emcodec.runtime.token_card import TokenCard, read_tokens

CARD_FORMAT = 1
MAX_CARD_BYTES = 1 << 20
VERSION = r"[1-9][0-9]{0,5}"

_ID = re.compile(rf"({NAME})@({VERSION})")
_CODEC = re.compile(r"[a-z][a-z0-9_]{0,31}")
_MAX_STRIDE = 1024
_MAX_CHANNELS = 1 << 16
_MAX_LEVELS = 256  # a frame names its level in one byte
_MAX_HALO = 1024
_FREE = ("voxel_nm", "mac_per_voxel", "training", "measured")


@dataclass(frozen=True)
class Card:
    """Description of one model. Halos count latent cells, the stride voxels per cell, axes in array order.

    Attributes
    ----------
    id : str
        "name@version"; a version is never reused.
    codec : str
        Kind of codec that the networks serve, e.g. "vae".
    decoder : mapping
        The part that the digest covers, as it was parsed.
    ndim : int
        2 for models of sections, 3 for models of volumes.
    stride : tuple of int
        One entry per axis of `ndim`.
    channels, levels : int
        Of the latent; of the quality ladder. 1 and 1 for models of tokens.
    decoder_files, encoder_files : mapping of str to str
        SHA-256 (hex) of each file; no encoder files in a model that came with a dataset.
    decoder_halo, encoder_halo : tuple of int
        Cells around a cell that its value depends on.
    ratio_range : (float, float)
        Ratios that the ladder reaches, or that tokens stand for at 8 bits a voxel.
    voxel_nm, mac_per_voxel, training, measured : mapping
        As the exporter wrote them.
    licence : str
        Of the weights.
    tokens : TokenCard or None
        What a model of codec "vqvae" says of its tokens.
    inr : InrCard or None
        What a model of codec "inr" says of the networks that its frames bring along.
    context : ContextCard or None
        What a model of codec "vae" with a learned entropy model says of it.
    auto : (float, float) or None
        Ratios at which ``model="auto"`` may take it, the whole range where the file says nothing. None, false in the
        file, of models that are asked for by name.
    extra : mapping
        Keys that this version does not know.
    """

    id: str
    codec: str
    decoder: Mapping[str, Any] = field(hash=False, repr=False)
    ndim: int
    stride: tuple[int, ...]
    channels: int
    levels: int
    decoder_files: Mapping[str, str] = field(hash=False, repr=False)
    decoder_halo: tuple[int, ...]
    encoder_files: Mapping[str, str] = field(hash=False, repr=False)
    encoder_halo: tuple[int, ...]
    ratio_range: tuple[float, float]
    voxel_nm: Mapping[str, Any] = field(hash=False, repr=False)
    mac_per_voxel: Mapping[str, Any] = field(hash=False, repr=False)
    training: Mapping[str, Any] = field(hash=False, repr=False)
    licence: str
    tokens: TokenCard | None
    inr: InrCard | None
    context: ContextCard | None
    measured: Mapping[str, Any] = field(hash=False, repr=False)
    auto: tuple[float, float] | None
    extra: Mapping[str, Any] = field(hash=False, repr=False)

    @property
    def cell(self) -> tuple[int, ...]:
        """Voxels, on each axis, to whose multiples chunks are padded."""
        return self.stride if self.tokens is None else self.tokens.cell

    @property
    def tiers(self) -> tuple[str, ...]:
        """Names of the tiers that its frames may be decoded at, the cheapest first."""
        return ("full",) if self.tokens is None else self.tokens.tiers

    @property
    def name(self) -> str:
        """The id before its version."""
        return self.id.rpartition("@")[0]

    @property
    def version(self) -> int:
        """The id's version, at least 1."""
        return int(self.id.rpartition("@")[2])

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the canonical ``decoder`` part, 32 bytes."""
        return canonical_digest(self.decoder)

    @property
    def digest_hex(self) -> str:
        """The digest as array metadata write it: "sha256:<64 hex digits>"."""
        return f"sha256:{self.digest.hex()}"


def canonical_digest(decoder: Mapping[str, Any]) -> bytes:
    """SHA-256 of a card's ``decoder`` part as canonical JSON: keys sorted, no spaces, UTF-8.

    Parameters
    ----------
    decoder : mapping
        Plain JSON data.

    Returns
    -------
    bytes, 32

    Examples
    --------
    >>> canonical_digest({"b": 1, "a": [2]}).hex()[:16]
    '63c9663de90ee828'
    """
    text = json.dumps(decoder, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).digest()


def parse_card(text: str | bytes, where: str) -> Card:
    """Check a card's text.

    Parameters
    ----------
    text : str or bytes
        JSON, at most 1 MiB.
    where : str
        What error messages call it, e.g. its path.

    Raises
    ------
    ModelError
        If it is not a card of a known format, or a value is missing or out of bounds.
    ModelMismatchError
        If it states a digest that its decoder part does not have.
    """
    if len(text) > MAX_CARD_BYTES:
        raise ModelError(f"{where}: {len(text)} bytes, a card has at most {MAX_CARD_BYTES}.")
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ModelError(f"{where}: not JSON ({error}). Reinstall the model.") from error
    reader = CardReader(where)
    data = reader.mapping(data, "the card")
    if data.get("format") != CARD_FORMAT:
        raise ModelError(
            f"{where}: card format {data.get('format')!r:.40}, this version knows {CARD_FORMAT}. Upgrade zarr_emcodec."
        )
    try:
        card = _read(reader, data)
        stated = data.get("digest", card.digest_hex)
    except (ValueError, RecursionError) as error:  # lone surrogates, 1e999, a depth that only just parsed
        raise ModelError(f"{where}: no canonical form ({error}). Reinstall the model.") from error
    if stated != card.digest_hex:
        raise ModelMismatchError(
            f"{where}: states digest {stated!r:.80}, its decoder part has {card.digest_hex}. Reinstall the model.",
            expected=str(stated),
            found=card.digest_hex,
        )
    return card


def _read(reader: CardReader, data: Mapping[str, Any]) -> Card:
    decoder = reader.mapping(data.get("decoder"), "decoder")
    encoder = reader.mapping(data.get("encoder", {}), "encoder")
    codec = reader.text(data.get("codec"), "codec", _CODEC)
    inr = read_inr(reader, decoder) if codec == "inr" else None
    stated = decoder
    if inr is not None:
        decoder = {**decoder, **PLACEHOLDERS}
    ndim = reader.integer(decoder.get("ndim"), "decoder.ndim", 2, 3)
    files = reader.files(decoder.get("files"), "decoder.files", "decoder.onnx")
    tokens = read_tokens(reader, decoder, encoder, ndim) if codec == "vqvae" else None
    channels = 1 if tokens else reader.integer(decoder.get("channels"), "decoder.channels", 1, _MAX_CHANNELS)
    known = {"format", "id", "codec", "digest", "decoder", "encoder", "ratio_range", "licence", "auto", *_FREE}
    free = {name: reader.mapping(data.get(name, {}), name) for name in _FREE}
    for name in ("voxel_nm", "mac_per_voxel"):
        reader.numbers(free[name], name)
    ratio_range = reader.span(data.get("ratio_range"), "ratio_range")
    auto = data.get("auto", True)
    return Card(
        id=reader.text(data.get("id"), "id", _ID),
        codec=codec,
        decoder=stated,
        ndim=ndim,
        stride=reader.per_axis(decoder.get("stride"), "decoder.stride", ndim, 1, _MAX_STRIDE),
        channels=channels,
        levels=1 if tokens else reader.integer(decoder.get("levels"), "decoder.levels", 1, _MAX_LEVELS),
        decoder_files=files,
        decoder_halo=reader.per_axis(decoder.get("halo"), "decoder.halo", ndim, 0, _MAX_HALO),
        encoder_files=reader.files(encoder.get("files"), "encoder.files", "encoder.onnx") if encoder else {},
        encoder_halo=reader.per_axis(encoder.get("halo", [0] * ndim), "encoder.halo", ndim, 0, _MAX_HALO),
        ratio_range=ratio_range,
        licence=reader.text(data.get("licence", ""), "licence", None),
        tokens=tokens,
        inr=inr,
        context=read_context(reader, decoder, encoder, ndim, channels) if codec == "vae" else None,
        auto=(ratio_range if auto else None) if isinstance(auto, bool) else reader.span(auto, "auto"),
        extra={key: value for key, value in data.items() if key not in known},
        **free,
    )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
