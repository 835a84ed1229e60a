"""What a network is (ModelSpec, Weights, Model) and what it is run on (Batch): plain frozen data.

Owns the numbers and the packing of tokens; never touches requests, files, time or a tensor library
other than NumPy. Shape letters: T tokens, B sequences, C width, H heads, D head width, F feed-forward
width, P positions, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh", "sigmoid", "identity"]
Pooling = Literal["cls", "mean", "last_token"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The numbers of a transformer encoder, as its config.json states them.

    position_offset: the row of the position table that the first token takes (RoBERTa: pad id + 1).
    num_segments: rows of the token-type table, 0 where the model has none.
    num_relative_buckets: rows of the relative-position table shared by all layers (MPNet), 0 for none.
    """

    family: str
    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    head_dim: int
    ffn_width: int
    norm_eps: float
    activation: Activation
    num_positions: int
    position_offset: int = 0
    num_segments: int = 0
    num_relative_buckets: int = 0

    @property
    def max_length(self) -> int:
        """The most tokens one sequence may have: rows of the position table less the offset."""
        return self.num_positions - self.position_offset


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x Wᵀ + b: weight (out, in), bias (out,) or None."""

    weight: Array
    bias: Array | None = None


@dataclass(frozen=True, slots=True)
class Norm:
    """LayerNorm parameters, both (C,)."""

    weight: Array
    bias: Array


@dataclass(frozen=True, slots=True)
class Embedding:
    """The tables that tokens are looked up in: word (V, C), position (P, C), segment (S, C) or None; then a norm."""

    word: Array
    position: Array
    segment: Array | None
    norm: Norm


@dataclass(frozen=True, slots=True)
class Layer:
    """One block: q, k, v and out (H*D wide), then up (F, C) and down (C, F), each followed by its norm."""

    q: Linear
    k: Linear
    v: Linear
    out: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    ffn_norm: Norm


@dataclass(frozen=True, slots=True)
class Weights:
    """All parameters of one network. relative_bias: (num_relative_buckets, H) or None."""

    embedding: Embedding
    layers: tuple[Layer, ...]
    relative_bias: Array | None = None


@dataclass(frozen=True, slots=True)
class Dense:
    """A layer after pooling (sentence-transformers' Dense module): activation(Linear(x))."""

    linear: Linear
    activation: Activation


@dataclass(frozen=True, slots=True)
class Model:
    """A filled network that turns tokens into one vector a sequence.

    normalize: what the model's own files say of their last step; a request's own wish wins over it.
    """

    spec: ModelSpec
    weights: Weights
    pooling: Pooling
    dense: tuple[Dense, ...] = ()
    normalize: bool = True

    @property
    def embedding_dim(self) -> int:
        """Width of the answer: the last Dense module's, else the network's."""
        return int(self.dense[-1].linear.weight.shape[0]) if self.dense else self.spec.width


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed tokens for one forward: sequences end to end, no padding.

    input_ids, position_ids, token_type_ids: int32 (T,). cu_seqlens: int32 (B + 1,), first 0, last T;
    sequence i is rows cu_seqlens[i] to cu_seqlens[i + 1].
    """

    input_ids: NDArray[np.int32]
    position_ids: NDArray[np.int32]
    token_type_ids: NDArray[np.int32]
    cu_seqlens: NDArray[np.int32]

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.input_ids)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each sequence, int32 (B,)."""
        return np.diff(self.cu_seqlens)


def pack(spec: ModelSpec, ids: Sequence[Sequence[int]], token_type_ids: Sequence[Sequence[int]] | None = None) -> Batch:
    """Token ids of B sequences -> one Batch; the only place where a batch is made.

    token_type_ids: as ids, or None for all zero; ignored where the model has a single segment (RoBERTa).
    Position ids follow transformers: counted from 0, or with a position_offset from pad id + 1, where a
    literal pad token inside a text takes row pad id and is not counted (`create_position_ids_from_input_ids`).
    """
    lengths = np.fromiter(map(len, ids), np.int32, len(ids))
    cu_seqlens = np.zeros(len(ids) + 1, np.int32)
    np.cumsum(lengths, out=cu_seqlens[1:])
    total = int(cu_seqlens[-1])
    input_ids = np.fromiter((token for sequence in ids for token in sequence), np.int32, total)
    starts = np.repeat(cu_seqlens[:-1], lengths)
    if spec.position_offset:
        pad_id = spec.position_offset - 1
        real = (input_ids != pad_id).astype(np.int32)
        before = np.concatenate(([0], np.cumsum(real, dtype=np.int32)))
        position_ids = (before[1:] - before[starts]) * real + pad_id
    else:
        position_ids = np.arange(total, dtype=np.int32) - starts
    types = np.zeros(total, np.int32)
    if token_type_ids is not None and spec.num_segments > 1:
        types = np.fromiter((token for sequence in token_type_ids for token in sequence), np.int32, total)
    return Batch(input_ids, position_ids.astype(np.int32), types, cu_seqlens)
