"""Traces: a span for each request or rpc that computes, with the steps of the engine below it, sent out by OTLP.

Owns the spans and where they go; never touches requests or answers. OpenTelemetry is imported only where an endpoint
is set. What samples, and what else its libraries read from OTEL_ variables, is theirs.
"""

import functools
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openbei import __version__
from openbei.config import ServerConfig
from openbei.engine.request import Timings
from openbei.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

STEPS = "openbei.steps"
SEND_S = 2  # also what the end of the process waits for a collector that is gone
PARENT = ("traceparent", "tracestate")
PROTOCOLS = ("grpc", "http/protobuf")
EXPORTERS = {
    "grpc": "opentelemetry.exporter.otlp.proto.grpc",
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http",
}
Step = tuple[str, float, float]  # a name, and when it began and ended on the clock of time.monotonic()


def check(config: ServerConfig) -> None:
    """Raise ConfigError where traces are asked for and cannot be sent."""
    if config.otlp_endpoint is None:
        return
    if urlsplit(config.otlp_endpoint).scheme not in {"http", "https"}:
        raise ConfigError(f"otlp_endpoint must be a URL such as http://localhost:4317, got {config.otlp_endpoint}")
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None or not find_spec_of(protocol()):
        raise ConfigError(f"otlp_endpoint with {protocol()} needs more packages: pip install 'openbei[otlp]'")


def find_spec_of(name: str) -> bool:
    """True if the exporter of a protocol is installed."""
    try:
        return find_spec(EXPORTERS[name]) is not None
    except ModuleNotFoundError:
        return False


def protocol() -> str:
    """How spans are sent, by OpenTelemetry's own variables; gRPC, as TEI does, if they are not set."""
    name = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if name is not None and name not in PROTOCOLS:
        raise ConfigError(f"OTEL_EXPORTER_OTLP_PROTOCOL must be one of {', '.join(PROTOCOLS)}, got {name}")
    return name or "grpc"


def exporter(endpoint: str) -> "SpanExporter":
    """A URL -> what sends spans there. A path of its own is left out where it is OTLP's, /v1/traces."""
    if protocol() == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(endpoint=endpoint, timeout=SEND_S)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    bare = urlsplit(endpoint).path in {"", "/"}
    return HttpExporter(f"{endpoint.rstrip('/')}/v1/traces" if bare else endpoint, timeout=SEND_S)


class Spans:
    """Makes the spans of requests, each below the one that its client names, and gives them to a processor."""

    def __init__(self, processor: "SpanProcessor", service_name: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": service_name, "service.version": __version__})
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(processor)
        self._tracer, self._propagator = provider.get_tracer("openbei", __version__), TraceContextTextMapPropagator()

    def begin(self, name: str, headers: Mapping[str, str], facts: Mapping[str, str]) -> "RequestSpan":
        """A request, by its headers or metadata, begins now."""
        from opentelemetry.trace import SpanKind

        parent = self._propagator.extract({key: headers[key] for key in PARENT if key in headers})
        return RequestSpan(self._tracer, self._tracer.start_span(name, parent, SpanKind.SERVER, facts))


class RequestSpan:
    """The span of one request. steps: what becomes spans below it when it ends; counts: what becomes its attributes."""

    def __init__(self, tracer: "Tracer", span: "Span") -> None:
        self._tracer, self._span = tracer, span
        self.steps: list[Step] = []
        self.counts: Counter[str] = Counter()

    def tell(self, facts: Mapping[str, str | int]) -> None:
        """Add attributes."""
        self._span.set_attributes(facts)

    def rename(self, name: str) -> None:
        """Take another name than it began with."""
        self._span.update_name(name)

    def fail(self) -> None:
        """Be the span of an error that is the server's."""
        from opentelemetry.trace import StatusCode

        self._span.set_status(StatusCode.ERROR)

    def end(self) -> None:
        """The request ends now."""
        from opentelemetry.trace import set_span_in_context

        epoch_ns = time.time_ns() - time.monotonic_ns()
        for name, begin_s, end_s in self.steps:
            below = set_span_in_context(self._span)
            step = self._tracer.start_span(name, below, start_time=epoch_ns + int(begin_s * 1e9))
            step.end(epoch_ns + int(end_s * 1e9))
        self.tell({name: str(count) for name, count in self.counts.items()})
        self._span.end()


def spans_of(config: ServerConfig) -> Spans | None:
    """What makes the spans of a server, None if no endpoint is set; HTTP and gRPC share it."""
    return None if config.otlp_endpoint is None else _sent(config.otlp_endpoint, config.otlp_service_name)


@functools.cache
def _sent(endpoint: str, service_name: str) -> Spans:
    """Spans that are sent to a URL by a thread; what is left goes when Python ends."""
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return Spans(BatchSpanProcessor(exporter(endpoint)), service_name)


# HTTP


def with_traces(app: ASGIApp, spans: Spans | None) -> ASGIApp:
    """The app, with a span for each POST; as it is, if there are none."""
    return app if spans is None else traced(app, spans)


def traced(app: ASGIApp, spans: Spans) -> ASGIApp:
    """The app, with a span for each POST, below the one that its traceparent names."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await app(scope, receive, send)
            return
        path = scope["path"]
        facts = {"http.request.method": "POST", "url.path": path, "url.scheme": scope["scheme"]}
        span = spans.begin("POST", Headers(scope=scope), facts)
        scope[STEPS] = span.steps

        async def send_with_span(message: Message) -> None:
            if message["type"] == "http.response.start":
                told, status = Headers(raw=message["headers"]), message["status"]
                span.tell({"http.response.status_code": status} | own(told))
                if status != 404:
                    span.rename(f"POST {path}")
                if status >= 500:
                    span.fail()
            await send(message)

        try:
            await app(scope, receive, send_with_span)
        finally:
            span.end()

    return wrapped


def own(headers: Mapping[str, str]) -> dict[str, str]:
    """Of an answer's headers those that are ours: what it cost, and whose it is."""
    return {name: headers[name] for name in headers if name.startswith("x-")}


def note(scope: Scope, timings: Timings) -> None:
    """Where the time of an answer went -> the steps below its request's span, if there is one."""
    if STEPS in scope:
        scope[STEPS].extend(steps_of(timings))


def steps_of(timings: Timings) -> Sequence[Step]:
    """Tokenise, then queue until the first batch, then each batch that held an input of the request."""
    batches = sorted(set(timings.batches))
    if not batches:
        return []
    return [
        ("tokenize", timings.submitted_s, timings.tokenized_s),
        ("queue", timings.tokenized_s, batches[0][0]),
        *(("inference", begin_s, end_s) for begin_s, end_s in batches),
    ]
