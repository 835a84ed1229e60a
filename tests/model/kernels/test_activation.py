import math
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch

from openbei.model.kernels.activation import _launch, activate, gated, twin
from openbei.model.kernels.quantize import Quantized, quantize_rows_twin
from openbei.model.spec import Activation
from tests.model.kernels.aot import compile_launch
from tests.model.kernels.launches import DEVICES_AND_DTYPES, error, on, spread, strided, without_e4m3

# In float64, from their papers and not from PyTorch.
FORMULAS: dict[Activation, Callable[[float], float]] = {
    "gelu": lambda x: x / 2 * math.erfc(-x / math.sqrt(2)),
    "gelu_tanh": lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "identity": lambda x: x,
}
KINDS = pytest.mark.parametrize("kind", get_args(Activation))
LINE = torch.cat([torch.linspace(-20, 20, 1001), torch.linspace(-0.5, 0.5, 1001)])


def formula(kind: Activation, x: torch.Tensor) -> torch.Tensor:
    values = [FORMULAS[kind](value) for value in x.double().flatten().tolist()]
    return torch.from_numpy(np.array(values)).reshape(x.shape)


@KINDS
def test_the_twin_is_the_formula(kind: Activation) -> None:
    x = strided(LINE.reshape(2, -1))
    torch.testing.assert_close(
        activate(x, kind).double(), formula(kind, x), rtol=2e-6, atol=4e-7
    )  # 1 + erf(-4) cancels
    gate, up = x[:, :500], x[:, 501:1001].contiguous()
    got = gated(torch.cat((gate, up), 1), kind)
    torch.testing.assert_close(got.double(), formula(kind, gate) * up.double(), rtol=2e-6, atol=20 * 4e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_twin_rounds_once_and_quantises_what_is_rounded(dtype: torch.dtype) -> None:
    x = spread((6, 64)).to(dtype)
    plain = gated(x, "silu")
    assert plain.dtype == dtype
    assert torch.equal(plain, (torch.nn.functional.silu(x[:, :32].float()) * x[:, 32:].float()).to(dtype))
    got, expected = gated(x, "silu", quantize=True), quantize_rows_twin(plain)
    assert torch.equal(got.values.float(), expected.values.float())
    assert torch.equal(got.scale, expected.scale)


@KINDS
def test_the_kernel_is_as_right_as_its_twin(kind: Activation) -> None:
    x = LINE.reshape(2, -1)
    with on("cpu"):
        got = _launch(x, kind, quantize=False, gated=False)
    torch.testing.assert_close(got.double(), formula(kind, x), rtol=1e-6, atol=3e-7)


@pytest.mark.parametrize(("device", "dtype"), DEVICES_AND_DTYPES)
@KINDS
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("width", [48, 2100])
def test_the_kernel_equals_its_twin(
    device: str, dtype: torch.dtype, kind: Activation, paired: bool, width: int
) -> None:
    x = strided((spread((3, 2 * width if paired else width)) / 10).to(dtype).to(device))
    if kind == "sigmoid":
        x[1] = -5.0  # it is less here than at the zeros beyond the row
    expected = twin(x.cpu(), kind, quantize=False, gated=paired)
    with on(device), without_e4m3():
        got = _launch(x, kind, quantize=False, gated=paired)
        quantized = _launch(x, kind, quantize=True, gated=paired)
        assert isinstance(quantized, Quantized)
        again = quantize_rows_twin(got.cpu())
    assert got.is_contiguous()
    assert error(got, expected) <= torch.finfo(dtype).eps * (4 if dtype == torch.float32 else 1)
    assert torch.equal(quantized.values.cpu(), again.values)
    assert torch.equal(quantized.scale.cpu(), again.scale)


def test_the_kernel_keeps_nan() -> None:
    x = torch.ones(1, 32)
    x[0, 7] = torch.nan
    with on("cpu"):
        for kind in get_args(Activation):
            assert _launch(x, kind, quantize=False, gated=False).isnan().nonzero().tolist() == [[0, 7]], kind


# Of a row of 28672, exact GELU alone spills (48 bytes a thread); no model has the two together.
@pytest.mark.parametrize(
    ("kind", "width", "quantize", "registers"),
    [
        ("gelu", 4096, False, 48),
        ("gelu", 3072, True, 48),
        ("gelu_tanh", 14336, True, 32),
        ("silu", 28672, True, 64),
        ("relu", 1536, False, 32),
    ],
)
def test_compiled_for_the_h100(kind: Activation, width: int, quantize: bool, registers: int) -> None:
    paired = kind != "gelu"
    x = torch.empty(100, 2 * width if paired else width, dtype=torch.bfloat16, device="meta")
    built = compile_launch(lambda: _launch(x, kind, quantize, gated=paired))
    built.check(registers)
    assert built.count("LDG") == built.count("LDG.E.128") > 0
    assert built.count("STG") == built.count("STG.E.128") + quantize
    assert ("max.NaN." in built.ptx) == (kind == "relu")  # and not the max that drops a NaN
