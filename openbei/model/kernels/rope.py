"""Rotary positions, in place on the queries and keys inside the joined product (Su et al. 2021, half-split pairs).

Where queries and keys have a norm over each head before (Qwen3), it is done in the same pass.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from openbei.model.kernels import tl, triton


class Angles(NamedTuple):
    """cos and sin of every position: float32 (P, D / 2), contiguous; positions: int32 (T,), the row of each token."""

    cos: Tensor
    sin: Tensor
    positions: Tensor


class HeadNorms(NamedTuple):
    """RMS norms over each head: weights (D,) of the queries' and of the keys', contiguous; eps."""

    q: Tensor
    k: Tensor
    eps: float


def rope_(q: Tensor, k: Tensor, angles: Angles, norms: HeadNorms | None = None) -> None:
    """Turn each pair (d, d + D/2) of every head by its token's angle, in place: (T, H*D), (T, K*D).

    Rows may be strided. Turned in float32 and rounded once; normed before, in float32 and rounded, if there are norms.
    D is twice the width of angles.
    """
    (_launch if q.is_cuda else rope_twin_)(q, k, angles, norms)


def rope_twin_(q: Tensor, k: Tensor, angles: Angles, norms: HeadNorms | None = None) -> None:
    """The definition of rope_."""
    cos, sin = angles.cos[angles.positions, None, :], angles.sin[angles.positions, None, :]
    for x, weight in (q, norms and norms.q), (k, norms and norms.k):
        heads = x.unflatten(1, (-1, 2 * cos.shape[-1]))  # a view of x
        y = heads.float()
        if norms is not None and weight is not None:
            y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + norms.eps) * weight.float()
        first, second = y.to(x.dtype).float().chunk(2, dim=-1)
        heads.copy_(torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1))


def warps(block: int) -> int:
    """Warps for a program that holds `block` values of a row: 8 a thread, between 1 and 16 warps."""
    return min(max(block // 256, 1), 16)


def _launch(q: Tensor, k: Tensor, angles: Angles, norms: HeadNorms | None = None) -> None:
    half = angles.cos.shape[1]
    q_heads, k_heads = q.shape[1] // (2 * half), k.shape[1] // (2 * half)
    blocks = [triton.next_power_of_2(size) for size in (q_heads, k_heads, half)]
    _rope_kernel[(len(q),)](
        q,
        k,
        angles.cos,
        angles.sin,
        angles.positions,
        q if norms is None else norms.q,
        k if norms is None else norms.k,
        q.stride(0),
        k.stride(0),
        0.0 if norms is None else norms.eps,
        norms is not None,
        q_heads,
        k_heads,
        half,
        *blocks,
        num_warps=warps(blocks[0] * blocks[2]),
    )


@triton.jit(do_not_specialize=["eps"])
def _rope_kernel(
    q_ptr,
    k_ptr,
    cos_ptr,
    sin_ptr,
    positions_ptr,
    q_weight_ptr,
    k_weight_ptr,
    q_stride,
    k_stride,
    eps,
    NORM: tl.constexpr,
    Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, BLOCK_HALF)
    angle = tl.load(positions_ptr + row) * HALF + pair
    cos = tl.load(cos_ptr + angle, pair < HALF, other=0.0)[None, :]
    sin = tl.load(sin_ptr + angle, pair < HALF, other=0.0)[None, :]
    _turn(q_ptr + row * q_stride, q_weight_ptr, cos, sin, eps, NORM, Q_HEADS, HALF, BLOCK_Q, BLOCK_HALF)
    _turn(k_ptr + row * k_stride, k_weight_ptr, cos, sin, eps, NORM, K_HEADS, HALF, BLOCK_K, BLOCK_HALF)


@triton.jit
def _turn(
    row_ptr,
    weight_ptr,
    cos,
    sin,
    eps,
    NORM: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    head = tl.arange(0, BLOCK_HEADS)[:, None]
    pair = tl.arange(0, BLOCK_HALF)[None, :]
    inside = (head < HEADS) & (pair < HALF)
    first = row_ptr + head * (2 * HALF) + pair
    second = first + HALF
    a = tl.load(first, inside, other=0.0).to(tl.float32)
    b = tl.load(second, inside, other=0.0).to(tl.float32)
    if NORM:
        mean = (tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * HALF)
        factor = tl.rsqrt(mean + eps)[:, None]
        first_weight = tl.load(weight_ptr + pair, pair < HALF, other=0.0).to(tl.float32)
        second_weight = tl.load(weight_ptr + HALF + pair, pair < HALF, other=0.0).to(tl.float32)
        a = (a * factor * first_weight).to(row_ptr.dtype.element_ty).to(tl.float32)
        b = (b * factor * second_weight).to(row_ptr.dtype.element_ty).to(tl.float32)
    tl.store(first, (a * cos - b * sin).to(row_ptr.dtype.element_ty), inside)
    tl.store(second, (b * cos + a * sin).to(row_ptr.dtype.element_ty), inside)
