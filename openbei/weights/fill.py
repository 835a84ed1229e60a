"""Named tensors -> Weights, strictly: every parameter filled, every tensor used or ignored by name, every shape right.

Owns the match between names and parameters; never opens a file.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from openbei.errors import WeightsError
from openbei.model.spec import Embedding, Layer, Linear, ModelSpec, Norm, Weights
from openbei.weights.families import Family
from openbei.weights.tensors import Tensor

_LEGACY = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_SHOWN = 3


def fill(spec: ModelSpec, family: Family, tensors: Mapping[str, Tensor]) -> Weights:
    """A checkpoint's tensors -> the parameters of spec, float32.

    Raises WeightsError that lists what is missing, of another shape or type, or left over.
    """
    taker = Taker(_rename(tensors, family), family.names)
    width, buckets = spec.width, spec.num_relative_buckets
    embedding = Embedding(
        word=taker.table("word", spec.vocab_size, width),
        position=taker.table("position", spec.num_positions, width),
        segment=taker.table("segment", spec.num_segments, width) if spec.num_segments else None,
        norm=taker.norm("embedding_norm", width),
    )
    layers = tuple(_layer(taker, spec, number) for number in range(spec.num_layers))
    relative_bias = taker.table("relative_bias", buckets, spec.num_heads) if buckets else None
    taker.finish(family.ignored)
    return Weights(embedding, layers, relative_bias)


def _layer(taker: "Taker", spec: ModelSpec, number: int) -> Layer:
    width, inner = spec.width, spec.num_heads * spec.head_dim
    return Layer(
        q=taker.linear("q", inner, width, number),
        k=taker.linear("k", inner, width, number),
        v=taker.linear("v", inner, width, number),
        out=taker.linear("out", width, inner, number),
        attention_norm=taker.norm("attention_norm", width, number),
        up=taker.linear("up", spec.ffn_width, width, number),
        down=taker.linear("down", width, spec.ffn_width, number),
        ffn_norm=taker.norm("ffn_norm", width, number),
    )


def _rename(tensors: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for stored, tensor in tensors.items():
        name = stored
        for prefix in family.prefixes:
            name = name.removeprefix(prefix)
        for legacy, modern in _LEGACY.items():
            name = name.replace(legacy, modern)
        if name in renamed:
            raise WeightsError(f"{name} is in the file twice, once as {stored}")
        renamed[name] = tensor
    return renamed


class Taker:
    """Hands out tensors by our names, each once, and collects what is wrong until `finish`."""

    def __init__(self, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._tensors = tensors
        self._names = names
        self._unused = set(tensors)
        self._missing: list[str] = []
        self._wrong: list[str] = []

    def linear(self, name: str, out: int, into: int, layer: int = 0, bias: bool = True) -> Linear:
        """weight (out, into) and bias (out,)."""
        stored = self._names[name].format(layer)
        return Linear(self._take(f"{stored}.weight", out, into), self._take(f"{stored}.bias", out) if bias else None)

    def norm(self, name: str, width: int, layer: int = 0) -> Norm:
        """weight and bias (width,)."""
        stored = self._names[name].format(layer)
        return Norm(self._take(f"{stored}.weight", width), self._take(f"{stored}.bias", width))

    def table(self, name: str, rows: int, width: int) -> NDArray[np.float32]:
        """weight (rows, width)."""
        return self._take(f"{self._names[name]}.weight", rows, width)

    def finish(self, ignored: Iterable[str] = ()) -> None:
        """Raise WeightsError if anything was missing, wrong, or is left over and not on the list of the ignored."""
        patterns = tuple(ignored)
        left = sorted(name for name in self._unused if not any(fnmatchcase(name, pattern) for pattern in patterns))
        problems = (("missing", self._missing), ("wrong", self._wrong), ("left over", left))
        told = [f"{len(names)} {word}: {_some(names)}" for word, names in problems if names]
        if told:
            raise WeightsError("the weights do not fit config.json; " + "; ".join(told))

    def _take(self, name: str, *shape: int) -> NDArray[np.float32]:
        tensor = self._tensors.get(name)
        self._unused.discard(name)
        if tensor is None:
            self._missing.append(name)
        elif tensor.data.shape != shape:
            self._wrong.append(f"{name} is {tensor.data.shape}, config.json says {shape}")
        else:
            try:
                return tensor.float32()
            except WeightsError as error:
                self._wrong.append(f"{name} is {error}")
        return np.empty(0, np.float32)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
