"""Kernels of the parts that follow, compiled by many processes at once, so that these do not wait for a compiler.

Triton keeps what it has compiled on disk. A process compiles by running: two layers of a model, or one product.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.context import ForkContext, SpawnContext
from typing import Any

import torch

from benchmarks.gpu import ceilings, forward, shapes
from openbei.engine.cuda import example
from openbei.engine.machine import CudaMachine, Machine
from openbei.model.spec import Model
from tests.engine.host_machine import HostMachine

Row = dict[str, Any]
SEEN_ALREADY = ("XLM-R-large",)  # the same kernels as another's
MOST_PROCESSES = 10  # each takes up to 5 GB of the GPU


def context_of(device: str) -> ForkContext | SpawnContext:
    """How the benchmark starts processes: a fork of one that has so much as asked for a GPU has none.

    Without a GPU a fork saves the imports.
    """
    return get_context("fork") if device == "cpu" else get_context("spawn")


def compiled(machine: Machine, tiny: bool) -> Iterator[Row]:
    """A row a job: seconds until it had compiled and run."""
    jobs = [("model", name, way) for name in shapes.SPECS if name not in SEEN_ALREADY for way in forward.WAYS]
    jobs += [("product", name, "") for name in ceilings.PRODUCTS]
    if tiny:
        jobs = [jobs[0], jobs[-1]]
    workers = 1 if tiny else min(MOST_PROCESSES, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, context_of(machine.location)) as pool:
        waiting = {pool.submit(_run, machine.location, *job, tiny): job for job in jobs}
        for done in as_completed(waiting):
            row: Row = {"what": " ".join(waiting[done]).strip()}
            error = done.exception()
            yield row | ({"error": repr(error)[:200]} if error else {"s": done.result()})


def _run(location: str, kind: str, name: str, way: str, tiny: bool) -> float:
    begin_s = time.perf_counter()
    machine = HostMachine() if location == "cpu" else CudaMachine(int(location.partition(":")[2]))
    with machine.stream().use():
        if kind == "model":
            _model(machine, shapes.model(name, tiny), way, tiny)
        else:
            _product(machine, name, tiny)
    if location != "cpu":
        torch.cuda.synchronize()  # a launch that failed says so here
    return time.perf_counter() - begin_s


def _model(machine: Machine, model: Model, way: str, tiny: bool) -> None:
    spec = replace(model.spec, num_layers=2, local_layers=model.spec.local_layers[:2])
    model = replace(model, spec=spec, weights=replace(model.weights, layers=model.weights.layers[:2]))
    placed = forward.place(machine, model, *forward.WAYS[way])
    for size in (*forward.sizes(tiny), forward.COMPARED):
        words = forward.words_of(machine, placed, example(spec, size), size)
        placed.forward(words, size, forward.output_of(model))


def _product(machine: Machine, name: str, tiny: bool) -> None:
    for num_rows in ceilings.ROWS[:2] if tiny else ceilings.ROWS:
        for launch, of, (weight, quantized) in ceilings.launches(machine, name, num_rows, tiny):
            launch(weight if of == 16 else quantized)
