"""Token tables to normed states: the twin against the definition, the kernel against the twin, its compiled code."""

import numpy as np
import pytest
import torch
from torch import Tensor

from openbei.model.kernels import embed as module
from openbei.model.kernels.embed import Lookup, embed_norm, embed_norm_twin, looked_up
from openbei.model.kernels.norm import Normed, Want
from openbei.model.kernels.quantize import quantize_rows_twin
from openbei.model.ops import NormSpec
from openbei.model.ops.numpy import NumpyOps
from openbei.model.spec import Batch, Embedding, Norm
from tests.model.kernels.aot import compile_launch
from tests.model.kernels.launches import DEVICES_AND_DTYPES, error, on, without_e4m3

NUM_TOKENS, VOCABULARY, POSITIONS, SEGMENTS = 37, 50, 40, 2
LAYER, RMS = NormSpec("layer", 1e-5), NormSpec("rms", 1e-6)
TABLES = pytest.mark.parametrize(
    ("position", "segment"), [(False, False), (True, False), (False, True), (True, True)], ids=str
)


def inputs(position: bool, segment: bool, width: int, dtype: torch.dtype, device: str = "cpu") -> Lookup:
    rng = torch.Generator().manual_seed(0)
    ids, positions, types = (
        torch.randint(0, size, (NUM_TOKENS,), generator=rng, dtype=torch.int32).to(device)
        for size in (VOCABULARY, POSITIONS, SEGMENTS)
    )
    word, place, kind = (
        torch.randn(size, width, generator=rng).to(device, dtype) for size in (VOCABULARY, POSITIONS, SEGMENTS)
    )
    return Lookup(ids, positions, types, word, place if position else None, kind if segment else None, 1.5)


def parameters(width: int, spec: NormSpec, device: str = "cpu") -> tuple[Tensor, Tensor | None]:
    weight, bias = torch.randn(2, width, generator=torch.Generator().manual_seed(1)).to(device)
    return weight, bias if spec.kind == "layer" else None


@TABLES
@pytest.mark.parametrize("spec", [LAYER, RMS], ids=["layer", "rms"])
def test_the_twin_is_the_definition(position: bool, segment: bool, spec: NormSpec) -> None:
    given, (weight, bias) = inputs(position, segment, 24, torch.float32), parameters(24, spec)
    ids, positions, types, *tables = (None if x is None else x.numpy() for x in given[:6])
    batch = Batch(ids, positions, types, np.array([0, NUM_TOKENS], np.int32))
    ops = NumpyOps(batch, spec=None)
    states = ops.embed(Embedding(*tables), 1.5)
    wanted = ops.norm(states, Norm(weight.numpy(), None if bias is None else bias.numpy()), spec)
    got = embed_norm(given, weight, bias, spec)
    torch.testing.assert_close(got.x, torch.from_numpy(states), atol=1e-6, rtol=0)
    torch.testing.assert_close(got.plain, torch.from_numpy(wanted), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("device", "dtype"), DEVICES_AND_DTYPES)
@TABLES
@pytest.mark.parametrize(
    ("width", "spec", "want", "keep_sum"), [(96, LAYER, "both", False), (100, RMS, "quantized", True)], ids=str
)
def test_the_kernel_equals_its_twin(
    device: str,
    dtype: torch.dtype,
    position: bool,
    segment: bool,
    width: int,
    spec: NormSpec,
    want: Want,
    keep_sum: bool,
) -> None:
    given, norm = inputs(position, segment, width, dtype, device), parameters(width, spec, device)
    with on(device), without_e4m3():
        got = module._launch(given, *norm, spec, "both", True)
        assert_what_is_wanted(module._launch(given, *norm, spec, want, keep_sum), got, want, keep_sum)
        expected = quantize_rows_twin(got.plain.cpu())
        assert torch.equal(got.quantized.values.float().cpu(), expected.values.float())
        assert torch.equal(got.quantized.scale.cpu(), expected.scale)
    eps = torch.finfo(dtype).eps
    # On a GPU a multiply-add is rounded once, not twice.
    assert error(got.x, looked_up(given)) <= (0 if device == "cpu" else eps)
    assert error(got.plain, embed_norm_twin(given, *norm, spec).plain) <= eps * (8 if dtype == torch.float32 else 2)


def assert_what_is_wanted(some: Normed, everything: Normed, want: Want, keep_sum: bool) -> None:
    assert (some.x is None, some.plain is None) == (not keep_sum, want == "quantized")
    for one, other in zip(some, everything, strict=True):
        if isinstance(one, Tensor):
            assert torch.equal(one, other)


@pytest.mark.parametrize(("width", "spec", "want"), [(384, LAYER, "plain"), (1024, LAYER, "both"), (4096, RMS, "both")])
def test_it_compiles_to_wide_loads(width: int, spec: NormSpec, want: Want) -> None:
    ids = torch.empty(512, dtype=torch.int32, device="meta")
    table = torch.empty((1000, width), dtype=torch.bfloat16, device="meta")
    tables = (table, table, table) if spec is LAYER else (table, None, None)
    weight = torch.empty(width, device="meta")
    bias = weight if spec is LAYER else None
    built = compile_launch(
        lambda: module._launch(Lookup(ids, ids, ids, *tables, 1.0), weight, bias, spec, want, spec is RMS)
    )
    built.check(max_registers=64)
    num_ids = sum(part is not None for part in tables)
    assert built.opcodes["LDG.E.128"] == built.count("LDG") - num_ids > 0
    assert built.opcodes["STG.E.128"] > 0
