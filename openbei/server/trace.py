"""Traces: a span for each request that computes, with the steps of the engine below it, sent out by OTLP.

Owns the spans and where they go; never touches requests or answers. OpenTelemetry is imported only where an endpoint
is set. What samples, and what else its libraries read from OTEL_ variables, is theirs.
"""

import os
import time
from collections.abc import Sequence
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


def with_traces(app: ASGIApp, config: ServerConfig) -> ASGIApp:
    """The app, with a span for each POST if an endpoint is set, else as it is. What waits is sent when Python ends."""
    if config.otlp_endpoint is None:
        return app
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return traced(app, BatchSpanProcessor(exporter(config.otlp_endpoint)), config.otlp_service_name)


def traced(app: ASGIApp, processor: "SpanProcessor", service_name: str) -> ASGIApp:
    """The app, with a span for each POST, below the one that its traceparent names."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    provider = TracerProvider(resource=Resource.create({"service.name": service_name, "service.version": __version__}))
    provider.add_span_processor(processor)
    tracer, propagator = provider.get_tracer("openbei", __version__), TraceContextTextMapPropagator()

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope["path"]
        parent = propagator.extract({name: headers[name] for name in PARENT if name in headers})
        facts = {"http.request.method": "POST", "url.path": path, "url.scheme": scope["scheme"]}
        span = tracer.start_span("POST", parent, SpanKind.SERVER, facts)
        steps: list[Step] = []
        scope[STEPS] = steps

        async def send_with_span(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = Headers(raw=message["headers"])
                span.set_attribute("http.response.status_code", message["status"])
                span.set_attributes({name: told[name] for name in told if name.startswith("x-")})
                if message["status"] != 404:
                    span.update_name(f"POST {path}")
                if message["status"] >= 500:
                    span.set_status(StatusCode.ERROR)
            await send(message)

        try:
            await app(scope, receive, send_with_span)
        finally:
            epoch_ns = time.time_ns() - time.monotonic_ns()
            for name, begin_s, end_s in steps:
                step = tracer.start_span(name, set_span_in_context(span), start_time=epoch_ns + int(begin_s * 1e9))
                step.end(epoch_ns + int(end_s * 1e9))
            span.end()

    return wrapped


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
