"""The operations as an OpenVINO graph.

Linear layers, norms and activations see packed tokens (T, C). Attention alone pads: it gathers the packed rows
into a grid (B, S), attends there with a mask, and gathers the real cells back.
Owns the nodes of the graph; openvino_batch.py makes its inputs, openvino_model.py compiles and runs it.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from openbei.model.ops import Attention, LastProduct, NormSpec
from openbei.model.ops.openvino_batch import INPUTS, MASKED
from openbei.model.ops.runtime import op, ov
from openbei.model.positions import alibi_slopes
from openbei.model.spec import Activation, Array, Embedding, Linear, ModelSpec, Norm, Pooling

FIRST_AXIS = np.int64(0)

START = np.array([0])

ACTIVATIONS = {
    "gelu": lambda x: op.gelu(x, "ERF"),
    "gelu_tanh": lambda x: op.gelu(x, "TANH"),
    "relu": op.relu,
    "silu": op.swish,
    "tanh": op.tanh,
    "sigmoid": op.sigmoid,
    "identity": lambda x: x,
}

STORED = {"float16": ov.Type.f16, "bfloat16": ov.Type.bf16}


class OpenVinoOps:
    """Ops[ov.Node] that builds a graph; `inputs` holds the parameters that the graph came to need."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.inputs: dict[str, ov.Node] = {}
        self.last_product: LastProduct | None = None
        self._masks: dict[Attention, ov.Node] = {}
        self._halves: tuple[ov.Node, ...] | None = None

    def embed(self, tables: Embedding, scale: float) -> ov.Node:
        """Tables at the batch's ids: (T, C)."""
        x = op.gather(_constant(tables.word), self._input("input_ids"), FIRST_AXIS)
        if scale != 1.0:
            x = op.multiply(x, np.float32(scale))
        if tables.position is not None:
            x = op.add(x, op.gather(_constant(tables.position), self._input("position_ids"), FIRST_AXIS))
        if tables.segment is not None:
            x = op.add(x, op.gather(_constant(tables.segment), self._input("token_type_ids"), FIRST_AXIS))
        return x

    def linear(self, x: ov.Node, linear: Linear, activation: Activation = "identity") -> ov.Node:
        """(rows, in) -> (rows, out)."""
        return ACTIVATIONS[activation](product(x, linear))

    def linears(self, x: ov.Node, linears: Sequence[Linear]) -> Sequence[ov.Node]:
        """Each of them on the same x."""
        return [self.linear(x, linear) for linear in linears]

    def gated(self, x: ov.Node, up: Linear, gate: Linear, activation: Activation) -> ov.Node:
        """(T, C) -> (T, F)."""
        return op.multiply(self.linear(x, gate, activation), self.linear(x, up))

    def add(self, x: ov.Node, y: ov.Node) -> ov.Node:
        """x + y."""
        return op.add(x, y)

    def norm(self, x: ov.Node, norm: Norm, spec: NormSpec) -> ov.Node:
        """(T, C), or by heads."""
        width = len(norm.weight)
        by_heads = _width(x) != width
        y = op.reshape(x, np.array([0, -1, width]), True) if by_heads else x
        y = _normal(y, spec)
        y = op.multiply(y, _constant(norm.weight))
        if norm.bias is not None:
            y = op.add(y, _constant(norm.bias))
        return op.reshape(y, np.array([0, _width(x)]), True) if by_heads else y

    def rope(self, x: ov.Node, num_heads: int, local: bool, keys: bool = False) -> ov.Node:
        """(T, heads*D), turned in the grid, where attention wants it: (B, heads, S, D).

        OpenVINO makes one kernel of these nodes, the transposition too, if they are just so: a concat along axis -1.
        """
        grid, prefix = "grid", ""
        if local:
            grid = "keys" if keys else "queries"
            prefix = f"{grid}_"
        x = self._to_grid(x, num_heads, grid)
        half = self.spec.head_dim // 2
        first, second = op.variadic_split(x, np.int64(3), np.array([half, half])).outputs()
        turned = op.concat([op.multiply(second, np.float32(-1)), first], -1)
        return op.add(op.multiply(x, self._input(f"{prefix}cos")), op.multiply(turned, self._input(f"{prefix}sin")))

    def attention(self, q: ov.Node, k: ov.Node, v: ov.Node, how: Attention) -> ov.Node:
        """(T, H*D), through the grid."""
        queries, keys, cells = ("grid", "grid", "cells") if how.window is None else ("queries", "keys", "query_cells")
        q_grid = self._to_grid(q, how.num_heads, queries)
        k_grid, v_grid = (_repeated(self._to_grid(x, how.num_kv_heads, keys), how) for x in (k, v))
        attend = self._fused
        if how.softcap is not None:
            attend = self._capped
        elif self.spec.alibi:
            attend = self._sloped
        attended = attend(q_grid, k_grid, v_grid, how)
        width = how.num_heads * self.spec.head_dim
        rows = op.reshape(op.transpose(attended, np.array([0, 2, 1, 3])), np.array([-1, width]), False)
        return op.gather(rows, self._input(cells), FIRST_AXIS)

    def pool(self, x: ov.Node, kind: Pooling) -> ov.Node:
        """(T, C) -> (B, C)."""
        if kind == "max":
            return op.reduce_max(op.gather(x, self._input("repeated"), FIRST_AXIS), np.array([1]))
        if kind != "mean":
            return op.gather(x, self._input(kind), FIRST_AXIS)
        inside = self._input("inside")
        summed = op.reduce_sum(op.multiply(op.gather(x, self._input("grid"), FIRST_AXIS), inside), np.array([1]))
        return op.divide(summed, op.reduce_sum(inside, np.array([1])))

    def pool_words(self, x: ov.Node, linear: Linear, kind: Pooling, num_logs: int) -> ov.Node:
        """(T, C) as it is: openvino_words.py does the rest outside of this graph, a few tokens at once."""
        self.last_product = LastProduct(linear, kind, num_logs)
        return x

    def _to_grid(self, x: ov.Node, num_heads: int, grid: str) -> ov.Node:
        """(T, heads*D) -> (B, heads, S, D), or a local layer's blocks; rope has put there what it turned."""
        if x.get_output_partial_shape(0).rank.get_length() == 4:
            return x
        padded = op.gather(x, self._input(grid), FIRST_AXIS)
        heads = op.reshape(padded, np.array([0, 0, num_heads, self.spec.head_dim]), True)
        return op.transpose(heads, np.array([0, 2, 1, 3]))

    def _fused(self, q: ov.Node, k: ov.Node, v: ov.Node, how: Attention) -> ov.Node:
        scale = None if how.scale == self.spec.head_dim**-0.5 else np.float32(how.scale)
        if how.causal and how.window is None and how.bias is None:
            return self._causal(q, k, v, scale)
        return op.scaled_dot_product_attention(q, k, v, self._mask(how), scale)

    def _causal(self, q: ov.Node, k: ov.Node, v: ov.Node, scale: np.float32 | None) -> ov.Node:
        """The queries in two halves, so that the first is spared the keys of the second: a quarter of the work."""
        if self._halves is None:  # one set of nodes for all layers
            column = self._input("column")
            early, late = op.split(column, FIRST_AXIS, 2).outputs()
            self._halves = op.shape_of(early), op.shape_of(column), _later(early, early), _later(late, column)
        half, end, first_mask, second_mask = self._halves
        first = [_part(x, START, half) for x in (q, k, v)]
        return op.concat(
            [
                op.scaled_dot_product_attention(*first, first_mask, scale),
                op.scaled_dot_product_attention(_part(q, half, end), k, v, second_mask, scale),
            ],
            2,
        )

    def _capped(self, q: ov.Node, k: ov.Node, v: ov.Node, how: Attention) -> ov.Node:
        cap = np.float32(how.softcap)
        scores = op.multiply(op.matmul(q, k, False, True), np.float32(how.scale))
        scores = op.add(op.multiply(op.tanh(op.divide(scores, cap)), cap), self._mask(how))
        return op.matmul(op.softmax(scores, 3), v, False, False)

    def _sloped(self, q: ov.Node, k: ov.Node, v: ov.Node, how: Attention) -> ov.Node:
        """ALiBi as slope * (scores / slope - distance): OpenVINO's kernel then never holds a bias of (H, S, S)."""
        assert not how.causal, "ALiBi models attend to both sides"
        slopes = alibi_slopes(how.num_heads).astype(np.float32)[:, None, None]
        scores = op.multiply(op.matmul(q, k, False, True), op.constant(np.float32(how.scale) / slopes))
        scores = op.multiply(op.add(scores, self._input("nearness")), op.constant(slopes))
        return op.matmul(op.softmax(op.add(scores, self._input("mask")), 3), v, False, False)

    def _mask(self, how: Attention) -> ov.Node:
        """What is added to the scores, (B or 1, H or 1, S or 1, S); one node for all layers that attend alike."""
        key = replace(how, bias=None)
        if key not in self._masks:
            parts = [self._input("hidden" if how.causal else "mask")] if how.window is None else [self._outside(how)]
            if how.bias is not None:
                by_pair = op.gather(_constant(how.bias), self._input("distances"), np.int64(1))
                parts.append(op.unsqueeze(by_pair, FIRST_AXIS))
            self._masks[key] = functools.reduce(op.add, parts)
        return self._masks[key]

    def _outside(self, how: Attention) -> ov.Node:
        """-1e30 where a key of a block is outside of a query's window, else 0: (N, 1, c, k), as positions.visible."""
        assert how.window is not None
        query = op.unsqueeze(self._input("query_positions"), np.int64(2))
        ahead = op.subtract(op.unsqueeze(self._input("key_positions"), np.int64(1)), query)
        if how.causal:
            outside = op.logical_or(op.greater(ahead, np.int32(0)), op.less_equal(ahead, np.int32(-how.window)))
        else:
            outside = op.greater(op.abs(ahead), np.int32(how.window // 2))
        return op.unsqueeze(op.select(outside, MASKED, np.float32(0)), np.int64(1))

    def _input(self, name: str) -> ov.Node:
        if name not in self.inputs:
            dtype, shape, _ = INPUTS[name]
            self.inputs[name] = op.parameter(shape, dtype, name=name)
        return self.inputs[name]


def product(x: ov.Node, linear: Linear) -> ov.Node:
    """x Wᵀ + b: (..., in) -> (..., out)."""
    y = op.matmul(x, _constant(linear.weight), False, True)
    return y if linear.bias is None else op.add(y, _constant(linear.bias))


def _constant(array: Array) -> ov.Node:
    """The array's own memory, as float32 values; whoever runs the graph keeps a 16-bit array alive.

    OpenVINO widens 16-bit constants as it compiles, whole and for good, unless the conversion bears the mark that its
    own compressed models have (openvino, src/core/.../rt_info/decompression.hpp): then it packs them as they are.
    """
    if array.dtype == np.float32:
        return op.constant(array, shared_memory=True)
    stored = ov.Tensor(array.view(np.uint16), list(array.shape), STORED[array.dtype.name])
    widened = op.convert(op.constant(stored, shared_memory=True), "f32")
    widened.get_rt_info()["decompression_0"] = True
    return widened


def _normal(x: ov.Node, spec: NormSpec) -> ov.Node:
    if spec.kind == "layer":
        return op.mvn(x, np.array([-1]), True, spec.eps, "INSIDE_SQRT")
    mean_square = op.reduce_mean(op.multiply(x, x), np.array([-1]), True)
    return op.divide(x, op.sqrt(op.add(mean_square, np.float32(spec.eps))))


def _repeated(x: ov.Node, how: Attention) -> ov.Node:
    """(B, K, S, D) -> (B, H, S, D)."""
    if how.num_kv_heads == how.num_heads:
        return x
    return op.gather(x, np.arange(how.num_heads) // (how.num_heads // how.num_kv_heads), np.int64(1))


def _part(x: ov.Node, begin: ov.Node | Array, end: ov.Node) -> ov.Node:
    """(B, H, S, D) -> its positions begin to end."""
    return op.slice(x, begin, end, np.array([1]), np.array([2]))


def _later(queries: ov.Node, keys: ov.Node) -> ov.Node:
    """-1e30 where the key comes after the query, else 0."""
    after = op.greater(op.unsqueeze(keys, FIRST_AXIS), op.unsqueeze(queries, np.int64(1)))
    return op.select(after, MASKED, np.float32(0))


def _width(x: ov.Node) -> int:
    return int(x.get_output_partial_shape(0)[1].get_length())
