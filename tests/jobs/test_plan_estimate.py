from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

from tests.volumes import as_dtype, fibsem
from zarr_emcodec.adapters import arrays
from zarr_emcodec.codecs import VAESpec, vae_encode
from zarr_emcodec.errors import JobError, MissingExtraError, SpecError
from zarr_emcodec.frame import inspect
from zarr_emcodec.jobs import preview as previews
from zarr_emcodec.jobs import trial
from zarr_emcodec.jobs.coding import array_with, codec_from
from zarr_emcodec.jobs.compress import compress
from zarr_emcodec.jobs.demo import SAMPLE
from zarr_emcodec.jobs.estimate import PETABYTE
from zarr_emcodec.jobs.frames import layout_of, stored_chunks
from zarr_emcodec.jobs.plan import Plan, plan
from zarr_emcodec.jobs.preview import preview, shown_samples
from zarr_emcodec.jobs.sources import open_source
from zarr_emcodec.jobs.trial import EMPTY, draw, part_of, survey
from zarr_emcodec.quality import psnr

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from zarr_emcodec.jobs.estimate import Estimate
    from zarr_emcodec.jobs.grid import Box
    from zarr_emcodec.jobs.sources import Source
    from zarr_emcodec.runtime import Options

CHUNKS = (16, 64, 64)


def estimated(made: Plan) -> Estimate:
    assert made.estimate is not None
    return made.estimate


@pytest.mark.parametrize(
    "words", [{}, {"shards": (32, 64, 128)}, {"zarr_format": 2}], ids=["chunks", "shards", "v2"]
)  # fmt: skip
def test_an_estimate_of_all_blocks_is_what_compress_measures(words: dict[str, Any], tmp_path: Path) -> None:
    done = compress(SAMPLE, tmp_path / "out.zarr", ratio=8, chunks=CHUNKS, **words)
    found = estimated(plan(SAMPLE, "x.zarr", 8, chunks=CHUNKS, samples=99, **{"shards": None, **words}))
    assert found.stored_bytes == pytest.approx(done.stored_bytes, rel=0.02)
    assert found.stored_low <= found.stored_bytes <= found.stored_high
    assert found.ratio == pytest.approx(done.ratio, rel=0.02)
    assert found.psnr_db == pytest.approx(done.psnr_db, abs=0.1)
    assert found.codec_shares == (1.0,)


def test_other_dtypes_have_the_peak_of_their_values(tmp_path: Path) -> None:
    values = as_dtype(fibsem(), "uint16")
    np.save(tmp_path / "in.npy", values)
    made = plan(tmp_path / "in.npy", "out.zarr", 8, chunks=CHUNKS, samples=99)
    done = compress(tmp_path / "in.npy", tmp_path / "out.zarr", ratio=8, chunks=CHUNKS)
    assert estimated(made).peak == done.peak
    assert estimated(made).psnr_db == pytest.approx(done.psnr_db, abs=0.1)


def test_hours_and_money_follow_from_speed() -> None:
    found = estimated(plan(SAMPLE, "out.zarr", 32, chunks=CHUNKS, samples=2, price=0.5))
    parts = 1 / found.read_mb_s + 1 / found.encode_mb_s + 1 / found.decode_mb_s
    assert 1 / found.mb_s == pytest.approx(parts)
    assert found.core_hours == pytest.approx(found.raw_bytes / 1e6 / found.mb_s / 3600)
    assert found.core_hours_per_pb == pytest.approx(found.core_hours * PETABYTE / found.raw_bytes)
    assert found.cost == pytest.approx(0.5 * found.core_hours)
    assert found.cost_per_pb == pytest.approx(0.5 * found.core_hours_per_pb)
    assert (found.provider, found.threads) == ("cpu", 1)


def test_trials_are_coded_with_the_effort_that_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    efforts: list[int] = []
    settle = vae_encode._settle

    def spy(jobs: Sequence[vae_encode.VAEJob], options: Options) -> None:
        efforts.extend(job.spec.effort for job in jobs)
        settle(jobs, options)

    monkeypatch.setattr(vae_encode, "_settle", spy)
    plan(SAMPLE, "out.zarr", {"ratio": 16, "model": "vae-2d-s16", "effort": 4}, chunks=CHUNKS, samples=1)
    assert efforts
    assert set(efforts) == {4}


def test_the_seed_says_which_blocks() -> None:
    def blocks(seed: int) -> list[int]:
        made = plan(SAMPLE, "out.zarr", 32, chunks=(4, 64, 64), shards=None, samples=5, seed=seed)
        return [sample.block for sample in estimated(made).samples]

    assert blocks(1) == blocks(1) == sorted(set(blocks(1)))
    assert blocks(1) != blocks(2)


