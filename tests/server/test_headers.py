"""What headers ask and tell: keys, ids, deadlines, browsers, and the cost of an answer."""

import time

import pytest

from tests.server.fakes import FakeEngine
from tests.server.wire import JSON, Wire, error

KEYED = [
    ("POST", "/embed"),
    ("POST", "/v1/embeddings"),
    ("POST", "/embeddings"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/org/tiny"),
    ("GET", "/info"),
]
OPEN = ["/health", "/ping", "/", "/metrics", "/docs", "/openapi.json", "/api-doc/openapi.json"]


@pytest.mark.parametrize(
    "value", [None, "", "k", "Bearer", "Bearer ", "Bearer K", "Bearer kk", "Basic k", "Bearer \u00e9"]
)
@pytest.mark.parametrize(("method", "path"), KEYED)
def test_wrong_key(engine: FakeEngine, method: str, path: str, value: str | None) -> None:
    headers = {} if value is None else {b"authorization": value.encode("latin-1")}
    response = Wire(engine, api_key="k").send(method, path, headers=headers)
    assert error(response) == (401, "Unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"
    assert engine.requests == []


@pytest.mark.parametrize("value", ["Bearer kéy", "bearer kéy", "BEARER  kéy", "Api-Key kéy", "api-key kéy"])
@pytest.mark.parametrize(("method", "path"), KEYED)
def test_right_key(engine: FakeEngine, method: str, path: str, value: str) -> None:
    body = b'{"input": "a", "inputs": "a"}'
    headers = {**JSON, "authorization": value.encode()}
    assert Wire(engine, api_key="kéy").send(method, path, content=body, headers=headers).status_code == 200


@pytest.mark.parametrize("path", OPEN)
def test_paths_that_ask_no_key(engine: FakeEngine, path: str) -> None:
    assert Wire(engine, api_key="k").get(path).status_code == 200


def test_without_a_key_any_authorization_is_ignored(wire: Wire) -> None:
    assert wire.post("/embed", {"inputs": "a"}, headers={"authorization": "Bearer hf_token"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/embed"), ("GET", "/health"), ("GET", "/nope"), ("PUT", "/embed")]
)
def test_ids_are_echoed_on_every_answer(wire: Wire, method: str, path: str) -> None:
    ids = {"x-request-id": "trace/1", "x-baseten-customer-request-id": "perfclient-0-0"}
    headers = wire.send(method, path, headers=ids).headers
    assert {name: headers[name] for name in ids} == ids


def test_an_id_is_made_where_none_was_sent(wire: Wire) -> None:
    first, second = (wire.get("/health").headers for _ in range(2))
    assert first["x-request-id"] != second["x-request-id"]
    assert "x-baseten-customer-request-id" not in first


@pytest.mark.parametrize(("path", "field"), [("/embed", "inputs"), ("/v1/embeddings", "input")])
def test_compute_headers(wire: Wire, path: str, field: str) -> None:
    headers = wire.post(path, {field: ["né", [5, 6, 7]]}).headers
    cost = {name: value for name, value in headers.items() if name.startswith("x-") and name != "x-request-id"}
    total_ms = cost.pop("x-total-time")
    assert cost.pop("x-compute-time") == total_ms
    assert 0 <= int(total_ms) < 60_000
    assert cost == {
        "x-compute-type": "cpu+optimized",
        "x-compute-characters": "5",
        "x-compute-tokens": "6",
        "x-tokenization-time": "1",
        "x-queue-time": "3",
        "x-inference-time": "5",
    }


def test_errors_have_no_compute_headers(wire: Wire) -> None:
    assert "x-compute-tokens" not in wire.post("/embed", {"inputs": ""}).headers


# In request-deadline-ms, HOUR stands for an hour from now and -HOUR for an hour ago.
DEADLINES = [
    ({}, None),
    ({"request-timeout-ms": "2000"}, 2.0),
    ({"request-timeout-ms": "0"}, 0.0),
    ({"request-deadline-ms": "HOUR"}, 3600),
    ({"request-deadline-ms": "-HOUR"}, -3600),
    ({"request-timeout-ms": "2000", "request-deadline-ms": "HOUR"}, 2.0),
    ({"request-timeout-ms": "7200000", "request-deadline-ms": "HOUR"}, 3600),
    ({"request-timeout-ms": "2000", "request-deadline-ms": "-HOUR"}, 2.0),
    ({"request-timeout-ms": "soon", "request-deadline-ms": ""}, None),
    ({"request-timeout-ms": "-5"}, None),
    ({"request-timeout-ms": "nan"}, None),
    ({"request-timeout-ms": "9" * 5000}, None),
]


@pytest.mark.parametrize(("headers", "left_s"), DEADLINES, ids=lambda value: str(value)[:40])
def test_deadlines(wire: Wire, headers: dict[str, str], left_s: float | None) -> None:
    before_s, now_ms = time.monotonic(), time.time() * 1000
    epochs = {"HOUR": f"{now_ms + 3_600_000:.0f}", "-HOUR": f"{now_ms - 3_600_000:.0f}"}
    headers = {name: epochs.get(value, value) for name, value in headers.items()}
    assert wire.post("/embed", {"inputs": "a"}, headers=headers).status_code == 200
    after_s, deadline_s = time.monotonic(), wire.engine.requests[0].deadline_s
    if left_s is None:
        assert deadline_s is None
    else:
        assert deadline_s is not None
        slack_s = 60 if abs(left_s) == 3600 else 1e-6  # the clock of the epoch may be set meanwhile
        assert before_s + left_s - slack_s <= deadline_s <= after_s + left_s + slack_s


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings", "/nowhere"])
def test_browsers_may_ask_first(engine: FakeEngine, path: str) -> None:
    ask = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, content-type"}
    headers = Wire(engine, api_key="k").send("OPTIONS", path, headers={"origin": "https://a.example", **ask}).headers
    assert headers["access-control-allow-origin"] == "*"
    assert {"GET", "POST"} <= set(headers["access-control-allow-methods"].split(", "))
    assert {"authorization", "content-type"} <= set(headers["access-control-allow-headers"].lower().split(", "))


@pytest.mark.parametrize("inputs", ["a", ""])
def test_browsers_may_read_the_headers(wire: Wire, inputs: str) -> None:
    headers = wire.post("/embed", {"inputs": inputs}, headers={"origin": "https://a.example"}).headers
    exposed = set(headers["access-control-expose-headers"].split(", "))
    assert {"x-compute-tokens", "x-request-id", "retry-after"} <= exposed
    assert headers["access-control-allow-origin"] == "*"


def test_only_the_named_origins(engine: FakeEngine) -> None:
    wire = Wire(engine, cors_allow_origin=("https://a.example",))
    good = wire.get("/health", headers={"origin": "https://a.example"}).headers
    other = wire.get("/health", headers={"origin": "https://b.example"}).headers
    assert good["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-origin" not in other


def test_a_browser_from_elsewhere_is_refused_in_json(engine: FakeEngine) -> None:
    wire = Wire(engine, cors_allow_origin=("https://a.example",))
    ask = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    response = wire.send("OPTIONS", "/embed", headers={"origin": "https://b.example", **ask})
    assert error(response) == (400, "Validation")
    assert "origin" in response.json()["error"]
    assert "access-control-allow-origin" not in response.headers
    assert wire.send("OPTIONS", "/embed", headers={"origin": "https://a.example", **ask}).status_code == 200


def test_the_log_names_a_request_by_its_ids(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    ids = {"x-request-id": "trace/1", "x-baseten-customer-request-id": "perfclient-0-0"}
    with caplog.at_level("INFO", "openbei.server"):
        wire.post("/embed", {"inputs": "private"}, headers=ids)
        assert caplog.text == ""
        wire.post("/embed", {"inputs": "", "model": "private"}, headers=ids)
    assert "'/embed' 400" in caplog.text
    assert "trace/1" in caplog.text
    assert "perfclient-0-0" in caplog.text
    assert "private" not in caplog.text
