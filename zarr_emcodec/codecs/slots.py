"""As many chunks at work as there are processors.

Zarr and Dask hand chunks over from more threads than that. Each chunk at work holds tens of bytes a voxel, so the
others wait their turn; nothing is lost by it, since each one at work keeps a processor busy.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_slots = threading.BoundedSemaphore(os.cpu_count() or 1)


@contextmanager
def slot() -> Iterator[None]:
    """Hold one of the process's slots; not to be nested."""
    with _slots:
        yield


def _after_fork() -> None:
    # threads that held slots do not exist in the child
    global _slots
    _slots = threading.BoundedSemaphore(os.cpu_count() or 1)


os.register_at_fork(after_in_child=_after_fork)
