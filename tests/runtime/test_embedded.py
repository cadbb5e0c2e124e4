"""Models inside datasets: whom they are refused to, what is checked, where they stay."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="running the tiny model needs onnxruntime")

from tests.runtime.tiny_model import card_of, decode_by_digest, decode_in_worker, some_symbols, tiny_files
from tests.runtime.tiny_model import write_tiny_model as write
from zarr_emcodec.errors import ModelError, ModelMismatchError, ModelNotFoundError, SpecError
from zarr_emcodec.runtime import cache_folder, find_model, list_models, open_model, options, register_embedded
from zarr_emcodec.runtime.find import registered

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def carried(tmp_path: Path) -> tuple[dict[str, bytes], str]:
    """Files and digest as a dataset carries them, of a model that is not installed."""
    model = open_model(write(tmp_path / "elsewhere", seed=5))
    return model.decoder_files(), model.card.digest_hex


def test_what_travels_is_the_decoder_alone(carried: tuple[dict[str, bytes], str]) -> None:
    files, _ = carried
    assert set(files) == {"card.json", "decoder.onnx", "tables.npz"}
    card = json.loads(files["card.json"])
    assert "encoder" not in card
    assert card["licence"] == "BSD-3-Clause"


def test_untrusted_is_refused_and_leaves_nothing(carried: tuple[dict[str, bytes], str]) -> None:
    files, digest = carried
    with pytest.raises(ModelError, match="trust_embedded=True"):
        register_embedded(files, trust=False, digest=digest)
    assert not cache_folder().exists()
    with pytest.raises(ModelNotFoundError):
        find_model(digest)


@pytest.mark.parametrize("by", ["trust", "option", "local model"])
def test_each_kind_of_trust_is_enough(carried: tuple[dict[str, bytes], str], by: str, alone: Path) -> None:
    files, digest = carried
    if by == "local model":
        write(alone, seed=5)
    with options(trusted_digests=digest if by == "option" else ()):
        model = register_embedded(files, trust=by == "trust", digest=digest)
    assert model.card.digest_hex == digest
    assert model.can_encode == (by == "local model")
    assert np.isfinite(model.run("decoder", some_symbols())).all()
    if not model.can_encode:
        with pytest.raises(ModelError, match="without its encoder"):
            model.run("encoder", {"grey": np.zeros((1, 1, 8, 8), np.float32)})


def test_a_trusted_model_stays_for_later_processes(carried: tuple[dict[str, bytes], str]) -> None:
    files, digest = carried
    first = register_embedded(files, trust=True, digest=digest)
    registered.clear()  # as in a new process
    again = register_embedded({}, trust=False, digest=digest)
    assert again == first
    assert again.directory == cache_folder() / digest[7:]
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        assert pool.apply(decode_by_digest, (first.card.digest,)) == decode_in_worker(first)


def test_a_dataset_cannot_take_over_a_name(carried: tuple[dict[str, bytes], str], alone: Path) -> None:
    files, digest = carried
    card = json.loads(files["card.json"])
    card["id"] = "tiny@99"
    write(alone, seed=1)
    register_embedded({**files, "card.json": json.dumps(card).encode()}, trust=True, digest=digest)
    assert find_model(digest).card.id == "tiny@99"
    assert find_model("tiny").card.id == "tiny@1"
    assert "tiny@99" not in [model.card.id for model in list_models()]


@pytest.mark.parametrize("name", ["card.json", "decoder.onnx", "tables.npz"])
def test_changed_or_missing_files_are_refused(carried: tuple[dict[str, bytes], str], name: str) -> None:
    files, digest = carried
    for data in (files[name].replace(b"1", b"2"), files[name][:-1], b""):
        with pytest.raises(ModelError):
            register_embedded({**files, name: data}, trust=True, digest=digest)
    del files[name]
    with pytest.raises(ModelError, match=name):
        register_embedded(files, trust=True, digest=digest)
    assert not cache_folder().exists()


def test_files_that_the_digest_does_not_cover_are_not_kept(carried: tuple[dict[str, bytes], str]) -> None:
    files, digest = carried
    model = register_embedded({**files, "../evil": b"", "extra.onnx": b""}, trust=True, digest=digest)
    assert model.directory is not None
    assert {place.name for place in model.directory.iterdir()} == {"card.json", "decoder.onnx", "tables.npz"}
    assert not (cache_folder() / "evil").exists()


def test_another_models_card_is_a_mismatch(carried: tuple[dict[str, bytes], str]) -> None:
    files, _ = carried
    with pytest.raises(ModelMismatchError) as caught:
        register_embedded(files, trust=True, digest="sha256:" + "0" * 64)
    assert caught.value.expected == "0" * 64


@pytest.mark.parametrize("digest", ["", "sha256:12", "tiny@1", "../" + "0" * 61])
def test_what_is_no_digest_is_a_spec_error(digest: str) -> None:
    with pytest.raises(SpecError):
        register_embedded({}, trust=True, digest=digest)


def test_trust_does_not_allow_operators() -> None:
    files = tiny_files()
    files["decoder.onnx"] = files["decoder.onnx"].replace(b"Unsqueeze", b"UnsqueezX")
    card = card_of(files)
    del card["encoder"]
    from zarr_emcodec.runtime import canonical_digest

    digest = f"sha256:{canonical_digest(card['decoder']).hex()}"
    with pytest.raises(ModelError, match="UnsqueezX"):
        register_embedded({**files, "card.json": json.dumps(card).encode()}, trust=True, digest=digest)
    assert not cache_folder().exists()


def test_a_damaged_copy_in_the_cache_is_replaced(carried: tuple[dict[str, bytes], str]) -> None:
    files, digest = carried
    model = register_embedded(files, trust=True, digest=digest)
    registered.clear()
    (cache_folder() / digest[7:] / "decoder.onnx").write_bytes(b"half")
    from zarr_emcodec.runtime import find

    find._opened.clear()
    find._by_digest.clear()
    again = register_embedded(files, trust=False, digest=digest)
    assert (cache_folder() / digest[7:] / "decoder.onnx").read_bytes() == files["decoder.onnx"]
    assert decode_in_worker(again) == decode_in_worker(model)


def test_a_cache_that_cannot_be_written_is_done_without(
    carried: tuple[dict[str, bytes], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ZARR_EMCODEC_CACHE", str(tmp_path / "file"))
    files, digest = carried
    model = register_embedded(files, trust=True, digest=digest)
    assert model.directory is None
    assert find_model(digest) is model
    assert np.isfinite(model.run("decoder", some_symbols())).all()
    assert pickle.loads(pickle.dumps(model)) is model


def test_threads_that_register_together_agree(carried: tuple[dict[str, bytes], str]) -> None:
    files, digest = carried
    with ThreadPoolExecutor(8) as pool:
        models = list(pool.map(lambda _: register_embedded(files, trust=True, digest=digest), range(16)))
    assert len(set(models)) == 1
    assert [place.name for place in cache_folder().iterdir()] == [digest[7:]]
