"""Models that came with a dataset: refused unless trusted, checked, and kept where worker processes find them.

Files in, a decoder-only `Model` out. Trust is a digest: one that a local model has, one that the user named, or a
plain yes.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from zarr_emcodec.errors import ModelError, ModelMismatchError, ModelNotFoundError, SpecError
from zarr_emcodec.runtime.card import parse_card
from zarr_emcodec.runtime.find import cache_folder, find_model, registered
from zarr_emcodec.runtime.guard import check_onnx
from zarr_emcodec.runtime.model import CARD, TABLES, Model, open_model
from zarr_emcodec.runtime.options import current

if TYPE_CHECKING:
    from collections.abc import Mapping

_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


def register_embedded(files: Mapping[str, bytes], *, trust: bool, digest: str) -> Model:
    """Make a dataset's own decoder known to this process and, through the cache folder, to its workers.

    Parameters
    ----------
    files : mapping of str to bytes
        As `Model.decoder_files` gives them.
    trust : bool
        Whether the user vouches for the dataset.
    digest : str
        "sha256:<64 hex digits>", as the array's metadata say.

    Returns
    -------
    Model
        A local one of that digest where there is one; else the embedded one, without an encoder.

    Raises
    ------
    ModelError
        If nothing says that the model is trusted, or its networks use operators that are not allowed.
    ModelMismatchError
        If the files are not those that the digest means.

    Notes
    -----
    Where the cache folder cannot be written the model lives in this process only.
    """
    match = _DIGEST.fullmatch(digest)
    if not match:
        raise SpecError(f"digest {digest!r:.80}: needs 'sha256:' and 64 hex digits.", name="digest", value=digest)
    wanted = bytes.fromhex(match[1])
    local = _local(wanted)
    if local is not None and _is_whole(local):
        return local
    # a local model of that digest, though damaged, says that the files' contents are trusted
    if local is None and not trust and f"sha256:{match[1]}" not in current().trusted_digests:
        raise ModelError(
            f"the dataset carries its own model (sha256:{match[1]}), which no local model equals. If you trust where "
            "it comes from, open it with trust_embedded=True, or set options(trusted_digests=...)."
        )
    model, kept = _checked(files, wanted)
    if _store(kept, wanted):
        model = open_model(cache_folder() / match[1])
    registered[wanted] = model
    return model


def _local(digest: bytes) -> Model | None:
    try:
        return find_model(digest)
    except ModelNotFoundError:
        return None


def _is_whole(model: Model) -> bool:
    try:
        model.decoder_files()
    except ModelError:
        return False
    return True


def _checked(files: Mapping[str, bytes], digest: bytes) -> tuple[Model, dict[str, bytes]]:
    """The model in memory, and exactly the files that it consists of."""
    if CARD not in files:
        raise ModelError(f"the dataset's model has no {CARD}. Restore the dataset's copy of the model.")
    text = bytes(files[CARD])
    card = parse_card(text, f"the dataset's {CARD}")
    if card.digest != digest:
        raise ModelMismatchError(
            f"the dataset's model has digest {card.digest.hex()[:16]}..., its metadata say {digest.hex()[:16]}.... "
            "Restore the dataset's copy of the model.",
            expected=digest.hex(),
            found=card.digest.hex(),
        )
    whole = Model(card, text, files={name: bytes(files[name]) for name in card.decoder_files if name in files})
    kept = whole.decoder_files()  # reads, and so checks, every file
    for name, data in kept.items():
        if name.endswith(".onnx"):
            check_onnx(data, f"the dataset's {name}")
    if TABLES in kept:
        whole.tables()
    return Model(parse_card(kept[CARD], CARD), kept[CARD], files=kept), kept


def _store(files: Mapping[str, bytes], digest: bytes) -> bool:
    """Write a model directory in one step; False where the cache cannot be written."""
    folder = cache_folder()
    place = folder / digest.hex()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder, ignore_cleanup_errors=True) as new:
            for name, data in files.items():
                (Path(new) / name).write_bytes(data)
            if not _rename(Path(new), place):
                # Another process was faster with the same files; anything else that lies there goes.
                if _holds(place, digest):
                    return True
                shutil.rmtree(place, ignore_errors=True)
                return _rename(Path(new), place)
        return True
    except OSError:
        return False


def _rename(source: Path, target: Path) -> bool:
    try:
        source.rename(target)
    except OSError:
        return False
    return True


def _holds(place: Path, digest: bytes) -> bool:
    try:
        model = open_model(place)
    except ModelError:
        return False
    return model.card.digest == digest and _is_whole(model)
