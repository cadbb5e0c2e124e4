"""What happens in a job, as it happens: one JSON object a line, and a caller's function.

Events in; lines out, each complete the moment it is written.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Self, TypeAlias

from zarr_emcodec.errors import JobError
from zarr_emcodec.jobs.report import plain

Listener: TypeAlias = Callable[[Mapping[str, Any]], None]
"""Called with each event: "at" (ISO 8601, UTC), "event" (its name), and its facts."""


class Journal:
    """Tells a file and a listener, or either, or neither.

    Parameters
    ----------
    path : path, optional
        Lines are appended.
    listener : callable, optional

    Raises
    ------
    JobError
        If the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, listener: Listener | None = None) -> None:
        self._listener = listener
        self._file: IO[str] | None = None
        if path is not None:
            try:
                self._file = Path(path).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115  # closed on exit
            except OSError as error:
                raise JobError(f"log {path}: cannot be written: {error}") from error

    def tell(self, event: str, **facts: Any) -> None:
        """Write an event down."""
        if self._file is None and self._listener is None:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        told = {"at": now, "event": event, **{name: plain(value) for name, value in facts.items()}}
        if self._file is not None:
            self._file.write(json.dumps(told, allow_nan=False) + "\n")
        if self._listener is not None:
            self._listener(told)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
