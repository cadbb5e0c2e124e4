"""One array read at one tier, without a word to the process's options or to the store."""

from __future__ import annotations

import dataclasses
from typing import Any

import zarr
from zarr.codecs import ShardingCodec

from zarr_emcodec.adapters.numcodecs import SpecCodec
from zarr_emcodec.adapters.zarr3 import SpecSerializer
from zarr_emcodec.codecs import Spec
from zarr_emcodec.errors import SpecError
from zarr_emcodec.runtime import find_model
from zarr_emcodec.runtime.options import TierName

SYNTHESISED = "emcodec:synthesised"
"""Attribute of arrays whose voxels are partly made up."""


def at_tier(node: zarr.Array[Any] | zarr.Group, tier: TierName) -> zarr.Array[Any]:
    """The same array, decoded at a tier whatever its frames say.

    Raises
    ------
    SpecError
        If it is a group, its codec is none of ours, or its model lacks the tier.
    """
    if not isinstance(node, zarr.Array):
        raise SpecError(f"tier={tier!r} needs an array: pass the path of one.", name="tier", value=tier)
    metadata: Any = node.metadata
    attributes = {**metadata.attributes, **({SYNTHESISED: True} if tier == "prior" else {})}
    if node.metadata.zarr_format == 2:
        words: dict[str, Any] = {"compressor": _reading(metadata.compressor, tier)}
    else:
        if not any(map(_holds, metadata.codecs)):
            _refuse(tier)
        words = {"codecs": tuple(_within(codec, tier) for codec in metadata.codecs)}
    changed = dataclasses.replace(metadata, attributes=attributes, **words)
    inner = node.async_array
    return zarr.Array(type(inner)(metadata=changed, store_path=node.store_path, config=inner.config))


def _holds(codec: Any) -> bool:
    return isinstance(codec, SpecSerializer) or (isinstance(codec, ShardingCodec) and any(map(_holds, codec.codecs)))


class _ShardingAtTier(ShardingCodec):
    """Shards whose chunks are read at a tier; unlike Zarr's own, pickling keeps what is not stored."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _sharding_at, (self.to_dict(), _tier_of(self))


def _sharding_at(stored: dict[str, Any], tier: TierName) -> Any:
    return _within(ShardingCodec.from_dict(stored), tier)


def _tier_of(codec: Any) -> Any:
    inner = codec
    while isinstance(inner, ShardingCodec):
        inner = next(filter(_holds, inner.codecs))
    return inner.tier


def _within(codec: Any, tier: TierName) -> Any:
    """The codec itself, or with what it wraps, reading at a tier."""
    if isinstance(codec, ShardingCodec) and _holds(codec):
        words = {field.name: getattr(codec, field.name) for field in dataclasses.fields(codec) if field.init}
        return _ShardingAtTier(**{**words, "codecs": tuple(_within(inner, tier) for inner in codec.codecs)})
    return _reading(codec, tier) if isinstance(codec, SpecSerializer) else codec


def _reading(codec: Any, tier: TierName) -> Any:
    if not isinstance(codec, SpecCodec | SpecSerializer):
        _refuse(tier)
    spec: Spec = codec.spec
    card = find_model(spec.digest).card
    if tier not in card.tiers:
        there = " and ".join(map(repr, card.tiers))
        raise SpecError(f"model '{card.id}' has {there}, not '{tier}'.", name="tier", value=tier)
    return codec.reading_at(tier)


def _refuse(tier: TierName) -> None:
    raise SpecError(f"tier={tier!r}: the array's codec is none of this package's.", name="tier", value=tier)
