"""gRPC over a fake engine, through protoc's stubs: every rpc and option, errors, keys, limits, health, reflection."""

import asyncio
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("grpc_tools", reason="grpcio-tools, of the test extra, is not installed")

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from openbei import __version__, errors
from openbei.engine.request import Options, Pair, Request
from openbei.server import grpc_health
from openbei.server.answers import COMPUTE_HEADERS
from openbei.wire import tei_pb2 as pb
from tests.server.fakes import LABELS, TIMES, FakeEngine, vector
from tests.server.rpc import ROOT, Client, compile_proto, failed, gathered, in_loop, served, stubs

# Facts of text-embeddings-inference 1.9.3, proto/tei.proto: number, type and name of every field; "?" may be unset.
MESSAGES = """
InfoRequest:
InfoResponse: 1 string version, 2 string? sha, 3 string? docker_label, 4 string model_id, 5 string? model_sha,
  6 string model_dtype, 7 ModelType model_type, 8 uint32 max_concurrent_requests, 9 uint32 max_input_length,
  10 uint32 max_batch_tokens, 11 uint32? max_batch_requests, 12 uint32 max_client_batch_size,
  13 uint32 tokenization_workers
Metadata: 1 uint32 compute_chars, 2 uint32 compute_tokens, 3 uint64 total_time_ns, 4 uint64 tokenization_time_ns,
  5 uint64 queue_time_ns, 6 uint64 inference_time_ns
EmbedRequest: 1 string inputs, 2 bool truncate, 3 bool? normalize, 4 TruncationDirection truncation_direction,
  5 string? prompt_name, 6 uint32? dimensions
EmbedResponse: 1 float[] embeddings, 2 Metadata metadata
EmbedSparseRequest: 1 string inputs, 2 bool truncate, 3 TruncationDirection truncation_direction, 4 string? prompt_name
SparseValue: 1 uint32 index, 2 float value
EmbedSparseResponse: 1 SparseValue[] sparse_embeddings, 2 Metadata metadata
EmbedAllRequest: 1 string inputs, 2 bool truncate, 3 TruncationDirection truncation_direction, 4 string? prompt_name
TokenEmbedding: 1 float[] embeddings
EmbedAllResponse: 1 TokenEmbedding[] token_embeddings, 2 Metadata metadata
PredictRequest: 1 string inputs, 2 bool truncate, 3 bool raw_scores, 4 TruncationDirection truncation_direction
PredictPairRequest: 1 string[] inputs, 2 bool truncate, 3 bool raw_scores, 4 TruncationDirection truncation_direction
Prediction: 1 float score, 2 string label
PredictResponse: 1 Prediction[] predictions, 2 Metadata metadata
RerankRequest: 1 string query, 2 string[] texts, 3 bool truncate, 4 bool raw_scores, 5 bool return_text,
  6 TruncationDirection truncation_direction
RerankStreamRequest: 1 string query, 2 string text, 3 bool truncate, 4 bool raw_scores, 5 bool return_text,
  6 TruncationDirection truncation_direction
Rank: 1 uint32 index, 2 string? text, 3 float score
RerankResponse: 1 Rank[] ranks, 2 Metadata metadata
EncodeRequest: 1 string inputs, 2 bool add_special_tokens, 3 string? prompt_name
SimpleToken: 1 uint32 id, 2 string text, 3 bool special, 4 uint32? start, 5 uint32? stop
EncodeResponse: 1 SimpleToken[] tokens
DecodeRequest: 1 uint32[] ids, 2 bool skip_special_tokens
DecodeResponse: 1 string text
"""
# And its rpcs: "s" before a message that is a stream.
RPCS = """
Info.Info InfoRequest InfoResponse
Embed.Embed EmbedRequest EmbedResponse
Embed.EmbedStream s EmbedRequest s EmbedResponse
Embed.EmbedSparse EmbedSparseRequest EmbedSparseResponse
Embed.EmbedSparseStream s EmbedSparseRequest s EmbedSparseResponse
Embed.EmbedAll EmbedAllRequest EmbedAllResponse
Embed.EmbedAllStream s EmbedAllRequest s EmbedAllResponse
Predict.Predict PredictRequest PredictResponse
Predict.PredictStream s PredictRequest s PredictResponse
Predict.PredictPair PredictPairRequest PredictResponse
Predict.PredictPairStream s PredictPairRequest s PredictResponse
Rerank.Rerank RerankRequest RerankResponse
Rerank.RerankStream s RerankStreamRequest RerankResponse
Tokenize.Tokenize EncodeRequest EncodeResponse
Tokenize.TokenizeStream s EncodeRequest s EncodeResponse
Tokenize.Decode DecodeRequest DecodeResponse
Tokenize.DecodeStream s DecodeRequest s DecodeResponse
"""
LEFT = pb.TRUNCATION_DIRECTION_LEFT


