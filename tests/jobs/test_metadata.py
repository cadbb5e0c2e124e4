"""What a destination is told: axes, attributes, levels in both OME-Zarr versions, and where it all comes from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore, StorePath

from tests.jobs.foreign import VOXEL_NM, n5_pyramid, precomputed_pyramid, write_n5
from tests.volumes import fibsem
from zarr_emcodec.errors import JobError
from zarr_emcodec.jobs import metadata
from zarr_emcodec.jobs.ome import read_multiscale, write_multiscale
from zarr_emcodec.jobs.scales import Multiscale
from zarr_emcodec.jobs.sources import open_source


def place_of(path: Path) -> StorePath:
    return StorePath(LocalStore(path))


def ome_source(path: Path, zarr_format: Literal[2, 3]) -> dict[str, Any]:
    """Two levels with everything that an image's metadata may say; the attributes."""
    version = "0.4" if zarr_format == 2 else "0.5"
    image: dict[str, Any] = {
        "name": "em",
        "type": "mean",
        "metadata": {"method": "blocks"},
        "axes": [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"],
        "datasets": [
            {
                "path": name,
                "coordinateTransformations": [
                    {"type": "scale", "scale": [0.04, 0.008 * f, 0.004 * f]},
                    {"type": "translation", "translation": [1.0, 0.004 * (f - 1), 0.002 * (f - 1)]},
                ],
            }
            for name, f in (("full", 1), ("half", 2))
        ],
        "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0, 1.0]}],
    }
    other = {"omero": {"channels": [{"label": "em"}]}}
    entry = {"version": version, **image} if zarr_format == 2 else image
    stated: dict[str, Any] = {"multiscales": [entry], **other}
    stated = (
        {**stated, "animal": "fly 7"} if zarr_format == 2 else {"ome": {"version": "0.5", **stated}, "animal": "fly 7"}
    )
    group = zarr.create_group(path, zarr_format=zarr_format)
    group.update_attributes(stated)
    zarr.create_array(path / "full", data=fibsem(), chunks=(8, 64, 64), zarr_format=zarr_format)
    zarr.create_array(path / "half", data=fibsem()[:, ::2, ::2], chunks=(8, 64, 64), zarr_format=zarr_format)
    return stated


@pytest.mark.parametrize("target", [2, 3])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_image_is_carried_over_into_either_version(
    zarr_format: Literal[2, 3], target: Literal[2, 3], tmp_path: Path
) -> None:
    ome_source(tmp_path / "in", zarr_format)
    image = open_source(tmp_path / "in").image
    metadata.write_image(place_of(tmp_path / "out"), image, zarr_format=target)
    found: dict[str, Any] = zarr.open_group(tmp_path / "out", mode="r").attrs.asdict()
    inside = found["ome"] if target == 3 else found
    entry = inside["multiscales"][0]
    assert (inside if target == 3 else entry)["version"] == ("0.5" if target == 3 else "0.4")
    assert found["animal"] == "fly 7"
    assert inside["omero"] == {"channels": [{"label": "em"}]}
    assert (entry["name"], entry["type"], entry["metadata"]) == ("em", "mean", {"method": "blocks"})
    assert [axis["unit"] for axis in entry["axes"]] == ["micrometer"] * 3
    assert [d["path"] for d in entry["datasets"]] == ["full", "half"]
    assert entry["datasets"][1]["coordinateTransformations"] == [
        {"type": "scale", "scale": [0.04, 0.016, 0.008]},
        {"type": "translation", "translation": [1.0, 0.004, 0.002]},
    ]


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_is_written_is_read_back_alike(zarr_format: Literal[2, 3], tmp_path: Path) -> None:
    ome_source(tmp_path / "in", 3)
    image = open_source(tmp_path / "in").image
    attributes = json.loads(json.dumps(write_multiscale(image, zarr_format)))
    assert read_multiscale(attributes, str(tmp_path / "in")) == image


@pytest.mark.parametrize("write", [n5_pyramid, precomputed_pyramid])
def test_sizes_and_offsets_of_other_formats_become_transformations(write: Any, tmp_path: Path) -> None:
    write(tmp_path / "in")
    source = open_source(tmp_path / "in")
    named = replace(source.image, levels=tuple(replace(v, name=f"s{i}") for i, v in enumerate(source.levels)))
    metadata.write_image(place_of(tmp_path / "out"), named, zarr_format=3)
    zarr.create_array(tmp_path / "out" / "s0", data=fibsem(), chunks=(8, 64, 64))
    zarr.create_array(tmp_path / "out" / "s1", data=fibsem()[:, ::2, ::2], chunks=(8, 64, 64))
    for name, level, factor in (("", 0, 1), ("s0", 0, 1), ("s1", 1, 2)):
        with open_source(tmp_path / "out" / name) as found, open_source(source.levels[level].location) as origin:
            assert found.voxel_nm == pytest.approx((40, 8 * factor, 4 * factor))
            assert found.offset == pytest.approx(origin.offset)
            assert found.level == level
    # where precomputed's voxel_offset says the corner is, in whole voxels
    if write is precomputed_pyramid:
        assert source.offset == (3, 6, 8)


def test_an_array_takes_over_attributes_and_axes(tmp_path: Path) -> None:
    turned = np.ascontiguousarray(fibsem().transpose(2, 1, 0))
    attributes: Any = {"animal": "fly 7", "emcodec": {"source": "older"}, "_ARRAY_DIMENSIONS": ["x", "y", "z"]}
    zarr.create_array(tmp_path / "a", data=turned, chunks=(64, 64, 8), zarr_format=2, attributes=attributes)
    with open_source(tmp_path / "a") as source:
        assert metadata.carried(source, 3) == {
            "attributes": {"animal": "fly 7"},
            "dimension_names": ("z", "y", "x"),
        }
        assert metadata.carried(source, 2) == {
            "attributes": {"animal": "fly 7", "_ARRAY_DIMENSIONS": ["z", "y", "x"]},
        }


def test_provenance_tells_source_place_and_versions(tmp_path: Path) -> None:
    write_n5(tmp_path / "em.n5" / "raw", fibsem(), resolution=[4, 8, 40], units=["nm"] * 3)
    with open_source(tmp_path / "em.n5" / "raw") as source:
        facts = metadata.provenance(source)
        assert facts["source_fingerprint"] == source.fingerprint()
        assert metadata.provenance(source) == facts
    assert (facts["source"], facts["source_kind"]) == ("raw", "n5")
    assert (facts["voxel_nm"], facts["offset"]) == (list(VOXEL_NM), [0, 0, 0])
    assert {"python", "zarr", "numpy", "numcodecs"} <= set(facts["versions"])
    json.dumps(facts, allow_nan=False)


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("https://ann:secret@host:80/a/b?token=1#x", "https://host:80/a/b"),
        ("s3://bucket/a", "s3://bucket/a"),
        ("n5://s3://key@bucket/a", "s3://bucket/a"),
        ("mean-1x2x2:///scans/a/s0", "s0"),
        ("file:///scans/a", "a"),
        ("n5:///scans/a", "a"),
    ],
)
def test_credentials_and_private_folders_stay_at_home(location: str, name: str) -> None:
    assert metadata.public_name(location) == name


