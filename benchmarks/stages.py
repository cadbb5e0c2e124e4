"""Where the time of one codec call goes: the rooms' functions are wrapped with clocks, without a profiler.

A profiler slows Python calls and not the kernels, and so misstates shares. Times are exclusive: what a stage spends
inside another stage is the other's.
"""

from __future__ import annotations

import functools
import importlib
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# stage -> functions as "module:attribute path"; the rest of a call is windows, rounding, frames, checksums
STAGES = {
    "entropy": (
        "zarr_emcodec.entropy.coder:encode_many",
        "zarr_emcodec.entropy.coder:decode_many",
        "zarr_emcodec.entropy.coder:cost_bits",
        "zarr_emcodec.entropy.feed:Feed.take",
    ),
    # of a learned entropy model: what is done to latents between its networks and the coder
    "symbols": (
        "zarr_emcodec.codecs.context_coding:encode_sections",
        "zarr_emcodec.codecs.context_probe:probe",
        "zarr_emcodec.codecs.context_coding:decode_parts",
    ),
    "network": ("zarr_emcodec.runtime.model:Model.run",),
    "search": (
        "zarr_emcodec.quality.target:finest_level",
        "zarr_emcodec.quality.target:coarsest_level",
        "zarr_emcodec.codecs.context_coding:ContextLatents.__init__",
    ),
}
CONTEXT = "context"
"""Stage of the networks of a learned entropy model, told from the transforms by which part is asked to run."""
ENTROPY_CODING = ("entropy", "symbols", CONTEXT)
"""Stages that together turn latents into bytes and back."""


class Clock:
    """CPU seconds per stage, of one thread of calls; `seconds` grows until `reset`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def reset(self) -> None:
        """Forget what was measured."""
        self.seconds.clear()

    def _switch(self) -> None:
        """Book the time since the last switch to the innermost open stage."""
        now = time.process_time()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time booked to the stage."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._switch()
            in_context = stage == "network" and str(args[1]).startswith(("context", "hyper"))
            self._open.append(CONTEXT if in_context else stage)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._open.pop()

        return timed


@contextmanager
def timed_stages() -> Iterator[Clock]:
    """A clock on every function of `STAGES` while the context lasts."""
    clock, undo = Clock(), []
    try:
        for stage, names in STAGES.items():
            for name in names:
                undo += _replace(name, stage, clock)
        yield clock
    finally:
        for owner, attribute, original in reversed(undo):
            setattr(owner, attribute, original)


def _replace(name: str, stage: str, clock: Clock) -> list[tuple[Any, str, Any]]:
    """Wrap one function wherever the package refers to it; what to set back."""
    module, path = name.split(":")
    owner: Any = importlib.import_module(module)
    *parents, attribute = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original = getattr(owner, attribute)
    timed = clock.wrap(stage, original)
    # A room that imported the function by name holds a reference of its own.
    holders = [m for key, m in list(sys.modules.items()) if key.startswith("zarr_emcodec")]
    found = [(m, key) for m in holders for key, value in list(vars(m).items()) if value is original]
    places = list({(id(place), key): (place, key) for place, key in [(owner, attribute), *found]}.values())
    for place, key in places:
        setattr(place, key, timed)
    return [(place, key, original) for place, key in places]