# tei.proto


def test_the_messages_are_the_contract_s() -> None:
    wanted = {}
    for line in re.sub(r",\n\s+", ", ", MESSAGES.strip()).splitlines():
        name, _, listed = line.partition(":")
        wanted[name] = [field.strip() for field in listed.split(",") if field.strip()]
    assert {
        name: list(map(field_text, one.fields)) for name, one in pb.DESCRIPTOR.message_types_by_name.items()
    } == wanted
    assert pb.DESCRIPTOR.package == "tei.v1"
    assert dict(pb.ModelType.items()) == {
        "MODEL_TYPE_EMBEDDING": 0,
        "MODEL_TYPE_CLASSIFIER": 1,
        "MODEL_TYPE_RERANKER": 2,
    }
    assert dict(pb.TruncationDirection.items()) == {"TRUNCATION_DIRECTION_RIGHT": 0, "TRUNCATION_DIRECTION_LEFT": 1}


def field_text(field: Any) -> str:
    kinds = {field.TYPE_STRING: "string", field.TYPE_BOOL: "bool", field.TYPE_FLOAT: "float"}
    kinds |= {field.TYPE_UINT32: "uint32", field.TYPE_UINT64: "uint64"}
    kind = kinds.get(field.type) or (field.message_type or field.enum_type).name
    optional = field.has_presence and field.message_type is None
    return f"{field.number} {kind}{'[]' if field.is_repeated else '?' if optional else ''} {field.name}"


def test_the_rpcs_are_the_contract_s() -> None:
    found = [
        f"{service.name}.{rpc.name} {'s ' * rpc.client_streaming}{rpc.input_type.name} "
        f"{'s ' * rpc.server_streaming}{rpc.output_type.name}"
        for service in pb.DESCRIPTOR.services_by_name.values()
        for rpc in service.methods
    ]
    assert found == RPCS.strip().splitlines()
    info = pb.DESCRIPTOR.services_by_name["Info"].methods_by_name["Info"]
    assert info.GetOptions().idempotency_level == descriptor_pb2.MethodOptions.IDEMPOTENT


def test_the_generated_code_is_of_this_proto(tmp_path: Path) -> None:
    """`make proto` has been run since tei.proto was edited."""
    compile_proto(f"--descriptor_set_out={tmp_path / 'set'}")
    (wanted,) = descriptor_pb2.FileDescriptorSet.FromString((tmp_path / "set").read_bytes()).file
    found = descriptor_pb2.FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)
    for message in wanted.message_type:
        for field in message.field:
            field.ClearField("json_name")  # protoc leaves it out of the code
    assert found == wanted
    types = (ROOT / "openbei/wire/tei_pb2.pyi").read_text()
    for message in wanted.message_type:
        assert f"class {message.name}(" in types
        for field in message.field:
            assert f"    {field.name}: " in types


# Every rpc


@in_loop
async def test_embed() -> None:
    engine = FakeEngine()
    async with served(engine) as client:
        answer = await client.Embed.Embed(pb.EmbedRequest(inputs="red fox"))
        unit = vector("red fox") / np.linalg.norm(vector("red fox").astype(np.float64))
        assert np.allclose(list(answer.embeddings), unit, atol=1e-7)
        asked = pb.EmbedRequest(inputs="red fox", truncate=True, normalize=False, truncation_direction=LEFT)
        asked.prompt_name, asked.dimensions = "query", 3
        answer = await client.Embed.Embed(asked)
        assert list(answer.embeddings) == list(map(float, vector("red fox")[:3]))
    options = Options(truncate=True, truncation_direction="left", prompt_name="query", normalize=False, dimensions=3)
    assert engine.requests == [
        Request(inputs=["red fox"], options=Options(truncate=False)),
        Request(inputs=["red fox"], options=options),
    ]


