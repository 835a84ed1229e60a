"""The fused backend, on CPU tensors through the kernels' twins and, where there is one, on a GPU.

Levels 1 and 3 run in test_levels.py and test_heads.py too. Here: padding that is poison, 16 bit and FP8 against plain
operations of the same precision, what is launched, what is uploaded, and what a batch may be.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from openbei.errors import ConfigError
from openbei.model import transformer
from openbei.model.ops import cuda
from openbei.model.ops import torch as plain
from openbei.model.ops.cuda import CudaModel, Placement, Rows, Size
from openbei.model.ops.cuda_weights import from_numpy
from openbei.model.spec import Activation, Array, Batch, Layer, Linear, Model, Rope, num_parameters, pack
from openbei.weights.load import load
from openbei.weights.quantize import quantize
from tests import families
from tests.model import oracles
from tests.model.oracles import CudaRun, Floats, error

LENGTHS = (3, 17, 1, 9, 30, 2)
GPU = pytest.param(
    "cuda:0", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
)
DEVICES = ["cpu", GPU]


@pytest.fixture(params=families.ALL)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(family: str, tiny_folder: Callable[[str], Path]) -> Model:
    return load(str(tiny_folder(family))).model


def _batch(model: Model, lengths: Sequence[int] = LENGTHS) -> Batch:
    return pack(model.spec, *oracles.sequences(model, lengths))


# --- against plain operations


@pytest.mark.parametrize("device", [GPU])
def test_states_on_a_gpu_match_plain_float32(model: Model, device: str) -> None:
    run = CudaRun(model, Placement(device, "float32"), "states")
    for lengths in (LENGTHS, tuple(1 + number % 13 for number in range(40))):
        batch = _batch(model, lengths)
        assert error(run(batch), plain.states(model, batch)) <= 1e-4


@pytest.mark.parametrize("device", DEVICES)
def test_padding_never_reaches_a_sequence(model: Model, device: str) -> None:
    """Its rows are made NaN where the forward begins, and its words are -1 before they are written."""
    batch = _batch(model)
    placement = Placement(device, "float32")
    exact = CudaRun(model, placement, "vectors", num_spare=0)(batch)
    assert np.isfinite(exact).all()
    with _poisoned(batch.num_tokens):
        padded = CudaRun(model, placement, "vectors", num_spare=37)(batch)
    assert error(padded, exact) <= 1e-5


@contextmanager
def _poisoned(num_tokens: int) -> Iterator[None]:
    right = cuda.embed

    def embed(*args: Any) -> Tensor:
        states = right(*args)
        states[num_tokens:] = torch.nan
        return states

    with patch.object(cuda, "embed", embed):
        yield


class Rounded(plain.TorchOps):
    """The plain operations, every result rounded to a 16-bit type."""

    dtype: torch.dtype

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in ("embed", "linear", "gated", "add", "norm", "rope", "attention"):
            return found
        return lambda *args: found(*args).to(self.dtype).float()


class Fp8(plain.TorchOps):
    """The plain operations, with both sides of a block's products rounded to FP8 as weights/quantize.py does."""

    products: set[int]

    def linear(self, x: Tensor, linear: Linear, activation: Activation = "identity") -> Tensor:
        if id(linear) not in self.products:
            return super().linear(x, linear, activation)
        return super().linear(
            _through_fp8(x), Linear(_through_fp8(from_numpy(linear.weight)).numpy(), linear.bias), activation
        )


def _through_fp8(x: Tensor) -> Tensor:
    values, scale = quantize(x.numpy())
    return from_numpy(values.astype(np.float32) * scale[:, None])


def _plain_states(ops: plain.TorchOps, model: Model) -> Floats:
    with torch.inference_mode():
        return transformer.states(ops, model).numpy()


def _rounded_states(model: Model, batch: Batch, dtype: str) -> Floats:
    ops = Rounded(batch, model.spec)
    ops.dtype = getattr(torch, dtype)
    return _plain_states(ops, _mapped(model, lambda array: from_numpy(array).to(ops.dtype).float().numpy()))


def _fp8_states(model: Model, batch: Batch) -> Floats:
    ops = Fp8(batch, model.spec)
    layers = model.weights.layers
    names = ("q", "k", "v", "out", "gate", "up", "down")
    ops.products = {id(getattr(layer, name)) for layer in layers for name in names}
    return _plain_states(ops, model)


