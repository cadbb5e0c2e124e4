"""Imports point downward, and nothing heavy is loaded before it is needed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "zarr_emcodec"
# low to high; rooms of one rank do not import each other
RANKS = [
    ("errors", "_types"),
    ("frame", "entropy", "transform", "quality"),
    ("runtime",),
    ("fitting",),
    ("codecs",),
    ("adapters",),
    ("v3", "n5", "jobs", "train"),
    ("roi",),
    ("serve",),
    ("cli",),
]
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "zarr_emcodec" and len(parts) > 1 else None


def imports_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "zarr_emcodec":  # `from zarr_emcodec import transform` names a room, or the version
                found |= {f"zarr_emcodec.{alias.name}" for alias in node.names if alias.name in RANK}
            found.add(node.module)
    return found


def test_every_import_points_down() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        room = relative.parts[0].removesuffix(".py")
        if room in ("__init__", "data"):
            continue
        assert room in RANK, f"{relative}: a room without a rank"
        for module in imports_of(path):
            other = room_of(module)
            if other and other != room and RANK[other] >= RANK[room]:
                wrong.append(f"{relative} imports {module}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", ["frame", "entropy", "transform", "quality", "runtime", "fitting", "codecs"])
def test_lower_rooms_know_no_zarr(room: str) -> None:
    files = [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").exists() else sorted((PACKAGE / room).rglob("*.py"))
    for path in files:
        assert not {"zarr", "numcodecs", "dask"} & {m.split(".")[0] for m in imports_of(path)}, path.name


HEAVY = ["zarr", "numcodecs", "onnxruntime", "torch", "dask", "distributed", "numba", "matplotlib", "typer", "onnx"]
BUDGET = {
    "import zarr_emcodec": [],
    "import zarr_emcodec.frame as f; f.inspect(bytes.fromhex('8e5a010161108004800477dec5547f'))": [],
    "import zarr_emcodec.codecs as c; c.decode_many([bytes.fromhex('8e5a010161108004800477dec5547f')])": [],
    "import zarr_emcodec.codecs as c, numpy as np; "
    "c.decode_many(c.encode_many(c.VAESpec(ratio=16), [np.arange(4096, dtype='u1').reshape(64, 64)]))": [
        "onnxruntime",
        "numba",
    ],
    "import zarr_emcodec.adapters.numcodecs, zarr_emcodec.adapters.zarr3": ["zarr", "numcodecs"],
    "import zarr_emcodec; zarr_emcodec.list_models()": [],
}


@pytest.mark.parametrize("statement", BUDGET)
def test_import_budget(statement: str) -> None:
    code = f"import sys\n{statement}\nimport json; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name for name in json.loads(out.stdout.splitlines()[-1]) if name in HEAVY}
    assert loaded <= set(BUDGET[statement])


def test_public_names_exist_and_are_listed() -> None:
    import zarr_emcodec

    for name in zarr_emcodec.__all__:
        assert getattr(zarr_emcodec, name) is not None
    assert len(zarr_emcodec.__all__) <= 24
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        zarr_emcodec.nothing  # noqa: B018  # the access is the test