@in_loop
async def test_embed_all() -> None:
    engine = FakeEngine()
    async with served(engine) as client:
        asked = pb.EmbedAllRequest(inputs="fox", truncate=True, truncation_direction=LEFT, prompt_name="query")
        answer = await client.Embed.EmbedAll(asked)
    rows = [list(one.embeddings) for one in answer.token_embeddings]
    assert rows == [list(map(float, vector("fox")))] * 3
    options = Options(truncate=True, truncation_direction="left", prompt_name="query")
    assert engine.requests == [Request(inputs=["fox"], task="embed_tokens", options=options)]


@in_loop
async def test_predict() -> None:
    """A text and pairs; labels best first, of equal scores the later first."""
    engine = FakeEngine("classifier")
    async with served(engine) as client:
        asked = {"truncate": True, "raw_scores": True, "truncation_direction": LEFT}
        answers = [
            await client.Predict.Predict(pb.PredictRequest(inputs="soup", **asked)),
            await client.Predict.PredictPair(pb.PredictPairRequest(inputs=["soup"], **asked)),
            await client.Predict.PredictPair(pb.PredictPairRequest(inputs=["soup", "cold"])),
        ]
        for inputs in ([], ["a", "b", "c"]):
            status = await failed(client.Predict.PredictPair(pb.PredictPairRequest(inputs=inputs)))
            assert status == ("INVALID_ARGUMENT", f"inputs must hold one or two texts, got {len(inputs)}")
        engine.row = lambda *_: np.array([1, 2, 2], np.float32)  # type: ignore[method-assign]
        equal = await client.Predict.Predict(pb.PredictRequest(inputs="soup", raw_scores=True))
    assert [one.label for one in equal.predictions] == ["mixed", "good", "bad"]
    wanted = sorted(zip(map(float, vector("soup")[:3]), LABELS["classifier"], strict=True), reverse=True)
    for answer in answers[:2]:
        assert [(one.score, one.label) for one in answer.predictions] == wanted
    assert all(0 <= one.score <= 1 for one in answers[2].predictions)
    chosen = Options(truncate=True, truncation_direction="left", raw_scores=True)
    assert [(one.inputs, one.task, one.options) for one in engine.requests[:3]] == [
        (["soup"], "classify", chosen),
        (["soup"], "classify", chosen),
        ([Pair("soup", "cold")], "classify", Options(truncate=False)),
    ]


@in_loop
async def test_rerank() -> None:
    engine = FakeEngine("reranker")
    texts = ["fox", "whale", "fox"]
    scores = [float(vector(Pair("sea", text))[0]) for text in texts]
    best = sorted(range(3), key=lambda place: (scores[place], place), reverse=True)
    async with served(engine) as client:
        asked = {"truncate": True, "raw_scores": True, "truncation_direction": LEFT}
        bare = await client.Rerank.Rerank(pb.RerankRequest(query="sea", texts=texts, **asked))
        full = await client.Rerank.Rerank(pb.RerankRequest(query="sea", texts=texts, return_text=True))
        assert (await failed(client.Rerank.Rerank(pb.RerankRequest(query="sea"))))[0] == "INVALID_ARGUMENT"
        many = await failed(client.Rerank.Rerank(pb.RerankRequest(query="sea", texts=["a"] * 5)))
        assert many == ("INVALID_ARGUMENT", "batch size 5 > maximum allowed batch size 4")
    assert [(one.index, one.score) for one in bare.ranks] == [(place, scores[place]) for place in best]
    assert not any(one.HasField("text") for one in bare.ranks)
    assert [(one.index, one.text) for one in full.ranks] == [(place, texts[place]) for place in best]
    assert bare.metadata.compute_tokens == 9
    chosen = Options(truncate=True, truncation_direction="left", raw_scores=True)
    assert [(one.inputs, one.task, one.options) for one in engine.requests[:2]] == [
        ([Pair("sea", text) for text in texts], "rerank", chosen),
        ([Pair("sea", text) for text in texts], "rerank", Options(truncate=False)),
    ]


