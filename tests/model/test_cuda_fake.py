"""Every family's forward on a GPU that is not there: devices, dtypes, shapes, grids, and what it would compile."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from openbei.engine.buckets import buckets, loose_size
from openbei.model.ops.cuda import CudaModel, Placement
from openbei.model.ops.cuda_weights import Ways
from openbei.model.spec import HIDDEN, Array, Model, Size, pack
from openbei.weights.load import load
from tests import families, late, splade
from tests.model.fake_cuda import DEVICE, Key, gpu

PLACEMENTS = {
    "float32": Placement(DEVICE, "float32"),
    "bfloat16": Placement(DEVICE, "bfloat16"),
    "fp8": Placement(DEVICE, "bfloat16", fp8=True),
    "fp8, own products": Placement(DEVICE, "bfloat16", True, Ways(few_rows=64, fused_gate=True)),
}


@pytest.fixture(params=families.ALL)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def placed(model: Model, placement: Placement) -> CudaModel:
    return CudaModel(model, placement, _upload)


def _upload(array: Array) -> Tensor:
    return torch.empty(array.shape, dtype=getattr(torch, array.dtype.name), device=DEVICE)


def forward(model: CudaModel, size: Size, output: str) -> Tensor:
    words = torch.empty(model.num_words(size), dtype=torch.int32, device=DEVICE)
    return model.forward(words, size, output)


@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)
def test_a_forward_stays_on_its_device(model: Model, placement: Placement) -> None:
    with gpu() as compiled:
        on_gpu = placed(model, placement)
        for size in (Size(1, 1), Size(5000, 300)):
            for output, rows, width in (("vectors", 1, model.embedding_dim), ("states", 0, model.spec.width)):
                got = forward(on_gpu, size, output)
                assert (got.shape, got.dtype, str(got.device)) == ((size[rows], width), torch.float32, DEVICE)
    assert {"_embed_norm_kernel", "_attention_kernel", "_pool_kernel"} <= {key[0] for key in compiled}


@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)
@pytest.mark.parametrize("strategy", ["max", "sum"])
def test_the_words_of_splade_stay_on_their_device(placement: Placement, strategy: str, tmp_path: Path) -> None:
    pooling = {"pooling_strategy": strategy}
    model = load(str(splade.save(tmp_path / "splade", "bert", pooling=pooling))).model
    with gpu() as compiled:
        got = forward(placed(model, placement), Size(70, 9), "vectors")
        assert (got.shape, got.dtype, str(got.device)) == ((9, model.spec.vocab_size), torch.float32, DEVICE)
    assert "_pool_kernel" in {key[0] for key in compiled}


@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)
def test_the_rows_of_a_colbert_query_stay_on_their_device(placement: Placement, tmp_path: Path) -> None:
    """Filled up with hidden tokens, it takes the launches of any batch: what is seen is said by its words."""
    checkpoint = load(str(late.pylate(tmp_path, "bert")))
    expansion, model = checkpoint.text.expansion, checkpoint.model
    assert expansion is not None
    assert not expansion.attended
    size, types = Size(70, 9), [[0, 0] + [HIDDEN] * (expansion.length - 2)]
    with gpu() as compiled:
        on_gpu = placed(model, placement)
        got = forward(on_gpu, size, "multi")
        assert (got.shape, got.dtype, str(got.device)) == ((70, late.WIDTH), torch.float32, DEVICE)
    assert "_attention_kernel" in {key[0] for key in compiled}
    words = np.empty(on_gpu.num_words(size), np.int32)
    on_gpu.write(pack(model.spec, [[5] * expansion.length], types), size, words)
    assert on_gpu._layout.regions(words, size).key_ends.tolist() == [2] + [expansion.length] * 8


@pytest.mark.parametrize("family", ["bert", "nomic-dynamic", "qwen3"])
@pytest.mark.parametrize("placement", ["bfloat16", "fp8"])
def test_nothing_is_compiled_once_the_buckets_are_recorded(model: Model, placement: str) -> None:
    """A kernel that first met its arguments while requests wait would keep them waiting for seconds."""
    with gpu() as compiled:
        on_gpu = placed(model, PLACEMENTS[placement])
        for size in buckets(512):
            forward(on_gpu, size, "vectors")
        recorded: set[Key] = set(compiled)
        for size in (loose_size(4097, 1), loose_size(8192, 777), loose_size(300_000, 70_000)):
            forward(on_gpu, size, "vectors")
    assert compiled == recorded
