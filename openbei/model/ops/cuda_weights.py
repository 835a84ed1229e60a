"""A model's parameters on a device, as the fused operations want them: joined, cast or quantised, once.

Owns which linears are one product, which products are FP8 and which forms of a norm's result are made; never touches
a batch or a launch. A parameter is found by the identity of the model's own Linear or Norm (a product of several by
that of the first), so the model must live as long as its DeviceWeights.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from openbei.errors import ConfigError
from openbei.model.kernels.linear import interleave
from openbei.model.kernels.norm import Want
from openbei.model.kernels.quantize import E4M3, Quantized, quantize_weight
from openbei.model.positions import alibi_slopes, bucketed_bias, cos_sin
from openbei.model.spec import Array, Batch, Embedding, Layer, Linear, Model, ModelSpec, Norm, Rope
from openbei.model.stored import attends_in_fp8

log = logging.getLogger(__name__)

Upload = Callable[[Array], Tensor]
Table = tuple[Tensor, Tensor]
FP8_STEP = 16  # torch._scaled_mm multiplies no other sizes


@dataclass(frozen=True, slots=True)
class Ways:
    """Which of our own products are taken in a block, in place of cuBLASLt's. benchmarks/gpu asks which is faster.

    few_rows: for so many rows and fewer (64 at most), the one that cuts the depth. fused_gate: gate, up and activation
    in one.
    """

    few_rows: int = 0
    fused_gate: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model runs, and in what: dtype of weights and activations; fp8: products of its blocks in e4m3.

    Of an encoder (any model with LayerNorm) those of the feed-forward half, of others all of them.
    """

    device: str
    dtype: Literal["bfloat16", "float16", "float32"]
    fp8: bool = False
    ways: Ways = Ways()


@dataclass(frozen=True, slots=True)
class Product:
    """One matrix product: weight (N, C) of one linear, or of several that share their input, in order.

    bias (N,) or None. scale: float32 (N,) if the weight is e4m3, else None. widths: rows of each linear.
    feeds_fp8: its result, once activated, goes into an FP8 product. interleaved: rows of gate and up take turns.
    """

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None
    widths: tuple[int, ...]
    feeds_fp8: bool = False
    interleaved: bool = False


@dataclass(frozen=True, slots=True)
class DeviceNorm:
    """A norm's parameters, float32 (C,), the forms of its result that are read, and whether its input is read again.

    by_heads: over each head, its weight (D,).
    """

    weight: Tensor
    bias: Tensor | None
    want: Want
    keep_sum: bool
    by_heads: bool = False


@dataclass(frozen=True, slots=True)
class Tables:
    """Embedding tables: word (V, C), position (P, C), segment (S, C)."""

    word: Tensor
    position: Tensor | None
    segment: Tensor | None


@dataclass(frozen=True, slots=True)
class DeviceWeights:
    """All of it.

    angles: cos and sin of every position, float32 (P, D / 2) each; none for a dynamic Rope, whose angles depend on the
    batch. slopes: ALiBi's, float32 (H,). bias: by distance, float32 (H, 2P - 1). ways: as Placement has them.
    """

    tables: Tables
    products: dict[int, Product]
    norms: dict[int, DeviceNorm]
    angles: dict[Rope, Table]
    slopes: Tensor | None
    bias: Tensor | None
    ways: Ways = Ways()

    @property
    def num_bytes(self) -> int:
        """Bytes of all of it on the device."""
        parts = [self.tables.word, self.tables.position, self.tables.segment, self.slopes, self.bias]
        parts += [part for item in self.products.values() for part in (item.weight, item.bias, item.scale)]
        parts += [part for item in self.norms.values() for part in (item.weight, item.bias)]
        parts += [part for table in self.angles.values() for part in table]
        return sum(part.nbytes for part in parts if part is not None)


def place(model: Model, placement: Placement, upload: Upload | None = None) -> DeviceWeights:
    """A model -> its parameters on the device, one tensor after another.

    upload: how an array becomes a tensor of its shape there, in any dtype; if None it is copied in its stored type and
    cast there. Raises ConfigError for rotary positions that this backend does not have.
    """
    spec, device = model.spec, placement.device
    placer = _Placer(placement, upload or (lambda array: from_numpy(array).to(device)))
    placer.blocks(model)
    placer.around_blocks(model)
    if placer.unfit:
        shapes = ", ".join(f"{rows} x {columns}" for rows, columns in sorted(placer.unfit))
        log.warning("FP8 needs multiples of %d; products that stay in %s: %s", FP8_STEP, placement.dtype, shapes)
    slopes = alibi_slopes(spec.num_heads) if spec.alibi else None
    bias = model.weights.relative_bias
    return DeviceWeights(
        tables=placer.tables(model.weights.embedding),
        products=placer.products,
        norms=placer.norms,
        angles={rope: rotary_table(spec, rope, device) for rope in ropes(spec) if rope.scaling != "dynamic"},
        slopes=None if slopes is None else from_numpy(slopes.astype(np.float32)).to(device),
        bias=None if bias is None else from_numpy(bucketed_bias(bias, spec.max_length)).to(device),
        ways=placement.ways,
    )


