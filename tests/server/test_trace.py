"""Traces: spans with the times that were taken, below the client's own; sent by OTLP, or not thought of at all."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from openbei import errors
from openbei.config import ServerConfig
from openbei.engine.request import Request, Timings
from openbei.errors import ConfigError
from openbei.server.app import create_app
from openbei.server.trace import STEPS, Spans, check, exporter, spans_of, steps_of, traced, with_traces
from tests.engine.conftest import Make, making
from tests.engine.fakes import WAIT_S, here, words
from tests.server.fakes import FakeEngine
from tests.server.wire import Wire

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT_HEADER = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


class TracedWire(Wire):
    """A wire whose spans are kept."""

    def __init__(self, engine: FakeEngine) -> None:
        super().__init__(engine)
        self.memory = InMemorySpanExporter()
        self.app = traced(self.app, Spans(SimpleSpanProcessor(self.memory), "tests"))

    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.memory.get_finished_spans()}


@pytest.fixture
def wire(engine: FakeEngine) -> TracedWire:
    return TracedWire(engine)


def test_a_request_is_a_span_below_the_client_s(wire: TracedWire) -> None:
    wire.post("/embed", {"inputs": ["a", "b"]}, headers={**PARENT_HEADER, "x-request-id": "r1"})
    (span,) = wire.memory.get_finished_spans()  # the fake's engine takes no times
    assert (span.name, span.kind) == ("POST /embed", SpanKind.SERVER)
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.attributes is not None
    wanted = {"http.response.status_code": 200, "x-request-id": "r1", "x-compute-tokens": "6", "url.path": "/embed"}
    assert {name: span.attributes[name] for name in wanted} == wanted
    assert span.resource.attributes["service.name"] == "tests"


@pytest.mark.parametrize("value", ["", "00-xyz-1-01", "00-" + "0" * 32 + f"-{PARENT}-01", "\u00ff", "9" * 5000])
def test_a_traceparent_that_cannot_be_read_is_ignored(wire: TracedWire, value: str) -> None:
    response = wire.post("/embed", {"inputs": "a"}, headers={"traceparent": value.encode("latin-1")})
    assert response.status_code == 200
    (span,) = wire.memory.get_finished_spans()
    assert span.parent is None


def test_a_client_that_does_not_sample_is_left_alone(wire: TracedWire) -> None:
    wire.post("/embed", {"inputs": "a"}, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert wire.memory.get_finished_spans() == ()


@pytest.mark.parametrize(
    ("path", "raised", "name", "status", "bad"),
    [
        ("/embed", None, "POST /embed", 200, False),
        ("/embed", errors.Overloaded(), "POST /embed", 429, False),
        ("/embed", errors.Unhealthy(), "POST /embed", 503, True),
        ("/embed", ZeroDivisionError(), "POST /embed", 500, True),
        ("/nowhere", None, "POST", 404, False),
    ],
)
def test_errors_are_told(
    wire: TracedWire, path: str, raised: Exception | None, name: str, status: int, bad: bool
) -> None:
    wire.engine.refuse_with = raised
    wire.post(path, {"inputs": "a"})
    (span,) = wire.memory.get_finished_spans()
    assert span.name == name
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == status
    assert (span.status.status_code == StatusCode.ERROR) == bad


def test_health_checks_are_not_traced(wire: TracedWire) -> None:
    for path in ("/health", "/metrics", "/info"):
        wire.get(path)
    assert wire.memory.get_finished_spans() == ()


@pytest.fixture
def make_here(tmp_path: Path) -> Iterator[Make]:
    yield from making(tmp_path, here)


def test_the_steps_are_those_of_the_engine(make_here: Make) -> None:
    """The real engine by its fake clock: 3 s in the queue, then two batches of 2 and 1 s."""
    house = make_here(lane_tokens=5)
    house.engine.submit(Request(inputs=[words(1)]))
    blocker = house.next_run()
    memory = InMemorySpanExporter()
    app = traced(create_app(house.engine, ServerConfig()), Spans(SimpleSpanProcessor(memory), "tests"))

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://bei") as client:
            asked = asyncio.ensure_future(client.post("/embed", json={"inputs": [words(5), words(4)]}))
            return await asyncio.gather(asked, asyncio.to_thread(compute))

    def compute() -> None:
        house.wait_for_queue(2)
        house.clock.now_s += 3
        blocker.finish()
        for seconds in (2, 1):
            run = house.next_run()
            house.clock.now_s += seconds
            run.finish()

    response, _ = asyncio.run(asyncio.wait_for(ask(), WAIT_S))
    assert response.status_code == 200
    *steps, request = memory.get_finished_spans()
    assert request.name == "POST /embed"
    assert [(step.name, ((step.end_time or 0) - (step.start_time or 0)) / 1e9) for step in steps] == [
        ("tokenize", 0.0),
        ("queue", 3.0),
        ("inference", 2.0),
        ("inference", 1.0),
    ]


def test_inputs_that_shared_a_batch_share_a_step() -> None:
    times = Timings(1, 0, 0, 0, submitted_s=1, tokenized_s=2, batches=((4, 5), (3, 6), (4, 5)))
    assert [name for name, *_ in steps_of(times)] == ["tokenize", "queue", "inference", "inference"]
    assert steps_of(times)[1:3] == [("queue", 2, 3), ("inference", 3, 6)]


def test_steps_become_spans_inside_their_request_s() -> None:
    memory = InMemorySpanExporter()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        now_s = time.monotonic()
        scope[STEPS] += [("queue", now_s - 2, now_s - 1), ("inference", now_s - 1, now_s)]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    wire_app = traced(app, Spans(SimpleSpanProcessor(memory), "tests"))

    async def ask() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(wire_app), base_url="http://bei") as client:
            await client.post("/embed")

    asyncio.run(ask())
    queue, inference, request = memory.get_finished_spans()
    assert [span.name for span in (queue, inference, request)] == ["queue", "inference", "POST /embed"]
    for step in (queue, inference):
        assert step.parent is not None
        assert step.parent.span_id == request.context.span_id
        assert step.start_time is not None
        assert step.end_time is not None
        assert step.end_time - step.start_time == pytest.approx(1e9, abs=1000)
    assert queue.end_time == pytest.approx(inference.start_time, abs=1000)
    assert inference.end_time == pytest.approx(request.end_time, abs=60e9)


# On the wire


@pytest.fixture
def collector() -> Iterator[tuple[str, "Queue[tuple[str, bytes]]"]]:
    """An OTLP/HTTP receiver -> its URL, and what it was sent."""
    received: Queue[tuple[str, bytes]] = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.put((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["", "/", "/v1/traces"])
def test_spans_arrive_by_http(
    engine: FakeEngine, collector: tuple[str, "Queue[tuple[str, bytes]]"], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    url, received = collector
    check(ServerConfig(otlp_endpoint=url + path))
    processor = BatchSpanProcessor(exporter(url + path))
    wire = Wire(engine)
    wire.app = traced(wire.app, Spans(processor, "bei-1"))
    wire.post("/embed", {"inputs": "a"}, headers=PARENT_HEADER)
    processor.shutdown()
    asked, body = received.get(timeout=WAIT_S)
    assert asked == "/v1/traces"
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    (span,) = resource.scope_spans[0].spans
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("POST /embed", TRACE, PARENT)
    assert {"bei-1"} == {one.value.string_value for one in resource.resource.attributes if one.key == "service.name"}


def test_by_grpc_as_tei_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_PROTOCOL", raising=False)
    sender = exporter("http://127.0.0.1:1")
    assert "proto.grpc" in type(sender).__module__
    sender.shutdown()


@pytest.mark.parametrize(
    ("endpoint", "protocol", "message"),
    [
        ("localhost:4317", "", "must be a URL such as http://localhost:4317, got localhost:4317"),
        ("http://localhost:4317", "http/json", "must be one of grpc, http/protobuf, got http/json"),
    ],
)
def test_what_cannot_be_sent_is_refused_at_start(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, protocol: str, message: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    with pytest.raises(ConfigError, match=message):
        check(ServerConfig(otlp_endpoint=endpoint))


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openbei.server.trace.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'openbei\[otlp\]'"):
        check(ServerConfig(otlp_endpoint="http://localhost:4317"))


def test_nothing_is_imported_or_wrapped_when_off() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    assert with_traces(app, spans_of(ServerConfig())) is app
    code = (
        "import sys; from openbei.config import ServerConfig; from openbei.server import app, serve;"
        "from tests.server.fakes import FakeEngine; app.create_app(FakeEngine(), ServerConfig());"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'grpc'))])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
