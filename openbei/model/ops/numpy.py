"""The operations in NumPy, written out plainly, in float32: the reference that every fast version must match.

An artifact's self-check is made with it too: a weight is widened a few million values at a time, so a model needs
little memory beside its files. Owns no graph and no device; for a few short texts, since nothing here is quick.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from openbei.model import transformer
from openbei.model.ops import Attention, NormSpec, pieces
from openbei.model.positions import cos_sin, visible
from openbei.model.spec import Activation, Array, Batch, Embedding, Linear, Model, ModelSpec, Norm, Output, Pooling
from openbei.model.stored import row_blocks, weight_of

Floats = NDArray[np.float32]
_erf = np.frompyfunc(math.erf, 1, 1)


def _gelu_tanh(x: Floats) -> Floats:
    inner: Floats = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
    return np.asarray(x * (1 + np.tanh(inner)) / 2)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray((1 + np.tanh(x / 2)) / 2)


ACTIVATIONS: dict[Activation, Callable[[Floats], Floats]] = {
    "gelu": lambda x: x * (1 + _erf(x / np.float32(math.sqrt(2))).astype(np.float32)) / 2,
    "gelu_tanh": _gelu_tanh,
    "relu": lambda x: np.maximum(x, np.float32(0)),
    "silu": lambda x: x * _sigmoid(x),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "identity": lambda x: x,
}


class NumpyOps:
    """Ops[Floats] over one Batch; each method is the definition in ops/__init__.py."""

    def __init__(self, batch: Batch, spec: ModelSpec) -> None:
        self.batch = batch
        self.spec = spec
        self.rows = [slice(begin, end) for begin, end in itertools.pairwise(batch.cu_seqlens.tolist())]

    def embed(self, tables: Embedding, scale: float) -> Floats:
        """Tables at the batch's ids: (T, C)."""
        x = _wide(tables.word[self.batch.input_ids]) * np.float32(scale)
        if tables.position is not None:
            x += _wide(tables.position[self.batch.position_ids])
        if tables.segment is not None:
            x += _wide(tables.segment[self.batch.token_type_ids])
        return x

    def linear(self, x: Floats, linear: Linear, activation: Activation = "identity") -> Floats:
        """(rows, in) -> (rows, out)."""
        y = np.concatenate([x @ _wide(weight_of(linear, rows)).T for rows in row_blocks(linear)], axis=1)
        return ACTIVATIONS[activation](y if linear.bias is None else y + _wide(linear.bias))

    def linears(self, x: Floats, linears: Sequence[Linear]) -> Sequence[Floats]:
        """Each of them on the same x."""
        return [self.linear(x, linear) for linear in linears]

    def gated(self, x: Floats, up: Linear, gate: Linear, activation: Activation) -> Floats:
        """(T, C) -> (T, F)."""
        return self.linear(x, gate, activation) * self.linear(x, up)

    def add(self, x: Floats, y: Floats) -> Floats:
        """x + y."""
        return x + y

    def norm(self, x: Floats, norm: Norm, spec: NormSpec) -> Floats:
        """(T, C), or by heads."""
        y = x.reshape(len(x), -1, len(norm.weight))
        if spec.kind == "layer":
            y = y - y.mean(-1, keepdims=True)
        y = y / np.sqrt((y * y).mean(-1, keepdims=True) + np.float32(spec.eps)) * _wide(norm.weight)
        normed: Floats = y if norm.bias is None else y + _wide(norm.bias)
        return normed.reshape(x.shape)

    def rope(self, x: Floats, num_heads: int, local: bool, keys: bool = False) -> Floats:
        """(T, heads*D), both halves turned by the token's angles."""
        rope = (self.spec.local_rope if local else None) or self.spec.rope
        assert rope is not None
        cos, sin = (part[:, None, :] for part in cos_sin(rope, self.spec.head_dim, self.batch))
        first, second = np.split(x.reshape(len(x), num_heads, -1), 2, axis=-1)
        turned: Floats = np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
        return turned.reshape(x.shape)

    def attention(self, q: Floats, k: Floats, v: Floats, how: Attention) -> Floats:
        """(T, H*D), sequence by sequence."""
        q_heads = q.reshape(len(q), how.num_heads, -1).swapaxes(0, 1)
        k_heads, v_heads = (
            x.reshape(len(x), how.num_kv_heads, -1).swapaxes(0, 1).repeat(how.num_heads // how.num_kv_heads, axis=0)
            for x in (k, v)
        )
        lengths = self.batch.lengths if self.batch.num_keys is None else self.batch.num_keys
        attended = []
        for rows, num_keys in zip(self.rows, lengths, strict=True):
            seen = slice(rows.start, rows.start + num_keys)
            attended.append(_attend(q_heads[:, rows], k_heads[:, seen], v_heads[:, seen], how))
        return np.concatenate(attended)

    def pool(self, x: Floats, kind: Pooling) -> Floats:
        """(T, C) -> (B, C)."""
        if kind == "mean":
            return np.stack([x[rows].mean(0) for rows in self.rows])
        if kind == "max":
            return np.stack([x[rows].max(0) for rows in self.rows])
        if kind == "sum":
            return np.stack([x[rows].sum(0) for rows in self.rows])
        return np.stack([x[rows][0 if kind == "cls" else -1] for rows in self.rows])

    def pool_words(self, x: Floats, linear: Linear, kind: Pooling, num_logs: int) -> Floats:
        """(T, C) -> (B, V), a piece of the words after another."""
        pooled = []
        for piece in pieces(linear):
            words = self.linear(x, piece)
            for _ in range(num_logs if kind == "sum" else 0):
                words = np.log1p(np.maximum(words, np.float32(0)))
            pooled.append(self.pool(words, kind))
        return np.concatenate(pooled, axis=1)


def run(model: Model, batch: Batch, output: Output) -> Floats:
    """Batch -> one of the model's outputs, float32: a row a sequence, or a token (Model.is_by_token)."""
    rows: Floats = transformer.FORWARDS[output](NumpyOps(batch, model.spec), model)
    return rows


def _wide(array: Array) -> Floats:
    return array.astype(np.float32, copy=False)


def _attend(q: Floats, k: Floats, v: Floats, how: Attention) -> Floats:
    """One sequence, (heads, n, D) each -> (n, H*D)."""
    ahead = np.arange(k.shape[1])[None, :] - np.arange(q.shape[1])[:, None]  # key position - query position
    scores = q @ k.swapaxes(1, 2) * np.float32(how.scale)
    if how.softcap is not None:
        scores = np.float32(how.softcap) * np.tanh(scores / np.float32(how.softcap))
    if how.bias is not None:
        scores = scores + _wide(how.bias)[:, ahead + how.bias.shape[1] // 2]
    scores = np.where(visible(ahead, how.causal, how.window), scores, np.float32(-np.inf))
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    attended: Floats = shares @ v
    return attended.swapaxes(0, 1).reshape(q.shape[1], -1)
