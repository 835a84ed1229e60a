"""Bodies and connections that nobody should send: each is answered or dropped, and the server is well afterwards."""

import random
import socket
import struct
from collections.abc import Iterator

import httpx
import pytest

from tests.server.conditions import ROWS
from tests.server.fakes import FakeEngine
from tests.server.test_sockets import BODY, POST, connect, read_all, running
from tests.server.wire import Wire
from tests.web import get, post

DEEP = 100_000
TEN_MB = 10_000_000
BODIES: dict[str, bytes] = {
    "deep lists": b"[" * DEEP,
    "deep lists, closed": b'{"inputs": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep objects": b'{"inputs": ' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
    "deep in an unknown field": b'{"inputs": "a", "more": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "huge integer": b'{"inputs": "a", "dimensions": ' + b"9" * 5000 + b"}",
    "huge integer as an id": b'{"inputs": [' + b"9" * 5000 + b"]}",
    "2**63 and 2**64": b'{"inputs": [9223372036854775808, 18446744073709551616]}',
    "huge exponent": b'{"inputs": "a", "dimensions": 1e999999}',
    "tiny exponent": b'{"inputs": "a", "dimensions": 1e-999999}',
    "NaN": b'{"inputs": "a", "dimensions": NaN}',
    "Infinity": b'{"inputs": [-Infinity]}',
    "a lone surrogate": b'{"inputs": "\\ud800"}',
    "surrogates the wrong way": b'{"inputs": "\\udc00\\ud800"}',
    "a surrogate in UTF-8": b'{"inputs": "\xed\xa0\x80"}',
    "overlong UTF-8": b'{"inputs": "\xc0\xaf"}',
    "half a code point": b'{"inputs": "\xf0\x9f"}',
    "a byte order mark": b'\xef\xbb\xbf{"inputs": "a"}',
    "UTF-16": '{"inputs": "a"}'.encode("utf-16"),
    "NUL": b"\0" * 100,
    "NUL in a text": b'{"inputs": "a\\u0000b"}',
    "a control character": b'{"inputs": "a\nb"}',
    "the same key twice": b'{"inputs": "a", "inputs": 5}',
    "two bodies": b'{"inputs": "a"}{"inputs": "a"}',
    "nothing": b"",
    "blanks": b" " * 100_000,
    "a long text": b'{"inputs": "' + b"a" * TEN_MB + b'"}',
    "a long key": b'{"' + b"a" * TEN_MB + b'": "inputs"}',
    "many empty texts": b'{"inputs": [' + b'"",' * 1_000_000 + b'""]}',
    "many ids": b'{"inputs": [' + b"1," * 2_000_000 + b"1]}",
    "many keys": b'{"inputs": "a"' + b"".join(b', "k%d": 0' % i for i in range(200_000)) + b"}",
}
RIGHT = ("NUL in a text", "a long text", "many ids", "many keys")
OF_ANOTHER_SHAPE = (
    *("huge integer", "huge integer as an id", "2**63 and 2**64", "huge exponent", "tiny exponent"),
    *("the same key twice", "a long key", "many empty texts"),
)
ASKED = ("/embed", "/v1/embeddings", "/v2/embed", "/vertex", "/")


def well(wire: Wire) -> None:
    """The next request is answered as if nothing had been."""
    assert wire.post("/embed", {"inputs": "a"}).status_code == 200


@pytest.mark.parametrize("name", BODIES)
def test_strange_bodies_are_answered(wire: Wire, name: str) -> None:
    for path in ASKED:
        body = BODIES[name].replace(b'"inputs"', b'"input"') if path == "/v1/embeddings" else BODIES[name]
        assert wire.post(path, body).status_code in {200, 400, 422}
    well(wire)


def test_what_the_strange_bodies_are_answered_with(wire: Wire) -> None:
    """400 for what is no JSON (E01), 422 for JSON of another shape (E03); a right text may be strange."""
    answers = {name: wire.post("/embed", body).status_code for name, body in BODIES.items()}
    assert answers == {name: 400 for name in BODIES} | dict.fromkeys(RIGHT, 200) | dict.fromkeys(OF_ANOTHER_SHAPE, 422)


@pytest.mark.parametrize("seed", range(40))
def test_right_bodies_with_a_few_wrong_bytes(seed: int) -> None:
    rng = random.Random(seed)
    path = rng.choice(list(ROWS))
    wire = Wire(FakeEngine(ROWS[path].kind))
    right = httpx.Request("POST", "http://bei", json=ROWS[path].body).content
    for _ in range(25):
        body = bytearray(right)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(body))
            body[place : place + rng.randint(0, 2)] = rng.choice(
                [bytes([rng.randrange(256)]), b"[", b"{", b'"', b"\\u", b"-", b"9" * 30, b"null", b",", b""]
            )
        assert wire.post(path, bytes(body)).status_code in {200, 400, 422, 424}
    assert wire.post(path, ROWS[path].body).status_code == 200


# Connections


@pytest.fixture
def address(engine: FakeEngine) -> Iterator[str]:
    with running(engine, payload_limit=2 * TEN_MB) as (address, _):
        yield address


WHOLE = POST + b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)


def test_ten_megabytes_on_a_socket(address: str) -> None:
    body = BODIES["a long text"]
    client = connect(address)
    client.sendall(POST + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body))
    client.sendall(body)
    assert read_all(client).startswith(b"HTTP/1.1 200")
    client.close()


def test_a_client_that_has_closed_its_half_is_answered(address: str) -> None:
    client = connect(address)
    client.sendall(WHOLE)
    client.shutdown(socket.SHUT_WR)
    answer = read_all(client)
    client.close()
    assert answer.startswith(b"HTTP/1.1 200") or answer == b""  # TCP does not tell it from one that has left
    assert get(f"{address}/health").status_code == 200


@pytest.mark.parametrize("cut", [1, 20, len(POST) + 5, len(WHOLE) - 1])
@pytest.mark.parametrize("how", ["half", "close", "reset"])
def test_clients_that_stop_anywhere(engine: FakeEngine, address: str, cut: int, how: str) -> None:
    client = connect(address)
    client.sendall(WHOLE[:cut])
    if how == "half":
        client.shutdown(socket.SHUT_WR)
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert post(f"{address}/embed", json={"inputs": "b"}).status_code == 200
    assert [list(request.inputs) for request in engine.requests] == [["b"]]


@pytest.mark.parametrize("seed", range(5))
def test_noise_on_sockets(address: str, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(10):
        noise = bytearray(WHOLE)
        for _ in range(rng.randint(1, 6)):
            noise[rng.randrange(len(noise))] = rng.randrange(256)
        client = connect(address)
        client.sendall(bytes(noise))
        client.shutdown(socket.SHUT_WR)
        answer = read_all(client)
        client.close()
        assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
        assert not answer.startswith(b"HTTP/1.1 5")
    assert get(f"{address}/health").status_code == 200
