"""What the CUDA executor asks of a device: memory, streams, recorded launches; and a GPU, which gives them.

Owns torch's streams, graphs and events; never touches models, batches or requests.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor

WARM_UPS = 3  # Triton compiles, cuBLASLt chooses and allocates: none of that may happen while a graph is recorded

Launch = Callable[[], Tensor]


class Stream(Protocol):
    """Work that a device does in order."""

    def use(self) -> AbstractContextManager[None]:
        """Whatever is launched inside goes to this stream."""
        ...

    def record(self, launch: Launch) -> tuple[Callable[[], None], Tensor]:
        """What launches work -> a call that repeats all of it at once, and the tensor where its answer then lies."""
        ...

    def mark(self) -> Callable[[], None]:
        """A call that blocks until everything launched so far is done."""
        ...


class Machine(Protocol):
    """One device. name: as its maker calls it; location: as PyTorch calls it; capability: CUDA's number of the chip."""

    name: str
    location: str
    capability: tuple[int, int]

    def stream(self) -> Stream:
        """A new stream."""
        ...

    def pinned(self, size: int, dtype: torch.dtype) -> Tensor:
        """Memory of the host (size,) that the device copies from and to by itself."""
        ...

    def free_bytes(self) -> int:
        """Memory of the device that nothing uses, after giving back what is only kept in reserve."""
        ...


class CudaMachine:
    """An NVIDIA GPU, by its number."""

    def __init__(self, number: int = 0) -> None:
        self.location = f"cuda:{number}"
        torch.cuda.set_device(number)  # of this thread: what names no device, as recording does in part, means this one
        # Partial sums of a product are added in float32, and not in 16 bit.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        self.name = torch.cuda.get_device_name(number)
        self.capability = torch.cuda.get_device_capability(number)

    def stream(self) -> "CudaStream":
        """A new stream with a graph pool of its own, for the graphs of two streams may run at once."""
        return CudaStream(self.location)

    def pinned(self, size: int, dtype: torch.dtype) -> Tensor:
        """Page-locked memory (size,)."""
        return torch.empty(size, dtype=dtype, pin_memory=True)

    def free_bytes(self) -> int:
        """As the driver says, caches emptied."""
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self.location)[0])


def give_back_cached() -> None:
    """What PyTorch keeps of the device in reserve is free for others."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


class CudaStream:
    """A CUDA stream and the memory pool that its graphs share: they never run at the same time.

    It comes after all that the making thread has launched until now, such as the casts of weights.
    """

    def __init__(self, location: str) -> None:
        self._stream = torch.cuda.Stream(location)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(location))  # it would not wait by itself
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def use(self) -> Iterator[None]:
        """The current stream, and its device, of this thread."""
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            yield

    def record(self, launch: Launch) -> tuple[Callable[[], None], Tensor]:
        """A CUDA graph. Its answer is kept alive, so no other graph of the pool is given that memory."""
        with self.use():
            for _ in range(WARM_UPS):
                launch()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread that allocates device memory meanwhile would end a global recording.
        recording = torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local")
        with torch.inference_mode(), recording:
            answer = launch()
        return graph.replay, answer

    def mark(self) -> Callable[[], None]:
        """An event; waiting for it lets other threads run."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event.synchronize
