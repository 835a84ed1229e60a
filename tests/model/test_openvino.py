"""What the OpenVINO graph must do beside its maths: never let two streams pack weights at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from openbei.model.ops.openvino import CompiledModel
from openbei.model.spec import Batch, pack
from tests.engine.fakes import SPEC


def test_first_runs_of_a_size_never_overlap_and_later_ones_may(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = object.__new__(CompiledModel)
    graph._packed, graph._packing = set(), threading.Lock()
    running, overlaps, met = [], [], set()
    together = threading.Barrier(2, timeout=20)

    def infer(batch: Batch) -> None:
        size = batch.num_tokens
        first = size not in met
        if first:
            overlaps.append(len(running))
            running.append(size)
        else:
            together.wait()  # passes only if two later runs are here at once
        met.add(size)
        if first:
            running.remove(size)

    monkeypatch.setattr(graph, "_infer", infer)
    batches = [pack(SPEC, [[1] * 4] * count) for count in (2, 8, 16, 32)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(graph.run, batches))
        assert overlaps == [0] * 4
        list(threads.map(graph.run, batches[:2]))
    assert len(graph._packed) == 4
