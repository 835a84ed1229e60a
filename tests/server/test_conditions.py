"""Every route under every condition: the status, type and body that the one table of errors gives it."""

import json
from typing import Any

import httpx
import pytest

from openbei import errors
from tests.server.conditions import ADMIN, CONDITIONS, ROWS, ask, served
from tests.server.fakes import FakeEngine
from tests.server.wire import Wire, error

OPENAI = {"/v1/embeddings", "/embeddings"}
COHERE = {"/v1/rerank", "/v2/rerank", "/v1/embed", "/v2/embed", "/v1/multi-vector"}


@pytest.mark.parametrize("name", CONDITIONS)
@pytest.mark.parametrize("path", [*ROWS, *ADMIN])
def test_every_route_under_every_condition(path: str, name: str) -> None:
    response = ask(path, name)
    if response is None:
        return
    row = errors.ANSWERS[CONDITIONS[name].error]
    is_cohere = path in COHERE and name != "E06"  # a path that is not there has no dialect
    keys = {"message", "code", "type"} if path in OPENAI and name != "E06" else {"error", "error_type"}
    assert set(response.json()) == ({"id", "message", "detail"} if is_cohere else keys)
    assert error(response) == (row.status, None if is_cohere else row.type)
    assert ("retry-after" in response.headers) == (name in {"E17", "E18"})
    assert ("www-authenticate" in response.headers) == (name == "E05")
    assert ("allow" in response.headers) == (name == "E07")


def test_every_error_has_a_condition_and_every_route_a_row() -> None:
    assert {condition.error for condition in CONDITIONS.values()} == set(errors.ANSWERS)
    posts = {path for path, methods in paths().items() if "post" in methods}
    assert posts == {*ROWS, *ADMIN}


@pytest.mark.parametrize("path", ROWS)
def test_what_is_not_known_is_ignored_and_null_is_the_default(path: str) -> None:
    """Whatever a route describes beside what it requires may be null; any model may be named."""
    row = ROWS[path]
    wire = served(row.kind)
    described = wire.get("/openapi.json").json()["paths"][path]["post"].get("requestBody")
    optional: set[str] = set()
    if described is not None:
        name = described["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        schema = wire.get("/openapi.json").json()["components"]["schemas"][name]
        optional = set(schema["properties"]) - set(row.body)
    want = stable(wire.post(path, row.body))
    extra = {"unknown": {"a": [1]}, "user_data": "x", "model": "any/name"}
    assert stable(wire.post(path, {**extra, **dict.fromkeys(optional - {"model"}), **row.body})) == want
    assert stable(wire.post(path, {**dict.fromkeys(optional), **row.body})) == want


def stable(response: httpx.Response) -> Any:
    """An answer, less the id that is made for it."""
    assert response.status_code == 200, response.text
    body = response.json()
    return {name: value for name, value in body.items() if name != "id"} if isinstance(body, dict) else body


MEGABYTE = b"x" * 1_000_000
ODD = [  # values of a field, and how they may be answered
    (b"[" * 100_000, {400}),
    (b"[" * 100_000 + b"]" * 100_000, {400, 422}),
    (b"1" + b"0" * 5000, {422}),
    (b"-18446744073709551617", {422}),
    (b"1e999", {400, 422}),
    (b'"\\ud800"', {400}),
    (b'"\\udfff\\ud800"', {400}),
    (b'"' + MEGABYTE + b'"', {200, 422}),
    (b'["' + MEGABYTE + b'"]', {200, 422}),
    (b'{"a": {"b": {}}}', {422}),
]


@pytest.mark.parametrize(("value", "expected"), ODD, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("path", ROWS)
def test_odd_values_never_bring_a_route_down(path: str, value: bytes, expected: set[int]) -> None:
    """In place of every field that a right body has."""
    row = ROWS[path]
    for field in row.body:
        pairs = {json.dumps(name).encode(): json.dumps(one).encode() for name, one in row.body.items()}
        pairs[json.dumps(field).encode()] = value
        body = b"{" + b", ".join(name + b": " + one for name, one in pairs.items()) + b"}"
        response = served(row.kind).post(path, body)
        assert response.status_code in expected, response.text[:200]


def paths() -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = Wire(FakeEngine()).get("/openapi.json").json()["paths"]
    return found


@pytest.mark.parametrize("path", ROWS)
def test_the_right_body_is_answered(path: str) -> None:
    row = ROWS[path]
    assert Wire(FakeEngine(row.kind)).post(path, row.body).status_code == 200
