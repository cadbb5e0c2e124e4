"""Models by name or digest: where they lie, and which may be loaded from inside a dataset.

A reference in, a `Model` out. Searched in this order: embedded models that this process registered,
``options(model_path=...)``, the folders in ``ZARR_EMCODEC_MODELS``, the cache of trusted embedded models, those that
came with the package. Embedded models answer to their digest alone: no dataset can take over a name.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from zarr_emcodec.errors import ModelError, ModelNotFoundError, SpecError
from zarr_emcodec.runtime.card import NAME, VERSION
from zarr_emcodec.runtime.model import CARD, Model, open_model
from zarr_emcodec.runtime.options import current

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_NAMED = re.compile(rf"({NAME})(?:@({VERSION}))?")
_DIGEST = re.compile(r"sha256:([0-9a-f]{16,64})")
_SHORT, _LONG = 8, 32  # bytes of a digest in a frame, in array metadata
_MAX_LISTED = 8  # names in a message

registered: dict[bytes, Model] = {}
"""Embedded models of this process, by digest; `embedded.register_embedded` fills it."""

_opened: dict[Path, tuple[tuple[int, int], Model]] = {}
_by_digest: dict[tuple[bytes, tuple[Path, ...]], Model] = {}


@dataclass(frozen=True)
class _Wanted:
    """A reference, taken apart: a digest's beginning, or a name and perhaps a version."""

    text: str
    digest: bytes | None = None
    name: str = ""
    version: int | None = None


@dataclass
class _Seen:
    """What a search met, for the message when it fails."""

    ids: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def find_model(ref: str | bytes, *, folders: Sequence[str | os.PathLike[str]] | None = None) -> Model:
    """The first model on the search path that a reference means.

    Parameters
    ----------
    ref : str or bytes
        "name" (its highest version), "name@version", "sha256:<at least 16 hex digits>", or the digest's first 8 or all
        32 bytes.
    folders : sequence of path, optional
        Searched instead of the search path. Each holds model directories, or is one.

    Raises
    ------
    ModelNotFoundError
        If there is none; the message names what was searched and what is there.
    ModelError
        If a shortened digest means several models.
    SpecError
        If `ref` is not a reference.
    """
    wanted = _parse(ref)
    named = tuple(_folders(named=True) if folders is None else map(Path, folders))
    if wanted.digest is None:
        return _find_named(wanted, named)
    searched = named if folders is not None else tuple(_folders(named=False))
    if folders is None:
        for digest, model in list(registered.items()):
            if digest.startswith(wanted.digest):
                return model
    key = (wanted.digest, searched)
    if key not in _by_digest:
        _by_digest[key] = _find_digest(wanted, searched)
    return _by_digest[key]


def list_models(*, folders: Sequence[str | os.PathLike[str]] | None = None) -> list[Model]:
    """Every model with a name on the search path, by name and version; of several with one id the one found first."""
    found: dict[str, Model] = {}
    for model in _models(_folders(named=True) if folders is None else map(Path, folders), _Seen()):
        found.setdefault(model.card.id, model)
    return sorted(found.values(), key=lambda model: (model.card.name, model.card.version))


def search_path() -> list[Path]:
    """Folders that are searched for models, first to last."""
    return list(_folders(named=False))


def cache_folder() -> Path:
    """Where trusted embedded models are kept: ``ZARR_EMCODEC_CACHE``, or ``zarr_emcodec`` in the user's cache."""
    given = os.environ.get("ZARR_EMCODEC_CACHE")
    base = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "zarr_emcodec"
    return base.expanduser() / "models"


def reopen_model(digest: bytes, directory: str | None) -> Model:
    """A pickled model in another process: from its directory if that still holds it, else by digest."""
    if directory is not None:
        try:
            model = _open(Path(directory))
        except (ModelError, OSError):
            return find_model(digest)
        if model.card.digest == digest:
            return model
    return find_model(digest)


