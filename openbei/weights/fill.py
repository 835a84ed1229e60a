"""Named tensors -> Weights and Head, strictly: every parameter filled, every tensor used or ignored, every shape right.

Owns the match between names and parameters; never opens a file.
"""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import numpy as np
from ml_dtypes import bfloat16

from openbei.errors import WeightsError
from openbei.model.spec import Array, Embedding, Head, HeadLayer, Layer, Linear, ModelSpec, Norm, Weights
from openbei.weights.families import Family, HeadRow

_LEGACY = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_CUT = re.compile(r"(.+)\[(\d)/(\d)\]")  # name[part/parts], see Family.names
_SHOWN = 3
EXACT = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(bfloat16))  # become float32 exactly


def fill(spec: ModelSpec, family: Family, tensors: Mapping[str, Array]) -> tuple[Weights, Head | None]:
    """A checkpoint's tensors -> the parameters of spec, and of the family's head if it has one.

    Matrices are views of what is stored, float32, float16 or bfloat16; vectors are float32. Raises
    WeightsError that lists what is missing, of another shape or type, or left over.
    """
    parts = family.head.parts if family.head else ()
    names, biases = dict(family.names), dict(family.biases)
    for part in parts:
        names |= {part.linear: part.linear} | ({part.norm: part.norm} if part.norm else {})
        biases |= {part.linear: part.bias} | ({part.norm: part.norm_bias} if part.norm else {})
    taker = Taker(_rename(tensors, family), names, biases, family.norm_offset)
    weights = _weights(taker, spec, family.first_norm)
    head = _head(taker, family.head, spec.width) if family.head else None
    taker.finish(family.ignored)
    return weights, head


def _weights(taker: "Taker", spec: ModelSpec, first_norm: bool) -> Weights:
    width, buckets = spec.width, spec.num_relative_buckets
    embedding = Embedding(
        word=taker.table("word", spec.vocab_size, width),
        position=taker.table("position", spec.num_positions, width) if taker.knows("position") else None,
        segment=taker.table("segment", spec.num_segments, width) if spec.num_segments else None,
        norm=taker.optional_norm("embedding_norm", width),
    )
    layers = tuple(_layer(taker, spec, number, first_norm) for number in range(spec.num_layers))
    relative_bias = taker.table("relative_bias", buckets, spec.num_heads) if buckets else None
    return Weights(embedding, layers, relative_bias, taker.optional_norm("final_norm", width))


def _layer(taker: "Taker", spec: ModelSpec, number: int, first_norm: bool) -> Layer:
    width, inner, keys = spec.width, spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    # JinaBERT code norms all heads at once, the decoders each head.
    q_width, k_width = (spec.head_dim, spec.head_dim) if spec.norm == "rms" else (inner, keys)
    return Layer(
        q=taker.linear("q", inner, width, number),
        k=taker.linear("k", keys, width, number),
        v=taker.linear("v", keys, width, number),
        out=taker.linear("out", width, inner, number),
        attention_norm=taker.norm("attention_norm", width, number) if number or first_norm else None,
        up=taker.linear("up", spec.ffn_width, width, number),
        down=taker.linear("down", width, spec.ffn_width, number),
        ffn_norm=taker.norm("ffn_norm", width, number),
        gate=taker.linear("gate", spec.ffn_width, width, number) if taker.knows("gate") else None,
        q_norm=taker.optional_norm("q_norm", q_width, number),
        k_norm=taker.optional_norm("k_norm", k_width, number),
        attention_out_norm=taker.optional_norm("attention_out_norm", width, number),
        ffn_out_norm=taker.optional_norm("ffn_out_norm", width, number),
        inner_norm=taker.optional_norm("inner_norm", width, number),
    )


def _head(taker: "Taker", row: HeadRow, width: int) -> Head:
    layers = []
    for part in row.parts:
        rows = taker.rows(part.linear) if part is row.parts[-1] else width
        linear = taker.linear(part.linear, rows, width)
        layers.append(HeadLayer(linear, part.activation, taker.norm(part.norm, width) if part.norm else None))
    return Head(tuple(layers), row.per_token)


