"""A machine of the CUDA executor without a GPU: all is done at once and in order. benchmarks/gpu tries itself on it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from openbei.engine.machine import Launch


class HostMachine:
    """The CPU in the place of a GPU: everything is done when it is launched."""

    name = "CPU (PyTorch)"
    location = "cpu"
    capability = (9, 0)

    def stream(self) -> "HostStream":
        """Nothing but the order of calls."""
        return HostStream()

    def pinned(self, size: int, dtype: torch.dtype) -> Tensor:
        """Plain memory (size,)."""
        return torch.empty(size, dtype=dtype)

    def free_bytes(self) -> int:
        """More than anything asks for."""
        return 1 << 62


class HostStream:
    """Work that is done at once."""

    @contextmanager
    def use(self) -> Iterator[None]:
        """Without gradients, as on a GPU."""
        with torch.inference_mode():
            yield

    def record(self, launch: Launch) -> tuple[Callable[[], None], Tensor]:
        """Launch again and put the answer where the first one lies, as the replay of a graph does."""
        with self.use():
            answer = launch()

        def replay() -> None:
            answer.copy_(launch())

        return replay, answer

    def mark(self) -> Callable[[], None]:
        """Nothing to wait for."""
        return lambda: None
