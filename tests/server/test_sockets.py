"""Where real sockets matter: clients that hang up, dawdle or stop half-way, and a server that is told to stop."""

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from openbei import errors
from openbei.config import ServerConfig
from openbei.engine.request import Request, Result
from openbei.errors import ConfigError
from openbei.server import connection
from openbei.server.serve import listen, serve, url
from tests.server.fakes import DIM, FakeEngine, vector
from tests.server.live import running
from tests.web import LIMIT_S, get, post, wait_until

BODY = b'{"inputs": "a"}'
POST = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.fixture
def address(engine: FakeEngine) -> Iterator[str]:
    with running(engine) as (address, _):
        yield address


def connect(address: str) -> socket.socket:
    parts = urlsplit(address)
    return socket.create_connection((parts.hostname, parts.port), timeout=LIMIT_S)


def read_answer(client: socket.socket) -> int:
    """One answer, head and body, which need not come in one piece -> its status."""
    response = HTTPResponse(client)
    response.begin()
    response.read()
    return response.status


def read_all(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


def test_a_client_that_hangs_up_drops_its_request(engine: FakeEngine, address: str) -> None:
    engine.hold = True
    gone = connect(address)
    gone.sendall(POST + b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY))
    wait_until(lambda: len(engine.held) == 1)
    stays = connect(address)
    stays.sendall(POST + b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY))
    wait_until(lambda: len(engine.held) == 2)
    gone.close()
    wait_until(engine.held[0].cancelled)
    assert not engine.held[1].cancelled()
    engine.release()
    assert read_all(stays).startswith(b"HTTP/1.1 200")
    stays.close()
    assert b'te_request_failure{err="dropped"} 1\n' in engine.metrics.render()


def test_half_a_body_reaches_no_engine(engine: FakeEngine, address: str) -> None:
    client = connect(address)
    client.sendall(POST + b"content-length: 1000\r\n\r\n" + BODY)
    client.close()
    assert post(f"{address}/embed", json={"inputs": "b"}).status_code == 200
    assert [list(request.inputs) for request in engine.requests] == [["b"]]


def test_a_slow_sender_is_answered_and_holds_nobody_up(address: str) -> None:
    slow = connect(address)
    slow.sendall(POST + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(BODY))
    for i in range(len(BODY)):
        slow.sendall(BODY[i : i + 1])
        if i == 7:
            assert get(f"{address}/health").status_code == 200
    assert read_all(slow).startswith(b"HTTP/1.1 200")
    slow.close()


def test_a_large_content_length_is_refused_before_the_body(engine: FakeEngine) -> None:
    with running(engine, payload_limit=100) as (address, _):
        client = connect(address)
        client.sendall(POST + b"content-length: 101\r\n\r\n")
        assert read_all(client).startswith(b"HTTP/1.1 413")  # and hangs up, rather than read the rest
        client.close()


def test_a_chunked_body_is_refused_while_it_comes_in(engine: FakeEngine) -> None:
    with running(engine, payload_limit=100) as (address, _):
        client = connect(address)
        client.sendall(POST + b"transfer-encoding: chunked\r\n\r\n" + b"20\r\n%b\r\n" % (b" " * 32) * 4)
        assert read_all(client).startswith(b"HTTP/1.1 413")  # and hangs up, rather than read the rest
        client.close()


def test_a_chunked_body_is_read(address: str) -> None:
    client = connect(address)
    client.sendall(
        POST + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    )
    assert read_all(client).startswith(b"HTTP/1.1 200")
    client.close()


def test_the_wrong_key_is_refused_before_the_body(engine: FakeEngine) -> None:
    with running(engine, api_key="k") as (address, _):
        client = connect(address)
        client.sendall(POST + b"content-length: 1000\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 401")
        client.close()


@pytest.mark.parametrize("path", ["/v1/models/org%2Ftiny", "/v1/models/org/tiny"])
def test_a_model_s_id_encoded_and_raw(address: str, path: str) -> None:
    assert get(address + path).json()["id"] == "org/tiny"