@in_loop
async def test_rerank_stream() -> None:
    """One answer for all messages; raw_scores and return_text are the first one's, the rest is each one's own."""
    engine = FakeEngine("reranker")
    messages = [
        pb.RerankStreamRequest(query="sea", text="fox", raw_scores=True, return_text=True),
        pb.RerankStreamRequest(query="land", text="whale", truncate=True),
        pb.RerankStreamRequest(query="sea", text="eel", truncation_direction=LEFT),
    ]
    scores = {one.text: float(vector(Pair(one.query, one.text))[0]) for one in messages}
    async with served(engine) as client:
        call = client.Rerank.RerankStream(iter(messages))
        answer, headers = await call, dict(await call.initial_metadata())
        plain = await client.Rerank.RerankStream(iter(messages[1:]))
        empty = await failed(client.Rerank.RerankStream(iter(())))
    assert [(one.index, one.text, one.score) for one in answer.ranks] == sorted(
        ((place, one.text, scores[one.text]) for place, one in enumerate(messages)), key=lambda rank: -rank[2]
    )
    assert [one.HasField("text") or not 0 < one.score < 1 for one in plain.ranks] == [False, False]
    assert empty == ("INVALID_ARGUMENT", "the stream must hold at least one message")
    options = [one.options for one in engine.requests[:3]]
    assert [one.raw_scores for one in options] == [True] * 3
    assert [one.truncate for one in options] == [False, True, False]
    assert [one.truncation_direction for one in options] == ["right", "right", "left"]
    assert (answer.metadata.compute_chars, answer.metadata.compute_tokens) == (21, 9)
    assert answer.metadata.queue_time_ns == pytest.approx(TIMES.queue_s * 1e9, abs=1)
    assert headers["x-compute-tokens"] == "9"


@in_loop
async def test_tokenize_and_decode() -> None:
    async with served(FakeEngine()) as client:
        bare = await client.Tokenize.Tokenize(pb.EncodeRequest(inputs="né fox"))
        asked = pb.EncodeRequest(inputs="fox", add_special_tokens=True, prompt_name="query")
        full = await client.Tokenize.Tokenize(asked)
        kept = await client.Tokenize.Decode(pb.DecodeRequest(ids=[1, 7, 2]))
        skipped = await client.Tokenize.Decode(pb.DecodeRequest(ids=[1, 7, 2], skip_special_tokens=True))
        for call in (
            client.Tokenize.Tokenize(pb.EncodeRequest()),
            client.Tokenize.Decode(pb.DecodeRequest()),
            client.Tokenize.Decode(pb.DecodeRequest(ids=[1000])),
            client.Tokenize.Tokenize(pb.EncodeRequest(inputs="a", prompt_name="no")),
        ):
            assert (await failed(call))[0] == "INVALID_ARGUMENT"
    assert [(one.text, one.special, one.start, one.stop) for one in bare.tokens] == [
        ("né", False, 0, 3),
        ("fox", False, 4, 7),
    ]
    assert [(one.id, one.text, one.special, one.HasField("start"), one.HasField("stop")) for one in full.tokens] == [
        (1, "[CLS]", True, False, False),
        (7, "query:", False, True, True),
        (7, "fox", False, True, True),
        (2, "[SEP]", True, False, False),
    ]
    assert (kept.text, skipped.text) == ("1 7 2", "7")


KINDS = {
    "embedding": pb.MODEL_TYPE_EMBEDDING,
    "classifier": pb.MODEL_TYPE_CLASSIFIER,
    "reranker": pb.MODEL_TYPE_RERANKER,
    "token_classifier": pb.MODEL_TYPE_CLASSIFIER,
}


@in_loop
async def test_info() -> None:
    for kind, wanted in KINDS.items():
        async with served(FakeEngine(kind, max_batch_requests=8)) as client:  # type: ignore[arg-type]
            answer = await client.Info.Info(pb.InfoRequest())
        assert answer == pb.InfoResponse(
            version=__version__,
            model_id="org/tiny",
            model_sha="abc123",
            model_dtype="float32",
            model_type=wanted,
            max_concurrent_requests=8192,
            max_input_length=16,
            max_batch_tokens=64,
            max_batch_requests=8,
            max_client_batch_size=4,
            tokenization_workers=2,
        )


