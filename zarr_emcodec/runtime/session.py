"""Networks ready to run: ONNX bytes and options in, a cached, thread-safe `Session` out.

One session per process, file, backend, provider and thread count. Sessions are never pickled. A forked child forgets
its parent's and opens its own; like every child of a process that used ONNX Runtime it must leave by ``os._exit``, as
`multiprocessing` and Dask do, since the library's own clean-up waits for threads that a fork does not carry over.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import warnings
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from zarr_emcodec.errors import EmCodecError, MissingExtraError, ModelError, RuntimeUnavailableError
from zarr_emcodec.runtime.guard import check_onnx

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from zarr_emcodec.runtime.options import Options

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# float32 all through, and an algorithm that does not depend on what was fastest this time
_CUDA_SETTINGS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
_ERRORS_ONLY, _SILENT = 3, 4


class Network(Protocol):
    """What a backend makes of an ONNX file."""

    provider: str

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """First output of the graph."""

    def run_all(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Every output of the graph, in its order."""


class Session:
    """A network that may be called from any number of threads.

    Attributes
    ----------
    backend, provider : str
        What truly runs it, e.g. "onnxruntime" and "cpu".
    """

    def __init__(self, network: Network, backend: str) -> None:
        self._network = network
        self.backend = backend
        self.provider = network.provider

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """First output of the graph for named inputs.

        Raises
        ------
        ModelError
            If the network does not take these inputs, or fails on them.
        """
        with _as_model_error(inputs):
            return self._network.run(inputs)

    def run_all(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Every output of the graph, in its order; otherwise as `run`."""
        with _as_model_error(inputs):
            return self._network.run_all(inputs)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a Session belongs to its process. Pickle the Model.")


@contextlib.contextmanager
def _as_model_error(inputs: Mapping[str, NDArray[Any]]) -> Iterator[None]:
    try:
        yield
    except EmCodecError:
        raise
    except Exception as error:  # each backend has its own kinds
        shapes = ", ".join(f"{name} {value.dtype} {value.shape}" for name, value in inputs.items())
        raise ModelError(f"the network failed on {shapes}: {error}") from error


class OnnxRuntimeNetwork:
    """An ONNX Runtime session on the CPU or, where asked and possible, on CUDA."""

    def __init__(self, data: bytes, provider: str, threads: int) -> None:
        runtime = import_onnxruntime()
        available = list(runtime.get_available_providers())
        if provider == "cuda" and _CUDA not in available:
            raise _no_cuda(available)
        self._session: Any = None
        if provider != "cpu" and _CUDA in available:
            self._session = _open(runtime, data, threads, [(_CUDA, _CUDA_SETTINGS), _CPU])
            # An installed CUDA build falls back without an error where driver or libraries are absent.
            if self._session.get_providers()[0] != _CUDA:
                if provider == "cuda":
                    raise _no_cuda(self._session.get_providers())
                self._session = None
        if self._session is None:
            self._session = _open(runtime, data, threads, [_CPU])
        self.provider = "cuda" if self._session.get_providers()[0] == _CUDA else "cpu"

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """First output of the graph."""
        return self.run_all(inputs)[0]

    def run_all(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Every output of the graph, in its order."""
        return [np.asarray(output) for output in self._session.run(None, dict(inputs))]


def import_onnxruntime() -> Any:
    """The ``onnxruntime`` module; MissingExtraError where it is absent."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("running a model", extra="cpu") from error
    return onnxruntime


def _open(runtime: Any, data: bytes, threads: int, providers: list[Any]) -> Any:
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    # spinning costs a quarter more CPU time in workers and gains no wall time
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
    settings.log_severity_level = _ERRORS_ONLY if providers == [_CPU] else _SILENT
    try:
        if providers == [_CPU]:
            return runtime.InferenceSession(data, settings, providers=providers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a provider that falls back warns; the caller looks at the outcome
            return runtime.InferenceSession(data, settings, providers=providers)
    except Exception as error:  # the library's kinds share no parent but this
        raise ModelError(f"ONNX Runtime refuses the model: {error}") from error


def _no_cuda(available: list[str]) -> RuntimeUnavailableError:
    return RuntimeUnavailableError(
        f"provider 'cuda' asked for, ONNX Runtime offers {', '.join(available)}. Put onnxruntime-gpu in place of "
        "onnxruntime (pip uninstall onnxruntime; pip install 'zarr_emcodec[gpu]') on a machine with a CUDA driver, or "
        "use provider='auto'.",
        asked="cuda",
        available=available,
    )


_sessions: dict[tuple[str, str, str, int], Session] = {}
_lock = threading.Lock()


def open_session(data: bytes, sha256: str, options: Options) -> Session:
    """A running network, from the process's cache where it is there.

    Parameters
    ----------
    data : bytes
        ONNX file; its operators are checked before a runtime sees it.
    sha256 : str
        Of `data`, hex; the caller has checked it.
    options : Options
        Backend, provider, threads.

    Raises
    ------
    ModelError
        If the file holds what `check_onnx` refuses, or the backend cannot load it.
    RuntimeUnavailableError
        If ``provider="cuda"`` and there is none.
    MissingExtraError
        If the backend is not installed.
    """
    key = (sha256, options.backend, options.provider, options.threads)
    session = _sessions.get(key)
    if session is None:
        with _lock:  # opening costs milliseconds, and two threads must not both do it
            session = _sessions.get(key)
            if session is None:
                check_onnx(data)
                session = _sessions[key] = Session(_network(data, options), options.backend)
    return session


def _network(data: bytes, options: Options) -> Network:
    if options.backend == "torch":
        from zarr_emcodec.runtime.torch_backend import TorchNetwork

        return TorchNetwork(data, options.provider, options.threads)
    return OnnxRuntimeNetwork(data, options.provider, options.threads)


def _after_fork() -> None:
    global _sessions, _lock
    # The parent's sessions have thread pools that do not exist here: destroying one crashes or waits for ever. One
    # reference too many keeps them.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_sessions))
    _sessions = {}
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
