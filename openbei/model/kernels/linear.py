"""x Wᵀ + b in 16 bit and in FP8, by cuBLASLt; and our own product, for what a library cannot fuse into it.

Our own is one persistent kernel fed by TMA: a program a multiprocessor, each walking over output tiles. Its epilogue
either writes the product (linear_fp8_own) or, with gate and up rows interleaved so that one tile holds both, writes
activation(gate) * up (gated_linear, gated_fp8). None is faster than cuBLASLt until a GPU has said so: nothing here
chooses them.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor

from openbei.model.kernels import tl, triton
from openbei.model.kernels.activation import ACTIVATIONS, activated
from openbei.model.kernels.quantize import E4M3, Quantized
from openbei.model.spec import Activation


class Tile(NamedTuple):
    """Shape of our own product: rows and columns of an output tile, warps, steps in flight."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int


# For as many tokens or fewer; the last for more. Sizes that compile for capability 9.0 without spilling.
TILES = ((64, Tile(64, 128, 4, 5)), (512, Tile(128, 128, 8, 4)), (None, Tile(128, 256, 8, 3)))
STEP_BYTES = 128  # of each row, read in one step
GROUP = 8  # rows of tiles that are walked through together, so that a column of weights is read from memory once


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (T, C), weight (N, C), bias (N,) or None, all of one dtype -> (T, N), accumulated in float32."""
    return F.linear(x, weight, bias)


def linear_fp8(x: Quantized, weight: Tensor, scale: Tensor, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """x e4m3 (T, C) with its scales, weight e4m3 (N, C) and scale float32 (N,), bias (N,) of out_dtype -> (T, N).

    cuBLASLt with a scale for each row and each column, and fast accumulation. Raises ValueError for what it cannot do,
    on a CPU too: C or N that is no multiple of 16, a layout or a dtype that is not the one above, a bias in float32.
    """
    check_fp8(x, Quantized(weight, scale), bias, out_dtype)
    if not x.values.is_cuda:
        return linear_fp8_twin(x, Quantized(weight, scale), bias, out_dtype)
    return torch._scaled_mm(
        x.values, weight.t(), x.scale[:, None], scale[None, :], bias=bias, out_dtype=out_dtype, use_fast_accum=True
    )


def linear_fp8_own(x: Quantized, weight: Quantized, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """linear_fp8 by our own kernel."""
    check_fp8(x, weight, bias, out_dtype)
    if not x.values.is_cuda:
        return linear_fp8_twin(x, weight, bias, out_dtype)
    out = torch.empty((len(x.values), len(weight.values)), dtype=out_dtype, device=x.values.device)
    _launch_product(x, weight, bias, out)
    return out


def gated_linear(x: Tensor, weight: Tensor, bias: Tensor | None, kind: Activation) -> Tensor:
    """kind(gate) * up in one product: x (T, C), weight (2F, C) and bias (2F,) interleaved, all of 16 bit -> (T, F).

    Never rounded between the product and the activation. Raises ValueError for float32, which would be cut to TF32,
    and for C or 2F that is no multiple of 16.
    """
    if x.dtype not in {torch.bfloat16, torch.float16} or weight.dtype != x.dtype:
        raise ValueError(f"a gated product takes 16-bit rows and weight of one dtype, not {x.dtype} and {weight.dtype}")
    if x.shape[1] % 16 or len(weight) % 16:
        raise ValueError(f"a gated product needs multiples of 16, not {x.shape[1]} -> {len(weight)}")
    if not x.is_cuda:
        return gated_linear_twin(x, weight, bias, kind)
    out = x.new_empty(len(x), len(weight) // 2)
    _launch_product(x, weight, bias, out, kind)
    return out


def gated_fp8(x: Quantized, weight: Quantized, bias: Tensor | None, kind: Activation, out_dtype: torch.dtype) -> Tensor:
    """kind(gate) * up in one product: x e4m3 (T, C), weight e4m3 (2F, C) and bias (2F,) interleaved -> (T, F).

    Never rounded between the product and the activation. Raises ValueError as linear_fp8 does.
    """
    check_fp8(x, weight, bias, bias.dtype if bias is not None else torch.bfloat16)
    if not x.values.is_cuda:
        return gated_fp8_twin(x, weight, bias, kind, out_dtype)
    out = torch.empty((len(x.values), len(weight.values) // 2), dtype=out_dtype, device=x.values.device)
    _launch_product(x, weight, bias, out, kind)
    return out


def interleave(gate: Tensor, up: Tensor) -> Tensor:
    """Two weights (F, ...), or scales, or biases -> one (2F, ...): row 2i is gate's row i, row 2i + 1 is up's.

    Two neighbours in a row of the product lie in one thread's registers, so a tile is taken apart without moving data.
    """
    if gate.dtype == E4M3:
        return interleave(gate.view(torch.uint8), up.view(torch.uint8)).view(E4M3)
    return torch.stack((gate, up), 1).flatten(0, 1)


def check_fp8(x: Quantized, weight: Quantized, bias: Tensor | None, out_dtype: torch.dtype) -> None:
    """Raises ValueError for what an FP8 product on capability 9.0 refuses, or would get wrong."""
    (num_rows, depth), (width, weight_depth) = x.values.shape, weight.values.shape
    if depth % 16 or width % 16:
        raise ValueError(f"an FP8 product needs multiples of 16, not {depth} -> {width}")
    if depth != weight_depth:
        raise ValueError(f"rows of {depth} values do not fit a weight of {weight_depth}")
    for name, part, count in (("rows", x, num_rows), ("weight", weight, width)):
        if part.values.dtype != E4M3 or not part.values.is_contiguous():
            raise ValueError(f"the {name} of an FP8 product must be contiguous e4m3, not {part.values.dtype}")
        if part.scale.dtype != torch.float32 or part.scale.shape != (count,) or not part.scale.is_contiguous():
            raise ValueError(
                f"the scales of the {name} must be contiguous float32 ({count},), not "
                f"{part.scale.dtype} {part.scale.shape}"
            )
    if bias is not None and (bias.dtype != out_dtype or out_dtype == torch.float32):
        raise ValueError(f"the bias of an FP8 product must be of its 16-bit dtype: {bias.dtype} for {out_dtype}")


def linear_fp8_twin(x: Quantized, weight: Quantized, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """The definition of linear_fp8: products of the values summed in float32, then scales, then bias, then rounded."""
    y = (x.values.float() @ weight.values.float().t()) * x.scale[:, None] * weight.scale
    return (y if bias is None else y + bias.float()).to(out_dtype)


def gated_linear_twin(x: Tensor, weight: Tensor, bias: Tensor | None, kind: Activation) -> Tensor:
    """The definition of gated_linear."""
    y = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    return _gated(y, kind).to(x.dtype)


def gated_fp8_twin(
    x: Quantized, weight: Quantized, bias: Tensor | None, kind: Activation, out_dtype: torch.dtype
) -> Tensor:
    """The definition of gated_fp8."""
    return _gated(linear_fp8_twin(x, weight, bias, torch.float32), kind).to(out_dtype)


def _gated(gate_up: Tensor, kind: Activation) -> Tensor:
    gate, up = gate_up.unflatten(1, (-1, 2)).unbind(-1)
    y: Tensor = ACTIVATIONS[kind](gate) * up
    return y


def tile_for(num_tokens: int, gated: bool = False) -> Tile:
    """T -> the shape of our own product; a gated one writes half as much, which leaves room for one step more."""
    tile = next(tile for most, tile in TILES if most is None or num_tokens <= most)
    return tile._replace(num_stages=tile.num_stages + gated)


def _launch_product(
    x: Tensor | Quantized,
    weight: Tensor | Quantized,
    bias: Tensor | None,
    out: Tensor,
    kind: Activation | None = None,
    num_programs: int | None = None,
) -> None:
    """Our own product into out: (T, N), or with a kind (T, N / 2). num_programs: None for one a multiprocessor."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    rows, x_scale = x if isinstance(x, Quantized) else (x, None)
    columns, weight_scale = weight if isinstance(weight, Quantized) else (weight, None)
    (num_tokens, depth), width = rows.shape, len(columns)
    tile, step = tile_for(num_tokens, kind is not None), STEP_BYTES // rows.element_size()
    if num_programs is None:
        num_programs = torch.cuda.get_device_properties(out.device).multi_processor_count
    num_tiles = triton.cdiv(num_tokens, tile.rows) * triton.cdiv(width, tile.columns)
    out_columns = tile.columns if kind is None else tile.columns // 2
    _product_kernel[(min(num_programs, num_tiles),)](
        TensorDescriptor.from_tensor(rows, [tile.rows, step]),
        TensorDescriptor.from_tensor(columns, [tile.columns, step]),
        TensorDescriptor.from_tensor(out, [tile.rows, out_columns]),
        x_scale,
        weight_scale,
        bias,
        num_tokens,
        N=width,
        C=depth,
        KIND=kind,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=step,
        GROUP=GROUP,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


@triton.jit(do_not_specialize=["T"])
def _product_kernel(
    x,
    weight,
    out,
    x_scale_ptr,
    weight_scale_ptr,
    bias_ptr,
    T,
    N: tl.constexpr,
    C: tl.constexpr,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    tiles_down = tl.cdiv(T, ROWS)
    tiles_across: tl.constexpr = (N + COLUMNS - 1) // COLUMNS
    for tile in tl.range(tl.program_id(0), tiles_down * tiles_across, tl.num_programs(0), flatten=True):
        first = tile // (GROUP * tiles_across) * GROUP
        height = tl.minimum(tiles_down - first, GROUP)
        inside = tile % (GROUP * tiles_across)
        row = (first + inside % height) * ROWS
        column = inside // height * COLUMNS
        sums = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in range(0, C, DEPTH):
            sums = tl.dot(x.load([row, step]), weight.load([column, step]).T, sums)
        rows, columns = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
        if x_scale_ptr is not None:
            sums *= tl.load(x_scale_ptr + rows, mask=rows < T, other=0.0)[:, None]
            sums *= tl.load(weight_scale_ptr + columns, mask=columns < N, other=0.0)[None, :]
        if bias_ptr is not None:
            sums += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
        if KIND is None:
            out.store([row, column], sums.to(out.dtype))
        else:
            gate, up = tl.split(tl.reshape(sums, (ROWS, COLUMNS // 2, 2)))
            out.store([row, column // 2], (activated(gate, KIND) * up).to(out.dtype))
