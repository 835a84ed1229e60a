"""The real server over HTTP, on a folder of random weights: one client, an open loop, and as many as it can answer.

Everything is on one machine: the clients (in processes of their own) take cores too. The open loop sends requests at
fixed times whether or not earlier ones are answered, so that waiting shows. base64 answers, as the OpenAI client asks.
"""

import asyncio
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import corpus
import http_load
import numpy as np

from benchmarks.gpu import folders
from benchmarks.gpu.clock import why
from openbei.engine.machine import Machine

Row = dict[str, Any]
RUNS = (("BERT-large", "bfloat16"), ("BERT-large", "fp8"), ("Mistral-7B", "fp8"))
LENGTHS = (5, 128, 500)  # tokens, as others state them
ALONE_REQUESTS = 100
OPEN_RATE = 1400
OPEN_S = 5.0
FULL_S = 5.0
CLIENTS = 512
START_S = 150  # of a server; then it is killed
START_CLIENTS_S = 1.5
ANSWER_S = 60


def served(machine: Machine, tiny: bool) -> Iterator[Row]:
    """A row a model, precision and kind of load."""
    cores = os.cpu_count() or 1
    frontends = max(1, cores // 2)  # as many as the clients leave
    runs = (("BERT-large", "float32"),) if tiny else RUNS
    for model, dtype in runs:
        row: Row = {"model": model, "precision": dtype, "frontends": frontends}
        try:
            folder = folders.folder(model, machine.location, tiny)
            flags = ["--dtype", dtype, "--device", machine.location, "--frontends", str(frontends)]
            begin_s = time.perf_counter()
            with server(folder, flags) as port:
                yield row | {"what": "start", "s": time.perf_counter() - begin_s}
                for load in _loads(port, folder, tiny, max(1, cores // 4)):
                    yield row | load
        except (Exception, SystemExit):  # a server that stops does not stop the others
            yield row | {"error": why()}


@contextlib.contextmanager
def server(folder: Path, flags: list[str]) -> Iterator[int]:
    """`bei serve` for the time of a block -> its port."""
    port = http_load.free_port()
    command = [sys.executable, "-m", "openbei.cli", "serve", str(folder), "--hostname", "127.0.0.1"]
    process = subprocess.Popen([*command, "--port", str(port), *flags], stdout=subprocess.DEVNULL)
    limit = threading.Timer(START_S, process.kill)
    limit.start()
    try:
        http_load.first_answer(process, port, "ready?")
        limit.cancel()
        yield port
    finally:
        limit.cancel()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _loads(port: int, folder: Path, tiny: bool, processes: int) -> Iterator[Row]:
    for length in LENGTHS[:1] if tiny else LENGTHS:
        texts = corpus.make(folder / "tokenizer.json", (length, length), 64 if tiny else 2048).texts
        messages = [http_load.request([text]) for text in texts]
        taken = asyncio.run(_one_by_one(port, messages[: 10 if tiny else ALONE_REQUESTS]))
        yield {"what": f"one client, {length} tokens"} | _percentiles(taken)
        if length == LENGTHS[0]:
            rate, during_s = (20, 1.0) if tiny else (OPEN_RATE, OPEN_S)
            taken = asyncio.run(_open_loop(port, messages, rate, during_s))
            yield {"what": f"open loop, {rate}/s, {length} tokens", "answered": len(taken)} | _percentiles(taken)
        rate = _saturated(port, messages, 0.5 if tiny else FULL_S, processes, 16 if tiny else CLIENTS)
        yield {"what": f"saturated, {length} tokens", "requests/s": rate, "tokens/s": rate * length}


def _percentiles(taken_s: list[float]) -> Row:
    p50, p99 = np.percentile(np.array(taken_s) * 1e3, [50, 99])
    return {"p50 ms": p50, "p99 ms": p99}


async def _one_by_one(port: int, messages: list[bytes]) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    taken = []
    for message in messages:
        begin_s = time.perf_counter()
        writer.write(message)
        await http_load.answer(reader)
        taken.append(time.perf_counter() - begin_s)
    writer.close()
    return taken[len(taken) // 5 :]  # the first fifth warms up


async def _open_loop(port: int, messages: list[bytes], rate: int, during_s: float) -> list[float]:
    """Requests at fixed times, each on a connection that is free -> seconds from its time to its answer."""
    loop, free = asyncio.get_running_loop(), []
    start_s = loop.time() + 0.2

    async def one(number: int) -> float:
        due_s = start_s + number / rate
        await asyncio.sleep(due_s - loop.time())
        reader, writer = free.pop() if free else await asyncio.open_connection("127.0.0.1", port)
        writer.write(messages[number % len(messages)])
        await http_load.answer(reader)
        free.append((reader, writer))
        return loop.time() - due_s

    return list(await asyncio.gather(*(one(number) for number in range(int(rate * during_s)))))


def _saturated(port: int, messages: list[bytes], during_s: float, processes: int, clients: int) -> float:
    """Requests answered a second to clients that each send the next one at once."""
    at = time.time() + START_CLIENTS_S
    arguments = [str(part) for part in (port, at, during_s, max(1, clients // processes))]
    command = [sys.executable, str(Path(__file__).with_name("flood.py")), *arguments]
    floods = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(processes)]
    for each in floods:
        assert each.stdin is not None
        each.stdin.write(pickle.dumps(messages))
        each.stdin.close()
        each.stdin = None
    return sum(float(each.communicate(timeout=during_s + ANSWER_S)[0]) for each in floods)
