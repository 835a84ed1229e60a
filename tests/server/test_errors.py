"""Every condition of the contract that can go wrong, in both dialects: status, type and the keys of the body."""

import asyncio
import json
import logging
from typing import Any

import pytest

from openbei import errors
from tests.server.fakes import FakeEngine
from tests.server.wire import JSON, Wire, error

DIALECTS = [("/v1/embeddings", "input"), ("/embed", "inputs")]

E01 = (400, "Validation")
E03 = (422, "Validation")
E08 = (400, "Empty")

WRONG_INPUTS = [
    *[(value, E03) for value in (5, {}, None, [1.5], [1.0], [-1], [4294967296], ["a", 5], [5, "a"], [[5], 5], [["a"]])],
    *[(value, E03) for value in (True, [True], [None], [[[5]]], [10**30], [[-1]], 10**400, [{}])],
    *[(value, E08) for value in ([], "", ["a", ""], [[]], ["a", []])],
    (["a"] * 5, E03),
    ([999, 1000], E03),
]


@pytest.mark.parametrize(("value", "expected"), WRONG_INPUTS, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize(("path", "field"), DIALECTS)
def test_wrong_inputs(wire: Wire, path: str, field: str, value: Any, expected: tuple[int, str]) -> None:
    assert error(wire.post(path, {field: value})) == expected


WRONG_OPTIONS = {
    "truncate": ["true", 0, 1, []],
    "truncation_direction": ["LEFT", "middle", 1],
    "prompt_name": [1, "nobody", ["query"]],
    "normalize": ["false", 0, 1.0],
    "dimensions": [0, 9, -1, 1.0, "3", True, 2**70],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG_OPTIONS.items() for value in values]
)
@pytest.mark.parametrize(("path", "field"), DIALECTS)
def test_wrong_options(wire: Wire, path: str, field: str, name: str, value: Any) -> None:
    response = wire.post(path, {field: "a", name: value})
    assert error(response) == E03
    assert name in response.text


@pytest.mark.parametrize(
    ("name", "value"), [("encoding_format", "int8"), ("encoding_format", 1), ("model", 5), ("user", {})]
)
def test_wrong_openai_fields(wire: Wire, name: str, value: Any) -> None:
    response = wire.post("/v1/embeddings", {"input": "a", name: value})
    assert error(response) == E03
    assert name in response.text


DEEP = b"[" * 200_000
MALFORMED = [
    b"",
    b"{",
    b"nope",
    b'{"FIELD": "a"} x',
    b'{"FIELD": 5, x',
    b'\xef\xbb\xbf{"FIELD": "a"}',
    b'{"FIELD": "\xff"}',
    b'{"FIELD": "a", "extra": "\xff"}',
    b'{"FIELD": "\\ud800"}',
    b'{"FIELD": "a", "extra": NaN}',
    b'{"FIELD": "a", "dimensions": Infinity}',
    b'{"FIELD": "a\nb"}',
    b'{"FIELD": ' + DEEP,
    b'{"FIELD": "a", "extra": ' + DEEP + DEEP.replace(b"[", b"]") + b"}",
    '{"FIELD": "a"}'.encode("utf-16"),
]


@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: repr(body[:25]))
@pytest.mark.parametrize(("path", "field"), DIALECTS)
def test_malformed_bodies(wire: Wire, path: str, field: str, body: bytes) -> None:
    assert error(wire.post(path, body.replace(b"FIELD", field.encode()))) == E01
    assert wire.engine.requests == []


@pytest.mark.parametrize("body", [b"[]", b"null", b'"a"', b"{}", b'{"INPUTS": "a"}', b"5"])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed"])
def test_other_shapes_than_an_object(wire: Wire, path: str, body: bytes) -> None:
    assert error(wire.post(path, body)) == E03


@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain"}, {**JSON, "content-encoding": "br"}])
@pytest.mark.parametrize(("path", "field"), DIALECTS)
def test_unread_media_types(wire: Wire, path: str, field: str, headers: dict[str, str]) -> None:
    assert error(wire.post(path, json.dumps({field: "a"}).encode(), headers=headers)) == (415, "Validation")


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed"])
def test_body_over_the_limit(engine: FakeEngine, path: str, chunked: bool) -> None:
    wire = Wire(engine, payload_limit=100)

    async def pieces() -> Any:
        for _ in range(11):
            yield b" " * 10

    content = pieces() if chunked else b" " * 110
    response = wire.send("POST", path, content=content, headers=JSON)
    assert error(response) == (413, "Validation")
    assert "110 bytes > maximum of 100" in response.text


def test_body_of_exactly_the_limit(engine: FakeEngine) -> None:
    body = b'{"inputs": "a"}'
    assert Wire(engine, payload_limit=len(body)).post("/embed", body).status_code == 200


ENGINE_ERRORS = [
    (errors.TooLong("17 tokens > 16"), (422, "Validation")),
    (errors.TokenizerFailed("tokenizer failed"), (422, "Tokenizer")),
    (errors.WrongTask("not an embedder"), (424, "Backend")),
    (errors.InferenceFailed("score is NaN"), (424, "Backend")),
    (errors.Overloaded(), (429, "Overloaded")),
    (errors.Unhealthy(), (503, "Unhealthy")),
    (errors.DeadlineExceeded("deadline passed"), (504, "Timeout")),
]


