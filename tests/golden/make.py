"""Write golden frames: what this version stores today, for every later version to read.

Run once by the release that introduces a feature, from the repository's root: ``python -m tests.golden.make FOLDER
[FEATURE ...]``. Into ``FOLDER/v1`` goes ``<feature>.frame`` with a ``.json`` of what it decodes to, and an ``.npz`` of
voxels where a network makes them; into ``FOLDER/errors`` go frames that must fail, with the error that each must raise.
Nothing that exists is ever written again: if any file is there, the run ends before it writes one.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import zarr_emcodec
from tests.codecs import context, fields, fitted, vq
from tests.codecs.frames import encode, frames, in_many_streams, symbols_of, with_escapes, with_other_tables
from tests.models import CONTEXT_FOLDER, FOLDER
from tests.volumes import as_dtype, fibsem, padded
from zarr_emcodec.codecs import decode_many
from zarr_emcodec.codecs.mask import restore, unpack_mask
from zarr_emcodec.errors import EmCodecError, FrameError
from zarr_emcodec.frame import Frame, Kind, Tier, pack, replace_tier, unpack
from zarr_emcodec.frame.fields import MODELLED
from zarr_emcodec.frame.wire import Cursor, varint
from zarr_emcodec.runtime import find_model

HERE = Path(__file__).parent
TOLERANCE = 1.0
"""Grey levels by which voxels may differ across runtimes (FORMAT.md, "Numeric rules")."""


def tissue(n: int = 2, y: int = 37, x: int = 45) -> NDArray[np.uint8]:
    """A piece of the shipped FIB-SEM, ragged against the models' strides."""
    return fibsem()[4 : 4 + n, 20 : 20 + y, 30 : 30 + x].copy()


def holed() -> NDArray[np.uint8]:
    """Tissue with a hole of zeros that touches no face."""
    out = tissue(2, 48, 64)
    out[:, 9:39, 21:50] = 0
    return out


FEATURES: dict[str, Callable[[], bytes]] = {
    "constant-u8": lambda: encode(np.full((3, 16, 20), 127, np.uint8)),
    "constant-f4": lambda: encode(np.full((16, 20), -0.0, ">f4")),
    "lossless-u8": lambda: encode(tissue(), max_error=0),
    "lossless-f4": lambda: encode(np.sin(np.arange(600, dtype=np.float32) / 97).reshape(2, 15, 20), max_error=0),
    "lossless-raw": lambda: frames()["lossless raw"],
    "lossless-zlib": lambda: frames()["lossless zlib"],
    "latent-u8": lambda: encode(tissue(), ratio=16),
    "latent-u8-coarse": lambda: encode(tissue(2, 64, 80), ratio=128),
    "latent-u8-many-streams": lambda: in_many_streams(tissue(6), ratio=16),
    "latent-side-info": lambda: with_other_tables(encode(tissue(), ratio=16)),
    "latent-escapes": lambda: with_escapes(encode(tissue(), ratio=16), [3000, -700, 1100]),
    "latent-u16-window": lambda: encode(as_dtype(tissue(), "uint16"), ratio=32, window=(7000, 14650)),
    "latent-float32-big-endian": lambda: encode(as_dtype(tissue(), "float32").astype(">f4"), ratio=48),
    "latent-fortran": lambda: encode(np.asfortranarray(tissue()), ratio=16),
    "nominal": lambda: encode(tissue(), ratio=24, mode="nominal"),
    "masked-box": lambda: encode(padded(tissue(), (4, 64, 64)), ratio=16),
    "masked-bitmap": lambda: encode(holed(), ratio=16),
    "vqvae-top": lambda: vq.encode(tissue(), ratio=64),
    "vqvae-prior": lambda: vq.encode(tissue(), ratio=64, tier="prior"),
    "vqvae-full": lambda: vq.encode(tissue(), ratio=12.8),
    "vqvae-nominal": lambda: vq.encode(tissue(), ratio=12.8, mode="nominal"),
    "vqvae-blocks": lambda: vq.encode(wide := tissue(2, 100, 90), ratio=64, roi=vq.corner(wide.shape)),
    "vqvae-blocks-prior": lambda: vq.encode(tissue(2, 100, 90), ratio=24, model="tiny-vq", tier="prior"),
    "vqvae-none-chosen": lambda: vq.encode(tissue(), ratio=64, roi=np.zeros((2, 37, 45), bool)),
    "vqvae-u16-fortran": lambda: vq.encode(np.asfortranarray(as_dtype(tissue(), "uint16")), ratio=12.8),
    "vqvae-masked-bitmap": lambda: vq.encode(holed(), ratio=12.8),
    "vqvae-one-level": lambda: vq.encode(tissue(), ratio=256),
    "inr-volume": lambda: fields.frames()["volume"],
    "inr-deep": lambda: fields.frames()["deep"],
    "inr-u16-fortran": lambda: fields.encode(
        np.asfortranarray(as_dtype(tissue(3, 40, 45), "uint16")), ratio=48, bits=8
    ),
    "inr-masked-bitmap": lambda: fields.frames()["masked bitmap"],
    "inr-start": lambda: fields.frames()["volume"],
    "inr-start-section": lambda: fields.frames()["section"],
    "inr-hybrid": lambda: fields.frames()["hybrid"],
    "inr-hybrid-u16-masked": lambda: fields.frames()["hybrid u16 masked"],
    "fitted-volume": lambda: fitted.encode(tissue(9, 32, 40), ratio=32),
    "fitted-section": lambda: fitted.encode(tissue(1, 70, 80)[0], ratio=24),
    "fitted-u16-fortran": lambda: fitted.encode(np.asfortranarray(as_dtype(tissue(), "uint16"))),
    "fitted-masked-bitmap": lambda: fitted.encode(holed()),
    "vqvae-volume": lambda: vq.encode(tissue(5), ratio=32, model="tiny-vq3d"),
    "context-u8": lambda: context.encode(tissue()),
    "context-u8-coarse": lambda: context.encode(tissue(2, 64, 80), ratio=100),
    "context-u16-fortran": lambda: context.encode(np.asfortranarray(as_dtype(tissue(), "uint16")), ratio=60),
    "context-side-info": lambda: context.frames()["side"],
    "context-escapes": lambda: context.frames()["escapes"],
    "context-parts": lambda: context.frames()["parts"],
    "context-masked-bitmap": lambda: context.encode(holed()),
    "context-volume": lambda: context.encode(tissue(5), context.DEEP),
    "context-volume-side-info": lambda: context.frames()["volume side"],
    "context-volumes": lambda: context.frames()["volume parts"],
    "context-volume-masked": lambda: context.frames()["volume masked"],
    "stack-u8": lambda: context.encode(tissue(6), context.STACK),
    "stack-of-one": lambda: context.encode(tissue(1)[0], context.STACK),
    "stack-two-parts": lambda: context.encode(np.repeat(fibsem()[:11, :20, :30], 3, axis=0), context.STACK, ratio=60),
    "stack-side-info": lambda: context.frames()["stack side"],
    "stack-escapes": lambda: context.frames()["stack escapes"],
    "stack-masked-bitmap": lambda: context.encode(holed(), context.STACK),
    "stack-float32-4d": lambda: context.encode(
        as_dtype(tissue(4, 20, 24), "float32").reshape(2, 2, 20, 24), context.STACK, window=(-0.5, 0.5)
    ),
}


