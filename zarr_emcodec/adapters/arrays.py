"""Arrays as users make and open them: the right place for the codec in each Zarr format, models that travel along.

`create_array` and `open` return ordinary `zarr.Array` objects; nothing here is needed to read one.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import DTypeLike
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore, StorePath

from zarr_emcodec._types import Chunk
from zarr_emcodec.adapters import numcodecs, zarr3
from zarr_emcodec.adapters.layout import fit_chunks, fit_token_chunks, with_overhead
from zarr_emcodec.adapters.tiers import SYNTHESISED, at_tier
from zarr_emcodec.codecs import INRSpec, Spec, VAESpec, VQVAESpec
from zarr_emcodec.errors import ModelError, SpecError
from zarr_emcodec.runtime import find_model, register_embedded
from zarr_emcodec.runtime.options import TierName

EMBEDDED = ".emcodec"
"""Folder beside an array's metadata that holds the models which travel with it, one subfolder for each digest."""
_MAX_EMBEDDED_FILES = 8
_MAX_MODELS = 64  # that the attributes of one array may name
_DOCUMENTS = ("zarr.json", ".zarray", ".zattrs")
_ATTRIBUTE = "emcodec"


def create_array(
    store: Any,
    *,
    data: Any = None,
    shape: tuple[int, ...] | None = None,
    dtype: DTypeLike | None = None,
    chunks: tuple[int, ...] | None = None,
    shards: tuple[int, ...] | None = None,
    ratio: float | None = None,
    codec: numcodecs.SpecCodec | zarr3.SpecSerializer | Spec | Literal["vae", "vqvae", "inr"] | None = None,
    voxel_nm: tuple[float, float, float] | None = None,
    zarr_format: Literal[2, 3] = 3,
    fill_value: Any = None,
    attributes: dict[str, Any] | None = None,
    embed_model: bool = False,
    **kwargs: Any,
) -> zarr.Array[Any]:
    """Create a Zarr array whose chunks are stored as latents.

    Parameters
    ----------
    store : store, path or URL
        As for `zarr.create_array`.
    data : array_like, optional
        Written at once; gives shape and dtype.
    shape, dtype
        Of the array, where there are no data.
    chunks : tuple of int, optional
        About 16 x 512 x 512 (last three axes), fitted to the shape, when not given; of tokens and fields as many
        voxels also where there are few planes.
    shards : tuple of int, optional
        Zarr v3 only; multiples of `chunks`.
    ratio : float, optional
        Short for ``codec=VAECodec(ratio=ratio)``, or ``VQVAECodec`` with ``codec="vqvae"``, ``INRCodec`` with "inr". Of
        the whole array: chunks are coded a little smaller, so that metadata and shard indices fit in as well.
    codec : VAECodec, VQVAECodec or INRCodec of either format, a spec, "vae", "vqvae" or "inr", optional
        For everything beyond a ratio.
    voxel_nm : (float, float, float), optional
        Voxel size (z, y, x), where `codec` is not whole: near-cubic voxels are coded as volumes, others as sections.
    zarr_format : {2, 3}
        In v2 the codec is the compressor, in v3 the serializer.
    fill_value
        Of missing chunks. None is 0; in v2 xarray then keeps the dtype, where it masks any stated value as missing.
    attributes : dict, optional
        User attributes; what was done to the data is added under "emcodec".
    embed_model : bool
        Copy the model's decoder beside the array, so that the data can be read wherever this package is, for as long
        as it is.
    **kwargs
        For `zarr.create_array` (``name``, ``overwrite``, ``dimension_names``, ``storage_options``, ...).

    Returns
    -------
    zarr.Array

    Raises
    ------
    SpecError
        If both `ratio` and a whole `codec` are given, the dtype is not one of grey values, the array has one axis or
        more than five, a model lacks the ratio, or the data hold NaN.

    Notes
    -----
    Where writing the data fails, what has been written of the array is removed again.

    Examples
    --------
    >>> volume = np.tile(np.arange(128, dtype="u1"), (4, 128, 1))
    >>> array = create_array(zarr.storage.MemoryStore(), data=volume, ratio=32)
    >>> array.shape, array.dtype
    ((4, 128, 128), dtype('uint8'))
    """
    for word in ("serializer", "compressors", "filters"):
        if word in kwargs:
            raise SpecError(f"{word}= is set by create_array; pass codec=, or use zarr.create_array.", name=word)
    spec = _spec_of(codec, ratio, voxel_nm)
    if data is not None:
        data = np.asarray(data) if not hasattr(data, "dtype") else data
        shape, dtype = data.shape, data.dtype
    if shape is None or dtype is None:
        raise SpecError("pass data=, or shape= and dtype=.", name="shape", value=shape)
    zarr3.check_array(shape, np.dtype(dtype))
    chunks = chunks or (fit_token_chunks if isinstance(spec, VQVAESpec | INRSpec) else fit_chunks)(shape)
    if isinstance(data, np.ndarray) and data.dtype.kind == "f":
        _check_finite(data, chunks)
    if zarr_format == 2 and shards is not None:
        raise SpecError("shards= needs zarr_format=3.", name="shards", value=shards)
    asked = spec.ratio

    def words(spec: Spec) -> dict[str, Any]:
        codec = zarr3.codec_for(spec)
        place = {"serializer": codec, "compressors": None, "shards": shards}
        if zarr_format == 2:
            place = {"compressors": codec.to_v2(), "filters": None}
        note: dict[str, Any] = {
            "model": spec.model,
            "digest": spec.digest,
            "ratio": asked,
            "lossy": spec.max_error != 0,
        }
        if len(spec.digests) > 1:
            note["models"] = [{"model": find_model(digest).card.id, "digest": digest} for digest in spec.digests]
        fixed = {"shape": shape, "dtype": dtype, "chunks": chunks, "zarr_format": zarr_format, "fill_value": fill_value}
        notes: dict[str, Any] = {_ATTRIBUTE: note}
        if isinstance(spec, VQVAESpec) and spec.tier == "prior":
            notes[SYNTHESISED] = True
        return {**fixed, "attributes": {**(attributes or {}), **notes}, **place}

    metadata = _metadata_bytes(words(spec))
    spec = with_overhead(spec, shape, np.dtype(dtype).itemsize, metadata, (chunks, shards))
    array = zarr.create_array(store, **words(spec), **kwargs)
    try:
        if embed_model:
            for digest in spec.digests:
                embed(array, digest)
        if data is not None:
            array[...] = data
    except Exception:
        _remove(array, spec.digests)
        raise
    return array


