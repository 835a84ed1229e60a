"""What metadata asks of an rpc, as headers do over HTTP: priority, ids in the log, and the trace that it is part of."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grpc_tools", reason="grpcio-tools, of the test extra, is not installed")

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from openbei import errors
from openbei.config import ServerConfig
from openbei.server.answers import COMPUTE_HEADERS
from openbei.server.grpc_calls import Shared
from openbei.server.trace import Spans, spans_of
from openbei.wire import tei_pb2 as pb
from tests.engine.fakes import harness, words
from tests.server.fakes import FakeEngine
from tests.server.rpc import Client, failed, gathered, in_loop, served, until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
FOX = pb.EmbedRequest(inputs="fox")


# Priority


@pytest.mark.parametrize(
    ("metadata", "bulk"),
    [
        ((), False),
        ((("x-priority", "bulk"),), True),
        ((("x-priority", " Low "),), True),
        ((("x-baseten-priority", "3"),), True),
        ((("x-priority", "0"), ("x-baseten-priority", "3")), False),
        ((("x-priority", "whatever"),), False),
    ],
)
@in_loop
async def test_priority_is_that_of_http_s_headers(metadata: Any, bulk: bool) -> None:
    engine = FakeEngine()
    async with served(engine) as client:
        await client.Embed.Embed(FOX, metadata=metadata)
        await gathered(client.Embed.EmbedStream(iter([FOX] * 2), metadata=metadata))
    assert [request.bulk for request in engine.requests] == [bulk] * 3


@in_loop
async def test_bulk_waits_behind_what_somebody_waits_for(tmp_path: Path) -> None:
    """On the real engine, which computes one text at a time."""
    house = harness(tmp_path, lane_tokens=1)
    async with served(house.engine) as client:

        def ask(word: int, *metadata: tuple[str, str]) -> Any:
            message = pb.EmbedRequest(inputs=words(1, word), normalize=False)
            return asyncio.ensure_future(client.Embed.Embed(message, metadata=metadata))

        asked = [ask(1)]
        run = await asyncio.to_thread(house.next_run)
        for count, metadata in enumerate([[("x-priority", "bulk")], []], start=2):
            asked.append(ask(count, *metadata))
            await until(lambda count=count: len(house.core._queue) == count - 1)
        computed = []
        for _ in asked:
            run.finish()
            computed.append(int(run.batch.input_ids[0]))
            if len(computed) < len(asked):
                run = await asyncio.to_thread(house.next_run)
        assert computed == [1, 3, 2]
        assert [(await one).embeddings[0] for one in asked] == [1, 2, 3]
    house.close()


# Ids


@in_loop
async def test_ids_are_in_the_log_as_http_s_are(caplog: pytest.LogCaptureFixture) -> None:
    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "openbei.server"]

    ids = (("x-request-id", "r'1"), ("x-baseten-customer-request-id", "c1"))
    async with served(FakeEngine(), api_key="sesame") as client:
        with caplog.at_level(logging.DEBUG, "openbei.server"):
            await client.Embed.Embed(FOX, metadata=(*ids, ("authorization", "Bearer sesame")))
            await gathered(client.Embed.EmbedStream(iter([FOX]), metadata=(ids[1], ("authorization", "Bearer sesame"))))
            await failed(client.Embed.Embed(FOX, metadata=ids[:1]))
            await until(lambda: len(lines()) == 3)

    told = [line.partition(" ms")[2] for line in lines()]
    customer = " x-baseten-customer-request-id='c1'"
    assert told == [f""" x-request-id="r'1"{customer}""", customer, """ x-request-id="r'1\""""]
    assert [line.split()[:3] for line in lines()] == [
        ["gRPC", "Embed/Embed", "OK"],
        ["gRPC", "Embed/EmbedStream", "OK"],
        ["gRPC", "Embed/Embed", "UNAUTHENTICATED"],
    ]


# Traces


class Traced:
    """Keeps the spans of a server."""

    def __init__(self) -> None:
        self.memory = InMemorySpanExporter()
        self.spans = Spans(SimpleSpanProcessor(self.memory), "tests")

    async def ended(self, count: int) -> tuple[ReadableSpan, ...]:
        """The spans, once there are as many: a client may have its answer before its rpc is over."""
        await until(lambda: len(self.memory.get_finished_spans()) >= count)
        return self.memory.get_finished_spans()


def facts(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def parent(span: ReadableSpan) -> str | None:
    return span.parent and f"{span.parent.span_id:016x}"


@in_loop
async def test_an_rpc_is_a_span_below_the_client_s() -> None:
    traced = Traced()
    async with served(FakeEngine(), traced.spans) as client:
        metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("x-request-id", "r1"))
        call = client.Embed.Embed(FOX, metadata=metadata)
        await call
        told = dict(await call.initial_metadata())
        (span,) = await traced.ended(1)  # the fake's engine takes no times
    assert (span.name, span.kind) == ("tei.v1.Embed/Embed", SpanKind.SERVER)
    assert (f"{span.context.trace_id:032x}", parent(span)) == (TRACE, PARENT)
    assert span.resource.attributes["service.name"] == "tests"
    rpc = {"rpc.system.name": "grpc", "rpc.method": "tei.v1.Embed/Embed", "rpc.response.status_code": "OK"}
    assert facts(span) == rpc | {"x-request-id": "r1"} | {name: told[name] for name in COMPUTE_HEADERS}


