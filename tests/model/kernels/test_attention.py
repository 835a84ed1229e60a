"""Attention: the twin against the definition, the kernel against the twin, and what it compiles to."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from openbei.model.kernels import attention as module
from openbei.model.kernels.attention import (
    BLOCKS,
    Sequences,
    Tiles,
    attention,
    attention_twin,
    block_dim,
)
from openbei.model.ops import Attention
from openbei.model.ops.cuda_batch import make_tiles, num_tiles
from openbei.model.ops.numpy import NumpyOps
from openbei.model.spec import Batch
from tests.model.kernels.aot import Compiled, compile_launch
from tests.model.kernels.interpret import interpreted

MIXED = (1, 63, 0, 130, 64, 65, 17)  # around the edges of tiles and blocks, and an empty sequence
SHORT = (1, 40, 65)
SLACK = 9  # rows that belong to no sequence


@dataclass(frozen=True)
class Case:
    """One way to attend, and what to try it on."""

    name: str
    how: Attention
    head_dim: int = 32
    bias: str | None = None  # slopes, table
    lengths: tuple[int, ...] = MIXED
    rows: int = 64
    num_keys: tuple[int, ...] | None = None  # of each sequence; None: all its tokens


@dataclass(frozen=True)
class Inputs:
    q: Tensor
    k: Tensor
    v: Tensor
    sequences: Sequences
    tiles: Tiles
    bias: Tensor | None


def cases() -> list[Case]:
    """Every switch of the kernel, and every head width."""
    plain = Attention(num_heads=4, num_kv_heads=2, scale=0.3)
    two, one = replace(plain, num_heads=2, num_kv_heads=1), replace(plain, num_heads=1, num_kv_heads=1)
    wide = replace(one, scale=0.1)
    return [
        Case("plain", plain, lengths=SHORT),
        Case("one key head each", replace(plain, num_heads=2), lengths=SHORT),
        Case("mixed", one),
        Case("mixed, tall", one, rows=128),
        Case("causal", replace(one, causal=True)),
        Case("causal, tall", replace(one, causal=True), rows=128),
        Case("causal window of 1", replace(one, causal=True, window=1)),
        Case("causal window", replace(one, causal=True, window=63)),
        Case("causal window, tall", replace(one, causal=True, window=20), rows=128),
        Case("window", replace(one, window=126)),
        Case("odd window, tall", replace(one, window=51), rows=128),
        Case("softcap", replace(one, softcap=2.0)),
        Case("softcap, causal window", replace(one, softcap=2.0, causal=True, window=70)),
        Case("slopes", two, bias="slopes", lengths=SHORT),
        Case("table", two, bias="table", lengths=SHORT),
        Case("hidden", two, lengths=(70, 0, 1, 130, 64), num_keys=(3, 0, 1, 65, 64)),
        Case("hidden, tall", one, lengths=(150, 40), rows=128, num_keys=(1, 33)),
        Case("hidden, causal", replace(one, causal=True), lengths=(150, 40), num_keys=(70, 1)),
        Case("hidden, window", replace(one, window=126), lengths=(40, 150), num_keys=(1, 87)),
        Case("hidden, wide window", replace(one, window=398), lengths=(40, 150), num_keys=(1, 70)),
        Case("hidden, slopes", two, bias="slopes", lengths=SHORT, num_keys=(1, 20, 64)),
        Case("hidden, table", two, bias="table", lengths=SHORT, num_keys=(1, 20, 64)),
        Case("16 wide", one, 16, lengths=SHORT),
        Case("64 wide", wide, 64, lengths=SHORT),
        Case("96 wide", replace(wide, causal=True), 96, lengths=SHORT),
        Case("128 wide", wide, 128, lengths=SHORT),
        Case("256 wide", replace(wide, causal=True, window=33, softcap=9.0), 256, lengths=SHORT),
    ]


def make(case: Case, dtype: torch.dtype, device: str | torch.device = "cpu") -> Inputs:
    """Random q, k, v as slices of one product, NaN where no query looks and past the last sequence, spare tiles."""
    rng = torch.Generator().manual_seed(len(case.name))
    how, cu_seqlens = case.how, np.cumsum((0, *case.lengths), dtype=np.int32)
    widths = [heads * case.head_dim for heads in (how.num_heads, how.num_kv_heads, how.num_kv_heads)]
    joined = torch.randn(int(cu_seqlens[-1]) + SLACK, sum(widths), generator=rng)
    joined[cu_seqlens[-1] :] = torch.nan
    q, k, v = joined.to(device, dtype).split(widths, dim=1)
    key_ends = cu_seqlens[:-1] + np.array(case.num_keys or case.lengths, np.int32)
    for first_hidden, end in zip(key_ends, cu_seqlens[1:], strict=True):
        k[first_hidden:end], v[first_hidden:end] = torch.nan, torch.nan
    sequences = Sequences(*(torch.from_numpy(ends).to(device) for ends in (cu_seqlens, key_ends)))
    size = num_tiles(len(joined), len(case.lengths), case.rows)
    tiles = torch.from_numpy(make_tiles(cu_seqlens, case.rows, size)).to(device)
    shape = {"slopes": (how.num_heads,), "table": (how.num_heads, 2 * max(case.lengths) - 1)}
    bias = None if case.bias is None else torch.rand(shape[case.bias], generator=rng).to(device)
    return Inputs(q, k, v, sequences, Tiles(tiles[0], tiles[1], case.rows), bias)


def defined(case: Case, inputs: Inputs) -> Tensor:
    """The definition: ops/numpy.py, over the rows that belong to a sequence."""
    real = inputs.sequences.cu_seqlens[-1]
    table = inputs.bias
    if case.bias == "slopes":
        longest = max(case.lengths)
        table = -inputs.bias[:, None] * torch.arange(1 - longest, longest).abs()
    how = replace(case.how, bias=None if table is None else table.numpy())
    nothing = np.zeros(0, np.int32)
    offsets = np.unique(inputs.sequences.cu_seqlens.numpy())  # none is empty
    num_keys = np.array([num for num in case.num_keys or case.lengths if num], np.int32)
    ops = NumpyOps(Batch(nothing, nothing, nothing, offsets, num_keys), spec=None)
    q, k, v = (x[:real].numpy() for x in (inputs.q, inputs.k, inputs.v))
    return torch.from_numpy(ops.attention(q, k, v, how))


def poisoned(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.empty, but full of NaN: what no program writes shows."""
    return lambda *args, **kwargs: function(*args, **kwargs).fill_(torch.nan)


