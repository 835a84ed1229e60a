"""Clients that dawdle, on real sockets; who may wait; and when to come again."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import pytest

from openbei import errors
from openbei.server.connection import Connection
from openbei.server.serve import Server
from tests.server.fakes import FakeEngine
from tests.server.test_sockets import BODY, POST, connect, read_all, read_answer, running
from tests.server.wire import Wire
from tests.web import post, wait_until

TIMEOUT_MS = 50
REQUEST = POST + b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)


@pytest.fixture
def hasty(engine: FakeEngine) -> Iterator[str]:
    """A server that waits for no request longer than TIMEOUT_MS."""
    with running(engine, read_timeout_ms=TIMEOUT_MS) as (address, _):
        yield address


def answer_of(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """All that a server says before it hangs up -> status, headers, body."""
    head, _, body = read_all(client).partition(b"\r\n\r\n")
    client.close()
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


@pytest.mark.parametrize(
    ("sent", "what"),
    [
        (b"P", "head"),
        (b"POST /embed HTTP/1.1\r\nhost: x\r\nx-slow", "head"),
        (POST + b"content-length: 1000\r\n\r\n", "body"),
        (POST + b"content-length: 1000\r\n\r\n" + BODY, "body"),
        (POST + b"transfer-encoding: chunked\r\n\r\n3\r\n{  \r\n", "body"),
    ],
)
def test_a_request_that_does_not_come_in_is_answered_408(
    engine: FakeEngine, hasty: str, sent: bytes, what: str
) -> None:
    client = connect(hasty)
    client.sendall(sent)
    status, headers, body = answer_of(client)
    assert (status, headers["connection"], headers["content-type"]) == (408, "close", "application/json")
    assert body == b'{"error":"the %b%b did not come in within 50 ms","error_type":"Timeout"}' % (
        what.encode(),
        b" of the request" if what == "head" else b"",
    )
    assert engine.requests == []


def test_a_client_that_drips_is_cut_off_and_holds_nobody_up(hasty: str) -> None:
    """Each byte comes in time, the head as a whole does not."""
    dripping = connect(hasty)
    dripping.sendall(b"POST /embed HTTP/1.1\r\nx-slow: ")

    async def drip() -> None:
        reader, writer = await asyncio.open_connection(sock=dripping)
        answer = asyncio.ensure_future(reader.read(12))  # and not until the end: another byte sent may be a reset
        while not answer.done():
            writer.write(b"a")
            await asyncio.wait({answer}, timeout=TIMEOUT_MS / 5000)
        assert answer.result().startswith(b"HTTP/1.1 408")
        writer.close()

    asyncio.run(drip())
    other = connect(hasty)
    other.sendall(REQUEST)  # at once: httpx sends the body after the head, which may take longer than TIMEOUT_MS
    assert answer_of(other)[0] == 200


def test_the_time_for_a_request_ends_with_the_request(engine: FakeEngine, hasty: str) -> None:
    """Neither the wait for an answer nor the pause before the next request counts."""
    engine.hold = True
    client = connect(hasty)
    client.sendall(POST + b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY))
    wait_until(lambda: len(engine.held) == 1)
    late = connect(hasty)
    late.sendall(b"P")
    assert answer_of(late)[0] == 408  # so the time of the first is up too
    engine.release()
    assert read_answer(client) == 200
    late = connect(hasty)
    late.sendall(b"P")
    assert answer_of(late)[0] == 408
    client.sendall(REQUEST)
    assert answer_of(client)[0] == 200


def test_a_second_head_that_dawdles_does_not_take_the_first_answer_away(engine: FakeEngine, hasty: str) -> None:
    engine.hold = True
    client = connect(hasty)
    client.sendall(POST + b"content-length: %d\r\n\r\n%bPOST /emb" % (len(BODY), BODY))
    wait_until(lambda: len(engine.held) == 1)
    late = connect(hasty)
    late.sendall(b"P")
    assert answer_of(late)[0] == 408
    engine.release()
    status, headers, _ = answer_of(client)
    assert (status, headers["connection"]) == (200, "close")


@pytest.mark.parametrize("start", [b"", b"first"])
def test_a_head_without_end_is_not_kept(engine: FakeEngine, start: bytes) -> None:
    """Alone, and behind a request that is still being answered, which it takes nothing away from."""
    with running(engine) as (address, server):
        client = connect(address)
        if start:
            engine.hold = True
            client.sendall(POST + b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY))
            wait_until(lambda: len(engine.held) == 1)
        client.sendall(POST + b"x-endless: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(2 if start else 1000):
                client.sendall(b"a" * 65_536)
        if start:
            wait_until(lambda: [one.deaf for one in server.server_state.connections] == [True])
            engine.release()
        status, headers, body = answer_of(client)
        assert (status, headers["connection"]) == (200 if start else 413, "close")
        if not start:
            assert body == (b'{"error":"the head of the request has more than 65536 bytes","error_type":"Validation"}')


def test_a_long_head_is_read(engine: FakeEngine) -> None:
    with running(engine) as (address, _):
        answer = post(f"{address}/embed", json={"inputs": "a"}, headers={"cookie": "a" * 60_000})
        assert answer.status_code == 200


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n a: b\r\n\r\n"])
def test_what_is_no_http_is_answered_in_json(hasty: str, sent: bytes) -> None:
    client = connect(hasty)
    client.sendall(sent)
    status, headers, body = answer_of(client)
    assert (status, headers["content-type"]) == (400, "application/json")
    assert body == b'{"error":"the request is not HTTP that can be read","error_type":"Validation"}'


# Bodies that nobody reads, since the answer is known before

REFUSED = {
    "POST /embed HTTP/1.1\r\nauthorization: Bearer no": 401,
    "POST /embed HTTP/1.1\r\nauthorization: Bearer k\r\ncontent-type: text/plain": 415,
    "POST /nowhere HTTP/1.1\r\nauthorization: Bearer k": 404,
    "PUT /embed HTTP/1.1": 405,
    "GET /health HTTP/1.1": 200,
}


def refused(address: str, head: str, status: int) -> socket.socket:
    """A client that has been answered, and whose body is still to come."""
    client = connect(address)
    client.sendall(f"{head}\r\nhost: x\r\n\r\n".encode())
    assert read_answer(client) == status
    return client


def only(server: Server) -> Connection:
    """The server's side of the one connection."""
    [connection] = server.server_state.connections
    return connection  # type: ignore[return-value]


