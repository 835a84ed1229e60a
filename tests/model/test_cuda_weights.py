"""What the fused backend uploads, and in which forms."""

import logging
from collections import Counter
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from openbei.errors import ConfigError
from openbei.model.ops import numpy as plain
from openbei.model.ops.cuda import CudaModel, Placement
from openbei.model.ops.cuda_weights import from_numpy
from openbei.model.spec import Array, Layer, Linear, Model, Rope, Size, num_parameters
from tests.model.cuda_cases import LENGTHS, batch_of, counted, fp8_names, fp8_states, mapped
from tests.model.oracles import CudaRun, error


@pytest.mark.parametrize("family", ["mpnet", "gemma3"])
def test_weights_may_be_made_on_the_device(model: Model) -> None:
    """As benchmarks do: the arrays say their shapes alone, and each is asked for once."""
    shapes = mapped(model, lambda array: np.broadcast_to(np.float32(0), array.shape))
    uploaded: list[int] = []

    def upload(array: Array) -> Tensor:
        assert array.strides == (0,) * array.ndim
        uploaded.append(array.size)
        return torch.randn(array.shape, generator=torch.Generator().manual_seed(1))

    made = CudaModel(shapes, Placement("cpu", "bfloat16", fp8=True), upload)
    on_host = num_parameters(model) - (0 if model.weights.relative_bias is None else model.weights.relative_bias.size)
    assert sum(uploaded) == on_host
    size, batch = Size(80, 8), batch_of(model)
    words = np.empty(made.num_words(size), np.int32)
    made.write(batch, size, words)
    assert torch.isfinite(made.forward(from_numpy(words), size, "vectors")[: len(LENGTHS)]).all()


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("family", ["bert"])
def test_weights_stored_in_16_bit_are_uploaded_as_they_are(model: Model, stored: type[np.generic]) -> None:
    short = mapped(model, lambda array: array.astype(stored))
    wide = mapped(short, lambda array: array.astype(np.float32))
    placement, batch = Placement("cpu", "float32"), batch_of(model)
    assert error(CudaRun(short, placement, "states")(batch), CudaRun(wide, placement, "states")(batch)) == 0


@pytest.mark.parametrize("family", ["bert"])
def test_read_only_weights_are_taken(model: Model) -> None:
    def locked(array: Array) -> Array:
        array = array.copy()
        array.flags.writeable = False
        return array

    placement, batch = Placement("cpu", "float32"), batch_of(model)
    states = CudaRun(mapped(model, locked), placement, "states")(batch)
    assert error(states, CudaRun(model, placement, "states")(batch)) == 0


@pytest.mark.parametrize("family", ["bert", "llama", "jina-en", "mpnet"])
def test_bytes_on_the_device_are_counted(model: Model) -> None:
    """A block's products in FP8 take a byte a value and four a row, all else as much as in bfloat16."""
    in_bfloat16 = CudaModel(model, Placement("cpu", "bfloat16")).weights.num_bytes
    in_fp8 = CudaModel(model, Placement("cpu", "bfloat16", fp8=True)).weights.num_bytes
    linears = [getattr(layer, name) for layer in model.weights.layers for name in fp8_names(model)]
    shapes = [linear.weight.shape for linear in linears if linear is not None]
    assert in_bfloat16 - in_fp8 == sum(rows * columns - 4 * rows for rows, columns in shapes)
    assert 2 * num_parameters(model) < in_bfloat16 < 2.3 * num_parameters(model) + 200_000


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize(
    ("family", "attention", "ffn", "keep_sum"),
    [("bert", "both", "plain", False), ("llama", "quantized", "quantized", True)],
)
def test_a_norm_makes_what_is_read_and_no_more(
    model: Model, fp8: bool, attention: str, ffn: str, keep_sum: bool
) -> None:
    """After a half (bert) its result is the next residual too, before it (llama) its input is.

    Bert's attention reads 16 bit, so what follows the feed-forward half is plain.
    """
    norms = CudaModel(model, Placement("cpu", "bfloat16", fp8)).weights.norms
    weights = model.weights
    in_order = [norms[id(norm)] for layer in weights.layers for norm in (layer.attention_norm, layer.ffn_norm)]
    wanted = [attention, ffn] * len(weights.layers) if fp8 else ["plain"] * len(in_order)
    assert [norm.want for norm in in_order] == wanted
    assert {norm.keep_sum for norm in in_order} == {keep_sum}
    if weights.final_norm is not None:
        assert norms[id(weights.final_norm)].want == "plain"
    if weights.embedding.norm is not None:
        assert norms[id(weights.embedding.norm)].want == "plain"


@pytest.mark.parametrize("family", ["llama"])
def test_a_product_that_fp8_does_not_fit_stays_in_16_bit_and_is_named(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a feed-forward width of 72, which is no multiple of 16; gate and up together are 144 wide."""

    def narrow(layer: Layer) -> Layer:
        gate, up = (Linear(linear.weight[:72]) for linear in (layer.gate, layer.up) if linear is not None)
        return replace(layer, gate=gate, up=up, down=Linear(layer.down.weight[:, :72]))

    layers = tuple(map(narrow, model.weights.layers))
    narrowed = replace(model, spec=replace(model.spec, ffn_width=72), weights=replace(model.weights, layers=layers))
    with caplog.at_level(logging.WARNING):
        run = CudaRun(narrowed, Placement("cpu", "bfloat16", fp8=True), "states")
    assert [record.getMessage() for record in caplog.records] == [
        "FP8 needs multiples of 16; products that stay in bfloat16: 48 x 72"
    ]
    calls: Counter[str] = Counter()
    batch = batch_of(narrowed)
    with counted(calls):
        states = run(batch)
    assert (calls["linear"], calls["linear_fp8"]) == (4, 12)
    assert error(states, plain.run(narrowed, batch, "states")) <= 2 * error(
        fp8_states(narrowed, batch), plain.run(narrowed, batch, "states")
    )


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("llama", {"position_offset": 2}, "counts from 2"),
        ("gemma3", {"local_rope": Rope(1e4, "dynamic", 2.0, original_length=8)}, "dynamic rotary positions of local"),
    ],
)
def test_rotary_positions_that_a_batch_has_no_words_for_are_refused(
    model: Model, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        CudaModel(replace(model, spec=replace(model.spec, **changes)), Placement("cpu", "bfloat16"))
