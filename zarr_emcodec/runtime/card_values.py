"""Values of a card, one at a time: typed, bounded reads whose errors name the card and the key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zarr_emcodec.errors import ModelError

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_FILE = re.compile(NAME)  # one plain name: never a path
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_FILES = 32
_MAX_RATIO = float(1 << 20)
_MAX_FREE = 1e15  # numbers that nothing is computed from


@dataclass(frozen=True)
class CardReader:
    """Reads for one card.

    Parameters
    ----------
    where : str
        What messages call the card.
    """

    where: str

    def wrong(self, key: str, value: Any, wanted: str) -> ModelError:
        """The error for a value that is not what it should be."""
        return ModelError(f"{self.where}: {key} is {value!r:.80}, needs {wanted}. Reinstall the model.")

    def mapping(self, value: Any, key: str) -> Mapping[str, Any]:
        """A JSON object."""
        if not isinstance(value, Mapping):
            raise self.wrong(key, value, "an object")
        return value

    def text(self, value: Any, key: str, pattern: re.Pattern[str] | None) -> str:
        """Text, of a pattern where there is one."""
        if not isinstance(value, str) or (pattern and not pattern.fullmatch(value)):
            raise self.wrong(key, value, f"text like {pattern.pattern}" if pattern else "text")
        return value

    def integer(self, value: Any, key: str, low: int, high: int) -> int:
        """An integer within bounds, both included."""
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(key, value, f"an integer from {low} to {high}")
        return value

    def per_axis(self, value: Any, key: str, ndim: int, low: int, high: int) -> tuple[int, ...]:
        """A list of one bounded integer for each axis."""
        if not isinstance(value, list) or len(value) != ndim:
            raise self.wrong(key, value, f"{ndim} integers")
        return tuple(self.integer(v, key, low, high) for v in value)

    def span(self, value: Any, key: str) -> tuple[float, float]:
        """Two numbers, the first not above the second, both at least 1."""
        if not isinstance(value, list) or len(value) != 2 or not all(_is_number(v, _MAX_RATIO) for v in value):
            raise self.wrong(key, value, "two numbers")
        low, high = (float(v) for v in value)
        if not 1 <= low <= high:
            raise self.wrong(key, value, "two numbers, 1 or more, low before high")
        return low, high

    def files(self, value: Any, key: str, needed: str) -> Mapping[str, str]:
        """SHA-256 by plain file name, with one name that must be there."""
        files = self.mapping(value, key)
        if needed not in files or len(files) > _MAX_FILES:
            raise self.wrong(key, sorted(files), f"{needed!r}, and at most {_MAX_FILES} files")
        for name, sha256 in files.items():
            if not _FILE.fullmatch(name):
                raise self.wrong(key, name, "plain file names")
            self.text(sha256, f"{key}[{name!r}]", _SHA256)
        return files

    def number(self, value: Any, key: str, low: float, high: float) -> float:
        """A finite number within bounds, both included."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.wrong(key, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def numbers(self, values: Mapping[str, Any], key: str) -> None:
        """Refuse what is neither text nor a number of sane size, also inside lists."""
        for name, value in values.items():
            for v in value if isinstance(value, list) else [value]:
                if v is not None and not isinstance(v, str) and not _is_number(v, _MAX_FREE):
                    raise self.wrong(f"{key}.{name}", value, f"text or numbers from 0 to {_MAX_FREE:g}")


def _is_number(value: Any, limit: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= limit  # inf is beyond it
