"""The operations in PyTorch, written out plainly: the reference that every fast version must match.

Runs on a CPU in float32, one sequence at a time inside attention. Never used by the CPU server, and the only
module here that imports torch.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from numpy.typing import NDArray
from torch import Tensor

from openbei.model import transformer
from openbei.model.ops import Attention, NormSpec, Ops, pieces
from openbei.model.positions import cos_sin, visible
from openbei.model.spec import Activation, Array, Batch, Embedding, Linear, Model, ModelSpec, Norm, Pooling
from openbei.model.stored import weight_of

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

    def __init__(self, batch: Batch, spec: ModelSpec) -> None:
        self.batch = batch
        self.spec = spec
        ends = batch.cu_seqlens.tolist()
        self.rows = [slice(begin, end) for begin, end in itertools.pairwise(ends)]

    def embed(self, tables: Embedding, scale: float) -> Tensor:
        """Tables at the batch's ids: (T, C)."""
        x = _tensor(tables.word)[self.batch.input_ids] * scale
        if tables.position is not None:
            x = x + _tensor(tables.position)[self.batch.position_ids]
        if tables.segment is not None:
            x = x + _tensor(tables.segment)[self.batch.token_type_ids]
        return x

    def linear(self, x: Tensor, linear: Linear, activation: Activation = "identity") -> Tensor:
        """(rows, in) -> (rows, out)."""
        bias = None if linear.bias is None else _tensor(linear.bias)
        return ACTIVATIONS[activation](F.linear(x, _tensor(weight_of(linear)), bias))

    def linears(self, x: Tensor, linears: Sequence[Linear]) -> Sequence[Tensor]:
        """Each of them on the same x."""
        return [self.linear(x, linear) for linear in linears]

    def gated(self, x: Tensor, up: Linear, gate: Linear, activation: Activation) -> Tensor:
        """(T, C) -> (T, F)."""
        return self.linear(x, gate, activation) * self.linear(x, up)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y."""
        return x + y

    def norm(self, x: Tensor, norm: Norm, spec: NormSpec) -> Tensor:
        """(T, C), or by heads."""
        weight, bias = _tensor(norm.weight), None if norm.bias is None else _tensor(norm.bias)
        heads = x.reshape(len(x), -1, len(weight))
        if spec.kind == "rms":
            return F.rms_norm(heads, weight.shape, weight, spec.eps).reshape(x.shape)
        return F.layer_norm(heads, weight.shape, weight, bias, spec.eps).reshape(x.shape)

    def rope(self, x: Tensor, num_heads: int, local: bool, keys: bool = False) -> Tensor:
        """(T, heads*D), both halves turned by the token's angles."""
        rope = (self.spec.local_rope if local else None) or self.spec.rope
        assert rope is not None
        cos, sin = (torch.from_numpy(part)[:, None, :] for part in cos_sin(rope, self.spec.head_dim, self.batch))
        first, second = x.reshape(len(x), num_heads, -1).chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).reshape(x.shape)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, how: Attention) -> Tensor:
        """(T, H*D), sequence by sequence."""
        q = q.reshape(len(q), how.num_heads, -1).transpose(0, 1)
        k, v = (x.reshape(len(x), how.num_kv_heads, -1).transpose(0, 1) for x in (k, v))
        k, v = (x.repeat_interleave(how.num_heads // how.num_kv_heads, dim=0) for x in (k, v))
        keys, num_keys = self.rows, self.batch.num_keys
        if num_keys is not None:
            keys = [slice(rows.start, rows.start + num) for rows, num in zip(keys, num_keys, strict=True)]
        pairs = zip(self.rows, keys, strict=True)
        return torch.cat([_attend(q[:, rows], k[:, seen], v[:, seen], how) for rows, seen in pairs])

    def pool(self, x: Tensor, kind: Pooling) -> Tensor:
        """(T, C) -> (B, C)."""
        if kind == "mean":
            return torch.stack([x[rows].mean(0) for rows in self.rows])
        if kind == "max":
            return torch.stack([x[rows].amax(0) for rows in self.rows])
        if kind == "sum":
            return torch.stack([x[rows].sum(0) for rows in self.rows])
        return torch.stack([x[rows][0 if kind == "cls" else -1] for rows in self.rows])

    def pool_words(self, x: Tensor, linear: Linear, kind: Pooling, num_logs: int) -> Tensor:
        """(T, C) -> (B, V), a piece of the words after another."""
        pooled = []
        for piece in pieces(linear):
            words = self.linear(x, piece)
            for _ in range(num_logs if kind == "sum" else 0):
                words = torch.log1p(F.relu(words))
            pooled.append(self.pool(words, kind))
        return torch.cat(pooled, dim=1)


def states(model: Model, batch: Batch) -> NDArray[np.float32]:
    """Batch -> last hidden states float32 (T, C)."""
    return _run(transformer.states, model, batch)


def embed(model: Model, batch: Batch) -> NDArray[np.float32]:
    """Batch -> pooled vectors float32 (B, embedding_dim), not normalised."""
    return _run(transformer.embed, model, batch)


def classify(model: Model, batch: Batch) -> NDArray[np.float32]:
    """Batch -> logits float32 (B, L), or (T, L) where the head is per token."""
    return _run(transformer.classify, model, batch)


def weigh(model: Model, batch: Batch) -> NDArray[np.float32]:
    """Batch -> the weight of every token float32 (T, 1)."""
    return _run(transformer.weigh, model, batch)


def multi(model: Model, batch: Batch) -> NDArray[np.float32]:
    """Batch -> a vector for every token float32 (T, embedding_dim), not normalised."""
    return _run(transformer.multi, model, batch)


def _run(forward: Callable[[Ops[Tensor], Model], Tensor], model: Model, batch: Batch) -> NDArray[np.float32]:
    with torch.inference_mode():
        return forward(TorchOps(batch, model.spec), model).numpy()


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32))


def _attend(q: Tensor, k: Tensor, v: Tensor, how: Attention) -> Tensor:
    """One sequence, (heads, n, D) each -> (n, H*D)."""
    scores = q @ k.transpose(1, 2) * how.scale
    if how.softcap is not None:
        scores = how.softcap * torch.tanh(scores / how.softcap)
    ahead = torch.arange(k.shape[1])[None, :] - torch.arange(q.shape[1])[:, None]  # key position - query position
    if how.bias is not None:
        scores = scores + _tensor(how.bias)[:, ahead + how.bias.shape[1] // 2]
    scores = scores.masked_fill(~torch.from_numpy(visible(ahead.numpy(), how.causal, how.window)), -torch.inf)
    attended: Tensor = scores.softmax(-1) @ v
    return attended.transpose(0, 1).reshape(q.shape[1], -1)
