"""Several models in one app: which one a request means, what is said of each, and that one alone is as ever."""

import logging
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from openbei.engine.models import Models
from openbei.engine.request import Kind
from openbei.server.routes import cohere, openai, sparse, tei
from tests.server.conditions import ROWS
from tests.server.fakes import FakeEngine
from tests.server.wire import Wire, error

KINDS: tuple[Kind, ...] = ("embedding", "sparse", "multi_vector", "classifier", "reranker", "token_classifier")


class Several:
    """An app of several fakes; who: the names of those that were asked since the last time."""

    def __init__(self, *models: tuple[str, Kind], **config: Any) -> None:
        self.engines = {name: FakeEngine(kind, name=name) for name, kind in models}
        self.models = Models(*self.engines.values())  # type: ignore[arg-type]
        self.wire = Wire(self.models, **config)  # type: ignore[arg-type]

    def who(self) -> list[str]:
        asked = [name for name, engine in self.engines.items() for _ in engine.requests]
        for engine in self.engines.values():
            engine.requests.clear()
        return asked


@pytest.fixture
def one_each() -> Several:
    return Several(*((f"the-{kind}", kind) for kind in KINDS))


@pytest.mark.parametrize("path", [path for path, row in ROWS.items() if row.other is not None])
def test_without_a_name_the_first_that_is_for_the_route(one_each: Several, path: str) -> None:
    assert one_each.wire.post(path, ROWS[path].body).status_code == 200
    assert one_each.who() == [f"the-{ROWS[path].kind}"]


@pytest.mark.parametrize(
    ("path", "kinds", "expected"),
    [
        ("/predict", ("reranker", "classifier"), "classifier"),
        ("/predict", ("embedding", "reranker"), "reranker"),
        ("/embed_all", ("sparse", "embedding"), "embedding"),
        ("/embed", ("sparse", "embedding"), "embedding"),
        ("/embed", ("reranker", "embedding", "embedding"), "embedding"),
    ],
)
def test_whose_own_task_it_is_goes_first(path: str, kinds: tuple[Kind, ...], expected: str) -> None:
    """Then whoever can do it, in the order given."""
    several = Several(*((f"{number}-{kind}", kind) for number, kind in enumerate(kinds)))
    assert several.wire.post(path, ROWS[path].body).status_code == 200
    assert several.who() == [f"{kinds.index(expected)}-{expected}"]


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings", "/v2/embed", "/rerank", "/v2/rerank", "/predict_tokens"])
def test_if_none_can_the_first_says_so(path: str) -> None:
    kind: Kind = "embedding" if "rerank" in path or "predict" in path else "classifier"
    several = Several(("first", kind), ("second", kind))
    assert error(several.wire.post(path, ROWS[path].body))[0] == 424
    assert several.who() == ["first"]


@pytest.mark.parametrize("path", [path for path, row in ROWS.items() if row.computes])
@pytest.mark.parametrize("by", ["body", "header"])
def test_a_name_means_that_model(path: str, by: str) -> None:
    kind = ROWS[path].kind
    several, body = Several(("a", kind), ("b", kind)), dict(ROWS[path].body)
    headers = {"x-model": "b"} if by == "header" else {}
    if by == "body" and path == "/vertex":
        body = {"instances": [{**one, "model": "b"} for one in body["instances"]]}
    elif by == "body":
        body["model"] = "b"
    response = several.wire.post(path, body, headers=headers)
    assert response.status_code == 200, response.text
    assert several.who() == ["b"]
    answer = response.json()
    if isinstance(answer, dict) and "model" in answer:
        assert answer["model"] == "b"


@pytest.mark.parametrize("path", [path for path, row in ROWS.items() if row.other is not None])
def test_a_named_model_of_another_kind_says_so(one_each: Several, path: str) -> None:
    other = ROWS[path].other
    assert error(one_each.wire.post(path, ROWS[path].body, headers={"x-model": f"the-{other}"}))[0] == 424
    assert one_each.who() == [f"the-{other}"]


@pytest.mark.parametrize("path", ROWS)
def test_a_name_that_none_has(one_each: Several, path: str) -> None:
    body = {**ROWS[path].body, "model": "nobody"}
    if path == "/vertex":
        body = {"instances": [{**one, "model": "nobody"} for one in body["instances"]]}
    response = one_each.wire.post(path, body)
    status, kind = error(response)
    assert (status, kind) in {(404, "NotFound"), (404, None)}
    assert "'nobody'" in response.text
    assert "the-classifier" in response.text
    assert ("model_not_found" in response.text) == (path in {"/v1/embeddings", "/embeddings"})
    assert one_each.who() == []


@pytest.mark.parametrize("name", ["", None])
def test_an_empty_name_is_none(one_each: Several, name: str | None) -> None:
    assert one_each.wire.post("/rerank", {**ROWS["/rerank"].body, "model": name}).status_code == 200
    assert one_each.who() == ["the-reranker"]


def test_the_header_goes_before_the_body() -> None:
    several = Several(("a", "embedding"), ("b", "embedding"))
    answer = several.wire.post("/v1/embeddings", {"input": "x", "model": "anything"}, headers={"x-model": "b"})
    assert (answer.status_code, answer.json()["model"]) == (200, "b")


