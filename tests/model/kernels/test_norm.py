from typing import get_args

import pytest
import torch
from torch import Tensor

from openbei.model.kernels.norm import (
    Normed,
    Want,
    _launch_add_norm,
    _launch_head_norm,
    add_norm,
    add_norm_twin,
    head_norm,
    head_norm_twin,
)
from openbei.model.kernels.quantize import Quantized, quantize_rows_twin
from openbei.model.ops import NormSpec
from tests.model.kernels.aot import compile_launch
from tests.model.kernels.launches import (
    DEVICES_AND_DTYPES,
    error,
    on,
    spread,
    strided,
    without_e4m3,
)

LAYER, RMS = NormSpec("layer", 1e-5), NormSpec("rms", 1e-6)
SPECS = pytest.mark.parametrize("spec", [LAYER, RMS], ids=["layer", "rms"])
BF16 = torch.bfloat16


def definition(x: Tensor, weight: Tensor, bias: Tensor | None, spec: NormSpec) -> Tensor:
    """The formula in float64, over the last axis."""
    x = x.double()
    if spec.kind == "layer":
        mean = x.sum(-1, keepdim=True) / x.shape[-1]
        x = x - mean
    y = x / torch.sqrt((x**2).sum(-1, keepdim=True) / x.shape[-1] + spec.eps) * weight.double()
    return y if bias is None else y + bias.double()


def parameters(width: int, biased: bool) -> tuple[Tensor, Tensor | None]:
    random = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(2, width, generator=random)
    return weight, bias if biased else None


@SPECS
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BF16])
def test_the_twin_is_the_formula(spec: NormSpec, biased: bool, dtype: torch.dtype) -> None:
    x, residual = (strided(spread((9, 96), seed).to(dtype)) for seed in (1, 2))
    weight, bias = parameters(96, biased)
    got = add_norm(x, residual, weight, bias, spec, "both")
    total = (x.double() + residual.double()).to(dtype)
    assert torch.equal(got.x, total)
    expected = definition(total, weight, bias, spec)
    assert error(got.plain, expected) <= torch.finfo(dtype).eps * (4 if dtype == torch.float32 else 1)
    assert_quantized_from(got.plain, got.quantized)


@SPECS
@pytest.mark.parametrize("width", [8, 96, 128])
def test_the_twin_norms_each_head_by_itself(spec: NormSpec, width: int) -> None:
    x = strided(spread((5, 3 * width)))
    weight, bias = parameters(width, biased=True)
    got = head_norm(x, weight, bias, spec)
    for head in range(3):
        columns = slice(head * width, (head + 1) * width)
        assert error(got[:, columns], definition(x[:, columns], weight, bias, spec)) <= 4e-7
    assert got.is_contiguous()


@pytest.mark.parametrize("want", get_args(Want))
@pytest.mark.parametrize("keep_sum", [True, False])
def test_only_what_is_wanted_is_given(want: Want, keep_sum: bool) -> None:
    x, (weight, _) = spread((3, 32)), parameters(32, biased=False)
    for run in (add_norm_twin, _launch_add_norm):
        with on("cpu"):
            got = run(x, x, weight, None, RMS, want, keep_sum)
        assert (got.x is None, got.plain is None, got.quantized is None) == (
            not keep_sum,
            want == "quantized",
            want == "plain",
        )
        with on("cpu"):
            alone = run(x, None, weight, None, RMS, want, keep_sum)
        assert alone.x is (x if keep_sum else None)


@pytest.mark.parametrize(("device", "dtype"), DEVICES_AND_DTYPES)
@SPECS
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("width", [100, 384])
def test_the_kernel_equals_its_twin(
    device: str, dtype: torch.dtype, spec: NormSpec, biased: bool, added: bool, width: int
) -> None:
    x, residual = (strided(spread((7, width), seed).to(dtype).to(device)) for seed in (1, 2))
    x[3], residual[3] = 1.0, 2.0  # all alike: LayerNorm divides by little more than sqrt(eps)
    weight, bias = (None if part is None else part.to(device) for part in parameters(width, biased))
    arguments = (x, residual if added else None, weight, bias, spec, "both")
    with on(device), without_e4m3():
        got = _launch_add_norm(*arguments)
        assert_quantized_from(got.plain, got.quantized)
    expected = add_norm_twin(*(part.cpu() if isinstance(part, Tensor) else part for part in arguments))
    assert_same(got, expected, torch.finfo(dtype).eps * (4 if dtype == torch.float32 else 1))


@pytest.mark.parametrize(("device", "dtype"), DEVICES_AND_DTYPES)
@SPECS
@pytest.mark.parametrize(("heads", "width"), [(1, 16), (3, 24), (5, 96), (20, 128)])
def test_the_head_kernel_equals_its_twin(
    device: str, dtype: torch.dtype, spec: NormSpec, heads: int, width: int
) -> None:
    x = strided(spread((4, heads * width)).to(dtype).to(device))
    weight, bias = parameters(width, biased=spec.kind == "layer")
    bias = None if bias is None else bias.to(device)
    with on(device):
        got = _launch_head_norm(x, weight.to(device), bias, spec)
    expected = head_norm_twin(x.cpu(), weight, None if bias is None else bias.cpu(), spec)
    assert got.is_contiguous()
    assert error(got, expected) <= torch.finfo(dtype).eps * (4 if dtype == torch.float32 else 1)


@pytest.mark.parametrize(("width", "spec", "registers"), [(384, LAYER, 40), (4096, RMS, 64), (8192, LAYER, 56)])
def test_compiled_for_the_h100(width: int, spec: NormSpec, registers: int) -> None:
    x, weight = meta(100, width), meta(width)
    bias = weight if spec.kind == "layer" else None
    built = compile_launch(lambda: _launch_add_norm(x, x, weight, bias, spec, "both"))
    built.check(registers)
    assert built.count("LDG") == built.count("LDG.E.128") > 0
    assert built.count("STG.E.U16", "STG.E.U8") == 0  # rows leave in wide stores, one scale in a narrow one
    assert built.count("STG.E.128") > 0


@pytest.mark.parametrize(("heads", "width"), [(8, 128), (12, 96)])
def test_heads_compiled_for_the_h100(heads: int, width: int) -> None:
    built = compile_launch(lambda: _launch_head_norm(meta(100, heads * width), meta(width), None, RMS))
    built.check(40)
    assert built.count("LDG.E.128") > 0
    assert built.count("STG") == built.count("STG.E.128") > 0


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=BF16, device="meta")


def assert_quantized_from(plain: Tensor, quantized: Quantized) -> None:
    expected = quantize_rows_twin(plain.cpu())
    assert torch.equal(quantized.values.float().cpu(), expected.values.float())
    assert torch.equal(quantized.scale.cpu(), expected.scale)


def assert_same(got: Normed, expected: Normed, limit: float) -> None:
    assert torch.equal(got.x.cpu(), expected.x)
    assert error(got.plain, expected.plain) <= limit