def _edited(data: bytes, place: int, value: int) -> bytes:
    return data[:place] + bytes([value]) + data[place + 1 :]


ERRORS: dict[str, Callable[[], bytes]] = {
    "truncated": lambda: in_many_streams(tissue(6), ratio=16)[:-5],
    "bad-crc": lambda: _edited(data := encode(tissue(), ratio=16), len(data) - 3, data[-3] ^ 16),
    "newer-version": lambda: _edited(encode(tissue(), ratio=16), 2, 2),
    "unknown-kind": lambda: _edited(encode(tissue(), ratio=16), 3, 7),
    "lying-table": lambda: pack(replace(unpack(data := encode(tissue(), ratio=16)), sections=_lengthened(data))),
    "unknown-model": lambda: pack(replace(unpack(encode(tissue(), ratio=16)), model=bytes(range(8)))),
    "inr-too-wide": lambda: fields.with_width(fields.frames()["volume"], 200),
    "inr-too-deep": lambda: pack(replace(unpack(fields.frames()["volume"]), setting=9)),
    "fitted-no-grid": lambda: pack(
        replace(frame := unpack(fitted.encode(tissue(1, 40, 40))), sections=(b"\4", *frame.sections[1:]))
    ),
    "context-level-lacked": lambda: pack(replace(unpack(context.frames()["sections"]), setting=64)),
    "context-short-part": lambda: _with_last(
        data := context.frames()["sections"], bytes(unpack(data).sections[-1])[:2]
    ),
    "context-too-many-parts": lambda: pack(
        replace(unpack(data := context.frames()["volume"]), sections=_lengthened(data))
    ),
    "context-short-side-info": lambda: pack(
        replace(
            frame := unpack(context.frames()["side"]), sections=(context.side_bytes(np.ones(4)), *frame.sections[1:])
        )
    ),
    "stack-count-too-high": lambda: _with_count(context.frames()["stack"], 1),
    "stack-count-too-low": lambda: _with_count(context.frames()["stack"], -1),
    "stack-count-beyond-room": lambda: _with_count(context.frames()["stack"], 1 << 20),
    "stack-parts-swapped": lambda: pack(
        replace(
            frame := unpack(context.frames()["stack parts"]),
            sections=(frame.sections[0], frame.sections[2], frame.sections[1]),
        )
    ),
    "vqvae-reserved-setting": lambda: vq.with_setting(vq.encode(tissue(), ratio=64), 0x11),
    "vqvae-empty-map": lambda: pack(replace(frame := unpack(vq.frames()["blocks"]), sections=_unmapped(frame))),
    "vqvae-tier-lacked": lambda: replace_tier(vq.encode(tissue(), ratio=256), Tier.PRIOR),
}


