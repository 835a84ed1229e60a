"""What the server says of itself: info, health, metrics, the OpenAPI document and the page."""

import json
import re

import openapi_spec_validator
import pytest
from prometheus_client.parser import text_string_to_metric_families

import openbei
from tests.server.fakes import FakeEngine
from tests.server.wire import Wire, error


def test_info_in_full(wire: Wire) -> None:
    body = wire.get("/info").json()
    assert body == {
        "version": openbei.__version__,
        "model_id": "org/tiny",
        "model_sha": "abc123",
        "model_dtype": "float32",
        "served_model_name": "org/tiny",
        "model_type": {"embedding": {"pooling": "mean"}},
        "max_concurrent_requests": 8192,
        "max_input_length": 16,
        "max_batch_tokens": 64,
        "max_batch_requests": None,
        "max_client_batch_size": 4,
        "auto_truncate": True,
        "tokenization_workers": 2,
        "sha": None,
        "docker_label": None,
    }


@pytest.mark.parametrize("path", ["/health", "/ping", "/"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health(wire: Wire, method: str, path: str) -> None:
    response = wire.send(method, path)
    assert response.status_code == 200
    assert response.headers["content-length"] == str(len('{"status":"ok"}'))


@pytest.mark.parametrize("status", ["starting", "draining", "failed"])
@pytest.mark.parametrize("path", ["/health", "/ping", "/"])
def test_health_while_nothing_is_answered(wire: Wire, path: str, status: str) -> None:
    wire.engine.status = status
    response = wire.get(path)
    assert error(response) == (503, "Unhealthy")
    assert response.headers["retry-after"] == "1"
    assert wire.get("/metrics").status_code == wire.get("/info").status_code == 200


def test_metrics_are_prometheus_text(wire: Wire) -> None:
    wire.post("/embed", {"inputs": ["a", "b"]})
    wire.post("/embed", {"inputs": ""})
    response = wire.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    samples = {  # the parser itself puts a `_total` behind counters
        (sample.name.removesuffix("_total"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert samples["te_request_count", "batch"] == samples["te_request_count", "single"] == 1
    assert samples["te_request_success", "batch"] == 1
    assert samples["te_embed_success",] == 2


def test_openapi_is_valid_and_served_twice(wire: Wire) -> None:
    document = wire.get("/openapi.json").json()
    openapi_spec_validator.validate(document)
    assert document["openapi"].startswith("3.1")
    assert wire.get("/api-doc/openapi.json").json() == document


def test_openapi_lists_every_path_that_answers(wire: Wire) -> None:
    """And each path that it lists answers its method: nothing is described that is not there."""
    paths = wire.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        *("/v1/embeddings", "/embeddings", "/v1/models", "/v1/models/{id}", "/embed", "/info", "/health", "/ping", "/"),
        *(
            "/embed_all",
            "/embed_sparse",
            "/v1/multi-vector",
            "/predict",
            "/rerank",
            "/predict_tokens",
            "/invocations",
            "/similarity",
            "/tokenize",
            "/decode",
        ),
        *("/models/load", "/models/unload"),
        *("/vertex", "/v1/rerank", "/v2/rerank", "/v1/embed", "/v2/embed"),
        *("/metrics", "/docs", "/openapi.json", "/api-doc/openapi.json"),
    }
    for path, methods in paths.items():
        for method in methods:
            assert wire.send(method.upper(), path.replace("{id}", "org/tiny")).status_code in {200, 403, 415}


def test_openapi_shapes_are_those_that_are_checked(wire: Wire) -> None:
    schemas = wire.get("/openapi.json").json()["components"]["schemas"]
    request = schemas["EmbeddingsRequest"]
    assert request["required"] == ["input"]
    assert set(request["properties"]) == {
        *("input", "model", "encoding_format", "user"),
        *("truncate", "truncation_direction", "prompt_name", "normalize", "dimensions", "priority"),
    }
    answer = wire.post("/v1/embeddings", {"input": "a"}).json()
    assert set(answer) == set(schemas["Embeddings"]["properties"])
    assert set(wire.get("/info").json()) == set(schemas["Info"]["properties"])
    assert set(wire.post("/embed", {"inputs": ""}).json()) == set(schemas["TEIError"]["properties"])
    assert set(wire.post("/embeddings", {"input": ""}).json()) == set(schemas["OpenAIError"]["properties"])


def test_openapi_keeps_the_contract_s_numbering_to_itself(wire: Wire) -> None:
    assert not re.search(r"\(E\d\d", wire.get("/openapi.json").text)


def test_docs_load_nothing_from_anywhere(engine: FakeEngine, wire: Wire) -> None:
    response = wire.get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", response.text)
    embedded = re.search(r'<script id="document" type="application/json">(.*?)</script>', response.text, re.DOTALL)
    assert embedded is not None
    assert json.loads(embedded[1]) == wire.get("/openapi.json").json()


def test_docs_have_a_form_for_every_route(wire: Wire) -> None:
    """Each with a body of the right shape: what is refused is refused for the model's sake alone."""
    page = wire.get("/docs").text
    examples = dict(re.findall(r'^  "(/\S*)": (\{.*\}),$', page, re.MULTILINE))
    paths = wire.get("/openapi.json").json()["paths"]
    posts = {path for path, methods in paths.items() if "post" in methods}
    same = {path for path in posts if paths[path]["post"]["summary"].startswith("Same as")}
    assert set(examples) == posts - same
    for path, example in examples.items():
        body = json.loads(re.sub(r"(\w+): ", r'"\1": ', example))
        allowed = {403} if path.startswith("/models/") else {200, 424}  # no key is set here
        assert wire.post(path, body).status_code in allowed, path
