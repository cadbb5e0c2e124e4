"""Models of a few kilobytes for tests: of tokens (`make`), with a learned entropy model (`make_context`)."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
"""Holds the token models; for ``options(model_path=...)``."""
CONTEXT_FOLDER = FOLDER / "context"
"""Holds those with a learned entropy model, which ``model="auto"`` would prefer to all others."""
