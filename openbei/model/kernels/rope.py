"""Rotary positions, in place on the queries and keys inside the joined product (Su et al. 2021, half-split pairs)."""

from typing import NamedTuple

from torch import Tensor

from openbei.model.kernels import tl, triton
from openbei.model.kernels.embed import warps


class Angles(NamedTuple):
    """cos and sin of every position: float32 (P, D / 2), contiguous; positions: int32 (T,), the row of each token."""

    cos: Tensor
    sin: Tensor
    positions: Tensor


def rope_(q: Tensor, k: Tensor, angles: Angles) -> None:
    """Turn each pair (d, d + D/2) of every head by its token's angle, in place: (T, H*D), (T, K*D).

    Rows may be strided. Turned in float32 and rounded once. D is twice the width of angles.
    """
    (_launch if q.is_cuda else rope_twin_)(q, k, angles)


def rope_twin_(q: Tensor, k: Tensor, angles: Angles) -> None:
    """The definition of rope_."""
    cos, sin = angles.cos[angles.positions, None, :], angles.sin[angles.positions, None, :]
    for x in (q, k):
        first, second = x.unflatten(1, (-1, 2 * cos.shape[-1])).chunk(2, dim=-1)  # views of x
        a, b = first.float(), second.float()
        turned = a * cos - b * sin, b * cos + a * sin
        first.copy_(turned[0])
        second.copy_(turned[1])


def _launch(q: Tensor, k: Tensor, angles: Angles) -> None:
    half = angles.cos.shape[1]
    q_heads, k_heads = q.shape[1] // (2 * half), k.shape[1] // (2 * half)
    blocks = [triton.next_power_of_2(size) for size in (q_heads, k_heads, half)]
    _rope_kernel[(len(q),)](
        q,
        k,
        angles.cos,
        angles.sin,
        angles.positions,
        q.stride(0),
        k.stride(0),
        q_heads,
        k_heads,
        half,
        *blocks,
        num_warps=warps(blocks[0] * blocks[2]),
    )


@triton.jit
def _rope_kernel(
    q_ptr,
    k_ptr,
    cos_ptr,
    sin_ptr,
    positions_ptr,
    q_stride,
    k_stride,
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
    _turn(q_ptr + row * q_stride, cos, sin, Q_HEADS, HALF, BLOCK_Q, BLOCK_HALF)
    _turn(k_ptr + row * k_stride, cos, sin, K_HEADS, HALF, BLOCK_K, BLOCK_HALF)


@triton.jit
def _turn(
    row_ptr,
    cos,
    sin,
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
    tl.store(first, (a * cos - b * sin).to(row_ptr.dtype.element_ty), inside)
    tl.store(second, (b * cos + a * sin).to(row_ptr.dtype.element_ty), inside)
