"""Run Triton kernels on CPU tensors, in this process: Triton's interpreter, without its environment variable.

Truthful for float32 and float16, loads, stores, masks, dots and reductions. Wrong for bfloat16 dots, for bfloat16
stores (they truncate) and for casts to e4m3; races and missing barriers never show.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from triton.runtime import JITFunction
from triton.runtime.interpreter import InterpretedFunction, _patch_lang


@contextmanager
def interpreted() -> Iterator[None]:
    """Inside it kernel[grid](...) runs in the interpreter, and so do the @triton.jit functions that it calls."""
    with (
        patch.object(JITFunction, "run", _run),
        patch.object(JITFunction, "__call__", _call),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Conversion of an array with ndim > 0", DeprecationWarning)  # a loop's bounds
        yield


def _run(self: JITFunction, *args: object, grid: tuple[int, ...], warmup: bool, **kwargs: object) -> None:
    InterpretedFunction(self.fn).run(*args, grid=grid, warmup=warmup, **kwargs)


def _call(self: JITFunction, *args: object, **kwargs: object) -> object:
    """A nested function; what InterpretedFunction does, but leaving triton.language as it was found."""
    scope = _patch_lang(self.fn)
    try:
        return InterpretedFunction(self.fn).rewrite()(*args, **kwargs)
    finally:
        scope.restore()
