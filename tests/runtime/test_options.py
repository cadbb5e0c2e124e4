"""Options: where they come from, how they change, what they refuse."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from zarr_emcodec.errors import SpecError
from zarr_emcodec.runtime import Options, current, options
from zarr_emcodec.runtime.options import from_environment

DIGEST = "sha256:" + "ab" * 32


def test_a_block_restores_what_it_changed() -> None:
    before = current()
    with options(threads=3, tier="top") as inside:
        assert (inside.threads, current().tier) == (3, "top")
        with options(threads=5):
            assert (current().threads, current().tier) == (5, "top")
        assert current().threads == 3
    assert current() == before


def test_a_block_restores_after_an_error() -> None:
    before = current()
    with pytest.raises(KeyError), options(threads=3):
        raise KeyError
    assert current() == before


def test_a_call_changes_the_process() -> None:
    kept = current().threads
    try:
        options(threads=7)
        seen: list[int] = []
        thread = threading.Thread(target=lambda: seen.append(current().threads))
        thread.start()
        thread.join()
        assert seen == [7]
    finally:
        options(threads=kept)


@pytest.mark.parametrize(
    "words",
    [{"thread": 1}, {"threads": 0}, {"threads": True}, {"threads": 1.0}, {"threads": "2"}, {"backend": "tf"},
     {"provider": "gpu"}, {"provider": ["cpu"]}, {"block_voxels": 3}, {"max_chunk_bytes": -1}, {"tier": "best"},
     {"model_path": 3}, {"model_path": [3]}, {"trusted_digests": ["abc"]}, {"trusted_digests": [3]},
     {"trusted_digests": 3}, {"entropy_backend": "c"}],
)  # fmt: skip
def test_bad_words_are_refused_and_change_nothing(words: dict[str, Any]) -> None:
    before = current()
    with pytest.raises(SpecError) as caught:
        options(**words)
    assert caught.value.name in words
    assert current() == before


def test_one_path_or_digest_need_not_be_a_list() -> None:
    with options(model_path="~/models", trusted_digests=DIGEST.upper().replace("SHA256", "sha256").lower()):
        assert current().model_path == (Path.home() / "models",)
        assert current().trusted_digests == (DIGEST,)


def test_the_environment_sets_defaults() -> None:
    found = from_environment(
        {
            "ZARR_EMCODEC_BACKEND": "torch",
            "ZARR_EMCODEC_PROVIDER": "cpu",
            "ZARR_EMCODEC_THREADS": " 4 ",
            "ZARR_EMCODEC_TRUSTED_DIGESTS": f"{DIGEST}, {DIGEST[7:]}",
            "ZARR_EMCODEC_ENTROPY_BACKEND": "",
            "ZARR_EMCODEC_MODELS": "/somewhere",
        }
    )
    assert found == Options(backend="torch", provider="cpu", threads=4, trusted_digests=(DIGEST, DIGEST))


@pytest.mark.parametrize(("name", "text"), [("THREADS", "many"), ("THREADS", "-1"), ("TIER", "best"), ("BACKEND", "x")])
def test_a_bad_variable_is_named(name: str, text: str) -> None:
    with pytest.raises(SpecError, match=f"ZARR_EMCODEC_{name}"):
        from_environment({f"ZARR_EMCODEC_{name}": text})


def test_threads_that_change_options_do_not_lose_each_others() -> None:
    def change(word: str, values: list[int]) -> None:
        for value in values:
            options(**{word: value})

    with options(threads=1, block_voxels=2**20):
        workers = [
            threading.Thread(target=change, args=("threads", list(range(1, 300)))),
            threading.Thread(target=change, args=("block_voxels", list(range(2000, 2300)))),
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert (current().threads, current().block_voxels) == (299, 2299)
