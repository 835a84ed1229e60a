"""A model as an OpenVINO graph that runs on a CPU: a Batch in, rows out.

Owns what is compiled for an output; never touches requests, files or time.
"""

import numpy as np
from numpy.typing import NDArray

from openbei.model import transformer
from openbei.model.ops.openvino import OpenVinoOps
from openbei.model.ops.openvino_batch import inputs_of, round_up
from openbei.model.ops.openvino_graph import CompileOptions, Graph, native_bfloat16
from openbei.model.ops.openvino_words import Words
from openbei.model.spec import Batch, Model, Output

__all__ = ["CompileOptions", "CompiledModel", "compile_model", "native_bfloat16"]


class CompiledModel:
    """A compiled model; `run` may be called from as many threads as there are streams, or more."""

    def __init__(self, model: Model, options: CompileOptions, output: Output = "vectors") -> None:
        ops = OpenVinoOps(model.spec)
        result = transformer.FORWARDS[output](ops, model)
        self.spec, self.inputs = model.spec, tuple(ops.inputs)
        self._model = model  # the graph shares its weights
        self.per_token = model.is_by_token(output)
        self._graph = Graph(result, list(ops.inputs.values()), options)
        self._words = Words(ops.last_product, options) if ops.last_product else None

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Batch -> what was compiled: vectors (B, embedding_dim), labels (B, L) or (T, L), or another row a token."""
        size = round_up(batch.num_tokens), len(batch.lengths) == 1
        rows = self._graph.infer(inputs_of(self.inputs, batch, self.spec), size)
        if self._words is not None:
            return self._words.pool(rows, batch.cu_seqlens)
        return rows[: batch.num_tokens] if self.per_token else rows


def compile_model(model: Model, options: CompileOptions, output: Output = "vectors") -> CompiledModel:
    """Model -> compiled graph of one of its outputs."""
    return CompiledModel(model, options, output)
