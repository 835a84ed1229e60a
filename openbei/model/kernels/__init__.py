"""Fused operations for a GPU, one module each: Triton kernels on tensors, which know no Batch and no weight's name.

The rules of this folder. Every module holds a Triton kernel, its plain twin (a few lines of torch that define it, in
the same precision: float32 inside, rounded where the kernel rounds) and one public function that gives CUDA tensors to
the kernel and CPU tensors to the twin. A launch allocates nothing but its outputs, reads nothing back and asks nothing
of the device, so that a CUDA graph can capture it. Sizes that change from batch to batch are never specialised on.
Block sizes come from small tables: nothing is tuned, and so nothing compiles, while requests wait. Rows of a matrix
start at multiples of 16 bytes; its last axis is contiguous, its row stride may exceed its width.

Modules take triton and tl from here: without Triton their kernels are plain functions that nobody calls.
"""

from collections.abc import Callable
from typing import Any

try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
except ImportError:
    HAS_TRITON = False

    class _Absent:
        """Enough of triton and tl to define a kernel."""

        def jit(self, fn: Callable[..., Any] | None = None, **_: Any) -> Any:
            return (lambda function: function) if fn is None else fn

        def constexpr(self, value: Any = None) -> Any:
            return value

    triton = tl = _Absent()

__all__ = ["HAS_TRITON", "tl", "triton"]
