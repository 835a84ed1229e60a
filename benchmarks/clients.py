"""Do thousands of clients at once all get their answers, how evenly, and what does a connection cost in memory?

    python benchmarks/clients.py       # about three minutes; Linux; needs 2,500 open files

2,000 connections that stay open, each with one text of 16 to 64 tokens under way: whoever is answered asks again, for
20 seconds; then every connection waits for its last answer. all-MiniLM-L6-v2 in openbei with all in one process, in
openbei with two frontends, and, as many people serve it, in sentence-transformers behind FastAPI and uvicorn, a text a
call in its pool of threads. Refused: answers other than 200. Lost: connections that broke before their answer came.

Latency follows from the rate (2,000 clients at 200 answers a second wait 10 s each, whoever serves), so look at the
rate and at p99 / p50: near 1, everybody waits alike. A connection's memory is what PSS of all of the server's processes
grew by from no connection to all of them with a text under way, after the first 2,000 answers, so it holds the queue
and what threads and batches grew to. The client runs beside the server and takes a part of the cores, the same for all.

It does not mean: the latency of one client (latency.py), or what more cores would do.
"""

import argparse
import asyncio
import base64
import contextlib
import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import corpus
import frontends
import harness
import http_load
import numpy as np
from startup import _megabytes

LENGTHS = (16, 64)
WAYS = {"openbei": (), "openbei --frontends 2": ("--frontends", "2"), "FastAPI, sentence-transformers": None}


@dataclass
class Seen:
    """What the clients saw: seconds of each answer that was 200, and how many got none."""

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    lost: int = 0
    memory_mb: float = 0.0


def serve_peer(folder: str, port: int) -> None:
    """The naive server: FastAPI calls the function in a thread, the function calls the model."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel
    from sentence_transformers import SentenceTransformer

    model, app = SentenceTransformer(folder, device="cpu"), FastAPI()

    class Body(BaseModel):
        input: list[str]

    def embed(body: Body) -> dict[str, Any]:
        rows = model.encode(body.input, normalize_embeddings=True, show_progress_bar=False)
        return {"data": [{"embedding": base64.b64encode(row.tobytes()).decode()} for row in rows]}

    app.post("/v1/embeddings")(embed)
    uvicorn.run(app, port=port, log_level="error")


@contextlib.contextmanager
def running(name: str, folder: Path) -> Iterator[tuple[int, int]]:
    """A server -> its process and port."""
    port, more = http_load.free_port(), WAYS[name]
    if more is None:
        process = subprocess.Popen([sys.executable, __file__, "--serve-peer", str(folder), str(port)])
    else:
        process = http_load.spawn(folder, port, *more)
    try:
        http_load.first_answer(process, port, "ready?")
        yield process.pid, port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def memory_mb(pid: int) -> float:
    """PSS of a process and its children."""
    return sum(_megabytes(one, "smaps_rollup", "Pss") for one in (pid, *frontends.children_of(pid)))


async def client(port: int, messages: Iterator[bytes], until_s: float, seen: Seen) -> None:
    """One connection that asks, waits and asks again until a time."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for message in messages:
            begun_s = time.perf_counter()
            writer.write(message)
            try:
                await http_load.answer(reader)
                seen.seconds.append(time.perf_counter() - begun_s)
            except RuntimeError:
                seen.refused += 1
            if time.perf_counter() > until_s:
                break
        writer.close()
    except (OSError, asyncio.IncompleteReadError):
        seen.lost += 1


async def load(port: int, pid: int, texts: list[str], num_clients: int, seconds: float) -> tuple[Seen, float]:
    """All clients at once -> what they saw, and the seconds until the last answer."""
    messages, seen, before_mb, begun_s = [http_load.request([text]) for text in texts], Seen(), memory_mb(pid), 0.0

    async def weigh() -> None:
        while len(seen.seconds) < num_clients and time.perf_counter() < begun_s + seconds:
            await asyncio.sleep(0.1)
        seen.memory_mb = memory_mb(pid) - before_mb

    begun_s = time.perf_counter()
    turns = [itertools.islice(itertools.cycle(messages), start % len(messages), None) for start in range(num_clients)]
    await asyncio.gather(weigh(), *(client(port, turn, begun_s + seconds, seen) for turn in turns))
    return seen, time.perf_counter() - begun_s


def row_of(name: str, seen: Seen, seconds: float, num_clients: int) -> tuple[dict[str, str], dict[str, float]]:
    """What the clients saw -> a row for the table, and the same for JSON."""
    p50, p99 = np.percentile(seen.seconds, [50, 99])
    facts = {"rate": len(seen.seconds) / seconds, "p50_s": float(p50), "p99_s": float(p99), "max_s": max(seen.seconds)}
    facts |= {"refused": seen.refused, "lost": seen.lost, "connection_kb": 1e3 * seen.memory_mb / num_clients}
    row = {"": name, "answers/s": f"{facts['rate']:,.0f}", "refused": str(seen.refused), "lost": str(seen.lost)}
    row |= {"p50": f"{p50:.2f} s", "p99": f"{p99:.2f} s", "p99 / p50": f"{p99 / p50:.2f}"}
    row |= {"slowest": f"{facts['max_s']:.2f} s", "a connection": f"{facts['connection_kb']:.0f} KB"}
    return row, facts


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--clients", type=int, default=2000)
    options.add_argument("--seconds", type=float, default=20)
    options.add_argument("--only", choices=WAYS, help="one server instead of all")
    options.add_argument("--quick", action="store_true", help="50 clients for 2 seconds: does it work at all?")
    chosen = options.parse_args()
    count, seconds = (50, 2.0) if chosen.quick else (chosen.clients, chosen.seconds)
    rows, result = [], {}
    with harness.model_folder() as folder:
        texts = corpus.make(folder / "tokenizer.json", LENGTHS, 256).texts
        for name in [chosen.only] if chosen.only else WAYS:
            with running(name, folder) as (pid, port):
                seen, taken_s = asyncio.run(load(port, pid, texts, count, seconds))
            row, result[name] = row_of(name, seen, taken_s, count)
            rows.append(row)
    title = f"{count} clients, one text of {LENGTHS[0]} to {LENGTHS[1]} tokens each, again and again for {seconds:g} s"
    harness.report(title, rows, {"benchmark": "clients", "clients": count, "ways": result})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve-peer"]:
        serve_peer(sys.argv[2], int(sys.argv[3]))
    else:
        main()
