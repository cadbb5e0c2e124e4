"""N5 datasets whose blocks are frames: ``n5.open(container, "volumes/raw")`` is an ordinary `zarr.Array`."""

from __future__ import annotations

from zarr_emcodec.adapters.n5 import N5Store, create, open  # noqa: A004  # the module's own, as in zarr

__all__ = ["N5Store", "create", "open"]
