"""Seconds that launched work takes on a device, without what launching costs: a recording of it is repeated.

Warm-up first, then the median of many repetitions, each between two events (on a GPU) or two looks at the clock.
"""

import statistics
import time
import traceback
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from openbei.engine.machine import Machine

MOST_RUNS = 200
FEWEST_RUNS = 5
WARM_UP_S = 0.05  # an idle GPU's clock is a fifth of its best
RUNS_ON_CPU = 3
BUDGET_S = 0.2


def seconds(machine: Machine, launch: Callable[[], Tensor], runs: int = MOST_RUNS) -> float:
    """The median of up to `runs` repetitions within 0.2 s, of five at least; on a CPU of three."""
    stream = machine.stream()
    replay, _ = stream.record(launch)
    on_gpu = machine.location != "cpu"
    times: list[float] = []
    fewest, most = (FEWEST_RUNS, runs) if on_gpu else (RUNS_ON_CPU, RUNS_ON_CPU)
    with stream.use():
        begin_s = time.perf_counter()
        while on_gpu and time.perf_counter() - begin_s < WARM_UP_S:
            _timed_on_gpu(replay)
        begin_s = time.perf_counter()
        while len(times) < fewest or (len(times) < most and time.perf_counter() - begin_s < BUDGET_S):
            times.append(_timed_on_gpu(replay) if on_gpu else _timed_here(replay))
    return statistics.median(times)


def why() -> str:
    """The exception that is being handled, in one line: what it says, and the last places it came through."""
    return " | ".join(line.strip() for line in reversed(traceback.format_exc().splitlines()[-5:]))


def rotated(launches: Sequence[Callable[[], Tensor]]) -> Callable[[], Tensor]:
    """Launches over different data as one launch: what a cache holds of the first is gone by the last."""

    def launch() -> Tensor:
        for one in launches:
            last = one()
        return last

    return launch


def _timed_on_gpu(replay: Callable[[], None]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _timed_here(replay: Callable[[], None]) -> float:
    begin_s = time.perf_counter()
    replay()
    return time.perf_counter() - begin_s
