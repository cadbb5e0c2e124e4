"""Model directories and inference: from a reference to float arrays through a trained network.

References, options and arrays in; checked tables and network outputs out. Knows no frame and no Zarr. Importing it
loads numpy only; ONNX Runtime or torch come with the first inference.
"""

from __future__ import annotations

from zarr_emcodec.runtime.card import Card, canonical_digest, parse_card
from zarr_emcodec.runtime.embedded import register_embedded
from zarr_emcodec.runtime.find import cache_folder, find_model, list_models, search_path
from zarr_emcodec.runtime.guard import ALLOWED_OPERATORS, check_onnx
from zarr_emcodec.runtime.model import Model, open_model
from zarr_emcodec.runtime.options import Options, current, options
from zarr_emcodec.runtime.session import Session, open_session

__all__ = [
    "ALLOWED_OPERATORS",
    "Card",
    "Model",
    "Options",
    "Session",
    "cache_folder",
    "canonical_digest",
    "check_onnx",
    "current",
    "find_model",
    "list_models",
    "open_model",
    "open_session",
    "options",
    "parse_card",
    "register_embedded",
    "search_path",
]