def _spec_of(
    codec: numcodecs.SpecCodec | zarr3.SpecSerializer | Spec | Literal["vae", "vqvae", "inr"] | None,
    ratio: float | None,
    voxel_nm: tuple[float, float, float] | None,
) -> Spec:
    if codec is None or isinstance(codec, str):
        kinds: dict[str | None, type[Spec]] = {None: VAESpec, "vae": VAESpec, "vqvae": VQVAESpec, "inr": INRSpec}
        if codec not in kinds:
            raise SpecError(f"codec {codec!r}: needs 'vae', 'vqvae', 'inr', or a codec.", name="codec", value=codec)
        words = {} if codec == "inr" else {"voxel_nm": voxel_nm}
        return kinds[codec](ratio=ratio, **words)  # type: ignore[arg-type]  # not every kind has that word
    if voxel_nm is not None:
        raise SpecError("pass voxel_nm= to the codec, which is whole.", name="voxel_nm", value=voxel_nm)
    if ratio is not None:
        raise SpecError("pass ratio= or codec=, not both.", name="ratio", value=ratio)
    spec: Spec = codec if isinstance(codec, Spec) else codec.spec
    return spec


def _check_finite(data: Chunk, chunks: tuple[int, ...]) -> None:
    """Find NaN and infinity before anything is written: Zarr goes on with other chunks when one has failed."""
    for coords in itertools.product(*(range(-(-n // edge)) for n, edge in zip(data.shape, chunks, strict=True))):
        box = tuple(slice(i * edge, (i + 1) * edge) for i, edge in zip(coords, chunks, strict=True))
        chunk = data[box]
        # both are NaN where any voxel is; a chunk of nothing else is a constant, and those may hold anything
        if not np.isfinite(np.stack([chunk.min(), chunk.max()])).all() and np.isfinite(chunk).any():
            raise SpecError(
                f"chunk {coords} holds NaN or infinite voxels beside others. Replace them by a finite background value "
                "and pass it as background= of the codec, which keeps them exact.",
                name="data",
                value=coords,
            )


def _remove(array: zarr.Array[Any], digests: Sequence[str]) -> None:
    """Delete the keys of an array, and no others: the place may hold more than we know."""
    objects = array.shards or array.chunks
    grid = [range(-(-n // edge)) for n, edge in zip(array.shape, objects, strict=True)]
    chunks = (array.metadata.encode_chunk_key(coords) for coords in itertools.product(*grid))

    async def delete() -> None:
        for key in itertools.chain(_DOCUMENTS, chunks):
            await (array.store_path / key).delete()
        for digest in digests:
            await _embedded(array.store_path, digest).delete_dir()

    with contextlib.suppress(NotImplementedError):  # a ZIP file cannot forget
        sync(delete())


def _metadata_bytes(words: dict[str, Any]) -> int:
    """Size of the metadata documents of an array, from one made in memory; whatever is wrong with it is found here."""
    store = MemoryStore()
    zarr.create_array(store, **words)
    documents = (sync(store.get(key, default_buffer_prototype())) for key in _DOCUMENTS)
    return sum(len(document) for document in documents if document is not None)


def embed(array: zarr.Array[Any], digest: str) -> None:
    """Copy a model's decoder into the array's own folder, under ``.emcodec/<digest>/``."""
    files = find_model(digest).decoder_files()
    folder = _embedded(array.store_path, digest)
    for name, data in files.items():
        sync((folder / name).set(default_buffer_prototype().buffer.from_bytes(data)))


def _embedded(place: StorePath, digest: str) -> StorePath:
    return place / EMBEDDED / digest.removeprefix("sha256:")


def open(  # noqa: A001  # the package's own `open`, as in zarr
    store: Any,
    *,
    path: str | None = None,
    mode: Literal["r", "r+", "a"] = "r",
    trust_embedded: bool = False,
    tier: TierName | None = None,
    **kwargs: Any,
) -> zarr.Array[Any] | zarr.Group:
    """Open a Zarr array or group, taking up the models that travel with it.

    Of a group, those of the arrays directly in it; open arrays further down by their `path`.

    Parameters
    ----------
    store : store, path or URL
        As for `zarr.open`.
    path : str, optional
        Of the node in the store.
    mode : {"r", "r+", "a"}
        Read, or read and write.
    trust_embedded : bool
        Load embedded models whose digest is not known here. Only networks are loaded, never code, but a network
        decides what you see: trust it as you trust the data.
    tier : {"top", "prior", "full"}, optional
        Decode an array of tokens at this tier, whatever its frames say; for reading only. At "prior" its attributes
        say ``emcodec:synthesised``: texture between the stored tokens is made up.
    **kwargs
        For `zarr.open`.

    Returns
    -------
    zarr.Array or zarr.Group

    Raises
    ------
    ModelError
        If an array's model is embedded but not trusted, or its files are not those that the digest names.
    SpecError
        If a tier is asked for of a group, of an array of another codec, of one whose model lacks it, or for writing.
    """
    if tier is not None and mode != "r":
        raise SpecError(f"tier={tier!r} is for reading: pass mode='r'.", name="tier", value=tier)
    node = zarr.open(store, path=path, mode=mode, **kwargs)
    arrays = [node] if isinstance(node, zarr.Array) else [a for _, a in node.arrays()]
    for array in arrays:
        for digest in _digests(array.attrs.get(_ATTRIBUTE)):
            _take_up(array.store_path, digest, trust_embedded)
    return node if tier is None else at_tier(node, tier)


def _digests(note: Any) -> list[str]:
    """Of the models that an array's attributes name, its own first."""
    if not isinstance(note, dict):
        return []
    listed = note.get("models")
    entries = [note, *(listed[:_MAX_MODELS] if isinstance(listed, list) else [])]
    found = (entry.get("digest") for entry in entries if isinstance(entry, dict))
    return list(dict.fromkeys(digest for digest in found if isinstance(digest, str)))


def _take_up(place: StorePath, digest: str, trust: bool) -> None:
    """Register an embedded model unless it is here already."""
    from zarr_emcodec.errors import ModelNotFoundError

    try:
        find_model(digest)
        return
    except ModelNotFoundError:
        folder = _embedded(place, digest)
        card = sync((folder / "card.json").get(default_buffer_prototype()))
        if card is None:
            return  # reading a chunk will say which model is missing
    text = card.to_bytes()
    files = {"card.json": text, **{name: _read(folder, name) for name in _file_names(text)}}
    register_embedded(files, trust=trust, digest=digest)


def _file_names(card: bytes) -> list[str]:
    try:
        names = list(json.loads(card)["decoder"]["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError("embedded model: card.json does not list the decoder's files.") from error
    if len(names) > _MAX_EMBEDDED_FILES or not all(isinstance(n, str) and n.isascii() and "/" not in n for n in names):
        raise ModelError("embedded model: card.json lists files that are none of a decoder's.")
    return names


def _read(folder: StorePath, name: str) -> bytes:
    data = sync((folder / name).get(default_buffer_prototype()))
    if data is None:
        raise ModelError(f"embedded model: {name} is missing beside its card.")
    return data.to_bytes()
