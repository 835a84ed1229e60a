"""Tokens to states: rows of the word, position and segment tables, summed. Ids are trusted to lie in the tables."""

import torch
from torch import Tensor

from openbei.model.kernels import tl, triton


def embed(
    ids: Tensor,
    positions: Tensor,
    types: Tensor,
    word: Tensor,
    position: Tensor | None,
    segment: Tensor | None,
    scale: float,
) -> Tensor:
    """word[id] * scale (+ position[pos]) (+ segment[type]): int32 (T,) each -> (T, C) in the dtype of word.

    word (V, C), position (P, C), segment (S, C): one dtype, contiguous. Summed in float32 and rounded once.
    """
    run = _launch if word.is_cuda else embed_twin
    return run(ids, positions, types, word, position, segment, scale)


def embed_twin(
    ids: Tensor,
    positions: Tensor,
    types: Tensor,
    word: Tensor,
    position: Tensor | None,
    segment: Tensor | None,
    scale: float,
) -> Tensor:
    """The definition of embed."""
    x = word[ids].float() * scale
    if position is not None:
        x = x + position[positions].float()
    if segment is not None:
        x = x + segment[types].float()
    return x.to(word.dtype)


def _launch(
    ids: Tensor,
    positions: Tensor,
    types: Tensor,
    word: Tensor,
    position: Tensor | None,
    segment: Tensor | None,
    scale: float,
) -> Tensor:
    width = word.shape[1]
    out = torch.empty((len(ids), width), dtype=word.dtype, device=word.device)
    block = triton.next_power_of_2(width)
    _embed_kernel[(len(ids),)](
        ids,
        positions,
        types,
        word,
        word if position is None else position,
        word if segment is None else segment,
        out,
        scale,
        width,
        position is not None,
        segment is not None,
        block,
        num_warps=warps(block),
    )
    return out


def warps(block: int) -> int:
    """Warps for a program that holds `block` values of a row: 8 a thread, between 1 and 16 warps."""
    return min(max(block // 256, 1), 16)


@triton.jit(do_not_specialize=["scale"])
def _embed_kernel(
    ids_ptr,
    positions_ptr,
    types_ptr,
    word_ptr,
    position_ptr,
    segment_ptr,
    out_ptr,
    scale,
    width,
    POSITION: tl.constexpr,
    SEGMENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    token = tl.load(ids_ptr + row).to(tl.int64)
    x = tl.load(word_ptr + token * width + column, inside, other=0.0).to(tl.float32) * scale
    if POSITION:
        place = tl.load(positions_ptr + row).to(tl.int64)
        x += tl.load(position_ptr + place * width + column, inside, other=0.0).to(tl.float32)
    if SEGMENT:
        kind = tl.load(types_ptr + row).to(tl.int64)
        x += tl.load(segment_ptr + kind * width + column, inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row.to(tl.int64) * width + column, x.to(out_ptr.dtype.element_ty), inside)
