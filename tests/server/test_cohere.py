"""Cohere's and Jina's routes: every field, the exact answers, and what each refuses."""

import base64
from typing import Any

import numpy as np
import pytest

from openbei.engine.finish import activated, normalized
from openbei.engine.request import Kind, Options, Pair
from tests.server.fakes import FakeEngine, vector
from tests.server.wire import Wire, error

E03, E08, E12, E15 = (422, None), (400, None), (422, None), (424, None)
TEXTS = ["fox", "whale", "né"]


def wire_of(kind: Kind = "embedding", prompts: dict[str, str] | None = None) -> Wire:
    engine = FakeEngine(kind)
    if prompts is not None:
        engine.set_prompts(prompts)
    return Wire(engine)


def score(query: str, text: str) -> float:
    return float(activated(vector(Pair(query, text))[:1], "sigmoid")[0])


def unit(*texts: str, dimensions: int | None = None) -> np.ndarray:
    return normalized(np.stack([vector(text)[:dimensions] for text in texts]))


# Rerank


@pytest.mark.parametrize(("path", "version"), [("/v1/rerank", "1"), ("/v2/rerank", "2")])
def test_rerank_in_full(path: str, version: str) -> None:
    wire = wire_of("reranker")
    response = wire.post(path, {"query": "q", "documents": TEXTS, "model": "any", "return_documents": True})
    body = response.json()
    order = sorted(range(3), key=lambda place: -score("q", TEXTS[place]))
    assert len(body.pop("id")) == 36
    assert body == {
        "model": "org/tiny",
        "object": "list",
        "results": [
            {
                **{"index": place, "document": {"text": TEXTS[place]}},
                "relevance_score": pytest.approx(score("q", TEXTS[place]), rel=1e-6),
            }
            for place in order
        ],
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
        "meta": {"api_version": {"version": version}, "billed_units": {"search_units": 1}},
    }
    assert response.headers["x-compute-tokens"] == "9"
    assert wire.engine.requests[0].inputs == [Pair("q", text) for text in TEXTS]
    assert wire.engine.requests[0].options == Options(truncate=True)


@pytest.mark.parametrize(("path", "by_default"), [("/v1/rerank", True), ("/v2/rerank", False)])
@pytest.mark.parametrize("asked", [None, True, False])
def test_documents_are_repeated(path: str, by_default: bool, asked: bool | None) -> None:
    body = wire_of("reranker").post(path, {"query": "q", "documents": ["a"], "return_documents": asked}).json()
    assert ("document" in body["results"][0]) == (by_default if asked is None else asked)


@pytest.mark.parametrize(("top_n", "num"), [(None, 3), (1, 1), (3, 3), (4, 3), (10**9, 3)])
@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_top_n(path: str, top_n: int | None, num: int) -> None:
    body = wire_of("reranker").post(path, {"query": "q", "documents": TEXTS, "top_n": top_n}).json()
    scores = [one["relevance_score"] for one in body["results"]]
    assert len(scores) == num
    assert scores == pytest.approx(sorted((score("q", text) for text in TEXTS), reverse=True)[:num], rel=1e-6)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_equal_scores_keep_the_order_of_the_documents(path: str) -> None:
    documents = ["fox", "whale"] * 30  # so many that an unstable sort does not keep it by chance
    wire = Wire(FakeEngine("reranker", max_client_batch_size=64))
    body = wire.post(path, {"query": "q", "documents": documents}).json()
    places = [one["index"] for one in body["results"]]
    assert sorted(map(tuple, (places[:30], places[30:]))) == [tuple(range(0, 60, 2)), tuple(range(1, 60, 2))]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_documents_that_are_objects(path: str) -> None:
    wire = wire_of("reranker")
    documents = [{"text": "a", "title": "b", "n": 1}, "c"]
    body = wire.post(path, {"query": "q", "documents": documents, "return_documents": True}).json()
    assert wire.engine.requests[0].inputs == [Pair("q", "a"), Pair("q", "c")]
    assert {one["index"]: one["document"] for one in body["results"]} == {0: documents[0], 1: {"text": "c"}}
    wire.post(path, {"query": "q", "documents": documents, "rank_fields": ["title", "text"]})
    assert wire.engine.requests[1].inputs == [Pair("q", "b\na"), Pair("q", "c")]
    wire.post(path, {"query": "q", "documents": documents, "rank_fields": []})
    assert wire.engine.requests[2].inputs == [Pair("q", "a"), Pair("q", "c")]


@pytest.mark.parametrize("value", ["1" + "0" * 400, "-0.10", "1e999", '"\\u00e9"', "[{}, null]"])
def test_a_document_is_repeated_as_it_was_sent(value: str) -> None:
    document = f'{{"n":{value},"text":"a"}}'
    body = f'{{"query": "q", "documents": [{document}]}}'.encode()
    response = wire_of("reranker").post("/v1/rerank", body)
    assert f'"document":{document}' in response.text


