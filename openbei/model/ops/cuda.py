"""The operations as fused GPU launches on packed tokens, and the model that runs on them.

Owns what is launched when; never touches requests, files, time or an event. The arithmetic is in model/kernels, whose
twins take the same path on CPU tensors. `CudaModel.forward` only launches: no shape depends on what a batch holds, and
nothing is read back, so that a CUDA graph can capture it.

One launch does several operations, so some wait for the next one (Rows). Three rules:
- embed and add wait: the norm that follows looks up or adds, and keeps the sum if it is the next residual.
- rope waits, and so does an RMS norm over each head before it: attention does both for q and k in one launch, in place.
- norm makes the forms that are read: plain, FP8 or both, as DeviceNorm says. A product in FP8 whose input has no such
  form (attention's output) quantises it itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openbei.model import transformer
from openbei.model.kernels.activation import activate, gated
from openbei.model.kernels.attention import Sequences, Tiles, attention
from openbei.model.kernels.embed import Lookup, embed_norm
from openbei.model.kernels.few_rows import Workspace, few_rows, workspace
from openbei.model.kernels.linear import gated_fp8, gated_linear, linear, linear_fp8
from openbei.model.kernels.norm import add_norm, head_norm
from openbei.model.kernels.pool import pool
from openbei.model.kernels.quantize import Quantized, quantize_rows
from openbei.model.kernels.rope import Angles, HeadNorms, rope_
from openbei.model.ops import PIECE, Attention, NormSpec
from openbei.model.ops.cuda_batch import Layout, Regions, rows_per_tile
from openbei.model.ops.cuda_weights import FP8_STEP, DeviceWeights, Placement, Product, Upload, place
from openbei.model.spec import Activation, Batch, Embedding, Linear, Model, ModelSpec, Norm, Output, Pooling, Rope, Size

__all__ = ["CudaModel", "CudaOps", "Placement", "Upload"]


@dataclass(slots=True)
class Rows:
    """(rows, width) between two operations, in the forms that exist.

    plain: as they are, columns of a wider product perhaps. quantized: in FP8. lookup: still in the tables. What waits
    to be done to plain, addend: to be added; head_norm: a norm over each head, its weight and eps; rope: to be turned.
    """

    plain: Tensor | None
    quantized: Quantized | None = None
    lookup: Lookup | None = None
    addend: Tensor | None = None
    head_norm: tuple[Tensor, float] | None = None
    rope: Rope | None = None

    def whole(self) -> Tensor:
        """The plain rows, with what waited added; norms over heads and rope wait for attention alone."""
        assert self.plain is not None
        assert self.head_norm is None
        assert self.rope is None
        if self.addend is not None:
            self.plain, self.addend = self.plain + self.addend, None
        return self.plain


class CudaOps:
    """Ops[Rows] over one batch on the device; each method is the definition in ops/__init__.py, fused."""

    def __init__(self, spec: ModelSpec, weights: DeviceWeights, batch: Regions[Tensor]) -> None:
        self.spec = spec
        self.weights = weights
        self.batch = batch
        self.dtype = weights.tables.word.dtype

    def embed(self, tables: Embedding, scale: float) -> Rows:
        """Tables at the batch's ids, when they are normed: (T, C)."""
        of, batch = self.weights.tables, self.batch
        return Rows(
            None, lookup=Lookup(batch.ids, batch.positions, batch.types, of.word, of.position, of.segment, scale)
        )

    def linear(self, x: Rows, linear: Linear, activation: Activation = "identity") -> Rows:
        """(rows, in) -> (rows, out)."""
        product = self.weights.products[id(linear)]
        y = self._multiply(x, product)
        return Rows(y) if activation == "identity" else _rows(activate(y, activation, product.feeds_fp8))

    def linears(self, x: Rows, linears: Sequence[Linear]) -> Sequence[Rows]:
        """Each of them, as columns of one product."""
        product = self.weights.products[id(linears[0])]
        return [Rows(part) for part in torch.split(self._multiply(x, product), list(product.widths), dim=1)]

    def gated(self, x: Rows, up: Linear, gate: Linear, activation: Activation) -> Rows:
        """(T, C) -> (T, F), the gate in the first half of one product."""
        product = self.weights.products[id(gate)]
        if product.interleaved:
            return Rows(self._multiply_gated(x, product, activation))
        return _rows(gated(self._multiply(x, product), activation, product.feeds_fp8))

    def add(self, x: Rows, y: Rows) -> Rows:
        """x + y, when it is read."""
        return Rows(x.whole(), addend=y.whole())

    def norm(self, x: Rows, norm: Norm, spec: NormSpec) -> Rows:
        """(T, C) with what waits to be looked up or added, or by heads."""
        of = self.weights.norms[id(norm)]
        if x.lookup is not None:
            normed = embed_norm(x.lookup, of.weight, of.bias, spec, of.want, of.keep_sum)
            x.plain, x.lookup = normed.x, None
            return Rows(normed.plain, normed.quantized)
        assert x.plain is not None
        if of.by_heads:
            if self.spec.rope is not None and spec.kind == "rms":
                return Rows(x.whole(), head_norm=(of.weight, spec.eps))
            return Rows(head_norm(x.whole(), of.weight, of.bias, spec))
        normed = add_norm(x.plain, x.addend, of.weight, of.bias, spec, of.want, of.keep_sum)
        if normed.x is not None:
            x.plain, x.addend = normed.x, None
        return Rows(normed.plain, normed.quantized)

    def rope(self, x: Rows, num_heads: int, local: bool, keys: bool = False) -> Rows:
        """(T, heads*D), to be turned by the token's angles."""
        return replace(x, rope=(self.spec.local_rope if local else None) or self.spec.rope)

    def attention(self, q: Rows, k: Rows, v: Rows, how: Attention) -> Rows:
        """(T, H*D), over the tiles of the batch."""
        if q.rope is not None:
            q, k = self._turned(q, k, q.rope)
        batch, of = self.batch, self.weights
        sequences = Sequences(batch.cu_seqlens, batch.key_ends)
        tiles = Tiles(batch.tile_sequence, batch.tile_first_row, rows_per_tile(len(batch.ids)))
        bias = of.slopes if of.slopes is not None else of.bias
        return Rows(attention(q.whole(), k.whole(), v.whole(), sequences, tiles, how, bias))

    def pool(self, x: Rows, kind: Pooling) -> Rows:
        """(T, C) -> (B, C) float32."""
        return Rows(pool(x.whole(), self.batch.cu_seqlens, kind))

    def pool_words(self, x: Rows, linear: Linear, kind: Pooling, num_logs: int) -> Rows:
        """(T, C) -> (B, V) float32, a piece of the words after another."""
        product, cu_seqlens, pooled = self.weights.products[id(linear)], self.batch.cu_seqlens, []
        for begin in range(0, len(product.weight), PIECE):
            rows = slice(begin, begin + PIECE)
            bias, scale = (None if part is None else part[rows] for part in (product.bias, product.scale))
            words = self._multiply(x, replace(product, weight=product.weight[rows], bias=bias, scale=scale))
            if kind != "sum":
                pooled.append(pool(words, cu_seqlens, kind))
                continue
            for _ in range(num_logs):
                words = words.float().relu().log1p()
            pooled.append(pool(words, cu_seqlens, "mean") * cu_seqlens.diff()[:, None])
        return Rows(torch.cat(pooled, dim=1))

    def _multiply(self, x: Rows, product: Product) -> Tensor:
        """x Wᵀ + b, (rows, in) -> (rows, out), in the precision of the product."""
        if product.scale is None:
            rows = x.whole().to(product.weight.dtype)
            if self._is_few(rows):
                return few_rows(rows.contiguous(), product.weight, product.bias, rows.dtype, self._room)
            return linear(rows, product.weight, product.bias)
        quantized, weight = self._quantized(x), Quantized(product.weight, product.scale)
        if self._is_few(quantized.values):
            return few_rows(quantized, weight, product.bias, self.dtype, self._room)
        return linear_fp8(quantized, *weight, product.bias, self.dtype)

    def _multiply_gated(self, x: Rows, product: Product, activation: Activation) -> Tensor:
        """activation(gate) * up, (T, C) -> (T, F), where the product does all of it."""
        if product.scale is None:
            return gated_linear(x.whole(), product.weight, product.bias, activation)
        weight = Quantized(product.weight, product.scale)
        return gated_fp8(self._quantized(x), weight, product.bias, activation, self.dtype)

    def _quantized(self, x: Rows) -> Quantized:
        return x.quantized or quantize_rows(x.whole())

    def _is_few(self, rows: Tensor) -> bool:
        return len(rows) <= self.weights.ways.few_rows and rows.shape[1] % FP8_STEP == 0 and rows.dtype != torch.float32

    @cached_property
    def _room(self) -> Workspace:
        """Of this forward alone: two streams may not share it."""
        return workspace(self.batch.ids.device)

    def _turned(self, q: Rows, k: Rows, rope: Rope) -> tuple[Rows, Rows]:
        """q and k with the norms and turns that waited."""
        assert q.plain is not None
        assert k.plain is not None
        assert (q.head_norm is None) == (k.head_norm is None)
        norms = HeadNorms(q.head_norm[0], k.head_norm[0], q.head_norm[1]) if q.head_norm and k.head_norm else None
        rope_(q.plain, k.plain, self._angles(rope), norms)
        return Rows(q.plain), Rows(k.plain)

    def _angles(self, rope: Rope) -> Angles:
        """The table of every position, or the one that came with the batch."""
        table = self.weights.angles.get(rope)
        if table is None:
            cos, sin = self.batch.angles.view(torch.float32).view(2, -1, self.spec.head_dim // 2)
            return Angles(cos, sin, self.batch.positions)
        return Angles(*table, self.batch.positions)


class CudaModel:
    """A model on one device: lays batches out on the host, and launches a forward on them."""

    def __init__(self, model: Model, placement: Placement, upload: Upload | None = None) -> None:
        self.spec = model.spec
        self.placement = placement
        self.weights = place(model, placement, upload)
        self._layout = Layout(model.spec)
        self._model = _without_bias(model)

    def num_words(self, size: Size) -> int:
        """int32 words of a batch that is laid out for this size."""
        return self._layout.num_words(size)

    def write(self, batch: Batch, size: Size, words: NDArray[np.int32]) -> None:
        """A batch -> its words, (num_words,), padded to the size. Raises ValueError if it does not fit."""
        self._layout.write(batch, size, words)

    def forward(self, words: Tensor, size: Size, output: Output) -> Tensor:
        """Words int32 on the device -> float32 rows of one output, one a sequence or one a token, padded.

        Launches only. Rows past the batch's own hold anything.
        """
        with torch.inference_mode():
            ops = CudaOps(self.spec, self.weights, self._layout.regions(words, size))
            rows: Rows = transformer.FORWARDS[output](ops, self._model)
            return rows.whole().float()


def _without_bias(model: Model) -> Model:
    """The model without what distance adds to scores: the device holds that."""
    spec, weights = replace(model.spec, alibi=False), replace(model.weights, relative_bias=None)
    return replace(model, spec=spec, weights=weights)


def _rows(x: Tensor | Quantized) -> Rows:
    return Rows(x) if isinstance(x, Tensor) else Rows(None, x)
