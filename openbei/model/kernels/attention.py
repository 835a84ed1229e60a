"""Attention inside packed sequences, by a flat list of query tiles: no padding, no maximum length, no empty programs.

One program is one tile (up to 64 or 128 queries of one sequence) of one head; it walks over the keys that any of its
queries sees, with the running softmax of FlashAttention (Dao 2023, section 3.1). What a sequence comes to does not
depend on its neighbours: blocks of keys are counted from its own first row. The tile list is made on the host.
"""

import itertools
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openbei.model.kernels import tl, triton
from openbei.model.ops import Attention
from openbei.model.positions import visible

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1.0e38)  # below every score, above -inf: the maximum of no keys, so that no difference is NaN


class Tiles(NamedTuple):
    """Query tiles, int32 (N,) each: the sequence, -1 for none; the first row, counted in the batch. rows: of one tile."""

    sequence: Tensor
    first_row: Tensor
    rows: int


class Blocks(NamedTuple):
    """How a kernel is compiled: keys a step, warps, stages of the load pipeline."""

    keys: int
    num_warps: int
    num_stages: int


# (head width, queries a tile) -> blocks, 16-bit; each compiles for sm_90 without a spill.
BLOCKS = {
    (32, 64): Blocks(64, 4, 3),
    (32, 128): Blocks(64, 8, 3),
    (64, 64): Blocks(64, 4, 3),
    (64, 128): Blocks(64, 8, 3),
    (128, 64): Blocks(64, 4, 2),
    (128, 128): Blocks(64, 8, 2),
    (256, 64): Blocks(32, 4, 2),
    (256, 128): Blocks(32, 8, 2),
}
FLOAT32_BLOCKS = Blocks(32, 8, 1)  # for tests: without tensor cores
MANY_TOKENS = 2048  # of a batch: from here on there are tiles enough to make them tall


def rows_per_tile(num_tokens: int) -> int:
    """Queries a tile has in a batch of num_tokens: 64, so that short batches reach all of the device, or 128."""
    return 64 if num_tokens < MANY_TOKENS else 128


def num_tiles(num_tokens: int, num_sequences: int, rows: int) -> int:
    """Tiles that any num_sequences sequences of num_tokens together can need."""
    return num_tokens // rows + num_sequences


def make_tiles(cu_seqlens: NDArray[np.int32], rows: int, size: int) -> NDArray[np.int32]:
    """Offsets (B + 1,) -> int32 (2, size): sequence and first row of every tile, then -1 up to size.

    Tiles of the longest sequences come first, so that no long one starts last. Raises ValueError if size is too small.
    """
    lengths = np.diff(cu_seqlens)
    counts = -(-lengths // rows)
    total = int(counts.sum())
    if total > size:
        raise ValueError(f"{total} attention tiles of {rows} rows, at most {size}")
    order = np.argsort(-lengths, kind="stable")
    sequence = np.repeat(order, counts[order])
    before = np.cumsum(counts[order]) - counts[order]
    inside = np.arange(total) - np.repeat(before, counts[order])
    tiles = np.full((2, size), -1, np.int32)
    tiles[0, :total] = sequence
    tiles[1, :total] = cu_seqlens[sequence] + inside * rows
    return tiles


def attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, tiles: Tiles, how: Attention, bias: Tensor | None = None
) -> Tensor:
    """softmax(cap(q kᵀ * scale) + bias, masked) v inside each sequence: (T, H*D), (T, K*D), (T, K*D) -> (T, H*D).

    q, k, v: one dtype, rows may be strided. cu_seqlens: int32 (B + 1,). tiles: of make_tiles for these offsets.
    bias in place of how.bias: float32 (H,), ALiBi slopes, or (H, 2R - 1), the score added by distance.
    Scores, softmax and sums in float32; probabilities are rounded to the dtype before they meet v.
    Rows past the last offset are neither read nor written: there the result is whatever the memory held.
    """
    if q.is_cuda:
        return _launch(q, k, v, cu_seqlens, tiles, how, bias)
    return attention_twin(q, k, v, cu_seqlens, how, bias)


def attention_twin(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, how: Attention, bias: Tensor | None = None
) -> Tensor:
    """The definition of attention; rows past the last offset are zeros."""
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    for begin, end in itertools.pairwise(cu_seqlens.tolist()):
        rows = slice(begin, end)
        if begin < end:
            out[rows] = _attend(q[rows], k[rows], v[rows], how, bias)
    return out


