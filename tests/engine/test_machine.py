"""What the machine of a GPU asks of PyTorch, and in which order: its CUDA calls are written down, and answered."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from openbei.engine.machine import WARM_UPS, CudaMachine


class Cuda:
    """torch.cuda, as far as it is asked. said: every call, in order."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def Stream(self, device: str) -> "Stream":  # noqa: N802 - PyTorch's name
        return Stream(self, device)

    def Event(self) -> "Event":  # noqa: N802
        return Event(self)

    def CUDAGraph(self) -> "Graph":  # noqa: N802
        return Graph(self)

    def current_stream(self, device: str) -> str:
        return f"default of {device}"

    def graph_pool_handle(self) -> str:
        return f"pool {len(self.said)}"

    @contextmanager
    def stream(self, stream: "Stream") -> Iterator[None]:
        self.said.append(("enter", stream))
        yield
        self.said.append(("leave", stream))

    @contextmanager
    def graph(self, graph: "Graph", pool: str, stream: "Stream", capture_error_mode: str) -> Iterator[None]:
        self.said.append(("capture", graph, pool, stream, capture_error_mode))
        yield
        self.said.append("captured")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        answers = {"get_device_name": "a GPU", "get_device_capability": (9, 0), "mem_get_info": (5, 9)}

        def call(*given: Any) -> Any:
            self.said.append((name, *given))
            return answers.get(name)

        return call


class Part:
    def __init__(self, cuda: Cuda, *of: Any) -> None:
        self.cuda, self.of = cuda, of

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *given: self.cuda.said.append((self, name, *given))


class Stream(Part): ...


class Event(Part): ...


class Graph(Part): ...


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    made = Cuda()
    monkeypatch.setattr(torch, "cuda", made)
    return made


def test_a_launch_is_warmed_up_and_recorded_on_its_own_stream_and_pool(cuda: Cuda) -> None:
    machine = CudaMachine(3)
    assert (machine.name, machine.location, machine.capability) == ("a GPU", "cuda:3", (9, 0))
    assert ("set_device", 3) in cuda.said
    stream = machine.stream()
    assert isinstance(cuda.said[-1][0], Stream)
    assert cuda.said[-1][1:] == ("wait_stream", "default of cuda:3")
    cuda.said.clear()

    def launch() -> torch.Tensor:
        assert torch.is_inference_mode_enabled()
        cuda.said.append("launch")
        return torch.zeros(2)

    replay, answer = stream.record(launch)
    own = cuda.said[0][1]
    capture = cuda.said[-3]
    assert cuda.said[: WARM_UPS + 3] == [("enter", own), *["launch"] * WARM_UPS, ("leave", own), (own, "synchronize")]
    assert capture[0] == "capture"
    assert capture[2:] == (stream._pool, own, "thread_local")
    assert cuda.said[-2:] == ["launch", "captured"]
    assert answer.tolist() == [0, 0]
    replay()
    assert cuda.said[-1] == (capture[1], "replay")


def test_waiting_is_for_what_was_launched_until_then(cuda: Cuda) -> None:
    stream = CudaMachine().stream()
    own = cuda.said[-1][0]
    wait = stream.mark()
    event = cuda.said[-1][0]
    assert cuda.said[-1] == (event, "record", own)
    wait()
    assert cuda.said[-1] == (event, "synchronize")


def test_two_streams_share_no_pool(cuda: Cuda) -> None:
    machine = CudaMachine()
    assert machine.stream()._pool != machine.stream()._pool


def test_memory_is_free_when_caches_are_empty(cuda: Cuda) -> None:
    assert CudaMachine().free_bytes() == 5
    assert cuda.said[-2:] == [("empty_cache",), ("mem_get_info", "cuda:0")]