@pytest.mark.parametrize(("raised", "expected"), ENGINE_ERRORS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("where", ["refuse_with", "fail_with"])
@pytest.mark.parametrize(("path", "field"), DIALECTS)
def test_engine_errors(
    wire: Wire, path: str, field: str, where: str, raised: Exception, expected: tuple[int, str]
) -> None:
    setattr(wire.engine, where, raised)
    response = wire.post(path, {field: "a"})
    assert error(response) == expected
    assert str(raised) in response.text


@pytest.mark.parametrize(("path", "field"), DIALECTS)
def test_too_long_only_with_truncation_off(wire: Wire, path: str, field: str) -> None:
    assert error(wire.post(path, {field: "x" * 17, "truncate": False})) == E03
    assert wire.post(path, {field: "x" * 16, "truncate": False}).status_code == 200
    assert wire.post(path, {field: "x" * 17}).status_code == 200


@pytest.mark.parametrize(("given_s", "told"), [(0, "1"), (7, "7"), (500, "30")])
@pytest.mark.parametrize("kind", [errors.Overloaded, errors.Unhealthy])
def test_retry_after(wire: Wire, kind: type[Any], given_s: int, told: str) -> None:
    wire.engine.refuse_with = kind(retry_after_s=given_s)
    assert wire.post("/embed", {"inputs": "a"}).headers["retry-after"] == told


def test_draining_refuses_with_retry_after(wire: Wire) -> None:
    wire.engine.drain()
    response = wire.post("/embed", {"inputs": "a"})
    assert error(response) == (503, "Unhealthy")
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize(("path", "field"), DIALECTS)
def test_a_bug_is_logged_and_not_shown(wire: Wire, caplog: pytest.LogCaptureFixture, path: str, field: str) -> None:
    wire.engine.fail_with = ZeroDivisionError("secret detail")
    with caplog.at_level(logging.ERROR):
        response = wire.post(path, {field: "a"})
    assert error(response) == (500, "Backend")
    assert "secret" not in response.text
    assert "ZeroDivisionError: secret detail" in caplog.text
    wire.engine.fail_with = None
    assert wire.post(path, {field: "a"}).status_code == 200


def test_a_future_cancelled_by_the_engine_is_unhealthy(wire: Wire) -> None:
    wire.engine.hold = True

    async def call() -> Any:
        waiting = asyncio.ensure_future(wire.send_async("POST", "/embed", json={"inputs": "a"}))
        while not wire.engine.held:
            await asyncio.sleep(0)
        wire.engine.held[0].cancel()
        return await waiting

    assert error(asyncio.run(call())) == (503, "Unhealthy")


@pytest.mark.parametrize("path", ["/nope", "/v1", "/embed/", "/v1/embeddings/", "/EMBED", "/health/"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_unknown_paths_need_no_key(engine: FakeEngine, method: str, path: str) -> None:
    response = Wire(engine, api_key="k").send(method, path)
    assert error(response) == (404, "NotFound")
    assert "error_type" in response.json()


@pytest.mark.parametrize("path", ["/v1/models/nobody", "/v1/models/", "/v1/models/org", "/v1/models/org/tiny/"])
def test_unknown_models_answer_as_openai(wire: Wire, path: str) -> None:
    response = wire.get(path)
    assert error(response) == (404, "NotFound")
    assert "code" in response.json()


@pytest.mark.parametrize(
    ("method", "path", "allow", "key"),
    [
        ("GET", "/embed", "POST", "error_type"),
        ("DELETE", "/v1/embeddings", "POST", "code"),
        ("OPTIONS", "/embeddings", "POST", "code"),
        ("POST", "/v1/models", "GET, HEAD", "code"),
        ("PUT", "/v1/models/org/tiny", "GET, HEAD", "code"),
        ("POST", "/info", "GET, HEAD", "error_type"),
        ("DELETE", "/", "GET, HEAD, POST", "error_type"),
    ],
)
def test_wrong_methods(wire: Wire, method: str, path: str, allow: str, key: str) -> None:
    response = wire.send(method, path)
    assert error(response) == (405, "MethodNotAllowed")
    assert response.headers["allow"] == allow
    assert key in response.json()


@pytest.mark.parametrize(
    ("name", "value"), [("truncation_direction", "private"), ("prompt_name", "private"), ("inputs", ["private", 5])]
)
def test_errors_never_echo_what_was_sent(wire: Wire, name: str, value: Any) -> None:
    assert "private" not in wire.post("/embed", {"inputs": "private", name: value}).text


def test_checks_come_in_the_order_of_the_contract(engine: FakeEngine) -> None:
    """Each body has the fault of its row and of all rows below: key, type, size, JSON, shape, engine."""
    wire = Wire(engine, api_key="k", payload_limit=20)
    keyed = {"authorization": "Bearer k"}
    long_bad, bad, shape, empty = b"{" * 30, b'{"inputs": 5', b'{"inputs": 5}', b'{"inputs": ""}'
    assert error(wire.post("/embed", long_bad, headers={})) == (401, "Unauthorized")
    assert error(wire.post("/embed", long_bad, headers=keyed)) == (415, "Validation")
    assert error(wire.post("/embed", long_bad, headers={**keyed, **JSON})) == (413, "Validation")
    assert error(wire.post("/embed", bad, headers={**keyed, **JSON})) == E01
    assert error(wire.post("/embed", shape, headers={**keyed, **JSON})) == E03
    assert error(wire.post("/embed", empty, headers={**keyed, **JSON})) == E08
