"""How this process computes: backend, device, threads, limits, folders. Never what the bytes mean.

Defaults come from ``ZARR_EMCODEC_<FIELD>`` environment variables, read once on first use; `options` changes them for
the process, as ``xarray.set_options`` does. Nothing of this is written to metadata.
"""

from __future__ import annotations

import dataclasses
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from zarr_emcodec.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

Backend = Literal["onnxruntime", "torch"]
Provider = Literal["auto", "cpu", "cuda"]
EntropyBackend = Literal["numpy", "numba"]
TierName = Literal["top", "prior", "full"]

_LIMITS = {"threads": (1, 1024), "max_chunk_bytes": (1, 2**40), "block_voxels": (2**10, 2**32)}
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "backend": get_args(Backend),
    "provider": get_args(Provider),
    "entropy_backend": (None, *get_args(EntropyBackend)),
    "tier": (None, *get_args(TierName)),
}
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a call computes with; checked on construction.

    Parameters
    ----------
    backend : {"onnxruntime", "torch"}
        Runs the networks.
    provider : {"auto", "cpu", "cuda"}
        "auto" takes CUDA where the backend offers it and it loads; "cuda" raises where it does not.
    threads : int
        Of one inference call, 1 to 1024. Zarr and Dask bring their own, so 1 is the default.
    model_path : tuple of path
        Folders searched for models before those of the environment. A single path will do.
    trusted_digests : tuple of str
        Models that may be loaded from inside a dataset, each "sha256:<64 hex digits>".
    max_chunk_bytes : int
        The largest chunk that a frame may claim.
    block_voxels : int
        Voxels in one inference call, at least 1024, four times as many of volumes; bounds memory, not results.
    entropy_backend : {None, "numpy", "numba"}
        None takes numba where it is installed.
    tier : {None, "top", "prior", "full"}
        How richly frames are decoded; None decodes each at its own tier.

    Raises
    ------
    SpecError
        If a value is out of range or of the wrong kind.
    """

    backend: Backend = "onnxruntime"
    provider: Provider = "auto"
    threads: int = 1
    model_path: tuple[Path, ...] = ()
    trusted_digests: tuple[str, ...] = ()
    max_chunk_bytes: int = 2**31
    block_voxels: int = 2**20
    entropy_backend: EntropyBackend | None = None
    tier: TierName | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise _bad(name, getattr(self, name), " or ".join(map(repr, choices)))
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise _bad(name, value, f"an integer from {low} to {high}")
        object.__setattr__(self, "model_path", _paths(self.model_path))
        object.__setattr__(self, "trusted_digests", _digests(self.trusted_digests))


def _paths(value: Any) -> tuple[Path, ...]:
    single = isinstance(value, str | os.PathLike)
    try:
        return tuple(Path(p).expanduser() for p in ((value,) if single else value))
    except TypeError:
        raise _bad("model_path", value, "a path or several") from None


def _digests(value: Any) -> tuple[str, ...]:
    try:
        found = [_DIGEST.fullmatch(d) for d in ((value,) if isinstance(value, str) else value)]
    except TypeError:
        found = [None]
    if None in found:
        raise _bad("trusted_digests", value, "'sha256:' and 64 hex digits, or several of these")
    return tuple(f"sha256:{match[1]}" for match in found if match)


def _bad(name: str, value: Any, wanted: str) -> SpecError:
    return SpecError(f"option {name}={value!r}: needs {wanted}.", name=name, value=value)


def from_environment(environ: Mapping[str, str]) -> Options:
    """Options from variables such as ``ZARR_EMCODEC_THREADS``; lists are separated by commas.

    ``model_path`` has no variable of its own: the search for models looks at ``ZARR_EMCODEC_MODELS`` besides.

    Raises
    ------
    SpecError
        If a variable holds what the option does not take; the message names the variable.

    Examples
    --------
    >>> from_environment({"ZARR_EMCODEC_THREADS": "2"}).threads
    2
    """
    words: dict[str, Any] = {}
    for field in dataclasses.fields(Options):
        text = environ.get(f"ZARR_EMCODEC_{field.name.upper()}", "").strip()
        if not text or field.name == "model_path":
            continue
        if field.name in _LIMITS:
            words[field.name] = int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else text
        else:
            words[field.name] = text.replace(",", " ").split() if field.name == "trusted_digests" else text
    try:
        return Options(**words)
    except SpecError as error:
        variable = f"ZARR_EMCODEC_{str(error.name).upper()}"
        raise SpecError(f"{variable}: {error}", name=error.name, value=error.value) from None


_lock = threading.Lock()
_current: Options | None = None


def current() -> Options:
    """The options in force."""
    global _current
    if _current is None:
        with _lock:
            _current = _current or from_environment(os.environ)
    return _current


class options:  # noqa: N801  (reads as a function where it is called, as xarray.set_options does)
    """Change options of this process, for good or, as a context manager, until the block ends.

    Parameters
    ----------
    **words
        Fields of `Options`.

    Raises
    ------
    SpecError
        If a word is unknown or its value is refused; nothing has changed then.

    Notes
    -----
    All threads see the change at once. Worker processes do not: give them environment variables.

    Examples
    --------
    >>> with options(threads=4):
    ...     current().threads
    4
    >>> current().threads
    1
    """

    def __init__(self, **words: Any) -> None:
        known = {field.name for field in dataclasses.fields(Options)}
        for name in words.keys() - known:
            raise SpecError(f"option {name!r}: unknown; there are {', '.join(sorted(known))}.", name=name)
        before = current()
        self._before = {name: getattr(before, name) for name in words}
        _replace(words)

    def __enter__(self) -> Options:
        return current()

    def __exit__(self, *raised: type[BaseException] | BaseException | TracebackType | None) -> None:
        _replace(self._before)


def _replace(words: dict[str, Any]) -> None:
    global _current
    base = current()
    with _lock:
        _current = dataclasses.replace(_current or base, **words)


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
