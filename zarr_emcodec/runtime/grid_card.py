"""What the card of a model of fitted latents (codec "inr", backbone "latents") says of its grids of latents.

Part of the card's JSON in, checked `GridCard`s out. Under ``decoder``::

    grids    one or two of {"ndim": 2 or 3, "stride": voxels of a cell on each axis, "channels": latents of a cell,
             "levels": of the quality ladder, "halo": cells around a cell that its voxels depend on,
             "bands": where each band of channels ends, "scales": scales of each shape of table}

The grid of sections is decoded with ``decoder.onnx``, that of volumes with ``decoder-3.onnx``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from zarr_emcodec.runtime.card_values import CardReader

_MAX_CHANNELS = 4096
_MAX_BANDS = 8
_MAX_STRIDE = 1024
_MAX_HALO = 64
_MAX_SCALES = 255
_MAX_LEVELS = 256  # a frame names its level in one byte

Shape = tuple[int, ...]


@dataclass(frozen=True)
class GridCard:
    """Latents of sections or of volumes.

    Attributes
    ----------
    ndim : int
        2 or 3.
    stride : tuple of int, voxels
        Of a cell.
    channels, levels : int
        Latents of a cell; of the quality ladder.
    halo : tuple of int
        Cells around a cell that its voxels depend on.
    bands : tuple of int
        Where each band of channels ends, coarse to fine; the last is `channels`.
    scales : int
        Scales that each shape of frequency table comes in.
    """

    ndim: int
    stride: Shape
    channels: int
    levels: int
    halo: Shape
    bands: Shape
    scales: int

    def part(self, kind: str) -> str:
        """Name of its network, `kind` "encoder" or "decoder"."""
        return kind if self.ndim == 2 else f"{kind}-3"


def read_grids(reader: CardReader, decoder: Mapping[str, Any]) -> tuple[GridCard, ...]:
    """Check a card's grids.

    Raises
    ------
    ModelError
        If something is missing or out of bounds.
    """
    found = decoder.get("grids")
    if not isinstance(found, list) or not 1 <= len(found) <= 2:
        raise reader.wrong("decoder.grids", found, "one or two grids")
    grids = tuple(_grid(reader, reader.mapping(entry, "decoder.grids")) for entry in found)
    if len({grid.ndim for grid in grids}) != len(grids):
        raise reader.wrong("decoder.grids", [grid.ndim for grid in grids], "one of each number of axes")
    files = reader.mapping(decoder.get("files"), "decoder.files")
    for name in ("tables.npz", *(f"{grid.part('decoder')}.onnx" for grid in grids)):
        if name not in files:
            raise reader.wrong("decoder.files", sorted(files), repr(name))
    return grids


def _grid(reader: CardReader, entry: Mapping[str, Any]) -> GridCard:
    ndim = reader.integer(entry.get("ndim"), "grids.ndim", 2, 3)
    channels = reader.integer(entry.get("channels"), "grids.channels", 1, _MAX_CHANNELS)
    bands = entry.get("bands")
    if not isinstance(bands, list) or not 1 <= len(bands) <= _MAX_BANDS:
        raise reader.wrong("grids.bands", bands, f"1 to {_MAX_BANDS} ends")
    ends = tuple(reader.integer(end, "grids.bands", 1, channels) for end in bands)
    if ends[-1] != channels or any(a >= b for a, b in pairwise(ends)):
        raise reader.wrong("grids.bands", bands, f"rising numbers up to {channels}")
    return GridCard(
        ndim=ndim,
        stride=reader.per_axis(entry.get("stride"), "grids.stride", ndim, 1, _MAX_STRIDE),
        channels=channels,
        levels=reader.integer(entry.get("levels"), "grids.levels", 1, _MAX_LEVELS),
        halo=reader.per_axis(entry.get("halo"), "grids.halo", ndim, 0, _MAX_HALO),
        bands=ends,
        scales=reader.integer(entry.get("scales"), "grids.scales", 1, _MAX_SCALES),
    )
