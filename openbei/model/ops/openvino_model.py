"""OpenVINO's graph of a model, compiled and run on a CPU.

Owns the compilation and its settings; never touches requests, files or time.
"""

import threading
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from openbei.model import transformer
from openbei.model.ops.openvino import OpenVinoOps
from openbei.model.ops.openvino_batch import inputs_of, round_up
from openbei.model.ops.runtime import op, ov
from openbei.model.spec import Batch, Model, Output

PACKING = threading.Lock()


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """How to compile: precision of the arithmetic, streams that run at once, and threads they share."""

    dtype: Literal["float32", "bfloat16"]
    num_streams: int
    num_threads: int


class CompiledModel:
    """A compiled graph; `run` may be called from as many threads as there are streams, or more."""

    def __init__(self, model: Model, options: CompileOptions, output: Output = "vectors") -> None:
        ops = OpenVinoOps(model.spec)
        result = transformer.FORWARDS[output](ops, model)
        self.spec, self.inputs = model.spec, tuple(ops.inputs)
        self._model = model  # the graph shares its weights
        self.per_token = model.is_by_token(output)
        self._packed: set[tuple[int, bool]] = set()
        graph = ov.Model([op.result(result)], list(ops.inputs.values()))
        self._compiled = ov.Core().compile_model(graph, "CPU", _properties(options))

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Batch -> what was compiled: vectors (B, embedding_dim), labels (B, L) or (T, L), or another row a token.

        The first run of each size is alone among first runs of all graphs. OpenVINO packs weights then, into a store
        that streams share; where two streams did so at once, one of them kept wrong weights for good (docs/log.md).
        """
        size = round_up(batch.num_tokens), len(batch.lengths) == 1
        if size in self._packed:
            return self._infer(batch)
        with PACKING:
            answer = self._infer(batch)
            self._packed.add(size)
        return answer

    def _infer(self, batch: Batch) -> NDArray[np.float32]:
        request = self._compiled.create_infer_request()
        request.infer(inputs_of(self.inputs, batch, self.spec), share_inputs=True)
        output = request.get_output_tensor(0).data
        return np.array(output[: batch.num_tokens] if self.per_token else output)


def compile_model(model: Model, options: CompileOptions, output: Output = "vectors") -> CompiledModel:
    """Model -> compiled graph of one of its outputs."""
    return CompiledModel(model, options, output)


def native_bfloat16() -> bool:
    """True where the CPU multiplies bfloat16 in hardware, so that OpenVINO offers it."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _properties(options: CompileOptions) -> dict[str, str | int | bool]:
    precision = {"float32": "f32", "bfloat16": "bf16"}[options.dtype]
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": options.num_streams,
        "INFERENCE_NUM_THREADS": options.num_threads,
        "ENABLE_CPU_PINNING": False,  # two servers on one machine would pin to the same cores
    }
