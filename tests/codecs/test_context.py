"""The learned entropy model: as the document says, alike however it is computed, in part as in the whole."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.codecs import context
from tests.codecs.context import DEEP, FLAT, STACK, Walked, decode, encode, frames
from tests.codecs.reference import Reference
from tests.models import CONTEXT_FOLDER
from tests.volumes import fibsem
from zarr_emcodec import VAECodec, options, psnr
from zarr_emcodec.codecs import context_decode, decode_many, decode_sections, inference
from zarr_emcodec.codecs.opened import open_frame
from zarr_emcodec.codecs.vae import VAESpec
from zarr_emcodec.entropy import fast
from zarr_emcodec.errors import SpecError
from zarr_emcodec.frame import unpack
from zarr_emcodec.runtime import Options, embedded, find, find_model, register_embedded

NAMES = {name: DEEP if name.startswith("volume") else STACK if name.startswith("stack") else FLAT for name in (
    "sections", "2-D", "coarse", "side", "escapes", "parts", "uint16", "float32", "fortran", "5-D", "masked box",
    "masked bitmap", "volume", "volume 2-D", "volume side", "volume escapes", "volumes", "volume parts",
    "volume masked", "stack", "stack 2-D", "stack of two", "stack side", "stack escapes", "stack parts",
    "stack coarse", "stack float32", "stack 4-D", "stack masked",
)}  # fmt: skip
EACH = pytest.mark.parametrize("name", [FLAT, DEEP, STACK])


@pytest.fixture(autouse=True)
def context_models() -> Iterator[None]:
    with options(model_path=CONTEXT_FOLDER):
        yield


def bits_of(walked: Walked) -> list[bytes]:
    """Everything that must never differ."""
    return [walked.latents.tobytes(), *(symbols.tobytes() for symbols in walked.symbols)]


def test_every_form_is_among_the_frames() -> None:
    assert set(NAMES) == set(frames())
    assert max(len(unpack(data).sections) for data in frames().values()) >= 4
    assert any(np.abs(symbols).max() > 1 << 15 for symbols in Walked(frames()["escapes"]).symbols)


@pytest.mark.parametrize("name", NAMES)
def test_latents_are_those_that_the_document_means(name: str) -> None:
    data = frames()[name]
    expected = Reference(data, NAMES[name]).sixteenths()
    assert np.array_equal(Walked(data).latents * 16, expected)
    assert expected.any()


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 17])
def test_volumes_of_any_depth(depth: int) -> None:
    chunk = fibsem()[:depth, :19, :22]
    data = encode(chunk, DEEP)
    assert np.array_equal(Walked(data).latents * 16, Reference(data, DEEP).sixteenths())
    assert psnr(chunk, decode(data)) > 22


@pytest.mark.parametrize("name", NAMES)
def test_pieces_threads_and_coders_change_nothing(name: str) -> None:
    data = frames()[name]
    expected, voxels = bits_of(Walked(data)), decode(data)
    ways: list[dict[str, Any]] = [{"block_voxels": 1024}, {"block_voxels": 3000}, {"threads": 3}]
    ways.append({"entropy_backend": "numpy"})
    ways += [{"entropy_backend": "numba"}] if fast.is_available() else []
    for way in ways:
        assert bits_of(Walked(data, **way)) == expected, way
        assert np.array_equal(decode(data, **way), voxels), way


@EACH
def test_encoding_in_pieces_gives_the_same_bytes(name: str) -> None:
    chunk = fibsem()[:6, :100, :90]
    codec = VAECodec(model=name, ratio=32)
    frame = codec.encode(chunk)
    for way in ({"block_voxels": 1024}, {"threads": 3}, {"entropy_backend": "numpy"}):
        with options(**way):
            assert codec.encode(chunk) == frame, way


@pytest.mark.parametrize("name", NAMES)
def test_torch_reads_the_same_symbols(name: str) -> None:
    pytest.importorskip("torch", reason="the other backend is torch's")
    data = frames()[name]
    for way in ({}, {"block_voxels": 1024}):
        assert bits_of(Walked(data, backend="torch", **way)) == bits_of(Walked(data))
    frame = unpack(data)
    scale = frame.window[1] if frame.window else 1.0
    apart = np.abs(decode(data, backend="torch").astype(np.float64) - decode(data).astype(np.float64))
    assert apart.max() <= max(scale, 1.0 if frame.dtype.kind != "f" else 0.0)


def test_frames_decode_alone_as_among_others() -> None:
    all_of_them = list(frames().values())
    alone = [decode(data) for data in all_of_them]
    for order in (slice(None), slice(None, None, -1), slice(None, None, 3)):
        for a, b in zip(decode_many(all_of_them[order]), alone[order], strict=True):
            assert np.array_equal(a, b)
    twice = decode_many([*all_of_them, *all_of_them])
    assert all(np.array_equal(a, b) for a, b in zip(twice, [*alone, *alone], strict=True))
    with ThreadPoolExecutor(4) as pool:
        for a, b in zip(pool.map(decode, all_of_them), alone, strict=True):
            assert np.array_equal(a, b)


@pytest.mark.parametrize("name", [name for name in NAMES if "masked b" not in name and name != "stack masked"])
def test_some_planes_are_those_of_the_whole(name: str) -> None:
    data = frames()[name]
    whole = decode(data)
    n = len(whole)
    for start, stop in {(0, 1), (n - 1, n), (n // 2, n // 2 + 1), (n // 2, n), (0, n)}:
        for block_voxels in (1024, 1 << 20):
            part = decode(data, (start, stop), block_voxels=block_voxels)
            assert np.array_equal(part, whole[start:stop]), (start, stop)


def test_one_plane_of_many_needs_few_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = np.concatenate([fibsem(), fibsem()[::-1]])[:, :24, :40]
    data = encode(chunk, DEEP)
    whole = decode(data)
    seen = []
    synthesise = inference.synthesise

    def watched(model: Any, latents: Any, *others: Any) -> Any:
        seen.append(latents.shape[2])
        return synthesise(model, latents, *others)

    monkeypatch.setattr(inference, "synthesise", watched)
    for plane in range(64):
        assert np.array_equal(decode_sections(data, plane, plane + 1), whole[plane : plane + 1])
    assert len(seen) == 64
    assert max(seen) == 3  # the plane's cell and those that the decoder sees around it
    assert np.array_equal(decode_sections(data, 7, 33), whole[7:33])


def test_sections_of_a_part_that_is_not_wanted_are_not_read() -> None:
    data = frames()["parts"]
    frame = unpack(data)
    assert len(frame.sections) == 4
    for plane in range(3):
        opened = context_decode._open(open_frame(frame, (plane, plane + 1), Options()))
        assert [bytes(part) for part, _ in opened.parts] == [bytes(frame.sections[plane + 1])]


@EACH
def test_padding_costs_nothing(name: str) -> None:
    model = context.model(name)
    cell = model.model.card.stride
    for voxels in range(1, 41):
        extent = (voxels,) * len(cell)
        for place in model.card.places:
            counted = tuple(
                sum((2 * i + p) * s // 2 < voxels for i in range(-(-voxels // s)))
                for p, s in zip(place, cell, strict=True)
            )
            assert model.coded(place, extent) == counted


@EACH
@pytest.mark.parametrize("beyond", [1, 5, 8, 9, 16])
def test_places_that_are_padding_hold_no_symbols(name: str, beyond: int) -> None:
    model = context.model(name)
    chunk = fibsem()[: 1 + beyond // 3, : 16 + beyond, : 16 + beyond]
    data = encode(chunk, name, ratio=20)
    walked = Walked(data)
    n_padding = 0
    for group, symbols in zip(model.card.groups, walked.symbols[1:], strict=True):
        for i, place in enumerate(group):
            stored = np.zeros(symbols.shape[3:], bool)
            stored[tuple(slice(n) for n in model.coded(place, walked.item.extent))] = True
            assert not symbols[:, i][:, :, ~stored].any()
            n_padding += int((~stored).sum())
    # a place is 4 voxels wide in volumes and 8 in sections, a cell has two
    step = model.model.card.stride[-1] // 2
    assert (n_padding > 0) == (-(-chunk.shape[-1] // step) % 2 == 1 or (name == DEEP and -(-len(chunk) // 2) % 2 == 1))
    assert psnr(chunk, decode(data)) > 18


@EACH
def test_fixed_widths_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match="nominal") as caught:
        VAESpec(model=name, ratio=32, mode="nominal")
    assert caught.value.name == "mode"


@EACH
def test_a_decoder_that_came_with_its_dataset_is_enough(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = frames()[{FLAT: "sections", DEEP: "volume", STACK: "stack"}[name]]
    expected = decode(data)
    installed = find_model(name)
    monkeypatch.setenv("ZARR_EMCODEC_CACHE", str(tmp_path))
    monkeypatch.setattr(find, "registered", {})
    monkeypatch.setattr(embedded, "registered", find.registered)
    files = installed.decoder_files()
    assert {f"context-{i}.onnx" for i in range(3)} < set(files)
    with options(model_path=()):
        carried = register_embedded(files, trust=True, digest=installed.card.digest_hex)
        assert not carried.can_encode
        assert carried.card.context == installed.card.context
        assert np.array_equal(decode_many([data])[0], expected)


@EACH
@pytest.mark.parametrize("ratio", [24, 100, 150])
def test_the_ratio_is_met_closely(name: str, ratio: float) -> None:
    chunk = fibsem()
    frame = encode(chunk, name, ratio=ratio)
    assert ratio <= chunk.nbytes / len(frame) <= 1.2 * ratio  # levels of these models are 8 to 12 % apart
