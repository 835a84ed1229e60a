"""The operations as an OpenVINO graph, and the compiled model that runs it on a CPU.

Linear layers, norms and activations see packed tokens (T, C). Attention alone pads: it gathers the packed rows
into a grid (B, S), attends there with a mask, and gathers the real cells back. Each new input shape costs
OpenVINO milliseconds of code generation, so T and S are rounded up to few sizes; the extra rows are never read.
Owns the graph, its inputs and its compilation; never touches requests, files or time.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset15 as op

from openbei.model import transformer
from openbei.model.spec import Activation, Array, Batch, Embedding, Linear, Model, Norm, Pooling

ROUNDING = ((64, 8), (256, 16))  # sizes up to the first number go up to a multiple of the second
COARSEST = 32
MASKED = np.float32(-1e30)
FIRST_AXIS = np.int64(0)

INPUTS: dict[str, tuple[type[np.generic], list[int]]] = {
    "input_ids": (np.int32, [-1]),
    "position_ids": (np.int32, [-1]),
    "token_type_ids": (np.int32, [-1]),
    "grid": (np.int32, [-1, -1]),
    "cells": (np.int32, [-1]),
    "mask": (np.float32, [-1, 1, 1, -1]),
    "inside": (np.float32, [-1, -1, 1]),
    "distances": (np.int32, [-1, -1]),
    "rows": (np.int32, [-1]),
}

ACTIVATIONS = {
    "gelu": lambda x: op.gelu(x, "ERF"),
    "gelu_tanh": lambda x: op.gelu(x, "TANH"),
    "relu": op.relu,
    "silu": op.swish,
    "tanh": op.tanh,
    "sigmoid": op.sigmoid,
    "identity": lambda x: x,
}


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """How to compile: precision of the arithmetic, streams that run at once, and threads they share."""

    dtype: Literal["float32", "bfloat16"]
    num_streams: int
    num_threads: int


class OpenVinoOps:
    """Ops[ov.Output] that builds a graph; `inputs` holds the parameters that the graph came to need."""

    def __init__(self) -> None:
        self.inputs: dict[str, ov.Node] = {}
        self._bias: ov.Node | None = None

    def embed(self, tables: Embedding, eps: float) -> ov.Node:
        """Tables at the batch's ids: (T, C)."""
        x = op.add(
            op.gather(_constant(tables.word), self._input("input_ids"), FIRST_AXIS),
            op.gather(_constant(tables.position), self._input("position_ids"), FIRST_AXIS),
        )
        if tables.segment is not None:
            x = op.add(x, op.gather(_constant(tables.segment), self._input("token_type_ids"), FIRST_AXIS))
        return _norm(x, tables.norm, eps)

    def linear(self, x: ov.Node, linear: Linear, activation: Activation = "identity") -> ov.Node:
        """(rows, in) -> (rows, out)."""
        y = op.matmul(x, _constant(linear.weight), False, True)
        if linear.bias is not None:
            y = op.add(y, _constant(linear.bias))
        return ACTIVATIONS[activation](y)

    def add_norm(self, x: ov.Node, residual: ov.Node, norm: Norm, eps: float) -> ov.Node:
        """(T, C)."""
        return _norm(op.add(x, residual), norm, eps)

    def attention(self, q: ov.Node, k: ov.Node, v: ov.Node, num_heads: int, bias: Array | None = None) -> ov.Node:
        """(T, H*D), through the grid."""
        grid = [self._to_grid(x, num_heads) for x in (q, k, v)]
        attended = op.scaled_dot_product_attention(*grid, self._scores_mask(bias))
        width = int(q.get_output_partial_shape(0)[1].get_length())
        rows = op.reshape(op.transpose(attended, np.array([0, 2, 1, 3])), np.array([-1, width]), False)
        return op.gather(rows, self._input("cells"), FIRST_AXIS)

    def pool(self, x: ov.Node, kind: Pooling) -> ov.Node:
        """(T, C) -> (B, C)."""
        if kind != "mean":
            return op.gather(x, self._input("rows"), FIRST_AXIS)
        inside = self._input("inside")
        summed = op.reduce_sum(op.multiply(op.gather(x, self._input("grid"), FIRST_AXIS), inside), np.array([1]))
        return op.divide(summed, op.reduce_sum(inside, np.array([1])))

    def _to_grid(self, x: ov.Node, num_heads: int) -> ov.Node:
        padded = op.gather(x, self._input("grid"), FIRST_AXIS)
        return op.transpose(op.reshape(padded, np.array([0, 0, num_heads, -1]), True), np.array([0, 2, 1, 3]))

    def _scores_mask(self, bias: Array | None) -> ov.Node:
        if bias is None:
            return self._input("mask")
        if self._bias is None:  # one node for all layers
            by_pair = op.gather(_constant(bias), self._input("distances"), np.int64(1))
            self._bias = op.add(op.unsqueeze(by_pair, FIRST_AXIS), self._input("mask"))
        return self._bias

    def _input(self, name: str) -> ov.Node:
        if name not in self.inputs:
            dtype, shape = INPUTS[name]
            self.inputs[name] = op.parameter(shape, dtype, name=name)
        return self.inputs[name]


