"""Which web stack answers most embeddings per second from one process on one core?

    python benchmarks/web_stack.py      # about two minutes; Linux, two cores; prints tables and a last line of JSON

Every candidate answers `POST /v1/embeddings` in OpenAI's shape: it parses and validates the body (`input` is a list
of strings), takes ready-made vectors of 1024 float32 values and encodes the answer anew, as JSON floats or as base64.
The server is one process pinned to one core; this process makes the load from another core over 16 keep-alive
connections with one request under way on each. Candidates are measured in turn, round after round; medians are quoted.

A number is complete answers per second when the core does nothing but HTTP and encoding. `CPU ms` is the server's own
CPU time per answer; what exceeds `no stack`, the same work without a server, is the stack's price. Answers/s times CPU
ms well below 1000 means that something else used the core: run again. `load` is the generator's share of its own core.
It does not mean: no model, tokenizer, queue, TLS or network is here, so a real server gives far fewer answers; latency
and more than one worker are not measured. Compare numbers of one run only. FastAPI (left out if it is not installed)
has pydantic models for request and answer, as its manual teaches; all the others share `answer`'s parts.
"""

import argparse
import base64
import contextlib
import functools
import importlib.util
import itertools
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
import timeit
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.request import Request, urlopen

import msgspec
import numpy as np
import orjson

DIMENSIONS, CONNECTIONS, PATH = 1024, 16, "/v1/embeddings"
KINDS = [(1, "float"), (1, "base64"), (128, "float"), (128, "base64")]
CANDIDATES = [(app, "uvicorn") for app in ("bare", "starlette", "litestar", "fastapi")]
CANDIDATES += [(app, "granian") for app in ("bare", "starlette", "litestar")]
VECTORS = np.random.default_rng(0).standard_normal((128, DIMENSIONS), dtype=np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)


class EmbeddingsRequest(msgspec.Struct):
    model: str
    input: Annotated[list[str], msgspec.Meta(min_length=1, max_length=len(VECTORS))]
    encoding_format: Literal["float", "base64"] = "float"


Sample = tuple[float, float, float]  # answers per second, server CPU ms per answer, the generator's share of its core
DECODER = msgspec.json.Decoder(EmbeddingsRequest)
to_json = functools.partial(orjson.dumps, option=orjson.OPT_SERIALIZE_NUMPY)


def envelope(request: Any) -> dict[str, Any]:
    rows: Any = VECTORS[: len(request.input)]
    if request.encoding_format == "base64":
        rows = [base64.b64encode(row).decode("ascii") for row in rows]
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    usage = {"prompt_tokens": len(data), "total_tokens": len(data)}
    return {"object": "list", "data": data, "model": request.model, "usage": usage}


def answer(body: bytes) -> bytes:
    return to_json(envelope(DECODER.decode(body)))


