"""LayerNorm and RMSNorm of whole rows, with the residual added and the result quantised in one pass, and of heads.

Statistics in float32, of what is stored: the sum of x and residual is rounded to their dtype first. The result is
rounded to that dtype, and quantised from there, so that fused and unfused agree.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from openbei.model.kernels import tl, triton
from openbei.model.kernels.quantize import E4M3, Quantized, program_for, quantize_rows_twin, store_quantized
from openbei.model.ops import NormSpec

Want = Literal["plain", "quantized", "both"]
HEAD_BLOCK = 2048  # values of whole heads in one program


class Normed(NamedTuple):
    """x: the sum that was normed, or None if not kept; plain: the result; quantized: the same in e4m3. All (T, C)."""

    x: Tensor | None
    plain: Tensor | None
    quantized: Quantized | None


def add_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    spec: NormSpec,
    want: Want = "plain",
    keep_sum: bool = True,
) -> Normed:
    """norm(x + residual): x and residual (T, C), rows at any stride; weight and bias (C,) of any float type.

    keep_sum: also give x + residual (without a residual x itself); a post-norm block needs it no more.
    """
    run = _launch_add_norm if x.is_cuda else add_norm_twin
    return run(x, residual, weight, bias, spec, want, keep_sum)


def head_norm(x: Tensor, weight: Tensor, bias: Tensor | None, spec: NormSpec) -> Tensor:
    """Each head of D = len(weight) values of x (T, heads * D), rows at any stride -> normed, contiguous and new."""
    run = _launch_head_norm if x.is_cuda else head_norm_twin
    return run(x, weight, bias, spec)


def add_norm_twin(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    spec: NormSpec,
    want: Want = "plain",
    keep_sum: bool = True,
) -> Normed:
    """The definition of add_norm."""
    total = x if residual is None else (x.float() + residual.float()).to(x.dtype)
    y = norm_twin(total, weight, bias, spec)
    quantized = None if want == "plain" else quantize_rows_twin(y)
    return Normed(total if keep_sum else None, None if want == "quantized" else y, quantized)


def head_norm_twin(x: Tensor, weight: Tensor, bias: Tensor | None, spec: NormSpec) -> Tensor:
    """The definition of head_norm."""
    return norm_twin(x.reshape(len(x), -1, len(weight)), weight, bias, spec).reshape(x.shape)


def norm_twin(x: Tensor, weight: Tensor, bias: Tensor | None, spec: NormSpec) -> Tensor:
    """The last axis of x normed in float32 and rounded to x's dtype (Ba et al. 2016; Zhang and Sennrich 2019)."""
    y = x.float()
    if spec.kind == "layer":
        y = y - y.mean(-1, keepdim=True)
    y = y / (y.square().mean(-1, keepdim=True) + spec.eps).sqrt() * weight.float()
    return (y if bias is None else y + bias.float()).to(x.dtype)


def _launch_add_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    spec: NormSpec,
    want: Want = "plain",
    keep_sum: bool = True,
) -> Normed:
    num_rows, width = x.shape
    block, num_warps = program_for(width)
    out = outputs_for(x, num_rows, want, keep_sum and residual is not None)
    _add_norm_kernel[(num_rows,)](
        x,
        residual,
        weight,
        bias,
        out.x,
        out.plain,
        *(out.quantized or (None, None)),
        x.stride(0),
        0 if residual is None else residual.stride(0),
        spec.eps,
        C=width,
        BLOCK=block,
        RMS=spec.kind == "rms",
        num_warps=num_warps,
    )
    return out._replace(x=x) if keep_sum and residual is None else out


def outputs_for(like: Tensor, num_rows: int, want: Want, keep_sum: bool) -> Normed:
    """Room for what is wanted: num_rows rows of the width and the dtype of `like`."""
    shape = num_rows, like.shape[1]
    values = None if want == "plain" else torch.empty(shape, dtype=E4M3, device=like.device)
    return Normed(
        like.new_empty(shape) if keep_sum else None,
        None if want == "quantized" else like.new_empty(shape),
        None if values is None else Quantized(values, like.new_empty(num_rows, dtype=torch.float32)),
    )


def _launch_head_norm(x: Tensor, weight: Tensor, bias: Tensor | None, spec: NormSpec) -> Tensor:
    out, width = x.new_empty(x.shape), len(weight)
    num_heads, block = x.shape[1] // width, max(16, triton.next_power_of_2(width))
    heads = min(triton.next_power_of_2(num_heads), max(1, HEAD_BLOCK // block))
    _head_norm_kernel[(len(x), triton.cdiv(num_heads, heads))](
        x,
        weight,
        bias,
        out,
        x.stride(0),
        spec.eps,
        HEADS=num_heads,
        D=width,
        BLOCK_HEADS=heads,
        BLOCK=block,
        RMS=spec.kind == "rms",
        num_warps=program_for(heads * block).num_warps,
    )
    return out


@triton.jit
def _add_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    total_ptr,
    plain_ptr,
    values_ptr,
    scales_ptr,
    x_stride,
    residual_stride,
    eps,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    RMS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    real = columns < C
    s = tl.load(x_ptr + row * x_stride + columns, mask=real, other=0.0)
    if residual_ptr is not None:
        r = tl.load(residual_ptr + row * residual_stride + columns, mask=real, other=0.0)
        s = (s.to(tl.float32) + r.to(tl.float32)).to(s.dtype)
    store_normed(
        s, weight_ptr, bias_ptr, total_ptr, plain_ptr, values_ptr, scales_ptr, row, columns, real, eps, C, RMS
    )  # fmt: skip


@triton.jit
def store_normed(
    s,
    weight_ptr,
    bias_ptr,
    total_ptr,
    plain_ptr,
    values_ptr,
    scales_ptr,
    row,
    columns,
    real,
    eps,
    C: tl.constexpr,
    RMS: tl.constexpr,
):
    """A row, its norm plain and quantised: what of these has somewhere to go. s: zero where not real."""
    if total_ptr is not None:
        tl.store(total_ptr + row * C + columns, s, mask=real)
    y = _normed(s.to(tl.float32), weight_ptr, bias_ptr, columns, real, eps, C, RMS).to(s.dtype)
    if plain_ptr is not None:
        tl.store(plain_ptr + row * C + columns, y, mask=real)
    if values_ptr is not None:
        store_quantized(y.to(tl.float32), values_ptr, scales_ptr, row, columns, C)


@triton.jit
def _head_norm_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    stride,
    eps,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    RMS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    real = (heads < HEADS) & (columns < D)
    cells = heads * D + columns
    s = tl.load(x_ptr + row * stride + cells, mask=real, other=0.0)
    y = _normed(s.to(tl.float32), weight_ptr, bias_ptr, columns, columns < D, eps, D, RMS)
    tl.store(out_ptr + row * (HEADS * D) + cells, y.to(s.dtype), mask=real)


@triton.jit
def _normed(y, weight_ptr, bias_ptr, columns, real, eps, C: tl.constexpr, RMS: tl.constexpr):
    """The last axis of y normed, float32; zero in where not real."""
    last: tl.constexpr = len(y.shape) - 1
    if not RMS:
        y = tl.where(real, y - tl.sum(y, last, keep_dims=True) / C, 0.0)
    variance = tl.sum(y * y, last, keep_dims=True) / C
    y = y * tl.div_rn(1.0, tl.sqrt_rn(variance + eps))
    y = y * tl.load(weight_ptr + columns, mask=real, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + columns, mask=real, other=0.0).to(tl.float32)
    return y
