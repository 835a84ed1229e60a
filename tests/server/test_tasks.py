"""The routes beside embedding: every form of input and option, the exact answers, and what each refuses."""

import shlex
from typing import Any

import numpy as np
import pytest
from openapi_schema_validator import OAS31Validator

from openbei.describe import curl
from openbei.engine.finish import activated
from openbei.engine.request import Chat, Input, Kind, Options, Pair
from tests.server.fakes import DIM, LABELS, FakeEngine, vector
from tests.server.wire import Wire, error

E03 = (422, "Validation")
E08 = (400, "Empty")
E15 = (424, "Backend")


def wire_of(kind: Kind, **config: Any) -> Wire:
    return Wire(FakeEngine(kind, **config))


def logits(one: Input, kind: Kind) -> np.ndarray:
    return vector(one)[: len(LABELS[kind])]


# /embed_all


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("fox", ["fox"]),
        ([5, 6], [[5, 6]]),
        (["a", "b c"], ["a", "b c"]),
        ([[5, 6], "a"], [[5, 6], "a"]),
    ],
)
def test_embed_all_answers_input_token_hidden(wire: Wire, sent: Any, read: list[Any]) -> None:
    response = wire.post("/embed_all", {"inputs": sent, "prompt_name": "query", "normalize": "ignored"})
    assert response.status_code == 200
    assert list(wire.engine.requests[0].inputs) == read
    assert (wire.engine.requests[0].task, wire.engine.requests[0].options.prompt_name) == ("embed_tokens", "query")
    body = response.json()
    assert [np.shape(rows) for rows in body] == [(len(one), DIM) for one in read]
    assert all(np.array_equal(np.float32(rows)[0], vector(one)) for rows, one in zip(body, read, strict=True))
    assert response.headers["x-compute-tokens"] == str(3 * len(read))


# /predict

QUESTION = {"role": "user", "content": "two plus two?", "name": None}
ANSWER = {"role": "assistant", "content": "four", "tool_calls": [{"id": 1}]}

PREDICT_FORMS: list[tuple[Any, list[Input], bool]] = [
    ("a", ["a"], False),
    (["a"], ["a"], False),
    (["a", "b"], [Pair("a", "b")], False),
    ([["a"], ["b", "c"]], ["a", Pair("b", "c")], True),
    ([["a"]], ["a"], True),
    ([["a", "b"]], [Pair("a", "b")], True),
    ([["a"], ["b"]], ["a", "b"], True),
    (["", "b"], [Pair("", "b")], False),
    ([["a", ""]], [Pair("a", "")], True),
    (" ", [" "], False),
    ([QUESTION], [Chat([QUESTION])], False),
    ([QUESTION, ANSWER, QUESTION], [Chat([QUESTION, ANSWER, QUESTION])], False),
    ([[QUESTION, ANSWER], ["a"], ["b", "c"]], [Chat([QUESTION, ANSWER]), "a", Pair("b", "c")], True),
    ([[QUESTION]], [Chat([QUESTION])], True),
]


@pytest.mark.parametrize(("sent", "read", "is_batch"), PREDICT_FORMS, ids=lambda value: repr(value)[:30])
@pytest.mark.parametrize("path", ["/predict", "/", "/invocations"])
def test_predict_forms(path: str, sent: Any, read: list[Input], is_batch: bool) -> None:
    wire = wire_of("classifier")
    response = wire.post(path, {"inputs": sent, "raw_scores": True, "model": "m"})
    assert response.status_code == 200
    assert list(wire.engine.requests[0].inputs) == read
    assert [type(one) for one in wire.engine.requests[0].inputs] == [type(one) for one in read]
    want = [
        sorted(
            (
                {"score": pytest.approx(float(score), rel=1e-6), "label": label}
                for score, label in zip(row, names, strict=True)
            ),
            key=lambda one: -one["score"].expected,
        )
        for row, names in ((logits(one, "classifier"), LABELS["classifier"]) for one in read)
    ]
    assert response.json() == (want if is_batch else want[0])
    assert response.headers["x-compute-tokens"] == str(3 * len(read))


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        *[(value, E03) for value in ([], ["a", "b", "c"], [[]], [["a", "b", "c"]], [["a"], "b"], ["a", ["b"]])],
        *[(value, E03) for value in (5, None, {}, [5], [[5]], [1, 2], [["a"], []], [[["a"]]], ["a", None])],
        *[(value, E08) for value in ("", [""], ["", ""], [["a"], [""]], [["", ""]])],
        ([["a"]] * 5, E03),
        *[(value, E03) for value in (QUESTION, [QUESTION, "a"], [[QUESTION], QUESTION], [[QUESTION, "a"]])],
        *[([[ANSWER, {**ANSWER, **wrong}]], E03) for wrong in ({"role": 1}, {"content": None}, {"content": ["a"]})],
        *[([{key: "a"}], E03) for key in ("role", "content")],
        ([{**QUESTION, "content": ""}], E08),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_wrong_predict_inputs(inputs: Any, expected: tuple[int, str]) -> None:
    response = wire_of("classifier").post("/predict", {"inputs": inputs})
    assert error(response) == expected


