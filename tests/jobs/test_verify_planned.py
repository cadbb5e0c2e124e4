from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.volumes import fibsem
from zarr_emcodec import VAECodec
from zarr_emcodec.errors import JobError, PlanMismatchError
from zarr_emcodec.jobs import regions
from zarr_emcodec.jobs.demo import SAMPLE
from zarr_emcodec.jobs.plan import plan
from zarr_emcodec.jobs.recompress import recompress
from zarr_emcodec.jobs.verify import examine

if TYPE_CHECKING:
    from pathlib import Path

CHUNKS = (16, 64, 64)
FINE = [(slice(0, 16), slice(0, 64), slice(0, 64))]


def only_corner(box: Any) -> bool:
    """A region told by code."""
    return all(part.start == 0 for part in box)


def planned(folder: Path, **words: Any) -> Path:
    made = plan(SAMPLE, folder / "em.zarr", words.pop("codec", 32), chunks=CHUNKS, shards=None, samples=0, **words)
    assert recompress(made, engine="serial").ok
    return folder / "em.zarr"


def test_background_was_meant_to_change(tmp_path: Path) -> None:
    mask = np.zeros((32, 128, 128), np.uint8)
    mask[:, :64] = 1  # half of the chunks are tissue
    np.save(tmp_path / "mask.npy", mask)
    path = planned(tmp_path, tissue=str(tmp_path / "mask.npy"))
    for words in ({}, {"sample": 5}, {"report": tmp_path / "look.html"}):
        found = examine(path, SAMPLE, **words)
        assert found.ok, found.findings
    assert (found.frames["absent"], found.chunk_db["inf"]) == (4, 4)
    assert found.worst_error is not None
    assert found.worst_error < 128
    (path / "c/0/0/0").unlink()
    assert [(finding.kind, finding.chunk) for finding in examine(path, SAMPLE).findings] == [("missing", (0, 0, 0))]
    (tmp_path / "mask.npy").unlink()
    regions._open_area.cache_clear()  # another process would not have it
    with pytest.raises(JobError, match=r"mask.*cannot be read"):
        examine(path, SAMPLE)


def test_regions_have_guards_of_their_own(tmp_path: Path) -> None:
    path = planned(tmp_path, regions=[(FINE, VAECodec(min_psnr=38)), ([(slice(0, 32),) * 3], VAECodec(max_error=0))])
    found = examine(path, SAMPLE)
    assert found.ok, found.findings
    changed = fibsem().copy()
    changed[:16, :64, :64] += 3  # 38 dB are an error of 3.2: what was promised of this block is broken
    changed[16:, :64, :64] += 1
    changed[:, 64:] += 20  # nothing was promised here
    np.save(tmp_path / "other.npy", changed)
    broken = examine(path, tmp_path / "other.npy")
    assert {finding.chunk: finding.kind for finding in broken.findings} == {(0, 0, 0): "guard", (1, 0, 0): "guard"}


def test_code_in_a_plan_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    path = planned(tmp_path, regions=[("tests.jobs.test_verify_planned:only_corner", VAECodec(max_error=0))])
    with pytest.raises(JobError, match="only_corner, and stored data run none unasked"):
        examine(path, SAMPLE)
    assert examine(path).ok  # frames alone need no plan
    assert examine(path, SAMPLE, trust_plan=True).chunk_db["inf"] == 1


def test_a_plan_that_is_not_the_arrays_is_refused(tmp_path: Path) -> None:
    path = planned(tmp_path, regions=[(FINE, VAECodec(max_error=0))])
    document = path / ".emcodec/ledger/plan.json"
    stored = json.loads(document.read_text())
    document.write_text(json.dumps({**stored, "regions": [*stored["regions"], 3]}))
    with pytest.raises((JobError, PlanMismatchError)):
        examine(path, SAMPLE)
    other = plan(SAMPLE, tmp_path / "b.zarr", 32, chunks=(8, 64, 64), shards=None, samples=0,
                 regions=[(FINE, VAECodec(max_error=0))])  # fmt: skip
    document.write_text(json.dumps(other.to_dict()))
    with pytest.raises(JobError, match="of another array"):
        examine(path, SAMPLE)
