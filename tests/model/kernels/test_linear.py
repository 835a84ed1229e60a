import pytest
import torch
from torch import Tensor

from openbei.model.kernels import linear as module
from openbei.model.kernels.activation import ACTIVATIONS
from openbei.model.kernels.linear import (
    GROUP,
    TILES,
    _launch_product,
    gated_fp8,
    gated_fp8_twin,
    gated_linear,
    gated_linear_twin,
    interleave,
    linear,
    linear_fp8,
    linear_fp8_own,
    linear_fp8_twin,
    tile_for,
)
from openbei.model.kernels.quantize import E4M3, Quantized, quantize_rows_twin, quantize_weight
from openbei.model.spec import Activation
from tests.model.kernels.aot import compile_launch
from tests.model.kernels.launches import DEVICES, NO_GPU, error, on, spread, strided

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def operands(num_tokens: int, depth: int, width: int) -> tuple[Quantized, Quantized]:
    return quantize_rows_twin(spread((num_tokens, depth), 1)), quantize_weight(spread((width, depth), 2) / 100)


def exact(x: Quantized, weight: Quantized, bias: Tensor | None) -> Tensor:
    """The product in float64."""
    rows, columns = (part.values.double() * part.scale.double()[:, None] for part in (x, weight))
    y = rows @ columns.t()
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_linear_takes_rows_at_any_stride(dtype: torch.dtype) -> None:
    x, weight, bias = (
        strided(spread((7, 48)) / 100).to(dtype),
        spread((20, 48)).to(dtype) / 100,
        torch.ones(20).to(dtype),
    )
    expected = x.double() @ weight.double().t() + 1
    assert error(linear(x, weight, bias), expected) <= torch.finfo(dtype).eps * (8 if dtype == F32 else 1)


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize("biased", [True, False])
def test_the_fp8_twin_is_the_dequantised_product(dtype: torch.dtype, biased: bool) -> None:
    x, weight = operands(9, 160, 48)
    bias = torch.randn(48).to(dtype) if biased and dtype != F32 else None
    got = linear_fp8(x, *weight, bias, dtype)
    assert got.dtype == dtype
    limit = 4e-6 if dtype == F32 else torch.finfo(dtype).eps
    assert error(got, exact(x, weight, bias)) <= limit
    assert error(linear_fp8_own(x, weight, bias, dtype), exact(x, weight, bias)) <= limit


@pytest.mark.parametrize("biased", [True, False])
def test_pytorchs_scaled_product_takes_these_layouts(biased: bool) -> None:
    x, weight = operands(9, 160, 48)
    bias = torch.randn(48).to(BF16) if biased else None
    got = torch._scaled_mm(
        x.values, weight.values.t(), x.scale[:, None], weight.scale[None, :], bias=bias, out_dtype=BF16
    )
    # PyTorch's CPU version may round once more, before the bias.
    assert error(got, exact(x, weight, bias)) <= 2 * torch.finfo(BF16).eps


def test_quantising_a_product_costs_what_the_format_does() -> None:
    x, weight = torch.randn(64, 512), torch.randn(96, 512)
    got = linear_fp8(quantize_rows_twin(x), *quantize_weight(weight), None, F32)
    relative = (got - x @ weight.t()).norm() / (x @ weight.t()).norm()
    assert 0.02 < relative < 0.05  # two factors of 3 bits of mantissa, each off by 2.6 % at random


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w: (x, Quantized(w.values[:15], w.scale[:15]), None), "multiples of 16, not 64 -> 15"),
        (lambda x, w: (quantize_rows_twin(torch.ones(3, 24)), w, None), "multiples of 16, not 24 -> 32"),
        (lambda x, w: (quantize_rows_twin(torch.ones(3, 32)), w, None), "rows of 32 values do not fit a weight of 64"),
        (lambda x, w: (Quantized(x.values.float(), x.scale), w, None), "rows of an FP8 product .* not torch.float32"),
        (lambda x, w: (x, Quantized(w.values.t().contiguous().t(), w.scale), None), "the weight of an FP8 product"),
        (lambda x, w: (Quantized(x.values, x.scale[:1]), w, None), r"scales of the rows .* \(3,\), not .*\[1\]"),
        (lambda x, w: (x, Quantized(w.values, w.scale.double()), None), "scales of the weight .* torch.float64"),
        (lambda x, w: (x, w, torch.ones(32)), "the bias .* torch.float32 for torch.bfloat16"),
    ],
)
def test_what_a_gpu_would_refuse_or_get_wrong_is_refused_here_too(change, message: str) -> None:
    x, weight, bias = change(*operands(3, 64, 32))
    with pytest.raises(ValueError, match=message):
        linear_fp8(x, *weight, bias, BF16)
    with pytest.raises(ValueError, match=message):
        linear_fp8_own(x, weight, bias, BF16)
    if bias is None:
        with pytest.raises(ValueError, match=message):
            gated_fp8(x, weight, None, "silu", BF16)


