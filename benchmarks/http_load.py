"""openbei over HTTP, as the benchmarks see it: the server in one process, a light client in another.

The client shares the cores with the server, so it does as little as it can: plain sockets kept alive, ready-made
bytes out, bytes in by Content-Length; answers are decoded after the clock.
"""

import asyncio
import base64
import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from peers import Way


@dataclass(frozen=True)
class Server:
    """A running `bei serve`."""

    process: subprocess.Popen[str]
    port: int


def start_server(folder: Path) -> Server:
    """`bei serve` on a free port -> once it prints its address."""
    command = [sys.executable, "-m", "openbei.cli", "serve", str(folder), "--port", "0", "--hostname", "127.0.0.1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://[^:/\s]+:(\d+)", line):
            return Server(process, int(found[1]))
    sys.exit(f"the server stopped with {process.wait()}")


@contextlib.contextmanager
def server(folder: Path) -> Iterator[int]:
    """A server for the time of a block -> its port."""
    running = start_server(folder)
    try:
        yield running.port
    finally:
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(30)


def request(texts: Sequence[str]) -> bytes:
    """One POST /v1/embeddings with base64 vectors, which the OpenAI client asks for if nobody tells it otherwise."""
    body = json.dumps({"model": "m", "input": texts, "encoding_format": "base64"}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
    return f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def answer(reader: asyncio.StreamReader) -> bytes:
    """The body of one 200 answer with a Content-Length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    body = await reader.readexactly(int(length[1]) if length else 0)
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"{head.splitlines()[0]!r}: {body[:200]!r}")
    return body


def vectors(body: bytes) -> np.ndarray:
    """An answer of /v1/embeddings -> its rows (B, C)."""
    return np.array([np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in json.loads(body)["data"]])


def http_clients(clients: int, texts_a_request: int, port: int, _folder: Path) -> Way:
    """`clients` connections that share the texts, each with one request under way at a time."""
    loop = asyncio.new_event_loop()
    connections = [loop.run_until_complete(asyncio.open_connection("127.0.0.1", port)) for _ in range(clients)]

    def embed(texts: list[str]) -> list[bytes]:
        messages = [request(texts[start : start + texts_a_request]) for start in range(0, len(texts), texts_a_request)]
        return loop.run_until_complete(_exchange(connections, messages))

    return Way(embed, lambda bodies: np.concatenate([vectors(body) for body in bodies]))


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _exchange(connections: list[Connection], messages: list[bytes]) -> list[bytes]:
    """All messages over all connections -> the answers in the messages' order."""
    bodies = [b""] * len(messages)
    pending = iter(enumerate(messages))

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for index, message in pending:
            writer.write(message)
            bodies[index] = await answer(reader)

    await asyncio.gather(*(one(*connection) for connection in connections))
    return bodies
