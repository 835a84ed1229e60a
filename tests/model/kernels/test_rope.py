"""Rotary positions in place: the twin against the definition, the kernel against the twin, and what it compiles to."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from openbei.model.kernels import rope as module
from openbei.model.kernels.rope import Angles, HeadNorms, rope_, rope_twin_
from openbei.model.ops.numpy import NumpyOps
from openbei.model.positions import cos_sin
from openbei.model.spec import Rope, pack
from tests.model.kernels.aot import compile_launch
from tests.model.kernels.interpret import interpreted

LENGTHS = (1, 7, 12)
NUM_TOKENS, LONGEST = sum(LENGTHS), max(LENGTHS)
HEADS = pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 2, 16), (3, 1, 96), (2, 2, 64)])


ROPE = Rope(theta=100.0)


def spec(head_dim: int) -> SimpleNamespace:
    """What of a ModelSpec matters here."""
    return SimpleNamespace(head_dim=head_dim, rope=ROPE, local_rope=None, position_offset=0, num_segments=0)


def angles(head_dim: int) -> Angles:
    """The tables of positions 0 to LONGEST, and each token's row."""
    cos, sin = cos_sin(ROPE, head_dim, pack(spec(head_dim), [[5] * LONGEST]))
    positions = torch.cat([torch.arange(n, dtype=torch.int32) for n in LENGTHS])
    return Angles(torch.from_numpy(cos), torch.from_numpy(sin), positions)


def norms(head_dim: int) -> HeadNorms:
    """Weights about 1."""
    rng = torch.Generator().manual_seed(1)
    q, k = 1 + 0.2 * torch.randn(2, head_dim, generator=rng)
    return HeadNorms(q, k, 1e-6)


def joined(num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A joined product, and its q and k: views."""
    rng = torch.Generator().manual_seed(0)
    widths = [heads * head_dim for heads in (num_heads, num_kv_heads, num_kv_heads)]
    product = torch.randn(NUM_TOKENS, sum(widths), generator=rng).to(dtype)
    return product, *product.split(widths, dim=1)[:2]


@HEADS
def test_the_twin_is_the_definition(num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    product, q, k = joined(num_heads, num_kv_heads, head_dim, torch.float32)
    ops = NumpyOps(pack(spec(head_dim), [[5] * n for n in LENGTHS]), spec(head_dim))
    want = product.clone()
    want[:, : q.shape[1]] = torch.from_numpy(ops.rope(q.numpy(), num_heads, local=False))
    want[:, q.shape[1] : q.shape[1] + k.shape[1]] = torch.from_numpy(ops.rope(k.numpy(), num_kv_heads, local=False))
    rope_(q, k, angles(head_dim))
    torch.testing.assert_close(product, want, atol=1e-6, rtol=0)  # v is as it was


@HEADS
def test_norms_come_first(num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    got, *slices = joined(num_heads, num_kv_heads, head_dim, torch.float32)
    want, *copies = joined(num_heads, num_kv_heads, head_dim, torch.float32)
    weights = norms(head_dim)
    for x, weight in zip(copies, weights, strict=False):
        heads = x.unflatten(1, (-1, head_dim))
        heads.copy_(torch.nn.functional.rms_norm(heads, (head_dim,), weight, weights.eps))
    rope_(*copies, angles(head_dim))
    rope_(*slices, angles(head_dim), weights)
    torch.testing.assert_close(got, want, atol=2e-6, rtol=0)


@HEADS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_kernel_with_norms_equals_its_twin(
    num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    got, *slices = joined(num_heads, num_kv_heads, head_dim, dtype)
    with interpreted():
        module._launch(*slices, angles(head_dim), norms(head_dim))
    want, *copies = joined(num_heads, num_kv_heads, head_dim, dtype)
    rope_twin_(*copies, angles(head_dim), norms(head_dim))
    # The sum of squares may come out another way: then a norm rounds to the next number.
    torch.testing.assert_close(got, want, atol=4 * torch.finfo(dtype).eps, rtol=torch.finfo(dtype).eps)


@HEADS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_kernel_equals_its_twin(num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    got, q, k = joined(num_heads, num_kv_heads, head_dim, dtype)
    with interpreted():
        module._launch(q, k, angles(head_dim))
    want, q, k = joined(num_heads, num_kv_heads, head_dim, dtype)
    rope_twin_(q, k, angles(head_dim))
    assert torch.equal(got, want)


@pytest.mark.cuda
@HEADS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("normed", [False, True])
def test_the_kernel_on_a_gpu(
    num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, normed: bool, device: torch.device
) -> None:
    product, *_ = joined(num_heads, num_kv_heads, head_dim, dtype)
    results = []
    for turn in (rope_, rope_twin_):
        copy = product.to(device, copy=True)
        turn(
            copy[:, : num_heads * head_dim],
            copy[:, num_heads * head_dim : (num_heads + num_kv_heads) * head_dim],
            Angles(*(x.to(device) for x in angles(head_dim))),
            HeadNorms(*(x.to(device) for x in norms(head_dim)[:2]), norms(head_dim).eps) if normed else None,
        )
        results.append(copy.float())
    got, want = results
    eps = torch.finfo(dtype).eps  # one step: a multiply-add is rounded once, not twice
    torch.testing.assert_close(got, want, atol=4 * eps if normed else 1e-6, rtol=eps)


@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(12, 12, 64), (32, 8, 128), (16, 8, 256)])
@pytest.mark.parametrize("normed", [False, True])
def test_it_compiles_to_wide_loads(num_heads: int, num_kv_heads: int, head_dim: int, normed: bool) -> None:
    widths = [heads * head_dim for heads in (num_heads, num_kv_heads, num_kv_heads)]
    q, k, _ = torch.empty((512, sum(widths)), dtype=torch.bfloat16, device="meta").split(widths, dim=1)
    table = torch.empty((512, head_dim // 2), device="meta")
    positions = torch.empty(512, dtype=torch.int32, device="meta")
    weight = torch.empty(head_dim, dtype=torch.bfloat16, device="meta")
    both = HeadNorms(weight, weight, 1e-6) if normed else None
    built = compile_launch(lambda: module._launch(q, k, Angles(table, table, positions), both))
    built.check(max_registers=64)
    assert built.opcodes["LDG.E.128"] > 0
    assert built.opcodes["STG.E.128"] > 0
