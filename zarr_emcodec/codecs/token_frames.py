"""What a frame of a token model says beside its tokens: which are stored, in which form, and the contrast.

Setting byte and side information in and out, and the map of blocks whose bottom tokens are stored. FORMAT.md, "Frames
of token models", is the layout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec._types import Buffer, Shape
from zarr_emcodec.codecs.tokens import Contrast, repeated
from zarr_emcodec.errors import FrameError

BLOCK = 16
"""Bottom tokens along each edge of a block that is stored or not."""
Mask = NDArray[np.bool_]


class Storage(IntEnum):
    """Which bottom tokens a frame stores."""

    TOP_ONLY = 0
    ALL = 1
    MAPPED = 2
    NONE_CHOSEN = 3


@dataclass(frozen=True)
class Setting:
    """The frame's setting, as bits: 0 top coded, 1 bottom coded, 2-3 storage."""

    storage: Storage
    top_coded: bool
    bottom_coded: bool = False

    @property
    def has_bottom(self) -> bool:
        """Whether the frame has a section of bottom tokens."""
        return self.storage in (Storage.ALL, Storage.MAPPED)

    def to_byte(self) -> int:
        """As it stands in the header."""
        return self.top_coded | self.bottom_coded << 1 | self.storage << 2

    @classmethod
    def from_byte(cls, byte: int, *, two_levels: bool) -> Setting:
        """Inverse of `to_byte`.

        Raises
        ------
        FrameError
            If reserved bits are set, or bits say what the model cannot have.
        """
        out = cls(Storage(byte >> 2 & 3), bool(byte & 1), bool(byte & 2))
        if byte >> 4 or (out.bottom_coded and not out.has_bottom) or (out.storage and not two_levels):
            raise FrameError(f"setting {byte:#x} says what no frame of this model stores.", field="setting")
        return out


def n_blocks(grid: Shape) -> Shape:
    """Blocks on each axis of a bottom grid; the last may be short."""
    return tuple(-(-n // BLOCK) for n in grid)


def stored_tokens(blocks: Mask, grid: Shape) -> Mask:
    """Which bottom tokens are stored, shape (n, \\*grid), from the blocks (n, \\*n_blocks) that are."""
    return repeated(blocks, (BLOCK,) * len(grid))[(slice(None), *(slice(n) for n in grid))]


def pack_side(contrast: Contrast, blocks: Mask | None) -> bytes:
    """Side information: the contrast, and the map where some blocks are stored and some are not."""
    bits = b"" if blocks is None else np.packbits(blocks.reshape(-1), bitorder="little").tobytes()
    return bytes([contrast.mean, contrast.deviation]) + bits


def unpack_side(data: Buffer, storage: Storage, shape: Shape) -> tuple[Contrast, Mask | None]:
    """Inverse of `pack_side` for a map of this shape, (n, \\*n_blocks).

    Raises
    ------
    FrameError
        If the section is of another length, fill bits are set, or the map says all or nothing.
    """
    count = math.prod(shape) if storage is Storage.MAPPED else 0
    if len(data) != 2 + -(-count // 8):
        raise FrameError(f"side information holds {len(data)} bytes, not {2 + -(-count // 8)}.", field="side")
    contrast = Contrast(data[0], data[1])
    if not count:
        return contrast, None
    bits = np.unpackbits(np.frombuffer(data, np.uint8, offset=2), bitorder="little")
    blocks = bits[:count].astype(bool)
    if bits[count:].any() or blocks.all() or not blocks.any():
        raise FrameError("side information: a map has all or none of its blocks, or fill bits.", field="side")
    return contrast, blocks.reshape(shape)


def choose_blocks(missed: NDArray[np.float32], tokens: NDArray[np.int64], share: float) -> Mask:
    """The blocks where the top alone misses most, so many that they hold a share of the tokens.

    Parameters
    ----------
    missed : ndarray, shape (n, \\*blocks), float32
        What is missed in each block, squared.
    tokens : ndarray, same shape, int64
        Of each block.
    share : float
        0 to 1.

    Returns
    -------
    ndarray of bool, same shape
    """
    order = np.argsort(-missed.reshape(-1) / tokens.reshape(-1), kind="stable")
    middle = np.cumsum(tokens.reshape(-1)[order]) - tokens.reshape(-1)[order] / 2
    out = np.zeros(missed.size, bool)
    out[order[middle <= share * tokens.sum()]] = True
    return out.reshape(missed.shape)


def summed(values: NDArray[np.float32], edges: Shape) -> NDArray[np.float32]:
    """Sums over boxes of so many elements on each of the last axes; the last boxes may be short."""
    for axis, edge in enumerate(edges, values.ndim - len(edges)):
        values = np.add.reduceat(values, np.arange(0, values.shape[axis], edge), axis)
    return values