@pytest.mark.parametrize("dtype", [F32, BF16, E4M3])
@pytest.mark.parametrize("shape", [(6,), (6, 5)])
def test_interleaving_takes_turns(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    gate, up = torch.arange(30.0)[: 6 * (shape[-1] if len(shape) == 2 else 1)].reshape(shape).to(dtype), None
    up = (gate.float() + 100).to(dtype)
    both = interleave(gate, up)
    assert both.shape == (12, *shape[1:])
    assert both.is_contiguous()
    assert torch.equal(both[0::2].float(), gate.float())
    assert torch.equal(both[1::2].float(), up.float())


@pytest.mark.parametrize("kind", ["silu", "gelu"])
@pytest.mark.parametrize("biased", [True, False])
def test_the_gated_twin_is_two_products(kind: Activation, biased: bool) -> None:
    x, gate = operands(9, 64, 32)
    up = quantize_weight(spread((32, 64), 3) / 100)
    biases = torch.randn(2, 32).to(BF16) if biased else (None, None)
    weight = Quantized(*(interleave(*pair) for pair in zip(gate, up, strict=True)))
    bias = interleave(*biases) if biased else None
    expected = ACTIVATIONS[kind](exact(x, gate, biases[0])) * exact(x, up, biases[1])
    got = gated_fp8(x, weight, bias, kind, BF16)
    assert error(got, expected) <= torch.finfo(BF16).eps


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("num_tokens", "depth", "width"), [(1, 128, 128), (63, 80, 144), (70, 272, 400)])
@pytest.mark.parametrize("biased", [True, False])
def test_our_own_product_equals_its_twin(device: str, num_tokens: int, depth: int, width: int, biased: bool) -> None:
    x, weight = operands(num_tokens, depth, width)
    bias = spread((1, width))[0].to(F16) if biased else None
    on_device = moved(x, weight, bias, device)
    out = torch.full((num_tokens + 1, width), torch.nan, dtype=F16, device=device)
    with on(device):
        _launch_product(*on_device, out[:num_tokens], num_programs=3)
    assert error(out[:num_tokens], linear_fp8_twin(x, weight, bias, F16)) <= 2 * torch.finfo(F16).eps
    assert out[num_tokens].isnan().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("num_tokens", "depth", "width"), [(1, 128, 128), (70, 272, 416)])
