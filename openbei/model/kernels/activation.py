"""Activations of rows, alone or times the up half of a gated product, and quantised on the way out if wished.

Computed in float32, rounded to the input's dtype, quantised from there, so that fused and unfused agree.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor

from openbei.model.kernels import tl, triton
from openbei.model.kernels.quantize import E4M3, Program, Quantized, program_for, quantize_rows_twin, store_quantized
from openbei.model.spec import Activation

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}
PIECE = 2048  # columns of a program that need not see its whole row


def activate(x: Tensor, kind: Activation, quantize: bool = False) -> Tensor | Quantized:
    """kind(x): x (T, F), rows at any stride -> contiguous (T, F) of x's dtype, or e4m3 with a scale a row."""
    return _launch(x, kind, quantize, gated=False) if x.is_cuda else twin(x, kind, quantize, gated=False)


def gated(gate_up: Tensor, kind: Activation, quantize: bool = False) -> Tensor | Quantized:
    """kind(gate) * up: gate_up (T, 2F), gate in the first half -> (T, F), as activate."""
    return (
        _launch(gate_up, kind, quantize, gated=True) if gate_up.is_cuda else twin(gate_up, kind, quantize, gated=True)
    )


def twin(x: Tensor, kind: Activation, quantize: bool, gated: bool) -> Tensor | Quantized:
    """The definition of activate and gated."""
    if gated:
        gate, up = x.float().chunk(2, dim=-1)
        y = ACTIVATIONS[kind](gate) * up
    else:
        y = ACTIVATIONS[kind](x.float())
    y = y.to(x.dtype)
    return quantize_rows_twin(y) if quantize else y


def _launch(x: Tensor, kind: Activation, quantize: bool, gated: bool) -> Tensor | Quantized:
    num_rows, width = len(x), x.shape[1] // 2 if gated else x.shape[1]
    block, num_warps = program_for(width) if quantize else _piece(width)
    out = torch.empty((num_rows, width), dtype=E4M3 if quantize else x.dtype, device=x.device)
    scale = x.new_empty(num_rows, dtype=torch.float32) if quantize else None
    _activate_kernel[(num_rows, triton.cdiv(width, block))](
        x, out, scale, x.stride(0), F=width, BLOCK=block, KIND=kind, GATED=gated, num_warps=num_warps
    )
    return out if scale is None else Quantized(out, scale)


def _piece(width: int) -> Program:
    return program_for(min(width, PIECE))


@triton.jit
def _activate_kernel(
    x_ptr, out_ptr, scales_ptr, stride, F: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr, GATED: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = columns < F
    cells = x_ptr + row * stride + columns
    y = activated(tl.load(cells, mask=real, other=0.0).to(tl.float32), KIND)
    if GATED:
        y *= tl.load(cells + F, mask=real, other=0.0).to(tl.float32)
    y = y.to(x_ptr.dtype.element_ty)
    if scales_ptr is None:
        tl.store(out_ptr + row * F + columns, y, mask=real)
    else:  # sigmoid(0) is not 0: what is no column must not set the scale
        store_quantized(tl.where(real, y.to(tl.float32), 0.0), out_ptr, scales_ptr, row, columns, F)


@triton.jit
def activated(x, KIND: tl.constexpr):
    """KIND(x), float32."""
    if KIND == "gelu":
        x = 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))
    elif KIND == "gelu_tanh":  # (1 + tanh u) / 2 is sigmoid(2u)
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif KIND == "relu":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif KIND == "silu":
        x = x * tl.sigmoid(x)
    elif KIND == "tanh":
        x = _tanh(x)
    elif KIND == "sigmoid":
        x = tl.sigmoid(x)
    else:
        tl.static_assert(KIND == "identity")
    return x


@triton.jit
def _tanh(x):
    """2 sigmoid(2x) - 1; near 0, where that cancels, the Taylor series to x^11."""
    s = x * x
    series = 62 / 2835 + s * (-1382 / 155925)
    series = 1.0 + s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * series)))
    return tl.where(tl.abs(x) < 0.25, x * series, 2.0 * tl.sigmoid(2.0 * x) - 1.0)