def _parse(ref: str | bytes) -> _Wanted:
    if isinstance(ref, bytes | bytearray) and len(ref) in (_SHORT, _LONG):
        return _Wanted(f"sha256:{ref.hex()}", digest=bytes(ref))
    if isinstance(ref, str):
        if match := _NAMED.fullmatch(ref):
            return _Wanted(ref, name=match[1], version=int(match[2]) if match[2] else None)
        match = _DIGEST.fullmatch(ref)
        if match and len(match[1]) % 2 == 0:
            return _Wanted(ref, digest=bytes.fromhex(match[1]))
    raise SpecError(
        f"model {ref!r:.80}: needs 'name', 'name@version', or 'sha256:' and an even number of hex digits, 16 to 64.",
        name="model",
        value=ref,
    )


def _folders(*, named: bool) -> Iterator[Path]:
    """The search path; with `named`, without the cache of embedded models."""
    yield from current().model_path
    given = os.environ.get("ZARR_EMCODEC_MODELS", "")
    yield from (Path(entry).expanduser() for entry in given.split(os.pathsep) if entry)
    if not named:
        yield cache_folder()
    package = Path(__file__).parents[1]
    yield package / "models"
    if (package.parent / "pyproject.toml").is_file():  # a source checkout; elsewhere "models" would be a stranger's
        yield package.parent / "models"


def _models(folders: Iterable[Path], seen: _Seen) -> Iterator[Model]:
    for folder in folders:
        try:
            places = [folder, *sorted(folder.iterdir())]
        except OSError:  # not there: the message lists it as searched
            continue
        for place in places:
            if place.name.startswith("."):  # half-written, or not ours
                continue
            try:
                model = _open(place)
            except FileNotFoundError:
                continue
            except (ModelError, OSError) as error:
                seen.broken.append(str(error))
                continue
            seen.ids.append(model.card.id)
            yield model


def _open(directory: Path) -> Model:
    """The model of a directory, parsed again only when its card has changed; FileNotFoundError without a card."""
    try:
        stat = (directory / CARD).stat()
    except NotADirectoryError:
        raise FileNotFoundError(directory) from None
    signature = (stat.st_mtime_ns, stat.st_size)
    known = _opened.get(directory)
    if known is None or known[0] != signature:
        known = _opened[directory] = (signature, open_model(directory))
    return known[1]


def _find_named(wanted: _Wanted, folders: tuple[Path, ...]) -> Model:
    seen = _Seen()
    best: Model | None = None
    for model in _models(folders, seen):
        if model.card.name == wanted.name and wanted.version in (None, model.card.version):
            if wanted.version is not None:
                return model
            if best is None or model.card.version > best.card.version:
                best = model
    if best is None:
        raise _not_found(wanted, folders, seen)
    return best


def _find_digest(wanted: _Wanted, folders: tuple[Path, ...]) -> Model:
    seen = _Seen()
    assert wanted.digest is not None
    found: dict[bytes, Model] = {}
    for model in _models(folders, seen):
        if model.card.digest.startswith(wanted.digest):
            first = found.setdefault(model.card.digest, model)
            if model.can_encode and not first.can_encode:  # the same decoder, and an encoder besides
                found[model.card.digest] = model
    if not found:
        raise _not_found(wanted, folders, seen)
    if len(found) > 1:
        ids = ", ".join(f"{model.card.id} ({model.card.digest_hex})" for model in found.values())
        raise ModelError(f"model '{wanted.text}' could be any of {ids}. Give more digits.")
    return next(iter(found.values()))


def _not_found(wanted: _Wanted, folders: tuple[Path, ...], seen: _Seen) -> ModelNotFoundError:
    ids = sorted(set(seen.ids))
    there = ", ".join(ids[:_MAX_LISTED]) + (", ..." if len(ids) > _MAX_LISTED else "") or "none"
    broken = f" Unreadable: {seen.broken[0]}" if seen.broken else ""
    mend = "Install it, or set ZARR_EMCODEC_MODELS to the folder that holds it."
    if wanted.digest is not None:
        mend += " If the dataset carries it, open that with zarr_emcodec.open(..., trust_embedded=True)."
    return ModelNotFoundError(
        f"model '{wanted.text}' not found in {len(folders)} folders ({', '.join(map(str, folders))}); "
        f"there: {there}.{broken} {mend}",
        model_id=wanted.text,
        searched=[str(folder) for folder in folders],
    )