by_name = pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)


@by_name
def test_the_twin_is_the_definition(case: Case) -> None:
    inputs = make(case, torch.float32)
    got = attention(inputs.q, inputs.k, inputs.v, inputs.sequences, inputs.tiles, case.how, inputs.bias)
    want = defined(case, inputs)
    torch.testing.assert_close(got[: len(want)], want, atol=2e-6, rtol=0)
    assert not got[len(want) :].any()


@by_name
def test_the_kernel_equals_its_twin(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make(case, torch.float32)
    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(module, "FLOAT32_BLOCKS", dict.fromkeys((64, 128), module.Blocks(64, 4, 1)))  # as in 16 bits
    with interpreted():
        got = module._launch(inputs.q, inputs.k, inputs.v, inputs.sequences, inputs.tiles, case.how, inputs.bias)
    real = inputs.sequences.cu_seqlens[-1]
    want = attention_twin(inputs.q, inputs.k, inputs.v, inputs.sequences, case.how, inputs.bias)
    torch.testing.assert_close(got[:real], want[:real], atol=5e-6, rtol=0)
    assert got[real:].isnan().all()  # not written


def test_the_kernel_in_16_bits() -> None:
    case = cases()[0]
    inputs = make(case, torch.float16)
    with interpreted():
        got = module._launch(inputs.q, inputs.k, inputs.v, inputs.sequences, inputs.tiles, case.how, None)
    assert_as_good_as_the_twin(got, case, inputs)


@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_a_sequence_alone_comes_to_the_same_bits(place: str, request: pytest.FixtureRequest) -> None:
    if place == "cuda":
        request.getfixturevalue("device")
    case = Case("batch", Attention(2, 1, 0.3, window=80), lengths=(7, 100, 64))
    inputs = make(case, torch.float16, place)
    length = case.lengths[1]
    alone = Sequences(*(torch.tensor(ends, dtype=torch.int32, device=place) for ends in ([0, length], [length])))
    own = slice(case.lengths[0], case.lengths[0] + length)
    tiles = torch.from_numpy(make_tiles(alone.cu_seqlens.cpu().numpy(), 64, 2)).to(place)
    with interpreted() if place == "cpu" else nullcontext():
        batch = module._launch(inputs.q, inputs.k, inputs.v, inputs.sequences, inputs.tiles, case.how, None)
        single = module._launch(
            inputs.q[own], inputs.k[own], inputs.v[own], alone, Tiles(tiles[0], tiles[1], 64), case.how, None
        )
    assert torch.equal(batch[own], single)


@pytest.mark.cuda
@by_name
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_kernel_on_a_gpu(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    inputs = make(case, dtype, device)
    got = attention(inputs.q, inputs.k, inputs.v, inputs.sequences, inputs.tiles, case.how, inputs.bias)
    assert_as_good_as_the_twin(got, case, inputs)


def assert_as_good_as_the_twin(got: Tensor, case: Case, inputs: Inputs) -> None:
    """At most twice the twin's own error against float64, or what exp2 costs in float32."""
    real = inputs.sequences.cu_seqlens[-1]
    arguments = (inputs.sequences, case.how, inputs.bias)
    exact, twin = (
        attention_twin(*(x.to(dtype) for x in (inputs.q, inputs.k, inputs.v)), *arguments)[:real].double()
        for dtype in (torch.float64, inputs.q.dtype)
    )
    allowed = max(2 * float((twin - exact).abs().max()), 5e-6)
    assert float((got[:real].double() - exact).abs().max()) <= allowed


def compiled(how: Attention, head_dim: int, rows: int, bias: tuple[int, ...] | None) -> Compiled:
    """The kernel as it would run on an H100, in bfloat16."""
    num_rows = 512
    widths = [heads * head_dim for heads in (how.num_heads, how.num_kv_heads, how.num_kv_heads)]
    q, k, v = torch.empty((num_rows, sum(widths)), dtype=torch.bfloat16, device="meta").split(widths, dim=1)
    offsets = torch.empty(9, dtype=torch.int32, device="meta")
    sequences, tiles = Sequences(offsets, offsets), Tiles(offsets, offsets, rows)
    added = None if bias is None else torch.empty(bias, device="meta")
    return compile_launch(lambda: module._launch(q, k, v, sequences, tiles, how, added))


ENCODER = Attention(num_heads=16, num_kv_heads=16, scale=0.125)
DECODER = Attention(num_heads=32, num_kv_heads=8, scale=0.125, causal=True)
GEMMA = replace(DECODER, window=4096, softcap=50.0)
MODERN = replace(ENCODER, window=128)


@pytest.mark.parametrize(
    ("how", "head_dim", "rows", "bias"),
    [
        *((ENCODER, head_dim, rows, None) for head_dim, rows in BLOCKS if head_dim < 128),
        (DECODER, 128, 64, None),
        (DECODER, 128, 128, None),
        (GEMMA, 256, 64, None),
        (GEMMA, 256, 128, None),
        (ENCODER, 96, 64, None),
        (MODERN, 64, 128, None),
        (ENCODER, 64, 64, (16,)),
        (ENCODER, 64, 128, (16, 1023)),
    ],
)
def test_it_compiles_to_tensor_cores_without_a_spill(
    how: Attention, head_dim: int, rows: int, bias: tuple[int, ...] | None
) -> None:
    built = compiled(how, head_dim, rows, bias)
    # No bound of its own: 255 is the chip's, and up to it as many programs fit an SM as its shared memory lets in.
    built.check(max_registers=BLOCKS[block_dim(head_dim), rows].max_registers or 255)
    assert built.count("HGMMA") > 0
    assert built.count("HMMA") == 0
    assert built.count("LDGSTS") > 0  # the pipeline's asynchronous copies


def test_wide_heads_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="heads of up to 256 values, not 320"):
        module.blocks_of(320, 64, torch.bfloat16)