def test_openapi_describes_every_form_of_predict() -> None:
    schema = wire_of("classifier").get("/openapi.json").json()["components"]["schemas"]["PredictRequest"]
    validator = OAS31Validator(schema)
    for sent in [*(sent for sent, _, _ in PREDICT_FORMS), *schema["properties"]["inputs"]["examples"]]:
        assert validator.is_valid({"inputs": sent}), sent
    for wrong in (5, [5], [{"role": "user"}], [[{"content": "a"}]], QUESTION):
        assert not validator.is_valid({"inputs": wrong}), wrong


def test_a_chat_counts_what_its_messages_hold() -> None:
    response = wire_of("classifier").post("/predict", {"inputs": [[QUESTION, ANSWER], ["né"]]})
    assert response.headers["x-compute-characters"] == str(len("two plus two?") + len("four") + 2)


def test_the_place_of_a_wrong_message_is_told() -> None:
    response = wire_of("classifier").post("/predict", {"inputs": [QUESTION, {"role": "user"}]})
    assert response.json()["error"] == "message 1 of a chat must be an object whose content is a string"


@pytest.mark.parametrize("path", ["/embed", "/embed_all", "/predict_tokens"])
def test_other_routes_take_no_messages(path: str) -> None:
    kind: Kind = "token_classifier" if path == "/predict_tokens" else "embedding"
    assert error(wire_of(kind).post(path, {"inputs": [QUESTION]})) == E03


def test_predict_answers_equal_scores_with_the_higher_label_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.server.fakes.vector", lambda _: np.float32([0, 0, -1]))
    response = wire_of("classifier").post("/predict", {"inputs": "a"})
    assert response.text == (
        '[{"score":0.5,"label":"good"},{"score":0.5,"label":"bad"},{"score":0.26894143,"label":"mixed"}]'
    )


def test_one_label_answers_lists_of_one() -> None:
    body = wire_of("reranker").post("/predict", {"inputs": [["a"], ["b", "c"]]}).json()
    assert [[one["label"] for one in row] for row in body] == [["relevance"], ["relevance"]]


# /rerank


def test_rerank_orders_by_score_and_repeats_texts_only_when_asked() -> None:
    wire, texts = wire_of("reranker"), ["fox", "whale", "né"]
    scores = [float(activated(logits(Pair("q", text), "reranker"), "sigmoid")[0]) for text in texts]
    order = sorted(range(3), key=lambda index: -scores[index])
    body = wire.post("/rerank", {"query": "q", "texts": texts, "model": "m"}).json()
    assert body == [{"index": index, "score": pytest.approx(scores[index])} for index in order]
    told = wire.post("/rerank", {"query": "q", "texts": texts, "return_text": True}).json()
    assert told == [{"index": index, "score": pytest.approx(scores[index]), "text": texts[index]} for index in order]
    assert wire.engine.requests[0].inputs == [Pair("q", text) for text in texts]
    raw = wire.post("/rerank", {"query": "q", "texts": texts, "raw_scores": True}).json()
    assert {one["index"]: one["score"] for one in raw} == {
        index: pytest.approx(float(logits(Pair("q", text), "reranker")[0]), rel=1e-6)
        for index, text in enumerate(texts)
    }


def test_rerank_answers_equal_scores_with_the_higher_index_first() -> None:
    texts = ["fox", "whale", *["fox"] * 40]  # so many that an unstable sort does not keep their order by chance
    wire = Wire(FakeEngine("reranker", max_client_batch_size=64))
    places = [one["index"] for one in wire.post("/rerank", {"query": "q", "texts": texts}).json()]
    assert [place for place in places if place != 1] == [*range(41, 1, -1), 0]


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("reranker", {"texts": ["a"]}, E03),
        ("reranker", {"query": "q"}, E03),
        ("reranker", {"query": ["q"], "texts": ["a"]}, E03),
        ("reranker", {"query": "q", "texts": "a"}, E03),
        ("reranker", {"query": "q", "texts": [["a"]]}, E03),
        ("reranker", {"query": "q", "texts": [5]}, E03),
        ("reranker", {"query": "q", "texts": ["a"], "return_text": "yes"}, E03),
        ("reranker", {"query": "q", "texts": ["a"], "raw_scores": 1}, E03),
        ("reranker", {"query": "q", "texts": ["a"] * 5}, E03),
        ("reranker", {"query": "", "texts": ["a", ""]}, E08),
        ("reranker", {"query": "q" * 10, "texts": ["a" * 10], "truncate": False}, E03),
        # Each has the fault of its row and those of the rows below: shape, empty, task, size.
        ("classifier", {"query": 5, "texts": []}, E03),
        ("classifier", {"query": "q", "texts": []}, E08),
        ("embedding", {"query": "q", "texts": []}, E08),
        ("classifier", {"query": "q", "texts": ["a"] * 5}, E15),
        ("embedding", {"query": "q", "texts": ["a"] * 5}, E15),
        ("reranker", {"query": "", "texts": [""] * 5}, E03),
    ],
)
def test_wrong_rerank_requests(kind: Kind, body: Any, expected: tuple[int, str]) -> None:
    assert error(wire_of(kind).post("/rerank", body)) == expected


