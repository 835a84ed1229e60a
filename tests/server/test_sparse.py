"""/embed_sparse and /v1/multi-vector: every form of input and option, the exact answers, and what each refuses."""

import shlex
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from openbei.describe import curl
from openbei.engine.request import Kind
from tests.server.fakes import DIM, FakeEngine, vector
from tests.server.wire import Wire, error


def wire_of(kind: Kind, **info: Any) -> Wire:
    engine = FakeEngine(kind)
    engine.info = replace(engine.info, **info)
    return Wire(engine)


FORMS = [
    ("fox", ["fox"]),
    ([5, 6], [[5, 6]]),
    (["a", "b c"], ["a", "b c"]),
    ([[5, 6], "a"], [[5, 6], "a"]),
]


@pytest.mark.parametrize(("sent", "read"), FORMS)
def test_embed_sparse_answers_ascending_words_over_zero(sent: Any, read: list[Any]) -> None:
    wire = wire_of("sparse")
    response = wire.post("/embed_sparse", {"inputs": sent, "prompt_name": "query", "normalize": "ignored"})
    assert response.status_code == 200
    request = wire.engine.requests[0]
    assert (list(request.inputs), request.task, request.options.prompt_name) == (read, "embed_sparse", "query")
    for one, row in zip(read, response.json(), strict=True):
        words = np.flatnonzero(vector(one) > 0)
        assert [entry["index"] for entry in row] == words.tolist()
        assert [entry["value"] for entry in row] == pytest.approx(np.log1p(vector(one)[words]).tolist(), rel=1e-6)
    assert response.headers["x-compute-tokens"] == str(3 * len(read))


def test_an_embedding_model_may_weigh_its_tokens() -> None:
    wire = wire_of("embedding", more_tasks=("embed_sparse",))
    [row] = wire.post("/embed_sparse", {"inputs": "fox"}).json()
    weights = np.abs(vector("fox"))
    assert [entry["index"] for entry in row] == [0, *range(2, DIM)]  # 1 is special to the fake
    assert [np.float32(entry["value"]) for entry in row] == [weights[0], *weights[2:]]


@pytest.mark.parametrize("kind", ["embedding", "multi_vector", "classifier", "reranker", "token_classifier"])
def test_who_cannot_embed_sparse(kind: Kind) -> None:
    assert error(wire_of(kind).post("/embed_sparse", {"inputs": "a"})) == (424, "Backend")


@pytest.mark.parametrize("kind", ["embedding", "sparse", "classifier", "reranker", "token_classifier"])
def test_who_cannot_embed_by_token(kind: Kind) -> None:
    assert error(wire_of(kind).post("/v1/multi-vector", {"input": "a"})) == (424, None)


@pytest.mark.parametrize(("sent", "read"), FORMS)
def test_multi_vector_answers_as_jina_does(sent: Any, read: list[Any]) -> None:
    wire = wire_of("multi_vector", multi_dim=DIM)
    body = {"input": sent, "model": "jina-colbert-v2", "embedding_type": "float", "dimensions": 2}
    response = wire.post("/v1/multi-vector", body)
    assert response.status_code == 200
    request = wire.engine.requests[0]
    assert (list(request.inputs), request.task, request.options.is_query) == (read, "embed_multi", False)
    answer = response.json()
    assert set(answer) == {"object", "data", "model", "usage"}
    assert answer["usage"] == {"prompt_tokens": 3 * len(read), "total_tokens": 3 * len(read)}
    for index, (one, item) in enumerate(zip(read, answer["data"], strict=True)):
        assert (set(item), item["index"]) == ({"object", "index", "embeddings"}, index)
        rows = np.float32(item["embeddings"]).reshape(-1, 2)
        wanted = vector(one)[:2] / np.linalg.norm(vector(one)[:2])
        assert len(rows) == len(one) - 1  # the fake drops the first
        assert np.allclose(rows, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "prompt_name", "is_query"),
    [
        ({}, None, False),
        ({"input_type": None}, None, False),
        ({"input_type": "document"}, None, False),
        ({"input_type": "query"}, "query", True),
        ({"input_type": "document", "prompt_name": "query"}, "query", False),
    ],
)
def test_input_type_names_a_prompt_that_the_model_has(body: Any, prompt_name: str | None, is_query: bool) -> None:
    wire = wire_of("multi_vector", multi_dim=DIM)
    assert wire.post("/v1/multi-vector", {"input": "ab", **body}).status_code == 200
    options = wire.engine.requests[0].options
    assert (options.prompt_name, options.is_query) == (prompt_name, is_query)


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/embed_sparse", {}, (422, "Validation")),
        ("/embed_sparse", {"inputs": 5}, (422, "Validation")),
        ("/embed_sparse", {"inputs": "a", "input_type": "passage"}, (422, "Validation")),
        ("/embed_sparse", {"inputs": []}, (400, "Empty")),
        ("/embed_sparse", {"inputs": ["a", ""]}, (400, "Empty")),
        ("/embed_sparse", {"inputs": ["a"] * 5}, (422, "Validation")),
        ("/embed_sparse", {"inputs": "a", "prompt_name": "none such"}, (422, "Validation")),
        ("/embed_sparse", {"inputs": "a" * 20, "truncate": False}, (422, "Validation")),
        ("/embed_sparse", {"inputs": [1000]}, (422, "Validation")),
        ("/embed", {"inputs": "a"}, (424, "Backend")),
        ("/embed", {"inputs": "a", "normalize": False, "dimensions": 0}, (422, "Validation")),
        ("/v1/embeddings", {"input": "a"}, (424, "Backend")),
    ],
)
def test_what_a_sparse_model_refuses(path: str, body: Any, expected: tuple[int, str]) -> None:
    assert error(wire_of("sparse").post(path, body)) == expected


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": 5},
        {"input": "a", "input_type": "passage"},
        {"input": "a", "embedding_type": "base64"},
        {"input": "a", "dimensions": DIM + 1},
        {"input": "a", "dimensions": 0},
    ],
)
def test_what_a_model_of_multi_vectors_refuses(body: Any) -> None:
    assert error(wire_of("multi_vector", multi_dim=DIM).post("/v1/multi-vector", body)) == (422, None)


def test_a_sparse_model_embeds_without_normalising() -> None:
    rows = wire_of("sparse").post("/embed", {"inputs": ["a", "b"], "normalize": False}).json()
    wanted = np.log1p(np.maximum([vector("a"), vector("b")], 0))
    assert np.allclose(rows, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", ["sparse", "multi_vector"])
def test_the_example_of_the_start_banner_is_answered(kind: Kind) -> None:
    words = shlex.split(curl("http://bei", kind, with_key=False))
    response = wire_of(kind, multi_dim=DIM).post(words[1].removeprefix("http://bei"), words[-1].encode())
    assert response.status_code == 200