@pytest.mark.parametrize("value", ["", "00-xyz-1-01", "00-" + "0" * 32 + f"-{PARENT}-01", "9" * 5000])
@in_loop
async def test_a_traceparent_that_cannot_be_read_is_ignored(value: str) -> None:
    traced = Traced()
    async with served(FakeEngine(), traced.spans) as client:
        await client.Embed.Embed(FOX, metadata=(("traceparent", value),))
        (span,) = await traced.ended(1)
    assert span.parent is None


@in_loop
async def test_a_stream_is_one_span_with_the_cost_of_its_messages() -> None:
    traced = Traced()
    async with served(FakeEngine(), traced.spans) as client:
        await gathered(client.Embed.EmbedStream(iter([FOX] * 3)))
        (span,) = await traced.ended(1)
    assert span.name == "tei.v1.Embed/EmbedStream"
    wanted = {"openbei.messages": "3", "x-compute-tokens": "9", "x-compute-characters": "9"}
    assert {name: facts(span)[name] for name in wanted} == wanted


@in_loop
async def test_a_rerank_stream_has_one_answer_and_its_cost() -> None:
    traced = Traced()
    messages = [pb.RerankStreamRequest(query="a", text="b")] * 2
    async with served(FakeEngine("reranker"), traced.spans) as client:
        await client.Rerank.RerankStream(iter(messages))
        (span,) = await traced.ended(1)
    assert (span.name, facts(span)["x-compute-tokens"]) == ("tei.v1.Rerank/RerankStream", "6")


@in_loop
async def test_the_steps_are_those_of_the_engine(tmp_path: Path) -> None:
    """The real engine by its fake clock: 3 s in the queue, then a batch of 2 s."""
    house, traced = harness(tmp_path, lane_tokens=1), Traced()
    async with served(house.engine, traced.spans) as client:
        first = asyncio.ensure_future(client.Embed.Embed(pb.EmbedRequest(inputs=words(1))))
        run = await asyncio.to_thread(house.next_run)
        second = asyncio.ensure_future(client.Embed.Embed(pb.EmbedRequest(inputs=words(1, 2))))
        await until(lambda: len(house.core._queue) == 1)
        house.clock.now_s += 3
        run.finish()
        run = await asyncio.to_thread(house.next_run)
        house.clock.now_s += 2
        run.finish()
        await asyncio.gather(first, second)
        spans = await traced.ended(8)
    house.close()
    requests = [span for span in spans if span.kind == SpanKind.SERVER]
    steps = [span for span in spans if parent(span) == f"{requests[1].context.span_id:016x}"]
    assert [(step.name, ((step.end_time or 0) - (step.start_time or 0)) / 1e9) for step in steps] == [
        ("tokenize", 0.0),
        ("queue", 3.0),
        ("inference", 2.0),
    ]


@pytest.mark.parametrize(
    ("raised", "status", "bad"),
    [
        (errors.Overloaded(), "RESOURCE_EXHAUSTED", False),
        (errors.InvalidInput("no"), "INVALID_ARGUMENT", False),
        (errors.Unhealthy(), "UNAVAILABLE", True),
        (errors.DeadlineExceeded("late"), "DEADLINE_EXCEEDED", True),
        (ZeroDivisionError(), "INTERNAL", True),
    ],
)
@in_loop
async def test_errors_are_told(raised: Exception, status: str, bad: bool) -> None:
    engine, traced = FakeEngine(), Traced()
    engine.refuse_with = raised
    async with served(engine, traced.spans) as client:
        await failed(client.Embed.Embed(FOX))
        await failed(client.Embed.EmbedStream(iter([FOX])))
        for span in await traced.ended(2):
            assert facts(span)["rpc.response.status_code"] == facts(span)["error.type"] == status
            assert (span.status.status_code == StatusCode.ERROR) == bad


@in_loop
async def test_a_client_that_leaves_is_told() -> None:
    engine, traced = FakeEngine(), Traced()
    engine.hold = True
    async with served(engine, traced.spans) as client:
        call = client.Embed.Embed(FOX)
        await until(lambda: engine.held)
        call.cancel()
        (span,) = await traced.ended(1)
    assert facts(span)["rpc.response.status_code"] == "CANCELLED"
    assert span.status.status_code == StatusCode.UNSET


@in_loop
async def test_who_is_refused_is_traced_and_who_only_asks_is_not() -> None:
    traced = Traced()

    async def ask(client: Client) -> None:
        await failed(client.Embed.Embed(FOX))
        await client.Info.Info(pb.InfoRequest(), metadata=(("authorization", "Bearer sesame"),))
        await client.Tokenize.Tokenize(pb.EncodeRequest(inputs="fox"), metadata=(("authorization", "Bearer sesame"),))

    async with served(FakeEngine(), traced.spans, api_key="sesame") as client:
        await ask(client)
        spans = await traced.ended(2)
    assert [(span.name, facts(span)["rpc.response.status_code"]) for span in spans] == [
        ("tei.v1.Embed/Embed", "UNAUTHENTICATED"),
        ("tei.v1.Tokenize/Tokenize", "OK"),
    ]


def test_http_and_grpc_share_what_sends_their_spans() -> None:
    config = ServerConfig(otlp_endpoint="http://127.0.0.1:1")
    shared = [Shared(FakeEngine(), one) for one in (config, ServerConfig())]  # type: ignore[arg-type]
    assert shared[0].spans is spans_of(config) is not None
    assert shared[1].spans is None
    for one in shared:
        one.close()
