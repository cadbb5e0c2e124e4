"""Token models of a few kilobytes for tests; see `make`."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
"""Holds them; for ``options(model_path=...)``."""
