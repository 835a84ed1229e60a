"""States of tokens to one row a sequence: the first token's, the last one's, the mean, or the maximum by column."""

import itertools

import torch
from torch import Tensor

from openbei.model.kernels import tl, triton
from openbei.model.spec import Pooling

BLOCK_ROWS, BLOCK_COLUMNS = 64, 64  # of several rows: narrow columns, so that one long sequence still has many programs


def pool(x: Tensor, cu_seqlens: Tensor, kind: Pooling) -> Tensor:
    """(T, C), int32 (B + 1,) -> float32 (B, C), summed in float32 and not rounded; zeros for an empty sequence.

    float32 whatever x is: a mean of 16-bit rows is known better than to 16 bits.
    """
    return (_launch if x.is_cuda else pool_twin)(x, cu_seqlens, kind)


def pool_twin(x: Tensor, cu_seqlens: Tensor, kind: Pooling) -> Tensor:
    """The definition of pool."""
    out = torch.zeros((len(cu_seqlens) - 1, x.shape[1]), dtype=torch.float32, device=x.device)
    for row, (begin, end) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
        if begin < end:
            first, last = _bounds(begin, end, kind)
            rows = x[first:last].float()
            out[row] = rows.amax(0) if kind == "max" else rows.mean(0)
    return out


def _bounds(begin: int, end: int, kind: Pooling) -> tuple[int, int]:
    return {"cls": (begin, begin + 1), "last_token": (end - 1, end)}.get(kind, (begin, end))


def _launch(x: Tensor, cu_seqlens: Tensor, kind: Pooling) -> Tensor:
    num_sequences, width = len(cu_seqlens) - 1, x.shape[1]
    out = torch.empty((num_sequences, width), dtype=torch.float32, device=x.device)
    rows = BLOCK_ROWS if kind in ("mean", "max") else 1
    grid = (num_sequences, triton.cdiv(width, BLOCK_COLUMNS))
    _pool_kernel[grid](x, cu_seqlens, out, x.stride(0), width, kind, rows, BLOCK_COLUMNS, num_warps=4)
    return out


@triton.jit
def _pool_kernel(
    x_ptr,
    cu_ptr,
    out_ptr,
    stride,
    width,
    KIND: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    sequence = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    begin = tl.load(cu_ptr + sequence)
    end = tl.load(cu_ptr + sequence + 1)
    if KIND == "cls":
        end = tl.minimum(begin + 1, end)
    elif KIND == "last_token":
        begin = tl.maximum(end - 1, begin)
    nothing: tl.constexpr = float("-inf") if KIND == "max" else 0.0
    folded = tl.full((BLOCK_COLUMNS,), nothing, tl.float32)
    for first in range(begin, end, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        inside = (row < end)[:, None] & (column < width)[None, :]
        block = tl.load(x_ptr + row.to(tl.int64)[:, None] * stride + column[None, :], inside, other=nothing)
        block = block.to(tl.float32)
        folded = tl.maximum(folded, tl.max(block, 0)) if KIND == "max" else folded + tl.sum(block, 0)
    folded = tl.where(begin < end, folded, 0.0) if KIND == "max" else folded / tl.maximum(end - begin, 1)
    tl.store(out_ptr + sequence.to(tl.int64) * width + column, folded, column < width)