@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
def test_our_own_gated_product_equals_its_twin(
    device: str, num_tokens: int, depth: int, width: int, kind: Activation
) -> None:
    x, weight = operands(num_tokens, depth, width)
    bias = spread((1, width))[0].to(F16)
    on_device = moved(x, weight, bias, device)
    out = torch.full((num_tokens + 1, width // 2), torch.nan, device=device)
    with on(device):
        _launch_product(*on_device, out[:num_tokens], kind, num_programs=3)
    assert error(out[:num_tokens], gated_fp8_twin(x, weight, bias, kind, F32)) <= 4e-6
    assert out[num_tokens].isnan().all()


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("biased", [True, False])
def test_the_16_bit_gated_twin_is_two_products(dtype: torch.dtype, biased: bool) -> None:
    x = torch.randn(9, 64).to(dtype)
    gate, up = torch.randn(2, 32, 64).to(dtype)
    first, second = torch.randn(2, 32).to(dtype) if biased else torch.zeros(2, 32)
    got = gated_linear(x, interleave(gate, up), interleave(first, second) if biased else None, "silu")
    products = (x.double() @ part.double().t() + b.double() for part, b in ((gate, first), (up, second)))
    expected = ACTIVATIONS["silu"](next(products)) * next(products)
    assert error(got, expected) <= torch.finfo(dtype).eps


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("biased", [True, False])
def test_our_own_16_bit_gated_product_equals_its_twin(device: str, biased: bool) -> None:
    x, weight = (spread((70, 208), 1) / 100).to(F16), (spread((288, 208), 2) / 100).to(F16)
    bias = spread((1, 288))[0].to(F16) if biased else None
    out = torch.full((71, 144), torch.nan, dtype=F16, device=device)
    with on(device):
        _launch_product(*(None if t is None else t.to(device) for t in (x, weight, bias)), out[:70], "gelu", 3)
    assert error(out[:70], gated_linear_twin(x, weight, bias, "gelu")) <= 2 * torch.finfo(F16).eps
    assert out[70].isnan().all()


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (torch.ones(3, 32), torch.ones(32, 32), "16-bit rows .* not torch.float32 and torch.float32"),
        (torch.ones(3, 32).half(), torch.ones(32, 32), "16-bit rows .* not torch.float16 and torch.float32"),
        (torch.ones(3, 40).half(), torch.ones(32, 40).half(), "not 40 -> 32"),
        (torch.ones(3, 32).half(), torch.ones(24, 32).half(), "not 32 -> 24"),
    ],
)
def test_a_gated_product_refuses_what_it_would_get_wrong(x: Tensor, weight: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gated_linear(x, weight, None, "silu")


@pytest.mark.parametrize("tiles", [1, GROUP, 2 * GROUP + 3])
def test_every_tile_is_computed_whatever_the_number_of_programs(tiles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILES", ((None, module.Tile(16, 16, 4, 3)),))
    x, weight = operands(16 * tiles - 3, 64, 48)
    expected = linear_fp8_twin(x, weight, None, F32)
    for num_programs in (1, 5, 1000):
        out = torch.full(expected.shape, torch.nan)
        with on("cpu"):
            _launch_product(x, weight, None, out, num_programs=num_programs)
        assert error(out, expected) <= 1e-6


# One of each shape and epilogue of the tables.
@pytest.mark.parametrize(
    ("num_tokens", "kind", "biased", "registers"),
    [(64, None, False, 128), (512, "silu", False, 128), (8192, None, True, 240), (8192, "silu", False, 208)],
)
def test_compiled_for_the_h100(num_tokens: int, kind: Activation | None, biased: bool, registers: int) -> None:
    def meta(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x = Quantized(meta(num_tokens, 4096, dtype=E4M3), meta(num_tokens, dtype=F32))
    weight = Quantized(meta(8192, 4096, dtype=E4M3), meta(8192, dtype=F32))
    bias = meta(8192, dtype=BF16) if biased else None
    result = meta(num_tokens, 4096 if kind else 8192, dtype=BF16)
    built = compile_launch(lambda: _launch_product(x, weight, bias, result, kind, num_programs=132))
    built.check(registers)
    assert built.count("QGMMA") > 0
    assert built.count("HGMMA", "HMMA", "QMMA") == 0
    assert built.count("UTMALDG") == 2 * tile_for(num_tokens, kind is not None).num_stages  # loads run that far ahead
    assert built.count("UTMASTG") == 1
    assert built.count("LDGSTS") == 0


def test_the_16_bit_product_compiled_for_the_h100() -> None:
    x, weight = (torch.empty(rows, 4096, dtype=BF16, device="meta") for rows in (8192, 8192))
    out = torch.empty(8192, 4096, dtype=BF16, device="meta")
    built = compile_launch(lambda: _launch_product(x, weight, None, out, "silu", num_programs=132))
    built.check(208)
    assert built.count("HGMMA") > 0
    assert built.count("QGMMA", "HMMA", "LDGSTS") == 0
    assert built.count("UTMALDG") == 2 * tile_for(8192, gated=True).num_stages


def test_each_size_has_a_tile() -> None:
    assert [most for most, _ in TILES][-1] is None
    assert tile_for(1).rows == 64
    assert tile_for(64).rows == 64
    assert tile_for(65).rows == 128
    assert tile_for(100_000).columns == 256
    assert tile_for(100_000, gated=True).num_stages == 1 + tile_for(100_000).num_stages


@pytest.mark.cuda
@NO_GPU
@pytest.mark.parametrize("out_dtype", [BF16, F16, F32])
@pytest.mark.parametrize("num_tokens", [1, 5, 130, 1000])
def test_products_on_a_gpu_equal_their_twins(out_dtype: torch.dtype, num_tokens: int) -> None:
    x, weight = operands(num_tokens, 1024, 768)
    bias = None if out_dtype == F32 else torch.randn(768).to(out_dtype)
    on_device = moved(x, weight, bias, "cuda")
    expected = linear_fp8_twin(x, weight, bias, F32 if bias is None else out_dtype)
    # Fast accumulation on the H100 keeps 14 bits or so of each partial sum.
    limit = 1e-3 + 2 * torch.finfo(out_dtype).eps
    assert error(linear_fp8(on_device[0], *on_device[1], on_device[2], out_dtype), expected) <= limit
    assert error(linear_fp8_own(*on_device, out_dtype), expected) <= limit
    gated = gated_fp8(*on_device[:2], None, "silu", BF16)
    assert error(gated, gated_fp8_twin(x, weight, None, "silu", BF16)) <= 1e-3 + 2 * torch.finfo(BF16).eps


def moved(
    x: Quantized, weight: Quantized, bias: Tensor | None, device: str
) -> tuple[Quantized, Quantized, Tensor | None]:
    parts = [Quantized(*(tensor.to(device) for tensor in part)) for part in (x, weight)]
    return parts[0], parts[1], None if bias is None else bias.to(device)
