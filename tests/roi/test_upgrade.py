from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore, ZipStore

from tests.adapters.common import ROOT
from tests.roi.conftest import CHUNKS, copy_to, frames, tiers_in
from tests.volumes import fibsem
from zarr_emcodec.errors import FrameError, JobError, ModelNotFoundError, SpecError
from zarr_emcodec.frame import inspect, unpack
from zarr_emcodec.roi import downgrade_roi, objects, upgrade_roi
from zarr_emcodec.roi.region import cells_of

BOX = (slice(0, 9), slice(30, 40), slice(0, 70))  # 2 x 2 x 3 chunks, two of them without a tier
CELLS = np.s_[0:2, 0:2, 0:3]

pytestmark = pytest.mark.usefixtures("all_tiers")


def files(array: zarr.Array[Any]) -> dict[str, bytes]:
    assert isinstance(array.store, LocalStore)
    root = Path(array.store.root)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_only_the_tier_and_the_checksum_of_the_frames_touched_change(array: Any) -> None:
    before, objects_before = frames(array), files(array)
    report = downgrade_roi(array, BOX)
    after, objects_after = frames(array), files(array)
    touched = set(map(tuple, np.argwhere(cells_of(BOX, array.shape, CHUNKS)).tolist()))
    assert len(touched) == 12
    assert after.keys() == before.keys()
    for index, data in before.items():
        found = unpack(after[index])
        if index not in touched or not inspect(data).model:
            assert after[index] == data
            continue
        assert found.tier.name == "TOP"
        assert found.sections == unpack(data).sections  # the latents, bit for bit
        different = [i for i, (a, b) in enumerate(zip(data, after[index], strict=True)) if a != b]
        header = len(data) - sum(inspect(data).section_bytes)
        assert set(different) <= {3, *range(header - 4, header)}
        assert 3 in different
    assert {key: len(data) for key, data in objects_after.items()} == {k: len(d) for k, d in objects_before.items()}
    assert (report.touched, report.changed, report.plain, report.absent, report.already) == (12, 10, 1, 1, 0)
    assert report.rho == 12 / 48
    assert (
        report.bytes_before
        == report.bytes_after
        == sum(len(data) for key, data in objects_after.items() if data != objects_before[key])
    )
    assert upgrade_roi(array, BOX, "full").changed == 10
    assert files(array) == objects_before  # and it can be taken back


def test_a_second_call_changes_nothing(array: Any) -> None:
    downgrade_roi(array, (...,))
    upgrade_roi(array, BOX)
    assert set(tiers_in(array)[CELLS].ravel()) == {"prior", ""}
    assert set(tiers_in(array)[2].ravel()) == {"top"}
    before, stamps = files(array), [p.stat().st_mtime_ns for p in sorted(Path(array.store.root).rglob("*"))]
    again = upgrade_roi(array, BOX)
    assert (again.changed, again.already, again.objects_replaced, again.bytes_after) == (0, 10, 0, 0)
    assert files(array) == before
    assert [p.stat().st_mtime_ns for p in sorted(Path(array.store.root).rglob("*"))] == stamps


def test_upgrades_never_lower_and_downgrades_never_raise(array: Any) -> None:
    assert upgrade_roi(array, (...,), "prior").changed == 0  # all are at full
    downgrade_roi(array, (...,), "prior")
    assert downgrade_roi(array, (...,), "full").changed == 0
    assert set(tiers_in(array).ravel()) == {"prior", ""}


def test_masks_points_and_boxes_mark_the_same_chunks(sharded: Any) -> None:
    mask = np.zeros(sharded.shape, np.bool_)
    mask[19, 99, 127] = True
    downgrade_roi(sharded, (...,))
    assert upgrade_roi(sharded, mask).changed == 1
    assert upgrade_roi(sharded, np.array([[19, 99, 127]])).already == 1
    assert upgrade_roi(sharded, [(19, 99, 127), np.s_[19:20, 99:, 0:1]]).already == 1
    assert upgrade_roi(sharded, np.ones((3, 13, 16), np.bool_), factor=8).changed == 44
    assert upgrade_roi(sharded, np.zeros(sharded.shape, np.bool_)).touched == 0


