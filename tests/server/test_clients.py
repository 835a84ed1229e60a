"""The clients that people have, as they come, against the real server: Cohere, Hugging Face, Baseten, LangChain.

(openai's own is in test_sockets.py.) What they read of an answer is what is compared.
"""

import base64
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import cohere
import httpx
import numpy as np
import pytest
from baseten_performance_client import PerformanceClient, RequestProcessingPreference
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from langchain_openai import OpenAIEmbeddings

from openbei import errors
from openbei.engine.finish import activated
from openbei.engine.request import Options
from tests.server.clients import TEXTS, Serve, overload, ranks, unit
from tests.server.fakes import LABELS, tokens, vector


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    """The connections of clients that would leave them to the garbage collector."""
    with httpx.Client() as client:
        yield client


# Cohere


@pytest.fixture
def v1(http: httpx.Client) -> Callable[[str], cohere.Client]:
    return lambda address: cohere.Client("k", base_url=address, httpx_client=http)


@pytest.fixture
def v2(http: httpx.Client) -> Callable[[str], cohere.ClientV2]:
    return lambda address: cohere.ClientV2("k", base_url=address, httpx_client=http)


V1, V2 = Callable[[str], cohere.Client], Callable[[str], cohere.ClientV2]


def test_cohere_v2_rerank(serve: Serve, v2: V2) -> None:
    engine, address = serve("reranker", api_key="k")
    answer = v2(address).rerank(model="m", query="q", documents=TEXTS, top_n=2, max_tokens_per_doc=9)
    assert [(one.index, one.relevance_score) for one in answer.results] == ranks("q", TEXTS)[:2]
    assert answer.meta is not None
    assert answer.meta.billed_units is not None
    assert answer.meta.billed_units.search_units == 1
    assert engine.requests[0].options == Options(truncate=True, max_second_tokens=9)


def test_cohere_v1_rerank(serve: Serve, v1: V1) -> None:
    _, address = serve("reranker")
    documents = [{"text": text, "title": "t"} for text in TEXTS]
    answer = v1(address).rerank(model="m", query="q", documents=documents, rank_fields=["text"], return_documents=True)
    assert [(one.index, one.relevance_score) for one in answer.results] == ranks("q", TEXTS)
    assert [one.document.text for one in answer.results] == [TEXTS[place] for place, _ in ranks("q", TEXTS)]


def test_cohere_v2_embed(serve: Serve, v2: V2) -> None:
    engine, address = serve()
    answer = v2(address).embed(
        model="m",
        texts=TEXTS,
        input_type="search_query",
        embedding_types=["float", "int8", "uint8", "binary", "ubinary", "base64"],
    )
    want = unit(TEXTS)
    given = answer.embeddings
    assert np.array_equal(np.float32(given.float_), want)
    assert given.int8 == np.rint(want * 127).astype(int).tolist()
    assert given.uint8 == (np.rint(want * 127) + 128).astype(int).tolist()
    assert given.ubinary == np.packbits(want > 0, axis=1).tolist()
    assert given.binary == (np.packbits(want > 0, axis=1).astype(int) - 128).tolist()
    assert given.base64 is not None
    assert [np.frombuffer(base64.b64decode(one), "<f4").tolist() for one in given.base64] == want.tolist()
    assert answer.texts == TEXTS
    assert engine.requests[0].options.prompt_name == "query"
    cut = v2(address).embed(
        model="m", texts=TEXTS, input_type="clustering", embedding_types=["float"], output_dimension=4, truncate="START"
    )
    assert np.array_equal(np.float32(cut.embeddings.float_), unit(TEXTS, 4))
    assert engine.requests[1].options.truncation_direction == "left"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the client's own, of pydantic
def test_cohere_v1_embed_in_calls_of_its_own(serve: Serve, v1: V1) -> None:
    engine, address = serve()
    texts = [f"text {index}" for index in range(100)]
    answer = v1(address).embed(model="m", texts=texts, input_type="search_document")
    assert np.array_equal(np.float32(answer.embeddings), unit(texts))
    assert sorted(len(request.inputs) for request in engine.requests) == [4, 96]
    by_type = v1(address).embed(model="m", texts=TEXTS, input_type="search_document", embedding_types=["int8"])
    assert by_type.embeddings.int8 == np.rint(unit(TEXTS) * 127).astype(int).tolist()


@pytest.mark.parametrize(
    ("raised", "wanted"),
    [
        (errors.EmptyInput("nothing there"), cohere.BadRequestError),
        (errors.InvalidInput("wrong there"), cohere.UnprocessableEntityError),
        (errors.Unauthorized("no key"), cohere.UnauthorizedError),
    ],
)
def test_cohere_errors(serve: Serve, v2: V2, raised: Exception, wanted: type[Any]) -> None:
    engine, address = serve("reranker")
    engine.refuse_with = raised
    with pytest.raises(wanted) as caught:
        v2(address).rerank(model="m", query="q", documents=TEXTS)
    assert caught.value.body["message"] == str(raised)


