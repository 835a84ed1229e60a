"""A GPU that is not there: tensors of PyTorch's fake mode say they are on it, and launches are noted, not run.

Fake tensors have shapes, dtypes and devices and no values; an operation on two devices raises, as do the checks that
PyTorch makes for CUDA alone, such as those of an FP8 product.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from triton.runtime import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

DEVICE = "cuda:0"
MAX_GRID = (2**31 - 1, 65535, 65535)
Key = tuple[Any, ...]


@contextmanager
def gpu() -> Iterator[set[Key]]:
    """Inside it cuda:0 exists -> what was compiled of Triton's kernels: one key for each kind of call."""
    compiled: set[Key] = set()

    def run(kernel: JITFunction, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> None:
        assert all(0 < size <= most for size, most in zip(grid, MAX_GRID, strict=False)), grid
        values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        parameters = tuple(_specialised(values.pop(each.name), each) for each in kernel.params)
        compiled.add((kernel.fn.__name__, *parameters, *sorted(values.items(), key=str)))

    with ExitStack() as stack:
        stack.enter_context(patch.object(JITFunction, "run", run))
        # Both ask PyTorch's CUDA library which device is current, and a build for CPUs has none.
        stack.enter_context(patch.object(FakeTensor, "__getitem__", _sliced, create=True))
        stack.enter_context(patch.object(FakeTensor, "copy_", _copied, create=True))
        properties = SimpleNamespace(multi_processor_count=132)
        stack.enter_context(patch("torch.cuda.get_device_properties", lambda _: properties))
        stack.enter_context(FakeTensorMode())
        stack.enter_context(torch.inference_mode())
        yield compiled


def _specialised(value: Any, parameter: Any) -> Any:
    """What Triton looks at when it decides whether it has compiled for an argument like this one."""
    if isinstance(value, TensorDescriptor):
        _check(value.base)
        return value.base.dtype, tuple(value.block_shape)
    if isinstance(value, Tensor):
        _check(value)
        return value.dtype, value.storage_offset() * value.itemsize % 16 == 0
    if parameter.is_constexpr or value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, float):
        return float
    special = not parameter.do_not_specialize
    return special and value == 1, special and value % 16 == 0


def _check(tensor: Tensor) -> None:
    assert tensor.device == torch.device(DEVICE)
    assert tensor.stride(-1) == 1 or tensor.shape[-1] == 1
    assert tensor.numel() > 0


def _sliced(tensor: Tensor, index: Any) -> Tensor:
    for dim, part in enumerate(index if isinstance(index, tuple) else (index,)):
        if part is None:
            tensor = tensor.unsqueeze(dim)
        else:
            assert isinstance(part, slice)
            tensor = torch.ops.aten.slice(tensor, dim, part.start, part.stop, part.step or 1)
    return tensor


def _copied(tensor: Tensor, source: Tensor) -> Tensor:
    assert tensor.device == source.device
    assert torch.broadcast_shapes(tensor.shape, source.shape) == tensor.shape
    return tensor
