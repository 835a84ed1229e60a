"""What the tests of the fused backend share: devices, plain operations in low precision, and a count of launches."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any
from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest
import torch

from openbei.model import transformer
from openbei.model.ops import cuda
from openbei.model.ops.numpy import NumpyOps
from openbei.model.spec import Activation, Array, Batch, Linear, Model, pack
from openbei.weights.quantize import quantize
from tests.model import oracles
from tests.model.oracles import Floats

LENGTHS = (3, 17, 1, 9, 30, 2)
GPU = pytest.param(
    "cuda:0", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
)
DEVICES = ["cpu", GPU]
LAUNCHES = ("embed_norm", "linear", "linear_fp8", "add_norm", "head_norm", "activate", "gated", "rope_", "attention")
LAUNCHES += ("pool", "quantize_rows")
SHORT: dict[str, type[np.generic]] = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def batch_of(model: Model, lengths: Sequence[int] = LENGTHS) -> Batch:
    return pack(model.spec, *oracles.sequences(model, lengths))


class Rounded(NumpyOps):
    """The plain operations, every result rounded to a 16-bit type."""

    dtype: type[np.generic]

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in ("embed", "linear", "gated", "add", "norm", "rope", "attention"):
            return found
        return lambda *args, **kwargs: found(*args, **kwargs).astype(self.dtype).astype(np.float32)


class Fp8(NumpyOps):
    """The plain operations, with both sides of a block's products rounded to FP8 as weights/quantize.py does."""

    products: set[int]

    def linear(self, x: Floats, linear: Linear, activation: Activation = "identity") -> Floats:
        if id(linear) not in self.products:
            return super().linear(x, linear, activation)
        return super().linear(_through_fp8(x), Linear(_through_fp8(linear.weight), linear.bias), activation)


def _through_fp8(x: Array) -> Floats:
    values, scale = quantize(x)
    return values.astype(np.float32) * scale[:, None]


def rounded_states(model: Model, batch: Batch, dtype: str) -> Floats:
    ops = Rounded(batch, model.spec)
    ops.dtype = SHORT[dtype]
    return transformer.states(ops, mapped(model, lambda array: array.astype(ops.dtype).astype(np.float32)))


def fp8_states(model: Model, batch: Batch) -> Floats:
    ops = Fp8(batch, model.spec)
    layers = model.weights.layers
    ops.products = {id(getattr(layer, name)) for layer in layers for name in fp8_names(model)}
    return transformer.states(ops, model)


def fp8_names(model: Model) -> tuple[str, ...]:
    """The linears of a layer that FP8 takes: an encoder's attention stays in 16 bit."""
    ffn = ("gate", "up", "down")
    return ffn if model.spec.norm == "layer" else ("q", "k", "v", "out", *ffn)


def mapped(value: Any, change: Callable[[Array], Array]) -> Any:
    """A model with every array changed."""
    if isinstance(value, np.ndarray):
        return change(value)
    if isinstance(value, tuple):
        return tuple(mapped(item, change) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{item.name: mapped(getattr(value, item.name), change) for item in fields(value)})
    return value


@contextmanager
def counted(counter: Counter[str]) -> Iterator[None]:
    def counting(name: str) -> Callable[..., Any]:
        right = getattr(cuda, name)

        def call(*args: Any) -> Any:
            counter[name] += 1
            return right(*args)

        return call

    with patch.multiple(cuda, **{name: counting(name) for name in LAUNCHES}):
        yield
