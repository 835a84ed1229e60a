"""Several models on one gRPC server: which of them an rpc means, and what becomes of one that leaves."""

import asyncio
import gc
import logging
import weakref
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("grpc_tools", reason="grpcio-tools, of the test extra, is not installed")

import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from openbei.engine.models import Models
from openbei.engine.request import Kind
from openbei.wire import tei_pb2 as pb
from tests.server.fakes import FakeEngine, vector
from tests.server.rpc import failed, gathered, in_loop, served, until

FOX = pb.EmbedRequest(inputs="fox", normalize=False)


def engine(name: str, kind: Kind = "embedding", factor: float = 1) -> Any:
    """An engine of that name; its rows are `factor` times those of any other."""
    made = FakeEngine(kind)
    made.info = replace(made.info, served_model_name=name, model_id=f"org/{name}")
    made.row = lambda one, _: vector(one)[: len(made.info.labels) or None] * np.float32(factor)  # type: ignore[method-assign]
    return made


def two() -> Models:
    return Models(engine("one"), engine("two", factor=2))


def named(name: str) -> tuple[tuple[str, str], ...]:
    return (("x-model", name),)


@in_loop
async def test_an_rpc_goes_to_the_model_that_it_names() -> None:
    async with served(two()) as client:
        for metadata, factor in (((), 1), (named("one"), 1), (named("two"), 2)):
            wanted = (vector("fox") * np.float32(factor)).tolist()
            assert list((await client.Embed.Embed(FOX, metadata=metadata)).embeddings) == wanted
            (streamed,) = await gathered(client.Embed.EmbedStream(iter([FOX]), metadata=metadata))
            assert list(streamed.embeddings) == wanted
        assert (await client.Info.Info(pb.InfoRequest(), metadata=named("two"))).model_id == "org/two"
        refused = ("NOT_FOUND", "there is no model 'three' here, only one, two")
        assert await failed(client.Embed.Embed(FOX, metadata=named("three"))) == refused
        assert await failed(client.Embed.EmbedStream(iter([FOX]), metadata=named("three"))) == refused
        asked = client.Tokenize.Tokenize(pb.EncodeRequest(inputs="a"), metadata=named("three"))
        assert await failed(asked) == refused


@in_loop
async def test_without_a_name_the_task_chooses() -> None:
    models = Models(engine("vectors"), engine("labels", "classifier"), engine("ranks", "reranker"))
    async with served(models) as client:
        assert len((await client.Embed.Embed(FOX)).embeddings) == 8
        assert len((await client.Predict.Predict(pb.PredictRequest(inputs="a"))).predictions) == 3
        assert len((await client.Rerank.Rerank(pb.RerankRequest(query="a", texts=["b"]))).ranks) == 1
        streamed = await client.Rerank.RerankStream(iter([pb.RerankStreamRequest(query="a", text="b")]))
        assert len(streamed.ranks) == 1
        assert (await client.Info.Info(pb.InfoRequest())).model_id == "org/vectors"
        wrong = client.Embed.Embed(FOX, metadata=named("ranks"))
        assert (await failed(wrong))[0] == "FAILED_PRECONDITION"
        health = health_pb2_grpc.HealthStub(client.channel)
        listed = await health.List(health_pb2.HealthListRequest())
        assert {one.status for one in listed.statuses.values()} == {health_pb2.HealthCheckResponse.SERVING}


@in_loop
async def test_one_model_alone_answers_to_any_name() -> None:
    async with served(engine("one")) as client:
        assert list((await client.Embed.Embed(FOX, metadata=named("three"))).embeddings) == vector("fox").tolist()


@in_loop
async def test_a_stream_does_not_keep_a_model_that_leaves() -> None:
    """What was read of it is answered; then it ends, and does not go on with another model."""
    models = two()
    leaving = weakref.ref(models.named("two"))
    async with served(models) as client:
        stream = client.Embed.EmbedStream(metadata=named("two"))
        await stream.write(FOX)
        assert list((await stream.read()).embeddings) == (vector("fox") * 2).tolist()
        await asyncio.wrap_future(models.let_go("two"))
        await until(lambda: gc.collect() >= 0 and leaving() is None)
        await stream.write(FOX)
        assert await failed(stream.read()) == ("NOT_FOUND", "there is no model 'two' here, only one")


@in_loop
async def test_the_log_names_the_model(caplog: pytest.LogCaptureFixture) -> None:
    async with served(two()) as client:
        with caplog.at_level(logging.DEBUG, "openbei.server"):
            await client.Embed.Embed(FOX, metadata=(*named("two"), ("x-request-id", "r1")))
            await until(lambda: "x-request-id='r1' model='two'" in caplog.text)
