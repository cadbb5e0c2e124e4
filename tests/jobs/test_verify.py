from __future__ import annotations

import base64
import dataclasses
import json
import re
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
import zarr

from tests.jobs.test_verify_info import flip_byte_of_chunk
from tests.volumes import as_dtype, fibsem
from zarr_emcodec import create_array, frame, n5, options
from zarr_emcodec.errors import JobError, ModelNotFoundError, SpecError, VerifyError
from zarr_emcodec.jobs import grid
from zarr_emcodec.jobs import sources as source_room
from zarr_emcodec.jobs.demo import SAMPLE
from zarr_emcodec.jobs.tally import MAX_FINDINGS, N_WORST, Tally
from zarr_emcodec.jobs.verify import examine, find_array, verify
from zarr_emcodec.quality import psnr

if TYPE_CHECKING:
    from pathlib import Path

CHUNKS = (16, 64, 64)


def decoded(path: Path) -> Any:
    return np.asarray(zarr.open_array(path)[...])


def test_a_report_has_the_figures_of_the_whole(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "BLOCK_BYTES", 1)  # one object at a time
    found = examine(stored, SAMPLE)
    assert found.ok
    assert found.psnr_db == pytest.approx(psnr(fibsem(), decoded(stored)))
    assert found.lowest_chunk_db == pytest.approx(found.worst_chunks[0][1])
    assert sum(found.chunk_db.values()) == 8
    assert sum(found.errors) == fibsem().size
    assert found.errors[0] == np.count_nonzero(decoded(stored) == fibsem())
    assert found.levels
    assert sum(found.models.values()) == 8


def test_everything_wrong_is_told_and_the_rest_is_measured(stored: Path) -> None:
    whole = examine(stored, SAMPLE)
    flip_byte_of_chunk(stored, (1, 0, 1))
    found = examine(stored, SAMPLE)
    assert not found.ok
    [finding] = found.findings
    assert (finding.kind, finding.chunk) == ("frame", (1, 0, 1))
    assert (found.chunks_compared, found.frames["damaged"]) == (7, 1)
    assert found.psnr_db == pytest.approx(whole.psnr_db, abs=0.5)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (data["ok"], data["chunks"], data["n_findings"]) == (False, [[1, 0, 1]], 1)


def test_chunks_that_are_gone_or_cannot_be_read_are_findings(stored_v3: Path) -> None:
    (stored_v3 / "c" / "0" / "1" / "0").unlink()
    chunk = stored_v3 / "c" / "1" / "0" / "0"
    chunk.unlink()
    chunk.symlink_to(chunk)  # an error that root gets too
    alone = examine(stored_v3)
    assert alone.frames == {"absent": 1, "damaged": 1, "latent": 6}
    assert [finding.kind for finding in alone.findings] == ["frame"]
    assert "cannot be read" in alone.findings[0].reason
    found = examine(stored_v3, SAMPLE)
    assert found.chunks_compared == 7
    assert {finding.chunk: finding.kind for finding in found.findings} == {(1, 0, 0): "frame", (0, 1, 0): "missing"}
    assert found.worst_chunks[0][0] == (0, 1, 0)
    assert found.worst_chunks[0][1] < 12


def test_chunks_of_nothing_but_fill_value_need_not_be_stored(tmp_path: Path) -> None:
    for fill, name in ((0, "uint8"), (np.nan, "float32")):
        data = fibsem().astype(name)
        data[:16] = fill
        np.save(tmp_path / "a.npy", data)
        create_array(tmp_path / name, data=data, chunks=CHUNKS, ratio=16, fill_value=fill)
        found = examine(tmp_path / name, tmp_path / "a.npy")
        assert (found.ok, found.frames["absent"], found.chunk_db["inf"]) == (True, 4, 4)