@pytest.mark.parametrize(("query", "text"), [("", "a"), ("q", ""), (" ", "")])
def test_a_pair_with_one_empty_side_is_ranked(query: str, text: str) -> None:
    assert wire_of("reranker").post("/rerank", {"query": query, "texts": [text]}).status_code == 200


def test_rerank_counts_the_query_with_every_text() -> None:
    response = wire_of("reranker").post("/rerank", {"query": "né", "texts": ["abc", ""]})
    assert response.headers["x-compute-characters"] == "7"


# /predict_tokens


@pytest.mark.parametrize(
    ("sent", "read"),
    [("a b", ["a b"]), (["a", "b"], ["a", "b"]), ([["a"], ["b", "c"]], ["a", "b", "c"]), ([["a"], []], ["a"])],
)
def test_predict_tokens_forms(sent: Any, read: list[str]) -> None:
    wire = wire_of("token_classifier")
    body = wire.post("/predict_tokens", {"inputs": sent}).json()
    assert wire.engine.requests[0].inputs == read
    assert [[one["token"] for one in row] for row in body] == [["[CLS]", *text.split(), "[SEP]"] for text in read]


def test_predict_tokens_answers_the_best_label_or_all_of_them() -> None:
    wire = wire_of("token_classifier")
    cls, word, _ = wire.post("/predict_tokens", {"inputs": " né"}).json()[0]
    row = logits("né", "token_classifier")
    scores = activated(row, "softmax")
    best = LABELS["token_classifier"][int(row.argmax())]
    assert word == {
        **{"token": "né", "token_id": 7, "start": 1, "end": 3},
        "results": {best: pytest.approx(float(scores.max()), rel=1e-6)},
    }
    assert (cls["token"], cls["token_id"], cls["start"], cls["end"]) == ("[CLS]", 1, 0, 0)
    raw = wire.post("/predict_tokens", {"inputs": " né", "raw_scores": True}).json()[0][1]["results"]
    assert raw == {
        label: pytest.approx(float(value), rel=1e-6)
        for label, value in zip(LABELS["token_classifier"], row, strict=True)
    }
    assert list(raw.values()) == sorted(raw.values(), reverse=True)


PROBABILITIES = {  # O, B-PER, I-PER, B-LOC
    "[CLS]": [0.1, 0.9, 0, 0],
    "Ada": [0.1, 0.8, 0.1, 0],
    "Love": [0, 0.2, 0.8, 0],
    "+lace": [0.5, 0, 0.1, 0.4],
    "saw": [1, 0, 0, 0],
    "Bob": [0.1, 0.6, 0.3, 0],
    "Eve": [0.3, 0.7, 0, 0],
    "[SEP]": [0.1, 0, 0.9, 0],
}


