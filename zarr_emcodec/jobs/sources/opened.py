"""One file, on disk or behind a URL, as the libraries of file formats want it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zarr_emcodec.errors import JobError, MissingExtraError
from zarr_emcodec.jobs.sources.place import info_mark, reason, stat_mark

if TYPE_CHECKING:
    from collections.abc import Mapping

_READ_AHEAD = 1 << 20


@dataclass
class Opened:
    """A file that is opened when it is first asked for.

    Parameters
    ----------
    location : str
        Local path, or URL.
    options : mapping, optional
        For the fsspec file system of a URL.
    """

    location: str
    options: Mapping[str, Any] | None = None
    _handle: Any = field(default=None, repr=False)

    @property
    def is_remote(self) -> bool:
        """Whether a URL leads there."""
        return "://" in self.location

    def for_library(self) -> Any:
        """The path, or for a URL a file object that fetches what is read.

        Raises
        ------
        JobError
            If the URL does not answer.
        """
        if not self.is_remote:
            return self.location
        if self._handle is None:
            system, path = self._system()
            try:
                self._handle = system.open(path, "rb", block_size=_READ_AHEAD, cache_type="readahead")
            except Exception as error:  # file systems raise whatever their transport does
                raise JobError(f"{self.location}: cannot be opened: {reason(error)}") from error
        return self._handle

    def mark(self) -> str:
        """Size and time or entity tag; "absent" where it is gone."""
        if not self.is_remote:
            return stat_mark(self.location)
        system, path = self._system()
        system.invalidate_cache()
        return info_mark(system.info(path))

    def close(self) -> None:
        """Close the file object, if there is one."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def _system(self) -> tuple[Any, str]:
        try:
            from fsspec.core import url_to_fs

            return url_to_fs(self.location, **(self.options or {}))  # type: ignore[no-any-return]
        except ImportError as error:
            protocol = self.location.split("://")[0]
            raise MissingExtraError(f"reading a file behind {protocol}://", extra="sources") from error