class CompiledModel:
    """A compiled graph; `run` may be called from as many threads as there are streams, or more."""

    def __init__(self, model: Model, options: CompileOptions, states: bool = False) -> None:
        ops = OpenVinoOps()
        forward = transformer.states if states else transformer.embed
        output = forward(ops, model)
        self.inputs = tuple(ops.inputs)
        self.pooling, self.states, self.max_length = model.pooling, states, model.spec.max_length
        graph = ov.Model([op.result(output)], list(ops.inputs.values()))
        self._compiled = ov.Core().compile_model(graph, "CPU", _properties(options))

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Batch -> pooled vectors float32 (B, embedding_dim), or with `states` last hidden states (T, C)."""
        request = self._compiled.create_infer_request()
        feeds = inputs_of(batch, self.pooling, self.max_length)
        request.infer([feeds[name] for name in self.inputs], share_inputs=True)
        output = request.get_output_tensor(0).data
        return np.array(output[: batch.num_tokens] if self.states else output)


def compile_model(model: Model, options: CompileOptions, states: bool = False) -> CompiledModel:
    """Model -> compiled graph. states: answer token states instead of pooled vectors."""
    return CompiledModel(model, options, states)


def native_bfloat16() -> bool:
    """True where the CPU multiplies bfloat16 in hardware, so that OpenVINO offers it."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def inputs_of(batch: Batch, pooling: Pooling, max_length: int) -> dict[str, Array]:
    """Batch -> the graph's inputs by name, with T and S rounded up.

    grid (B, S): the packed row of each cell, row 0 where it is padding. cells (T,): the cell of each packed row.
    mask (B, 1, 1, S): 0 on real cells, -1e30 on padding. inside (B, S, 1): 1 and 0. rows (B,): first or last
    token of each sequence. distances (S, S): key - query + max_length - 1.
    """
    starts, lengths = batch.cu_seqlens[:-1], batch.lengths
    num_tokens = _round_up(batch.num_tokens)
    length = _round_up(int(lengths.max()))
    column = np.arange(length, dtype=np.int32)
    inside = column < lengths[:, None]
    cells = np.zeros(num_tokens, np.int32)
    cells[: batch.num_tokens] = np.flatnonzero(inside)
    return {
        "input_ids": _extended(batch.input_ids, num_tokens),
        "position_ids": _extended(batch.position_ids, num_tokens),
        "token_type_ids": _extended(batch.token_type_ids, num_tokens),
        "grid": np.where(inside, starts[:, None] + column, 0).astype(np.int32),
        "cells": cells,
        "mask": np.where(inside, np.float32(0), MASKED)[:, None, None, :],
        "inside": inside[:, :, None].astype(np.float32),
        "rows": starts if pooling == "cls" else batch.cu_seqlens[1:] - 1,
        "distances": _distances(length, max_length),
    }


def _distances(length: int, max_length: int) -> Array:
    column = np.arange(length, dtype=np.int32)
    return np.asarray(np.clip(column[None, :] - column[:, None] + max_length - 1, 0, 2 * max_length - 2))


def _round_up(size: int) -> int:
    step = next((step for limit, step in ROUNDING if size <= limit), COARSEST)
    return -(-size // step) * step


def _extended(values: NDArray[np.int32], size: int) -> NDArray[np.int32]:
    return np.concatenate((values, np.zeros(size - len(values), np.int32)))


def _properties(options: CompileOptions) -> dict[str, str | int | bool]:
    precision = {"float32": "f32", "bfloat16": "bf16"}[options.dtype]
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": options.num_streams,
        "INFERENCE_NUM_THREADS": options.num_threads,
        "ENABLE_CPU_PINNING": False,  # two servers on one machine would pin to the same cores
    }


def _constant(array: Array) -> ov.Node:
    return op.constant(array, shared_memory=True)


def _norm(x: ov.Node, norm: Norm, eps: float) -> ov.Node:
    normal = op.mvn(x, np.array([-1]), True, eps, "INSIDE_SQRT")
    return op.add(op.multiply(normal, _constant(norm.weight)), _constant(norm.bias))