def test_head_has_no_body(address: str) -> None:
    client = connect(address)
    client.sendall(b"HEAD /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert read_all(client).endswith(b"\r\n\r\n")
    client.close()


def test_health_is_quick_while_requests_wait(engine: FakeEngine, address: str) -> None:
    engine.hold = True
    waiting = [connect(address) for _ in range(20)]
    for client in waiting:
        client.sendall(POST + b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY))
    wait_until(lambda: len(engine.held) == 20)
    assert get(f"{address}/health").status_code == 200
    engine.release()
    for client in waiting:
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.close()


# The openai client, as it comes


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="k", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"dimensions": DIM}])
def test_openai_client(client: openai.OpenAI, options: dict[str, object]) -> None:
    answer = client.embeddings.create(model="m", input=["fox", "né"], user="u", **options)  # type: ignore[call-overload]
    assert [one.index for one in answer.data] == [0, 1]
    for text, one in zip(["fox", "né"], answer.data, strict=True):
        wanted = vector(text)
        assert one.embedding == pytest.approx(list(wanted / (wanted @ wanted) ** 0.5), abs=1e-6)
    assert answer.usage.total_tokens == 6


def test_openai_client_base64_by_name_and_token_ids(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="m", input=[5, 6], encoding_format="base64")
    assert isinstance(answer.data[0].embedding, str)
    assert len(client.embeddings.create(model="m", input=[[5, 6], [7]]).data) == 2


def test_openai_client_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["org/tiny"]
    assert client.models.retrieve("org/tiny").owned_by == "openbei"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/other")


@pytest.mark.parametrize(
    ("raised", "wanted"),
    [
        (errors.EmptyInput("empty"), openai.BadRequestError),
        (errors.Unauthorized("key"), openai.AuthenticationError),
        (errors.InvalidInput("wrong"), openai.UnprocessableEntityError),
        (errors.Overloaded(), openai.RateLimitError),
        (errors.Unhealthy(), openai.InternalServerError),
        (errors.DeadlineExceeded("late"), openai.InternalServerError),
        (errors.InferenceFailed("NaN"), openai.APIStatusError),
    ],
)
def test_openai_client_errors(
    engine: FakeEngine, client: openai.OpenAI, raised: Exception, wanted: type[openai.APIStatusError]
) -> None:
    engine.refuse_with = raised
    with pytest.raises(wanted) as caught:
        client.embeddings.create(model="m", input="a")
    row, said = errors.answer(raised), caught.value
    assert (said.status_code, said.type, str(said.code)) == (row.status, row.type, str(row.status))
    assert str(raised) in caught.value.message


def test_openai_client_retries_when_told(engine: FakeEngine, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    submit, refused, slept_s = engine.submit, [], []

    def once_overloaded(request: Request) -> Future[Result]:
        if not refused:
            refused.append(request)
            raise errors.Overloaded(retry_after_s=17)
        return submit(request)

    monkeypatch.setattr(engine, "submit", once_overloaded)
    with openai.OpenAI(base_url=f"{address}/v1", api_key="k", max_retries=1) as client, monkeypatch.context() as patch:
        patch.setattr(time, "sleep", slept_s.append)
        assert client.embeddings.create(model="m", input="a").data
    assert slept_s == [17]


def test_openai_client_async(address: str) -> None:
    async def embed() -> list[int]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="k") as client:
            answers = await asyncio.gather(*(client.embeddings.create(model="m", input=["a", "b"]) for _ in range(8)))
            return [len(answer.data) for answer in answers]

    assert asyncio.run(embed()) == [2] * 8


# Start and stop


def test_draining_answers_what_is_in_flight_and_refuses_the_rest(engine: FakeEngine) -> None:
    engine.hold = True
    with running(engine) as (address, server), httpx.Client(base_url=address, timeout=LIMIT_S) as other:
        client = connect(address)
        client.sendall(POST + b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY))
        wait_until(lambda: len(engine.held) == 1)
        server.handle_exit(signal.SIGTERM, None)
        wait_until(lambda: engine.status == "draining")
        assert other.get("/health").status_code == 503
        assert other.post("/embed", json={"inputs": "a"}).json()["error_type"] == "Unhealthy"
        engine.release()
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.close()
        wait_until(lambda: engine.closed)


