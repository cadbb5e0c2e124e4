"""One view of every volume a job can read: a path or URL in, a `Source` out that reads boxes of voxels.

Formats: Zarr v2 and v3, N5, Neuroglancer precomputed, TIFF and OME-TIFF files and folders of them, HDF5, .npy; on disk
or behind any URL that fsspec, obstore or (N5, precomputed) TensorStore reaches. What is not grey values is refused
before a job begins. Each format is one module with one opener; only `opening` knows them all.
"""

from __future__ import annotations

from zarr_emcodec.jobs.sources.opening import open_source
from zarr_emcodec.jobs.sources.source import Source

__all__ = ["Source", "open_source"]
