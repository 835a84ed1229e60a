"""What a forward of the fused backend launches: which kernels, none that waits, and all of them compile for an H100."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime import JITFunction

from openbei.model.kernels import activation, attention, embed, norm, pool, quantize, rope
from openbei.model.ops import cuda
from openbei.model.ops.cuda import CudaModel, Placement, Rows
from openbei.model.spec import Array, Embedding, Layer, Linear, Model, ModelSpec, Norm, Rope, Size, Weights
from tests.model.cuda_cases import batch_of, counted
from tests.model.kernels.aot import compile_launch
from tests.model.oracles import CudaRun


@pytest.mark.parametrize(
    ("family", "fp8", "layers", "wanted"),
    [
        ("bert", False, 3, {"linear": 4, "add_norm": 2, "activate": 1, "attention": 1}),
        ("bert", True, 3, {"linear": 2, "linear_fp8": 2, "add_norm": 2, "activate": 1, "attention": 1}),
        ("llama", False, 4, {"linear": 4, "add_norm": 2, "gated": 1, "rope_": 1, "attention": 1}),
        (
            "llama",
            True,
            4,
            {"linear_fp8": 4, "add_norm": 2, "gated": 1, "rope_": 1, "attention": 1, "quantize_rows": 1},
        ),
        (
            "gemma3",
            True,
            4,
            {
                "linear_fp8": 4,
                "add_norm": 4,
                "gated": 1,
                "rope_": 1,
                "attention": 1,
                "quantize_rows": 1,
            },
        ),
        ("jina-code", False, 3, {"linear": 4, "add_norm": 5, "gated": 1, "attention": 1}),
    ],
)
def test_each_layer_launches_these(model: Model, fp8: bool, layers: int, wanted: dict[str, int]) -> None:
    """And nothing is added but in a norm; around the layers: the tables with the first norm, and one pool.

    Of a pre-norm model that norm is a layer's, and the last one stands outside: so many norms as in the layers."""
    wanted = {name: layers * count for name, count in wanted.items()} | {"embed_norm": 1, "pool": 1}
    run = CudaRun(model, Placement("cpu", "bfloat16", fp8), "vectors")
    calls: Counter[str] = Counter()
    with counted(calls), patch.object(Rows, "whole", _whole_already):
        run(batch_of(model))
    assert calls == wanted


def _whole_already(rows: Rows) -> Tensor:
    assert rows.addend is None
    assert rows.plain is not None
    return rows.plain


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("family", ["mpnet", "jina-en", "modernbert", "nomic-dynamic", "llama", "gemma2"])
def test_a_forward_reads_nothing_back(model: Model, fp8: bool) -> None:
    """On tensors without values, where whatever reads one raises; the twins that do read one are replaced."""
    random = CudaModel(model, Placement("meta", "bfloat16", fp8), lambda array: torch.empty(array.shape, device="meta"))
    size = Size(70, 9)
    words = torch.empty(random.num_words(size), dtype=torch.int32, device="meta")
    with (
        patch.object(cuda, "attention", lambda q, *_: torch.empty(q.shape, dtype=q.dtype, device="meta")),
        patch.object(cuda, "pool", lambda x, cu, _: torch.empty(len(cu) - 1, x.shape[1], device="meta")),
    ):
        assert random.forward(words, size, "states").shape == (70, model.spec.width)
        assert random.forward(words, size, "vectors").shape == (9, model.embedding_dim)


SHAPES = {
    "bert-base": ModelSpec("bert", 30522, 768, 2, 12, 12, 64, 3072, 1e-12, "gelu", 512, num_segments=2),
    "qwen3-8b": ModelSpec(
        "qwen3", 151669, 4096, 2, 32, 8, 128, 12288, 1e-6, "silu", 32768, "rms", "pre", causal=True, rope=Rope(1e6)
    ),
}


@pytest.mark.parametrize(("shapes", "fp8"), [("bert-base", False), ("qwen3-8b", True)])
def test_every_launch_compiles_for_an_h100_and_spills_nothing(shapes: str, fp8: bool) -> None:
    """Of two layers with what stands around them, as they are called here, on tensors without values.

    Qwen3's last layer ends with the pooled rows alone, which are float32.
    """
    hollow = CudaModel(
        _hollow(SHAPES[shapes]),
        Placement("meta", "bfloat16", fp8),
        lambda array: torch.empty(array.shape, device="meta"),
    )
    size = Size(512, 8)
    words = torch.empty(hollow.num_words(size), dtype=torch.int32, device="meta")
    compiled: set[str] = set()
    with patch.multiple(cuda, **{name: _compiling(name, launch, compiled) for name, launch in KERNELS.items()}):
        hollow.forward(words, size, "vectors")
    assert {each.split()[0] for each in compiled} == {
        "embed_norm",
        "add_norm",
        "attention",
        "pool",
        *(("rope_", "gated", "quantize_rows") if fp8 else ("activate",)),
    }


KERNELS: dict[str, Callable[..., Any]] = {
    "embed_norm": embed._launch,
    "add_norm": norm._launch_add_norm,
    "activate": partial(activation._launch, gated=False),
    "gated": partial(activation._launch, gated=True),
    "rope_": rope._launch,
    "attention": attention._launch,
    "pool": pool._launch,
    "quantize_rows": quantize._launch,
}


def _compiling(name: str, launch: Callable[..., Any], compiled: set[str]) -> Callable[..., Any]:
    """A launch that is not run, but compiled when it is first called with arguments of these types and shapes."""

    def call(*args: Any) -> Any:
        results: list[Any] = []
        described = f"{name} {args}"
        if described in compiled:
            with patch.object(JITFunction, "run"):
                return launch(*args)
        compile_launch(lambda: results.append(launch(*args))).check(max_registers=255)
        compiled.add(described)
        return results[0]

    return call


def _hollow(spec: ModelSpec) -> Model:
    """A model of this shape, its arrays without memory; biases and segments as in BERT, q and k norms as in Qwen3."""
    bert, width = spec.norm == "layer", spec.width

    def array(*shape: int) -> Array:
        return np.broadcast_to(np.float32(0), shape)

    def linear(rows: int, columns: int) -> Linear:
        return Linear(array(rows, columns), array(rows) if bert else None)

    def norm(columns: int = width) -> Norm:
        return Norm(array(columns), array(columns) if bert else None)

    inner, keys, ffn = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim, spec.ffn_width

    def layer(_: int) -> Layer:
        return Layer(
            q=linear(inner, width),
            k=linear(keys, width),
            v=linear(keys, width),
            out=linear(width, inner),
            attention_norm=norm(),
            up=linear(ffn, width),
            down=linear(width, ffn),
            ffn_norm=norm(),
            gate=None if bert else linear(ffn, width),
            q_norm=None if bert else norm(spec.head_dim),
            k_norm=None if bert else norm(spec.head_dim),
        )

    tables = (array(512, width), array(2, width), norm()) if bert else (None, None, None)
    embedding = Embedding(array(spec.vocab_size, width), *tables)
    layers = tuple(map(layer, range(spec.num_layers)))
    weights = Weights(embedding, layers, final_norm=None if bert else norm())
    return Model(spec, weights, "mean" if bert else "last_token")
