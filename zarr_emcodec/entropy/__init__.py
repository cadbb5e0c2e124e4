"""Symbols with a table index each go in, bytes come out, and back.

No array shape beyond one axis, no model and no float gets this far: what a symbol costs is decided by frozen integer
tables (`tables`), the stream's layout is written down in `coder`, and `exact` holds the rule by which a network may
choose a table index on any machine. `lanes` (NumPy, the reference) and `fast` (numba) produce the same bytes.
"""
