"""FORMAT.md says what the code does: its tables are those of fields.py, its examples are frames."""

from __future__ import annotations

import re
from importlib.resources import files

import numpy as np
import pytest

from zarr_emcodec.errors import FrameError
from zarr_emcodec.frame import DEFAULT, Frame, Kind, Tier, pack, unpack
from zarr_emcodec.frame.fields import BITS, FIELDS, MAGIC, MODELLED, VERSION, Field
from zarr_emcodec.frame.limits import MAX_NDIM
from zarr_emcodec.frame.wire import crc32c

DOCUMENT = (files("zarr_emcodec.frame") / "FORMAT.md").read_text(encoding="utf-8")
ORDER = [
    "Purpose and non-goals",
    "Conventions",
    "Byte map",
    "Field table",
    "Sections",
    "Numeric rules",
    "Limits",
    "Versions",
    "Worked examples",
    "History",
]


def tables(heading: str) -> list[list[list[str]]]:
    """Every Markdown table below a heading of level 2, as rows of cells without the header row."""
    body = DOCUMENT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(r"(?:^\|.*\|$\n?)+", body, flags=re.MULTILINE)
    rows = [[[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()] for table in found]
    return [table[2:] for table in rows]


def presence(field: Field) -> str:
    if field.kinds == frozenset(Kind):
        return "always"
    if field.flag is None:
        return ", ".join(kind.name.lower() for kind in sorted(field.kinds))
    with_flag = ", ".join(kind.name.lower() for kind in sorted(field.kinds))
    return f"{with_flag}: flag WINDOW"


def test_sections_stand_in_their_order() -> None:
    assert re.findall(r"^## (.*)$", DOCUMENT, flags=re.MULTILINE) == ORDER


def test_field_table_is_that_of_the_code() -> None:
    written = [row[1:] for row in tables("Field table")[0]]
    coded = [
        [f.name, "v" if f.size is None else str(f.size), presence(f), f.allowed, f.duty.__name__]
        for f in FIELDS.values()
    ]
    assert written == coded


def test_offsets_of_the_field_table_add_up() -> None:
    offset: int | None = 0
    for row, field in zip(tables("Field table")[0], FIELDS.values(), strict=True):
        assert row[0] == ("-" if offset is None else str(offset))
        offset = None if offset is None or field.size is None else offset + field.size


def test_bit_table_is_that_of_the_code() -> None:
    written = [row[:4] for row in tables("Field table")[1]]
    coded = [
        [
            b.field,
            str(b.low) if b.width == 1 else f"{b.low}-{b.low + b.width - 1}",
            b.name,
            " ".join(str(int(v)) for v in b.allowed),
        ]
        for b in BITS.values()
    ]
    assert written == coded


@pytest.mark.parametrize("byte", ["kind", "array"])
def test_bit_fields_fill_their_byte_once(byte: str) -> None:
    masks = [((1 << b.width) - 1) << b.low for b in BITS.values() if b.field == byte]
    assert sum(masks) == 0xFF
    assert np.bitwise_or.reduce(masks) == 0xFF


def test_enumerations_are_named_in_the_bit_table() -> None:
    meaning = {row[2]: row[4] for row in tables("Field table")[1]}
    assert meaning["kind"] == ", ".join(f"{int(k)} {k.name.lower()}" for k in Kind)
    assert meaning["tier"].startswith(", ".join(f"{int(t)} {t.name.lower()}" for t in Tier))
    assert meaning["dtype"] == "1 uint8, 2 uint16, 3 int16, 4 float32"


def test_limits_are_those_of_the_code() -> None:
    written = {row[0]: row[1] for row in tables("Limits")[0]}
    assert written["axes"] == str(MAX_NDIM)
    assert written["decoded size of the chunk, bytes"] == f"2^{DEFAULT.max_chunk_bytes.bit_length() - 1}"
    assert DEFAULT.max_chunk_bytes == 2**31
    assert written["sections"] == f"{DEFAULT.max_sections:,}"


def test_current_version_is_in_the_version_table() -> None:
    assert tables("Versions")[0][-1][0] == str(VERSION)
    assert DOCUMENT.startswith(f"# The chunk frame, format version {VERSION}\n")


def test_crc_of_the_conventions_is_that_of_the_code() -> None:
    stated = re.search(r"of the ASCII bytes `(\d+)` it is 0x([0-9A-F]{8})", DOCUMENT)
    assert stated is not None
    assert crc32c([stated[1].encode()]) == int(stated[2], 16)


EXAMPLES = [
    (Frame(Kind.CONSTANT, (16, 512, 512), np.dtype("u1"), sections=(b"\x7f",)), 15),
    (
        Frame(
            Kind.LATENT,
            (4, 64, 64),
            np.dtype(">u2"),
            order="F",
            tier=Tier.TOP,
            window=(100.0, 0.5),
            model=bytes.fromhex("0011223344556677"),
            setting=3,
            sections=(b"\xa5", b"\x01\x02\x03", b""),
        ),
        49,
    ),
]


@pytest.mark.parametrize("number", [0, 1])
def test_worked_example_is_a_frame(number: int) -> None:
    frame, size = EXAMPLES[number]
    rows = tables("Worked examples")[number]
    data = b"".join(bytes.fromhex(row[1]) for row in rows)
    assert len(data) == size
    assert unpack(data) == frame
    assert pack(frame) == data
    offset = 0
    for row in rows:
        assert int(row[0]) == offset
        offset += len(bytes.fromhex(row[1]))
    present = [f.name for f in FIELDS.values() if f.is_present(frame.kind, windowed=frame.window is not None)]
    assert [row[2] for row in rows] == present


def spoilt(field: str) -> bytes:
    """The second example with one field made wrong and the CRC made right again."""
    data = bytearray(pack(EXAMPLES[1][0]))
    starts = {row[2]: int(row[0]) for row in tables("Worked examples")[1]}
    start, crc = starts[field], starts["crc"]
    wrong = {"magic": b"\x8f", "version": b"\x02", "kind": b"\xea", "array": b"\xfa", "shape": b"\x00"}
    wrong |= {"window": b"\x00\x00\xc0\x7f", "table": b"\x00"}
    if field == "payload":
        return bytes(data) + b"\x00"
    if field == "crc":
        data[start] ^= 1
        return bytes(data)
    data[start : start + len(wrong[field])] = wrong[field]
    data[crc : crc + 4] = crc32c([bytes(data[:crc])]).to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in ("model", "setting")])
def test_reader_does_its_duty(name: str) -> None:
    with pytest.raises(FrameError) as caught:
        unpack(spoilt(name))
    assert type(caught.value) is FIELDS[name].duty
    places = {bits.name for bits in BITS.values() if bits.field == name} | {name}
    assert caught.value.field in places
    assert caught.value.offset is not None


def test_fields_that_allow_anything_are_the_only_ones_without_a_duty_test() -> None:
    assert [FIELDS[name].allowed for name in ("model", "setting")] == ["any", "0 to 255"]


def test_magic_is_neither_text_nor_symmetric() -> None:
    with pytest.raises(UnicodeDecodeError):
        MAGIC.decode("utf-8")
    assert MAGIC[::-1] != MAGIC


def test_only_modelled_kinds_have_tiers() -> None:
    assert {"window", "model", "table"} <= {f.name for f in FIELDS.values() if f.kinds == MODELLED}
