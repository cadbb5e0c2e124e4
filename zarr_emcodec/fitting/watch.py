"""Who wants to know how far fits have come.

Voxels worked through in; whoever watches is called with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Watcher = Callable[[float], None]
"""Called with the voxels' worth of work done since the last call, from whichever thread did it; may raise to end it."""
_watchers: list[Watcher] = []


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Have a function called by all fits of this process that begin in this block."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def present() -> tuple[Watcher, ...]:
    """Who watches now; a fit goes on telling those who watched as it began."""
    return tuple(_watchers)