def test_source_blocks_that_cannot_be_read_are_findings(stored_v3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = source_room.Source.read

    def hole(self: source_room.Source, box: grid.Box) -> Any:
        if box[0].stop > 16 and box[1].start < 64 and box[2].start < 64:
            raise JobError("a hole")
        return read(self, box)

    monkeypatch.setattr(source_room.Source, "read", hole)
    found = examine(stored_v3, SAMPLE)
    assert [(finding.kind, finding.chunk, finding.reason) for finding in found.findings] == [
        ("source", (1, 0, 0), "a hole")
    ]
    assert (found.chunks_compared, found.frames_checked) == (7, 8)


def test_a_sample_is_the_same_in_every_run(stored: Path) -> None:
    first, second = (examine(stored, SAMPLE, sample=3) for _ in range(2))
    assert first.chunks_compared == 3
    assert first.frames_checked == 8
    assert first.worst_chunks == second.worst_chunks
    few = examine(stored, SAMPLE, sample=1, only_sampled=True)
    assert few.chunks_compared == 1
    assert few.frames_checked == (4 if zarr.open_array(stored).shards else 1)  # a shard's frames come with it
    assert examine(stored, SAMPLE, sample=100).chunks_compared == 8
    assert examine(stored, SAMPLE, sample=1.0).chunks_compared == 8


def test_progress_ends_where_it_said(stored: Path) -> None:
    for words in ({}, {"sample": 3}, {"sample": 3, "only_sampled": True}):
        seen: list[tuple[int, int]] = []
        examine(stored, SAMPLE, progress=lambda done, total, seen=seen: seen.append((done, total)), **words)  # type: ignore[misc,arg-type]
        assert seen[-1][0] == seen[-1][1]
        assert seen == sorted(seen)


def test_memory_follows_a_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "BLOCK_BYTES", 16 * 64 * 64)
    create_array(tmp_path / "a.zarr", data=np.tile(fibsem(), (2, 1, 1)), chunks=CHUNKS)
    np.save(tmp_path / "a.npy", np.tile(fibsem(), (2, 1, 1)))
    largest = 0
    read = source_room.Source.read

    def watched(self: source_room.Source, box: grid.Box) -> Any:
        nonlocal largest
        largest = max(largest, grid.voxels(box))
        return read(self, box)

    monkeypatch.setattr(source_room.Source, "read", watched)
    assert examine(tmp_path / "a.zarr", tmp_path / "a.npy").chunks_compared == 16
    assert largest <= 16 * 64 * 64


def test_an_n5_dataset_is_verified_like_any_array(tmp_path: Path) -> None:
    n5.create(tmp_path / "a.n5", "em", data=fibsem(), chunks=(16, 48, 64), ratio=16)
    assert examine(tmp_path / "a.n5/em", SAMPLE).frames_checked == 12
    block = tmp_path / "a.n5/em/1/2/0"
    block.write_bytes(block.read_bytes()[:-1])
    assert examine(tmp_path / "a.n5/em", SAMPLE).chunks == ((0, 2, 1),)
    block.write_bytes(b"\0\0")  # not even a header
    found = examine(tmp_path / "a.n5/em", SAMPLE)
    assert [(finding.kind, finding.chunk) for finding in found.findings] == [("frame", (0, 2, 1))]


def test_a_model_that_is_not_here_is_no_damage(stored_v3: Path) -> None:
    chunk = stored_v3 / "c" / "1" / "0" / "0"
    stranger = dataclasses.replace(frame.unpack(chunk.read_bytes()), model=b"\x11" * 8)
    chunk.write_bytes(frame.pack(stranger))
    assert examine(stored_v3).ok
    with pytest.raises(ModelNotFoundError):
        examine(stored_v3, SAMPLE)


def test_the_page_stands_alone_and_shows_the_worst(stored_v3: Path, tmp_path: Path) -> None:
    page = tmp_path / "look.html"
    chunk = stored_v3 / "c" / "0" / "1" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    found = examine(stored_v3, SAMPLE, report=page)
    text = page.read_text()
    assert "1 findings." in text
    assert str(found.findings[0].reason) in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "http" not in text.replace("http-equiv", "")
    assert text.count("<svg") == 2
    pictures = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", text)
    assert len(pictures) == 3 * 7  # every chunk that can be decoded
    assert "chunk (0, 1, 0): " not in text.split("Worst chunks")[1]
    image = base64.b64decode(pictures[0])
    assert image.startswith(b"\x89PNG")
    rows = zlib.decompress(image[image.index(b"IDAT") + 4 : image.index(b"IEND") - 8])
    assert len(rows) == 64 * 65


