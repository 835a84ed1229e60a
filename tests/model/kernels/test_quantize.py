import numpy as np
import pytest
import torch

from openbei.model.kernels.quantize import (
    E4M3,
    MAX_WIDTH,
    ROWS_AT_ONCE,
    _launch,
    program_for,
    quantize_rows,
    quantize_rows_twin,
    quantize_weight,
    to_e4m3,
)
from tests.model.kernels.aot import compile_launch
from tests.model.kernels.launches import (
    DEVICES,
    DEVICES_AND_DTYPES,
    NO_GPU,
    on,
    spread,
    strided,
    without_e4m3,
)

WIDTHS = [16, 100, 384, 1024]


def nearest_e4m3(x: np.ndarray) -> np.ndarray:
    """Round to the nearest e4m3 number, written out from its bits: 4 of exponent with bias 7, 3 of mantissa."""
    codes = np.arange(127)  # 0x7f is NaN
    exponent, mantissa = codes >> 3, codes & 7
    numbers = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10))
    above = np.clip(np.searchsorted(numbers, np.abs(x)), 1, 126)
    low, high = np.abs(x) - numbers[above - 1], numbers[above] - np.abs(x)
    code = np.where((high < low) | ((high == low) & (above % 2 == 0)), above, above - 1)
    return np.copysign(numbers[code], x)


def test_every_float16_value_is_rounded_to_the_nearest_e4m3() -> None:
    x = np.arange(2**16, dtype=np.uint16).view(np.float16)
    x = x[~np.isnan(x)]
    got = to_e4m3(torch.from_numpy(x).float()).float().numpy()
    np.testing.assert_array_equal(got, nearest_e4m3(x.astype(np.float64)))
    np.testing.assert_array_equal(np.signbit(got), np.signbit(x))
    assert to_e4m3(torch.tensor(torch.nan)).float().isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_row_is_its_values_times_its_scale(dtype: torch.dtype) -> None:
    x = spread((40, 96)).to(dtype)
    values, scale = quantize_rows(strided(x))
    amax = x.double().abs().amax(-1)
    torch.testing.assert_close(scale.double(), amax / 448, rtol=2**-23, atol=0)
    assert (values.float().abs().amax(-1) == 448).all()
    exact = x.double() / scale.double()[:, None]
    step = torch.maximum(2.0 ** (exact.abs().log2().floor() - 3), torch.tensor(2.0**-9))
    # Half a step, and what the division in float32 may add to it.
    assert ((values.double() - exact).abs() <= step * (0.5 + 1e-5)).all()


def test_rows_of_zeros_have_scale_1_and_nan_stays() -> None:
    x = torch.zeros(4, 16)
    x[1, 3], x[2, 3], x[3, 3] = torch.nan, torch.inf, 1e-45  # of the last, even the scale would be 0
    values, scale = quantize_rows(x)
    assert scale[0] == 1
    assert (values[0].float() == 0).all()
    assert values[1, 3].isnan()
    assert values[2, 3].isnan()
    assert scale[3] == 1
    assert (values[3].float() == 0).all()


def test_a_weight_is_quantised_by_output_channel() -> None:
    weight = spread((2 * ROWS_AT_ONCE + 3, 8))
    values, scale = quantize_weight(weight)
    whole = quantize_rows_twin(weight)
    assert values.dtype == E4M3
    assert torch.equal(values.float(), whole.values.float())
    assert torch.equal(scale, whole.scale)


@pytest.mark.parametrize(("device", "dtype"), DEVICES_AND_DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_kernel_equals_its_twin_before_the_cast(device: str, dtype: torch.dtype, width: int) -> None:
    x = strided(spread((6, width)).to(dtype).to(device))
    x[4] = 0
    with on(device), without_e4m3():
        got = _launch(x)
        expected = quantize_rows_twin(x.cpu())
    assert torch.equal(got.scale.cpu(), expected.scale)
    assert torch.equal(got.values.cpu(), expected.values)


@pytest.mark.parametrize("device", DEVICES)
def test_the_kernel_keeps_nan(device: str) -> None:
    x = torch.ones(2, 40, device=device)
    x[1, 5] = torch.nan
    with on(device), without_e4m3():
        got = _launch(x)
    assert got.values.isnan().nonzero().tolist() == [[1, 5]]


@pytest.mark.cuda
@NO_GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_kernel_equals_its_twin_bit_for_bit(dtype: torch.dtype) -> None:
    x = spread((300, 4096)).to(dtype).cuda()
    expected = quantize_rows_twin(x.cpu())
    for got in (_launch(x), quantize_weight(x)):
        assert torch.equal(got.scale.cpu(), expected.scale)
        assert torch.equal(got.values.view(torch.uint8).cpu(), expected.values.view(torch.uint8))


@pytest.mark.parametrize("width", [384, 28672])
def test_compiled_for_the_h100(width: int) -> None:
    built = compile_launch(lambda: _launch(torch.empty(100, width, dtype=torch.bfloat16, device="meta")))
    built.check(max_registers=64)
    assert built.count("LDG") == built.count("LDG.E.128")
    assert "div.full" not in built.ptx
    assert "cvt.rn.satfinite.e4m3x2.f32" in built.ptx  # to nearest even
    assert "min.NaN." in built.ptx  # and not the min that drops a NaN
    assert "div.rn.f32" in built.ptx


@pytest.mark.parametrize("width", [1, 16, 17, 384, 768, 1000, 4096, 8960, 28672, MAX_WIDTH])
def test_a_program_holds_its_row(width: int) -> None:
    block, num_warps = program_for(width)
    assert width <= block < 2 * max(width, 9)
    assert block & (block - 1) == 0
    assert num_warps in {1, 2, 4, 8, 16, 32}
    assert block <= 32 * 32 * num_warps


def test_a_row_too_wide_is_refused() -> None:
    with pytest.raises(ValueError, match="32769 values is wider than the 32768"):
        program_for(MAX_WIDTH + 1)
