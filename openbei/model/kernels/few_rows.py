"""x Wᵀ + b for few tokens, where reading W is all that costs: an option beside linear and linear_fp8, chosen by none.

Weights are the tall operand of the tensor cores, so that 16 tokens fill a tile. The depth is cut into slices, one a
program, until every multiprocessor reads; the last program of a tile to finish adds the slices up, always in the same
order, so that the result does not depend on which one it was.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor

from openbei.model.kernels import tl, triton
from openbei.model.kernels.linear import check_fp8, linear_fp8_twin
from openbei.model.kernels.quantize import Quantized

MAX_TOKENS = 64
COLUMNS = 64  # of the result, in one program: the least that wgmma takes
STEP_BYTES = 128  # of a row, read in one step
PIPELINE_BYTES = 72 * 1024  # read ahead in one program: three of them fit one multiprocessor
PROGRAMS = 264  # to aim at: two for each of 132 multiprocessors
MIN_STEPS = 4  # of a slice


class Workspace(NamedTuple):
    """What products of one stream share: partial sums float32, and for each tile a count int32 that is 0 in between."""

    sums: Tensor
    counts: Tensor


class Cut(NamedTuple):
    """How the depth is cut: slices, values of each, values of a step, steps in flight."""

    slices: int
    size: int
    depth: int
    num_stages: int


def workspace(device: torch.device | str) -> Workspace:
    """Room for any product: only those of PROGRAMS or fewer are cut."""
    sums = torch.empty(PROGRAMS * COLUMNS * MAX_TOKENS, dtype=torch.float32, device=device)
    return Workspace(sums, torch.zeros(PROGRAMS, dtype=torch.int32, device=device))


def few_rows(
    x: Tensor | Quantized, weight: Tensor | Quantized, bias: Tensor | None, out_dtype: torch.dtype, room: Workspace
) -> Tensor:
    """x (T, C) contiguous, weight (N, C), bias (N,) or None -> (T, N) of out_dtype; T is at most MAX_TOKENS.

    x, weight and bias in 16 bit, or x and weight in FP8 with their scales. Summed in float32, rounded once.
    Raises ValueError for more tokens, for float32, for C that is no multiple of 16, and as linear_fp8 does.
    """
    if isinstance(x, Quantized) and isinstance(weight, Quantized):
        check_fp8(x, weight, bias, out_dtype)
    elif isinstance(x, Quantized) or isinstance(weight, Quantized) or x.dtype == torch.float32:
        raise ValueError("a product for few tokens takes rows and weight in 16 bit, or both in FP8")
    num_tokens, depth = (x.values if isinstance(x, Quantized) else x).shape
    if num_tokens > MAX_TOKENS or depth % 16:
        raise ValueError(
            f"a product for few tokens takes up to {MAX_TOKENS}, of a multiple of 16 values, not {num_tokens} x {depth}"
        )
    run = _launch if room.sums.is_cuda else few_rows_twin
    return run(x, weight, bias, out_dtype, room)


def few_rows_twin(
    x: Tensor | Quantized, weight: Tensor | Quantized, bias: Tensor | None, out_dtype: torch.dtype, _: Workspace
) -> Tensor:
    """The definition of few_rows."""
    if isinstance(x, Quantized) and isinstance(weight, Quantized):
        return linear_fp8_twin(x, weight, bias, out_dtype)
    assert isinstance(x, Tensor)
    assert isinstance(weight, Tensor)
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(out_dtype)


def cut(depth: int, width: int, num_tokens: int, item_bytes: int) -> Cut:
    """C, N, T rounded up to a power of two, and the bytes of a value -> how the depth is cut."""
    step = STEP_BYTES // item_bytes
    num_steps, num_tiles = -(-depth // step), -(-width // COLUMNS)
    slices = max(1, min(PROGRAMS // num_tiles, num_steps // MIN_STEPS))
    size = -(-num_steps // slices) * step
    return Cut(-(-depth // size), size, step, PIPELINE_BYTES // ((COLUMNS + num_tokens) * STEP_BYTES))


def _launch(
    x: Tensor | Quantized, weight: Tensor | Quantized, bias: Tensor | None, out_dtype: torch.dtype, room: Workspace
) -> Tensor:
    from triton.tools.tensor_descriptor import TensorDescriptor

    rows, x_scale = x if isinstance(x, Quantized) else (x, None)
    columns, weight_scale = weight if isinstance(weight, Quantized) else (weight, None)
    (num_tokens, depth), width = rows.shape, len(columns)
    tokens = max(16, triton.next_power_of_2(num_tokens))
    slices = cut(depth, width, tokens, rows.element_size())
    out = torch.empty((num_tokens, width), dtype=out_dtype, device=rows.device)
    _few_rows_kernel[(triton.cdiv(width, COLUMNS), slices.slices)](
        TensorDescriptor.from_tensor(rows, [tokens, slices.depth]),
        TensorDescriptor.from_tensor(columns, [COLUMNS, slices.depth]),
        out,
        x_scale,
        weight_scale,
        bias,
        *room,
        num_tokens,
        N=width,
        SLICES=slices.slices,
        SIZE=slices.size,
        DEPTH=slices.depth,
        COLUMNS=COLUMNS,
        TOKENS=tokens,
        num_warps=4,
        num_stages=slices.num_stages,
    )
    return out


@triton.jit(do_not_specialize=["T"])
def _few_rows_kernel(
    x,
    weight,
    out_ptr,
    x_scale_ptr,
    weight_scale_ptr,
    bias_ptr,
    sums_ptr,
    counts_ptr,
    T,
    N: tl.constexpr,
    SLICES: tl.constexpr,
    SIZE: tl.constexpr,
    DEPTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    tile, part = tl.program_id(0), tl.program_id(1)
    sums = tl.zeros((COLUMNS, TOKENS), tl.float32)
    for step in range(0, SIZE, DEPTH):
        depth = part * SIZE + step  # beyond the last value TMA reads zeros
        sums = tl.dot(weight.load([tile * COLUMNS, depth]), x.load([0, depth]).T, sums)
    if SLICES == 1:
        _finish(sums, out_ptr, x_scale_ptr, weight_scale_ptr, bias_ptr, tile, T, N, COLUMNS, TOKENS)
    else:
        cells = tl.arange(0, COLUMNS)[:, None] * TOKENS + tl.arange(0, TOKENS)[None, :]
        cells += tile * (SLICES * COLUMNS * TOKENS)
        tl.store(sums_ptr + part * (COLUMNS * TOKENS) + cells, sums)
        tl.debug_barrier()  # all threads have written before one of them says so
        if tl.atomic_add(counts_ptr + tile, 1, sem="acq_rel") == SLICES - 1:
            sums = tl.zeros((COLUMNS, TOKENS), tl.float32)
            for other in range(SLICES):
                sums += tl.load(sums_ptr + other * (COLUMNS * TOKENS) + cells, cache_modifier=".cg")
            _finish(sums, out_ptr, x_scale_ptr, weight_scale_ptr, bias_ptr, tile, T, N, COLUMNS, TOKENS)
            tl.store(counts_ptr + tile, 0)


@triton.jit
def _finish(
    sums,
    out_ptr,
    x_scale_ptr,
    weight_scale_ptr,
    bias_ptr,
    tile,
    T,
    N: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    columns, tokens = tile * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, TOKENS)
    if x_scale_ptr is not None:
        sums *= tl.load(x_scale_ptr + tokens, mask=tokens < T, other=0.0)[None, :]
        sums *= tl.load(weight_scale_ptr + columns, mask=columns < N, other=0.0)[:, None]
    if bias_ptr is not None:
        sums += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)[:, None]
    real = (columns < N)[:, None] & (tokens < T)[None, :]
    tl.store(out_ptr + tokens[None, :] * N + columns[:, None], sums.to(out_ptr.dtype.element_ty), mask=real)