@pytest.mark.parametrize("value", ['"\\ud800"', "{", '"'])
def test_a_document_that_is_no_json(value: str) -> None:
    body = f'{{"query": "q", "documents": [{{"text": {value}}}]}}'.encode()
    assert error(wire_of("reranker").post("/v1/rerank", body)) == (400, None)


def test_what_cohere_may_send_beside_is_ignored() -> None:
    extra = {"max_chunks_per_doc": 10, "priority": 5, "relevant_spans": {}, "truncation": None, "max_tokens_per_doc": 7}
    wire = wire_of("reranker")
    assert wire.post("/v1/rerank", {"query": "q", "documents": ["a"], **extra}).status_code == 200
    assert wire.engine.requests[0].options == Options(truncate=True)
    assert wire.post("/v2/rerank", {"query": "q", "documents": ["a"], **extra}).status_code == 200
    assert wire.engine.requests[1].options == Options(truncate=True, max_second_tokens=7)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"query": 5}, "query"),
        ({"documents": "a"}, "documents"),
        ({"documents": [5]}, "documents"),
        ({"documents": [{"image": "x"}]}, "documents[0]"),
        ({"documents": ["a", {"text": 5}]}, "documents[1]"),
        ({"documents": [{"text": "a"}], "rank_fields": ["text", "title"]}, "documents[0]"),
        ({"top_n": 0}, "top_n"),
        ({"top_n": "1"}, "top_n"),
        ({"return_documents": "yes"}, "return_documents"),
        ({"rank_fields": "text"}, "rank_fields"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_wrong_rerank_fields(path: str, fields: Any, named: str) -> None:
    response = wire_of("reranker").post(path, {"query": "q", "documents": ["a"], **fields})
    assert error(response) == E03
    assert named in response.json()["message"]


def test_a_document_of_no_tokens_cannot_be_asked_for() -> None:
    response = wire_of("reranker").post("/v2/rerank", {"query": "q", "documents": ["a"], "max_tokens_per_doc": 0})
    assert error(response) == E03


# Embed


def test_embed_v2_in_full() -> None:
    wire = wire_of()
    response = wire.post("/v2/embed", {"texts": TEXTS, "model": "m", "input_type": "search_query", "priority": 1})
    body = response.json()
    assert len(body.pop("id")) == 36
    assert np.array_equal(np.float32(body["embeddings"].pop("float")), unit(*TEXTS))
    assert body == {
        "response_type": "embeddings_by_type",
        "embeddings": {},
        "texts": TEXTS,
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 9}},
    }
    assert wire.engine.requests[0].options == Options(truncate=True, prompt_name="query")
    assert response.headers["x-compute-tokens"] == "9"


def test_embed_v1_is_a_bare_list_unless_types_are_asked_for() -> None:
    wire = wire_of()
    body = wire.post("/v1/embed", {"texts": TEXTS}).json()
    assert (body["response_type"], body["meta"]["api_version"]["version"]) == ("embeddings_floats", "1")
    assert np.array_equal(np.float32(body["embeddings"]), unit(*TEXTS))
    body = wire.post("/v1/embed", {"texts": TEXTS, "embedding_types": ["int8"], "output_dimension": 2}).json()
    assert (body["response_type"], list(body["embeddings"])) == ("embeddings_by_type", ["int8"])
    assert np.shape(body["embeddings"]["int8"]) == (3, 8)