def _attend(q: Tensor, k: Tensor, v: Tensor, how: Attention, bias: Tensor | None) -> Tensor:
    """One sequence."""
    group = how.num_heads // how.num_kv_heads
    heads = q.float().unflatten(1, (how.num_heads, -1)).transpose(0, 1)
    keys, values = (
        x.float().unflatten(1, (how.num_kv_heads, -1)).transpose(0, 1).repeat_interleave(group, 0) for x in (k, v)
    )
    scores = heads @ keys.transpose(1, 2) * how.scale
    if how.softcap is not None:
        scores = how.softcap * torch.tanh(scores / how.softcap)
    ahead = torch.arange(len(q))[None, :] - torch.arange(len(q))[:, None]  # key position - query position
    seen = torch.from_numpy(visible(ahead.numpy(), how.causal, how.window)).to(q.device)
    if bias is not None:
        scores = scores + _added(bias, ahead.to(q.device))
    scores = scores.masked_fill(~seen, -torch.inf)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    attended = weights.to(q.dtype).float() @ values / weights.sum(-1, keepdim=True)
    return attended.transpose(0, 1).flatten(1).to(q.dtype)


def _added(bias: Tensor, ahead: Tensor) -> Tensor:
    """The score that distance adds, float32 (H, n, n)."""
    if bias.dim() == 1:
        return -bias[:, None, None] * ahead.abs()
    return bias[:, ahead + bias.shape[1] // 2]


def _launch(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, tiles: Tiles, how: Attention, bias: Tensor | None
) -> Tensor:
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    head_dim = q.shape[1] // how.num_heads
    block_dim = max(triton.next_power_of_2(head_dim), 32)
    blocks = FLOAT32_BLOCKS if q.dtype == torch.float32 else BLOCKS[block_dim, tiles.rows]
    _attention_kernel[how.num_heads, len(tiles.sequence)](
        q,
        k,
        v,
        out,
        cu_seqlens if bias is None else bias,
        cu_seqlens,
        tiles.sequence,
        tiles.first_row,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        out.stride(0),
        1 if bias is None else bias.shape[-1],
        SCALE=how.scale,
        CAUSAL=how.causal,
        WINDOW=how.window,
        SOFTCAP=how.softcap,
        BIAS_RANK=0 if bias is None else bias.dim(),
        GROUP=how.num_heads // how.num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_DIM=block_dim,
        BLOCK_ROWS=tiles.rows,
        BLOCK_KEYS=blocks.keys,
        num_warps=blocks.num_warps,
        num_stages=blocks.num_stages,
    )
    return out


@triton.jit
def _attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    bias_ptr,
    cu_ptr,
    sequence_ptr,
    first_row_ptr,
    q_stride,
    k_stride,
    v_stride,
    out_stride,
    num_distances,
    SCALE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BIAS_RANK: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    head = tl.program_id(0)
    tile = tl.program_id(1)
    sequence = tl.load(sequence_ptr + tile)
    if sequence < 0:
        return
    first = tl.load(first_row_ptr + tile)
    begin = tl.load(cu_ptr + sequence)
    end = tl.load(cu_ptr + sequence + 1)
    row = first + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_DIM)
    mine = (row < end)[:, None] & (column < HEAD_DIM)[None, :]
    offset = tl.arange(0, BLOCK_ROWS)[:, None]
    q_block = q_ptr + first.to(tl.int64) * q_stride + head * HEAD_DIM + offset * q_stride + column[None, :]
    q = tl.load(q_block, mine, other=0.0)
    k_head = k_ptr + (head // GROUP) * HEAD_DIM
    v_head = v_ptr + (head // GROUP) * HEAD_DIM
    bias = bias_ptr
    if BIAS_RANK == 1:
        bias = tl.load(bias_ptr + head) * LOG2E
    elif BIAS_RANK == 2:
        bias = bias_ptr + head * num_distances

    # Keys that some query of the tile sees: low <= key < high. Keys that all of them see: all_low <= key < all_high.
    low, high, all_low, all_high = begin, end, begin, end
    if CAUSAL:
        high = tl.minimum(end, first + BLOCK_ROWS)
        all_high = first + 1
    if WINDOW is not None:
        last = tl.minimum(end, first + BLOCK_ROWS) - 1
        reach: tl.constexpr = WINDOW - 1 if CAUSAL else WINDOW // 2
        low = tl.maximum(begin, first - reach)
        all_low = tl.maximum(begin, last - reach)
        if not CAUSAL:
            high = tl.minimum(end, last + reach + 1)
            all_high = tl.minimum(end, first + reach + 1)
    num_before = tl.cdiv(all_low - low, BLOCK_KEYS)
    whole = low + num_before * BLOCK_KEYS
    num_whole = tl.maximum(all_high - whole, 0) // BLOCK_KEYS
    after = whole + num_whole * BLOCK_KEYS
    num_after = tl.cdiv(tl.maximum(high - after, 0), BLOCK_KEYS)

    peak = tl.full((BLOCK_ROWS,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    acc = tl.zeros((BLOCK_ROWS, BLOCK_DIM), tl.float32)
    for block in range(num_whole):
        start = whole + block * BLOCK_KEYS
        acc, total, peak = _step(
            acc, total, peak, q, k_head, v_head, bias, row, start, high, k_stride, v_stride, num_distances,
            False, SCALE, CAUSAL, WINDOW, SOFTCAP, BIAS_RANK, HEAD_DIM, BLOCK_DIM, BLOCK_KEYS,
        )  # fmt: skip
    for block in range(num_before + num_after):
        start = tl.where(block < num_before, low + block * BLOCK_KEYS, after + (block - num_before) * BLOCK_KEYS)
        acc, total, peak = _step(
            acc, total, peak, q, k_head, v_head, bias, row, start, high, k_stride, v_stride, num_distances,
            True, SCALE, CAUSAL, WINDOW, SOFTCAP, BIAS_RANK, HEAD_DIM, BLOCK_DIM, BLOCK_KEYS,
        )  # fmt: skip
    out_block = out_ptr + first.to(tl.int64) * out_stride + head * HEAD_DIM + offset * out_stride + column[None, :]
    tl.store(out_block, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mine)


@triton.jit
def _step(
    acc,
    total,
    peak,
    q,
    k_head,
    v_head,
    bias,
    row,
    start,
    high,
    k_stride,
    v_stride,
    num_distances,
    MASKED: tl.constexpr,
    SCALE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BIAS_RANK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """One block of keys into the running sums. MASKED: some query may not see some of them."""
    offset = tl.arange(0, BLOCK_KEYS)[:, None]
    column = tl.arange(0, BLOCK_DIM)[None, :]
    there = column < HEAD_DIM
    if MASKED:
        there = (start + offset < high) & there
    k = _rows(
        k_head + start.to(tl.int64) * k_stride + offset * k_stride + column, there, MASKED or HEAD_DIM < BLOCK_DIM
    )
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    # Below, scores are in units of log2, so that exp2 is the exponential.
    factor: tl.constexpr = SCALE * 1.4426950408889634
    ahead = (start + tl.arange(0, BLOCK_KEYS))[None, :] - row[:, None]  # key position - query position
    if SOFTCAP is not None:
        bent = 2.0 / (tl.exp2(scores * (2.0 * factor / SOFTCAP)) + 1.0)  # 1 - tanh
        scores = (SOFTCAP * 1.4426950408889634) * (1.0 - bent)
    elif BIAS_RANK > 0:
        scores *= factor
    if BIAS_RANK == 1:
        scores -= bias * tl.abs(ahead).to(tl.float32)
    elif BIAS_RANK == 2:
        distance = ahead + num_distances // 2
        known = (distance >= 0) & (distance < num_distances)
        scores += tl.load(bias + distance, known, other=0.0) * LOG2E
    if MASKED:
        seen = (start + tl.arange(0, BLOCK_KEYS) < high)[None, :]
        if CAUSAL:
            seen = seen & (ahead <= 0)
            if WINDOW is not None:
                seen = seen & (ahead > -WINDOW)
        elif WINDOW is not None:
            seen = seen & (tl.abs(ahead) <= WINDOW // 2)
        scores = tl.where(seen, scores, float("-inf"))
    if SOFTCAP is None and BIAS_RANK == 0:  # the scale and the difference are one multiply-add
        new_peak = tl.maximum(peak, tl.max(scores, 1) * factor)
        weights = tl.exp2(scores * factor - new_peak[:, None])
    else:
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - new_peak[:, None])
    shrink = tl.exp2(peak - new_peak)
    total = total * shrink + tl.sum(weights, 1)
    v = _rows(
        v_head + start.to(tl.int64) * v_stride + offset * v_stride + column, there, MASKED or HEAD_DIM < BLOCK_DIM
    )
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return acc, total, new_peak


@triton.jit
def _rows(pointers, there, MASKED: tl.constexpr):
    if MASKED:
        return tl.load(pointers, there, other=0.0)
    return tl.load(pointers)
