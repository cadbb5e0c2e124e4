"""What a destination is told of its source: axes, attributes, levels, and where it all comes from.

A source in; keyword arguments of `create_array`, OME-Zarr attributes of a group, and facts for the attribute
``emcodec`` out. Everything is the same in every run of one job: no times, no machine.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zarr_emcodec.errors import JobError
from zarr_emcodec.jobs.compress import ATTRIBUTE
from zarr_emcodec.jobs.ome import write_multiscale
from zarr_emcodec.jobs.report import plain
from zarr_emcodec.jobs.sources.place import reason
from zarr_emcodec.jobs.store import refusal

if TYPE_CHECKING:
    import zarr
    from zarr.storage import StorePath

    from zarr_emcodec.jobs.scales import Multiscale
    from zarr_emcodec.jobs.sources import Source

_DIMENSIONS = "_ARRAY_DIMENSIONS"
_PACKAGES = ("zarr-emcodec", "zarr", "numcodecs", "numpy", "onnxruntime")


def carried(volume: Source, zarr_format: Literal[2, 3]) -> dict[str, Any]:
    """What a new array of a source's shape takes over, as words of `zarr_emcodec.create_array`.

    Parameters
    ----------
    volume : Source
    zarr_format : {2, 3}
        Of the new array: v3 has a place for the names of axes, in v2 xarray finds them among the attributes.

    Returns
    -------
    dict
        "attributes", and in v3 "dimension_names".
    """
    attributes = {key: value for key, value in volume.attributes.items() if key != ATTRIBUTE}
    if zarr_format == 2:
        return {"attributes": {**attributes, _DIMENSIONS: list(volume.axes)}}
    return {"attributes": attributes, "dimension_names": volume.axes}


def provenance(volume: Source) -> dict[str, Any]:
    """Where voxels come from and what made them into frames, for the attribute ``emcodec``.

    Returns
    -------
    dict
        "source" (a URL without credentials; of a local path its last name), "source_kind", "source_fingerprint",
        "versions" (of the libraries that decide what is stored), and where the source states them "voxel_nm" and
        "offset", (z, y, x).

    Raises
    ------
    JobError
        If the source is no longer there.
    """
    facts: dict[str, Any] = {
        "source": public_name(volume.location),
        "source_kind": volume.kind,
        "source_fingerprint": volume.fingerprint(),
        "versions": versions(),
    }
    if volume.voxel_nm is not None:
        facts |= {"voxel_nm": volume.voxel_nm, "offset": volume.offset}
    found: dict[str, Any] = plain(facts)
    return found


def versions() -> dict[str, str]:
    """Of Python and of the installed packages that decide what is stored."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a source tree, or onnxruntime under its GPU name
            continue
    return found


def public_name(location: str) -> str:
    """A location as strangers may read it.

    Examples
    --------
    >>> public_name("s3://key:secret@bucket/em.n5/s0?token=1"), public_name("/scans/em.n5/s0")
    ('s3://bucket/em.n5/s0', 's0')
    """
    if "://" not in location:
        return Path(location).name
    *schemes, rest = location.split("://")
    if schemes[-1] == "file" or rest.startswith("/"):
        return Path(rest).name
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{schemes[-1]}://{host.rpartition('@')[2]}{slash}{path}"


def sign(node: zarr.Array[Any] | zarr.Group, facts: Mapping[str, Any]) -> None:
    """Add facts to the attribute ``emcodec``, keeping what is there under other names.

    Raises
    ------
    JobError
        If the store refuses.
    """
    earlier = node.attrs.get(ATTRIBUTE)
    try:
        node.attrs[ATTRIBUTE] = plain({**(earlier if isinstance(earlier, Mapping) else {}), **facts})
    except Exception as error:  # stores raise whatever their transport does
        raise refusal(node.store_path, "", "write the attributes of", error) from error


def write_image(
    place: StorePath, image: Multiscale, *, zarr_format: Literal[2, 3], facts: Mapping[str, Any] | None = None
) -> zarr.Group:
    """Make a folder the group of a multiscale image, or bring the group that is there up to date.

    Arrays in it, and attributes of others, stay as they are.

    Parameters
    ----------
    place : StorePath
        Writable.
    image : Multiscale
        Levels are named by their paths in the folder.
    zarr_format : {2, 3}
        OME-Zarr 0.4 or 0.5.
    facts : mapping, optional
        For the group's attribute ``emcodec``.

    Raises
    ------
    JobError
        If the store refuses.
    """
    import zarr

    try:
        group = zarr.open_group(place, mode="a", zarr_format=zarr_format)
        group.update_attributes(plain(write_multiscale(image, zarr_format)))
    except Exception as error:
        raise JobError(f"{place}: its group cannot be written: {reason(error)}") from error
    if facts:
        sign(group, facts)
    return group