@pytest.mark.parametrize("seed", range(20))
def test_parts_are_whole_chunks_inside_their_block(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "SAMPLE_BYTES", 60_000)
    made = plan(SAMPLE, "out.zarr", 32, chunks=(12, 40, 40), shards=(24, 80, 120), samples=0)
    block = seed % made.n_blocks
    whole = made.box(block)
    for part, outer, chunk in zip(part_of(made, block, random.Random(seed)), whole, made.chunks, strict=True):
        assert outer.start <= part.start < part.stop <= outer.stop
        assert part.start % chunk == 0
        assert part.stop % chunk == 0 or part.stop == outer.stop


def test_every_kind_of_block_is_sampled() -> None:
    kinds = {EMPTY: range(1000), 0: range(1000, 1990), 1: range(1990, 1999), 2: [1999]}
    chosen = draw(kinds, 20, random.Random(0))
    counts = Counter(chosen.values())
    assert counts == {0: 20, 1: 2, 2: 1}
    assert all(block in kinds[kind] for block, kind in chosen.items())
    assert list(chosen) == sorted(chosen)


def test_large_plans_are_surveyed_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_SURVEYED", 40)
    made = plan(SAMPLE, "out.zarr", 32, chunks=(2, 32, 32), shards=None, samples=0)
    assert survey(made, random.Random(0)) == {0: range(256)}
    half = dataclasses.replace(made, tissue={"kind": "boxes", "boxes": [[[0, 16], [0, 128], [0, 128]]]})
    kinds = survey(half, random.Random(0))
    assert sum(map(len, kinds.values())) == 40
    assert all((block < 128) == (kind == 0) for kind, blocks in kinds.items() for block in blocks)


def broken(volume: Source, bad: Any) -> Source:
    """A source that cannot be read where `bad` says so."""

    def read(box: Box) -> Any:
        if bad(box):
            raise OSError("bad sector")
        return volume.reader(box)

    return dataclasses.replace(volume, reader=read)


def test_blocks_that_cannot_be_read_are_told() -> None:
    ticks: list[tuple[int, int]] = []
    with open_source(SAMPLE) as volume:
        made = plan(
            broken(volume, lambda box: box[0].start == 0), "out.zarr", 32, chunks=CHUNKS, shards=None, samples=99,
            progress=lambda *tick: ticks.append(tick),
        )  # fmt: skip
        assert [block for block, _ in estimated(made).unreadable] == [0, 1, 2, 3]
        assert "bad sector" in estimated(made).unreadable[0][1]
        assert len(estimated(made).samples) == 4
        assert ticks[-1] == (fibsem().nbytes, fibsem().nbytes)
        with pytest.raises(JobError, match=r"none of 8 sampled blocks can be read.*bad sector"):
            plan(broken(volume, lambda _: True), "out.zarr", 32, chunks=CHUNKS, shards=None, samples=99)


LAYOUTS: dict[str, dict[str, Any]] = {
    "chunks": {"shards": None},
    "v2": {"shards": None, "zarr_format": 2},
    "shards": {"shards": (16, 64, 128)},
}