def test_cohere_retries_when_told(serve: Serve, v2: V2, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, address = serve("reranker")
    asked = overload(engine, monkeypatch, times=1)
    assert v2(address).rerank(model="m", query="q", documents=TEXTS).results
    assert len(asked) == 2


# huggingface_hub


@pytest.fixture
def hub() -> Iterator[Callable[[str], InferenceClient]]:
    with ExitStack() as stack:
        yield lambda address: stack.enter_context(InferenceClient(base_url=address, api_key="hf_token"))


Hub = Callable[[str], InferenceClient]


def test_hugging_face_feature_extraction(serve: Serve, hub: Hub) -> None:
    engine, address = serve()
    assert np.array_equal(hub(address).feature_extraction("fox"), unit(["fox"]))
    many = hub(address).feature_extraction(
        TEXTS,
        normalize=False,
        prompt_name="query",
        truncate=True,
        truncation_direction="left",
    )
    assert np.array_equal(many, np.stack([vector(text) for text in TEXTS]))
    assert engine.requests[1].options == Options(
        normalize=False, prompt_name="query", truncate=True, truncation_direction="left"
    )


def test_hugging_face_sentence_similarity(serve: Serve, hub: Hub) -> None:
    _, address = serve()
    given = hub(address).sentence_similarity("fox", other_sentences=TEXTS)
    assert given == pytest.approx((unit(TEXTS).astype(float) @ unit(["fox"])[0].astype(float)).tolist(), abs=1e-6)


def test_hugging_face_text_classification(serve: Serve, hub: Hub) -> None:
    _, address = serve("classifier")
    best: Any = hub(address).text_classification("fox", top_k=1, function_to_apply="softmax")
    scores = activated(vector("fox")[:3], "sigmoid")  # the client takes the first of TEI's flat list
    assert (best.label, best.score) == (
        LABELS["classifier"][int(scores.argmax())],
        pytest.approx(float(scores.max()), rel=1e-6),
    )


def test_hugging_face_shows_the_error(serve: Serve, hub: Hub) -> None:
    _, address = serve()
    with pytest.raises(HfHubHTTPError, match="inputs must not be empty"):
        hub(address).feature_extraction([])


# Baseten's performance client


@pytest.fixture
def baseten() -> Callable[[str], PerformanceClient]:
    return lambda address: PerformanceClient(base_url=f"{address}/environments/production/sync", api_key="k")


Baseten = Callable[[str], PerformanceClient]


def test_baseten_embed(serve: Serve, baseten: Baseten) -> None:
    engine, address = serve(api_key="k")
    texts = [f"text {index}" for index in range(50)]
    preference = RequestProcessingPreference(batch_size=8, max_concurrent_requests=4)
    answer = baseten(address).embed(input=texts, model="m", preference=preference)
    assert np.array_equal(answer.numpy(), unit(texts))
    assert [one.index for one in answer.data] == list(range(50))
    assert answer.usage.total_tokens == 150
    assert len(engine.requests) == 7
    cut = baseten(address).embed(input=TEXTS, model="m", dimensions=2, encoding_format="float", user="u")
    assert np.array_equal(cut.numpy(), unit(TEXTS, 2))


def test_baseten_rerank(serve: Serve, baseten: Baseten) -> None:
    engine, address = serve("reranker")
    answer = baseten(address).rerank(query="q", texts=TEXTS, return_text=True, model="m")
    want = ranks("q", TEXTS)
    assert [(one.index, one.score) for one in answer.data] == want
    assert [one.text for one in answer.data] == [TEXTS[place] for place, _ in want]
    assert engine.requests[0].options == Options(truncate=False)


def test_baseten_classify(serve: Serve, baseten: Baseten) -> None:
    _, address = serve("classifier")
    answer = baseten(address).classify(inputs=["fox", "né"], raw_scores=True, truncate=True, model="m")
    for given, one in zip(answer.data, ["fox", "né"], strict=True):
        row = vector(one)[:3]
        assert {result.label: result.score for result in given} == pytest.approx(
            dict(zip(LABELS["classifier"], row.tolist(), strict=True)), rel=1e-6
        )


def test_baseten_batch_post(serve: Serve, baseten: Baseten) -> None:
    _, address = serve("token_classifier")
    payloads = [{"inputs": [[text]], "raw_scores": True} for text in TEXTS]
    answer = baseten(address).batch_post("/predict_tokens", payloads)
    assert [[one["token"] for one in given[0]] for given in answer.data] == [
        [token.text for token in tokens(text)] for text in TEXTS
    ]
    health = baseten(address).batch_post("/health", [{}], method="GET")
    assert list(health.data) == [{"status": "ok"}]


def test_baseten_retries_what_is_overloaded(serve: Serve, baseten: Baseten, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, address = serve()
    asked = overload(engine, monkeypatch, times=2)
    answer = baseten(address).embed(input=TEXTS, model="m")
    assert np.array_equal(answer.numpy(), unit(TEXTS))
    assert [list(request.inputs) for request in asked] == [TEXTS] * 3


@pytest.mark.parametrize("raised", [errors.InvalidInput("wrong there"), errors.WrongTask("not an embedder")])
def test_baseten_does_not_retry_what_cannot_succeed(
    serve: Serve, baseten: Baseten, raised: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, address = serve()
    engine.refuse_with = raised
    asked = overload(engine, monkeypatch, times=0)
    with pytest.raises(Exception, match=str(raised)):
        baseten(address).embed(input=TEXTS, model="m")
    assert len(asked) == 1


# LangChain


def test_langchain_openai(serve: Serve, http: httpx.Client) -> None:
    engine, address = serve()
    embeddings = OpenAIEmbeddings(
        base_url=f"{address}/v1",
        api_key="k",
        model="m",
        dimensions=4,
        check_embedding_ctx_length=False,
        chunk_size=2,
        http_client=http,
    )
    assert np.array_equal(np.float32(embeddings.embed_documents(TEXTS)), unit(TEXTS, 4))
    assert np.array_equal(np.float32([embeddings.embed_query("fox")]), unit(["fox"], 4))
    assert [len(request.inputs) for request in engine.requests] == [2, 1, 1]
