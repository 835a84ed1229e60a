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
from openbei.model.stored import E4M3
from openbei.weights.families import Family, HeadRow

_LEGACY = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_CUT = re.compile(r"(.+)\[(\d)/(\d)\]")  # name[part/parts], see Family.names
_SHOWN = 3
EXACT = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(bfloat16))  # become float32 exactly
BLOCK = ("q", "k", "v", "out", "gate", "up", "down")  # our names of a block's linears
_UNREAD = ("*.input_scale",)  # of activations, see scheme.py


def fill(spec: ModelSpec, family: Family, tensors: Mapping[str, Array]) -> tuple[Weights, Head | None]:
    """A checkpoint's tensors -> the parameters of spec, and of the family's head if it has one.

    Matrices are views of what is stored, float32, float16 or bfloat16, or of linears FP8 with its scales; vectors are
    float32. Raises WeightsError that lists what is missing, of another shape or type, or left over.
    """
    parts = family.head.parts if family.head else ()
    names, biases = dict(family.names), dict(family.biases)
    for part in parts:
        names |= {part.linear: part.linear} | ({part.norm: part.norm} if part.norm else {})
        biases |= {part.linear: part.bias} | ({part.norm: part.norm_bias} if part.norm else {})
    taker = Taker(_rename(tensors, family), names, biases, family.norm_offset)
    weights = _weights(taker, spec, family.first_norm)
    head = _head(taker, family.head, spec.width) if family.head else None
    taker.finish((*family.ignored, *_UNREAD))
    return weights, head


def in_blocks(family: Family, stored: Iterable[str]) -> dict[str, str]:
    """Names of tensors -> those that are the weight of a linear inside the family's blocks, with our name for it.

    Of a fused one, the name of one of its parts.
    """
    ours = {re.escape(f"{_stem(family.names[name])[0]}.weight"): name for name in BLOCK if name in family.names}
    patterns = {re.compile(template.replace(r"\{\}", r"\d+")): name for template, name in ours.items()}
    spelled = {name: our_spelling(name, family) for name in stored}
    return {
        name: our
        for name, spelling in spelled.items()
        for pattern, our in patterns.items()
        if pattern.fullmatch(spelling)
    }


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
        name = our_spelling(stored, family)
        if name in renamed:
            raise WeightsError(f"{name} is in the file twice, once as {stored}")
        renamed[name] = tensor
    return renamed


def our_spelling(stored: str, family: Family) -> str:
    """A tensor's name in a file -> as the family's row has it: without prefix, norms by their present names."""
    name = stored
    for prefix in family.prefixes:
        name = name.removeprefix(prefix)
    for legacy, modern in _LEGACY.items():
        name = name.replace(legacy, modern)
    return name


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
        """weight (out, into) and bias (out,) or None; of an FP8 weight its scale (out,)."""
        bias = self._take(name, "bias", layer, out) if self._biases.get(name, True) else None
        weight = self._take(name, "weight", layer, out, into)
        return Linear(weight, bias, self._scale(name, layer, out) if weight.dtype == E4M3 else None)

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
        stem, part, parts = _stem(self._names[name])
        stored = f"{stem.format(layer)}.{kind}"
        tensor = self._tensors.get(stored)
        self._unused.discard(stored)
        whole = (parts * shape[0], *shape[1:])
        if tensor is None:
            self._missing.append(stored)
        elif tensor.shape != whole:
            self._wrong.append(f"{stored} is {tensor.shape}, config.json says {whole}")
        elif tensor.dtype not in EXACT and not (tensor.dtype == E4M3 and f"{stored}_scale" in self._tensors):
            self._wrong.append(f"{stored} is stored as {tensor.dtype}, not float32, float16 or bfloat16")
        else:
            rows = tensor[(part - 1) * shape[0] : part * shape[0]]
            return rows if rows.ndim > 1 else rows.astype(np.float32, copy=False)
        return np.empty(0, np.float32)

    def _scale(self, name: str, layer: int, rows: int) -> Array:
        """float32 (rows,): one for each row, as (n,) or (n, 1), or one for all."""
        stem, part, parts = _stem(self._names[name])
        stored = f"{stem.format(layer)}.weight_scale"
        scale = self._tensors[stored]
        self._unused.discard(stored)
        if scale.dtype not in EXACT:
            self._wrong.append(f"{stored} is stored as {scale.dtype}, not float32, float16 or bfloat16")
        elif scale.size == 1:
            return np.full(rows, scale.reshape(()), np.float32)
        elif scale.shape in ((parts * rows,), (parts * rows, 1)):
            return scale.reshape(-1)[(part - 1) * rows : part * rows].astype(np.float32)
        else:
            self._wrong.append(f"{stored} is {scale.shape}, neither one scale nor one for each of {parts * rows} rows")
        return np.ones(rows, np.float32)


def _stem(name: str) -> tuple[str, int, int]:
    """A name of Family.names -> the stored one, and which of how many parts of its rows."""
    cut = _CUT.fullmatch(name)
    return (cut[1], int(cut[2]), int(cut[3])) if cut else (name, 1, 1)


def _some(names: list[str]) -> str:
    names = list(dict.fromkeys(names))  # a fused tensor is asked for part by part
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
