"""The executor of a CPU, through OpenVINO.

Owns precision and the split of cores into streams; never touches requests, queues or time.
"""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from openbei.config import DType
from openbei.engine.cores import count_cores
from openbei.engine.executor import Device
from openbei.engine.precision import BYTES, full_name
from openbei.errors import ConfigError
from openbei.model.ops.openvino_model import CompiledModel, CompileOptions, compile_model, native_bfloat16
from openbei.model.spec import Batch, Model, Output, num_parameters, pack
from openbei.model.stored import stored_as, without_fp8

MAX_BATCH_TOKENS = 512
MAX_TWICE = 1_000_000_000
WARM_UP_TOKENS = (16, 128)


@dataclass(frozen=True, slots=True)
class Graphs:
    """One output of a model, compiled for all cores on one batch, and for one stream a core, maybe not yet."""

    whole: CompiledModel
    streams: Future[CompiledModel] | None

    def choose(self, alone: bool) -> CompiledModel:
        """The graph for a batch that is alone, or not. Raises what compiling the streams' graph raised."""
        return self.whole if alone or self.streams is None or not self.streams.done() else self.streams.result()


class CpuExecutor:
    """One OpenVINO stream a core for throughput, and all cores on one batch when it is alone.

    What the model is for is compiled at once; another output when it is first asked for. The graph for all cores comes
    first and runs everything until the streams' is compiled too, behind it: a start waits for one compilation. A model
    of over MAX_TWICE parameters is compiled for all cores alone: each graph keeps the weights in its own layout.
    """

    def __init__(self, model: Model, dtype: DType = "auto") -> None:
        cores, chosen = count_cores(), choose_dtype(dtype)
        lanes = cores if num_parameters(model) <= MAX_TWICE else 1
        self.device = Device(f"cpu, {lanes} streams on {cores} cores", chosen, lanes, MAX_BATCH_TOKENS)
        self._model = without_fp8(model, chosen)  # once for all graphs
        self._options = CompileOptions(chosen, lanes, cores)
        self._compiling = threading.Lock()
        self._graphs: dict[Output, Graphs] = {}
        self._graphs_of(model.main_output)

    def run(self, batch: Batch, output: Output, alone: bool) -> NDArray[np.float32]:
        """Batch -> rows as Executor says; threads may call it at once, one a lane."""
        graphs = self._graphs.get(output) or self._graphs_of(output)
        return graphs.choose(alone).run(batch)

    def _graphs_of(self, output: Output) -> Graphs:
        """Compile and warm up one output, unless another thread just did."""
        with self._compiling:
            if output not in self._graphs:
                whole = compile_model(self._model, replace(self._options, num_streams=1), output)
                self._warm_up(whole)
                self._graphs[output] = Graphs(whole, self._compile_streams(output))
            return self._graphs[output]

    def _compile_streams(self, output: Output) -> Future[CompiledModel] | None:
        if self._options.num_streams == 1:
            return None
        thread = ThreadPoolExecutor(1, "compile")
        streams = thread.submit(compile_model, self._model, self._options, output)
        thread.shutdown(wait=False)
        return streams

    def _warm_up(self, graph: CompiledModel) -> None:
        for num_tokens in WARM_UP_TOKENS:
            length = min(num_tokens, self._model.spec.max_length)
            graph.run(pack(self._model.spec, [[0] * length]))


def held_bytes(model: Model, dtype: Literal["float32", "bfloat16"]) -> int:
    """What the graphs hold of a model at the least: the weights of its products, once a graph; widened FP8 once more.

    Embedding tables, like all that is stored, stay in the files, which the system reads again when it has to.
    """
    products = num_parameters(model) - num_parameters(model.weights.embedding)
    num_graphs = 2 if num_parameters(model) <= MAX_TWICE and count_cores() > 1 else 1
    return products * BYTES[dtype] * (num_graphs + (stored_as(model) == "fp8"))


def choose_dtype(dtype: DType) -> Literal["float32", "bfloat16"]:
    """The precision to compute in: auto takes bfloat16 where the CPU has it. Raises ConfigError.

    float16, which TEI's start commands name, is computed in float32: exact, and CPUs that multiply it are rare.
    """
    asked = dtype if dtype == "auto" else full_name(dtype)
    if asked == "fp8":
        raise ConfigError("dtype fp8 needs an NVIDIA GPU; on a CPU use auto, bfloat16 or float32")
    if asked in ("float32", "float16"):
        return "float32"
    if native_bfloat16():
        return "bfloat16"
    if asked == "bfloat16":
        raise ConfigError("dtype bfloat16 needs a CPU with AVX512-BF16, AMX or Arm BF16; this has none: use float32")
    return "float32"