def test_the_report_is_json_and_progress_ends_at_all(sharded: Any) -> None:
    told: list[tuple[int, int]] = []
    report = downgrade_roi(sharded, BOX, progress=lambda done, total: told.append((done, total)))
    assert json.loads(json.dumps(report.to_dict()))["changed"] == 10
    assert told[-1] == (16 * 64 * 96, 16 * 64 * 96)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_failing_disk_leaves_whole_objects_and_a_rerun_finishes(array: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = files(array)
    downgrade_roi(array, BOX)
    wanted = files(array)
    upgrade_roi(array, BOX, "full")
    real, failures = os.fsync, 0
    for n in range(20):
        calls = 0

        def fsync(descriptor: int, n: int = n) -> None:
            nonlocal calls
            calls += 1
            if calls == n + 1:
                raise OSError(28, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        try:
            downgrade_roi(array, BOX)
            break
        except JobError as error:
            assert "No space left" in str(error)  # noqa: PT017  # the loop ends with the call that does not fail
            failures += 1
        now = files(array)
        assert now.keys() == original.keys()  # no drafts and no lock
        assert all(now[key] in (original[key], wanted[key]) for key in now)
        monkeypatch.setattr(os, "fsync", real)
        upgrade_roi(array, BOX, "full")
    assert failures == len([key for key in original if original[key] != wanted[key]])
    assert files(array) == wanted


@pytest.mark.slow
def test_a_killed_process_leaves_whole_objects_and_no_lock(sharded: Any) -> None:
    original = files(sharded)
    code = (
        "import os, sys, zarr\n"
        "from zarr_emcodec.roi import downgrade_roi, tiers\n"
        "tiers.tiers_of = lambda model: ('top', 'prior', 'full')\n"
        "real, calls = os.fsync, []\n"
        "def fsync(descriptor):\n"
        "    calls.append(real(descriptor))\n"
        "    len(calls) == 2 and os._exit(9)\n"
        "os.fsync = fsync\n"
        "downgrade_roi(zarr.open_array(sys.argv[1], mode='r+'), (...,))\n"
    )
    root = Path(sharded.store.root)
    done = subprocess.run([sys.executable, "-c", code, root], cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert done.returncode == 9, done.stderr
    assert all(data == original[key] or len(data) == len(original[key]) for key, data in files(sharded).items()
               if key in original)  # fmt: skip
    assert set(tiers_in(sharded).ravel()) <= {"full", "top", ""}  # every frame is whole
    assert downgrade_roi(sharded, (...,)).changed > 0
    assert set(tiers_in(sharded).ravel()) == {"top", ""}
    assert files(sharded).keys() == original.keys()


def test_a_damaged_frame_is_named_and_left_as_it_is(array: Any) -> None:
    index, data = next((i, d) for i, d in frames(array).items() if i == (1, 0, 1))
    for key, content in files(array).items():
        if (at := content.find(data)) >= 0:
            path = Path(array.store.root) / key
            path.write_bytes(content[: at + 40] + bytes([content[at + 40] ^ 1]) + content[at + 41 :])
    before = files(array)
    with pytest.raises(FrameError, match=r"chunk \(1, 0, 1\): frame byte .*CRC32C"):
        downgrade_roi(array, (slice(8, 9), slice(0, 1), slice(32, 33)))
    assert files(array) == before
    assert index == (1, 0, 1)


def test_a_damaged_shard_index_is_said(sharded: Any) -> None:
    path = Path(sharded.store.root) / "c" / "0" / "0" / "0"
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    with pytest.raises(JobError, match="does not match its checksum"):
        downgrade_roi(sharded, BOX)
    assert path.read_bytes() == bytes(content)


def test_shards_with_their_index_in_front(tmp_path: Path) -> None:
    from zarr.codecs import ShardingCodec

    from zarr_emcodec import v3

    serializer = ShardingCodec(chunk_shape=CHUNKS, codecs=[v3.VAECodec(ratio=16)], index_location="start")
    made: Any = zarr.create_array(
        tmp_path, data=fibsem()[:16, :64, :64].copy(), chunks=(16, 64, 64), serializer=serializer, compressors=None
    )
    before = frames(made)
    assert downgrade_roi(made, np.s_[0:1, 0:1, 0:1]).changed == 1
    assert tiers_in(made)[0, 0, 0] == "top"
    assert [i for i, data in frames(made).items() if data != before[i]] == [(0, 0, 0)]


def test_tiers_that_the_model_lacks_are_refused_with_those_it_has(array: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    before = files(array)
    for change in (upgrade_roi, downgrade_roi):
        with pytest.raises(SpecError, match="has tier 'full', not 'top'"):
            change(array, BOX, "top")
    with pytest.raises(SpecError, match="needs 'top', 'prior' or 'full'"):
        upgrade_roi(array, BOX, "best")  # type: ignore[arg-type]
    assert files(array) == before


def test_without_the_model_nothing_is_written(array: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from zarr_emcodec.roi import tiers

    def find(model: str) -> None:
        raise ModelNotFoundError("it is nowhere", model_id=model)

    monkeypatch.undo()
    monkeypatch.setattr(tiers, "find_model", find)
    before = files(array)
    with pytest.raises(ModelNotFoundError):
        downgrade_roi(array, BOX)
    assert files(array) == before


def test_arrays_that_cannot_be_upgraded_are_refused(array: Any, tmp_path: Path, masters: Any, layout: str) -> None:
    from zarr_emcodec import v3

    with pytest.raises(SpecError, match="read_roi"):
        downgrade_roi(zarr.open_array(array.store.root, mode="r"), BOX)
    plain: Any = zarr.create_array(tmp_path / "plain", data=fibsem())
    with pytest.raises(SpecError, match="written by 'zstd', which has no tiers"):
        downgrade_roi(plain, (...,))
    wrapped: Any = zarr.create_array(tmp_path / "wrapped", data=fibsem(), serializer=v3.VAECodec(ratio=8))
    with pytest.raises(SpecError, match="wrapped by zstd"):
        downgrade_roi(wrapped, (...,))
    zipped = ZipStore(tmp_path / "a.zip", mode="w")
    with pytest.raises(SpecError, match="ZipStore cannot replace"):
        downgrade_roi(copy_to(zipped, masters[layout]), BOX)
    zipped.close()


def test_a_folder_without_permission_is_an_error_of_ours(array: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(objects, "_replace_file", refuse)
    with pytest.raises(JobError, match=r"cannot be replaced, and is as it was: .*Permission denied"):
        downgrade_roi(array, BOX)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(JobError, match="cannot be made, and nothing is changed"):
        downgrade_roi(array, BOX)


def test_permissions_of_files_are_kept(array: Any) -> None:
    for path in Path(array.store.root).rglob("*"):
        if path.is_file():
            path.chmod(0o640)
    downgrade_roi(array, BOX)
    assert {oct(p.stat().st_mode & 0o777) for p in Path(array.store.root).rglob("*") if p.is_file()} == {"0o640"}
