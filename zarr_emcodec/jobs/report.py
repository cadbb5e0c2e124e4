"""What jobs hand back: frozen records that turn into plain JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """Base of every report."""

    def to_dict(self) -> dict[str, Any]:
        """Fields in JSON's own types; what is not finite (PSNR of equal arrays) becomes None."""
        return {item.name: plain(getattr(self, item.name)) for item in dataclasses.fields(self)}


def plain(value: Any) -> Any:
    """A value in JSON's own types.

    Examples
    --------
    >>> plain({"psnr_db": float("inf"), "shape": (1, 2)})
    {'psnr_db': None, 'shape': [1, 2]}
    """
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
