from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

from tests.volumes import as_dtype, fibsem
from zarr_emcodec import VAECodec, create_array
from zarr_emcodec.errors import JobError, SpecError, VerifyError
from zarr_emcodec.jobs import grid, writers
from zarr_emcodec.jobs.demo import SAMPLE
from zarr_emcodec.jobs.ome import write_multiscale
from zarr_emcodec.jobs.scales import in_nm
from zarr_emcodec.jobs.sources import open_source
from zarr_emcodec.jobs.transcode import transcode

if TYPE_CHECKING:
    from pathlib import Path

ts = pytest.importorskip("tensorstore", reason="the extra 'sources' is absent")

CHUNKS = (16, 64, 64)
VOXEL_NM = (40.0, 4.0, 4.0)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two levels of the sample, compressed, at (z, y, x) = (7, 100, 200) voxels of 40 x 4 x 4 nm."""
    path = tmp_path_factory.mktemp("image") / "em.zarr"
    coarse = fibsem().reshape(32, 64, 2, 64, 2).mean((2, 4)).astype(np.uint8)
    rows = [("s0", "", (1, 1, 1), (7, 100, 200)), ("s1", "", (1, 2, 2), (7, 50.25, 100.25))]
    attributes = write_multiscale(in_nm("zyx", VOXEL_NM, rows), 3)
    zarr.create_group(path, attributes={**attributes, "specimen": "fly"})
    for name, data in (("s0", fibsem()), ("s1", coarse)):
        create_array(path / name, data=data, chunks=CHUNKS, codec=VAECodec(ratio=16))
    return path


def decoded(path: Path) -> Any:
    return np.asarray(zarr.open_array(path)[...])


def opened(driver: str, path: Path, **words: Any) -> Any:
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(path)}, **words}
    return ts.open(spec, read=True).result()


@pytest.mark.parametrize("encoding", ["zstd", "raw"])
def test_plain_zarr_is_read_by_tensorstore(image: Path, tmp_path: Path, encoding: str) -> None:
    done = transcode(image, tmp_path / "out.zarr", encoding=encoding)
    assert (done.exact, done.psnr_db, done.worst_error) == (True, math.inf, 0)
    for number, name in enumerate(("s0", "s1")):
        store = opened("zarr3", tmp_path / "out.zarr" / str(number))
        np.testing.assert_array_equal(store.read().result(), decoded(image / name))
        assert store.domain.labels == ("z", "y", "x")
    assert done.stored_bytes == sum(p.stat().st_size for p in (tmp_path / "out.zarr").rglob("*") if p.is_file())
    assert (done.stored_bytes < done.raw_bytes) == (encoding == "zstd")


def test_places_and_sizes_come_along_in_zarr(image: Path, tmp_path: Path) -> None:
    done = transcode(image, tmp_path / "out.zarr", shards=(32, 128, 128), levels=1)
    assert done.levels[0].chunks == (32, 128, 128)
    transcode(image, tmp_path / "all.zarr")
    for name, offset in (("0", (7, 100, 200)), ("1", (7, 50.25, 100.25))):
        with open_source(image / f"s{name}") as before, open_source(tmp_path / "all.zarr" / name) as after:
            assert after.voxel_nm == before.voxel_nm
            assert after.offset == before.offset == offset
    assert dict(zarr.open_group(tmp_path / "all.zarr").attrs)["specimen"] == "fly"
    with open_source(tmp_path / "out.zarr") as one:
        assert len(one.levels) == 1


@pytest.mark.parametrize("encoding", ["jpeg", "png", "raw"])
def test_precomputed_is_read_by_tensorstore(image: Path, tmp_path: Path, encoding: str) -> None:
    done = transcode(image, tmp_path / "out", to="precomputed", encoding=encoding, quality=95)
    for number, (name, origin, size) in enumerate(
        (("s0", (200, 100, 7), (4, 4, 40)), ("s1", (100, 50, 7), (8, 8, 40)))
    ):
        store = opened("neuroglancer_precomputed", tmp_path / "out", scale_index=number)
        assert store.domain.origin == (*origin, 0)
        assert tuple(unit.multiplier for unit in store.dimension_units[:3]) == size
        voxels = store.read().result()[..., 0].T
        if encoding == "jpeg":
            assert 30 < done.psnr_db < 60
            assert np.abs(voxels.astype(int) - decoded(image / name)).max() <= done.worst_error
        else:
            np.testing.assert_array_equal(voxels, decoded(image / name))
            assert done.exact
    info = json.loads((tmp_path / "out" / "info").read_text())
    assert {scale["encoding"] for scale in info["scales"]} == {encoding}
    with open_source(tmp_path / "out") as back:
        assert (back.voxel_nm, back.offset) == (VOXEL_NM, (7, 100, 200))
        assert back.levels[1].translation == (280, 402, 802)


def test_jpeg_quality_counts(image: Path, tmp_path: Path) -> None:
    low, high = (
        transcode(image, tmp_path / str(q), to="precomputed", quality=q, levels=1) for q in (40, 95)
    )  # fmt: skip
    assert low.stored_bytes < high.stored_bytes
    assert low.psnr_db < high.psnr_db
    assert low.encoding == "jpeg"


@pytest.mark.parametrize(("dtype", "chosen"), [("uint16", "png"), ("float32", "raw")])
def test_other_dtypes_take_the_first_encoding_that_holds_them(dtype: str, chosen: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", as_dtype(fibsem(), dtype))
    done = transcode(tmp_path / "a.npy", tmp_path / "out", to="precomputed")
    assert (done.encoding, done.exact) == (chosen, True)
    assert "voxel size not stated" in done.note
    store = opened("neuroglancer_precomputed", tmp_path / "out")
    np.testing.assert_array_equal(store.read().result()[..., 0].T, as_dtype(fibsem(), dtype))


def test_sections_and_channels(tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", fibsem()[3])
    transcode(tmp_path / "flat.npy", tmp_path / "flat", to="precomputed", encoding="raw")
    store = opened("neuroglancer_precomputed", tmp_path / "flat")
    assert store.shape == (128, 128, 1, 1)
    np.testing.assert_array_equal(store.read().result()[..., 0, 0].T, fibsem()[3])
    colours = np.stack([fibsem(), 255 - fibsem()])
    np.save(tmp_path / "two.npy", colours)
    transcode(tmp_path / "two.npy", tmp_path / "two", to="precomputed", encoding="raw")
    store = opened("neuroglancer_precomputed", tmp_path / "two")
    np.testing.assert_array_equal(store.read().result().T, colours)
    with pytest.raises(SpecError, match="jpeg holds uint8 of 1 or 3 channels"):
        transcode(tmp_path / "two.npy", tmp_path / "no", to="precomputed", encoding="jpeg")
    np.save(tmp_path / "five.npy", fibsem()[None, None])
    with pytest.raises(SpecError, match="one time point"):
        transcode(tmp_path / "five.npy", tmp_path / "no", to="precomputed")
    assert not (tmp_path / "no").exists()


def test_memory_follows_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "BLOCK_BYTES", 64**3)
    create_array(tmp_path / "a.zarr", data=np.tile(fibsem(), (3, 1, 1)), chunks=(13, 50, 50))
    largest: list[int] = []
    write = writers.PrecomputedLevel.write

    def watched(self: writers.PrecomputedLevel, box: grid.Box, voxels: Any) -> None:
        largest.append(voxels.size)
        write(self, box, voxels)

    monkeypatch.setattr(writers.PrecomputedLevel, "write", watched)
    seen: list[tuple[int, int]] = []
    done = transcode(tmp_path / "a.zarr", tmp_path / "out", to="precomputed", encoding="raw",
                     progress=lambda *both: seen.append(both))  # fmt: skip
    assert max(largest) <= 64**3
    assert len(largest) == 8
    assert seen[-1] == (done.raw_bytes, done.raw_bytes)


def test_nothing_is_left_behind_where_it_fails(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(writers.ZarrLevel, "read", lambda self, box: np.zeros((1,)))
    with pytest.raises(VerifyError, match="came back changed"):
        transcode(image, out)
    monkeypatch.undo()
    create_array(tmp_path / "a.zarr", data=fibsem(), chunks=CHUNKS)
    (tmp_path / "a.zarr/c/1/0/0").write_bytes(b"x")
    with pytest.raises(JobError, match="cannot read voxels"):
        transcode(tmp_path / "a.zarr", out, to="precomputed")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr"]
    transcode(image, out, levels=1)
    with pytest.raises(JobError, match="exists already"):
        transcode(image, out, levels=1)
    assert len(transcode(image, out, overwrite=True).levels) == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"to": "n5"}, "'zarr' or 'precomputed'"),
        ({"encoding": "jpeg"}, "written as zstd, raw"),
        ({"to": "precomputed", "encoding": "zstd"}, "written as jpeg, png, raw"),
        ({"quality": 0}, "1 to 100"),
        ({"levels": 0}, "at least 1"),
        ({"to": "precomputed", "shards": (1, 1, 1)}, "only Zarr"),
    ],
)
def test_bad_words_are_refused(words: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=told):
        transcode(SAMPLE, tmp_path / "out", **words)


def test_places_between_voxels_are_told(tmp_path: Path) -> None:
    rows = [("s0", "", (1, 1, 1), (0.4, 0, 0))]
    zarr.create_group(tmp_path / "a.zarr", attributes=write_multiscale(in_nm("zyx", VOXEL_NM, rows), 3))
    zarr.create_array(tmp_path / "a.zarr/s0", data=fibsem()[:16])
    done = transcode(tmp_path / "a.zarr", tmp_path / "out", to="precomputed", encoding="raw")
    assert "precomputed has whole numbers alone" in done.note


def test_the_command(image: Path, tmp_path: Path) -> None:
    from zarr_emcodec.cli.app import app

    words = ["transcode", str(image), str(tmp_path / "out"), "--to", "precomputed"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    for text in ("precomputed, jpeg, uint8", "40 x 4 x 4 nm", "at 7, 100, 200", "second loss"):
        assert text in shown.stdout
    told = CliRunner().invoke(app, [*words[:2], str(tmp_path / "z"), "--json"])
    assert json.loads(told.stdout)["exact"] is True
    assert CliRunner().invoke(app, words).exit_code == 2  # it is there
