"""A graph of OpenVINO, compiled for a CPU and run by many threads at once.

Owns the compilation, its settings and the first run of each size; never touches what a graph means.
"""

import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from openbei.model.ops.runtime import op, ov
from openbei.model.spec import Array

PACKING = threading.Lock()


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """How to compile: precision of the arithmetic, streams that run at once, and threads they share."""

    dtype: Literal["float32", "bfloat16"]
    num_streams: int
    num_threads: int


class Graph:
    """A compiled graph; `infer` may be called from as many threads as there are streams, or more."""

    def __init__(self, result: ov.Node, inputs: Sequence[ov.Node], options: CompileOptions) -> None:
        self._packed: set[Hashable] = set()
        self._idle: list[ov.InferRequest] = []
        graph = ov.Model([op.result(result)], list(inputs))
        self._compiled = ov.Core().compile_model(graph, "CPU", _properties(options))

    def infer(self, inputs: list[Array], size: Hashable) -> NDArray[np.float32]:
        """Inputs of this size -> the result.

        The first run of each size is alone among first runs of all graphs. OpenVINO packs weights then, into a store
        that streams share; where two streams did so at once, one of them kept wrong weights for good (docs/log.md).
        """
        if size in self._packed:
            return self._infer(inputs)
        with PACKING:
            answer = self._infer(inputs)
            self._packed.add(size)
        return answer

    def _infer(self, inputs: list[Array]) -> NDArray[np.float32]:
        """Requests are kept: OpenVINO may abort the process where one is freed as soon as it has answered."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        request.infer(inputs, share_inputs=True)
        answer = np.array(request.get_output_tensor(0).data)
        self._idle.append(request)
        return answer


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