def execute(made: Plan, place: Path) -> zarr.Array[Any]:
    """What a job does with a plan, in a few lines."""
    array = arrays.create_array(
        place,
        shape=made.shape,
        dtype=made.dtype,
        chunks=made.chunks,
        shards=made.shards,
        codec=codec_from(made.codec),
        zarr_format=made.zarr_format,
        fill_value=made.fill_value,
    )
    with open_source(made.source) as volume:
        for index in range(made.n_blocks):
            if made.may_hold_tissue(index):
                box, which = made.box(index), made.codec_index(index)
                writer = array_with(array, made.codec_of(index)) if which else array
                writer[box] = made.prepare(box, volume.read(box), made.codec_of(index))
    return zarr.open_array(place, mode="r")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_array_holds_several_codecs_and_exact_background(layout: str, tmp_path: Path) -> None:
    mask = np.ones((2, 8, 8), bool)
    mask[:, :5], mask[0, :, 4:] = False, False
    np.save(tmp_path / "mask.npy", mask)
    inside = np.repeat(np.repeat(np.repeat(mask, 16, 0), 16, 1), 16, 2)
    roi = np.s_[20:24, 100:101, 3:4]
    poor, rich = VAESpec(ratio=300, model="vae-2d-s32"), VAESpec(ratio=8, model="vae-2d-s16")
    made = plan(SAMPLE, "x", poor, chunks=CHUNKS, regions=[(roi, rich)], tissue=tmp_path / "mask.npy", samples=99,
                **LAYOUTS[layout])  # fmt: skip
    read = execute(made, tmp_path / "out.zarr")
    decoded = np.asarray(read[...])

    assert (decoded[~inside] == 0).all()
    stored = {chunk.chunk_index: chunk.data for chunk in stored_chunks(read, layout_of(read))}
    absent = {index for index, data in stored.items() if data is None}
    assert absent == {(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1), (0, 1, 1)}
    files = [p for p in (tmp_path / "out.zarr").rglob("*") if p.is_file() and p.suffix != ".json"]
    if layout == "shards":
        assert len(files) == 2, "the block without tissue is no file"

    in_region = [box for box in map(made.box, range(made.n_blocks)) if box[0].start == 16 and box[1].start == 64]
    in_region = [box for box in in_region if box[2].start == 0]
    digests = {index: inspect(data).model for index, data in stored.items() if data is not None}
    assert len(set(digests.values())) == 2
    assert {model["digest"].removeprefix("sha256:")[:16] for model in made.models} == set(digests.values())
    for box in in_region:
        tissue = inside[box]
        assert psnr(fibsem()[box][tissue], decoded[box][tissue]) > 32
    raw = sum(fibsem()[box][inside[box]].nbytes for box in in_region)
    region_bytes = sum(
        len(data) for (z, y, x), data in stored.items() if data is not None and digests[z, y, x] == digests[1, 1, 0]
    )
    assert raw / region_bytes >= 8

    found = estimated(made)
    assert found.empty_share == pytest.approx(1 - len({made.coords(i) for i in range(made.n_blocks)
                                                       if made.may_hold_tissue(i)}) / made.n_blocks)  # fmt: skip
    assert found.stored_bytes == pytest.approx(
        sum(p.stat().st_size for p in (tmp_path / "out.zarr").rglob("*") if p.is_file()), rel=0.3, abs=1500
    )
    prepared = np.where(inside, fibsem(), 0)
    assert found.psnr_db == pytest.approx(psnr(prepared, decoded), abs=0.3)


def test_what_is_shown_are_the_ends_and_the_middle_of_each_codec() -> None:
    made = plan(SAMPLE, "out.zarr", 100, chunks=CHUNKS, shards=None, samples=99, regions=[(np.s_[:16, :64, :], 8)])
    shown = shown_samples(estimated(made))
    assert [sample.codec_index for sample in shown] == [0, 0, 0, 1, 1]
    for index in (0, 1):
        mine = [s.squared / s.raw_bytes for s in shown if s.codec_index == index]
        every = [s.squared / s.raw_bytes for s in estimated(made).samples if s.codec_index == index]
        assert mine == sorted(mine, reverse=True)
        assert (mine[0], mine[-1]) == (max(every), min(every))


def test_a_preview_is_a_picture_or_a_page(tmp_path: Path) -> None:
    made = plan(SAMPLE, "out<b>.zarr", 64, chunks=CHUNKS, samples=3)
    preview(made, tmp_path / "look.png")
    assert (tmp_path / "look.png").read_bytes().startswith(b"\x89PNG")
    with open_source(SAMPLE) as volume:
        preview(made, tmp_path / "look.html", source=volume)
    page = (tmp_path / "look.html").read_text()
    assert page.count("data:image/png;base64,") == 3 * len(shown_samples(estimated(made)))
    assert "<b>" not in page
    for words in (made.digest, "core-hours", "per PB", "networks", "smaller", f"{estimated(made).psnr_db:.2f} dB"):
        assert words in page
    assert "http://" not in page
    assert "https://" not in page


def test_previews_that_cannot_be_drawn_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(SAMPLE, "out.zarr", 64, samples=0)
    with pytest.raises(SpecError, match="no samples"):
        preview(made, tmp_path / "look.png")
    made = plan(SAMPLE, "out.zarr", 64, samples=1)
    with pytest.raises(SpecError, match=r"ends in \.png or \.html"):
        preview(made, tmp_path / "look.jpg")
    with pytest.raises(JobError, match="does not exist"):
        preview(made, tmp_path / "absent" / "look.png")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(JobError, match="cannot be written"):
        preview(made, tmp_path / "folder.html")
    monkeypatch.setattr(previews, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="viz"):
        preview(made, tmp_path / "look.png")
    assert math.isfinite(estimated(made).lowest_db or 0)