def _rename(tensors: Mapping[str, Array], family: Family) -> dict[str, Array]:
    renamed: dict[str, Array] = {}
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
    """Hands out tensors by our names, each once or part by part, and collects what is wrong until `finish`.

    names, biases, norm_offset: as Family has them, biases resolved.
    """

    def __init__(
        self,
        tensors: Mapping[str, Array],
        names: Mapping[str, str],
        biases: Mapping[str, bool | str] | None = None,
        norm_offset: float = 0.0,
    ) -> None:
        self._tensors = tensors
        self._names = names
        self._biases = biases or {}
        self._norm_offset = np.float32(norm_offset)
        self._unused = set(tensors)
        self._missing: list[str] = []
        self._wrong: list[str] = []

    def knows(self, name: str) -> bool:
        """True where the family has this parameter."""
        return name in self._names

    def rows(self, name: str) -> int:
        """Rows of a stored weight; 0 if it is missing."""
        tensor = self._tensors.get(f"{self._names[name]}.weight")
        return tensor.shape[0] if tensor is not None and tensor.ndim else 0

    def linear(self, name: str, out: int, into: int, layer: int = 0) -> Linear:
        """weight (out, into) and bias (out,) or None."""
        bias = self._take(name, "bias", layer, out) if self._biases.get(name, True) else None
        return Linear(self._take(name, "weight", layer, out, into), bias)

    def norm(self, name: str, width: int, layer: int = 0) -> Norm:
        """weight and bias (width,), or bias None."""
        weight = self._take(name, "weight", layer, width)
        bias = self._take(name, "bias", layer, width) if self._biases.get(name, True) else None
        return Norm(np.add(weight, self._norm_offset) if self._norm_offset else weight, bias)

    def optional_norm(self, name: str, width: int, layer: int = 0) -> Norm | None:
        """A norm where the family has one."""
        return self.norm(name, width, layer) if self.knows(name) else None

    def table(self, name: str, rows: int, width: int) -> Array:
        """weight (rows, width)."""
        return self._take(name, "weight", 0, rows, width)

    def finish(self, ignored: Iterable[str] = ()) -> None:
        """Raise WeightsError if anything was missing, wrong, or is left over and not on the list of the ignored."""
        patterns = tuple(ignored)
        left = sorted(name for name in self._unused if not any(fnmatchcase(name, pattern) for pattern in patterns))
        problems = (("missing", self._missing), ("wrong", self._wrong), ("left over", left))
        told = [f"{len(set(names))} {word}: {_some(names)}" for word, names in problems if names]
        if told:
            raise WeightsError("the weights do not fit config.json; " + "; ".join(told))

    def _take(self, name: str, kind: str, layer: int, *shape: int) -> Array:
        cut = _CUT.fullmatch(self._names[name])
        stem, part, parts = (cut[1], int(cut[2]), int(cut[3])) if cut else (self._names[name], 1, 1)
        stored = f"{stem.format(layer)}.{kind}"
        tensor = self._tensors.get(stored)
        self._unused.discard(stored)
        whole = (parts * shape[0], *shape[1:])
        if tensor is None:
            self._missing.append(stored)
        elif tensor.shape != whole:
            self._wrong.append(f"{stored} is {tensor.shape}, config.json says {whole}")
        elif tensor.dtype not in EXACT:
            self._wrong.append(f"{stored} is stored as {tensor.dtype}, not float32, float16 or bfloat16")
        else:
            rows = tensor[(part - 1) * shape[0] : part * shape[0]]
            return rows if rows.ndim > 1 else rows.astype(np.float32, copy=False)
        return np.empty(0, np.float32)


def _some(names: list[str]) -> str:
    names = list(dict.fromkeys(names))  # a fused tensor is asked for part by part
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
