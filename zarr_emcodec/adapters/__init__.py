"""The codecs as their hosts want them, derived from the specs in ``codecs``: numcodecs (Zarr v2) and Zarr v3."""
