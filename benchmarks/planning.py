"""How long a plan takes and what it holds: a volume of so many blocks that was never written, planned without samples.

Called by recompress.py. Measured in a fresh process, so that the peak is the planner's own and imports are told apart.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from typing import Any

_PLANNER = """
import json, random, sys, time
begun = time.perf_counter()
import zarr
from zarr_emcodec.jobs.plan import plan

folder, per_axis = sys.argv[1], int(sys.argv[2])
block = (64, 1024, 1024)
shape = tuple(per_axis * edge for edge in block)
zarr.create_array(f"{folder}/in.zarr", shape=shape, chunks=(64, 64, 64), dtype="u1")
imported = time.perf_counter()
made = plan(f"{folder}/in.zarr", f"{folder}/out.zarr", 64, shards=block, samples=0)
text = json.dumps(made.to_dict())
planned = time.perf_counter()
asked = random.Random(0).sample(range(made.n_blocks), min(made.n_blocks, 10_000))
for index in asked:
    made.box(index), made.codec_index(index)
done = time.perf_counter()
# not ru_maxrss, which survives exec on Linux: a child would start with its parent's peak
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({
    "n_blocks": made.n_blocks, "raw_bytes": made.raw_bytes, "plan_bytes": len(text), "digest": made.digest,
    "import_s": imported - begun, "plan_s": planned - imported, "box_us": 1e6 * (done - planned) / len(asked),
    "peak_bytes": 1024 * peak,
}))
"""


def measure_planning(n_blocks: int = 10**6) -> dict[str, Any]:
    """Plan about `n_blocks` blocks in a process of its own.

    Parameters
    ----------
    n_blocks : int
        The nearest cube is taken.

    Returns
    -------
    dict
        n_blocks, raw_bytes (of the volume), plan_bytes (of its JSON), import_s, plan_s (opening the source, planning,
        hashing, writing the plan as text), box_us (finding one block), peak_bytes (of the process, imports included).
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _PLANNER, folder, str(max(1, round(n_blocks ** (1 / 3))))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    for count in (10**3, 10**6, 10**9):
        print(json.dumps(measure_planning(count)))