@pytest.mark.parametrize(
    ("strategy", "want"),
    [
        ("simple", [("PER", "Ada Love", 0.8), ("PER", "Bob", 0.6), ("PER", "Eve", 0.7)]),
        ("first", [("PER", "Ada Love +lace", 0.8), ("PER", "Bob", 0.6), ("PER", "Eve", 0.7)]),
        ("average", [("PER", "Ada Love +lace", 0.625), ("PER", "Bob", 0.6), ("PER", "Eve", 0.7)]),
        ("max", [("PER", "Ada Love +lace", 0.8), ("PER", "Bob", 0.6), ("PER", "Eve", 0.7)]),
    ],
)
@pytest.mark.parametrize("raw_scores", [True, False])
def test_predict_tokens_joins_entities(
    monkeypatch: pytest.MonkeyPatch, strategy: str, want: list[tuple[str, str, float]], raw_scores: bool
) -> None:
    monkeypatch.setattr(
        "tests.server.fakes.vector", lambda word: np.log(np.float32(PROBABILITIES[word]) + np.float32(1e-30))
    )
    text = "Ada Love +lace saw Bob Eve"
    body = {"inputs": [[text]], "aggregation_strategy": strategy, "raw_scores": raw_scores}
    (entities,) = wire_of("token_classifier").post("/predict_tokens", body).json()
    assert entities == [
        {
            **{"token": token, "token_id": 0, "start": text.index(token), "end": text.index(token) + len(token)},
            "results": {label: pytest.approx(score, rel=1e-5)},
        }
        for label, token, score in want
    ]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"inputs": []}, E08),
        ({"inputs": [[]]}, E08),
        ({"inputs": ""}, E08),
        ({"inputs": [["a"], [""]]}, E08),
        ({"inputs": ["a", ["b"]]}, E03),
        ({"inputs": [5]}, E03),
        ({"inputs": ["a"] * 5}, E03),
        ({"inputs": "a", "aggregation_strategy": "last"}, E03),
        ({"inputs": "a", "raw_scores": "yes"}, E03),
        ({}, E03),
    ],
)
def test_wrong_predict_tokens_requests(fields: Any, expected: tuple[int, str]) -> None:
    assert error(wire_of("token_classifier").post("/predict_tokens", fields)) == expected


# All of them

BODIES: dict[str, Any] = {
    "/embed": {"inputs": "a"},
    "/v1/embeddings": {"input": "a"},
    "/embed_all": {"inputs": "a"},
    "/predict": {"inputs": "a"},
    "/rerank": {"query": "q", "texts": ["a"]},
    "/predict_tokens": {"inputs": "a"},
}
ANSWERED: dict[Kind, set[str]] = {
    "embedding": {"/embed", "/v1/embeddings", "/embed_all"},
    "classifier": {"/predict"},
    "reranker": {"/predict", "/rerank"},
    "token_classifier": {"/predict_tokens"},
}


@pytest.mark.parametrize("kind", ANSWERED)
@pytest.mark.parametrize("path", BODIES)
def test_a_model_answers_its_own_routes_and_refuses_the_others(path: str, kind: Kind) -> None:
    response = wire_of(kind).post(path, BODIES[path])
    if path in ANSWERED[kind]:
        assert response.status_code == 200
    else:
        assert error(response) == E15


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("embedding", "/embed"),
        ("classifier", "/predict"),
        ("reranker", "/rerank"),
        ("token_classifier", "/predict_tokens"),
    ],
)
@pytest.mark.parametrize("root", ["/", "/invocations"])
def test_the_root_does_what_the_model_is_for(kind: Kind, path: str, root: str) -> None:
    wire = wire_of(kind)
    assert wire.post(root, BODIES[path]).content == wire.post(path, BODIES[path]).content
    assert error(wire.post(root, b"{")) == (400, "Validation")
    assert error(wire.post(root, {"nothing": 1})) == E03


def test_the_root_asks_for_the_key_but_its_health_does_not() -> None:
    wire = Wire(FakeEngine("classifier"), api_key="k")
    assert error(wire.post("/", BODIES["/predict"])) == (401, "Unauthorized")
    assert wire.get("/").status_code == 200


@pytest.mark.parametrize("kind", ANSWERED)
def test_the_request_that_a_ready_server_shows_is_answered(kind: Kind) -> None:
    command = shlex.split(curl("http://bei", kind, with_key=False))
    assert wire_of(kind).post(command[1].removeprefix("http://bei"), command[-1].encode()).status_code == 200


OPTIONS = [
    ({}, Options()),
    ({"truncate": False}, Options(truncate=False)),
    ({"truncation_direction": "Left"}, Options(truncation_direction="left")),
    (dict.fromkeys(["truncate", "truncation_direction", "raw_scores", "return_text", "prompt_name"]), Options()),
    ({"unknown": {"a": [1]}, "model": "any", "parameters": {}}, Options()),
]


@pytest.mark.parametrize(("fields", "options"), OPTIONS)
@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("embedding", "/embed_all"),
        ("classifier", "/predict"),
        ("reranker", "/rerank"),
        ("token_classifier", "/predict_tokens"),
    ],
)
def test_options(kind: Kind, path: str, fields: Any, options: Options) -> None:
    wire = wire_of(kind)
    assert wire.post(path, {**BODIES[path], **fields}).status_code == 200
    assert wire.engine.requests[0].options == options


@pytest.mark.parametrize("kind", ["classifier", "reranker", "token_classifier"])
def test_info_of_models_with_labels(kind: Kind) -> None:
    names = LABELS[kind]
    assert wire_of(kind).get("/info").json()["model_type"] == {
        kind: {
            "id2label": {str(index): name for index, name in enumerate(names)},
            "label2id": {name: index for index, name in enumerate(names)},
        }
    }
