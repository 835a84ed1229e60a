"""Token tables to states: the twin against the definition, the kernel against the twin, and what it compiles to."""

import numpy as np
import pytest
import torch
from torch import Tensor

from openbei.model.kernels import embed as module
from openbei.model.kernels.embed import embed, embed_twin
from openbei.model.ops.torch import TorchOps
from openbei.model.spec import Batch, Embedding
from tests.model.kernels.aot import compile_launch
from tests.model.kernels.interpret import interpreted

NUM_TOKENS, VOCABULARY, POSITIONS, SEGMENTS = 37, 50, 40, 2
TABLES = pytest.mark.parametrize(
    ("position", "segment"), [(False, False), (True, False), (False, True), (True, True)], ids=str
)


def inputs(position: bool, segment: bool, width: int, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    rng = torch.Generator().manual_seed(0)
    ids, positions, types = (
        torch.randint(0, size, (NUM_TOKENS,), generator=rng, dtype=torch.int32)
        for size in (VOCABULARY, POSITIONS, SEGMENTS)
    )
    word, place, kind = (
        torch.randn(size, width, generator=rng).to(dtype) for size in (VOCABULARY, POSITIONS, SEGMENTS)
    )
    return ids, positions, types, word, place if position else None, kind if segment else None


@TABLES
def test_the_twin_is_the_definition(position: bool, segment: bool) -> None:
    given = inputs(position, segment, 24, torch.float32)
    ids, positions, types, *tables = (None if x is None else x.numpy() for x in given)
    batch = Batch(ids, positions, types, np.array([0, NUM_TOKENS], np.int32))
    want = TorchOps(batch, spec=None).embed(Embedding(*tables), 1.5)
    torch.testing.assert_close(embed(*given, 1.5), want, atol=1e-6, rtol=0)


@TABLES
@pytest.mark.parametrize("width", [96, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_kernel_equals_its_twin(position: bool, segment: bool, width: int, dtype: torch.dtype) -> None:
    given = inputs(position, segment, width, dtype)
    with interpreted():
        got = module._launch(*given, 1.5)
    assert torch.equal(got, embed_twin(*given, 1.5))


@pytest.mark.cuda
@TABLES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_on_a_gpu(position: bool, segment: bool, dtype: torch.dtype, device: torch.device) -> None:
    given = [None if x is None else x.to(device) for x in inputs(position, segment, 768, dtype)]
    got, want = embed(*given, 1.5).float(), embed_twin(*given, 1.5).float()
    rounding = torch.finfo(dtype).eps * want.abs() + 1e-6  # one step: a multiply-add is rounded once, not twice
    assert ((got - want).abs() <= rounding).all()


@pytest.mark.parametrize("width", [384, 1024, 4096])
def test_it_compiles_to_wide_loads(width: int) -> None:
    ids = torch.empty(512, dtype=torch.int32, device="meta")
    table = torch.empty((1000, width), dtype=torch.bfloat16, device="meta")
    built = compile_launch(lambda: module._launch(ids, ids, ids, table, table, table, 1.0))
    built.check(max_registers=32)
    assert built.opcodes["LDG.E.128"] == built.count("LDG") - 3  # but for the token's three numbers
    assert built.opcodes["STG.E.128"] == built.count("STG") > 0
