"""Cards of neural fields: what they say, what is refused; the shipped model is what its exporter makes."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import numpy as np
import pytest

from zarr_emcodec.codecs.siren_frames import weight_coder_of
from zarr_emcodec.errors import ModelError
from zarr_emcodec.fitting import Architecture
from zarr_emcodec.runtime import check_onnx, find_model, parse_card
from zarr_emcodec.runtime.card import Card
from zarr_emcodec.runtime.model import Model, read_tables

MODEL = find_model("inr-siren@1")
CARD: dict[str, Any] = json.loads(MODEL.decoder_files()["card.json"])


def card(path: str = "", value: Any = None) -> Card:
    data = copy.deepcopy(CARD)
    if path:
        del data["digest"]
        *parents, last = path.split(".")
        place = data
        for key in parents:
            place = place[key]
        if value is KeyError:
            del place[last]
        else:
            place[last] = value
    return parse_card(json.dumps(data), "card")


def test_what_the_shipped_card_says() -> None:
    found = card()
    assert found.inr is not None
    assert (found.codec, found.inr.backbone, found.inr.layers, found.inr.rows) == ("inr", "siren", (3, 7), 1024)
    assert [found.inr.part(n) for n in (3, 7)] == ["decoder-3", "decoder"]
    assert (found.cell, found.tiers, found.digest_hex) == ((1, 1), ("full",), CARD["digest"])
    assert MODEL.can_encode
    for name in found.decoder_files:
        if name.endswith(".onnx"):
            check_onnx(MODEL.file(name))
    assert sum(len(MODEL.file(name)) for name in found.decoder_files) < 100_000


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("decoder.backbone", "pyramid", "this version knows 'siren'"),
        ("decoder.backbone", "latents", "one or two grids"),
        ("decoder.backbone", KeyError, "backbone None"),
        ("decoder.layers", [2, 7], "decoder.layers is 2"),
        ("decoder.layers", [3], "2 integers"),
        ("decoder.layers", [3, 8], "'decoder-7.onnx'"),
        ("decoder.rows", 0, "decoder.rows is 0"),
        ("decoder.rows", "many", "decoder.rows"),
        ("decoder.files", {"decoder.onnx": "0" * 64}, "'decoder-3.onnx'"),
        ("decoder.files", [], "decoder.files"),
    ],
)
def test_what_is_refused(path: str, value: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        card(path, value)


STARTED = find_model("inr-siren@2")


def test_the_card_of_a_model_with_starts() -> None:
    assert STARTED.card.inr is not None
    assert STARTED.card.inr.starts == ((2, 3, 96), (2, 4, 96), (3, 3, 96), (3, 4, 96))
    assert sum(len(STARTED.file(name)) for name in STARTED.card.decoder_files) < 200_000
    coder = weight_coder_of(STARTED)
    assert np.array_equal(coder.steps, weight_coder_of(MODEL).steps)
    assert coder.start(Architecture(1, 20, 4), [64]) is None
    assert coder.start(Architecture(3, 97, 4), (8, 8, 8)) is None
    start = coder.start(Architecture(3, 20, 4), (8, 64, 64))
    assert start is not None
    assert [w.shape for w in start] == list(Architecture(3, 20, 4).shapes)
    assert weight_coder_of(MODEL).start(Architecture(3, 20, 4), (8, 64, 64)) is None


@pytest.mark.parametrize(
    ("starts", "words"),
    [
        ("none", "decoder.starts is 'none'"),
        ([[2, 4]], "needs 3 integers"),
        ([[6, 4, 16]], "at most 5 axes"),
        ([[2, 8, 16]], "3 to 7 layers"),
        ([[2, 4, 0]], "from 1 to 1024"),
        ([[2, 4, 16]] * 17, "a list of at most 16"),
    ],
)
def test_starts_that_are_refused(starts: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        card("decoder.starts", starts)


def test_starts_that_the_tables_lack_are_refused() -> None:
    data = copy.deepcopy(json.loads(STARTED.decoder_files()["card.json"]))
    del data["digest"]
    data["decoder"]["starts"].append([4, 4, 16])
    text = json.dumps(data).encode()
    model = Model(parse_card(text, "card"), text, files={"tables.npz": STARTED.file("tables.npz")})
    with pytest.raises(ModelError, match=r"does not hold start 0 of Architecture\(axes=4, width=16"):
        weight_coder_of(model)


def test_the_exporter_makes_what_is_shipped() -> None:
    pytest.importorskip("torch", reason="the exporters need torch")
    pytest.importorskip("onnx", reason="building graphs needs onnx")
    from zarr_emcodec.runtime.session import OnnxRuntimeNetwork
    from zarr_emcodec.train.export_inr import decoder_onnx, tables_npz

    ours, shipped = (read_tables(data, "tables") for data in (tables_npz(), MODEL.file("tables.npz")))
    assert all(np.array_equal(ours[key], shipped[key]) for key in {*ours, *shipped})
    rng = np.random.default_rng(0)
    sizes = [2, 5, 5, 5, 1]
    inputs = {"coords": rng.normal(0, 1, (7, 2)).astype("f4")}
    for i, (into, out) in enumerate(itertools.pairwise(sizes), 1):
        inputs |= {f"w{i}": rng.normal(0, 1, (into, out)).astype("f4"), f"b{i}": rng.normal(0, 1, out).astype("f4")}
    first, second = (
        OnnxRuntimeNetwork(data, "cpu", 1).run(inputs) for data in (decoder_onnx(4), MODEL.file("decoder-4.onnx"))
    )
    assert np.array_equal(first, second)
    signal: Any = inputs["coords"]
    for i in range(1, 4):
        signal = np.sin(signal @ inputs[f"w{i}"] + inputs[f"b{i}"])
    np.testing.assert_allclose(first, signal @ inputs["w4"] + inputs["b4"], atol=1e-5)
