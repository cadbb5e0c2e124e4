"""Where models are looked for, in which order, and what is said when there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.runtime.tiny_model import tiny_files, write_tiny_model
from zarr_emcodec.errors import ModelError, ModelNotFoundError, SpecError
from zarr_emcodec.runtime import find_model, list_models, options, search_path

if TYPE_CHECKING:
    from pathlib import Path


def test_every_form_of_reference_finds_it(alone: Path) -> None:
    place = write_tiny_model(alone)
    model = find_model("tiny")
    digest = model.card.digest
    for ref in ("tiny@1", f"sha256:{digest.hex()}", f"sha256:{digest.hex()[:16]}", digest, digest[:8]):
        assert find_model(ref) is model
    assert model.directory == place


def test_a_name_means_its_highest_version(alone: Path) -> None:
    for version in (2, 11, 10):
        write_tiny_model(alone, version=version, seed=version)
    assert find_model("tiny").card.version == 11
    assert find_model("tiny@10").card.version == 10
    with pytest.raises(ModelNotFoundError, match=r"tiny@10, tiny@11, tiny@2"):
        find_model("tiny@3")


def test_the_option_comes_before_the_environment(alone: Path, tmp_path: Path) -> None:
    write_tiny_model(alone, seed=1)
    first = write_tiny_model(tmp_path / "mine", seed=2)
    assert find_model("tiny@1").directory == alone / "tiny-1"
    with options(model_path=tmp_path / "mine"):
        assert find_model("tiny@1").directory == first
        assert [m.directory for m in list_models() if m.card.name == "tiny"] == [first]
    assert find_model("tiny@1").directory == alone / "tiny-1"


def test_the_path_is_in_the_promised_order(tmp_path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZARR_EMCODEC_MODELS", os.pathsep.join([str(alone), "", str(tmp_path / "b")]))
    with options(model_path=[tmp_path / "a"]):
        path = search_path()
    assert path[:4] == [tmp_path / "a", alone, tmp_path / "b", tmp_path / "cache" / "models"]
    assert path[4].parts[-2:] == ("zarr_emcodec", "models")


def test_given_folders_replace_the_path(alone: Path, tmp_path: Path) -> None:
    write_tiny_model(alone)
    elsewhere = write_tiny_model(tmp_path / "elsewhere", name="other")
    assert find_model("other", folders=[tmp_path / "elsewhere"]).directory == elsewhere
    assert find_model("other", folders=[elsewhere]).directory == elsewhere  # the directory itself will do
    with pytest.raises(ModelNotFoundError) as caught:
        find_model("tiny", folders=[tmp_path / "elsewhere"])
    assert caught.value.searched == (str(tmp_path / "elsewhere"),)
    assert caught.value.model_id == "tiny"


def test_what_is_missing_is_said_with_the_mend(alone: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="ZARR_EMCODEC_MODELS") as caught:
        find_model("absent")
    assert str(alone) in str(caught.value)
    assert isinstance(caught.value, LookupError)
    with pytest.raises(ModelNotFoundError, match="trust_embedded"):
        find_model(bytes(32))


def test_a_model_that_arrives_later_is_found(alone: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        find_model("tiny")
    write_tiny_model(alone)
    assert find_model("tiny").card.id == "tiny@1"


def test_a_card_that_was_rewritten_is_read_again(alone: Path) -> None:
    card = write_tiny_model(alone) / "card.json"
    assert find_model("tiny").card.version == 1
    card.write_text(card.read_text().replace("tiny@1", "tiny@12"))
    assert find_model("tiny").card.version == 12


def test_a_broken_neighbour_hides_nothing_and_is_reported(alone: Path) -> None:
    write_tiny_model(alone)
    (alone / "broken").mkdir()
    (alone / "broken" / "card.json").write_text("{")
    (alone / "card.txt").write_text("a file beside the models")
    assert find_model("tiny").card.id == "tiny@1"
    assert "tiny@1" in [m.card.id for m in list_models()]
    with pytest.raises(ModelNotFoundError, match=r"Unreadable: .*broken"):
        find_model("absent")


def test_the_same_decoder_with_an_encoder_is_preferred(alone: Path) -> None:
    bare = write_tiny_model(alone, name="a-bare")
    card = json.loads((bare / "card.json").read_text())
    del card["encoder"]
    (bare / "card.json").write_text(json.dumps(card))
    write_tiny_model(alone, name="b-whole")
    model = find_model(find_model("a-bare").card.digest)
    assert model.card.name == "b-whole"
    assert model.can_encode


def test_digits_that_mean_two_models_are_refused(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zarr_emcodec.runtime.card import Card

    for seed in (1, 2):
        write_tiny_model(alone, version=seed, seed=seed)
    monkeypatch.setattr(Card, "digest", property(lambda card: b"12345678" + bytes(23) + bytes([card.version])))
    with pytest.raises(ModelError, match="any of"):
        find_model(b"12345678")


@pytest.mark.parametrize(
    "ref", ["", "a/b", "../tiny", "tiny@", "tiny@0", "tiny@x", "sha256:abc", "sha256:" + "g" * 64,
            "sha256:" + "a" * 17, "sha256:" + "a" * 66, b"", b"short", bytes(33), "tiny\n"],
)  # fmt: skip
def test_what_is_no_reference_is_a_spec_error(ref: str | bytes) -> None:
    with pytest.raises(SpecError):
        find_model(ref)


def test_models_are_listed_by_name_and_version(alone: Path) -> None:
    for name, version in (("b", 1), ("a", 10), ("a", 2)):
        write_tiny_model(alone, name=name, version=version, seed=version)
    assert [m.card.id for m in list_models(folders=[alone])] == ["a@2", "a@10", "b@1"]


def test_importing_the_room_loads_numpy_and_no_runtime() -> None:
    code = (
        "import sys, numpy; before = set(sys.modules); import zarr_emcodec.runtime;"
        "print(*{m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"zarr_emcodec", "numpy"}


def test_the_tiny_model_is_the_same_each_time() -> None:
    assert tiny_files()["decoder.onnx"] == tiny_files()["decoder.onnx"]
    assert tiny_files(seed=1)["decoder.onnx"] != tiny_files(seed=2)["decoder.onnx"]
