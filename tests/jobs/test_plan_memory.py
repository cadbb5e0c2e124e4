from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

from tests.volumes import fibsem
from zarr_emcodec.jobs.coding import codec_config
from zarr_emcodec.jobs.memory import Memory, project

if TYPE_CHECKING:
    from pathlib import Path

ONE_BLOCK = """
import json, sys
import numpy as np
from zarr_emcodec.adapters import arrays
from zarr_emcodec.jobs.coding import codec_from
from zarr_emcodec.jobs.measure import Guard, compare_block
from zarr_emcodec.jobs.plan import plan
from zarr_emcodec.jobs.sources import open_source

folder = sys.argv[1]
made = plan(f"{folder}/in.zarr", f"{folder}/out.zarr", 16, chunks=(16, 512, 512), shards=(32, 512, 512), samples=0,
            tissue=f"{folder}/mask.npy")
array = arrays.create_array(made.destination, shape=made.shape, dtype=made.dtype, chunks=made.chunks,
                            shards=made.shards, codec=codec_from(made.codec).to_v3())
with open_source(made.source) as source:
    box = made.box(0)
    original = made.prepare(box, source.read(box), made.codec)
    array[box] = original
    decoded = np.asarray(array[box])
    found = compare_block(original, decoded, Guard(chunks=made.chunks, peak=255.0))
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"peak": 1024 * peak, "projected": made.memory.peak_bytes, "psnr": found.psnr_db}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the resident set's peak from /proc")
def test_a_real_block_stays_below_the_projection(tmp_path: Path) -> None:
    values = np.tile(fibsem(), (1, 4, 4))
    zarr.create_array(tmp_path / "in.zarr", data=values, chunks=(32, 64, 64))
    mask = np.ones((2, 32, 32), bool)
    mask[:, :10] = False
    np.save(tmp_path / "mask.npy", mask)
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}  # as Dask's nannies start their workers
    command = [sys.executable, "-c", ONE_BLOCK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["psnr"] > 25
    assert found["peak"] < found["projected"] < 2 * found["peak"]


def needs(**words: Any) -> Memory:
    fixed: dict[str, Any] = {"block": (64, 1024, 1024), "chunks": (16, 512, 512), "source_chunks": (64, 64, 64)}
    return project(**{**fixed, "itemsize": 1, "configs": [codec_config(64)], **words})


@pytest.mark.parametrize(
    "more",
    [
        {"block": (128, 1024, 1024)},
        {"chunks": (64, 512, 512)},
        {"source_chunks": (256, 1024, 1024)},
        {"itemsize": 2},
        {"configs": [codec_config(64), codec_config(8)]},
        {"configs": [codec_config({"min_psnr": 30})]},
        {"threads": 2},
        {"mask_bytes": 10**8},
        {"source_held": 10**8},
    ],
    ids=lambda more: next(iter(more)),
)
def test_every_copy_counts(more: dict[str, Any]) -> None:
    assert needs(**more).peak_bytes > needs().peak_bytes


def test_smaller_inference_calls_need_less() -> None:
    assert needs(block_voxels=2**18).peak_bytes < needs(block_voxels=2**20).peak_bytes


def test_the_peak_is_the_largest_phase_and_what_is_always_there() -> None:
    memory = Memory(held={"a": 5}, reading={"b": 7}, writing={"c": 3, "d": 5}, comparing={"e": 1})
    assert memory.peak_bytes == 13
    assert memory.at_peak == [("a", 5), ("d", 5), ("c", 3)]
    assert Memory.from_dict(json.loads(json.dumps(memory.to_dict()))) == memory
