"""What a network is (ModelSpec, Weights, Model) and what it is run on (Batch): plain frozen data.

Owns the numbers and the packing of tokens; never touches requests, files, time or a tensor library
other than NumPy. Shape letters: T tokens, B sequences, C width, H heads, D head width, F feed-forward
width, P positions, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

# A matrix of parameters is float32, or float16 or ml_dtypes.bfloat16 as its file has it: whoever computes widens it
# (model/stored.py, which also has those that are FP8 with a scale). A vector of parameters is float32.
Array = NDArray[np.generic]
Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh", "sigmoid", "identity"]
Pooling = Literal["cls", "mean", "last_token", "max", "sum"]
NormKind = Literal["layer", "rms"]
HIDDEN = -1  # in place of a token's segment: the token sees the others, and none sees it
Output = Literal["vectors", "states", "labels", "weights", "multi"]


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions: theta and, where the config scales them, how (models: RoPE scaling rules).

    linear: f / factor. ntk: theta * factor, then f / factor^(2/D). ntk_mixed: f / exp(a (i + 1)^mixed_b).
    dynamic: theta grows with each sequence that is longer than original_length. llama3: by wavelength.
    """

    theta: float
    scaling: Literal["none", "linear", "ntk", "ntk_mixed", "dynamic", "llama3"] = "none"
    factor: float = 1.0
    mixed_b: float = 0.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The numbers of a transformer, as its config.json states them.

    norm_placement: post, x = norm(x + f(x)); pre, x = x + f(norm(x)); a layer's own extra norms need no field.
    position_offset: the row of the position table that the first token takes (RoBERTa: pad id + 1); num_positions: rows
    of that table, or the trained length where there is none. num_segments: rows of the token-type table, 0 for none.
    num_relative_buckets: rows of the relative-position table shared by all layers (MPNet), 0 for none.
    alibi: scores fall by slope * distance, to both sides. causal: a token sees none after it.
    window: in layers marked local, a token sees keys nearer than this (0 <= i - j < window when causal, else
    |i - j| <= window // 2, as ModernBERT). rope, local_rope: rotary positions of full and of local layers.
    score_scale: of q kᵀ, None for D^-0.5. softcap: scores become softcap * tanh(score / softcap).
    embed_scale: token embeddings are multiplied by it.
    """

    family: str
    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_width: int
    norm_eps: float
    activation: Activation
    num_positions: int
    norm: NormKind = "layer"
    norm_placement: Literal["post", "pre"] = "post"
    position_offset: int = 0
    num_segments: int = 0
    num_relative_buckets: int = 0
    alibi: bool = False
    causal: bool = False
    window: int | None = None
    local_layers: tuple[bool, ...] = ()
    rope: Rope | None = None
    local_rope: Rope | None = None
    score_scale: float | None = None
    softcap: float | None = None
    embed_scale: float = 1.0

    @property
    def max_length(self) -> int:
        """The most tokens one sequence may have: positions less the offset."""
        return self.num_positions - self.position_offset

    def is_local(self, layer: int) -> bool:
        """True where the layer's attention is bounded by the window."""
        return bool(self.local_layers) and self.local_layers[layer]


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x Wᵀ + b: weight (out, in), bias (out,) or None.

    scale: float32 (out,) where weight is ml_dtypes.float8_e4m3fn, and W is weight * scale[:, None]; else None.
    """

    weight: Array
    bias: Array | None = None
    scale: Array | None = None


@dataclass(frozen=True, slots=True)
class Norm:
    """Parameters of a norm: weight (C,), with Gemma's 1 + w already added; bias (C,) or None."""

    weight: Array
    bias: Array | None = None


@dataclass(frozen=True, slots=True)
class Embedding:
    """The tables that tokens are looked up in: word (V, C), position (P, C), segment (S, C); then a norm, or None."""

    word: Array
    position: Array | None = None
    segment: Array | None = None
    norm: Norm | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """One block: q (H*D, C), k and v (K*D, C), out (C, H*D); up (F, C), gate (F, C) if gated, down (C, F).

    attention_norm, ffn_norm: the norm of each half, where norm_placement says; None leaves it out (ModernBERT's first).
    q_norm, k_norm: over each head (D,) or, if they are that wide, over all heads (H*D,); before RoPE.
    attention_out_norm, ffn_out_norm: of a half's output, before it is added to the residual (Gemma).
    inner_norm: norm(x + attention), to which the residual is added once more (JinaBERT code).
    """

    q: Linear
    k: Linear
    v: Linear
    out: Linear
    attention_norm: Norm | None
    up: Linear
    down: Linear
    ffn_norm: Norm
    gate: Linear | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    attention_out_norm: Norm | None = None
    ffn_out_norm: Norm | None = None
    inner_norm: Norm | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """All parameters of one network. relative_bias: (num_relative_buckets, H) or None. final_norm: of pre-norm ones."""

    embedding: Embedding
    layers: tuple[Layer, ...]
    relative_bias: Array | None = None
    final_norm: Norm | None = None


@dataclass(frozen=True, slots=True)
class HeadLayer:
    """norm(activation(Linear(x))); norm None for most."""

    linear: Linear
    activation: Activation = "identity"
    norm: Norm | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """What turns a pooled state into labels: layers in a row, the last one (L, C).

    BERT: pooler (tanh), classifier. RoBERTa: dense (tanh), out_proj. DistilBERT: pre_classifier (relu), classifier.
    ModernBERT: dense (gelu, then norm), classifier. Decoders: score alone. per_token: labels every token instead.
    """

    layers: tuple[HeadLayer, ...]
    per_token: bool = False


@dataclass(frozen=True, slots=True)
class Model:
    """A filled network. Without a head it turns a sequence into one vector, with one into labels.

    dense: what a pooled state goes through, sentence-transformers' Dense modules. normalize: what the model's own
    files say of their last step; a request's own wish wins over it.
    before_pooling: of SPLADE, the masked language model's head on every token; its rows are as wide as the vocabulary.
    num_logs: how often log(1 + relu(x)) is taken of these, 0 but for SPLADE: before pooling sum, which is SPLADE's
    alone; max gives the same before and after, so there whoever reads the vector takes them.
    weigher: a token's state -> its weight in a sparse vector (bge-m3). multi: a token's state -> its own vector
    (ColBERT), beside the vector of the sequence, or instead of it where pooling is None.
    """

    spec: ModelSpec
    weights: Weights
    pooling: Pooling | None
    dense: tuple[HeadLayer, ...] = ()
    normalize: bool = True
    head: Head | None = None
    before_pooling: tuple[HeadLayer, ...] = ()
    num_logs: int = 0
    weigher: tuple[HeadLayer, ...] = ()
    multi: tuple[HeadLayer, ...] = ()

    @property
    def embedding_dim(self) -> int:
        """Width of a vector: that of the last layer that makes it."""
        last = self.dense or self.before_pooling
        if self.pooling is None:
            return self.multi_dim
        return len(last[-1].linear.weight) if last else self.spec.width

    @property
    def multi_dim(self) -> int:
        """Width of a token's own vector, 0 without one."""
        return len(self.multi[-1].linear.weight) if self.multi else 0

    @property
    def main_output(self) -> Output:
        """What the model is for."""
        if self.head is not None:
            return "labels"
        return "vectors" if self.pooling else "multi"

    def is_by_token(self, output: Output) -> bool:
        """True where an output has a row a token, False where it has one a sequence."""
        return output in ("states", "weights", "multi") or (
            output == "labels" and self.head is not None and self.head.per_token
        )

    @property
    def num_labels(self) -> int:
        """Labels of the head, 0 without one."""
        return int(self.head.layers[-1].linear.weight.shape[0]) if self.head else 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed tokens for one forward: sequences end to end, no padding.

    input_ids, position_ids, token_type_ids: int32 (T,). cu_seqlens: int32 (B + 1,), first 0, last T;
    sequence i is rows cu_seqlens[i] to cu_seqlens[i + 1]. num_keys: int32 (B,), how many of a sequence's first tokens
    the others see; None for all of them.
    """

    input_ids: NDArray[np.int32]
    position_ids: NDArray[np.int32]
    token_type_ids: NDArray[np.int32]
    cu_seqlens: NDArray[np.int32]
    num_keys: NDArray[np.int32] | None = None

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.input_ids)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each sequence, int32 (B,)."""
        return np.diff(self.cu_seqlens)


class Size(NamedTuple):
    """The shape of one launch: a batch is padded to it where launches are recorded ahead."""

    num_tokens: int
    num_sequences: int


def pack(spec: ModelSpec, ids: Sequence[Sequence[int]], token_type_ids: Sequence[Sequence[int]] | None = None) -> Batch:
    """Token ids of B sequences -> one Batch; the only place where a batch is made.

    ids: lists, or what has a buffer of int32, which is faster. token_type_ids: as ids, or None for all zero; ignored
    where the model has a single segment (RoBERTa), but for HIDDEN, of tokens at a sequence's end (Batch.num_keys).
    Position ids follow transformers: counted from 0, or with a position_offset from pad id + 1, where a
    literal pad token inside a text takes row pad id and is not counted (`create_position_ids_from_input_ids`).
    """
    lengths = np.fromiter(map(len, ids), np.int32, len(ids))
    cu_seqlens = np.zeros(len(ids) + 1, np.int32)
    np.cumsum(lengths, out=cu_seqlens[1:])
    total = int(cu_seqlens[-1])
    input_ids = _joined(ids)
    starts = np.repeat(cu_seqlens[:-1], lengths)
    if spec.position_offset:
        pad_id = spec.position_offset - 1
        real = (input_ids != pad_id).astype(np.int32)
        before = np.concatenate(([0], np.cumsum(real, dtype=np.int32)))
        position_ids = (before[1:] - before[starts]) * real + pad_id
    else:
        position_ids = np.arange(total, dtype=np.int32) - starts
    types, num_keys = np.zeros(total, np.int32), None
    if token_type_ids is not None:
        given = _joined(token_type_ids)
        if (given == HIDDEN).any():
            num_keys = np.add.reduceat(given != HIDDEN, cu_seqlens[:-1], dtype=np.int32)
        if spec.num_segments > 1:
            types = np.maximum(given, 0)
    return Batch(input_ids, position_ids.astype(np.int32), types, cu_seqlens, num_keys)


def _joined(sequences: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """Sequences end to end; those that are arrays are copied as they lie in memory."""
    return np.concatenate([np.empty(0, np.int32), *(np.asarray(sequence, np.int32) for sequence in sequences)])


def num_parameters(value: Any) -> int:
    """Values in all arrays below a dataclass, tuple or array; the scales of FP8 weights are none."""
    if isinstance(value, np.ndarray):
        return value.size
    if isinstance(value, tuple):
        return sum(map(num_parameters, value))
    if is_dataclass(value):
        names = (item.name for item in fields(value) if not (isinstance(value, Linear) and item.name == "scale"))
        return sum(num_parameters(getattr(value, name)) for name in names)
    return 0
