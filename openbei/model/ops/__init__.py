"""The operations that a model is written in: what each means. numpy.py does them plainly, openvino.py and cuda.py fast.

An Ops object is made for one forward and holds that forward's Batch. X is the backend's tensor: an array of NumPy,
a graph node of OpenVINO, a torch.Tensor on a GPU. Each method's text is its definition; a fast version must match it.
Cut where kernels fuse: a CUDA backend does each of these in one launch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from openbei.model.spec import Activation, Array, Embedding, Linear, Norm, NormKind, Pooling

X = TypeVar("X")
PIECE = 2048  # words whose logits are held at once


@dataclass(frozen=True, slots=True)
class Attention:
    """How one layer attends. window: as ModelSpec says, None for all keys.

    bias: float32 (H, 2R - 1), the score added for each head and each key position - query position + R - 1.
    """

    num_heads: int
    num_kv_heads: int
    scale: float
    causal: bool = False
    window: int | None = None
    softcap: float | None = None
    bias: Array | None = None


def pieces(linear: Linear) -> Iterator[Linear]:
    """A product with many rows -> products of up to PIECE of them each, in order; nothing is copied."""
    for begin in range(0, len(linear.weight), PIECE):
        rows = slice(begin, begin + PIECE)
        bias, scale = (None if part is None else part[rows] for part in (linear.bias, linear.scale))
        yield Linear(linear.weight[rows], bias, scale)


@dataclass(frozen=True, slots=True)
class LastProduct:
    """What Ops.pool_words is asked for, where a backend does it later."""

    linear: Linear
    kind: Pooling
    num_logs: int


@dataclass(frozen=True, slots=True)
class NormSpec:
    """Which norm: LayerNorm (mean and variance) or RMS (root mean square), and its eps."""

    kind: NormKind
    eps: float


class Ops(Protocol[X]):
    """What a backend must do, on packed tokens (T, ...)."""

    def embed(self, tables: Embedding, scale: float) -> X:
        """word[id] * scale (+ position[pos]) (+ segment[type]): (T, C)."""
        ...

    def linear(self, x: X, linear: Linear, activation: Activation = "identity") -> X:
        """activation(x Wᵀ + b): (rows, in) -> (rows, out)."""
        ...

    def linears(self, x: X, linears: Sequence[Linear]) -> Sequence[X]:
        """Each of them on the same x, which a backend may do as one product: (rows, in) -> (rows, out) each."""
        ...

    def gated(self, x: X, up: Linear, gate: Linear, activation: Activation) -> X:
        """activation(gate(x)) * up(x): (T, C) -> (T, F)."""
        ...

    def add(self, x: X, y: X) -> X:
        """x + y."""
        ...

    def norm(self, x: X, norm: Norm, spec: NormSpec) -> X:
        """norm(x), statistics in float32: (T, C), or (T, H*D) by heads of D where the weight is (D,)."""
        ...

    def rope(self, x: X, num_heads: int, local: bool, keys: bool = False) -> X:
        """Half-split rotary positions on (T, heads*D), by the cos and sin of full or local layers (Su et al. 2021).

        keys: x is attention's keys, not its queries, which a backend may lay out otherwise.
        """
        ...

    def attention(self, q: X, k: X, v: X, how: Attention) -> X:
        """softmax(cap(q kᵀ * scale) + bias, masked) v inside each sequence, softmax in float32.

        (T, H*D), (T, K*D), (T, K*D) -> (T, H*D); query head j reads key head j // (H / K).
        """
        ...

    def pool(self, x: X, kind: Pooling) -> X:
        """States -> one row a sequence: first token, mean (summed in float32), last token, or the largest value of each
        column: (T, C) -> (B, C).
        """
        ...

    def pool_words(self, x: X, linear: Linear, kind: Pooling, num_logs: int) -> X:
        """Rows over a vocabulary -> one a sequence: pool(x Wᵀ + b), (T, C) -> (B, V), in pieces of PIECE words.

        sum: of what num_logs times log(1 + relu()) makes of each value. (T, V) is never held: it may be gigabytes.
        """
        ...