def test_facts_add_up(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a", data=fibsem(), attributes={"emcodec": {"model": "m"}, "animal": "fly"})
    metadata.sign(array, {"psnr_db": float("inf"), "worst_error": np.float64(2)})
    metadata.sign(array, {"worst_error": 3})
    found = zarr.open_array(tmp_path / "a", mode="r").attrs.asdict()
    assert found == {"emcodec": {"model": "m", "psnr_db": None, "worst_error": 3}, "animal": "fly"}
    with pytest.raises(JobError, match="cannot write the attributes"):
        metadata.sign(zarr.open_array(tmp_path / "a", mode="r"), {"more": 1})


def test_a_group_is_brought_up_to_date(tmp_path: Path) -> None:
    ome_source(tmp_path / "in", 3)
    image = open_source(tmp_path / "in").image
    first: Multiscale = replace(image, levels=image.levels[:1])
    metadata.write_image(place_of(tmp_path / "out"), first, zarr_format=3, facts={"source": "in"})
    zarr.open_group(tmp_path / "out").attrs["seen"] = True
    metadata.write_image(place_of(tmp_path / "out"), image, zarr_format=3, facts={"levels": {"full": {"psnr_db": 40}}})
    found: dict[str, Any] = zarr.open_group(tmp_path / "out", mode="r").attrs.asdict()
    assert found["seen"] is True
    assert found["emcodec"] == {"source": "in", "levels": {"full": {"psnr_db": 40}}}
    assert len(found["ome"]["multiscales"][0]["datasets"]) == 2
    with pytest.raises(JobError, match="group cannot be written"):
        metadata.write_image(StorePath(LocalStore(tmp_path / "out", read_only=True)), image, zarr_format=3)