def test_instances_of_vertex_choose_for_themselves(one_each: Several) -> None:
    instances = [{"query": "q", "texts": ["a"]}, {"inputs": "a", "model": "the-classifier"}, {"inputs": "a"}]
    predictions = one_each.wire.post("/vertex", {"instances": instances}).json()["predictions"]
    assert sorted(one_each.who()) == ["the-classifier", "the-embedding", "the-reranker"]
    assert [set(predictions[0][0]), set(predictions[1][0])] == [{"index", "score"}, {"label", "score"}]


def test_tokens_are_those_of_the_model_that_is_named() -> None:
    several = Several(("a", "embedding"), ("b", "embedding"))
    several.engines["a"].refuse_with = ZeroDivisionError()
    for path, body in (("/tokenize", {"inputs": "x"}), ("/decode", {"ids": [5]})):
        assert several.wire.post(path, {**body, "model": "b"}).status_code == 200
        assert several.wire.post(path, body).status_code == 500


@pytest.mark.parametrize(("name", "expected"), [(None, "/v1/embeddings"), ("r", "/rerank")])
def test_the_gateway_s_default_route_is_that_of_the_model_that_is_meant(name: str | None, expected: str) -> None:
    several = Several(("e", "embedding"), ("r", "reranker"))
    headers = {"x-model": name} if name else {}
    answer = several.wire.post("/environments/production/predict", ROWS[expected].body, headers=headers)
    assert answer.status_code == 200
    assert several.who() == [name or "e"]


def test_models_are_listed_in_their_order_and_described_one_by_one(one_each: Several) -> None:
    listed = [one["id"] for one in one_each.wire.get("/v1/models").json()["data"]]
    assert listed == [f"the-{kind}" for kind in KINDS]
    assert one_each.wire.get("/v1/models/the-sparse").json()["id"] == "the-sparse"
    assert one_each.wire.get("/v1/models/nobody").json()["code"] == "model_not_found"


def test_info_is_of_the_first_or_of_the_one_that_is_named(one_each: Several) -> None:
    for asked, expected in (
        ({}, "the-embedding"),
        ({"params": {"model": "the-reranker"}}, "the-reranker"),
        ({"headers": {"x-model": "the-classifier"}}, "the-classifier"),
    ):
        assert one_each.wire.get("/info", **asked).json()["served_model_name"] == expected
    assert error(one_each.wire.get("/info", params={"model": "nobody"}))[0] == 404


def test_health_is_of_all_or_of_one() -> None:
    several = Several(("a", "embedding"), ("b", "reranker"), ("c", "classifier"))
    assert several.wire.get("/health").status_code == 200
    several.engines["b"].status = "failed"
    several.engines["c"].status = "draining"
    response = several.wire.get("/health")
    assert error(response) == (503, "Unhealthy")
    assert response.json()["error"] == "unhealthy: b is failed, c is draining"
    assert several.wire.get("/health", params={"model": "a"}).status_code == 200
    assert several.wire.get("/health", headers={"x-model": "b"}).status_code == 503
    assert several.wire.get("/health", params={"model": "nobody"}).status_code == 404
    assert several.wire.post("/embed", {"inputs": "x"}).status_code == 200


def test_metrics_say_whose_they_are() -> None:
    several = Several(("a", "embedding"), ('odd "name"\\\n', "embedding"))
    several.wire.post("/embed", {"inputs": "x"})
    text = several.wire.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    counts = {
        (sample.labels["model"], sample.labels["method"]): sample.value
        for sample in families["te_request_count"].samples
    }
    assert counts == {
        ("a", "single"): 1,
        ("a", "batch"): 0,
        ('odd "name"\\\n', "single"): 0,
        ('odd "name"\\\n', "batch"): 0,
    }
    for family in families.values():
        assert {sample.labels["model"] for sample in family.samples} == set(several.engines)
        assert text.count(f"# HELP {family.name} ") == text.count(f"# TYPE {family.name} ") == 1


def test_the_log_names_the_model(one_each: Several, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "openbei.server")
    one_each.wire.post("/rerank", ROWS["/rerank"].body)
    one_each.wire.get("/health")
    lines = [record.getMessage() for record in caplog.records if record.name == "openbei.server"]
    assert [" model='the-reranker'" in line for line in lines] == [True, False]


@pytest.mark.parametrize("path", ROWS)
def test_one_model_answers_to_any_name(path: str) -> None:
    engine = FakeEngine(ROWS[path].kind)
    wire = Wire(engine)
    assert wire.post(path, {**ROWS[path].body, "model": "any/name"}, headers={"x-model": "other"}).status_code == 200
    assert wire.get("/health", params={"model": "any"}).status_code == 200
    assert "model=" not in wire.get("/metrics").text


@pytest.mark.parametrize(
    "route", [*openai.ROUTES, *tei.ROUTES, *sparse.ROUTES, *cohere.ROUTES], ids=lambda one: one.path[0]
)
def test_a_route_asks_for_what_its_handler_asks(route: Any) -> None:
    """The choice of a model and the task that it is then given cannot drift apart."""
    if route.body is None:
        return
    row = ROWS[route.path[0]]
    engine = FakeEngine(row.kind)
    Wire(engine).post(route.path[0], row.body)
    assert [request.task for request in engine.requests] == [route.asks]


def test_names_count_for_good_once_there_were_two() -> None:
    several = Several(("a", "embedding"), ("b", "embedding"))
    several.models.remove("a")
    assert error(several.wire.post("/embed", {"inputs": "x", "model": "a"}))[0] == 404
    assert several.wire.post("/embed", {"inputs": "x"}).status_code == 200
    assert several.who() == ["b"]
    assert 'model="b"' in several.wire.get("/metrics").text
