"""Whole jobs on whole volumes: compress, decompress, verify, describe, show.

Paths in, reports out. A job streams: its memory follows the chunks, never the volume, and what it writes appears under
its name only when it is complete.
"""
