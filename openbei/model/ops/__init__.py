"""The operations that a model is written in: what each means. openvino.py and torch.py do them.

An Ops object is made for one forward and holds that forward's Batch. X is the backend's tensor: a graph node
for OpenVINO, a torch.Tensor for PyTorch. Each method's text is its definition; a fast version must match it.
Cut where kernels fuse: a CUDA backend does each of these in one launch.
"""

from typing import Protocol, TypeVar

from openbei.model.spec import Activation, Array, Embedding, Linear, Norm, Pooling

X = TypeVar("X")


class Ops(Protocol[X]):
    """About fifteen operations on packed tokens (T, ...)."""

    def embed(self, tables: Embedding, eps: float) -> X:
        """word[id] + position[pos] (+ segment[type]), then norm: (T, C)."""

    def linear(self, x: X, linear: Linear, activation: Activation = "identity") -> X:
        """activation(x Wᵀ + b): (rows, in) -> (rows, out)."""

    def add_norm(self, x: X, residual: X, norm: Norm, eps: float) -> X:
        """norm(x + residual), statistics in float32: (T, C)."""

    def relative_bias(self, table: Array) -> X:
        """(num_buckets, H) -> a bias for `attention`, by the bucket of key position - query position.

        T5's bidirectional buckets with max_distance 128 (Raffel et al. 2020, section 2.1;
        transformers MPNetEncoder.relative_position_bucket).
        """

    def attention(self, q: X, k: X, v: X, num_heads: int, bias: X | None = None) -> X:
        """softmax(q kᵀ / sqrt(D) + bias) v inside each sequence; softmax in float32: (T, H*D) -> (T, H*D)."""

    def pool(self, x: X, kind: Pooling) -> X:
        """States -> one row a sequence, sums in float32: first token, mean, or last token: (T, C) -> (B, C)."""