def test_embedding_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worked out by hand: 127 v, to the nearest; bits of v > 0, the first the highest; binary is ubinary - 128."""
    values = np.float32([0.5, -0.5, 0, 0.25, -0.25, 0.125, -0.125, 0.5863019])
    monkeypatch.setattr("tests.server.fakes.vector", lambda _: values / np.linalg.norm(values.astype(np.float64)))
    kinds = ["float", "int8", "uint8", "binary", "ubinary", "base64", "int8"]
    answer = wire_of().post("/v2/embed", {"texts": ["a"], "embedding_types": kinds}).json()["embeddings"]
    assert list(answer) == kinds[:-1]
    (floats,) = answer["float"]
    assert answer["int8"] == [[round(127 * value) for value in floats]]
    assert answer["uint8"] == [[round(127 * value) + 128 for value in floats]]
    assert answer["ubinary"] == [[0b10010101]]
    assert answer["binary"] == [[0b10010101 - 128]]
    (coded,) = answer["base64"]
    assert np.array_equal(np.frombuffer(base64.b64decode(coded, validate=True), "<f4"), np.float32(floats))


def test_int8_reaches_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    for sign, want in ((1, 127), (-1, -127)):
        monkeypatch.setattr("tests.server.fakes.vector", lambda _, sign=sign: np.float32([sign] + [0] * 7))
        answer = (
            wire_of().post("/v2/embed", {"texts": ["a"], "embedding_types": ["int8", "uint8"]}).json()["embeddings"]
        )
        assert answer == {"int8": [[want] + [0] * 7], "uint8": [[want + 128] + [128] * 7]}


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, Options(truncate=True)),
        ({"truncate": "END"}, Options(truncate=True)),
        ({"truncate": "START"}, Options(truncate=True, truncation_direction="left")),
        ({"truncate": "NONE"}, Options(truncate=False)),
        ({"output_dimension": 3, "max_tokens": 5}, Options(truncate=True, dimensions=3, max_tokens=5)),
        (
            dict.fromkeys(["truncate", "output_dimension", "max_tokens", "input_type", "embedding_types", "images"]),
            Options(truncate=True),
        ),
        ({"images": []}, Options(truncate=True)),
    ],
)
def test_embed_options(fields: dict[str, Any], options: Options) -> None:
    wire = wire_of()
    assert wire.post("/v2/embed", {"texts": ["a"], **fields}).status_code == 200
    assert wire.engine.requests[0].options == options


@pytest.mark.parametrize(
    ("prompts", "input_type", "name"),
    [
        ({"query": "q", "document": "d", "passage": "p"}, "search_document", "document"),
        ({"query": "q", "passage": "p"}, "search_document", "passage"),
        ({"query": "q"}, "search_document", None),
        ({"query": "q"}, "search_query", "query"),
        ({}, "search_query", None),
        ({"classification": "c", "clustering": "d"}, "classification", "classification"),
        ({"classification": "c", "clustering": "d"}, "clustering", "clustering"),
        ({"query": "q"}, None, None),
    ],
)
@pytest.mark.parametrize("path", ["/v1/embed", "/v2/embed"])
def test_input_types_pick_prompts(path: str, prompts: dict[str, str], input_type: str | None, name: str | None) -> None:
    wire = wire_of(prompts=prompts)
    assert wire.post(path, {"texts": ["a"], "input_type": input_type}).status_code == 200
    assert wire.engine.requests[0].options.prompt_name == name


def test_inputs_in_parts() -> None:
    wire = wire_of()
    parts = [{"content": [{"type": "text", "text": text} for text in texts]} for texts in (["a", "b"], ["c"])]
    body = wire.post("/v2/embed", {"inputs": parts}).json()
    assert wire.engine.requests[0].inputs == body["texts"] == ["a\nb", "c"]


@pytest.mark.parametrize(
    ("fields", "expected", "named"),
    [
        ({"texts": "a"}, E03, "texts"),
        ({"texts": [5]}, E03, "texts"),
        ({"texts": None}, E03, "texts"),
        ({"inputs": [{"content": [{"type": "text", "text": "a"}]}]}, E03, "texts"),
        ({"texts": None, "inputs": [{"content": [{"type": "image_url", "image_url": {}}]}]}, E03, "'text'"),
        ({"texts": None, "inputs": [{"content": []}]}, E08, "empty"),
        ({"texts": None, "inputs": []}, E08, "empty"),
        ({"images": ["x"]}, E03, "images"),
        ({"input_type": "image"}, E03, "'search_document'"),
        ({"embedding_types": ["float", "fp4"]}, E03, "'ubinary'"),
        ({"embedding_types": []}, E03, "embedding_types"),
        ({"embedding_types": "float"}, E03, "embedding_types"),
        ({"truncate": "end"}, E03, "'END'"),
        ({"texts": ["a", ""]}, E08, "1"),
        ({"texts": []}, E08, "empty"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/embed", "/v2/embed"])
def test_wrong_embed_fields(path: str, fields: dict[str, Any], expected: Any, named: str) -> None:
    response = wire_of().post(path, {"texts": ["a"], **fields})
    assert error(response) == expected
    assert named in response.json()["message"]


@pytest.mark.parametrize("fields", [{"output_dimension": 0}, {"output_dimension": 9}, {"max_tokens": 0}])
def test_wrong_embed_v2_fields(fields: dict[str, Any]) -> None:
    assert error(wire_of().post("/v2/embed", {"texts": ["a"], **fields})) == E12


@pytest.mark.parametrize("kind", ["binary", "ubinary"])
def test_bits_fill_their_bytes(kind: str) -> None:
    body = {"texts": ["a"], "embedding_types": [kind], "output_dimension": 7}
    response = wire_of().post("/v2/embed", body)
    assert error(response) == E12
    assert "got 7" in response.json()["message"]
    assert wire_of().post("/v2/embed", {**body, "output_dimension": 8}).status_code == 200


def test_a_lower_limit_refuses_or_cuts() -> None:
    body = {"texts": ["abcdef"], "max_tokens": 5}
    assert wire_of().post("/v2/embed", body).status_code == 200
    assert error(wire_of().post("/v2/embed", {**body, "truncate": "NONE"})) == E03
    assert wire_of().post("/v2/embed", {**body, "truncate": "NONE", "max_tokens": 6}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/v1/embed", "/v2/embed"])
def test_errors_have_ids_of_their_own(path: str) -> None:
    first, second = (wire_of().post(path, {}).json() for _ in range(2))
    assert first["id"] != second["id"]
    assert first["detail"] == first["message"] != ""
