"""The frameworks that people have, as they come, against the real server: LangChain, LlamaIndex and Haystack.

They speak TEI's routes, Haystack its gRPC too. Where one is not installed, its tests are skipped; `make test` has all.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from openbei import errors
from openbei.engine.request import Kind, Options
from tests.server.clients import TEXTS, Serve, overload, ranks, unit
from tests.server.fakes import FakeEngine, vector
from tests.server.live import running

KEY = "k"


@pytest.fixture(autouse=True, scope="module")
def _no_telemetry() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
        yield


# LangChain


def test_langchain_hugging_face(serve: Serve) -> None:
    """Its own check takes ids of the hub only, so that it reaches another server through its client."""
    langchain = pytest.importorskip("langchain_huggingface", reason="langchain-huggingface is not installed")
    engine, address = serve(api_key=KEY)
    embeddings = langchain.HuggingFaceEndpointEmbeddings(model="org/m", model_kwargs={"truncate": True})
    with InferenceClient(base_url=address, api_key=KEY) as embeddings.client:
        assert np.array_equal(np.float32(embeddings.embed_documents(TEXTS)), unit(TEXTS))
        assert np.array_equal(np.float32([embeddings.embed_query("fox\nwhale")]), unit(["fox whale"]))
        assert [request.options for request in engine.requests] == [Options(truncate=True)] * 2
        engine.refuse_with = errors.Overloaded()
        with pytest.raises(HfHubHTTPError, match="Model is overloaded"):
            embeddings.embed_documents(TEXTS)


# LlamaIndex


@pytest.fixture
def llama_embedding() -> Any:
    name = "llama_index.embeddings.text_embeddings_inference"
    return pytest.importorskip(name, reason=f"{name} is not installed").TextEmbeddingsInference


@pytest.fixture
def llama_rerank() -> Any:
    name = "llama_index.postprocessor.tei_rerank"
    return pytest.importorskip(name, reason=f"{name} is not installed").TextEmbeddingInference


def test_llama_index_embeddings(serve: Serve, llama_embedding: Any) -> None:
    engine, address = serve(api_key=KEY)
    embeddings = llama_embedding("m", address, embed_batch_size=2, auth_token=KEY, query_instruction="query:")
    assert np.array_equal(np.float32(embeddings.get_text_embedding_batch(TEXTS)), unit(TEXTS))
    assert np.array_equal(np.float32([embeddings.get_query_embedding("fox")]), unit(["query: fox"]))
    later = asyncio.run(embeddings.aget_text_embedding_batch(TEXTS))
    assert np.array_equal(np.float32(later), unit(TEXTS))
    assert sorted(len(request.inputs) for request in engine.requests) == [1, 1, 1, 2, 2]
    assert {request.options for request in engine.requests} == {Options(truncate=True)}


def test_llama_index_behind_baseten_s_gateway(serve: Serve, llama_embedding: Any) -> None:
    _, address = serve()
    embeddings = llama_embedding("m", address, endpoint="/environments/production/sync/embed")
    assert np.array_equal(np.float32([embeddings.get_text_embedding("fox")]), unit(["fox"]))


def test_llama_index_rerank(serve: Serve, llama_rerank: Any) -> None:
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

    _, address = serve("reranker", api_key=KEY)
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.5) for text in TEXTS]
    reranker = llama_rerank(top_n=2, base_url=address, auth_token=f"Bearer {KEY}")
    found = reranker.postprocess_nodes(nodes, QueryBundle("q"))
    assert [(TEXTS.index(one.text), one.score) for one in found] == ranks("q", TEXTS)[:2]


# Haystack


@pytest.fixture
def haystack() -> Any:
    return pytest.importorskip("haystack", reason="haystack-ai is not installed")


@pytest.fixture
def haystack_embedders(haystack: Any) -> Any:
    name = "haystack_integrations.components.embedders.huggingface_api"
    return pytest.importorskip(name, reason="huggingface-api-haystack is not installed")


@pytest.fixture
def haystack_ranker(haystack: Any, haystack_embedders: Any) -> Any:
    from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

    return HuggingFaceTEIRanker


@pytest.fixture
def token(haystack: Any) -> Any:
    return haystack.utils.Secret.from_token(KEY)


TEI = "text_embeddings_inference"


def test_haystack_embedders(serve: Serve, haystack: Any, haystack_embedders: Any, token: Any) -> None:
    engine, address = serve(api_key=KEY)
    options = {"api_type": TEI, "api_params": {"url": address}, "token": token, "normalize": True}
    text = haystack_embedders.HuggingFaceAPITextEmbedder(**options)
    documents = haystack_embedders.HuggingFaceAPIDocumentEmbedder(**options, batch_size=2, progress_bar=False)
    with contextlib.closing(text), contextlib.closing(documents):
        assert np.array_equal(np.float32([text.run("fox")["embedding"]]), unit(["fox"]))
        found = documents.run([haystack.Document(content=one) for one in TEXTS])["documents"]
    assert np.array_equal(np.float32([one.embedding for one in found]), unit(TEXTS))
    assert [len(request.inputs) for request in engine.requests] == [1, 2, 1]
    assert {request.options for request in engine.requests} == {Options(truncate=True)}


def test_haystack_sparse_embedder(serve: Serve, haystack_embedders: Any, token: Any) -> None:
    _, address = serve("sparse", api_key=KEY)
    embedder = haystack_embedders.HuggingFaceTEISparseTextEmbedder(api_base_url=address, token=token)
    with contextlib.closing(embedder):
        check_sparse(embedder.run("fox")["sparse_embedding"])


def check_sparse(found: Any) -> None:
    weights = np.log1p(np.maximum(vector("fox"), 0))
    assert found.indices == np.flatnonzero(weights).tolist()
    assert found.values == pytest.approx(weights[weights > 0].tolist(), rel=1e-6)


def test_haystack_ranker_comes_again_when_told(
    serve: Serve, haystack: Any, haystack_ranker: Any, token: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, address = serve("reranker", api_key=KEY)
    asked = overload(engine, monkeypatch, times=1)
    ranker = haystack_ranker(url=address, top_k=2, token=token)
    found = ranker.run("q", [haystack.Document(content=text) for text in TEXTS])["documents"]
    assert [(TEXTS.index(one.content), one.score) for one in found] == ranks("q", TEXTS)[:2]
    assert len(asked) == 2


# Haystack over gRPC: it finds the services and their messages by reflection


@contextlib.contextmanager
def grpc_served(kind: Kind) -> Iterator[tuple[FakeEngine, str]]:
    """An engine, and the address of its gRPC server."""
    for name in ("grpc_reflection", "grpc_requests"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    engine = FakeEngine(kind, max_client_batch_size=128)
    with running(engine, hostname="127.0.0.1", grpc_port=0, api_key=KEY) as (_, server):
        assert server.grpc is not None
        yield engine, f"127.0.0.1:{server.grpc.port}"


def test_haystack_embedders_over_grpc(haystack: Any, haystack_embedders: Any, token: Any) -> None:
    with grpc_served("embedding") as (engine, address):
        options = {"api_type": TEI, "api_params": {"url": address}, "token": token, "normalize": True, "use_grpc": True}
        text = haystack_embedders.HuggingFaceAPITextEmbedder(**options)
        documents = haystack_embedders.HuggingFaceAPIDocumentEmbedder(**options, progress_bar=False)
        with contextlib.closing(text), contextlib.closing(documents):
            assert np.array_equal(np.float32([text.run("fox")["embedding"]]), unit(["fox"]))
            found = documents.run([haystack.Document(content=one) for one in TEXTS])["documents"]
    assert np.array_equal(np.float32([one.embedding for one in found]), unit(TEXTS))
    assert [len(request.inputs) for request in engine.requests] == [1] * 4


def test_haystack_sparse_embedder_over_grpc(haystack_embedders: Any, token: Any) -> None:
    with grpc_served("sparse") as (_, address):
        embedder = haystack_embedders.HuggingFaceTEISparseTextEmbedder(api_base_url=address, token=token, use_grpc=True)
        with contextlib.closing(embedder):
            check_sparse(embedder.run("fox")["sparse_embedding"])


def test_haystack_ranker_over_grpc(haystack: Any, haystack_ranker: Any, token: Any) -> None:
    with grpc_served("reranker") as (_, address):
        ranker = haystack_ranker(url=address, top_k=2, token=token, use_grpc=True)
        with contextlib.closing(ranker):
            found = ranker.run("q", [haystack.Document(content=text) for text in TEXTS])["documents"]
    assert [(TEXTS.index(one.content), one.score) for one in found] == ranks("q", TEXTS)[:2]
