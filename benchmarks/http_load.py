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
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from peers import Way


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def spawn(folder: Path, port: int, *more: str) -> subprocess.Popen[bytes]:
    """`bei serve`, as a person would start it; more: further arguments."""
    command = [sys.executable, "-m", "openbei.cli", "serve", str(folder), "--port", str(port)]
    return subprocess.Popen([*command, "--hostname", "127.0.0.1", *more], stdout=subprocess.DEVNULL)


def first_answer(process: subprocess.Popen[bytes], port: int, text: str) -> np.ndarray:
    """Try a request every 5 ms until the server answers it -> its vector (C,)."""
    while process.poll() is None:
        with contextlib.suppress(ConnectionError):
            return asyncio.run(_once(port, text))[0]
        time.sleep(0.005)
    sys.exit(f"the server stopped with {process.returncode}")


async def _once(port: int, text: str) -> np.ndarray:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request([text]))
    body = await answer(reader)
    writer.close()
    return vectors(body)


@contextlib.contextmanager
def server(folder: Path) -> Iterator[int]:
    """A server for the time of a block -> its port."""
    port = free_port()
    process = spawn(folder, port)
    try:
        first_answer(process, port, "ready?")
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def request(texts: Sequence[str]) -> bytes:
    """One POST /v1/embeddings with base64 vectors, which the OpenAI client asks for if nobody tells it otherwise."""
    body = json.dumps({"model": "m", "input": texts, "encoding_format": "base64"}).encode()
    head = "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
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
