from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore

from tests.jobs.recompressing import CHUNKS, SHARDS, Death, dying, small_plan, source_of, stored
from tests.volumes import as_dtype, fibsem
from zarr_emcodec.codecs import VAESpec
from zarr_emcodec.errors import JobError, PlanMismatchError, SpecError
from zarr_emcodec.jobs import block, destination, store
from zarr_emcodec.jobs.demo import SAMPLE
from zarr_emcodec.jobs.frames import stored_bytes
from zarr_emcodec.jobs.ledger import DONE, FOLDER, read_records
from zarr_emcodec.jobs.measure import compare_block
from zarr_emcodec.jobs.plan import Plan, plan
from zarr_emcodec.jobs.recompress import RecompressReport, recompress
from zarr_emcodec.jobs.sources import Source, open_source
from zarr_emcodec.jobs.verify import examine
from zarr_emcodec.quality import psnr, worst_error


def serial(made: Plan, **words: Any) -> RecompressReport:
    return recompress(made, **{"engine": "serial", "backoff_s": 0.001, **words})


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the small plan stores when nothing goes wrong."""
    folder = tmp_path_factory.mktemp("reference")
    assert serial(small_plan(folder)).ok
    return stored(folder / "out.zarr")


@pytest.mark.parametrize(
    "words",
    [{"shards": (16, 64, 128)}, {"shards": None}, {"shards": None, "zarr_format": 2}, {"shards": (16, 64, 64)}],
    ids=["one row", "chunks", "v2", "shards"],
)
def test_the_report_tells_what_plain_zarr_reads_back(words: dict[str, Any], tmp_path: Path) -> None:
    made = plan(SAMPLE, tmp_path / "out.zarr", 16, chunks=(16, 64, 64), samples=0, **words)
    ticks: list[tuple[int, int]] = []
    report = serial(made, progress=lambda *t: ticks.append(t), log=tmp_path / "log.jsonl")
    array = zarr.open_array(tmp_path / "out.zarr", mode="r")
    decoded = np.asarray(array[...])
    assert report.ok
    assert report.n_done == report.n_blocks == made.n_blocks
    assert report.psnr_db == pytest.approx(psnr(fibsem(), decoded))
    assert report.worst_error == worst_error(fibsem(), decoded)
    assert report.frames == {"latent": 8}
    ledger = tmp_path / "out.zarr" / FOLDER
    ledger_bytes = sum(p.stat().st_size for p in ledger.rglob("*") if p.is_file())
    assert report.stored_bytes + report.other_bytes == stored_bytes(array) - ledger_bytes
    assert ticks[0] == (0, fibsem().nbytes)
    assert ticks[-1] == (fibsem().nbytes, fibsem().nbytes)
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["begun", "workers", *["done"] * made.n_blocks, "ended"]
    own: Any = array.attrs["emcodec"]
    assert own["complete"] is True
    assert own["psnr_db"] == pytest.approx(report.psnr_db, abs=1e-5)
    json.dumps(report.to_dict(), allow_nan=False)
    assert examine(tmp_path / "out.zarr", SAMPLE).ok


def test_a_second_run_finds_nothing_to_do(tmp_path: Path, reference: dict[str, str]) -> None:
    made = small_plan(tmp_path)
    first, second = serial(made), serial(Plan.from_dict(json.loads(json.dumps(made.to_dict()))))
    assert (first.n_before, second.n_before) == (0, made.n_blocks)
    assert second.psnr_db == first.psnr_db
    assert second.stored_bytes == first.stored_bytes
    assert stored(tmp_path / "out.zarr") == reference
    assert first.n_empty == 3
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "out.zarr")[...], np.load(tmp_path / "in.npy"))


@pytest.mark.parametrize("when", ["before", "torn"])
def test_a_crash_at_any_access_and_a_second_run_store_what_one_run_does(
    when: str, tmp_path: Path, reference: dict[str, str]
) -> None:
    n, ended = 0, False
    while not ended:
        n += 1
        here = tmp_path / str(n)
        here.mkdir()
        shutil.copy2(source_of(tmp_path) if n == 1 else tmp_path / "in.npy", here / "in.npy")
        made = small_plan(here)
        try:
            with dying(n, when):
                serial(made)
            ended = True
        except Death:
            revive(here)
        assert serial(made).ok
        assert stored(here / "out.zarr") == reference
        shutil.rmtree(here)
    assert n > {"before": 3, "torn": 1}[when] * made.n_blocks


def revive(folder: Path) -> None:
    """The next process: the dead one's lease is void, half-written files are old, nothing is open."""
    (folder / "out.zarr" / FOLDER / "lease.json").unlink(missing_ok=True)
    block._workers.clear()
    for path in folder.rglob("*.partial"):
        os.utime(path, (1, 1))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(crashes=st.lists(st.tuples(st.integers(1, 45), st.sampled_from(["before", "torn"])), max_size=4))
