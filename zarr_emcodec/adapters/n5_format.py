"""N5's own words for a dataset and its blocks, and Zarr's for the same: documents and headers, no store.

Metadata and bytes of either in, those of the other out. An N5 dataset counts its axes from the fastest on, (x, y, z);
Zarr's document has them as everywhere here, (z, y, x).
"""

from __future__ import annotations

import json
import re
import struct
from typing import Any, Literal

import numpy as np

from zarr_emcodec import codecs
from zarr_emcodec._types import Shape
from zarr_emcodec.codecs.encode import check_dtype
from zarr_emcodec.codecs.vae import VAESpec
from zarr_emcodec.errors import FrameError, SpecError

PREFIX = "emcodec_"
"""What the type of a compression of this package begins with; the rest is the codec's kind."""
VERSION = "4.0.0"
"""Of the N5 format; stands in the attributes of a container's root."""
DOCUMENT = "attributes.json"
"""Key of a dataset's metadata, and of a group's."""
_RESERVED = ("dimensions", "blockSize", "dataType", "compression", "n5")
_BLOCK = re.compile(r"c((?:/\d+)+)")
_NAMES = re.compile(r"\d+(?:/\d+)*")
_NO_MODEL = f"sha256:{'0' * 64}"  # lossless frames need none
_DEFAULT_MODE, _VARYING_MODE = 0, 1


def is_ours(attributes: Any) -> bool:
    """Whether N5 attributes are those of a dataset whose blocks are frames."""
    compression = attributes.get("compression") if isinstance(attributes, dict) else None
    return isinstance(compression, dict) and str(compression.get("type")).startswith(PREFIX)


def is_block(key: str) -> bool:
    """Whether a key of the Zarr array is that of a chunk."""
    return _BLOCK.fullmatch(key) is not None


def n5_key(key: str) -> str:
    """The key of a dataset's object from that of the array.

    Examples
    --------
    >>> n5_key("c/2/0/1"), n5_key("zarr.json")
    ('1/0/2', 'attributes.json')
    """
    if key == "zarr.json":
        return DOCUMENT
    block = _BLOCK.fullmatch(key)
    return "/".join(reversed(block[1][1:].split("/"))) if block else key


def metadata_from(data: bytes, *, where: str) -> dict[str, Any] | None:
    """Zarr's metadata for N5's; None where they are not a dataset's.

    Raises
    ------
    SpecError
        If they are damaged, or the blocks are not frames.
    """
    try:
        n5 = json.loads(data)
        if not isinstance(n5, dict) or "dimensions" not in n5:
            return None
        shape, chunks = ([int(n) for n in reversed(n5[key])] for key in ("dimensions", "blockSize"))
        compression = n5["compression"]
        kind = str(compression["type"]) if isinstance(compression, dict) else str(n5["compression"])
        dtype = np.dtype(str(n5["dataType"]))
        if len(shape) != len(chunks):
            raise ValueError("dimensions and blockSize differ in length")
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{where}: {DOCUMENT} is not that of an N5 dataset: {error}", name=DOCUMENT) from error
    if not is_ours(n5):
        raise SpecError(
            f"{where}: its blocks are '{kind}', not frames of this package. Open it as a source, with tensorstore.",
            name="compression",
            value=kind,
        )
    check_dtype(dtype)
    config = {key: value for key, value in compression.items() if key != "type"}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": f"emcodec.{kind.removeprefix(PREFIX)}", "configuration": config}],
        "attributes": {key: value for key, value in n5.items() if key not in _RESERVED},
        "storage_transformers": [],
    }


def attributes_from(document: dict[str, Any], *, root: bool) -> bytes:
    """N5's metadata for Zarr's; of a container's root with the format's version.

    Raises
    ------
    SpecError
        If they say what N5 cannot.
    """
    coded_by = [codec["name"] for codec in document["codecs"]]
    if len(coded_by) != 1 or not coded_by[0].startswith("emcodec."):
        raise SpecError(f"N5 blocks hold frames alone, not {', '.join(coded_by)}.", name="codecs", value=coded_by)
    if document["fill_value"] != 0:
        raise SpecError(
            f"fill_value {document['fill_value']}: blocks that N5 does not store are 0.",
            name="fill_value",
            value=document["fill_value"],
        )
    attributes = document.get("attributes") or {}
    for name in _RESERVED:
        if name in attributes:
            raise SpecError(f"attribute '{name}': N5 uses this name itself. Choose another.", name=name)
    compression = {
        "type": PREFIX + coded_by[0].removeprefix("emcodec."),
        **(document["codecs"][0].get("configuration") or {}),
    }
    n5 = {
        **({"n5": VERSION} if root else {}),
        "dimensions": document["shape"][::-1],
        "blockSize": document["chunk_grid"]["configuration"]["chunk_shape"][::-1],
        "dataType": document["data_type"],
        "compression": compression,
        **attributes,
    }
    return json.dumps(n5).encode()


def zarr_key(key: str) -> str:
    """Inverse of `n5_key`."""
    if key == DOCUMENT:
        return "zarr.json"
    return "c/" + "/".join(reversed(key.split("/"))) if _NAMES.fullmatch(key) else key


def header(chunks: Shape) -> bytes:
    """What N5 puts before a block: mode, number of axes, extents from x on; big-endian."""
    return struct.pack(f">HH{len(chunks)}I", _DEFAULT_MODE, len(chunks), *reversed(chunks))


def frame_of(block: bytes, chunks: Shape, background: float | Literal["auto"] | None, where: str) -> bytes:
    """The frame of a block, of the chunks' shape.

    Parameters
    ----------
    block : bytes
        As stored, header and all.
    chunks : tuple of int, voxels
    background : float, "auto" or None
        Of the dataset's codec: what may stand beside tissue although it is no number.
    where : str
        For messages.

    Raises
    ------
    FrameError
        If the header is not that of a block of this dataset.
    """
    ndim = len(chunks)
    size = 4 + 4 * ndim
    if len(block) < size:
        raise FrameError(f"{where}: {len(block)} bytes, an N5 block of {ndim} axes begins with {size}.", offset=0)
    mode, found = struct.unpack_from(">HH", block)
    if mode not in (_DEFAULT_MODE, _VARYING_MODE) or found != ndim:
        raise FrameError(f"{where}: N5 block of mode {mode} with {found} axes, the dataset has {ndim}.", offset=0)
    shape = tuple(reversed(struct.unpack_from(f">{ndim}I", block, 4)))
    frame = block[size + (4 if mode == _VARYING_MODE else 0) :]
    if shape == chunks:
        return frame
    if not all(0 < n <= edge for n, edge in zip(shape, chunks, strict=True)):
        raise FrameError(f"{where}: N5 block of {shape} in a dataset of blocks of {chunks}.", offset=4)
    [cut] = codecs.decode_many([frame])
    if cut.shape != shape:
        raise FrameError(f"{where}: its frame holds {cut.shape}, its header says {shape}.", field="shape")
    full = np.pad(cut, [(0, edge - n) for n, edge in zip(shape, chunks, strict=True)], mode="edge")
    exact = VAESpec(max_error=0, background=background, model="none", digest=_NO_MODEL)
    return codecs.encode_many(exact, [full])[0]
