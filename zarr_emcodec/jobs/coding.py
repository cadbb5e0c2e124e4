"""Codecs as a plan holds them: plain configurations, codecs made of them, and arrays that write with another one.

An array's metadata name one codec. What was written with another is read back all the same: a frame carries what its
decoder needs, the model's digest included.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from zarr_emcodec.errors import SpecError
from zarr_emcodec.jobs.report import plain

if TYPE_CHECKING:
    import zarr

    from zarr_emcodec._types import Shape

Codec: TypeAlias = Any
"""A codec of either Zarr format, its spec, its configuration, or a ratio for the codec that is the default."""
_WORSE = {"min_psnr": operator.lt, "max_error": operator.gt}


def codec_config(codec: Codec, voxel_nm: Sequence[float] | None = None) -> dict[str, Any]:
    """The configuration of a codec: plain JSON data with its numcodecs id.

    Parameters
    ----------
    codec : number, codec, spec, mapping or None
        A ratio stands for `VAECodec`; None for its defaults. A mapping may leave "id" out likewise.
    voxel_nm : sequence of float, optional
        Voxel size (z, y, x) of what is to be coded: where `codec` leaves its model open, volumes with near-cubic voxels
        get one of volumes.

    Raises
    ------
    SpecError
        If it cannot work, or is no codec of this package.

    Examples
    --------
    >>> codec_config(64)["id"], codec_config(64)["ratio"]
    ('emcodec_vae', 64.0)
    """
    from zarr_emcodec.adapters.numcodecs import VAECodec
    from zarr_emcodec.codecs.base import Spec

    if codec is None or (isinstance(codec, int | float) and not isinstance(codec, bool)):
        codec = VAECodec(codec, voxel_nm=_three(voxel_nm))
    elif isinstance(codec, Mapping):
        codec = codec_from({"id": VAECodec.codec_id, **_with_voxels(codec, voxel_nm)})
    elif hasattr(codec, "to_v2"):
        codec = codec.to_v2()
    elif isinstance(codec, Spec):
        codec = codec_from({"id": f"emcodec_{codec.CODEC}", **codec.to_config()})
    if not hasattr(codec, "get_config") or not str(codec.get_config().get("id", "")).startswith("emcodec_"):
        raise SpecError(f"codec {codec!r:.120}: needs a ratio, or a codec of this package.", name="codec", value=codec)
    config: dict[str, Any] = plain(codec.get_config())
    return config


def _three(voxel_nm: Sequence[float] | None) -> Sequence[float] | None:
    return voxel_nm if voxel_nm is not None and len(voxel_nm) == 3 else None


def _with_voxels(config: Mapping[str, Any], voxel_nm: Sequence[float] | None) -> dict[str, Any]:
    """The configuration with the voxel size, where a model is still to be chosen by it."""
    takes_it = config.get("id", "emcodec_vae") in ("emcodec_vae", "emcodec_vqvae")
    is_open = config.get("model", "auto") == "auto" and not config.get("digest")
    if takes_it and is_open and config.get("voxel_nm") is None and _three(voxel_nm):
        return {**config, "voxel_nm": _three(voxel_nm)}
    return dict(config)


def codec_from(config: Mapping[str, Any]) -> Any:
    """The numcodecs codec of a configuration; `encode_many` and `decode_many` take chunks and frames.

    Raises
    ------
    SpecError
        If there is no such codec here, or it does not take the configuration.
    """
    from numcodecs.registry import get_codec

    import zarr_emcodec.adapters.numcodecs  # noqa: F401  # registers what a source checkout has no entry points for

    try:
        return get_codec(dict(config))
    except SpecError:
        raise
    except (ValueError, TypeError) as error:
        raise SpecError(f"codec {config.get('id')!r}: {error}", name="codec", value=config.get("id")) from error


def chunks_for(config: Mapping[str, Any], shape: Shape, chunks: Sequence[int] | None) -> Shape:
    """The chunks asked for, or what `create_array` takes for this codec."""
    from zarr_emcodec.adapters.layout import fit_chunks, fit_token_chunks

    if chunks is None and config["id"] in ("emcodec_vqvae", "emcodec_inr"):
        return fit_token_chunks(shape)
    return fit_chunks(shape, chunks)


def with_share_of(
    config: Mapping[str, Any],
    *,
    shape: Shape,
    itemsize: int,
    chunks: Shape,
    shards: Shape | None,
    metadata_bytes: int = 0,
) -> dict[str, Any]:
    """The configuration whose chunks leave room for shard indices and metadata, so that its ratio holds on disk."""
    from zarr_emcodec.adapters.layout import with_overhead

    spec = codec_from(config).spec
    return codec_config(with_overhead(spec, shape, itemsize, metadata_bytes, (chunks, shards)))


def check_promises(base: Mapping[str, Any], region: Mapping[str, Any]) -> None:
    """Refuse a region's codec that promises less than the array's, whose metadata state it of every chunk.

    Raises
    ------
    SpecError
        Naming the promise.
    """
    for name, worse in _WORSE.items():
        asked, given = base.get(name), region.get(name)
        if asked is None or region.get("max_error") == 0:
            continue
        if given is None or worse(given, asked):
            stated = "nothing" if given is None else f"{given:g}"
            raise SpecError(
                f"region's codec promises {stated} of {name}, the array's {asked:g} of every chunk. "
                f"Give the region {name}={asked:g} or better.",
                name=name,
                value=given,
            )


def array_with(array: zarr.Array[Any], config: Mapping[str, Any]) -> zarr.Array[Any]:
    """The same stored array, writing with another codec.

    Parameters
    ----------
    array : zarr.Array
        Written by this package, v2 or v3, sharded or not. Neither it nor its stored metadata change.
    config : mapping
        From `codec_config`.

    Returns
    -------
    zarr.Array
        For writing whole chunks or shards; what it writes, `array` reads.

    Raises
    ------
    SpecError
        If the array's chunks are not written by this package.
    """
    import zarr

    facts: dict[str, Any] = array.metadata.to_dict()
    codec = codec_from(config)
    if facts["zarr_format"] == 2:
        _check_ours(array, (facts.get("compressor") or {}).get("id", ""))
        facts["compressor"] = codec.get_config()
    else:
        chain = facts["codecs"] = [dict(item) for item in facts["codecs"]]
        if chain[0]["name"] == "sharding_indexed":
            inner = chain[0]["configuration"] = dict(chain[0]["configuration"])
            chain = inner["codecs"] = list(inner["codecs"])
        _check_ours(array, chain[0]["name"])
        chain[0] = codec.to_v3().to_dict()
    metadata = type(array.metadata).from_dict(facts)
    return zarr.Array(type(array._async_array)(metadata, array.store_path, array._async_array.config))


def _check_ours(array: zarr.Array[Any], name: str) -> None:
    if not name.startswith(("emcodec_", "emcodec.")):
        raise SpecError(
            f"{array.store_path}: written by {name or 'no codec'}, not by one of this package.",
            name="codec",
            value=name,
        )
