"""Exact storage of a chunk: the floor under every learned codec, and what it falls back to.

Voxels in, bytes out. Integers and floats are handled by their bit patterns, so NaN payloads and signed zeros survive.
Decompression never produces more than the frame's own shape and dtype account for.
"""

from __future__ import annotations

import zlib
from enum import IntEnum

import numpy as np

from zarr_emcodec._types import Buffer, Chunk, Shape
from zarr_emcodec.errors import FrameError, TruncatedFrameError, UnsupportedFrameError


class Method(IntEnum):
    """How the voxels were turned into bytes (FORMAT.md, "Lossless methods")."""

    RAW = 0
    ZLIB = 1
    DELTA_ZLIB = 2
    SHUFFLE_ZLIB = 3


_LEVEL = 6  # zlib: beyond it EM costs twice the time for 0.3 % fewer bytes


def encode(chunk: Chunk) -> tuple[Method, bytes]:
    """The smallest exact form of a chunk.

    Parameters
    ----------
    chunk : ndarray
        Native byte order, any shape, one of the frame's dtypes.

    Returns
    -------
    method : Method
        Goes into the frame's setting.
    data : bytes
        Goes into the frame's section.
    """
    values = np.ascontiguousarray(chunk)
    raw = _little(values).tobytes()
    forms = {Method.RAW: raw, Method.ZLIB: zlib.compress(raw, _LEVEL)}
    if values.dtype.kind in "iu":
        # Huffman codes alone: differences of EM voxels hold no repeats worth searching for
        squeeze = zlib.compressobj(_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_FILTERED)
        forms[Method.DELTA_ZLIB] = squeeze.compress(_shuffled(_difference(values))) + squeeze.flush()
    else:
        forms[Method.SHUFFLE_ZLIB] = zlib.compress(_shuffled(values), _LEVEL)
    best = min(forms, key=lambda m: (len(forms[m]), m))
    return best, forms[best]


def decode(method: int, data: Buffer, shape: Shape, dtype: np.dtype[np.generic]) -> Chunk:
    """Inverse of `encode`: a writable C-contiguous array of `shape` and native `dtype`.

    Raises
    ------
    FrameError
        If the method is unknown or the bytes do not decode to exactly the chunk.
    """
    count = int(np.prod(shape, dtype=np.int64))
    size = count * dtype.itemsize
    try:
        kind = Method(method)
    except ValueError:
        raise UnsupportedFrameError(
            f"lossless method {method}: this reader knows 0 to 3. Upgrade zarr_emcodec to read it.", field="setting"
        ) from None
    raw = bytes(data) if kind is Method.RAW else _inflate(data, size)
    if len(raw) != size:
        raise TruncatedFrameError(
            f"lossless section holds {len(raw)} bytes of voxels, the chunk has {size}.", needed=size, found=len(raw)
        )
    if kind in (Method.RAW, Method.ZLIB):
        little = np.frombuffer(raw, dtype.newbyteorder("<")).reshape(shape)
        return little.astype(dtype)
    values = _unshuffled(raw, shape, dtype)
    if kind is Method.DELTA_ZLIB:
        if dtype.kind not in "iu":
            raise FrameError("lossless method 2 is for integers, the chunk is float.", field="setting")
        flat = values.reshape(-1, shape[-1] if shape else 1)
        np.add.accumulate(flat, axis=-1, dtype=dtype, out=flat)
    return values


def _inflate(data: Buffer, size: int) -> bytes:
    engine = zlib.decompressobj()
    try:
        out = engine.decompress(data, size + 1)
    except zlib.error as error:
        raise FrameError(f"lossless section is not zlib data: {error}.", field="section") from error
    if len(out) > size or not engine.eof or engine.unused_data:
        raise FrameError(f"lossless section does not end after the chunk's {size} bytes.", field="section")
    return out


def _difference(values: Chunk) -> Chunk:
    # modulo 2**n along the last axis: undone by a running sum in the same dtype
    values = values.reshape(1) if values.ndim == 0 else values
    out = values.copy()
    np.subtract(values[..., 1:], values[..., :-1], out=out[..., 1:])
    return out


def _little(values: Chunk) -> Chunk:
    return values.astype(values.dtype.newbyteorder("<"), copy=False)


def _shuffled(values: Chunk) -> bytes:
    """All low bytes, then all second bytes, ...: byte planes of like statistics."""
    planes = np.frombuffer(_little(values).tobytes(), np.uint8).reshape(-1, values.dtype.itemsize)
    return planes.T.tobytes()


def _unshuffled(raw: bytes, shape: Shape, dtype: np.dtype[np.generic]) -> Chunk:
    planes = np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, -1)
    little = np.ascontiguousarray(planes.T).reshape(-1).view(dtype.newbyteorder("<"))
    return little.astype(dtype).reshape(shape)