def _mapped(value: Any, change: Callable[[Array], Array]) -> Any:
    """A model with every array changed."""
    if isinstance(value, np.ndarray):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_mapped(item, change) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{item.name: _mapped(getattr(value, item.name), change) for item in fields(value)})
    return value


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("device", DEVICES)
def test_16_bit_is_at_most_twice_as_far_from_float32_as_plain_16_bit(model: Model, device: str, dtype: Any) -> None:
    batch = _batch(model)
    wanted = plain.states(model, batch)
    allowed = 2 * error(_rounded_states(model, batch, dtype), wanted)
    assert error(CudaRun(model, Placement(device, dtype), "states")(batch), wanted) <= allowed


def test_fp8_in_float32_is_plain_fp8(model: Model) -> None:
    """But for tokens with a value so near the middle of two of e4m3 that the order of a sum decides."""
    model = _without_biases(model)
    batch = _batch(model)
    wanted = _fp8_states(model, batch)
    away = np.abs(CudaRun(model, Placement("cpu", "float32", fp8=True), "states")(batch) - wanted).max(axis=1)
    assert np.median(away) <= 1e-5
    assert error(wanted, plain.states(model, batch)) > 0.1


@pytest.mark.parametrize("device", DEVICES)
def test_fp8_in_bfloat16_is_at_most_twice_as_far_from_float32_as_plain_fp8(model: Model, device: str) -> None:
    batch = _batch(model)
    wanted = plain.states(model, batch)
    states = CudaRun(model, Placement(device, "bfloat16", fp8=True), "states")(batch)
    assert error(states, wanted) <= 2 * error(_fp8_states(model, batch), wanted)


def _without_biases(model: Model) -> Model:
    """PyTorch has no FP8 product with a float32 bias."""
    names = ("q", "k", "v", "out", "gate", "up", "down")

    def bare(layer: Layer) -> Layer:
        linears = {name: getattr(layer, name) for name in names if getattr(layer, name) is not None}
        return replace(layer, **{name: replace(linear, bias=None) for name, linear in linears.items()})

    return replace(model, weights=replace(model.weights, layers=tuple(map(bare, model.weights.layers))))


# --- what is launched


LAUNCHES = ("embed", "linear", "linear_fp8", "add_norm", "head_norm", "activate", "gated", "rope_", "attention", "pool")
LAUNCHES += ("quantize_rows",)


