"""Frames that earlier releases wrote decode as they did; frames that must fail, fail as they did.

Reads whatever lies in ``v1/`` and ``errors/``. Symbols are exact on every platform and with every backend; voxels are
exact where no network makes them, else within the tolerance that stands beside the frame.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.codecs.frames import Backend, symbols_of
from tests.golden import make
from zarr_emcodec import errors
from zarr_emcodec.codecs import decode_many
from zarr_emcodec.entropy import fast
from zarr_emcodec.frame import inspect, unpack
from zarr_emcodec.frame.fields import MODELLED
from zarr_emcodec.runtime import find_model

FRAMES = sorted((make.HERE / "v1").glob("*.frame"))
ERRORS = sorted((make.HERE / "errors").glob("*.frame"))
MOST_BYTES = 300_000
BACKENDS: list[Backend] = ["numpy", "numba"] if fast.is_available() else ["numpy"]


def facts_of(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    return facts


def test_every_feature_has_a_frame() -> None:
    assert {path.stem for path in FRAMES} >= set(make.FEATURES), "run: python -m tests.golden.make"
    assert {path.stem for path in ERRORS} >= set(make.ERRORS), "run: python -m tests.golden.make"
    files = [path for folder in ("v1", "errors") for path in (make.HERE / folder).iterdir()]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    assert {path.stem for path in files} == {path.stem for path in FRAMES + ERRORS}


@pytest.mark.parametrize("path", FRAMES, ids=lambda path: path.stem)
def test_the_frame_says_what_it_said(path: Path) -> None:
    facts, info = facts_of(path), inspect(path.read_bytes())
    assert info.crc_ok
    assert info.kind == facts["kind"]
    assert list(info.shape) == facts["shape"]
    assert np.dtype(info.dtype) == np.dtype(facts["dtype"])
    assert info.order == facts["order"]
    assert info.setting == facts.get("setting", 0)
    if "model" in facts:
        assert info.model is not None
        assert facts["model"]["digest"].startswith(info.model)
        card = find_model(f"sha256:{facts['model']['digest']}").card
        assert card.id == facts["model"]["id"]


@pytest.mark.parametrize("path", FRAMES, ids=lambda path: path.stem)
def test_the_voxels_are_those_of_the_day(path: Path) -> None:
    facts = facts_of(path)
    (chunk,) = decode_many([path.read_bytes()])
    assert list(chunk.shape) == facts["shape"]
    assert chunk.dtype == np.dtype(facts["dtype"])
    assert chunk.flags.f_contiguous if facts["order"] == "F" else chunk.flags.c_contiguous
    if "voxels_sha256" in facts:
        assert make.sha256_of(chunk) == facts["voxels_sha256"]
        return
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as members:
        voxels = members["voxels"]
        background = members["is_background"].astype(bool) if "background" in facts else np.zeros(chunk.shape, bool)
    assert (chunk[background] == facts.get("background")).all()
    worst = np.abs(chunk.astype(np.float64) - voxels).max()
    # an integer dtype rounds to its own steps, which may be coarser than the tolerance
    assert worst <= max(facts["tolerance"] * (1 + 1e-6), 0 if chunk.dtype.kind == "f" else 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("path", FRAMES, ids=lambda path: path.stem)
def test_the_symbols_are_exactly_those_of_the_day(path: Path, backend: Backend) -> None:
    facts, data = facts_of(path), path.read_bytes()
    if unpack(data).kind not in MODELLED:
        assert "symbols_sha256" not in facts
        return
    symbols = symbols_of(data, backend)
    assert list(symbols.shape) == facts["symbols_shape"]
    assert make.sha256_of(symbols) == facts["symbols_sha256"]


@pytest.mark.parametrize("path", ERRORS, ids=lambda path: path.stem)
def test_what_had_to_fail_still_fails(path: Path) -> None:
    facts = facts_of(path)
    kind: type[errors.EmCodecError] = getattr(errors, facts["raises"])
    with pytest.raises(kind) as caught:
        decode_many([path.read_bytes()])
    assert type(caught.value) is kind
    assert getattr(caught.value, "field", None) == facts["field"]


def test_golden_frames_are_never_rewritten(tmp_path: Path) -> None:
    make.main(tmp_path, ["constant-u8", "bad-crc"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert len(before) == 4
    with pytest.raises(SystemExit, match="never rewritten"):
        make.main(tmp_path, ["constant-f4", "constant-u8"])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    with pytest.raises(SystemExit, match="no such feature"):
        make.main(tmp_path, ["constant-u9"])
