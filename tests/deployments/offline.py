"""A program that has no network: it serves what it is told by two replicas, asks both the same, and stops them.

    unshare -rn python -m tests.deployments.offline      in a network namespace, whose only device is a loopback
    python -m tests.deployments.offline hook             where the kernel refuses one: a replica that connects is killed

A replica is `bei serve` in a process of its own; it is forked here, so that what all of them import is imported once.
A line in is a task, a line out its outcome, both JSON: {"port": N} -> how connecting there and beyond fails, as a
replica would; {"args": [...], "asks": [[method, path, body], ...]} -> for each replica [its answers, its exit code].
"""

import errno
import fcntl
import http.client
import json
import os
import signal
import socket
import struct
import sys
import warnings
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from openbei import cli

FLAGS = ("--port", "0", "--hostname", "127.0.0.1", "--json-output", "--device", "cpu", "--dtype", "float32")
BEYOND = ("192.0.2.1", 80)  # an address that nobody has (RFC 5737)
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
REPLICAS = 2


def raise_loopback() -> None:
    """The loopback of a new namespace is down at first."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def shoot(event: str, args: Any) -> None:
    """An audit hook: a process that connects to an address or looks a name up is killed."""
    name = event == "socket.getaddrinfo" and args[0] != "127.0.0.1"
    if name or (event == "socket.connect" and isinstance(args[1], tuple)):
        os.kill(os.getpid(), signal.SIGKILL)


def forked(action: Callable[[], object], hooked: bool) -> tuple[int, Any]:
    """Do it in a process of its own -> that one's id, and what it prints."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of threads, of which none is in the midst of anything
        child = os.fork()
    if child:
        os.close(writing)
        return child, os.fdopen(reading)
    os.dup2(writing, 1)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    if hooked:
        sys.addaudithook(shoot)
    code = 1
    try:
        action()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    sys.stdout.flush()
    os._exit(code)


def try_to_connect(port: int) -> list[str]:
    """How it fails to reach a server of the machine, an address beyond, and a name."""
    return [_outcome(lambda at=at: socket.create_connection(at, 5)) for at in (("127.0.0.1", port), BEYOND)] + [
        _outcome(lambda: socket.getaddrinfo("huggingface.co", 443))
    ]


def _outcome(action: Callable[[], object]) -> str:
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    return "connected"


def replicate(args: list[str], asks: list[tuple[str, str, Any]], hooked: bool) -> list[Any]:
    """Start the replicas together, ask one after the other, stop them together."""
    started = [forked(lambda: cli.main.main(["serve", *args, *FLAGS]), hooked) for _ in range(REPLICAS)]
    try:
        ready = [json.loads(printed.readline() or "{}") for _, printed in started]
        answers = [[_ask(facts["address"], *ask) for ask in asks] if facts else None for facts in ready]
    finally:
        for child, _ in started:
            os.kill(child, signal.SIGTERM)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, _ in started]
    return list(zip(answers, codes, strict=True))


def _ask(address: str, method: str, path: str, body: Any) -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    sent = None if body is None else json.dumps(body)
    connection.request(method, path, sent, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def main() -> None:
    """Do one task after the other."""
    import openbei.deployment
    import openbei.describe
    import openbei.engine.cpu
    import openbei.server.serve
    import openbei.weights.store  # noqa: F401 - what the replicas share

    hooked = "hook" in sys.argv
    if not hooked:
        raise_loopback()
    for line in sys.stdin:
        task = json.loads(line)
        if "port" in task:
            child, printed = forked(lambda task=task: print(json.dumps(try_to_connect(task["port"]))), hooked)
            outcome = json.loads(printed.read() or '["killed"]')
            os.waitpid(child, 0)
        else:
            outcome = replicate(task["args"], task["asks"], hooked)
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