@in_loop
async def test_what_an_answer_cost() -> None:
    async with served(FakeEngine()) as client:
        call = client.Embed.Embed(pb.EmbedRequest(inputs="red fox"))
        answer, headers = await call, dict(await call.initial_metadata())
        free = client.Info.Info(pb.InfoRequest())
        await free
        assert not set(COMPUTE_HEADERS) & set(dict(await free.initial_metadata()))
    assert answer.metadata == pb.Metadata(
        compute_chars=7,
        compute_tokens=3,
        total_time_ns=int(TIMES.total_s * 1e9),
        tokenization_time_ns=int(TIMES.tokenization_s * 1e9),
        queue_time_ns=int(TIMES.queue_s * 1e9),
        inference_time_ns=int(TIMES.inference_s * 1e9),
    )
    assert set(COMPUTE_HEADERS) <= set(headers)
    wanted = {"x-compute-type": "cpu+optimized", "x-compute-characters": "7", "x-compute-tokens": "3"}
    wanted |= {"x-tokenization-time": "1", "x-queue-time": "3", "x-inference-time": "5"}
    assert {name: headers[name] for name in wanted} == wanted


def requests(service: str, rpc: str) -> Any:
    """A message that the rpc can answer, on a model that can."""
    kind = pb.DESCRIPTOR.services_by_name[service].methods_by_name[rpc].input_type.name
    texts = {"inputs": ["a", "b"]} if kind == "PredictPairRequest" else {"inputs": "a"}
    texts = {"RerankRequest": {"query": "a", "texts": ["b"]}, "DecodeRequest": {"ids": [7]}}.get(kind, texts)
    texts = {"RerankStreamRequest": {"query": "a", "text": "b"}, "InfoRequest": {}}.get(kind, texts)
    return getattr(pb, kind)(**texts)


async def call(client: Client, service: str, rpc: str, **options: Any) -> Any:
    """Call any rpc with one message -> its one response."""
    method = pb.DESCRIPTOR.services_by_name[service].methods_by_name[rpc]
    message = requests(service, rpc)
    begun = getattr(getattr(client, service), rpc)(iter([message]) if method.client_streaming else message, **options)
    if not method.server_streaming:
        return await begun
    (answer,) = await gathered(begun)
    return answer


ALL = [tuple(line.split(" ")[0].split(".")) for line in RPCS.strip().splitlines()]


def engine_for(service: str, rpc: str) -> FakeEngine:
    """One that can do what an rpc asks."""
    kinds: dict[str, Any] = {"Predict": "classifier", "Rerank": "reranker", "Embed": "embedding"}
    return FakeEngine("sparse" if rpc.startswith("EmbedSparse") else kinds.get(service, "embedding"))


@in_loop
async def test_sparse_vectors_are_what_is_not_zero() -> None:
    engine = FakeEngine("sparse")
    async with served(engine) as client:
        answer = await client.Embed.EmbedSparse(pb.EmbedSparseRequest(inputs="t3 t5"))
    (row,) = engine.submit(Request(inputs=["t3 t5"], task="embed_sparse")).result().rows
    assert [(value.index, value.value) for value in answer.sparse_embeddings] == [
        (index, pytest.approx(value)) for index, value in zip(row.indices.tolist(), row.values.tolist(), strict=True)
    ]
    assert answer.metadata.compute_tokens > 0


@in_loop
async def test_a_stream_answers_as_the_unary_rpc_does() -> None:
    for service, rpc in ALL:
        if rpc.endswith("Stream") and rpc != "RerankStream":
            async with served(engine_for(service, rpc)) as client:
                assert await call(client, service, rpc) == await call(client, service, rpc.removesuffix("Stream"))
                assert await gathered(getattr(getattr(client, service), rpc)(iter(()))) == []


