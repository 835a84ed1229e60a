"""The operations in PyTorch, written out plainly: the reference that every fast version must match.

Runs on a CPU in float32, one sequence at a time inside attention. Never used by the CPU server, and the only
module here that imports torch.
"""

import itertools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from numpy.typing import NDArray
from torch import Tensor

from openbei.model import transformer
from openbei.model.spec import Activation, Array, Batch, Embedding, Linear, Model, Norm, Pooling

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}


class TorchOps:
    """Ops[Tensor] over one Batch; each method is the definition in ops/__init__.py, line by line."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        ends = batch.cu_seqlens.tolist()
        self.rows = [slice(begin, end) for begin, end in itertools.pairwise(ends)]

    def embed(self, tables: Embedding, eps: float) -> Tensor:
        """Tables at the batch's ids: (T, C)."""
        x = _tensor(tables.word)[self.batch.input_ids] + _tensor(tables.position)[self.batch.position_ids]
        if tables.segment is not None:
            x = x + _tensor(tables.segment)[self.batch.token_type_ids]
        return _norm(x, tables.norm, eps)

    def linear(self, x: Tensor, linear: Linear, activation: Activation = "identity") -> Tensor:
        """(rows, in) -> (rows, out)."""
        bias = None if linear.bias is None else _tensor(linear.bias)
        return ACTIVATIONS[activation](F.linear(x, _tensor(linear.weight), bias))

    def add_norm(self, x: Tensor, residual: Tensor, norm: Norm, eps: float) -> Tensor:
        """(T, C)."""
        return _norm(x + residual, norm, eps)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, num_heads: int, bias: Array | None = None) -> Tensor:
        """(T, H*D), sequence by sequence."""
        q, k, v = (x.reshape(len(x), num_heads, -1).transpose(0, 1) for x in (q, k, v))
        return torch.cat([_attend(q[:, rows], k[:, rows], v[:, rows], bias) for rows in self.rows])

    def pool(self, x: Tensor, kind: Pooling) -> Tensor:
        """(T, C) -> (B, C)."""
        if kind == "mean":
            return torch.stack([x[rows].mean(0) for rows in self.rows])
        return torch.stack([x[rows][0 if kind == "cls" else -1] for rows in self.rows])


def states(model: Model, batch: Batch) -> NDArray[np.float32]:
    """Batch -> last hidden states float32 (T, C)."""
    with torch.inference_mode():
        return transformer.states(TorchOps(batch), model).numpy()


def embed(model: Model, batch: Batch) -> NDArray[np.float32]:
    """Batch -> pooled vectors float32 (B, embedding_dim), not normalised."""
    with torch.inference_mode():
        return transformer.embed(TorchOps(batch), model).numpy()


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32))


def _norm(x: Tensor, norm: Norm, eps: float) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), _tensor(norm.weight), _tensor(norm.bias), eps)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Array | None) -> Tensor:
    length = q.shape[1]
    scores = q @ k.transpose(1, 2) * q.shape[2] ** -0.5
    if bias is not None:
        position = torch.arange(length)
        scores = scores + _tensor(bias)[:, position[None, :] - position[:, None] + bias.shape[1] // 2]
    attended: Tensor = scores.softmax(-1) @ v
    return attended.transpose(0, 1).reshape(length, -1)
