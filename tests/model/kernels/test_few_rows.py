import itertools
import re

import pytest
import torch
from torch import Tensor

from openbei.model.kernels.few_rows import (
    COLUMNS,
    MAX_TOKENS,
    PROGRAMS,
    _launch,
    cut,
    few_rows,
    few_rows_twin,
    workspace,
)
from openbei.model.kernels.quantize import E4M3, Quantized, quantize_rows_twin, quantize_weight
from tests.model.kernels.aot import compile_launch
from tests.model.kernels.launches import DEVICES, error, on, spread

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def operands(num_tokens: int, depth: int, width: int, fp8: bool) -> tuple[Tensor | Quantized, Tensor | Quantized]:
    x, weight = spread((num_tokens, depth), 1) / 100, spread((width, depth), 2) / 100
    return (quantize_rows_twin(x), quantize_weight(weight)) if fp8 else (x.to(F16), weight.to(F16))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("num_tokens", "depth", "width", "slices"), [(1, 128, 64, 1), (16, 1024, 64, 4), (17, 1104, 208, 4)]
)
def test_the_kernel_equals_its_twin(
    device: str, fp8: bool, biased: bool, num_tokens: int, depth: int, width: int, slices: int
) -> None:
    x, weight = operands(num_tokens, depth, width, fp8)
    bias = spread((1, width))[0].to(F16) if biased else None
    expected = few_rows_twin(x, weight, bias, F16, workspace("cpu"))
    room = workspace(device)
    room.sums.fill_(torch.nan)
    pieces = cut(depth, width, 16, 1 if fp8 else 2).slices
    assert pieces in {slices, slices // 2}
    x, weight, bias = (moved(part, device) for part in (x, weight, bias))
    for _ in range(2):  # the first must leave the counts as it found them
        with on(device):
            got = _launch(x, weight, bias, F16, room)
        assert error(got, expected) <= 2 * torch.finfo(F16).eps + (1e-3 if device == "cuda" and fp8 else 0)
        assert not room.counts.any()
        # Every tile has its own room: the interpreter, which ends one tile before the next, would not miss it.
        num_sums = -(-width // COLUMNS) * pieces * COLUMNS * (32 if num_tokens > 16 else 16)
        assert room.sums[:num_sums].isfinite().all() == (pieces > 1)
        assert room.sums[num_sums:].isnan().all()


def moved(part: Tensor | Quantized | None, device: str) -> Tensor | Quantized | None:
    if isinstance(part, Quantized):
        return Quantized(*(tensor.to(device) for tensor in part))
    return None if part is None else part.to(device)


@pytest.mark.parametrize("fp8", [False, True])
def test_the_public_function_is_its_twin_on_a_cpu(fp8: bool) -> None:
    x, weight = operands(5, 64, 48, fp8)
    bias = torch.ones(48, dtype=BF16)
    rows, columns = (
        part.values.double() * part.scale.double()[:, None] if isinstance(part, Quantized) else part.double()
        for part in (x, weight)
    )
    got = few_rows(x, weight, bias, BF16, workspace("cpu"))
    assert error(got, rows @ columns.t() + 1) <= torch.finfo(BF16).eps


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (operands(MAX_TOKENS + 1, 32, 16, False)[0], operands(1, 32, 16, False)[1], "up to 64, .* not 65 x 32"),
        (*operands(3, 40, 16, False), "a multiple of 16 values, not 3 x 40"),
        (*operands(3, 40, 16, True), "multiples of 16, not 40 -> 16"),
        (operands(3, 32, 16, True)[0], operands(3, 32, 16, False)[1], "16 bit, or both in FP8"),
        (operands(3, 32, 16, False)[0], operands(3, 32, 16, True)[1], "16 bit, or both in FP8"),
        (torch.ones(3, 32), torch.ones(16, 32), "16 bit, or both in FP8"),  # would be multiplied in TF32
    ],
)
def test_what_it_cannot_do_is_refused(x: Tensor | Quantized, weight: Tensor | Quantized, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        few_rows(x, weight, None, BF16, workspace("cpu"))


def test_slices_cover_the_depth_and_fit_the_workspace() -> None:
    room = workspace("meta")
    for depth, width, tokens, item_bytes in itertools.product(
        (16, 384, 1024, 1100, 4096, 14336, 28672), (16, 1024, 1100, 6144, 16384, 57344), (16, 32, 64), (1, 2)
    ):
        slices, size, step, num_stages = cut(depth, width, tokens, item_bytes)
        assert (slices - 1) * size < depth <= slices * size
        assert size % step == 0
        assert num_stages >= 4
        num_tiles = -(-width // COLUMNS)
        if slices > 1:
            assert num_tiles * slices <= PROGRAMS
            assert num_tiles * slices * COLUMNS * tokens <= len(room.sums)
            assert num_tiles <= len(room.counts)


@pytest.mark.parametrize(
    ("dtype", "num_tokens", "width", "registers"),
    [(BF16, 64, 4096, 80), (E4M3, 16, 28672, 40), (E4M3, 16, 4096, 40)],
)
def test_compiled_for_the_h100(dtype: torch.dtype, num_tokens: int, width: int, registers: int) -> None:
    def meta(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x, weight = meta(num_tokens, 4096, dtype=dtype), meta(width, 4096, dtype=dtype)
    if dtype == E4M3:
        x, weight = Quantized(x, meta(num_tokens, dtype=F32)), Quantized(weight, meta(width, dtype=F32))
    built = compile_launch(lambda: _launch(x, weight, meta(width, dtype=BF16), BF16, workspace("meta")))
    built.check(registers)
    assert built.count("QGMMA" if dtype == E4M3 else "HGMMA") > 0
    assert built.count("HMMA", "QMMA", "LDGSTS") == 0
    assert built.count("UTMALDG") == 2 * cut(4096, width, num_tokens, dtype.itemsize).num_stages
    assert 3 * (built.shared_bytes + 1024) <= 228 * 1024  # three programs a multiprocessor
    if width == 28672:
        assert built.count("ATOMG", "MEMBAR") == 0
    else:  # all threads write, one says so with a release, and the last reads what the others wrote
        assert re.search(r"st\.global.*?bar\.sync.*?atom\.global\.gpu\.acq_rel.*?ld\.global\.cg", built.ptx, re.DOTALL)
