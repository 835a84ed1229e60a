"""Rows -> e4m3 rows and their scales. Owns what FP8 means here, and the shape of a program that holds a row.

A row's scale is its largest magnitude / 448, in float32; the row divided by it is rounded to e4m3. Division is exact
(correctly rounded), so that the kernel and its twin agree bit for bit. Values are clamped before the cast, because
PyTorch 2.11 turns what exceeds e4m3 into NaN and later ones do not. A NaN stays one: it must not become 448.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from openbei.model.kernels import tl, triton

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
MAX_WIDTH = 32768  # of a row that one program holds: 32 values in each of 1024 threads
ROWS_AT_ONCE = 4096


class Quantized(NamedTuple):
    """Rows in FP8: values e4m3 (T, C) contiguous, scale float32 (T,); the row is values * scale."""

    values: Tensor
    scale: Tensor


class Program(NamedTuple):
    """Shape of a program over one row: columns held (a power of two) and warps."""

    block: int
    num_warps: int


def program_for(width: int) -> Program:
    """Width of a row -> the program that holds it: 8 values a thread up to 4 warps, then 16, then 32 warps.

    Raises ValueError above MAX_WIDTH.
    """
    if width > MAX_WIDTH:
        raise ValueError(f"a row of {width} values is wider than the {MAX_WIDTH} that one program holds")
    block = max(16, triton.next_power_of_2(width))
    return Program(block, max(1, min(block // 256, 4), min(block // 512, 32)))


def quantize_rows(x: Tensor) -> Quantized:
    """x (T, C) of 16 bit or float32, rows at any stride -> each row in e4m3 with its own scale; all zeros: scale 1."""
    return _launch(x) if x.is_cuda else quantize_rows_twin(x)


def quantize_weight(weight: Tensor) -> Quantized:
    """weight (N, C) -> e4m3 (N, C) and a float32 scale for each output channel (N,), by plain PyTorch on any device.

    A few thousand channels at once, so that what is needed on top of the result stays small.
    """
    out = _empty(weight)
    for part, values, scale in zip(*(tensor.split(ROWS_AT_ONCE) for tensor in (weight, *out)), strict=True):
        rows = quantize_rows_twin(part)
        values.copy_(rows.values)
        scale.copy_(rows.scale)
    return out


def quantize_rows_twin(x: Tensor) -> Quantized:
    """The definition of quantize_rows."""
    x = x.float()
    amax = x.abs().amax(-1)
    scale = amax / torch.full_like(amax, E4M3_MAX)  # by a number, PyTorch on a GPU would multiply by its reciprocal
    scale = torch.where(scale > 0, scale, 1.0)
    return Quantized(to_e4m3(x / scale[:, None]), scale)


def to_e4m3(x: Tensor) -> Tensor:
    """float32 -> e4m3, to nearest even; beyond 448 is 448."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)


def _launch(x: Tensor) -> Quantized:
    out, (block, num_warps) = _empty(x), program_for(x.shape[1])
    _quantize_rows_kernel[(len(x),)](
        x, out.values, out.scale, x.stride(0), C=x.shape[1], BLOCK=block, num_warps=num_warps
    )
    return out


def _empty(x: Tensor) -> Quantized:
    return Quantized(torch.empty(x.shape, dtype=E4M3, device=x.device), x.new_empty(len(x), dtype=torch.float32))


@triton.jit
def _quantize_rows_kernel(x_ptr, values_ptr, scales_ptr, stride, C: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    row_values = tl.load(x_ptr + row * stride + columns, mask=columns < C, other=0.0).to(tl.float32)
    store_quantized(row_values, values_ptr, scales_ptr, row, columns, C)


@triton.jit
def store_quantized(y, values_ptr, scales_ptr, row, columns, C: tl.constexpr):
    """y float32, zero from column C on -> row `row` of the values (., C) and of the scales: quantize_rows_twin."""
    scale = tl.div_rn(tl.max(tl.abs(y), 0), 448.0)
    scale = tl.where(scale > 0, scale, 1.0)
    y = clamp_e4m3(tl.div_rn(y, scale)).to(values_ptr.dtype.element_ty)
    tl.store(values_ptr + row * C + columns, y, mask=columns < C)
    tl.store(scales_ptr + row, scale)


@triton.jit
def clamp_e4m3(x):
    """x within what e4m3 can hold; NaN stays NaN."""
    return tl.clamp(x, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
