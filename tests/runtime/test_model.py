"""A model's files: checked before use, bounded, the same in every thread and process."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="building the tiny model needs onnx")
pytest.importorskip("onnxruntime", reason="running the tiny model needs onnxruntime")
import onnx

from tests.runtime.tiny_model import (
    CHANNELS,
    LEVELS,
    card_of,
    decode_by_digest,
    decode_in_worker,
    some_symbols,
    tiny_files,
    write_tiny_model,
)
from zarr_emcodec.errors import ModelError, ModelMismatchError, ModelNotFoundError
from zarr_emcodec.runtime import Options, find_model, open_model, options
from zarr_emcodec.runtime.model import read_tables

if TYPE_CHECKING:
    from pathlib import Path


def test_analysis_and_synthesis_give_the_image_back(alone: Path) -> None:
    model = open_model(write_tiny_model(alone))
    y, x = np.mgrid[:32, :40]
    grey = (128 + 60 * np.sin(y / 9) * np.cos(x / 7)).astype(np.float32)[None, None]
    latents = model.run("encoder", {"grey": grey})
    assert latents.shape == (1, CHANNELS, 8, 10)
    gain = model.tables()["gain"][0]
    symbols = np.round(latents / gain[:, None, None])
    back = model.run("decoder", {"symbols": symbols, "level": np.zeros(1, np.int64)})
    assert back.shape == grey.shape
    assert back.dtype == np.float32
    assert float(np.abs(back - grey).max()) < 8


def test_tables_are_read_only_and_whole(alone: Path) -> None:
    tables = open_model(write_tiny_model(alone)).tables()
    assert set(tables) == {"freqs", "lows", "sizes", "precision", "index", "gain"}
    assert tables["index"].shape == tables["gain"].shape == (LEVELS, CHANNELS)
    with pytest.raises(ValueError, match="read-only"):
        tables["gain"][0] = 0


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx", "tables.npz"])
def test_one_changed_byte_is_found_before_use(alone: Path, name: str) -> None:
    place = write_tiny_model(alone)
    data = bytearray((place / name).read_bytes())
    data[len(data) // 2] ^= 1
    (place / name).write_bytes(data)
    model = open_model(place)

    def use() -> object:
        if name == "tables.npz":
            return model.tables()
        if name == "decoder.onnx":
            return model.run("decoder", some_symbols())
        return model.run("encoder", {"grey": np.zeros((1, 1, 8, 8), np.float32)})

    with pytest.raises(ModelMismatchError, match=name) as caught:
        use()
    named = {**model.card.decoder_files, **model.card.encoder_files}
    assert caught.value.expected == named[name] != caught.value.found


def test_a_changed_card_is_another_model(alone: Path) -> None:
    place = write_tiny_model(alone)
    digest = find_model("tiny").card.digest
    text = (place / "card.json").read_text().replace('"levels": 16', '"levels": 15')
    (place / "card.json").write_text(text)
    assert open_model(place).card.digest != digest


def test_missing_files_are_named(alone: Path) -> None:
    place = write_tiny_model(alone)
    (place / "tables.npz").unlink()
    with pytest.raises(ModelError, match=r"tables\.npz"):
        open_model(place).tables()
    with pytest.raises(ModelError, match=r"no file 'prior\.onnx'"):
        open_model(place).file("prior.onnx")
    with pytest.raises(ModelError, match=r"card\.json"):
        open_model(alone)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(alone: Path) -> None:
    place = write_tiny_model(alone)
    (place / "decoder.onnx").unlink()
    os.mkfifo(place / "decoder.onnx")
    with pytest.raises(ModelError, match="no file"):
        open_model(place).run("decoder", some_symbols())


def test_files_are_read_once(alone: Path) -> None:
    place = write_tiny_model(alone)
    model = open_model(place)
    first = model.run("decoder", some_symbols())
    model.decoder_files()
    shutil.rmtree(place)  # as an upgrade does under a running process
    with options(threads=2):
        assert np.array_equal(model.run("decoder", some_symbols()), first)


def test_equality_is_by_digest(alone: Path, tmp_path: Path) -> None:
    a = open_model(write_tiny_model(alone, seed=1))
    b = open_model(write_tiny_model(tmp_path / "copy", seed=1))
    c = open_model(write_tiny_model(tmp_path / "other", seed=2))
    assert a == b != c
    assert len({a, b, c}) == 2
    assert a != a.card.digest
    assert "tiny@1" in repr(a)


def test_a_pickle_holds_no_weights_and_finds_the_model_again(alone: Path, tmp_path: Path) -> None:
    model = open_model(write_tiny_model(alone))
    model.run("decoder", some_symbols())
    data = pickle.dumps(model)
    assert len(data) < 500
    assert pickle.loads(data) == model
    (alone / "tiny-1").rename(alone / "moved")
    assert pickle.loads(data).directory == alone / "moved"
    shutil.rmtree(alone / "moved")
    with pytest.raises(ModelNotFoundError):
        find_model("tiny")


def test_a_pickle_does_not_take_another_model_in_its_place(alone: Path, tmp_path: Path) -> None:
    data = pickle.dumps(open_model(write_tiny_model(tmp_path / "a", seed=1)))
    shutil.rmtree(tmp_path / "a")
    write_tiny_model(tmp_path / "a", seed=2)
    with pytest.raises(ModelNotFoundError):
        pickle.loads(data)


def test_threads_share_one_model(alone: Path) -> None:
    model = open_model(write_tiny_model(alone))
    with ThreadPoolExecutor(8) as pool:
        results = set(pool.map(decode_in_worker, [model] * 64))
    assert len(results) == 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_decode_alike(alone: Path, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    model = open_model(write_tiny_model(alone))
    with options(threads=2):  # a thread pool that the child does not inherit
        expected = decode_in_worker(model)
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.apply(decode_in_worker, (model,)) == expected
            assert pool.apply(decode_by_digest, (model.card.digest,)) == expected


def test_a_network_that_breaks_its_cards_promise_is_refused(alone: Path) -> None:
    place = write_tiny_model(alone)
    card = json.loads((place / "card.json").read_text())
    card["decoder"]["stride"] = [8, 8]
    (place / "card.json").write_text(json.dumps(card))
    model = open_model(place)
    with pytest.raises(ModelError, match="its card means"):
        model.run("decoder", some_symbols())
    with pytest.raises(ModelError, match="its card means"):
        model.run("encoder", {"grey": np.zeros((1, 1, 8, 8), np.float32)})


@pytest.mark.parametrize("level", [LEVELS, -LEVELS - 1, 2**40])
def test_a_level_that_does_not_exist_is_a_model_error(alone: Path, level: int) -> None:
    model = open_model(write_tiny_model(alone))
    with pytest.raises(ModelError):
        model.run("decoder", {**some_symbols(1), "level": np.array([level])})


@pytest.mark.parametrize("inputs", [{}, {"symbols": 1}, {"level": 1}, {"symbols": 1, "level": 1, "more": 1}])
def test_wrong_inputs_are_a_model_error(alone: Path, inputs: dict[str, int]) -> None:
    model = open_model(write_tiny_model(alone))
    known: dict[str, Any] = {**some_symbols(), "more": np.zeros(2, np.float32)}
    with pytest.raises(ModelError, match="network"):
        model.run("decoder", {name: known[name] for name in inputs}, Options())


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def zipped(name: str, data: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr(name, data)
    return stream.getvalue()


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


HEADER = "{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04",
        npz(a=np.array([{"code": 1}], object)),
        npz(a=np.array(["text"])),
        npz(a=np.zeros(2, [("x", "i4")])),
        npz(a=np.zeros(2, np.complex64)),
        npz(**{f"a{i}": np.zeros(1) for i in range(65)}),
        zipped("a.npy", npy(HEADER.format("<i4", "(1000000000, 1000000000)"))),
        zipped("a.npy", npy(HEADER.format("<i4", "(2,)"), b"1234")),
        zipped("a.npy", npy(HEADER.format("<i4", "(1,)"), b"12345678")),
        zipped("a.npy", npy(HEADER.format("|O", "(1,)"), b"\x80\x04N.")),
        zipped("a.npy", npy(HEADER.format("<b4", "(1,)"), b"1234")),
        zipped("a.npy", npy("(" * 3000, b"")),
        zipped("a.npy", npy(HEADER.format("<i4", "(-1,)"), b"1234")),
        zipped("a.npy", b"not numpy"),
        zipped("a.npy", npy(HEADER.format("|u1", f"({1 << 27},)"), bytes(1 << 27)), zipfile.ZIP_DEFLATED),
        zipped("a.npy", npy(HEADER.format("<i4", "(1,)"), b"1234"), zipfile.ZIP_LZMA),
    ],
    ids=["empty", "magic", "objects", "text", "struct", "complex", "many", "huge", "short", "long", "object claim",
         "odd type", "deep header", "negative", "no array", "bomb", "lzma"],
)  # fmt: skip
def test_hostile_archives_are_model_errors(data: bytes) -> None:
    with pytest.raises(ModelError, match="tables"):
        read_tables(data, "tables")


def test_every_cut_archive_is_a_model_error() -> None:
    data = npz(a=np.arange(5), b=np.float32(3))
    for stop in range(len(data)):
        with pytest.raises(ModelError):
            read_tables(data[:stop], "tables")


def test_plain_archives_of_all_layouts_read_back() -> None:
    arrays = {
        "scalar": np.array(14, np.int64),
        "fortran": np.asfortranarray(np.arange(6, dtype=">u2").reshape(2, 3)),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
    }
    back = read_tables(npz(**arrays), "tables")
    assert all(np.array_equal(back[name], value) and back[name].dtype == value.dtype for name, value in arrays.items())


def test_a_hostile_network_is_refused_before_it_runs(alone: Path) -> None:
    files = tiny_files()
    model = onnx.load_model_from_string(files["decoder.onnx"])
    next(node for node in model.graph.node if node.op_type == "LeakyRelu").op_type = "Celu"  # a runtime would take it
    files["decoder.onnx"] = model.SerializeToString()
    files["card.json"] = json.dumps(card_of(files)).encode()
    place = alone / "hostile"
    place.mkdir()
    for name, data in files.items():
        (place / name).write_bytes(data)
    with pytest.raises(ModelError, match="'Celu' is not one of those allowed"):
        open_model(place).run("decoder", some_symbols())
