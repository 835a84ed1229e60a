"""What does a request cost outside the model, with all in one process and with frontends?

    python benchmarks/frontends.py       # about two minutes; Linux

The server is openbei's own, on a fake executor that answers at once with vectors of 1024 float32, as a GPU would that
takes no time; the tokenizer is all-MiniLM-L6-v2's. 64 connections, each with one request under way: OpenAI's route,
texts of 32 tokens, base64 answers. CPU microseconds a request are those of all threads, by kind of process: the one
with the engine, and the frontends together. Layouts take turns, round after round; medians are quoted.

What it says: how many cores of HTTP and tokenizing N requests a second need, and how many the process that owns the GPU
keeps for itself. It does not mean: requests a second of a real model, or how layouts compare on more cores than here,
where the client takes its share of them (requests/s is printed only to show that something ran); nor latency.
"""

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import corpus
import harness
import http_load
import numpy as np

WIDTH, CLIENTS, TOKENS = 1024, 64, 32
LAYOUTS = (0, 1, 2)  # frontends
TEXTS = (1, 32)  # a request


class InstantExecutor:
    """The same vector for every text, at once."""

    def __init__(self) -> None:
        from openbei.engine.executor import Device

        self.device = Device("fake", "float32", 2, 16384, divided=False)
        self.rows = np.random.default_rng(0).standard_normal((16384, WIDTH)).astype(np.float32)

    def run(self, batch: Any, output: str, alone: bool) -> np.ndarray:
        return self.rows[: len(batch.lengths)]


def open_model(folder: Path, _: Any) -> tuple[Any, Callable[[], InstantExecutor]]:
    """A model of no layers with all-MiniLM-L6-v2's vocabulary."""
    from openbei.model.spec import Embedding, Model, ModelSpec, Norm, Weights
    from openbei.weights.checkpoint import Checkpoint, TextSpec

    nothing = np.zeros((1, 1), np.float32)
    spec = ModelSpec("fake", 30522, WIDTH, 0, 1, 1, WIDTH, WIDTH, 1e-12, "gelu", 512, num_segments=2)
    model = Model(spec, Weights(Embedding(nothing, nothing, None, Norm(nothing, nothing)), ()), "mean")
    return Checkpoint("fake", None, folder, model, TextSpec(folder / "tokenizer.json", 512)), InstantExecutor


def describe(*_: Any) -> dict[str, Any]:
    return {}


def nothing() -> None:
    """Frontends set nothing up here."""


def say(url: str, *_: Any) -> None:
    print(url.rpartition(":")[2], flush=True)


def serve(folder: Path, num_frontends: int) -> None:
    """Be the server until a signal ends it."""
    import frontends  # this file, as the children find it

    from openbei.config import EngineConfig, ServerConfig

    engine, server = EngineConfig(), ServerConfig(hostname="127.0.0.1", port=0, frontends=num_frontends)
    if num_frontends:
        from openbei.server.processes import Plan
        from openbei.server.supervisor import supervise

        open_fake = partial(frontends.open_model, folder)
        supervise(Plan(engine, server, frontends.nothing, frontends.describe, open_fake), say)
    else:
        from openbei.engine.start import start_engine
        from openbei.server.serve import serve as serve_engine

        checkpoint, make_executor = open_model(folder, engine)
        with start_engine(checkpoint, engine, make_executor) as both:  # type: ignore[arg-type]
            serve_engine(both, server, say)


@dataclass
class Running:
    """A server, its port, and its processes by kind."""

    port: int
    engine: list[int]
    frontends: list[int]

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds so far of the process with the engine, and of the frontends."""
        return sum(map(cpu_s, self.engine)), sum(map(cpu_s, self.frontends))


@contextlib.contextmanager
def running(folder: Path, num_frontends: int) -> Iterator[Running]:
    command = [sys.executable, __file__, "--serve", str(folder), str(num_frontends)]
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path})
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        children = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in children_of(process.pid)}
        fronts = [pid for pid, command in children.items() if "frontend" in command.split("\0")[3]]
        yield Running(port, [pid for pid in children if pid not in fronts] or [process.pid], fronts)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def children_of(pid: int) -> list[int]:
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Sample:
    """Requests a second, and CPU microseconds a request in the process with the engine, and in the frontends."""

    rate: float
    engine_us: float
    frontends_us: float


def measure(server: Running, way: Any, texts: list[str], num_requests: int) -> Sample:
    """All texts once."""
    before, started = server.cpu_s(), perf_counter()
    way.embed(texts)
    seconds, after = perf_counter() - started, server.cpu_s()
    engine_us, frontends_us = (1e6 * (end - begin) / num_requests for begin, end in zip(before, after, strict=True))
    return Sample(num_requests / seconds, engine_us, frontends_us)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--texts", type=int, default=12_800, help="a round")
    options.add_argument("--quick", action="store_true", help="one round of few texts: does it work at all?")
    chosen = options.parse_args()
    rounds, count = (1, 640) if chosen.quick else (chosen.rounds, chosen.texts)
    samples: dict[tuple[int, int], list[Sample]] = {}
    with harness.model_folder() as folder, contextlib.ExitStack() as stack:
        some = corpus.make(folder / "tokenizer.json", (TOKENS, TOKENS), 640).texts
        texts = (some * -(-count // 640))[:count]
        servers = {layout: stack.enter_context(running(folder, layout)) for layout in LAYOUTS}
        for size in TEXTS:
            ways = {layout: http_load.http_clients(CLIENTS, size, one.port, folder) for layout, one in servers.items()}
            for number in range(rounds + 1):
                for layout, server in servers.items():
                    sample = measure(server, ways[layout], texts, len(texts) // size)
                    if number:
                        samples.setdefault((layout, size), []).append(sample)
    rows, result = [], []
    for (layout, size), taken in samples.items():
        rate, engine, fronts = (
            statistics.median(getattr(sample, name) for sample in taken)
            for name in ("rate", "engine_us", "frontends_us")
        )
        rows.append({"frontends": str(layout), "texts a request": str(size), "requests/s": f"{rate:,.0f}"})
        rows[-1] |= {"engine process, CPU us": f"{engine:,.0f}", "frontends, CPU us": f"{fronts:,.0f}"}
        result.append({"frontends": layout, "texts": size, "rate": rate, "engine_us": engine, "frontends_us": fronts})
    title = f"{CLIENTS} connections, texts of {TOKENS} tokens, vectors of {WIDTH}; {rounds} round(s)"
    harness.report(title, rows, {"benchmark": "frontends", "layouts": result})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
