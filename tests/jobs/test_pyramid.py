"""Means, coarser views as sources, and whole images recompressed level by level."""

from __future__ import annotations

import itertools
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.jobs.foreign import n5_pyramid, precomputed_pyramid, web
from tests.volumes import Array, as_dtype, fibsem
from zarr_emcodec.errors import JobError, SpecError
from zarr_emcodec.jobs import grid, pyramid
from zarr_emcodec.jobs.pyramid import choose_steps, recompress_image
from zarr_emcodec.jobs.recompress import recompress as real
from zarr_emcodec.jobs.sources import open_source
from zarr_emcodec.jobs.sources.reduced import means, reduced_location

EXACT: Any = {"max_error": 0}
PLANNING: Any = {"chunks": (8, 32, 32), "shards": (16, 64, 64)}


def slow_means(block: Array, factors: tuple[int, ...]) -> Array:
    """Window by window, in float64."""
    out = np.empty(grid.grid_shape(block.shape, factors), block.dtype)
    for index in np.ndindex(*out.shape):
        window = block[tuple(slice(i * f, (i + 1) * f) for i, f in zip(index, factors, strict=True))]
        mean = window.mean(dtype=np.float64)
        out[index] = np.floor(mean + 0.5) if block.dtype.kind in "iu" else mean
    return out


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("factors", [(1, 2, 2), (2, 2, 2), (3, 1, 5), (1, 1, 1)])
def test_means_are_those_of_each_window(factors: tuple[int, ...], dtype: str) -> None:
    block = as_dtype(fibsem(), dtype)[:7, :11, :13]
    found = means(block, factors)
    assert found.dtype == block.dtype
    np.testing.assert_allclose(found, slow_means(block, factors), rtol=1e-6)


def test_means_of_extremes_do_not_overflow() -> None:
    for value in (np.uint16(65535), np.int16(-32768), np.int16(32767), np.uint8(255)):
        assert np.all(means(np.full((16, 16, 16), value), (16, 16, 16)) == value)


