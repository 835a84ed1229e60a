"""Tokens to states and through the norm that follows, in one launch: rows of the tables, summed and normed.

Ids are trusted to lie in the tables. Rounded where separate launches would round, so that they would give the same.
"""

from typing import NamedTuple

from torch import Tensor

from openbei.model.kernels import tl, triton
from openbei.model.kernels.norm import Normed, Want, add_norm_twin, outputs_for, store_normed
from openbei.model.kernels.quantize import program_for
from openbei.model.ops import NormSpec


class Lookup(NamedTuple):
    """word[id] * scale (+ position[pos]) (+ segment[type]).

    ids, positions, types: int32 (T,). word (V, C), position (P, C), segment (S, C): of one dtype, contiguous.
    """

    ids: Tensor
    positions: Tensor
    types: Tensor
    word: Tensor
    position: Tensor | None
    segment: Tensor | None
    scale: float


def embed_norm(
    of: Lookup, weight: Tensor, bias: Tensor | None, spec: NormSpec, want: Want = "plain", keep_sum: bool = True
) -> Normed:
    """norm(what is looked up), (T, C) in the dtype of word: add_norm of it, which is summed in float32 and rounded."""
    run = _launch if of.word.is_cuda else embed_norm_twin
    return run(of, weight, bias, spec, want, keep_sum)


def embed_norm_twin(
    of: Lookup, weight: Tensor, bias: Tensor | None, spec: NormSpec, want: Want = "plain", keep_sum: bool = True
) -> Normed:
    """The definition of embed_norm."""
    return add_norm_twin(looked_up(of), None, weight, bias, spec, want, keep_sum)


def looked_up(of: Lookup) -> Tensor:
    """The states before the norm, by plain PyTorch: (T, C)."""
    x = of.word[of.ids].float() * of.scale
    if of.position is not None:
        x = x + of.position[of.positions].float()
    if of.segment is not None:
        x = x + of.segment[of.types].float()
    return x.to(of.word.dtype)


def _launch(
    of: Lookup, weight: Tensor, bias: Tensor | None, spec: NormSpec, want: Want = "plain", keep_sum: bool = True
) -> Normed:
    num_rows, width = len(of.ids), of.word.shape[1]
    block, num_warps = program_for(width)
    out = outputs_for(of.word, num_rows, want, keep_sum)
    _embed_norm_kernel[(num_rows,)](
        of.ids,
        of.positions,
        of.types,
        of.word,
        of.position,
        of.segment,
        weight,
        bias,
        out.x,
        out.plain,
        *(out.quantized or (None, None)),
        of.scale,
        spec.eps,
        C=width,
        BLOCK=block,
        RMS=spec.kind == "rms",
        num_warps=num_warps,
    )
    return out


@triton.jit
def _embed_norm_kernel(
    ids_ptr,
    positions_ptr,
    types_ptr,
    word_ptr,
    position_ptr,
    segment_ptr,
    weight_ptr,
    bias_ptr,
    total_ptr,
    plain_ptr,
    values_ptr,
    scales_ptr,
    scale,
    eps,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    RMS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    real = columns < C
    token = tl.load(ids_ptr + row).to(tl.int64)
    s = tl.load(word_ptr + token * C + columns, mask=real, other=0.0).to(tl.float32) * scale
    if position_ptr is not None:
        place = tl.load(positions_ptr + row).to(tl.int64)
        s += tl.load(position_ptr + place * C + columns, mask=real, other=0.0).to(tl.float32)
    if segment_ptr is not None:
        kind = tl.load(types_ptr + row).to(tl.int64)
        s += tl.load(segment_ptr + kind * C + columns, mask=real, other=0.0).to(tl.float32)
    s = s.to(word_ptr.dtype.element_ty)
    store_normed(
        s, weight_ptr, bias_ptr, total_ptr, plain_ptr, values_ptr, scales_ptr, row, columns, real, eps, C, RMS
    )  # fmt: skip