@pytest.mark.parametrize(
    ("family", "fp8", "layers", "wanted"),
    [
        ("bert", False, 3, {"linear": 4, "add_norm": 2, "activate": 1, "attention": 1}),
        ("bert", True, 3, {"linear_fp8": 4, "add_norm": 2, "activate": 1, "attention": 1, "quantize_rows": 1}),
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
                "head_norm": 2,
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
    """And nothing is added but in a norm; around the layers: one embed, one norm, one pool."""
    wanted = {name: layers * count for name, count in wanted.items()} | {"embed": 1, "pool": 1}
    wanted["add_norm"] += 1
    run = CudaRun(model, Placement("cpu", "bfloat16", fp8), "vectors")
    counted: Counter[str] = Counter()
    with _counted(counted), patch.object(Rows, "whole", _whole_already):
        run(_batch(model))
    assert counted == wanted


@contextmanager
def _counted(counter: Counter[str]) -> Iterator[None]:
    def counting(name: str) -> Callable[..., Any]:
        right = getattr(cuda, name)

        def call(*args: Any) -> Any:
            counter[name] += 1
            return right(*args)

        return call

    with patch.multiple(cuda, **{name: counting(name) for name in LAUNCHES}):
        yield


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


# --- what is uploaded


@pytest.mark.parametrize("family", ["mpnet", "gemma3"])
def test_weights_may_be_made_on_the_device(model: Model) -> None:
    """As benchmarks do: the arrays say their shapes alone, and each is asked for once."""
    shapes = _mapped(model, lambda array: np.broadcast_to(np.float32(0), array.shape))
    uploaded: list[int] = []

    def upload(array: Array) -> Tensor:
        assert array.strides == (0,) * array.ndim
        uploaded.append(array.size)
        return torch.randn(array.shape, generator=torch.Generator().manual_seed(1))

    made = CudaModel(shapes, Placement("cpu", "bfloat16", fp8=True), upload)
    on_host = num_parameters(model) - (0 if model.weights.relative_bias is None else model.weights.relative_bias.size)
    assert sum(uploaded) == on_host
    size, batch = Size(80, 8), _batch(model)
    words = np.empty(made.num_words(size), np.int32)
    made.write(batch, size, words)
    assert torch.isfinite(made.forward(from_numpy(words), size, "vectors")[: len(LENGTHS)]).all()


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("family", ["bert"])
def test_weights_stored_in_16_bit_are_uploaded_as_they_are(model: Model, stored: type[np.generic]) -> None:
    short = _mapped(model, lambda array: array.astype(stored))
    wide = _mapped(short, lambda array: array.astype(np.float32))
    placement, batch = Placement("cpu", "float32"), _batch(model)
    assert error(CudaRun(short, placement, "states")(batch), CudaRun(wide, placement, "states")(batch)) == 0


@pytest.mark.parametrize("family", ["bert"])
def test_read_only_weights_are_taken(model: Model) -> None:
    def locked(array: Array) -> Array:
        array = array.copy()
        array.flags.writeable = False
        return array

    placement, batch = Placement("cpu", "float32"), _batch(model)
    states = CudaRun(_mapped(model, locked), placement, "states")(batch)
    assert error(states, CudaRun(model, placement, "states")(batch)) == 0


@pytest.mark.parametrize("family", ["bert", "llama", "jina-en", "mpnet"])
def test_bytes_on_the_device_are_counted(model: Model) -> None:
    """A block's products in FP8 take a byte a value and four a row, all else as much as in bfloat16."""
    in_bfloat16 = CudaModel(model, Placement("cpu", "bfloat16")).weights.num_bytes
    in_fp8 = CudaModel(model, Placement("cpu", "bfloat16", fp8=True)).weights.num_bytes
    names = ("q", "k", "v", "out", "gate", "up", "down")
    linears = [getattr(layer, name) for layer in model.weights.layers for name in names]
    shapes = [linear.weight.shape for linear in linears if linear is not None]
    assert in_bfloat16 - in_fp8 == sum(rows * columns - 4 * rows for rows, columns in shapes)
    assert 2 * num_parameters(model) < in_bfloat16 < 2.3 * num_parameters(model) + 200_000


@pytest.mark.parametrize("family", ["bert"])
def test_a_product_that_fp8_does_not_fit_stays_in_16_bit_and_is_named(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a feed-forward width of 72, which is no multiple of 16."""

    def narrow(layer: Layer) -> Layer:
        up, down = layer.up, layer.down
        assert up.bias is not None
        return replace(layer, up=Linear(up.weight[:72], up.bias[:72]), down=replace(down, weight=down.weight[:, :72]))

    layers = tuple(map(narrow, model.weights.layers))
    narrowed = replace(model, spec=replace(model.spec, ffn_width=72), weights=replace(model.weights, layers=layers))
    with caplog.at_level(logging.WARNING):
        run = CudaRun(narrowed, Placement("cpu", "bfloat16", fp8=True), "states")
    assert [record.getMessage() for record in caplog.records] == [
        "FP8 needs multiples of 16; products that stay in bfloat16: 48 x 72, 72 x 48"
    ]
    counted: Counter[str] = Counter()
    batch = _batch(narrowed)
    with _counted(counted):
        states = run(batch)
    assert (counted["linear"], counted["linear_fp8"]) == (6, 6)
    assert error(states, plain.states(narrowed, batch)) <= 2 * error(
        _fp8_states(narrowed, batch), plain.states(narrowed, batch)
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


# --- what a batch may be


@pytest.mark.parametrize("family", ["bert"])
@pytest.mark.parametrize(
    ("ids", "size", "words"),
    [
        ([[2] * 9, [3] * 8], Size(16, 2), "at most 16 tokens fit, got 17"),
        ([[2], [3], [4]], Size(16, 2), "at most 2 sequences fit, got 3"),
        ([[2] * 65], Size(80, 1), "position must be in 0 to 63, got 0 to 64"),
        ([[2, -1]], Size(16, 1), "token id must be in 0 to"),
        ([[2, 10_000]], Size(16, 1), "token id must be in 0 to .* got 2 to 10000"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(model: Model, ids: oracles.Ids, size: Size, words: str) -> None:
    made = CudaModel(model, Placement("cpu", "float32"))
    with pytest.raises(ValueError, match=words):
        made.write(pack(model.spec, ids), size, np.empty(made.num_words(size), np.int32))


@pytest.mark.parametrize("family", ["bert"])
def test_words_of_another_size_are_refused(model: Model) -> None:
    made = CudaModel(model, Placement("cpu", "float32"))
    with pytest.raises(ValueError, match=r"Size\(num_tokens=16, num_sequences=1\) has \d+ words, got 3"):
        made.write(pack(model.spec, [[2]]), Size(16, 1), np.empty(3, np.int32))
