"""States to one row a sequence: the twin against the definition, the kernel against the twin, and its compiled code."""

import numpy as np
import pytest
import torch
from torch import Tensor

from openbei.model.kernels import pool as module
from openbei.model.kernels.pool import pool, pool_twin
from openbei.model.ops.numpy import NumpyOps
from openbei.model.spec import Batch, Pooling
from tests.model.kernels.aot import compile_launch
from tests.model.kernels.interpret import interpreted

LENGTHS = (1, 64, 65, 130, 7)
KINDS = pytest.mark.parametrize("kind", ["cls", "mean", "last_token", "max"])


def states(width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Strided rows, then NaN that belongs to no sequence; offsets that end with two empty sequences."""
    rng = torch.Generator().manual_seed(0)
    cu_seqlens = np.cumsum((0, *LENGTHS, 0, 0), dtype=np.int32)
    x = torch.randn(int(cu_seqlens[-1]) + 3, width + 16, generator=rng)[:, :width]
    x[:, 1] = -x[:, 1].abs()  # its largest value is below the 0 that masked ones might be
    x[cu_seqlens[-1] :] = torch.nan
    return x.to(dtype), torch.from_numpy(cu_seqlens)


@KINDS
def test_the_twin_is_the_definition(kind: Pooling) -> None:
    x, cu_seqlens = states(24, torch.float32)
    nothing = np.zeros(0, np.int32)
    ops = NumpyOps(Batch(nothing, nothing, nothing, cu_seqlens[: len(LENGTHS) + 1].numpy()), spec=None)
    got = pool(x, cu_seqlens, kind)
    torch.testing.assert_close(got[: len(LENGTHS)], torch.from_numpy(ops.pool(x.numpy(), kind)), atol=1e-6, rtol=0)
    assert not got[len(LENGTHS) :].any()


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_kernel_equals_its_twin(kind: Pooling, dtype: torch.dtype) -> None:
    x, cu_seqlens = states(80, dtype)
    with interpreted():
        got = module._launch(x, cu_seqlens, kind)
    torch.testing.assert_close(got, pool_twin(x, cu_seqlens, kind), atol=1e-6, rtol=0)
    assert got.dtype == torch.float32


@pytest.mark.cuda
@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_on_a_gpu(kind: Pooling, dtype: torch.dtype, device: torch.device) -> None:
    x, cu_seqlens = (tensor.to(device) for tensor in states(768, dtype))
    torch.testing.assert_close(pool(x, cu_seqlens, kind), pool_twin(x, cu_seqlens, kind), atol=1e-6, rtol=0)


@KINDS
def test_it_compiles_without_a_spill(kind: Pooling) -> None:
    x = torch.empty((512, 1024), dtype=torch.bfloat16, device="meta")
    built = compile_launch(lambda: module._launch(x, torch.empty(9, dtype=torch.int32, device="meta"), kind))
    built.check(max_registers=64)
    if kind in ("mean", "max"):
        assert built.opcodes["LDG.E.128"] > 0