def test_any_number_of_crashes_end_in_the_same_store(
    crashes: list[tuple[int, str]], tmp_path: Path, reference: dict[str, str]
) -> None:
    shutil.rmtree(tmp_path / "out.zarr", ignore_errors=True)
    made = small_plan(tmp_path)
    done = 0
    for call, when in crashes:
        try:
            with dying(call, when):
                serial(made)
        except Death:
            revive(tmp_path)
        n_records = len({r["block"] for r in read_records(store.place_at(made.destination))})
        assert n_records >= done, "what is done stays done"
        done = n_records
    assert serial(made).ok
    assert stored(tmp_path / "out.zarr") == reference


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_full_or_locked_disk_ends_the_job_and_the_next_run_goes_on(
    number: int, tmp_path: Path, reference: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {errno.ENOSPC: "no space left", errno.EACCES: "no permission"}[number]
    source_of(tmp_path)
    n, ended = 0, False
    while not ended:
        n += 3
        made = small_plan(tmp_path, f"{n}.zarr")
        with failing(monkeypatch, lambda k, n=n: OSError(number, os.strerror(number)) if k >= n else None):
            try:
                serial(made)
                ended = True
            except JobError as error:
                assert told in str(error)  # noqa: PT017  # which write raises is the loop's business
        assert serial(made).ok
        assert stored(tmp_path / f"{n}.zarr") == reference
    assert n > 12


def test_a_store_that_fails_now_and_then_is_asked_again(
    tmp_path: Path, reference: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = small_plan(tmp_path)
    assert serial(small_plan(tmp_path, "out.zarr"), retries=0).ok
    events: list[Any] = []
    shutil.rmtree(tmp_path / "out.zarr")

    def sometimes(k: int) -> Exception | None:
        return ConnectionError("reset by peer") if k in (2, 4, 5) else None

    with failing(monkeypatch, sometimes, only="c/"):
        report = serial(made, listener=events.append)
    assert report.ok
    assert sum(event["event"] == "retry" for event in events) == 3
    assert stored(tmp_path / "out.zarr") == reference


class failing:  # noqa: N801  # reads as a function where it is used
    """Let the n-th write of any local store raise what `error(n)` returns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Any, only: str = "") -> None:
        self._patch, self._error, self._only, self._count = monkeypatch, error, only, 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        original = LocalStore.set

        async def set_(store: LocalStore, key: str, value: Any) -> None:
            if key.startswith(self._only):
                with self._lock:
                    self._count += 1
                error = self._error(self._count)
                if error is not None:
                    raise error
            await original(store, key, value)

        self._patch.setattr(LocalStore, "set", set_)

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


def test_unreadable_source_blocks_are_listed_and_the_rest_is_stored(
    tmp_path: Path, reference: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = small_plan(tmp_path)
    original = Source.read

    def read(self: Source, box: Any) -> Any:
        if box[0].start == 8 and box[2].start == 64:
            raise JobError(f"cannot read voxels {box}: damaged")
        return original(self, box)

    monkeypatch.setattr(Source, "read", read)
    report = serial(made, retries=1)
    assert not report.ok
    assert not report.stopped
    assert report.n_failed == 2
    assert {failure.coords for failure in report.failed} == {(1, 0, 1), (1, 1, 1)}
    assert all(failure.tries == 2 and "damaged" in failure.reason for failure in report.failed)
    own: Any = zarr.open_array(tmp_path / "out.zarr").attrs["emcodec"]
    assert own["complete"] is False
    monkeypatch.undo()
    second = serial(made)
    assert second.ok
    assert second.n_before == made.n_blocks - 2
    assert stored(tmp_path / "out.zarr") == reference


def test_a_block_that_breaks_its_promise_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(SAMPLE, tmp_path / "out.zarr", {"min_psnr": 30}, chunks=(16, 64, 64), shards=(16, 128, 128), samples=0)
    monkeypatch.setattr(block, "compare_block", lambda a, b, *rest, **words: compare_block(a, b ^ 64, *rest, **words))
    report = serial(made)
    assert report.n_done == 0
    assert all("30 were promised" in failure.reason and failure.tries == 1 for failure in report.failed)


def test_what_comes_back_from_the_store_must_be_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = small_plan(tmp_path)
    original = store.get

    def get(place: Any, key: str) -> bytes | None:
        data = original(place, key)
        return data[:-1] + b"x" if data and key == "c/0/0/0" and store.is_local(place) else data

    monkeypatch.setattr(store, "get", get)
    report = serial(made)
    assert [failure.coords for failure in report.failed] == [(0, 0, 0)]
    assert "other bytes came back" in report.failed[0].reason
    assert report.failed[0].tries == 4


def test_what_cannot_be_coded_is_poisoned_at_once(tmp_path: Path) -> None:
    values = as_dtype(fibsem(), "float32")[:16]
    values[3, 70, 3] = np.nan
    np.save(tmp_path / "nan.npy", values)
    made = plan(tmp_path / "nan.npy", tmp_path / "out.zarr", 8, chunks=(16, 64, 128), shards=None, samples=0)
    report = serial(made)
    assert [(f.coords, f.tries) for f in report.failed] == [((0, 1, 0), 1)]
    assert "NaN" in report.failed[0].reason
    decoded = np.asarray(zarr.open_array(tmp_path / "out.zarr")[:, :64])
    assert report.psnr_db == pytest.approx(psnr(values[:, :64], decoded, peak=report.peak))


def test_an_existing_destination_is_replaced_only_when_asked(tmp_path: Path, reference: dict[str, str]) -> None:
    made = small_plan(tmp_path)
    zarr.create_array(tmp_path / "out.zarr", data=np.ones((4, 4), "u1"))
    with pytest.raises(JobError, match="exists already"):
        serial(made)
    assert (np.asarray(zarr.open_array(tmp_path / "out.zarr")[...]) == 1).all()
    assert serial(made, overwrite=True).ok
    assert stored(tmp_path / "out.zarr") == reference
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(JobError, match="holds no Zarr"):
        serial(small_plan(tmp_path, "notes"), overwrite=True)
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"


def test_source_and_destination_must_not_overlap(tmp_path: Path) -> None:
    data = zarr.create_array(tmp_path / "in.zarr", data=np.load(source_of(tmp_path)), chunks=CHUNKS)
    assert data.shape == (16, 40, 128)
    for name in ("in.zarr", "in.zarr/out"):
        made = plan(tmp_path / "in.zarr", tmp_path / name, 8, chunks=CHUNKS, shards=SHARDS, samples=0)
        with pytest.raises(JobError, match="overlaps the source"):
            serial(made, overwrite=True)
    assert (tmp_path / "in.zarr" / "c").is_dir()


def test_another_plan_or_a_changed_source_does_not_go_on(tmp_path: Path) -> None:
    made = small_plan(tmp_path)
    serial(made)
    with pytest.raises(PlanMismatchError, match=r"ledger belongs to plan .*codec differ"):
        serial(small_plan(tmp_path, codec={"max_error": 2}))
    with pytest.raises(PlanMismatchError, match=r"\(chunks differ\)"):
        serial(small_plan(tmp_path, chunks=(8, 16, 32)))
    np.save(tmp_path / "in.npy", np.zeros((16, 40, 128), np.uint8))
    with pytest.raises(PlanMismatchError, match="ledger belongs to plan"):
        serial(small_plan(tmp_path))
    shutil.rmtree(tmp_path / "out.zarr")
    with pytest.raises(PlanMismatchError, match="has changed since the plan was made"):
        serial(made)


def test_an_absent_source_is_told_before_anything_is_written(tmp_path: Path) -> None:
    made = small_plan(tmp_path)
    (tmp_path / "in.npy").unlink()
    with pytest.raises(JobError, match="no such file"):
        serial(made)
    assert not (tmp_path / "out.zarr").exists()


def test_ctrl_c_ends_what_is_under_way_and_the_next_run_goes_on(tmp_path: Path, reference: dict[str, str]) -> None:
    made = small_plan(tmp_path)
    seen: list[Any] = []
    before = signal.getsignal(signal.SIGINT)  # a shell in the background ignores it

    def press(event: Any) -> None:
        seen.append(event["event"])
        if event["event"] == "done" and seen.count("done") == 2:
            signal.raise_signal(signal.SIGINT)

    report = serial(made, listener=press)
    assert report.stopped
    assert not report.ok
    assert report.n_done == 2
    assert signal.getsignal(signal.SIGINT) is before
    assert serial(made).n_before == 2
    assert stored(tmp_path / "out.zarr") == reference


def test_the_second_ctrl_c_does_not_wait(tmp_path: Path, reference: dict[str, str]) -> None:
    made = small_plan(tmp_path)

    def press(event: Any) -> None:
        if event["event"] == "done":
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        serial(made, listener=press)
    assert serial(made).ok
    assert stored(tmp_path / "out.zarr") == reference


def test_regions_and_tissue_are_written_into_one_array(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", fibsem())
    mask = np.ones((1, 2, 2), bool)
    mask[0, 1, 1] = False
    np.save(tmp_path / "mask.npy", mask)
    made = plan(
        tmp_path / "in.npy",
        tmp_path / "out.zarr",
        VAESpec(ratio=64, model="vae-2d-s32"),
        chunks=(16, 64, 64),
        shards=None,
        regions=[([(slice(0, 16), slice(0, 64), slice(0, 64))], VAESpec(ratio=8, model="vae-2d-s16"))],
        tissue=tmp_path / "mask.npy",
        samples=0,
    )
    report = serial(made, embed_model=True)
    assert report.ok
    assert report.n_empty == 2
    array = zarr.open_array(tmp_path / "out.zarr")
    decoded = np.asarray(array[...])
    assert (decoded[:, 64:, 64:] == 0).all()
    rich, poor = np.s_[:16, :64, :64], np.s_[16:, :64, :64]
    assert psnr(fibsem()[rich], decoded[rich]) > psnr(fibsem()[poor], decoded[poor]) + 2
    own: Any = array.attrs["emcodec"]
    digests = {model["digest"].removeprefix("sha256:") for model in own["models"]}
    assert digests == {p.name for p in (tmp_path / "out.zarr" / ".emcodec").iterdir() if p.name != "ledger"}


def test_threads_are_chunks_at_a_time_or_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zarr_emcodec import codecs

    sizes: list[int] = []
    original = codecs.encode_many

    def encode_many(spec: Any, chunks: Any, *rest: Any) -> Any:
        sizes.append(len(chunks))
        return original(spec, chunks, *rest)

    monkeypatch.setattr(codecs, "encode_many", encode_many)
    for batched, expected in ((False, [1] * 8), (True, [4, 4])):
        sizes.clear()
        made = plan(
            SAMPLE, tmp_path / f"{batched}.zarr", 16, chunks=(16, 64, 64), shards=(32, 128, 128), threads=4, samples=0
        )
        with open_source(SAMPLE) as volume:
            destination.create(made, destination.claim(made, overwrite=False), volume, embed_model=False)
        worker = block.Worker(made, block.Settings(batched=batched))
        with worker.source:
            assert worker.run(0)["state"] == DONE
        assert sizes == expected
    assert stored(tmp_path / "False.zarr") == stored(tmp_path / "True.zarr")


def test_words_that_cannot_work(tmp_path: Path) -> None:
    made = small_plan(tmp_path)
    with pytest.raises(SpecError, match="needs 'dask' or 'serial'"):
        recompress(made, engine="spark")  # type: ignore[arg-type]
    with pytest.raises(JobError, match=r"log .* cannot be written"):
        serial(made, log=tmp_path / "absent" / "log.jsonl")
    assert not (tmp_path / "out.zarr").exists()