@pytest.mark.parametrize("begun", [b"", POST])
def test_a_client_that_has_connected_and_not_asked_yet_is_answered_at_the_end(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(connection, "FIRST_S", 20)
    request = POST + b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)
    with running(engine) as (address, server), connect(address) as client:
        client.sendall(begun)
        wait_until(lambda: [one.head_timer is not None for one in server.server_state.connections] == [bool(begun)])
        server.handle_exit(signal.SIGTERM, None)
        wait_until(lambda: [one.leaving for one in server.server_state.connections] == [True])
        client.sendall(request.removeprefix(begun))
        assert read_all(client).startswith(b"HTTP/1.1 503")


def test_a_client_that_never_asks_does_not_keep_a_server_up(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "FIRST_S", 0.01)
    with running(engine) as (address, server), connect(address) as client:
        wait_until(lambda: server.server_state.connections)
        server.handle_exit(signal.SIGTERM, None)
        assert read_all(client) == b""


def test_a_client_that_is_let_in_after_the_others_were_told_does_not_keep_a_server_up(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio's own loop accepts a connection some rounds before its protocol hears of it."""
    monkeypatch.setattr(connection, "FIRST_S", 0.01)
    made, accepted = connection.Connection.connection_made, threading.Event()

    def late(one: connection.Connection, transport: asyncio.Transport) -> None:
        accepted.set()
        if server.servers[0].is_serving():
            one.loop.call_later(0.005, late, one, transport)
        else:
            one.loop.call_soon(made, one, transport)

    monkeypatch.setattr(connection.Connection, "connection_made", late)
    with running(engine) as (address, server), connect(address) as client:
        assert accepted.wait(LIMIT_S)
        server.handle_exit(signal.SIGTERM, None)
        assert read_all(client) == b""


class Program:
    """The server as a program, with one request that it holds until `release`; `stop` returns once it drains."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.server.program"]
        root = Path(__file__).parents[2]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=root)
        self.limit = threading.Timer(LIMIT_S, self.process.kill)  # then its next line is none
        self.limit.start()
        self.address = self.line()
        self.client = connect(self.address)
        self.client.sendall(POST + b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY))
        assert self.line() == "held"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def stop(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        wait_until(lambda: get(f"{self.address}/health").status_code == 503)

    def release(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def close(self) -> None:
        self.limit.cancel()
        self.client.close()
        with self.process:
            self.process.kill()


@pytest.fixture
def program() -> Iterator[Program]:
    with closing(Program()) as program:
        yield program


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_is_in_flight_and_exits_0(program: Program, stop: signal.Signals) -> None:
    program.stop(stop)
    program.release()
    assert program.client.recv(65536).startswith(b"HTTP/1.1 200")
    program.client.close()
    assert program.line() == "done"
    assert program.process.wait(LIMIT_S) == 0


def test_a_second_signal_does_not_wait(program: Program) -> None:
    program.stop(signal.SIGTERM)
    program.process.send_signal(signal.SIGTERM)
    assert program.line() == "done"
    assert program.process.wait(LIMIT_S) == 0


def test_a_taken_port_is_a_clear_error(engine: FakeEngine) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1"):
            serve(engine, ServerConfig(hostname="127.0.0.1", port=port), print)  # type: ignore[arg-type]


def test_a_hostname_that_is_none_is_a_clear_error(engine: FakeEngine) -> None:
    with pytest.raises(ConfigError, match="hostname"):
        serve(engine, ServerConfig(hostname="256.1.1.1"), print)  # type: ignore[arg-type]


@pytest.mark.parametrize(("hostname", "start"), [("0.0.0.0", "http://127.0.0.1:"), ("localhost", "http://")])
def test_the_url_is_one_that_a_client_can_use(hostname: str, start: str) -> None:
    with listen(hostname, 0) as listener:
        assert url(listener).startswith(start)
        assert not url(listener).endswith(":0")
