"""What the card of a model with a learned entropy model says of it: which latents come first, and what follows them.

Part of the card's JSON in, a checked `ContextCard` out. Under ``decoder``::

    stride      voxels of a cell of the entropy model on each axis
    channels    latents of a cell: hyper-latents first, then those of each place in coding order
    context     {"hyper": Z, "groups": [[place, ...], ...], "scales": scales of each shape of table, "halo": cells,
                 "reaches": kinds of sections by how far those lie that they refer to; 0 or absent: they refer to none}

A place is a position in a lattice of period 2 on each axis; every place is in one group. Group i is coded with the
network ``context-i.onnx``, given the hyper-latents and all groups before it. What an encoder tells of a section that
refers to others depends on those: it has ``hyper.onnx`` beside ``encoder.onnx``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from zarr_emcodec.runtime.card_values import CardReader

PERIOD = 2
MAX_GROUPS = 4
_MAX_HYPER = 4096
_MAX_SCALES = 255
_MAX_HALO = 16
_MAX_REACHES = 16

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ContextCard:
    """The entropy model of a variational codec's latents.

    Attributes
    ----------
    hyper : int
        Hyper-latents of a cell.
    channels : int
        Latents of a place.
    groups : tuple of tuple of position
        Places, in coding order.
    scales : int
        Scales that each shape of frequency table comes in.
    halo : tuple of int
        Cells around a cell that a group's network sees, and that ``hyper.onnx`` sees.
    reaches : int
        Kinds of sections by how far those lie that they refer to; 0 of models whose sections refer to none.
    """

    hyper: int
    channels: int
    groups: tuple[tuple[Shape, ...], ...]
    scales: int
    halo: Shape
    reaches: int = 0

    @property
    def outputs(self) -> int:
        """What a group's network says of a latent: mean, scale and, of sections with references, gate."""
        return 3 if self.reaches else 2

    @property
    def places(self) -> tuple[Shape, ...]:
        """All places in coding order."""
        return tuple(place for group in self.groups for place in group)

    def known(self, group: int) -> int:
        """Latents of a cell that the network of a group is given."""
        return self.hyper + self.channels * sum(map(len, self.groups[:group]))


def read_context(
    reader: CardReader, decoder: Mapping[str, Any], encoder: Mapping[str, Any], ndim: int, channels: int
) -> ContextCard | None:
    """The entropy model that a card describes; None where it has none.

    Raises
    ------
    ModelError
        If something is missing or out of bounds.
    """
    if "context" not in decoder:
        if ndim != 2:
            raise reader.wrong("decoder.context", None, "an entropy model: of volumes there is no other kind")
        return None
    data = reader.mapping(decoder["context"], "decoder.context")
    hyper = reader.integer(data.get("hyper"), "decoder.context.hyper", 1, _MAX_HYPER)
    groups = data.get("groups")
    wanted = sorted(product(range(PERIOD), repeat=ndim))
    if not isinstance(groups, list) or not 1 <= len(groups) <= MAX_GROUPS or not all(_is_group(g) for g in groups):
        raise reader.wrong("decoder.context.groups", groups, f"at most {MAX_GROUPS} lists of places")
    read = tuple(
        tuple(reader.per_axis(place, "decoder.context.groups", ndim, 0, PERIOD - 1) for place in group)
        for group in groups
    )
    if sorted(place for group in read for place in group) != wanted:
        raise reader.wrong("decoder.context.groups", groups, "every place once")
    per_place, rest = divmod(channels - hyper, len(wanted))
    if rest or per_place < 1:
        raise reader.wrong("decoder.channels", channels, f"{hyper} and a multiple of {len(wanted)}")
    files = reader.mapping(decoder.get("files"), "decoder.files")
    for i in range(len(read)):
        if f"context-{i}.onnx" not in files:
            raise reader.wrong("decoder.files", sorted(files), f"'context-{i}.onnx'")
    stride = reader.per_axis(decoder.get("stride"), "decoder.stride", ndim, 1, 1024)
    if any(n % PERIOD for n in stride):
        raise reader.wrong("decoder.stride", list(stride), f"multiples of {PERIOD}")
    reaches = reader.integer(data.get("reaches", 0), "decoder.context.reaches", 0, _MAX_REACHES if ndim == 2 else 0)
    if reaches == 1:
        raise reader.wrong("decoder.context.reaches", reaches, "0, or one for sections alone and some for others")
    if reaches and encoder and "hyper.onnx" not in reader.mapping(encoder.get("files"), "encoder.files"):
        raise reader.wrong("encoder.files", encoder.get("files"), "'hyper.onnx', since sections refer to others")
    return ContextCard(
        hyper=hyper,
        channels=per_place,
        groups=read,
        scales=reader.integer(data.get("scales"), "decoder.context.scales", 1, _MAX_SCALES),
        halo=reader.per_axis(data.get("halo"), "decoder.context.halo", ndim, 0, _MAX_HALO),
        reaches=reaches,
    )


def _is_group(group: Any) -> bool:
    return isinstance(group, list) and len(group) > 0
