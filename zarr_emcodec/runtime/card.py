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

CARD_FORMAT = 1
MAX_CARD_BYTES = 1 << 20
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
VERSION = r"[1-9][0-9]{0,5}"

_ID = re.compile(rf"({NAME})@({VERSION})")
_FILE = re.compile(NAME)  # one plain name: never a path
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CODEC = re.compile(r"[a-z][a-z0-9_]{0,31}")
_MAX_FILES = 32
_MAX_STRIDE = 1024
_MAX_CHANNELS = 1 << 16
_MAX_LEVELS = 256  # a frame names its level in one byte
_MAX_HALO = 1024
_MAX_RATIO = float(1 << 20)
_MAX_FREE = 1e15  # numbers that nothing is computed from
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
        Of the latent; of the quality ladder.
    decoder_files, encoder_files : mapping of str to str
        SHA-256 (hex) of each file; no encoder files in a model that came with a dataset.
    decoder_halo, encoder_halo : tuple of int
        Cells around a cell that its value depends on.
    ratio_range : (float, float)
        Ratios that the ladder reaches.
    voxel_nm, mac_per_voxel, training, measured : mapping
        As the exporter wrote them.
    licence : str
        Of the weights.
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
    measured: Mapping[str, Any] = field(hash=False, repr=False)
    extra: Mapping[str, Any] = field(hash=False, repr=False)

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
    reader = _Reader(where)
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


def _read(reader: _Reader, data: Mapping[str, Any]) -> Card:
    decoder = reader.mapping(data.get("decoder"), "decoder")
    encoder = reader.mapping(data.get("encoder", {}), "encoder")
    ndim = reader.integer(decoder.get("ndim"), "decoder.ndim", 2, 3)
    files = reader.files(decoder.get("files"), "decoder.files", "decoder.onnx")
    known = {"format", "id", "codec", "digest", "decoder", "encoder", "ratio_range", "licence", *_FREE}
    free = {name: reader.mapping(data.get(name, {}), name) for name in _FREE}
    for name in ("voxel_nm", "mac_per_voxel"):
        reader.numbers(free[name], name)
    return Card(
        id=reader.text(data.get("id"), "id", _ID),
        codec=reader.text(data.get("codec"), "codec", _CODEC),
        decoder=decoder,
        ndim=ndim,
        stride=reader.per_axis(decoder.get("stride"), "decoder.stride", ndim, 1, _MAX_STRIDE),
        channels=reader.integer(decoder.get("channels"), "decoder.channels", 1, _MAX_CHANNELS),
        levels=reader.integer(decoder.get("levels"), "decoder.levels", 1, _MAX_LEVELS),
        decoder_files=files,
        decoder_halo=reader.per_axis(decoder.get("halo"), "decoder.halo", ndim, 0, _MAX_HALO),
        encoder_files=reader.files(encoder.get("files"), "encoder.files", "encoder.onnx") if encoder else {},
        encoder_halo=reader.per_axis(encoder.get("halo", [0] * ndim), "encoder.halo", ndim, 0, _MAX_HALO),
        ratio_range=reader.span(data.get("ratio_range"), "ratio_range"),
        licence=reader.text(data.get("licence", ""), "licence", None),
        extra={key: value for key, value in data.items() if key not in known},
        **free,
    )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


@dataclass(frozen=True)
class _Reader:
    """Typed, bounded reads whose errors name the card and the key."""

    where: str

    def wrong(self, key: str, value: Any, wanted: str) -> ModelError:
        return ModelError(f"{self.where}: {key} is {value!r:.80}, needs {wanted}. Reinstall the model.")

    def mapping(self, value: Any, key: str) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise self.wrong(key, value, "an object")
        return value

    def text(self, value: Any, key: str, pattern: re.Pattern[str] | None) -> str:
        if not isinstance(value, str) or (pattern and not pattern.fullmatch(value)):
            raise self.wrong(key, value, f"text like {pattern.pattern}" if pattern else "text")
        return value

    def integer(self, value: Any, key: str, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(key, value, f"an integer from {low} to {high}")
        return value

    def per_axis(self, value: Any, key: str, ndim: int, low: int, high: int) -> tuple[int, ...]:
        if not isinstance(value, list) or len(value) != ndim:
            raise self.wrong(key, value, f"{ndim} integers")
        return tuple(self.integer(v, key, low, high) for v in value)

    def span(self, value: Any, key: str) -> tuple[float, float]:
        if not isinstance(value, list) or len(value) != 2 or not all(_is_number(v, _MAX_RATIO) for v in value):
            raise self.wrong(key, value, "two numbers")
        low, high = (float(v) for v in value)
        if not 1 <= low <= high:
            raise self.wrong(key, value, "two numbers, 1 or more, low before high")
        return low, high

    def files(self, value: Any, key: str, needed: str) -> Mapping[str, str]:
        files = self.mapping(value, key)
        if needed not in files or len(files) > _MAX_FILES:
            raise self.wrong(key, sorted(files), f"{needed!r}, and at most {_MAX_FILES} files")
        for name, sha256 in files.items():
            if not _FILE.fullmatch(name):
                raise self.wrong(key, name, "plain file names")
            self.text(sha256, f"{key}[{name!r}]", _SHA256)
        return files

    def numbers(self, values: Mapping[str, Any], key: str) -> None:
        for name, value in values.items():
            for v in value if isinstance(value, list) else [value]:
                if v is not None and not isinstance(v, str) and not _is_number(v, _MAX_FREE):
                    raise self.wrong(f"{key}.{name}", value, f"text or numbers from 0 to {_MAX_FREE:g}")


def _is_number(value: Any, limit: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= limit  # inf is beyond it
