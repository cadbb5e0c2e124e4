"""The fields of a frame as records: what FORMAT.md's tables say, in a form that code and tests can read.

In: nothing. Out: the enumerations, the dtype codes and one record for each field and bit field, in the order of the
bytes. The header's reader and writer take sizes, places and allowed values from here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType

from zarr_emcodec.errors import ChecksumError, FrameError, UnsupportedFrameError
from zarr_emcodec.frame.limits import MAX_NDIM

MAGIC = b"\x8e\x5a"
VERSION = 1


class Kind(IntEnum):
    """What the sections of a frame hold."""

    CONSTANT = 1
    LATENT = 2
    LOSSLESS = 3
    MASKED = 4


class Tier(IntEnum):
    """How richly a frame is to be decoded; the stored latents are the same in all."""

    FULL = 0
    TOP = 1
    PRIOR = 2


MODELLED = frozenset({Kind.LATENT, Kind.MASKED})
"""Kinds that a model decodes: they alone have a tier, a window, a model, a table and further streams."""

PLAIN_SECTIONS = MappingProxyType({Kind.CONSTANT: 1, Kind.LATENT: 2, Kind.LOSSLESS: 1, Kind.MASKED: 3})
"""Sections of a frame without INDEXED; the least that one with it has."""

DTYPES = MappingProxyType({1: "u1", 2: "u2", 3: "i2", 4: "f4"})
"""dtype code -> NumPy kind and itemsize in bytes, without byte order."""


@dataclass(frozen=True)
class Field:
    """One field of the frame.

    Parameters
    ----------
    name : str
        Name in FORMAT.md and in the ``field`` attribute of errors.
    size : int or None, bytes
        None where the size varies.
    kinds : frozenset of Kind
        Kinds of frames that may have it.
    flag : str or None
        Name of the bit field that says whether it is there; None: always, in those kinds.
    allowed : str
        What FORMAT.md allows, in words.
    duty : type of FrameError
        What the reader raises otherwise.
    """

    name: str
    size: int | None
    kinds: frozenset[Kind]
    flag: str | None
    allowed: str
    duty: type[FrameError]

    def is_present(self, kind: Kind, *, windowed: bool) -> bool:
        """Tell whether a frame of this kind has the field."""
        return kind in self.kinds and (self.flag is None or windowed)


@dataclass(frozen=True)
class BitField:
    """Some bits of a one-byte field.

    Parameters
    ----------
    field, name : str
        The byte, by its name in ``FIELDS``, and the bits in it.
    low, width : int, bits
        Place of the least significant bit, and how many there are.
    allowed : tuple of int
        Values that version 1 gives a meaning.
    """

    field: str
    name: str
    low: int
    width: int
    allowed: tuple[int, ...]

    def get(self, byte: int) -> int:
        """Cut the bits out of their byte.

        Examples
        --------
        >>> BitField("kind", "tier", 3, 2, (0, 1, 2)).get(0b01010)
        1
        """
        return byte >> self.low & (1 << self.width) - 1

    def put(self, value: int) -> int:
        """Shift a value to its place, so that the bit fields of a byte can be added up."""
        assert value in self.allowed
        return value << self.low


_ALL = frozenset(Kind)
FIELDS = MappingProxyType(
    {
        field.name: field
        for field in (
            Field("magic", 2, _ALL, None, "8E 5A", FrameError),
            Field("version", 1, _ALL, None, "1", UnsupportedFrameError),
            Field("kind", 1, _ALL, None, "as in the bit table", FrameError),
            Field("array", 1, _ALL, None, "as in the bit table", FrameError),
            Field(
                "shape", None, _ALL, None, "ndim varints, each at least 1; decoded size within the limits", FrameError
            ),
            Field("window", 8, MODELLED, "windowed", "two float32, both finite, the second above 0", FrameError),
            Field("model", 8, MODELLED, None, "any", FrameError),
            Field("setting", 1, MODELLED | {Kind.LOSSLESS}, None, "0 to 255", FrameError),
            Field("table", None, MODELLED, None, "varints; INDEXED: section count within the limits", FrameError),
            Field("crc", 4, _ALL, None, "the CRC32C of what it covers", ChecksumError),
            Field("payload", None, _ALL, None, "the sections and nothing after them", FrameError),
        )
    }
)
"""Every field by name, in the order of the bytes."""

BITS = MappingProxyType(
    {
        bits.name: bits
        for bits in (
            BitField("kind", "kind", 0, 3, tuple(Kind)),
            BitField("kind", "tier", 3, 2, tuple(Tier)),
            BitField("kind", "indexed", 5, 1, (0, 1)),
            BitField("kind", "windowed", 6, 1, (0, 1)),
            BitField("kind", "reserved", 7, 1, (0,)),
            BitField("array", "dtype", 0, 3, tuple(DTYPES)),
            BitField("array", "big_endian", 3, 1, (0, 1)),
            BitField("array", "fortran", 4, 1, (0, 1)),
            BitField("array", "ndim", 5, 3, tuple(range(MAX_NDIM + 1))),
        )
    }
)
"""Every bit field by name."""


def fixed_size(name: str) -> int:
    """Size in bytes of a field whose size does not vary."""
    size = FIELDS[name].size
    assert size is not None
    return size