@in_loop
async def test_the_stubs_without_asyncio() -> None:
    async with served(FakeEngine()) as client:

        def use() -> None:
            with grpc.insecure_channel(client.address) as channel:
                embed = stubs().EmbedStub(channel)
                wanted = embed.Embed(pb.EmbedRequest(inputs="t3"))
                answers = list(embed.EmbedStream(pb.EmbedRequest(inputs=f"t{i}") for i in range(8)))
                assert answers[3] == wanted
                assert len(answers) == 8

        await asyncio.to_thread(use)


# Errors


@pytest.mark.parametrize("error", [kind for kind in errors.ANSWERS if kind is not errors.MethodNotAllowed])
@in_loop
async def test_every_error_has_its_status(error: type[errors.RequestError]) -> None:
    engine = FakeEngine()
    async with served(engine) as client:
        engine.fail_with = error("what was wrong")
        row = errors.ANSWERS[error]
        message = "internal error" if error is errors.InternalError else "what was wrong"
        assert await failed(client.Embed.Embed(pb.EmbedRequest(inputs="a"))) == (row.grpc, message)
        assert await failed(client.Embed.EmbedStream(iter([pb.EmbedRequest(inputs="a")]))) == (row.grpc, message)
        assert await failed(client.Tokenize.Tokenize(pb.EncodeRequest(inputs="a"))) == (row.grpc, message)


@in_loop
async def test_overload_says_when_to_come_again() -> None:
    """In the trailer that gRPC's own retries read."""
    engine = FakeEngine()
    engine.refuse_with = errors.Overloaded(retry_after_s=7)
    async with served(engine) as client:
        begun = client.Embed.Embed(pb.EmbedRequest(inputs="a"))
        assert await failed(begun) == ("RESOURCE_EXHAUSTED", "Model is overloaded")
        assert dict(await begun.trailing_metadata())["grpc-retry-pushback-ms"] == "7000"


