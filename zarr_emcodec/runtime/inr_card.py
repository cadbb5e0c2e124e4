"""What the card of a model of neural fields (codec "inr") says beyond other cards: how a network of the frame computes.

Parts of the card's JSON in, a checked `InrCard` out. Such a model has no weights of its own: frames bring theirs. Keys,
all under ``decoder``; ndim, stride, halo, channels and levels are not among them::

    backbone    "siren": layers of sines, a linear last one; "latents": see `grid_card`, which has keys of its own
    layers      [fewest, most] of a network; ``decoder.onnx`` is of the most, ``decoder-<n>.onnx`` of n
    rows        coordinates of one call: every call has exactly so many, so that none depends on what is beside it
    starts      optional: [axes, layers, widest width] of each learnt start in ``tables.npz``
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from zarr_emcodec.errors import ModelError
from zarr_emcodec.runtime.card_values import CardReader
from zarr_emcodec.runtime.grid_card import GridCard, read_grids

Backbone = Literal["siren", "latents"]
BACKBONES: tuple[str, ...] = get_args(Backbone)
_MAX_LAYERS = 15  # a frame names them in four bits
_MAX_ROWS = 1 << 16
_MAX_STARTS, _MAX_AXES, _MAX_START_WIDTH = 16, 5, 1024
PLACEHOLDERS: Mapping[str, Any] = {"ndim": 2, "stride": [1, 1], "halo": [0, 0], "channels": 1, "levels": 1}
"""What stands for the grid of latents that a field does not have: cells of one voxel, one level."""


@dataclass(frozen=True)
class InrCard:
    """How networks that frames bring along compute.

    Attributes
    ----------
    backbone : {"siren", "latents"}
    layers : (int, int)
        Fewest and most.
    rows : int
        Coordinates of one call.
    starts : tuple of (int, int, int)
        Axes, layers and widest width of each learnt start: frames of such networks store differences to it.
    grids : tuple of GridCard
        Of backbone "latents", which has no layers and no rows; none otherwise.
    """

    backbone: str
    layers: tuple[int, int]
    rows: int
    starts: tuple[tuple[int, int, int], ...] = ()
    grids: tuple[GridCard, ...] = ()

    def grid(self, ndim: int) -> GridCard:
        """The grid of sections (2) or volumes (3); there must be one."""
        return next(grid for grid in self.grids if grid.ndim == ndim)

    def part(self, layers: int) -> str:
        """Name of the network of so many layers."""
        return "decoder" if layers == self.layers[1] else f"decoder-{layers}"


def read_inr(reader: CardReader, decoder: Mapping[str, Any]) -> InrCard:
    """Check the parts of a card that are about fields.

    Raises
    ------
    ModelError
        If a value is missing or out of bounds, or the backbone is one of a later version.
    """
    backbone = decoder.get("backbone")
    if backbone not in BACKBONES:
        raise ModelError(
            f"{reader.where}: backbone {backbone!r:.40}, this version knows {', '.join(map(repr, BACKBONES))}. "
            "Upgrade zarr_emcodec."
        )
    if backbone == "latents":
        return InrCard(backbone=backbone, layers=(0, 0), rows=0, grids=read_grids(reader, decoder))
    low, high = reader.per_axis(decoder.get("layers"), "decoder.layers", 2, 3, _MAX_LAYERS)
    card = InrCard(
        backbone=backbone,
        layers=(low, high),
        rows=reader.integer(decoder.get("rows"), "decoder.rows", 1, _MAX_ROWS),
        starts=tuple(_start(reader, entry, (low, high)) for entry in _list(reader, decoder.get("starts", []))),
    )
    files = reader.mapping(decoder.get("files"), "decoder.files")
    missing = [name for n in range(low, high + 1) if (name := f"{card.part(n)}.onnx") not in files]
    if missing or "tables.npz" not in files:
        raise reader.wrong("decoder.files", sorted(files), f"{(*missing, 'tables.npz')[0]!r}")
    return card


def _list(reader: CardReader, value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > _MAX_STARTS:
        raise reader.wrong("decoder.starts", value, f"a list of at most {_MAX_STARTS}")
    return value


def _start(reader: CardReader, entry: Any, known: tuple[int, int]) -> tuple[int, int, int]:
    axes, layers, width = reader.per_axis(entry, "decoder.starts", 3, 1, _MAX_START_WIDTH)
    if axes > _MAX_AXES or not known[0] <= layers <= known[1]:
        raise reader.wrong("decoder.starts", entry, f"at most {_MAX_AXES} axes, {known[0]} to {known[1]} layers")
    return axes, layers, width
