"""Who wants to know how far fits have come.

Voxels worked through in; whoever watches is called with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Watcher = Callable[[float], None]
"""Called with the voxels' worth of work done since the last call, from whichever thread did it."""
_watchers: list[Watcher] = []


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Have a function called as fits of this process go on, until the block ends."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def report(n_voxels: float) -> None:
    """Tell the watchers of voxels worked through."""
    for watcher in tuple(_watchers):
        watcher(n_voxels)
