"""What is to be said of a chunk, and the header that says it.

In: a ``Description``, the lengths of the sections and their CRCs. Out: the header's bytes, or a ``SpecError`` that
says what the format cannot hold. The other direction is ``header.py``.
"""

from __future__ import annotations

import math
import operator
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from zarr_emcodec.errors import FrameError, SpecError
from zarr_emcodec.frame.fields import BITS, DTYPES, FIELDS, MAGIC, MODELLED, PLAIN_SECTIONS, VERSION, Kind, Tier
from zarr_emcodec.frame.fields import fixed_size as size_of
from zarr_emcodec.frame.limits import MAX_NDIM, MAX_VARINT, Limits
from zarr_emcodec.frame.wire import varint

if TYPE_CHECKING:
    from zarr_emcodec._types import Shape

_CODES = {name: code for code, name in DTYPES.items()}
SHAPE_OFFSET = sum(size_of(name) for name in ("magic", "version", "kind", "array"))


@dataclass(frozen=True)
class Description:
    """What a header says of its chunk.

    Parameters
    ----------
    kind : Kind
        What the sections hold.
    shape : tuple of int, voxels
        Extents in logical order, at most 5, each at least 1.
    dtype : numpy.dtype
        uint8, uint16, int16 or float32, with the byte order of the chunk.
    order : {"C", "F"}
        Memory order of the chunk.
    tier : Tier
        How richly to decode; FULL unless latent or masked.
    window : (float, float) or None
        Offset and scale, exact in float32: grey value = offset + scale x model units. Latent and masked frames only.
    model : bytes or None
        First 8 bytes of the model's digest, for latent and masked frames; None otherwise.
    setting : int
        Quality level (latent, masked) or method (lossless), 0 to 255; 0 for constant.
    """

    kind: Kind
    shape: Shape
    dtype: np.dtype[Any]
    order: Literal["C", "F"] = "C"
    tier: Tier = Tier.FULL
    window: tuple[float, float] | None = None
    model: bytes | None = None
    setting: int = 0

    @property
    def decoded_bytes(self) -> int:
        """Size of the chunk when decoded."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_header(description: Description, lengths: list[int], crcs: list[int] | None, *, limits: Limits) -> bytes:
    """Write everything up to the frame's CRC, which is left to the caller.

    Parameters
    ----------
    description : Description
        What the header is to say.
    lengths : list of int, bytes
        Length of every section.
    crcs : list of int or None
        CRC32C of every section for an INDEXED frame, None for one without.
    limits : Limits
        A writer keeps to what its readers will believe.

    Raises
    ------
    SpecError
        If the description does not fit the format.
    """
    kind = _checked(Kind, "kind", description.kind)
    shape = _check_shape(description.shape)
    front = _write_bits(description, kind, len(shape), indexed=crcs is not None)
    try:
        limits.check_chunk(shape, description.dtype.itemsize, offset=SHAPE_OFFSET)
    except FrameError as error:
        raise _cannot("shape", shape, f"larger than a reader accepts: {error}") from error
    parts = [MAGIC, bytes([VERSION]), front, *(varint(extent) for extent in shape)]
    if description.window is not None:
        parts.append(_write_window(description.window))
    parts.append(_write_model(kind, description.model))
    parts.append(_write_setting(kind, description.setting))
    parts.append(_write_table(kind, lengths, crcs, limits))
    return b"".join(parts)


def _cannot(name: str, value: object, why: str) -> SpecError:
    return SpecError(f"frame {name} {value!r}: {why}", name=name, value=value)


def _checked(enum: type[Any], name: str, value: object) -> Any:
    try:
        return enum(value)
    except ValueError as error:
        raise _cannot(name, value, f"not one of {', '.join(member.name for member in enum)}.") from error


def _check_shape(shape: Shape) -> Shape:
    try:
        extents = tuple(operator.index(extent) for extent in shape)
    except TypeError as error:
        raise _cannot("shape", shape, "not a tuple of integers.") from error
    if len(extents) > MAX_NDIM:
        raise _cannot("shape", shape, f"more than {MAX_NDIM} axes. Split the leading axes into chunks of their own.")
    if not all(1 <= extent <= MAX_VARINT for extent in extents):
        raise _cannot("shape", shape, f"each extent must be 1 to {MAX_VARINT}. An empty chunk has no frame.")
    return extents


def _write_bits(description: Description, kind: Kind, ndim: int, *, indexed: bool) -> bytes:
    tier = _checked(Tier, "tier", description.tier)
    windowed = description.window is not None
    for name, value in (("tier", tier), ("window", windowed), ("indexed", indexed)):
        if value and kind not in MODELLED:
            raise _cannot(
                name, value, f"a {kind.name} frame has none: it decodes alike at every tier, from one section."
            )
    if description.order not in ("C", "F"):
        raise _cannot("order", description.order, "not 'C' or 'F'.")
    dtype = description.dtype
    code = _CODES.get(f"{dtype.kind}{dtype.itemsize}") if isinstance(dtype, np.dtype) else None
    if code is None:
        raise _cannot("dtype", dtype, "not numpy.dtype uint8, uint16, int16 or float32. Use a codec for that dtype.")
    big = dtype.byteorder == ">" or (dtype.byteorder == "=" and sys.byteorder == "big")
    values = {
        "kind": kind,
        "tier": tier,
        "indexed": int(indexed),
        "windowed": int(windowed),
        "dtype": code,
        "big_endian": int(big),
        "fortran": int(description.order == "F"),
        "ndim": ndim,
    }
    out = {"kind": 0, "array": 0}
    for name, value in values.items():
        out[BITS[name].field] |= BITS[name].put(value)
    return bytes(out.values())


def _write_window(window: tuple[float, float]) -> bytes:
    try:
        stored = struct.pack("<2f", *window)
    except (struct.error, OverflowError, TypeError) as error:
        raise _cannot("window", window, "not two numbers of float32.") from error
    offset, scale = struct.unpack("<2f", stored)
    if not (math.isfinite(offset) and math.isfinite(scale) and scale > 0):
        raise _cannot("window", window, "offset and scale must be finite in float32, and the scale above 0.")
    # an encoder that normalises by 0.1 and a decoder that reads 0.1 as float32 would drift apart
    if (offset, scale) != tuple(window):
        raise _cannot(
            "window", window, "not exact in float32. Round it, float(numpy.float32(x)), before normalising by it."
        )
    return stored


def _write_model(kind: Kind, model: bytes | None) -> bytes:
    if kind not in MODELLED:
        if model is not None:
            raise _cannot("model", model, f"a {kind.name} frame needs no model. Leave it None.")
        return b""
    if not isinstance(model, bytes) or len(model) != size_of("model"):
        raise _cannot("model", model, f"pass the first {size_of('model')} bytes of the model's SHA-256.")
    return model


def _write_setting(kind: Kind, setting: int) -> bytes:
    has_one = FIELDS["setting"].is_present(kind, windowed=False)
    top = 255 if has_one else 0
    if not (isinstance(setting, int | np.integer) and 0 <= setting <= top):
        raise _cannot("setting", setting, f"a {kind.name} frame takes an integer of 0 to {top}.")
    return bytes([int(setting)]) if has_one else b""


def _write_table(kind: Kind, lengths: list[int], crcs: list[int] | None, limits: Limits) -> bytes:
    least = PLAIN_SECTIONS[kind]
    most = limits.max_sections if crcs is not None else least
    if not least <= len(lengths) <= most:
        wanted = f"{least}" if most == least else f"{least} to {most}"
        form = "with" if crcs is not None else "without"
        raise _cannot("sections", len(lengths), f"a {kind.name} frame {form} INDEXED takes {wanted} of them.")
    if max(lengths) > MAX_VARINT:
        raise _cannot("sections", max(lengths), f"a section holds at most {MAX_VARINT} bytes. Use smaller chunks.")
    if crcs is None:
        return b"".join(varint(length) for length in lengths[:-1])
    entries = (
        varint(length) + crc.to_bytes(size_of("crc"), "little") for length, crc in zip(lengths, crcs, strict=True)
    )
    return varint(len(lengths)) + b"".join(entries)
