"""Every route under every condition: the status, type and body that the one table of errors gives it."""

import json

import pytest

from openbei import errors
from tests.server.conditions import CONDITIONS, ROWS, ask, served
from tests.server.fakes import FakeEngine
from tests.server.wire import Wire, error

OPENAI = {"/v1/embeddings", "/embeddings"}
COHERE = {"/v1/rerank", "/v2/rerank", "/v1/embed", "/v2/embed"}


@pytest.mark.parametrize("name", CONDITIONS)
@pytest.mark.parametrize("path", ROWS)
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
    assert posts == set(ROWS)


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