def ropes(spec: ModelSpec) -> Iterable[Rope]:
    """The rotary positions that a model has. Raises ConfigError for those that a GPU batch has no words for."""
    if spec.rope is not None and spec.position_offset:
        raise ConfigError(f"rotary positions of a model that counts from {spec.position_offset} do not run on a GPU")
    if spec.local_rope is not None and spec.local_rope.scaling == "dynamic":
        raise ConfigError("dynamic rotary positions of local layers do not run on a GPU")
    return (rope for rope in (spec.rope, spec.local_rope) if rope is not None)


def rotary_table(spec: ModelSpec, rope: Rope, device: str) -> Table:
    """cos and sin of every position of the longest text, float32 (P, D / 2) each."""
    none = np.zeros(spec.max_length, np.int32)
    cos, sin = cos_sin(rope, spec.head_dim, Batch(none, none, none, np.array([0, spec.max_length], np.int32)))
    return from_numpy(cos).to(device), from_numpy(sin).to(device)


def from_numpy(array: Array) -> Tensor:
    """An array, of ml_dtypes' types too -> a CPU tensor over the same memory, or a copy if that is read-only."""
    whole = array if array.flags.writeable else array.copy()
    if array.dtype.name == "float8_e4m3fn":
        return torch.from_numpy(whole.view(np.uint8)).view(E4M3)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(whole.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(whole)


@dataclass
class _Placer:
    """Collects products and norms while it walks a model."""

    placement: Placement
    upload: Upload
    products: dict[int, Product] = field(default_factory=dict)
    norms: dict[int, DeviceNorm] = field(default_factory=dict)
    unfit: set[tuple[int, int]] = field(default_factory=set)

    def tables(self, tables: Embedding) -> Tables:
        position = None if tables.position is None else self._cast(tables.position)
        segment = None if tables.segment is None else self._cast(tables.segment)
        return Tables(self._cast(tables.word), position, segment)

    def blocks(self, model: Model) -> None:
        """The products of every layer, then the norms, which must know who reads them."""
        layers, pre = model.weights.layers, model.spec.norm_placement == "pre"
        fp8 = self.placement.fp8 and attends_in_fp8(model.spec)
        attention, ffn = zip(*(self._layer(layer, fp8) for layer in layers), strict=True)
        first = attention[0] if layers[0].attention_norm is None or not pre else None
        self._norm(model.weights.embedding.norm, first, residual="result")
        for number, layer in enumerate(layers):
            following = attention[number + 1] if number + 1 < len(layers) else None
            self._norm(layer.attention_norm, attention[number] if pre else ffn[number], "input" if pre else "result")
            self._norm(layer.ffn_norm, ffn[number] if pre else following, "input" if pre else "result")
            for norm in (layer.attention_out_norm, layer.ffn_out_norm, layer.inner_norm):
                self._norm(norm)
            for norm in filter(None, (layer.q_norm, layer.k_norm)):
                self._norm(norm)
                # A single key head is as wide as its norm, and yet waits for rope as the queries do.
                by_heads = len(norm.weight) == model.spec.head_dim
                self.norms[id(norm)] = replace(self.norms[id(norm)], by_heads=by_heads)

    def around_blocks(self, model: Model) -> None:
        """The last norm; what follows pooling, in float32, since it is little; and what is done to every token."""
        self._norm(model.weights.final_norm)
        on_pooled = (*model.dense, *(model.head.layers if model.head else ()))
        for layer in on_pooled:
            self._plain_product(layer.linear, torch.float32)
        on_tokens = (*model.before_pooling, *model.weigher, *model.multi)
        for layer in on_tokens:
            self._plain_product(layer.linear)
        for layer in (*on_pooled, *on_tokens):
            self._norm(layer.norm)

    def _plain_product(self, linear: Linear, dtype: torch.dtype | None = None) -> None:
        bias = None if linear.bias is None else self._cast(linear.bias, dtype)
        weight = self._weight(linear, dtype)
        self.products[id(linear)] = Product(weight, bias, None, (len(weight),))

    def _layer(self, layer: Layer, fp8_attention: bool) -> tuple[Product, Product]:
        """The products of a layer -> the first one of attention and the first one of feed-forward."""
        fp8 = self.placement.fp8
        attention = self._product((layer.q, layer.k, layer.v), fp8_attention)
        self._product((layer.out,), fp8_attention)
        down = self._product((layer.down,), fp8)
        first = (layer.up,) if layer.gate is None else (layer.gate, layer.up)
        up = self._product(first, fp8, feeds_fp8=down.scale is not None)
        return attention, self._interleaved(first) if layer.gate is not None and self._fuses(up) else up

    def _fuses(self, product: Product) -> bool:
        """True where our own gated product is wanted and can be."""
        fits = all(size % FP8_STEP == 0 for size in product.weight.shape)
        return self.placement.ways.fused_gate and fits and product.weight.dtype != torch.float32

    def _interleaved(self, linears: Sequence[Linear]) -> Product:
        """Gate and up, already one product, with their rows in turns."""
        product = self.products[id(linears[0])]
        weight, bias, scale = (
            None if part is None else interleave(*part.chunk(2))
            for part in (product.weight, product.bias, product.scale)
        )
        assert weight is not None
        self.products[id(linears[0])] = replace(product, weight=weight, bias=bias, scale=scale, interleaved=True)
        return self.products[id(linears[0])]

    def _product(self, linears: Sequence[Linear], fp8: bool, feeds_fp8: bool = False) -> Product:
        widths = tuple(len(linear.weight) for linear in linears)
        shape = sum(widths), linears[0].weight.shape[1]
        weight, scale = self._quantized(linears) if fp8 and self._fits(shape) else (self._joined(linears), None)
        product = Product(weight, self._bias(linears), scale, widths, feeds_fp8)
        self.products[id(linears[0])] = product
        return product

    def _fits(self, shape: tuple[int, int]) -> bool:
        """True where a product can be FP8; one that cannot is noted."""
        fits = all(size % FP8_STEP == 0 for size in shape)
        if not fits:
            self.unfit.add(shape)
        return fits

    def _quantized(self, linears: Sequence[Linear]) -> tuple[Tensor, Tensor]:
        parts = [self._in_fp8(linear) for linear in linears]
        values = torch.cat([part.values.view(torch.uint8) for part in parts])
        return values.view(E4M3), torch.cat([part.scale for part in parts])

    def _in_fp8(self, linear: Linear) -> Quantized:
        """A weight that is stored in FP8 goes as it is; another is quantised, piece by piece."""
        weight = self.upload(linear.weight)
        return quantize_weight(weight) if linear.scale is None else Quantized(weight, self.upload(linear.scale))

    def _weight(self, linear: Linear, dtype: torch.dtype | None = None) -> Tensor:
        """A weight of 16 bit or more: one that is stored in FP8 is multiplied out in float32 and rounded once."""
        if linear.scale is None:
            return self._cast(linear.weight, dtype)
        wide = self.upload(linear.weight).float() * self.upload(linear.scale)[:, None]
        return wide.to(dtype or getattr(torch, self.placement.dtype))

    def _joined(self, linears: Sequence[Linear]) -> Tensor:
        parts = [self._weight(linear) for linear in linears]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _bias(self, linears: Sequence[Linear]) -> Tensor | None:
        """Biases end to end, zeros for a linear without."""
        if all(linear.bias is None for linear in linears):
            return None
        biases = (np.zeros(len(each.weight), np.float32) if each.bias is None else each.bias for each in linears)
        return torch.cat([self._cast(bias) for bias in biases])

    def _norm(
        self, norm: Norm | None, reader: Product | None = None, residual: Literal["input", "result"] | None = None
    ) -> None:
        """A norm whose result a product reads (None: something else), and what of it is the next residual."""
        if norm is None:
            return
        want: Want = "plain"
        if reader is not None and reader.scale is not None:
            want = "both" if residual == "result" else "quantized"
        bias = None if norm.bias is None else self._cast(norm.bias, torch.float32)
        self.norms[id(norm)] = DeviceNorm(self._cast(norm.weight, torch.float32), bias, want, residual == "input")

    def _cast(self, array: Array, dtype: torch.dtype | None = None) -> Tensor:
        return self.upload(array).to(dtype or getattr(torch, self.placement.dtype))
