"""The operations that a model is written in: what each means. openvino.py and torch.py do them.

An Ops object is made for one forward and holds that forward's Batch. X is the backend's tensor: a graph node
for OpenVINO, a torch.Tensor for PyTorch. Each method's text is its definition; a fast version must match it.
Cut where kernels fuse: a CUDA backend does each of these in one launch.
"""

from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from openbei.model.spec import Activation, Array, Embedding, Linear, Norm, Pooling

X = TypeVar("X")


class Ops(Protocol[X]):
    """What a backend must do, on packed tokens (T, ...)."""

    def embed(self, tables: Embedding, eps: float) -> X:
        """word[id] + position[pos] (+ segment[type]), then norm: (T, C)."""
        ...

    def linear(self, x: X, linear: Linear, activation: Activation = "identity") -> X:
        """activation(x Wᵀ + b): (rows, in) -> (rows, out)."""
        ...

    def add_norm(self, x: X, residual: X, norm: Norm, eps: float) -> X:
        """LayerNorm(x + residual), statistics in float32: (T, C)."""
        ...

    def attention(self, q: X, k: X, v: X, num_heads: int, bias: Array | None = None) -> X:
        """softmax(q kᵀ / sqrt(D) + bias) v inside each sequence, softmax in float32: (T, H*D) -> (T, H*D).

        bias: float32 (H, 2R - 1), the score added for each head and each key position - query position + R - 1.
        """
        ...

    def pool(self, x: X, kind: Pooling) -> X:
        """States -> one row a sequence, sums in float32: first token, mean, or last token: (T, C) -> (B, C)."""
        ...


def bias_by_distance(table: Array, max_length: int) -> NDArray[np.float32]:
    """Relative-position table (num_buckets, H) -> bias of every distance (H, 2 * max_length - 1).

    T5's bidirectional buckets: half of them for each sign; half of those exact, the rest logarithmic up to
    distance 128 (Raffel et al. 2020, section 2.1). In float32, as transformers' MPNetEncoder computes them.
    """
    distance = np.arange(1 - max_length, max_length)
    per_sign = table.shape[0] // 2
    num_exact = per_sign // 2
    size = np.abs(distance)
    scaled = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(num_exact))
    logarithmic = num_exact + (scaled / np.float32(np.log(128 / num_exact)) * np.float32(per_sign - num_exact)).astype(
        np.int64
    )
    bucket = np.where(size < num_exact, size, np.minimum(logarithmic, per_sign - 1)) + per_sign * (distance > 0)
    return np.ascontiguousarray(table[bucket].T, dtype=np.float32)
