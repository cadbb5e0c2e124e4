"""Sessions: cached, thread-safe, honest about the device, new in every child."""

from __future__ import annotations

import gc
import hashlib
import os
import pickle
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="needs onnxruntime")
import onnxruntime as ort

from tests.runtime.tiny_model import decoder_onnx, some_symbols
from zarr_emcodec.errors import MissingExtraError, ModelError, RuntimeUnavailableError
from zarr_emcodec.runtime import Options, open_session, session

if TYPE_CHECKING:
    from collections.abc import Iterator

HAS_CUDA = "CUDAExecutionProvider" in ort.get_available_providers()


def opened(seed: int = 0, **words: Any) -> session.Session:
    data = decoder_onnx(seed)
    return open_session(data, hashlib.sha256(data).hexdigest(), Options(**words))


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(session, "_sessions", {})
    yield
    gc.collect()


def test_one_session_per_file_and_setting() -> None:
    assert opened() is opened()
    assert opened() is not opened(threads=2)
    assert opened() is not opened(seed=1)
    assert opened().backend == "onnxruntime"


def test_threads_that_open_together_get_one_session(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    plain = session._network

    def slow(data: bytes, options: Options) -> session.Network:
        made.append(1)
        return plain(data, options)

    monkeypatch.setattr(session, "_network", slow)
    start = threading.Barrier(8)
    got: list[session.Session] = []

    def work() -> None:
        start.wait()
        got.append(opened())

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(made) == 1
    assert len({id(one) for one in got}) == 1


def test_thread_count_does_not_change_the_result() -> None:
    results = [opened(threads=n).run(some_symbols(4, 32)) for n in (1, 2, 3)]
    assert all(np.array_equal(results[0], other) for other in results)


@pytest.mark.skipif(HAS_CUDA, reason="ONNX Runtime offers CUDA here")
def test_cuda_that_is_not_offered_is_a_clear_error() -> None:
    with pytest.raises(RuntimeUnavailableError, match="onnxruntime-gpu") as caught:
        opened(provider="cuda")
    assert caught.value.asked == "cuda"
    assert "CPUExecutionProvider" in caught.value.available
    assert opened(provider="auto").provider == "cpu"


class Fallback:
    """An ONNX Runtime that offers CUDA, as a wheel does on a machine without a driver, and then gives the CPU."""

    SessionOptions = ort.SessionOptions

    @staticmethod
    def get_available_providers() -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    @staticmethod
    def InferenceSession(data: bytes, settings: Any, providers: list[Any]) -> Any:  # noqa: N802
        return ort.InferenceSession(data, settings, providers=["CPUExecutionProvider"])


def test_cuda_that_does_not_load_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "import_onnxruntime", lambda: Fallback)
    with pytest.raises(RuntimeUnavailableError) as caught:
        opened(provider="cuda")
    assert caught.value.available == ("CPUExecutionProvider",)
    assert opened(provider="auto").provider == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="needs onnxruntime-gpu and a CUDA device")
def test_cuda_agrees_with_the_cpu() -> None:
    fast = opened(provider="cuda")
    assert fast.provider == "cuda"
    difference = fast.run(some_symbols(4, 32)) - opened(provider="cpu").run(some_symbols(4, 32))
    assert float(np.abs(difference).max()) < 1e-3


def test_without_onnxruntime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"zarr_emcodec\[cpu\]") as caught:
        opened()
    assert caught.value.extra == "cpu"


def test_a_file_that_onnxruntime_refuses_is_a_model_error() -> None:
    data = decoder_onnx(0).replace(b"soften", b"softer", 1)  # a weight that no longer has its name
    with pytest.raises(ModelError, match="ONNX Runtime refuses"):
        open_session(data, "x", Options())


def test_sessions_do_not_pickle() -> None:
    with pytest.raises(TypeError, match="Pickle the Model"):
        pickle.dumps(opened())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("threads", [1, 4])
def test_a_child_opens_its_own_even_while_the_lock_is_held(threads: int) -> None:
    before = opened(threads=threads)
    expected = before.run(some_symbols())
    with session._lock:  # as another thread of the parent may
        child = os.fork()
        if child == 0:
            code = 1
            try:
                gc.collect()
                after = opened(threads=threads)
                code = 0 if after is not before and np.array_equal(after.run(some_symbols()), expected) else 2
            finally:
                os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert opened(threads=threads) is before
