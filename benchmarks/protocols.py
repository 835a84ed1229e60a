"""What does a text cost outside the model, over HTTP and over gRPC?

    python benchmarks/protocols.py       # about a minute; needs openbei[grpc]

The server is openbei's own, in one process, on a fake executor that answers at once with vectors of 1024 float32; the
tokenizer is all-MiniLM-L6-v2's. One text of 32 tokens a request or message: OpenAI's route with base64 answers and 64
connections; gRPC's Embed with 64 calls under way; EmbedStream with 4 streams. CPU microseconds a text are those of all
of the server's threads. The ways take turns, round after round; medians are quoted.

What it says: how many texts a second a core can take in and give out, by protocol. It does not mean: texts a second of
a real model, nor latency; texts/s is printed only to show that something ran, for the client takes its share of the
cores, and gRPC's takes much more of them than HTTP's.
"""

import argparse
import asyncio
import contextlib
import signal
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import corpus
import frontends
import grpc.aio
import harness
import http_load

from openbei.wire import tei_pb2 as pb

CALLS, STREAMS = 64, 4


def serve(folder: Path) -> None:
    """Be the server until a signal ends it; say both ports."""
    from openbei.config import EngineConfig, ServerConfig
    from openbei.engine.start import start_engine
    from openbei.server.listen import settled
    from openbei.server.serve import serve as serve_engine

    server = settled(ServerConfig(hostname="127.0.0.1", port=0, grpc_port=0))
    checkpoint, make_executor = frontends.open_model(folder, None)
    with start_engine(checkpoint, EngineConfig(), make_executor) as engine:  # type: ignore[arg-type]
        serve_engine(engine, server, lambda url: print(url.rpartition(":")[2], server.grpc_port, flush=True))


@contextlib.contextmanager
def running(folder: Path) -> Iterator[tuple[int, int, int]]:
    """The server's process id and its ports."""
    command = [sys.executable, __file__, "--serve", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        http_port, grpc_port = map(int, process.stdout.readline().split())
        yield process.pid, http_port, grpc_port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def calls(port: int, texts: Sequence[str]) -> None:
    """Every text in a call of its own, CALLS at once."""

    async def run() -> None:
        waiting = iter([pb.EmbedRequest(inputs=text).SerializeToString() for text in texts])
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            embed = channel.unary_unary("/tei.v1.Embed/Embed")

            async def some() -> None:
                for message in waiting:
                    await embed(message)

            await asyncio.gather(*(some() for _ in range(CALLS)))

    asyncio.run(run())


def streams(port: int, texts: Sequence[str]) -> None:
    """The texts shared out among STREAMS streams."""

    async def run() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            embed = channel.stream_stream("/tei.v1.Embed/EmbedStream")

            async def send(part: Sequence[str]) -> AsyncIterator[bytes]:
                for text in part:
                    yield pb.EmbedRequest(inputs=text).SerializeToString()

            async def one(part: Sequence[str]) -> None:
                assert len([answer async for answer in embed(send(part))]) == len(part)

            await asyncio.gather(*(one(texts[start::STREAMS]) for start in range(STREAMS)))

    asyncio.run(run())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--texts", type=int, default=4_000, help="a round")
    options.add_argument("--quick", action="store_true", help="one round of few texts: does it work at all?")
    chosen = options.parse_args()
    rounds, count = (1, 320) if chosen.quick else (chosen.rounds, chosen.texts)
    samples: dict[str, list[tuple[float, float]]] = {}
    with harness.model_folder() as folder, running(folder) as (process, http_port, grpc_port):
        some = corpus.make(folder / "tokenizer.json", (frontends.TOKENS, frontends.TOKENS), 320).texts
        texts = (some * -(-count // 320))[:count]
        ways: dict[str, Callable[[list[str]], Any]] = {
            "HTTP /v1/embeddings": http_load.http_clients(CALLS, 1, http_port, folder).embed,
            "gRPC Embed": partial(calls, grpc_port),
            "gRPC EmbedStream": partial(streams, grpc_port),
        }
        for number in range(rounds + 1):
            for name, way in ways.items():
                before_s, started_s = frontends.cpu_s(process), perf_counter()
                way(texts)
                seconds, cpu_s = perf_counter() - started_s, frontends.cpu_s(process) - before_s
                if number:
                    samples.setdefault(name, []).append((count / seconds, 1e6 * cpu_s / count))
    rows, result = [], []
    for name, taken in samples.items():
        rate, cpu_us = (statistics.median(column) for column in zip(*taken, strict=True))
        rows.append({"way": name, "server's CPU us a text": f"{cpu_us:,.0f}", "texts/s": f"{rate:,.0f}"})
        result.append({"way": name, "cpu_us": cpu_us, "rate": rate})
    title = f"One text of {frontends.TOKENS} tokens a message, vectors of {frontends.WIDTH}; {rounds} round(s)"
    harness.report(title, rows, {"benchmark": "protocols", "ways": result})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]))
    else:
        main()