def test_pictures_are_readable_by_others(tmp_path: Path) -> None:
    imagecodecs = pytest.importorskip("imagecodecs", reason="the extra 'cli' is absent")
    from zarr_emcodec.jobs.page import diverging, grey, png

    section = fibsem()[3]
    np.testing.assert_array_equal(imagecodecs.png_decode(png(grey(section, 0, 255))), section)
    colours = diverging(np.array([[-2.0, 0.0, 2.0]]), 2.0)
    np.testing.assert_array_equal(imagecodecs.png_decode(png(colours)), colours)
    assert colours[0, 1].tolist() == [255, 255, 255]


def test_names_from_elsewhere_do_not_become_markup(tmp_path: Path) -> None:
    create_array(tmp_path / "a.zarr", data=fibsem()[:16], chunks=CHUNKS)
    (tmp_path / "a.zarr").rename(tmp_path / "<img src=x>.zarr")
    examine(tmp_path / "<img src=x>.zarr", report=tmp_path / "look.html")
    assert "<img" not in (tmp_path / "look.html").read_text()


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_other_dtypes_have_pages_too(dtype: str, tmp_path: Path) -> None:
    data = as_dtype(fibsem(), dtype)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack")
    create_array(tmp_path / "a.zarr", data=data, chunks=CHUNKS, ratio=16)
    found = examine(tmp_path / "a.zarr", tmp_path / "a.tif", report=tmp_path / "a.html", sample=2)
    assert found.peak == pytest.approx(float(np.ptp(data)), rel=0.35)  # of the two chunks: nothing states it
    assert "Worst chunks" in (tmp_path / "a.html").read_text()
    examine(tmp_path / "a.zarr", tmp_path / "a.tif", report=tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["ok"] is True


def test_bad_words_are_refused(stored_v3: Path, tmp_path: Path) -> None:
    for words in ({"sample": 0}, {"sample": 1.5}, {"sample": -1}, {"only_sampled": True}, {"report": "a.pdf"}):
        with pytest.raises(SpecError):
            examine(stored_v3, SAMPLE, **words)
    with pytest.raises(SpecError, match="Pass the source"):
        examine(stored_v3, sample=2)
    with pytest.raises(JobError, match="cannot be written"):
        examine(stored_v3, report=tmp_path / "absent" / "a.html")
    with pytest.raises(JobError, match="cannot be written"):
        examine(stored_v3, report=tmp_path / "absent" / "a.json")


def test_the_array_is_told_from_its_source(stored_v3: Path, tmp_path: Path) -> None:
    ours, theirs = str(stored_v3), str(SAMPLE)
    assert find_array(theirs, ours) == find_array(ours, theirs) == (ours, theirs)
    zarr.create_array(tmp_path / "plain.zarr", data=fibsem())
    plain = str(tmp_path / "plain.zarr")
    assert find_array(plain, ours) == find_array(ours, plain) == (ours, plain)
    assert find_array(theirs, plain) == (plain, theirs)


def test_a_tally_stays_small() -> None:
    tally = Tally()
    from zarr_emcodec.jobs.measure import Guard, compare_block

    a = fibsem()[:16, :64, :64]
    block = compare_block(a, np.zeros_like(a), Guard(chunks=CHUNKS, max_error=1))
    for _ in range(30):
        tally.add(block)
    for i in range(MAX_FINDINGS + 5):
        tally.find("decode", (i,), "no")
    assert (len(tally.worst_chunks), len(tally.findings)) == (N_WORST, MAX_FINDINGS)
    assert tally.n_findings == MAX_FINDINGS + 35
    assert tally.psnr_db == pytest.approx(block.psnr_db)
    assert tally.to_dict()["n_findings"] == tally.n_findings


def test_verify_raises_what_examine_reports(stored_v3: Path) -> None:
    with options(threads=1):
        assert verify(stored_v3, SAMPLE).ok
    chunk = stored_v3 / "c" / "0" / "0" / "1"
    chunk.write_bytes(b"nothing")
    with pytest.raises(VerifyError, match=r"1 chunks fail. chunk \(0, 0, 1\)"):
        verify(stored_v3, SAMPLE, sample=1)