@in_loop
async def test_a_bug_is_told_to_the_log_only(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    engine.refuse_with = ZeroDivisionError("a secret")
    async with served(engine) as client:
        with caplog.at_level(logging.WARNING, "openbei.server"):
            assert await failed(client.Embed.Embed(pb.EmbedRequest(inputs="a"))) == ("INTERNAL", "internal error")
    assert "a secret" in caplog.text


@in_loop
async def test_wrong_messages() -> None:
    async with served(FakeEngine(), payload_limit=1000) as client:
        embed = client.Embed.Embed
        direction = await failed(embed(pb.EmbedRequest(inputs="a", truncation_direction=7)))  # type: ignore[arg-type]
        assert direction == ("INVALID_ARGUMENT", "truncation_direction must be one of [0, 1], got 7")
        assert await failed(embed(pb.EmbedRequest())) == ("INVALID_ARGUMENT", "input 0 is empty")
        too_many = await failed(embed(pb.EmbedRequest(inputs="a", dimensions=9)))
        assert too_many == ("INVALID_ARGUMENT", "dimensions must be 1 to 8, got 9")
        assert (await failed(embed(pb.EmbedRequest(inputs="a", dimensions=0))))[0] == "INVALID_ARGUMENT"
        assert (await failed(embed(pb.EmbedRequest(inputs="a", prompt_name=""))))[0] == "INVALID_ARGUMENT"
        assert (await failed(embed(pb.EmbedRequest(inputs="a" * 17))))[0] == "INVALID_ARGUMENT"
        raw = client.channel.unary_unary("/tei.v1.Embed/Embed")
        assert await failed(raw(b"\xff\xff")) == ("INVALID_ARGUMENT", "the message is no tei.v1.EmbedRequest")
        assert (await failed(raw(b"\x0a\x01\xff")))[0] == "INVALID_ARGUMENT"  # a text that is not UTF-8
        unknown = client.channel.unary_unary("/tei.v1.Embed/EmbedMore")
        assert (await failed(unknown(b"")))[0] == "UNIMPLEMENTED"
        status, message = await failed(embed(pb.EmbedRequest(inputs="a" * 1001)))
        assert status == "RESOURCE_EXHAUSTED"
        assert "1000" in message


WRONG = [
    ("embedding", ["Predict.Predict", "Predict.PredictPair", "Rerank.Rerank", "Rerank.RerankStream"]),
    ("classifier", ["Embed.Embed", "Embed.EmbedAll", "Rerank.Rerank", "Rerank.RerankStream"]),
    ("reranker", ["Embed.EmbedStream", "Embed.EmbedAllStream", "Embed.EmbedSparse"]),
    ("token_classifier", ["Embed.Embed", "Predict.PredictStream", "Predict.PredictPairStream", "Rerank.Rerank"]),
    ("embedding", ["Embed.EmbedSparse", "Embed.EmbedSparseStream"]),
]


@pytest.mark.parametrize(("kind", "rpcs"), WRONG)
@in_loop
async def test_a_model_that_cannot(kind: Any, rpcs: list[str]) -> None:
    async with served(FakeEngine(kind)) as client:
        for rpc in rpcs:
            status, message = await failed(call(client, *rpc.split(".")))
            assert status == "FAILED_PRECONDITION"
            assert "the model is" in message


# Keys


@in_loop
async def test_every_rpc_asks_for_the_key() -> None:
    for service, rpc in ALL:
        async with served(engine_for(service, rpc), api_key="sesame") as client:
            for wrong in (None, "Bearer sesam", "sesame", "Basic sesame"):
                metadata = wrong and (("authorization", wrong),)
                assert (await failed(call(client, service, rpc, metadata=metadata)))[0] == "UNAUTHENTICATED"
            for right in ("Bearer sesame", "Api-Key sesame"):
                await call(client, service, rpc, metadata=(("authorization", right),))


# Health and reflection

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("embedding", {"Embed"}),
        ("classifier", {"Predict"}),
        ("reranker", {"Predict", "Rerank"}),
        ("token_classifier", set()),
    ],
)
@in_loop
async def test_health(kind: Any, wanted: set[str]) -> None:
    engine = FakeEngine(kind)
    always = {"", "tei.v1.Info", "tei.v1.Tokenize"}
    names = {"tei.v1.Embed", "tei.v1.Predict", "tei.v1.Rerank"} | always
    async with served(engine, api_key="sesame") as client:
        health = health_pb2_grpc.HealthStub(client.channel)
        for status in ("ready", "failed", "draining"):
            engine.status = status
            good = always | {f"tei.v1.{name}" for name in wanted if status == "ready"}
            listed = await health.List(health_pb2.HealthListRequest())
            assert {name for name, one in listed.statuses.items() if one.status == SERVING} == good
            assert set(listed.statuses) == names
            for name in names:
                answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
                assert answer.status == (SERVING if name in good else NOT_SERVING)
        assert (await failed(health.Check(health_pb2.HealthCheckRequest(service="tei.v1.No"))))[0] == "NOT_FOUND"


@in_loop
async def test_health_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_health, "WATCH_S", 0.001)
    engine = FakeEngine()
    async with served(engine) as client:
        health = health_pb2_grpc.HealthStub(client.channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="tei.v1.Embed"))
        seen = []
        for status in ("ready", "failed", "ready"):
            engine.status = status
            seen.append((await watch.read()).status)
        assert seen == [SERVING, NOT_SERVING, SERVING]
        unknown = health.Watch(health_pb2.HealthCheckRequest(service="tei.v1.No"))
        assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()
        unknown.cancel()


@in_loop
async def test_reflection() -> None:
    """What grpcurl and its kin ask: the services, and the file of any of them; no key."""
    async with served(FakeEngine(), api_key="sesame") as client:

        def ask() -> tuple[Any, Any]:
            with grpc.insecure_channel(client.address) as channel:
                database = ProtoReflectionDescriptorDatabase(channel)
                return database.get_services(), database.FindFileContainingSymbol("tei.v1.Embed")

        services, file = await asyncio.to_thread(ask)
        newer = client.channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        (answer,) = await gathered(newer(iter([reflection_pb2.ServerReflectionRequest(list_services="")])))
        assert [one.name for one in answer.list_services_response.service] == list(services)
    assert {f"tei.v1.{name}" for name in ("Info", "Embed", "Predict", "Rerank", "Tokenize")} <= set(services)
    assert {"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"} <= set(services)
    assert file.SerializeToString() == pb.DESCRIPTOR.serialized_pb
