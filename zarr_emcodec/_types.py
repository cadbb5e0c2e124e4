"""Aliases only: the array types that cross the borders between rooms."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Chunk: TypeAlias = NDArray[Any]
"""Voxels as stored: 0-D to 5-D, uint8, uint16, int16 or float32."""
Blocks: TypeAlias = NDArray[np.float32]
"""Normalised voxels as a model sees them, shape (n, 1, y, x) or (n, 1, z, y, x)."""
Symbols: TypeAlias = NDArray[np.int32]
"""Quantised latents."""
Buffer: TypeAlias = bytes | bytearray | memoryview
Shape: TypeAlias = tuple[int, ...]