@pytest.mark.parametrize("limit", [1, 30_000, 1 << 26])
def test_a_coarser_view_is_a_source(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = fibsem()[:31, :125]
    zarr.create_array(tmp_path / "a", data=values, chunks=(8, 64, 48))
    monkeypatch.setattr(grid, "BLOCK_BYTES", limit)
    expected = slow_means(values, (1, 2, 3))
    with open_source(reduced_location(str(tmp_path / "a"), (1, 2, 3))) as source:
        assert (source.shape, source.chunks) == ((31, 63, 43), (8, 32, 16))
        box = (slice(3, 20), slice(5, 63), slice(11, 43))
        for twin in (source, pickle.loads(pickle.dumps(source))):
            np.testing.assert_array_equal(twin.read(box), expected[box])
            assert twin.fingerprint() == source.fingerprint()
        with open_source(tmp_path / "a") as finer:
            assert finer.fingerprint() != source.fingerprint()
        assert source.missing(box) is False


def test_factors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", fibsem())
    for factors in ((2, 2), (0, 1, 1), (64, 64, 2)):
        with pytest.raises(SpecError, match="positive factors"):
            open_source(reduced_location(str(tmp_path / "a.npy"), factors))


@pytest.mark.parametrize(
    ("scale", "shape", "steps"),
    [
        ((40, 8, 8), (100, 2000, 2000), [(1, 2, 2), (1, 2, 2), (2, 2, 2)]),
        ((8, 8, 8), (600, 600, 600), [(2, 2, 2), (2, 2, 2)]),
        ((1, 1), (100, 100), []),
        ((1, 30, 4, 4), (3, 10, 600, 600), [(1, 1, 2, 2), (1, 1, 2, 2)]),
        ((4, 4, 4), (1, 600, 300), [(1, 2, 2), (1, 2, 2)]),
    ],
)
def test_steps_lead_to_even_voxels(scale: tuple[float, ...], shape: tuple[int, ...], steps: Any) -> None:
    assert choose_steps(scale, shape) == steps


@pytest.mark.parametrize("write", [n5_pyramid, precomputed_pyramid])
@pytest.mark.parametrize("levels", ["rebuild", "every"])
def test_an_image_of_another_format_with_its_levels(levels: Any, write: Any, tmp_path: Path) -> None:
    write(tmp_path / "in")
    report = recompress_image(
        tmp_path / "in", tmp_path / "out", EXACT, levels=levels, planning=PLANNING, engine="serial"
    )
    assert report.ok
    assert list(report.levels) == ["s0", "s1"]
    source = open_source(tmp_path / "in")
    coarse = fibsem()[:, ::2, ::2] if levels == "every" else slow_means(fibsem(), (1, 2, 2))
    for name, values in (("s0", fibsem()), ("s1", coarse)):
        array = zarr.open_array(tmp_path / "out" / name, mode="r")
        np.testing.assert_array_equal(array[...], values)
        assert array.metadata.to_dict()["dimension_names"] == ("z", "y", "x")
    with open_source(tmp_path / "out") as found:
        assert found.voxel_nm == pytest.approx(source.voxel_nm)
        assert found.offset == pytest.approx(source.offset)
        for mine, theirs in zip(found.levels, source.levels, strict=True):
            assert mine.scale == pytest.approx(theirs.scale)
            assert mine.translation == pytest.approx(theirs.translation)
    own: Any = zarr.open_group(tmp_path / "out", mode="r").attrs["emcodec"]
    assert own["source_fingerprint"] == source.fingerprint()
    assert own["levels"]["s1"]["worst_error"] == 0


def test_coarser_levels_are_means_of_what_is_decoded(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "in", data=fibsem(), chunks=(16, 64, 64))
    planning = {"chunks": (16, 64, 64), "zarr_format": 2, "shards": None}
    steps = [(1, 2, 2), (2, 2, 2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyramid, "choose_steps", lambda scale, shape: steps)
        report = recompress_image(tmp_path / "in", tmp_path / "out", 16, planning=planning, engine="serial")
    assert report.ok
    decoded = [np.asarray(zarr.open_array(tmp_path / "out" / f"s{i}", mode="r")[...]) for i in range(3)]
    for (finer, coarser), factors in zip(itertools.pairwise(decoded), steps, strict=True):
        expected = slow_means(finer, factors).astype(float)
        assert coarser.shape == expected.shape
        assert 20 * np.log10(255 / np.sqrt(np.mean((coarser - expected) ** 2))) > 22
    entry: Any = zarr.open_group(tmp_path / "out", mode="r").attrs["multiscales"]
    assert entry[0]["version"] == "0.4"
    assert [d["path"] for d in entry[0]["datasets"]] == ["s0", "s1", "s2"]
    assert entry[0]["datasets"][2]["coordinateTransformations"] == [
        {"type": "scale", "scale": [2.0, 4.0, 4.0]},
        {"type": "translation", "translation": [0.5, 1.5, 1.5]},
    ]


def test_names_and_metadata_of_an_ome_image_are_kept(tmp_path: Path) -> None:
    from tests.jobs.test_metadata import ome_source

    stated = ome_source(tmp_path / "in", 3)
    report = recompress_image(
        tmp_path / "in", tmp_path / "out", EXACT, levels="every", planning=PLANNING, engine="serial"
    )
    assert list(report.levels) == ["full", "half"]
    found: dict[str, Any] = zarr.open_group(tmp_path / "out", mode="r").attrs.asdict()
    del found["emcodec"], stated["ome"]["multiscales"][0]["coordinateTransformations"]
    assert found["animal"] == stated["animal"]
    assert found["ome"]["omero"] == stated["ome"]["omero"]
    mine, theirs = found["ome"]["multiscales"][0], stated["ome"]["multiscales"][0]
    assert mine["datasets"][1]["coordinateTransformations"] == theirs["datasets"][1]["coordinateTransformations"]
    assert mine["axes"] == theirs["axes"]


def test_an_image_that_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n5_pyramid(tmp_path / "in")
    words: Any = {"planning": PLANNING, "engine": "serial"}
    recompress_image(tmp_path / "in", tmp_path / "whole", EXACT, **words)
    seen: list[str] = []

    def dies(made: Any, **more: Any) -> Any:
        seen.append(made.destination)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(made, **more)

    monkeypatch.setattr(pyramid, "recompress", dies)
    with pytest.raises(KeyboardInterrupt):
        recompress_image(tmp_path / "in", tmp_path / "out", EXACT, **words)
    monkeypatch.setattr(pyramid, "recompress", real)
    with open_source(tmp_path / "out") as found:
        assert len(found.levels) == 1  # readable, and it names what is complete
    report = recompress_image(tmp_path / "in", tmp_path / "out", EXACT, **words)
    assert report.ok
    assert report.levels["s0"].n_before == report.levels["s0"].n_blocks
    for name in ("zarr.json", "s0/zarr.json", "s1/c/1/0/0", "s1/c/0/0/0"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_what_is_there_is_not_touched_unasked(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", fibsem()[:8])
    np.save(tmp_path / "b.npy", fibsem()[8:16])
    words: Any = {"planning": {"chunks": (8, 64, 64)}, "engine": "serial"}
    zarr.create_array(tmp_path / "theirs", data=fibsem()[:8])
    before = {p: p.read_bytes() for p in (tmp_path / "theirs").rglob("*") if p.is_file()}
    with pytest.raises(JobError, match="exists already"):
        recompress_image(tmp_path / "a.npy", tmp_path / "theirs", EXACT, **words)
    assert {p: p.read_bytes() for p in (tmp_path / "theirs").rglob("*") if p.is_file()} == before
    recompress_image(tmp_path / "a.npy", tmp_path / "out", EXACT, **words)
    with pytest.raises(JobError, match="begun from another source"):
        recompress_image(tmp_path / "b.npy", tmp_path / "out", EXACT, **words)
    report = recompress_image(tmp_path / "b.npy", tmp_path / "out", EXACT, overwrite=True, **words)
    assert report.ok
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "out" / "s0", mode="r")[...], fibsem()[8:16])
    with pytest.raises(JobError, match="overlaps"):
        recompress_image(tmp_path / "out" / "s0", tmp_path / "out", EXACT, overwrite=True, **words)
    with pytest.raises(SpecError, match="'finest', 'rebuild' or 'every'"):
        recompress_image(tmp_path / "a.npy", tmp_path / "c", levels="some")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="at least 1"):
        recompress_image(tmp_path / "a.npy", tmp_path / "c", n_levels=0)
    assert not (tmp_path / "c").exists()


def test_a_level_that_fails_is_not_named(tmp_path: Path) -> None:
    n5_pyramid(tmp_path / "in")
    block = tmp_path / "in" / "s1" / "0" / "0" / "0"
    block.write_bytes(block.read_bytes()[:30])
    report = recompress_image(
        tmp_path / "in", tmp_path / "out", EXACT, levels="every", planning=PLANNING, engine="serial", retries=0
    )
    assert not report.ok
    assert report.levels["s1"].n_failed
    with open_source(tmp_path / "out") as found:
        assert [level.name for level in found.levels] == ["s0"]


def test_a_remote_image_is_recompressed_on_a_cluster(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    n5_pyramid(tmp_path / "web" / "in")
    with web(tmp_path / "web") as server:
        report = recompress_image(
            f"{server.url}/in", tmp_path / "out", EXACT, planning=PLANNING, engine="dask", workers=1
        )
    assert report.ok
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "out" / "s0", mode="r")[...], fibsem())
    own: Any = zarr.open_group(tmp_path / "out", mode="r").attrs["emcodec"]
    assert own["source"] == f"{server.url}/in"
    shutil.rmtree(tmp_path / "out")
