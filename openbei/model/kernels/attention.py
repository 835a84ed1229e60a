"""Attention inside packed sequences, by a flat list of query tiles: no padding, no maximum length, no empty programs.

One program is one tile (up to 64 or 128 queries of one sequence) of one head; it walks over the keys that any of its
queries sees, with the running softmax of FlashAttention (Dao 2023, section 3.1). What a sequence comes to does not
depend on its neighbours: blocks of keys are counted from its own first row. The tile list is made on the host
(ops/cuda_batch.py).
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from openbei.model.kernels import tl, triton
from openbei.model.ops import Attention
from openbei.model.positions import visible

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1.0e38)  # below every score, above -inf: the maximum of no keys, so that no difference is NaN


class Sequences(NamedTuple):
    """Which rows are whose, int32: cu_seqlens (B + 1,); key_ends (B,), the row after the last that is a key."""

    cu_seqlens: Tensor
    key_ends: Tensor


class Tiles(NamedTuple):
    """Query tiles, int32 (N,): the sequence, or -1 for none; the first row, counted in the batch. rows: of one tile."""

    sequence: Tensor
    first_row: Tensor
    rows: int


class Blocks(NamedTuple):
    """How a kernel is compiled: keys a step, warps, stages of the load pipeline, registers a thread (None: any)."""

    keys: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None


# (head width, queries a tile) -> blocks, 16-bit. Each compiles for sm_90 without a spill. 128 registers let an SM hold
# two programs of 8 warps, or four of 4.
BLOCKS = {
    (32, 64): Blocks(64, 4, 3, 128),
    (32, 128): Blocks(64, 8, 3, 128),
    (64, 64): Blocks(64, 4, 3, 128),
    (64, 128): Blocks(64, 8, 3, 128),
    (128, 64): Blocks(64, 4, 2),
    (128, 128): Blocks(64, 8, 2),
    (256, 64): Blocks(32, 4, 2),
    (256, 128): Blocks(32, 8, 2),
}
FLOAT32_BLOCKS = {64: Blocks(16, 8, 1), 128: Blocks(16, 16, 1)}  # exact, without tensor cores: to compare with


def blocks_of(head_dim: int, rows: int, dtype: torch.dtype) -> Blocks:
    """The blocks for heads of this width, tiles of this many rows and values of this type, or ValueError."""
    if dtype == torch.float32:
        return FLOAT32_BLOCKS[rows]
    if not head_dim <= 256:
        raise ValueError(f"attention on a GPU has heads of up to 256 values, not {head_dim}")
    return BLOCKS[block_dim(head_dim), rows]


def block_dim(head_dim: int) -> int:
    """Width of the block that holds a head: the next power of two, 32 at least."""
    return max(32, 1 << (head_dim - 1).bit_length())


def attention(
    q: Tensor, k: Tensor, v: Tensor, sequences: Sequences, tiles: Tiles, how: Attention, bias: Tensor | None = None
) -> Tensor:
    """softmax(cap(q kᵀ * scale) + bias, masked) v inside each sequence: (T, H*D), (T, K*D), (T, K*D) -> (T, H*D).

    q, k, v: one dtype, rows may be strided. Each sequence has a key. tiles: of make_tiles for these sequences.
    bias in place of how.bias: float32 (H,), ALiBi slopes, or (H, 2R - 1), the score added by distance.
    Scores, softmax and sums in float32; probabilities are rounded to the dtype before they meet v.
    Rows past the last offset are neither read nor written: there the result is whatever the memory held.
    """
    if q.is_cuda:
        return _launch(q, k, v, sequences, tiles, how, bias)
    return attention_twin(q, k, v, sequences, how, bias)


def attention_twin(
    q: Tensor, k: Tensor, v: Tensor, sequences: Sequences, how: Attention, bias: Tensor | None = None
) -> Tensor:
    """The definition of attention; rows past the last offset are zeros."""
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    ranges = itertools.pairwise(sequences.cu_seqlens.tolist())
    for (begin, end), key_end in zip(ranges, sequences.key_ends.tolist(), strict=True):
        if begin < end:
            out[begin:end] = _attend(q[begin:end], k[begin:key_end], v[begin:key_end], how, bias)
    return out


def _attend(q: Tensor, k: Tensor, v: Tensor, how: Attention, bias: Tensor | None) -> Tensor:
    """One sequence, in float32; float64 stays so, to measure the others against."""
    group = how.num_heads // how.num_kv_heads
    exact = torch.promote_types(q.dtype, torch.float32)
    heads = q.to(exact).unflatten(1, (how.num_heads, -1)).transpose(0, 1)
    keys, values = (
        x.to(exact).unflatten(1, (how.num_kv_heads, -1)).transpose(0, 1).repeat_interleave(group, 0) for x in (k, v)
    )
    scores = heads @ keys.transpose(1, 2) * how.scale
    if how.softcap is not None:
        scores = how.softcap * torch.tanh(scores / how.softcap)
    ahead = torch.arange(len(k))[None, :] - torch.arange(len(q))[:, None]  # key position - query position
    seen = torch.from_numpy(visible(ahead.numpy(), how.causal, how.window)).to(q.device)
    if bias is not None:
        scores = scores + _added(bias, ahead.to(q.device))
    scores = scores.masked_fill(~seen, -torch.inf)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    attended: Tensor = weights.to(q.dtype).to(exact) @ values / weights.sum(-1, keepdim=True)
    return attended.transpose(0, 1).flatten(1).to(q.dtype)


def _added(bias: Tensor, ahead: Tensor) -> Tensor:
    """The score that distance adds, float32 (H, queries, keys)."""
    if bias.dim() == 1:
        return -bias[:, None, None] * ahead.abs()
    return bias[:, ahead + bias.shape[1] // 2]


def _launch(
    q: Tensor, k: Tensor, v: Tensor, sequences: Sequences, tiles: Tiles, how: Attention, bias: Tensor | None
) -> Tensor:
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    head_dim = q.shape[1] // how.num_heads
    blocks = blocks_of(head_dim, tiles.rows, q.dtype)
    _attention_kernel[(how.num_heads * len(tiles.sequence),)](  # the other axes end at 65535
        q,
        k,
        v,
        out,
        sequences.cu_seqlens if bias is None else bias,
        sequences.cu_seqlens,
        sequences.key_ends,
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
        HEADS=how.num_heads,
        GROUP=how.num_heads // how.num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_DIM=block_dim(head_dim),
        BLOCK_ROWS=tiles.rows,
        BLOCK_KEYS=blocks.keys,
        num_warps=blocks.num_warps,
        num_stages=blocks.num_stages,
        maxnreg=blocks.max_registers,
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
    key_ends_ptr,
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
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """One tile of one head. Every load is of a row of its own sequence."""
    head = tl.program_id(0) % HEADS  # heads of one tile run side by side: they may share their keys
    tile = tl.program_id(0) // HEADS
    sequence = tl.load(sequence_ptr + tile)
    if sequence < 0:
        return
    first = tl.load(first_row_ptr + tile)
    begin = tl.load(cu_ptr + sequence)
    end = tl.load(cu_ptr + sequence + 1)
    key_end = tl.load(key_ends_ptr + sequence)
    # Rows past the end stand for the last one again: no load needs a mask (which costs 40 registers), and no row is
    # without a key. What they come to is not stored.
    row = tl.minimum(first + tl.arange(0, BLOCK_ROWS), end - 1)
    q = _rows(q_ptr + first.to(tl.int64) * q_stride + head * HEAD_DIM, row - first, q_stride, HEAD_DIM, BLOCK_DIM)
    k_head = k_ptr + (head // GROUP) * HEAD_DIM
    v_head = v_ptr + (head // GROUP) * HEAD_DIM
    bias = bias_ptr
    if BIAS_RANK == 1:
        bias = tl.load(bias_ptr + head) * LOG2E
    elif BIAS_RANK == 2:
        bias = bias_ptr + head * num_distances

    low, num_before, whole, num_whole, after, num_after, high = _keys(
        first, begin, end, key_end, CAUSAL, WINDOW, BLOCK_ROWS, BLOCK_KEYS
    )
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
    offset = tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.arange(0, BLOCK_DIM)[None, :]
    out_block = out_ptr + first.to(tl.int64) * out_stride + head * HEAD_DIM + offset * out_stride + column
    mine = (first + offset < end) & (column < HEAD_DIM)
    tl.store(out_block, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mine)


@triton.jit
def _keys(
    first,
    begin,
    end,
    key_end,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """The keys of a tile in blocks: num_before from low on, num_whole that every query sees whole, num_after."""
    # Some query sees low <= key < high, every query sees all_low <= key < all_high.
    low, high, all_low, all_high = begin, key_end, begin, key_end
    if CAUSAL:
        high = tl.minimum(key_end, first + BLOCK_ROWS)
        all_high = tl.minimum(key_end, first + 1)
    if WINDOW is not None:
        last = tl.minimum(end, first + BLOCK_ROWS) - 1
        reach: tl.constexpr = WINDOW - 1 if CAUSAL else WINDOW // 2
        low = tl.maximum(begin, first - reach)
        all_low = tl.maximum(begin, last - reach)
        if not CAUSAL:
            high = tl.minimum(key_end, last + reach + 1)
            all_high = tl.minimum(key_end, first + reach + 1)
    num_before = tl.cdiv(all_low - low, BLOCK_KEYS)
    whole = low + num_before * BLOCK_KEYS
    num_whole = tl.maximum(all_high - whole, 0) // BLOCK_KEYS
    after = whole + num_whole * BLOCK_KEYS
    num_after = tl.cdiv(tl.maximum(high - after, 0), BLOCK_KEYS)
    return low, num_before, whole, num_whole, after, num_after, high


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
    offset = tl.arange(0, BLOCK_KEYS)
    if MASKED:
        offset = tl.minimum(offset, high - 1 - start)
    k = _rows(k_head + start.to(tl.int64) * k_stride, offset, k_stride, HEAD_DIM, BLOCK_DIM)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    key = start + tl.arange(0, BLOCK_KEYS)[None, :]
    scores = _bent(scores, bias, key - row[:, None], num_distances, SCALE, SOFTCAP, BIAS_RANK)
    if MASKED:
        scores = tl.where(_seen(key, row[:, None], high, CAUSAL, WINDOW), scores, float("-inf"))
    factor: tl.constexpr = SCALE * LOG2E if SOFTCAP is None and BIAS_RANK == 0 else 1.0
    new_peak = tl.maximum(peak, tl.max(scores, 1) * factor)
    weights = tl.exp2(scores * factor - new_peak[:, None])  # one multiply-add and exp2 where there is just a scale
    shrink = tl.exp2(peak - new_peak)
    total = total * shrink + tl.sum(weights, 1)
    v = _rows(v_head + start.to(tl.int64) * v_stride, offset, v_stride, HEAD_DIM, BLOCK_DIM)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return acc, total, new_peak


@triton.jit
def _bent(scores, bias, ahead, num_distances, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, BIAS_RANK: tl.constexpr):
    """q kᵀ -> scores in units of log2, softcap and bias in them; without either as they are. ahead: key - query."""
    factor: tl.constexpr = SCALE * LOG2E
    if SOFTCAP is not None:
        missing = 2.0 / (tl.exp2(scores * (2.0 * factor / SOFTCAP)) + 1.0)  # from tanh to 1
        scores = (SOFTCAP * LOG2E) * (1.0 - missing)
    elif BIAS_RANK > 0:
        scores *= factor
    if BIAS_RANK == 1:
        scores -= bias * tl.abs(ahead).to(tl.float32)
    elif BIAS_RANK == 2:
        distance = ahead + num_distances // 2
        known = (distance >= 0) & (distance < num_distances)
        scores += tl.load(bias + distance, known, other=0.0) * LOG2E
    return scores


@triton.jit
def _seen(key, row, high, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    seen = key < high
    if CAUSAL:
        seen = seen & (key <= row)
        if WINDOW is not None:
            seen = seen & (row - key < WINDOW)
    elif WINDOW is not None:
        seen = seen & (tl.abs(row - key) <= WINDOW // 2)
    return seen


@triton.jit
def _rows(base, row, stride, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Rows of one head, zeros past its width."""
    column = tl.arange(0, BLOCK_DIM)[None, :]
    pointers = base + row[:, None] * stride + column
    if HEAD_DIM < BLOCK_DIM:
        return tl.load(pointers, column < HEAD_DIM, other=0.0)
    return tl.load(pointers)