async def bare(scope: dict[str, Any], receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    content = answer(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def starlette_app() -> Any:
    from starlette import applications, requests, responses, routing

    async def embeddings(request: requests.Request) -> responses.Response:
        return responses.Response(answer(await request.body()), media_type="application/json")

    return applications.Starlette(routes=[routing.Route(PATH, embeddings, methods=["POST"])])


def litestar_app() -> Any:
    import litestar

    @litestar.post(PATH, status_code=200)
    async def embeddings(data: EmbeddingsRequest) -> litestar.Response[bytes]:
        return litestar.Response(to_json(envelope(data)), media_type="application/json")

    return litestar.Litestar([embeddings], openapi_config=None, logging_config=None)


def fastapi_app() -> Any:
    from fastapi import FastAPI
    from pydantic import Field, create_model

    texts = (list[str], Field(min_length=1, max_length=len(VECTORS)))
    fields: Any = {"model": (str, ...), "input": texts, "encoding_format": (Literal["float", "base64"], "float")}
    body_model: Any = create_model("Body", **fields)
    item_model: Any = create_model("Item", object=(str, ...), index=(int, ...), embedding=(list[float] | str, ...))
    parts: Any = {"data": (list[item_model], ...), "model": (str, ...), "usage": (dict[str, int], ...)}
    app = FastAPI()

    @app.post(PATH, response_model=create_model("Answer", object=(str, ...), **parts))
    async def embeddings(body: body_model) -> Any:
        whole = envelope(body)
        for item in whole["data"] if body.encoding_format == "float" else ():
            item["embedding"] = item["embedding"].tolist()
        return whole

    return app


APPS = {"bare": lambda: bare, "starlette": starlette_app, "litestar": litestar_app, "fastapi": fastapi_app}


def serve(name: str, server: str, port: int, core: int) -> None:
    """Be the server process until a signal ends it."""
    os.sched_setaffinity(0, {core})
    if server == "uvicorn":
        import uvicorn

        uvicorn.run(APPS[name](), port=port, loop="uvloop", http="httptools", log_config=None, access_log=False)
    else:
        from granian import Granian
        from granian.constants import Interfaces, Loops

        granian = Granian(name, port=port, interface=Interfaces.ASGINL, loop=Loops.uvloop, log_enabled=False)
        granian.serve(target_loader=APPS[name], wrap_loader=False)


@contextlib.contextmanager
def running(name: str, server: str, core: int) -> Iterator[tuple[int, int]]:
    """Start one server in a process group of its own; give its group and its port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, "--serve", name, server, str(port), str(core)]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield process.pid, port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def request_body(count: int, encoding_format: str) -> bytes:
    texts = [f"text {index}: " + "the quick brown fox jumps over the lazy dog " * 2 for index in range(count)]
    return json.dumps({"model": "m", "input": texts, "encoding_format": encoding_format}).encode()


def check(port: int, count: int, encoding_format: str) -> None:
    """Raise unless the answer has the vectors, to the last bit."""
    url, body = f"http://127.0.0.1:{port}{PATH}", request_body(count, encoding_format)
    with urlopen(Request(url, body, {"Content-Type": "application/json"}), timeout=30) as response:
        rows = [item["embedding"] for item in json.load(response)["data"]]
    rows = [np.frombuffer(base64.b64decode(row), "f4") if encoding_format == "base64" else row for row in rows]
    if not np.array_equal(np.array(rows, np.float32), VECTORS[:count]):
        raise RuntimeError(f"wrong vectors from {url}")


class Load:
    """Connections which each ask again as soon as their answer is complete."""

    head = re.compile(rb"HTTP/1.1 200 .*?content-length: *(\d+).*?\r\n\r\n", re.IGNORECASE | re.DOTALL)

    def __init__(self, port: int, body: bytes) -> None:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: ".encode()
        self.request, self.buffer = b"%s%d\r\n\r\n%s" % (head, len(body), body), bytearray(2**18)
        self.poller, self.missing, self.done = selectors.DefaultSelector(), defaultdict[Any, int](int), 0
        for _ in range(CONNECTIONS):
            link = socket.create_connection(("127.0.0.1", port))
            self.poller.register(link, selectors.EVENT_READ)
            link.sendall(self.request)

    def run(self, seconds: float, last: bool = False) -> int:
        """Count the answers until the time is over, or if this is the last run until no request is under way."""
        before, deadline = self.done, time.perf_counter() + seconds
        while self.poller.get_map() if last else time.perf_counter() < deadline:
            for link in [key.fileobj for key, _ in self.poller.select(0.1) if self.completes(key.fileobj)]:
                if last:
                    self.poller.unregister(link)
                else:
                    link.sendall(self.request)  # type: ignore[union-attr]
        return self.done - before

    def completes(self, link: Any) -> bool:
        """Take what has come; say whether it completes the answer. Servers here send a head in one piece."""
        count = link.recv_into(self.buffer)
        head = None if self.missing[link] else self.head.match(self.buffer, 0, count)
        self.missing[link] += head.end() + int(head[1]) if head else 0
        if not count or not self.missing[link]:
            raise RuntimeError(f"unexpected answer: {bytes(self.buffer[: min(count, 300)])!r}")
        self.missing[link] -= count
        self.done += not self.missing[link]
        return not self.missing[link]


def cpu_seconds(group: int) -> float:
    """The CPU time of every process of a group, its threads included."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12]) if int(fields[2]) == group else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(group: int, port: int, body: bytes, seconds: float) -> Sample:
    load = Load(port, body)
    load.run(seconds / 5)
    start, cpu, own = time.perf_counter(), cpu_seconds(group), time.process_time()
    done = load.run(seconds)
    elapsed, cpu, own = time.perf_counter() - start, cpu_seconds(group) - cpu, time.process_time() - own
    load.run(0, last=True)
    return done / elapsed, 1000 * cpu / max(done, 1), own / elapsed


def measure_all(rounds: int, seconds: float, core: int) -> dict[str, list[list[float]]]:
    """The median sample of each candidate for each of KINDS."""
    samples: dict[str, list[list[Sample]]] = defaultdict(lambda: [[] for _ in KINDS])
    with contextlib.ExitStack() as stack:
        found = [pair for pair in CANDIDATES if all(map(importlib.util.find_spec, {*pair} - {"bare"}))]
        servers = {f"{app} on {by}": stack.enter_context(running(app, by, core)) for app, by in found}
        for port, kind in itertools.product([port for _, port in servers.values()], KINDS):
            check(port, *kind)
        for _, (column, kind) in itertools.product(range(rounds), enumerate(KINDS)):
            for name, (group, port) in servers.items():
                samples[name][column].append(measure(group, port, request_body(*kind), seconds))
    return {name: np.median(row, axis=1).tolist() for name, row in samples.items()}


def measure_encoders(rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds and bytes of each encoder, in turn; then of a whole answer without a server."""
    encoders: dict[str, Callable[[], bytes]] = {
        "orjson, numpy array": lambda: to_json(VECTORS),
        "orjson, tolist()": lambda: orjson.dumps(VECTORS.tolist()),
        "msgspec, tolist()": lambda: msgspec.json.encode(VECTORS.tolist()),
        "json.dumps, tolist()": lambda: json.dumps(VECTORS.tolist()).encode(),
    }
    encoders |= {f"no stack, {n} x {kind}": functools.partial(answer, request_body(n, kind)) for n, kind in KINDS}
    times: dict[str, list[float]] = defaultdict(list)
    for _, (name, encode) in itertools.product(range(rounds), encoders.items()):
        times[name].append(timeit.timeit(encode, number=4) * 1000 / 4)
    return {name: {"ms": float(np.median(times[name])), "bytes": len(encode())} for name, encode in encoders.items()}


def orjson_float32() -> dict[str, bool]:
    """Does orjson print float32 values, random bit patterns too, in the fewest digits that read back the same?"""
    bits = np.random.default_rng(1).integers(0, 2**32, 20_000, dtype=np.uint32)
    values = np.concatenate([bits.view(np.float32)[np.isfinite(bits.view(np.float32))], VECTORS[0]])
    printed = to_json(values).decode()[1:-1].split(",")
    fewest = [np.format_float_scientific(value, unique=True) for value in values]
    lengths = [[len(re.sub(r"e.*|\D", "", text).strip("0")) for text in texts] for texts in (printed, fewest)]
    same = bool(np.all(np.array(printed, np.float64).astype(np.float32) == values))
    return {"reads back the same": same, "in the fewest digits": lengths[0] == lengths[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one window")
    options = parser.parse_args()
    server_core, load_core = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, {load_core})
    encoders, digits = measure_encoders(12), orjson_float32()
    table = measure_all(options.rounds, options.seconds, server_core)
    print(f"{'answers/s (CPU ms, load)':24}" + "".join(f"{f'{n} x {DIMENSIONS} {kind}':>26}" for n, kind in KINDS))
    for name, row in table.items():
        print(f"{name:24}" + "".join(f"{f'{rate:,.0f} ({ms:.3f}, {load:.0%})':>26}" for rate, ms, load in row))
    for name, cost in encoders.items():
        print(f"{name:24}{cost['ms']:>10.3f} ms{cost['bytes']:>12,} bytes")
    print(f"orjson of a float32 array: {digits}")
    packages = ("uvicorn", "granian", "starlette", "litestar", "uvloop", "httptools", "orjson", "msgspec", "numpy")
    versions = {package: version(package) for package in packages}
    print(json.dumps({"kinds": KINDS, "stacks": table, "encoders": encoders, "orjson": digits, "versions": versions}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