@pytest.mark.parametrize(("head", "status"), REFUSED.items())
@pytest.mark.parametrize("size", ["content-length: 50", "transfer-encoding: chunked"])
def test_the_rest_of_a_refused_body_may_not_dawdle(engine: FakeEngine, head: str, status: int, size: str) -> None:
    with running(engine, read_timeout_ms=TIMEOUT_MS, api_key="k") as (address, _):
        client = refused(address, f"{head}\r\n{size}", status)
        with contextlib.suppress(ConnectionError):  # on a machine so slow that its time is up already
            client.sendall(b"2")  # which ends the patience that uvicorn has itself
            assert client.recv(65536) == b""
        client.close()


def test_who_sends_all_of_a_refused_body_keeps_the_connection(engine: FakeEngine) -> None:
    with running(engine, api_key="k") as (address, server):
        client = refused(address, "POST /embed HTTP/1.1\r\ncontent-length: 100000", 401)
        wait_until(lambda: only(server).rest_timer)
        client.sendall(b"a" * 100_000)
        wait_until(lambda: only(server).rest_timer is None)
        client.sendall(REQUEST.replace(b"\r\n", b"\r\nauthorization: Bearer k\r\n", 1))
        assert answer_of(client)[0] == 200


@pytest.mark.parametrize("rest", [b"1\r\na\r\n0\r\n\r\n", b"0\r\n\r\n\r\n"])
def test_a_connection_that_is_idle_again_is_not_kept_for_ever(engine: FakeEngine, rest: bytes) -> None:
    """After the rest of a body, and after an empty line, which is no request."""
    with running(engine, api_key="k") as (address, server):
        client = refused(address, "POST /embed HTTP/1.1\r\ntransfer-encoding: chunked", 401)
        only(server).timeout_keep_alive = TIMEOUT_MS / 1000  # from the next time on that it is idle
        client.sendall(rest)
        assert client.recv(65536) == b""
        client.close()


# Priority

KINDS = {"embedding": ("/embed", {"inputs": "a"}), "reranker": ("/v2/rerank", {"query": "q", "documents": ["a"]})}


@pytest.mark.parametrize(
    ("headers", "body", "bulk"),
    [
        ({}, {}, False),
        ({"x-priority": "bulk"}, {}, True),
        ({"x-priority": " Batch"}, {}, True),
        ({"x-priority": "low"}, {}, True),
        ({"x-priority": "5"}, {}, True),
        ({"x-priority": "interactive"}, {}, False),
        ({"x-priority": "0"}, {}, False),
        ({"x-priority": "-3"}, {}, False),
        ({"x-priority": "1e9"}, {}, False),
        ({"x-priority": "9" * 5000}, {}, True),
        ({"x-priority": ""}, {"priority": 1}, False),
        ({"x-baseten-priority": "bulk"}, {}, True),
        ({"x-baseten-priority": "whatever \u00e9"}, {}, False),
        ({"x-baseten-priority": "bulk", "x-priority": "high"}, {}, False),
        ({}, {"priority": 1}, True),
        ({}, {"priority": 0}, False),
        ({}, {"priority": -1}, False),
        ({}, {"priority": None}, False),
        ({"x-priority": "interactive"}, {"priority": 7}, False),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("kind", KINDS)
def test_priority(kind: str, headers: dict[str, str], body: dict[str, object], bulk: bool) -> None:
    path, right = KINDS[kind]
    wire = Wire(FakeEngine(kind))  # type: ignore[arg-type]
    raw = {name: value.encode() for name, value in headers.items()}
    assert wire.post(path, {**right, **body}, headers=raw).status_code == 200
    assert [request.bulk for request in wire.engine.requests] == [bulk]


@pytest.mark.parametrize("value", ["high", 1.5, True])
def test_a_priority_of_another_type_is_refused(wire: Wire, value: object) -> None:
    response = wire.post("/embed", {"inputs": "a", "priority": value})
    assert response.status_code == 422
    assert "$.priority" in response.json()["error"]


# When to come again


@pytest.mark.parametrize(
    ("given_s", "seconds", "milliseconds"),
    [(0, "1", "1000"), (1, "1", "1000"), (1.2345, "2", "1235"), (29.5, "30", "29500"), (99, "30", "30000")],
)
@pytest.mark.parametrize("kind", [errors.Overloaded, errors.Unhealthy])
def test_retry_after(wire: Wire, kind: type, given_s: float, seconds: str, milliseconds: str) -> None:
    wire.engine.refuse_with = kind(retry_after_s=given_s)
    headers = wire.post("/embed", {"inputs": "a"}).headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == (seconds, milliseconds)
