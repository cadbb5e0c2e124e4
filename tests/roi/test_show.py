from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.volumes import fibsem
from zarr_emcodec.errors import FrameError, MissingExtraError
from zarr_emcodec.frame import Tier, replace_tier
from zarr_emcodec.roi import downgrade_roi, draw_tiers, show, tier_map, upgrade_roi
from zarr_emcodec.roi.fetch import Frames
from zarr_emcodec.roi.read import read_chunks


@pytest.fixture
def restored(sharded: Any, all_tiers: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """At top, but for two chunks at prior and one at full, all in the middle chunks of z; decodes as stored."""
    downgrade_roi(sharded, (...,))
    upgrade_roi(sharded, np.s_[9:10, 0:64, 0:1])
    upgrade_roi(sharded, np.s_[9:10, 0:1, 100:101], "full")

    def decode(self: Frames, indices: Any, tier: Any, planes: Any = None) -> Any:
        # the model has one tier; that of the headers is a pretence
        fetched = Frames.fetch
        monkeypatch.setattr(Frames, "fetch", lambda self, indices: [_full(d) for d in fetched(self, indices)])
        try:
            return real(self, indices, "full", planes)
        finally:
            monkeypatch.setattr(Frames, "fetch", fetched)

    real = Frames.decode
    monkeypatch.setattr(Frames, "decode", decode)
    return sharded


def _full(data: bytes | None) -> bytes | None:
    return None if data is None else replace_tier(data, Tier.FULL)


def test_the_map_is_what_the_frames_say(array: Any, all_tiers: None) -> None:
    assert tier_map(array).counts == {"absent": 1, "plain": 1, "full": 46}
    assert tier_map(array).rho == 0
    downgrade_roi(array, (...,))
    upgrade_roi(array, np.s_[9:10, 0:64, 0:1])
    told: list[Any] = []
    found = tier_map(array, progress=lambda *n: told.append(n))
    assert found.counts == {"absent": 1, "plain": 1, "top": 44, "prior": 2}
    assert np.argwhere(found.restored).tolist() == [[1, 0, 0], [1, 1, 0]]
    assert found.rho == 2 / 48
    assert json.loads(json.dumps(found.to_dict()))["n_chunks"] == 48
    assert told[-1] == (20 * 100 * 128,) * 2


def colours(path: Path) -> set[str]:
    """Which of the outlines' colours are in a picture."""
    with Image.open(path) as image:
        pixels = {tuple(p) for p in np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()}
    known = {"prior": (0xFF, 0xD2, 0x3F), "full": (0x3F, 0xB6, 0xFF)}
    return {name for name, rgb in known.items() if rgb in pixels}


def test_restored_chunks_are_outlined_in_the_section_that_has_most(
    restored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def read(frames: Frames, box: Any, tier: Any) -> Any:
        seen.append((box[0], tier))
        return read_chunks(frames, box, tier)

    monkeypatch.setattr(show, "read_chunks", read)
    draw_tiers(tmp_path / "a.png", restored)
    assert colours(tmp_path / "a.png") == {"prior", "full"}
    draw_tiers(tmp_path / "b.png", restored, section=0)
    assert colours(tmp_path / "b.png") == set()
    assert seen == [(slice(12, 13), None), (slice(0, 1), None)]  # each chunk as it decodes now


def test_of_large_sections_the_part_around_the_restored_is_shown(array: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "_SHOWN", 40)
    cells = np.full((3, 4, 4), 2, np.uint8)
    cells[1, 3, 2] = 3
    found = show.TierMap(array="", chunks=(8, 32, 32), n_chunks=48, counts={}, rho=0, cells=cells)
    assert show._shown(array, found, None) == (slice(12, 13), slice(60, 100), slice(60, 100))
    assert show._shown(array, found, 3) == (slice(3, 4), slice(30, 70), slice(44, 84))


def test_two_axes_have_a_picture_too(tmp_path: Path) -> None:
    import zarr_emcodec

    flat: Any = zarr_emcodec.create_array({}, data=fibsem()[0].copy(), chunks=(64, 64), ratio=8)
    draw_tiers(tmp_path / "flat.png", flat)
    with Image.open(tmp_path / "flat.png") as image:
        assert image.size[0] > 400


def test_what_is_no_frame_is_named(array: Any) -> None:
    data = Frames(array).fetch([(1, 0, 1)])[0]
    assert data is not None
    for path in Path(array.store.root).rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        if (at := content.find(data)) >= 0:
            path.write_bytes(content[:at] + b"\0\0" + content[at + 2 :])
    with pytest.raises(FrameError, match=r"chunk \(1, 0, 1\)"):
        tier_map(array)


def test_pictures_need_matplotlib(array: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match="viz"):
        draw_tiers(tmp_path / "a.png", array)