def _with_last(data: bytes, section: bytes) -> bytes:
    frame = unpack(data)
    return pack(replace(frame, sections=(*frame.sections[:-1], section)))


def _with_count(data: bytes, more: int) -> bytes:
    # a part that states more symbols than it holds
    cursor = Cursor(memoryview(bytes(unpack(data).sections[-1])))
    count = cursor.take_varint("payload")
    return _with_last(data, varint(count + more) + bytes(cursor.view[cursor.offset :]))


def _unmapped(frame: Frame) -> tuple[bytes, ...]:
    side, *streams = map(bytes, frame.sections)
    return (side[:2] + bytes(len(side) - 2), *streams)


def _lengthened(data: bytes) -> tuple[bytes, ...]:
    # one stream for each of more sections than the chunk has
    side, *streams = map(bytes, unpack(data).sections)
    return (side, *(streams * 3)[:3])


def describe(feature: str, data: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What a frame must decode to: plain data, and arrays where voxels come out of a network."""
    frame = unpack(data)
    (chunk,) = decode_many([data])
    facts: dict[str, Any] = {
        "feature": feature,
        "writer": zarr_emcodec.__version__,
        "kind": frame.kind.name.lower(),
        "shape": list(chunk.shape),
        "dtype": chunk.dtype.str,
        "order": frame.order,
    }
    if frame.kind not in MODELLED:
        return facts | {"setting": frame.setting, "voxels_sha256": sha256_of(chunk)}, {}
    assert frame.model is not None
    card = find_model(frame.model).card
    symbols = symbols_of(data)
    facts |= {
        "model": {"id": card.id, "digest": card.digest.hex()},
        "setting": frame.setting,
        "n_streams": len(frame.sections) - (2 if frame.kind is Kind.MASKED else 1),
        "symbols_shape": list(symbols.shape),
        "symbols_sha256": sha256_of(symbols),
        "tolerance": TOLERANCE * (frame.window[1] if frame.window else 1.0),
    }
    arrays = {"voxels": np.ascontiguousarray(chunk.astype(chunk.dtype.newbyteorder("<")))}
    if frame.kind is Kind.MASKED:
        background = unpack_mask(frame.sections[0], frame.shape, frame.dtype.newbyteorder("="))
        nowhere = np.zeros(background.shape, np.uint8)
        arrays["is_background"] = restore(nowhere, replace(background, value=np.array(1, np.uint8)), frame.shape)
        facts["background"] = background.value.item()
    return facts, arrays


def sha256_of(array: NDArray[Any]) -> str:
    """SHA-256 of an array's values, little-endian and row-major."""
    return hashlib.sha256(array.astype(array.dtype.newbyteorder("<")).tobytes(order="C")).hexdigest()


def describe_error(name: str, data: bytes) -> dict[str, Any]:
    """The error that a frame raises now, and must raise for ever."""
    try:
        decode_many([data])
    except EmCodecError as error:
        field = error.field if isinstance(error, FrameError) else None
        return {"name": name, "writer": zarr_emcodec.__version__, "raises": type(error).__name__, "field": field}
    raise SystemExit(f"frame '{name}' decodes, so it is no golden error")


def _text(facts: dict[str, Any]) -> bytes:
    return (json.dumps(facts, indent=1) + "\n").encode()


def files_for(names: list[str]) -> dict[str, bytes]:
    """Every file to write, by its path below the folder."""
    out: dict[str, bytes] = {}
    for name in names:
        if name in ERRORS:
            data = ERRORS[name]()
            out |= {f"errors/{name}.frame": data, f"errors/{name}.json": _text(describe_error(name, data))}
            continue
        data = FEATURES[name]()
        facts, arrays = describe(name, data)
        out |= {f"v1/{name}.frame": data, f"v1/{name}.json": _text(facts)}
        if arrays:
            stream = io.BytesIO()
            np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # numpy's stub takes these for flags
            out[f"v1/{name}.npz"] = stream.getvalue()
    return out


def main(folder: Path, names: list[str]) -> None:
    """Write the files of some features, or of all."""
    if unknown := set(names) - {*FEATURES, *ERRORS}:
        raise SystemExit(f"no such feature: {', '.join(sorted(unknown))}")
    with zarr_emcodec.options(model_path=(FOLDER, CONTEXT_FOLDER)):
        files = files_for(names or [*FEATURES, *ERRORS])
    if there := [path for path in files if (folder / path).exists()]:
        raise SystemExit(f"golden frames are never rewritten, and these exist: {', '.join(there)}")
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with (folder / path).open("xb") as stream:
            stream.write(data)
    sys.stdout.write(f"{len(files)} files, {sum(map(len, files.values()))} bytes, in {folder}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE, sys.argv[2:])
