"""Cards: what is read from them, what is refused, what the digest covers."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from typing import Any

import pytest

from tests.runtime.tiny_model import card_of, tiny_files
from zarr_emcodec.errors import ModelError, ModelMismatchError
from zarr_emcodec.runtime import canonical_digest, parse_card

DATA = card_of(tiny_files())


def changed(path: str, value: Any) -> bytes:
    data: Any = copy.deepcopy(DATA)
    *parents, last = path.split(".")
    place = data
    for key in parents:
        place = place[key]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return json.dumps(data).encode()


def test_a_card_reads_back() -> None:
    card = parse_card(json.dumps(DATA), "card")
    assert (card.name, card.version, card.codec, card.ndim) == ("tiny", 1, "vae", 2)
    assert (card.stride, card.channels, card.levels) == ((4, 4), 16, 16)
    assert (card.decoder_halo, card.encoder_halo, card.ratio_range) == ((1, 1), (0, 0), (2.0, 200.0))
    assert card.auto == card.ratio_range
    assert card.decoder_files == DATA["decoder"]["files"]
    assert hash(card) == hash(parse_card(json.dumps(DATA), "card"))


def test_digest_is_that_of_the_written_rule() -> None:
    text = json.dumps(DATA["decoder"], sort_keys=True).replace(": ", ":").replace(", ", ",")
    expected = hashlib.sha256(text.encode()).digest()
    assert parse_card(json.dumps(DATA), "card").digest == expected == canonical_digest(DATA["decoder"])


def test_digest_follows_the_decoder_alone() -> None:
    digest = parse_card(json.dumps(DATA), "card").digest
    path: str
    value: Any
    for path, value in (("encoder.files", {"encoder.onnx": "0" * 64}), ("licence", "MIT"), ("id", "other@7")):
        assert parse_card(changed(path, value), "card").digest == digest
    for path, value in (("decoder.levels", 3), ("decoder.new_key", 1), ("decoder.files", {"decoder.onnx": "0" * 64})):
        assert parse_card(changed(path, value), "card").digest != digest


def test_a_stated_digest_must_be_true() -> None:
    digest = parse_card(json.dumps(DATA), "card").digest_hex
    assert parse_card(changed("digest", digest), "card").extra == {}
    for wrong in (digest[:-1], "sha256:" + "0" * 64, None, 3):
        with pytest.raises(ModelMismatchError):
            parse_card(changed("digest", wrong), "card")


def test_unknown_keys_are_kept_aside() -> None:
    assert parse_card(changed("colour", "grey"), "card").extra == {"colour": "grey"}


def test_a_card_without_encoder_is_a_decoder() -> None:
    card = parse_card(changed("encoder", KeyError), "card")
    assert card.encoder_files == {}
    assert card.encoder_halo == (0, 0)


WRONG = [
    ("format", 2), ("format", None), ("format", True + 1), ("id", "tiny"), ("id", "tiny@0"), ("id", "../tiny@1"),
    ("id", "tiny@1\n"), ("id", 3), ("codec", "../vae"), ("decoder", KeyError), ("decoder", []),
    ("decoder.files", {}), ("decoder.files", {"../decoder.onnx": "0" * 64}), ("decoder.files.decoder.onnx", "x"),
    ("decoder.ndim", 4), ("decoder.ndim", True), ("decoder.levels", True), ("decoder.stride", [4]),
    ("decoder.stride", [0, 4]),
    ("decoder.stride", [4.0, 4]), ("decoder.channels", 10**9), ("decoder.channels", 10**400), ("decoder.levels", 257),
    ("decoder.halo", [-1, 0]), ("decoder.halo", KeyError), ("decoder.odd", float("inf")), ("decoder.odd", "\ud800"),
    ("encoder.files", KeyError), ("encoder.files", {"/etc/passwd": "0" * 64, "encoder.onnx": "0" * 64}),
    ("ratio_range", KeyError), ("ratio_range", [8]), ("ratio_range", [8, 4]), ("ratio_range", [0, 4]),
    ("ratio_range", [1, 10**400]), ("auto", [8]), ("auto", "no"), ("auto", None),
    ("mac_per_voxel", {"encode": -1}), ("voxel_nm", [4]), ("licence", 3),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_wrong_values_are_model_errors(path: str, value: Any) -> None:
    if path == "decoder.files.decoder.onnx":
        path, value = "decoder.files", {"decoder.onnx": value}
    with pytest.raises(ModelError, match=r"card"):
        parse_card(changed(path, value), "card")


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": 1e999}', b'{"format": NaN}', b"9" * 5000, b"[" * 100_000,
     b'{"format":1,"decoder":' + b'{"a":' * 50_000, b" " * (1 << 21)],
)  # fmt: skip
def test_hostile_text_is_a_model_error(text: bytes) -> None:
    with pytest.raises(ModelError, match=r"^card"):
        parse_card(text, "card")


@pytest.mark.parametrize("depth", [300, 900, 960, 980, 1000, 3000, 30_000])
def test_depth_that_parses_but_may_have_no_canonical_form_raises_nothing_else(depth: int) -> None:
    deep = b'"odd":' + b'{"a":' * depth + b"1" + b"}" * depth
    text = json.dumps(DATA).encode().replace(b'"decoder": {', b'"decoder": {' + deep + b",", 1)
    with contextlib.suppress(ModelError):  # interpreters differ in how deep they go
        parse_card(text, "card")
