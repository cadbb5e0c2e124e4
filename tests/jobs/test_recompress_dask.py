"""The same jobs on real clusters: processes that are spawned, killed and left without a scheduler."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.recompressing import small_plan, stored
from zarr_emcodec.errors import JobError, MissingExtraError, SpecError
from zarr_emcodec.jobs import block, cluster, dask_engine
from zarr_emcodec.jobs.demo import SAMPLE
from zarr_emcodec.jobs.plan import Plan, plan
from zarr_emcodec.jobs.recompress import recompress

dask = pytest.importorskip("dask", reason="Dask is not installed")
distributed = pytest.importorskip("distributed", reason="Dask is not installed")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Two workers of a scheduler that was there before the job."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
    ) as running:
        yield running.scheduler_address


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("reference")
    assert recompress(small_plan(folder), engine="serial").ok
    return stored(folder / "out.zarr")


def tissue_plan(folder: Path) -> Plan:
    """Of 32 blocks."""
    return plan(SAMPLE, folder / "out.zarr", {"max_error": 0}, chunks=(8, 32, 32), shards=(8, 32, 64), samples=0)


def test_a_running_scheduler_is_used_and_left_as_it_was(
    scheduler: str, tmp_path: Path, reference: dict[str, str]
) -> None:
    made = small_plan(tmp_path)
    events: list[Any] = []
    report = recompress(made, scheduler=scheduler, blocks_per_task=3, listener=events.append)
    assert report.ok
    assert report.threads == 2
    assert stored(tmp_path / "out.zarr") == reference
    with distributed.Client(scheduler, set_as_default=False) as client:
        deadline = time.monotonic() + 30  # a scheduler forgets tasks in its own time
        while client.run_on_scheduler(_tasks) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert client.run_on_scheduler(_tasks) == 0
        assert set(client.run(lambda: len(block._jobs)).values()) == {0}
    assert next(e["text"] for e in events if e["event"] == "advice").startswith(
        "2 workers were started with MALLOC_TRIM"
    )


def _tasks(dask_scheduler: Any) -> int:
    return len(dask_scheduler.tasks)


def test_blocks_that_fail_on_workers_are_listed(scheduler: str, tmp_path: Path, reference: dict[str, str]) -> None:
    made = small_plan(tmp_path)
    poison = tmp_path / "out.zarr" / "c" / "0" / "0"
    poison.mkdir(parents=True)
    (poison / "0").mkdir()  # a folder where an object is to be
    (tmp_path / "out.zarr" / ".emcodec" / "ledger").mkdir(parents=True)
    from zarr_emcodec.jobs import store
    from zarr_emcodec.jobs.ledger import Ledger

    Ledger.begin(store.place_at(made.destination), made.to_dict()).close()
    report = recompress(made, scheduler=scheduler, retries=1, backoff_s=0.01)
    assert [(failure.coords, failure.tries) for failure in report.failed] == [((0, 0, 0), 2)]
    (poison / "0").rmdir()
    assert recompress(made, scheduler=scheduler).ok
    assert stored(tmp_path / "out.zarr") == reference


def test_a_cluster_of_its_own_survives_a_killed_worker(tmp_path: Path) -> None:
    assert recompress(tissue_plan(tmp_path), engine="serial").ok
    expected = stored(tmp_path / "out.zarr")
    shutil.rmtree(tmp_path / "out.zarr")
    killed: list[int] = []

    def kill(event: Any) -> None:
        if event["event"] == "done" and not killed:
            killed.append(int(event["worker"].rpartition(":")[2]))
            assert killed[0] != os.getpid()
            os.kill(killed[0], signal.SIGKILL)

    report = recompress(tissue_plan(tmp_path), workers=2, listener=kill, blocks_per_task=2, backoff_s=0.01)
    assert killed
    assert report.ok
    assert report.threads == 2
    assert stored(tmp_path / "out.zarr") == expected


def test_a_scheduler_that_dies_ends_the_job_which_goes_on_elsewhere(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from distributed import LocalCluster\n"
        "if __name__ == '__main__':\n"
        "    c = LocalCluster(n_workers=1, threads_per_worker=1, processes=False, protocol='tcp://')\n"
        "    print(c.scheduler_address, flush=True)\n"
        "    time.sleep(300)\n"
    )
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()

        def kill(event: Any) -> None:
            if event["event"] == "done":
                process.kill()

        with pytest.raises(JobError, match=r"the scheduler at .* is gone"):
            recompress(tissue_plan(tmp_path), scheduler=address, listener=kill, blocks_per_task=1)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
    report = recompress(tissue_plan(tmp_path), engine="serial")
    assert report.ok
    assert report.n_before >= 1


def test_a_scheduler_that_is_not_there() -> None:
    begun = time.monotonic()
    with pytest.raises(JobError, match=r"scheduler tcp://127\.0\.0\.1:1: cannot be reached"):
        cluster.connected_engine("j", "{}", block.Settings(), scheduler="tcp://127.0.0.1:1", patience_s=1)
    assert time.monotonic() - begun < 10


def test_nobody_with_a_gpu_is_noticed_at_once(scheduler: str) -> None:
    with pytest.raises(JobError, match="worker that declares the resource GPU"):
        cluster.connected_engine("j", "{}", block.Settings(), scheduler=scheduler, on_gpus=True, patience_s=1)


def test_how_many_workers_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed.system, "MEMORY_LIMIT", 10 * 10**9)
    monkeypatch.setattr(dask.system, "CPU_COUNT", 64)
    assert cluster.fitting_workers(None, 0, 10**9, 1000) == 10
    assert cluster.fitting_workers(None, 2, 10**9, 1000) == 2
    assert cluster.fitting_workers(None, 0, 10**9, 3) == 3
    assert cluster.fitting_workers(4, 0, 10**9, 1000) == 4
    with pytest.raises(JobError, match=r"11 workers of 1\.00 GB each do not fit into 10\.0 GB.*Ask for 10"):
        cluster.fitting_workers(11, 0, 10**9, 1000)
    with pytest.raises(JobError, match="Plan smaller shards"):
        cluster.fitting_workers(None, 0, 11 * 10**9, 1000)
    with pytest.raises(SpecError, match="at least 1"):
        cluster.fitting_workers(0, 0, 1, 1000)


def test_gpus_are_those_that_the_environment_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, 3")
    assert cluster.visible_gpus() == ("0", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(JobError, match="shows no GPU"):
        cluster.visible_gpus()


def test_each_gpu_gets_a_worker_that_sees_no_other(tmp_path: Path) -> None:
    made = small_plan(tmp_path)
    engine = cluster.local_engine("j", "{}", block.Settings(), workers=9, gpus=("3", "5"))
    try:
        assert engine.threads == 2
        seen = engine._client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
        assert sorted(seen.values()) == ["3", "5"]
        assert engine.advice is None
        threads = engine._client.run(lambda: os.environ["OMP_NUM_THREADS"])
        assert set(threads.values()) == {"1"}
    finally:
        engine.close()
    assert made.n_blocks == 8


def test_what_dask_remembers_does_not_grow_with_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_engine, "_REST", 8)
    engine = cluster.local_engine("j-0", "{}", block.Settings(), workers=1)  # of a plan that fails every block
    try:
        keys: list[str] = []
        for first in range(0, 60, 3):
            tasks: list[Any] = [(first,), (first + 1, first + 2)] if first else [7]  # no sequence: it fails
            for task in tasks:
                engine.submit(task)
            keys += engine._running
            while engine.n_running:
                for task, outcome in engine.collect(10):
                    if first:
                        assert not isinstance(outcome, Exception)
                        assert [record["block"] for record in outcome] == list(task)
                    else:
                        assert isinstance(outcome, TypeError)
        assert len(keys) == 39
        assert len(set(keys)) < 8 + 6
        assert keys.count("j-0-1") == 1, "a worker may be at a failed task still"
        spans = engine._client.run_on_scheduler(_span_metadata)
        assert spans
        assert set(spans) == {None}
    finally:
        engine.close()


def _span_metadata(dask_scheduler: Any) -> list[Any]:
    return [span._metadata for span in dask_scheduler.extensions["spans"].spans.values()]


def test_without_dask_one_sentence_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtraError, match=r"zarr_emcodec\[dask\]"):
        recompress(small_plan(tmp_path))
    assert recompress(small_plan(tmp_path), engine="serial").ok
